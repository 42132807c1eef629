"""How many threads does a large copy take here?

One core may or may not fill the memory bus: that is a matter of the machine, of its other guests,
and of the limits that a container sets. So it is not guessed from the number of cores, but learned
from the first large copies themselves: slice after slice is copied by one, two, four, ... threads,
each number a few times; from then on by the fewest that come near the best.

Concurrency: any thread may copy. Who is interrupted may leave helpers behind that still write: the
work itself must keep hold of what makes sure that the memory is not given to somebody else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Final

# Below this size starting threads costs more than they save.
WORTH_NBYTES: Final = 64 << 20

_SLICE_NBYTES: Final = 16 << 20
_MOST_THREADS: Final = 8
_LOOKS: Final = 3
# Threads that others may need are worth it only for so much.
_GAIN: Final = 1.25

Work = Callable[[int, int], None]
"""Copies the bytes from an offset to another one, without holding the GIL."""


class Crew:
    """The threads that share out one kind of copy.

    Parameters
    ----------
    cores
        How many threads could run at once; None: as many as this process may use.
    """

    def __init__(self, cores: int | None = None) -> None:
        cores = count_cores() if cores is None else cores
        self._rates: dict[int, list[float]] = {1: []}
        while 2 * max(self._rates) <= min(cores, _MOST_THREADS):
            self._rates[2 * max(self._rates)] = []

    def share_out(self, nbytes: int, work: Work) -> None:
        """Copy `nbytes` bytes; what `work` raises in any thread is raised here, when all are done.

        Parameters
        ----------
        nbytes
            In all.
        work
            Called with ranges that do not overlap, in several threads at once.
        """
        done = 0
        try:
            while done < nbytes:
                threads = self._to_learn()
                end = min(done + _SLICE_NBYTES, nbytes) if threads else nbytes
                begin = perf_counter()
                _split(work, done, end, threads or self.threads())
                if threads and end - done == _SLICE_NBYTES:
                    self._rates[threads].append(_SLICE_NBYTES / (perf_counter() - begin))
                done = end
        finally:
            del work  # an error keeps this frame, but only who still writes may keep the work

    def threads(self) -> int:
        """Return the smallest number of threads that comes near the best, as far as is known."""
        best = {threads: max(rates, default=0.0) for threads, rates in self._rates.items()}
        chosen = 1
        for threads, rate in best.items():
            if rate > _GAIN * best[chosen]:
                chosen = threads
        return chosen

    def _to_learn(self) -> int:
        """Return how many threads to try next; 0: enough is known."""
        if len(self._rates) == 1:
            return 0
        fewest = min(self._rates, key=lambda threads: len(self._rates[threads]))
        return fewest if len(self._rates[fewest]) < _LOOKS else 0


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split(work: Work, begin: int, end: int, threads: int) -> None:
    """Let several threads, of which the caller is one, do a part each."""
    step = -(-(end - begin) // threads)
    parts = [(start, min(start + step, end)) for start in range(begin, end, step)]
    errors: list[BaseException] = []
    helpers: list[threading.Thread] = []
    try:
        while len(parts) > 1:
            helper = threading.Thread(
                target=_help, args=(work, parts[-1], errors), name="shmstore-copy", daemon=True
            )
            try:
                helper.start()
            except RuntimeError:  # the system gives no more threads
                break
            helpers.append(helper)
            parts.pop()
        for part in parts:
            work(*part)
    finally:
        try:
            for helper in helpers:
                helper.join()
        finally:
            del work
    if errors:
        raise errors[0]


def _help(work: Work, part: tuple[int, int], errors: list[BaseException]) -> None:
    try:
        work(*part)
    except BaseException as error:  # noqa: BLE001 - raised again by who waits
        errors.append(error)
    finally:
        del work
