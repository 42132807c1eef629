"""Processes work on a store and are killed or stopped at random moments: is anything ever lost?

    python tests/soak.py --seconds 3600 --seed 7

Eight workers (`soak_work`) put, get, overwrite, delete, build in place, put batches, fork, hold
views, read with read-only handles, leave and come back. Each death is followed by a look at the
keys that only the dead one changed, and by another worker. At the end nothing may be left over.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import proofs
import soak_objects as objects
from soak_work import COUNTED, MISSING, OWN_KEYS, Journal, Worker, name_of, own_key
from stores import command_for, forked

from shmstore import ObjectRef, Store

WORKERS: Final = 8

# Between two disturbances, and how long somebody is stopped.
PAUSE_S: Final = (0.001, 0.05)
STOPPED_S: Final = (0.0005, 0.03)

CHECKED_EVERY_S: Final = 1.0

_GONE: Any = object()


@dataclass(frozen=True)
class Kind:
    """A kind of store.

    Attributes
    ----------
    options
        Of the store.
    may_vanish
        Whether an object may be gone that nobody has deleted.
    """

    options: dict[str, Any] = field(default_factory=dict)
    may_vanish: bool = False


KINDS: Final[dict[str, Kind]] = {
    "much room": Kind({"capacity": "64MiB"}),
    "little room": Kind({"capacity": "3MiB"}),
    "locked reads": Kind({"capacity": "8MiB", "locked_reads": True}),
    "summed and zeroed": Kind({"capacity": "8MiB", "checksum": True, "zero_on_free": True}),
    "evict": Kind({"capacity": "3MiB", "on_full": "evict"}, may_vanish=True),
    "spill": Kind({"capacity": "3MiB", "on_full": "spill"}),
}


class Soak:
    """One store with its workers.

    Parameters
    ----------
    store
        A store that this process owns.
    kind
        Its kind.
    seed
        Of what is random here.
    """

    def __init__(self, store: Store, kind: Kind, seed: int) -> None:
        self.store = store
        self.kind = kind
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._stop = mmap.mmap(-1, mmap.PAGESIZE)
        self._journals = [Journal() for _ in range(WORKERS)]
        self._alive: dict[int, int] = {}
        self._errors: list[int] = []
        # Whoever works has the writing end: when all have gone the reading end is at its end.
        self._last_words, self._breath = os.pipe()

    def work(self, seconds: float) -> None:
        """Let the workers work for so long, and disturb them."""
        self._errors = [os.memfd_create(f"stderr of worker {n}") for n in range(WORKERS)]
        for number in range(WORKERS):
            self._start(number)
        end = time.monotonic() + seconds
        check_at = time.monotonic()
        try:
            while time.monotonic() < end:
                time.sleep(self.random.uniform(*PAUSE_S))
                self._notice_ends()
                self._disturb()
                if time.monotonic() > check_at:
                    assert_sound(self.store)
                    check_at = time.monotonic() + CHECKED_EVERY_S
        finally:
            self._end_all()
        for journal in self._journals:
            self.counts.update(dict(zip(COUNTED, journal.counts.tolist(), strict=True)))

    def _start(self, number: int) -> None:
        seed = self.random.getrandbits(32)
        parent = os.getpid()
        leaves_parent = self.random.random() < 0.5

        def be_a_worker() -> None:
            os.dup2(self._errors[number], 2)
            sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
            worker = Worker(
                self.store.path,
                number,
                WORKERS,
                self._journals[number],
                seed,
                may_vanish=self.kind.may_vanish,
            )
            if leaves_parent:
                self.store.close()
            worker.run(lambda: bool(self._stop[0]) or os.getppid() != parent)

        self._alive[forked(be_a_worker)] = number

    def _disturb(self) -> None:
        pids = sorted(self._alive)
        victims = self.random.sample(pids, self.random.choice((1, 1, 1, 2, 7)))
        action = self.random.random()
        if action < 0.5:
            self._stop_for_a_moment(victims)
        elif action < 0.6:
            self._stop_for_a_moment(victims, kill=self.random.choice(victims))
        else:
            self._bury(victims[0])

    def _stop_for_a_moment(self, pids: list[int], kill: int | None = None) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(*STOPPED_S))
        if kill is not None:
            os.kill(kill, signal.SIGKILL)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        self.counts["stops"] += len(pids)
        if kill is not None:
            self._bury(kill)

    def _bury(self, pid: int) -> None:
        """Kill a worker, look at its keys, and start another one in its place."""
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        number = self._alive.pop(pid)
        self._assert_ended_well(number, status, -signal.SIGKILL)
        self.counts["kills"] += 1
        recovered = self.store.recover()
        self.counts["half-made puts"] += recovered.puts
        self._journals[number].settle(self._look_at(number))
        self._start(number)

    def _look_at(self, number: int) -> dict[int, int]:
        """Return the versions of a worker's keys; each must be one that may be there."""
        found = {}
        for key in range(OWN_KEYS):
            name = name_of(own_key(number, key))
            allowed = self._journals[number].allowed(key)
            if self.kind.may_vanish:
                allowed.add(MISSING)
            got = self.store.get(name, _GONE)
            found[key] = MISSING
            if got is not _GONE:
                owner, found[key] = objects.read(got)
                assert owner == own_key(number, key), f"{name} leads to an object of {owner}"
            assert found[key] in allowed, f"{name}: version {found[key]}, not of {allowed}"
            self.counts["keys looked at"] += 1
        return found

    def _notice_ends(self) -> None:
        for pid in list(self._alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._assert_ended_well(self._alive.pop(pid), status, -signal.SIGKILL)

    def _assert_ended_well(self, number: int, status: int, expected: int) -> None:
        """Prove that a worker did not fail, even if it was killed before it could end."""
        code = os.waitstatus_to_exitcode(status)
        said = os.pread(self._errors[number], 1 << 20, 0).decode(errors="replace")
        assert (code, said) == (expected, ""), f"worker {number} ended with {code}:\n{said}"

    def _end_all(self) -> None:
        """Let all workers come to their end, and the children of those that were killed."""
        self._stop[0] = 1
        ended = [(number, os.waitpid(pid, 0)[1]) for pid, number in self._alive.items()]
        self._alive.clear()
        os.close(self._breath)
        assert os.read(self._last_words, 1) == b""
        os.close(self._last_words)
        try:
            for number, status in ended:
                self._assert_ended_well(number, status, 0)
        finally:
            for fd in self._errors:
                os.close(fd)

    # --- afterwards ----------------------------------------------------------------------------

    def prove_that_nothing_is_lost(self) -> None:
        """Look at every key and every byte; the store must be whole, and then as good as new."""
        store = self.store
        store.recover()
        assert_sound(store)
        for number in range(WORKERS):
            assert self._journals[number].intended.tolist() == [(1 << 64) - 1] * OWN_KEYS
            self._look_at(number)
        gc.collect()
        assert store.stats().used == sum(info.stored_nbytes for info in store.objects())
        assert [client.pid for client in store.clients()] == [os.getpid()]
        assert len(list((store.path / "seats").iterdir())) == 1
        forget_all(store)
        stranger_puts_and_gets(store.path)
        store.recover()
        stats = store.stats()
        assert (stats.used, stats.objects, stats.pinned) == (0, 0, 0)
        assert stats.largest_free == stats.capacity, "free memory is in pieces"
        assert_sound(store)


def assert_sound(store: Store) -> None:
    """Prove every invariant."""
    findings = store.check()
    assert findings == [], "\n".join(map(str, findings))


def forget_all(store: Store) -> None:
    """Delete what has a key, and what has none, whose references died with those who had them."""
    session = store._session
    store.delete_many(
        [
            ObjectRef(session.uuid, str(store.path), info.slot, info.generation, info.nbytes)
            for info in store.objects()
        ]
    )


STRANGER = """
import numpy as np, shmstore
with shmstore.Store.attach(path) as store:
    store["stranger"] = np.arange(50_000)
    assert store["stranger"].sum() == 49_999 * 25_000
    del store["stranger"]
    assert store.recover().clients == 0
"""


def stranger_puts_and_gets(path: Path) -> None:
    """Let a process work that has seen nothing of all this: no lock may be held, nothing dirty."""
    done = subprocess.run(
        command_for(STRANGER, {"path": path}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def assert_empty(folder: Path) -> None:
    """Prove that no file is left."""
    assert list(folder.iterdir()) == [], "files of objects are left"


def run(kind: Kind, seconds: float, seed: int) -> Counter[str]:
    """Soak one kind of store; return what was counted."""
    began = time.monotonic()
    with ExitStack() as stack:
        options = dict(kind.options)
        if options.get("on_full") == "spill":
            files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shmstore-soak-")))
            options["spill_dir"] = files
            stack.callback(assert_empty, files)
        store = stack.enter_context(Store.create(max_objects=1 << 15, max_clients=64, **options))
        path = store.path
        soak = Soak(store, kind, seed)
        soak.work(seconds)
        stats = store.stats()
        soak.counts["objects gave way"] = stats.evictions + stats.expirations + stats.spills
        soak.prove_that_nothing_is_lost()
    assert not path.exists()
    assert str(path) not in Path("/proc/self/maps").read_text(), "pages are still mapped"
    soak.counts["seconds"] = round(time.monotonic() - began)
    return soak.counts


# --- from the command line ------------------------------------------------------------------------


@contextmanager
def own_root() -> Iterator[None]:
    """Give all stores a root of their own, which must be empty at the end."""
    shared_memory = Path("/dev/shm")
    where = shared_memory if shared_memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="shmstore-soak-", dir=where) as name:
        os.environ["SHMSTORE_ROOT"] = name
        yield
        left = [str(path) for path in Path(name).rglob("*")]
        assert left == [], f"files of stores are left in the root: {left}"


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def tell(name: str, counts: Counter[str]) -> None:
    """Print what was counted, and note it."""
    print(name, ", ".join(f"{counts[what]:,} {what}" for what in sorted(counts)), flush=True)
    proofs.note(f"soak: {name}", **{what.replace(" ", "_"): counts[what] for what in counts})


def main(arguments: list[str] | None = None) -> None:
    """Soak each kind of store for its share of the time."""
    parser = argparse.ArgumentParser(description="Random deaths among processes at work.")
    parser.add_argument("--seconds", type=float, default=600, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="one kind of store")
    chosen = parser.parse_args(arguments)
    names = [chosen.only] if chosen.only else list(KINDS)
    descriptors = open_descriptors()
    with own_root():
        for name in names:
            tell(name, run(KINDS[name], chosen.seconds / len(names), chosen.seed))
    assert open_descriptors() == descriptors, "descriptors are left open"


if __name__ == "__main__":
    main(sys.argv[1:])
