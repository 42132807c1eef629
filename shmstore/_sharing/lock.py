"""Who may change the index? The one process, and in it the one thread, that holds the store lock.

The lock is that of a file that stays open (see `flock`), behind a thread lock. The kernel
drops it when its holder dies; the DIRTY word, set while a change is under way, tells the next
holder that the change was not finished, and by whom.

Concurrency: threads and processes. Not re-entrant: a finalizer or a signal handler that calls into
the store while its own thread holds the lock gets an error at once instead of a deadlock. A forked
child gets a lock of its own (`replace_descriptor`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat
from operator import methodcaller
from pathlib import Path
from threading import get_ident
from typing import Any, Final, TypeVar

from shmstore._memory import layout as L
from shmstore._memory import news, shortage
from shmstore._memory.descriptors import CLOSED, Descriptor
from shmstore._memory.shortage import NoPagesError
from shmstore._sharing import counts
from shmstore._sharing.flock import lock_descriptor, unlock_descriptor
from shmstore.errors import (
    CorruptStoreError,
    LockTimeoutError,
    ShmStoreError,
    StoreClosedError,
)

Result = TypeVar("Result")


# Who waits gives way so often, for the holder may be waiting for this very processor, and then
# sleeps: each time for a part of what it has waited so far, within limits.
_YIELDS: Final = 2
_PART: Final = 4
_SHORTEST_PAUSE_S: Final = 1e-6
_LONGEST_PAUSE_S: Final = 2e-3

_LONG_NS: Final = 1_000_000_000

# Written in C: with these a whole loop is one call, in which no signal handler of Python can run.
_ACQUIRE: Final = methodcaller("acquire")
_RELEASE: Final = methodcaller("release")

_give_way: Final[Callable[[], object]] = getattr(os, "sched_yield", lambda: time.sleep(0))


def is_locked(fd: int) -> bool:
    """Return whether somebody holds the lock of a file that is open here without it."""
    if not lock_descriptor(fd):
        return True
    unlock_descriptor(fd)
    return False


def hold(fd: int, timeout_s: float) -> bool:
    """Take the lock of an open file; False when it was not free in time.

    Nobody who waits spins: a lock that is held for long is asked for a few hundred times a second.
    One that is held as long as a put takes is had some 60 us later: shorter sleeps there are none.
    """
    if lock_descriptor(fd):
        return True
    begun = time.monotonic()
    for _ in range(_YIELDS):
        _give_way()
        if lock_descriptor(fd):
            return True
    while (waited_s := time.monotonic() - begun) < timeout_s:
        time.sleep(min(max(waited_s / _PART, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S))
        if lock_descriptor(fd):
            return True
    return False


def hold_noted(lock: Any, held: list[Any]) -> None:
    """Take a thread lock and append it to `held`: no handler of Python runs between the two."""
    held.extend(filter(_ACQUIRE, [lock]))


def let_noted(held: list[Any]) -> None:
    """Give all locks of a list back, the last one first, and empty it: one step, as above."""
    deque(map(_RELEASE, map(list.pop, repeat(held, len(held)))), maxlen=0)


def _is_clean(error: BaseException) -> bool:
    """Return whether an error of a step says by itself that nothing was changed before it.

    A signal handler may raise anything in the middle of a change, so this is a short list: what
    steps refuse with, and what `reserve` raises. Other calls of the system fail in the middle.
    """
    if isinstance(error, NoPagesError):
        return True
    refusal = isinstance(error, ShmStoreError)
    return refusal and not isinstance(error, (CorruptStoreError, LockTimeoutError))


def _is_contradiction(error: BaseException) -> bool:
    """Return whether an error was raised by our own code over numbers that cannot be right.

    Not by a signal handler, which may raise the same between two of our lines.
    """
    if isinstance(error, (IndexError, AssertionError)):
        return True
    if isinstance(error, ShmStoreError) or not isinstance(error, _NONSENSE):
        return False
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    name = "" if at is None else at.tb_frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in _OURS


_NONSENSE = (LookupError, ArithmeticError, ValueError, TypeError)
_OURS = frozenset({"shmstore", "numpy"})


def _closed() -> StoreClosedError:
    return StoreClosedError("the store was closed, or destroyed, by another thread meanwhile")


class StoreLock:
    """The lock of one store: `run` calls a function under it.

    Parameters
    ----------
    fd
        The lock file, opened by this process; owned by this object.
    words
        The words of the index.
    timeout_s
        Seconds to wait for the other processes before `LockTimeoutError` is raised.
    mend
        Called under the lock when a change was left half done, by a dead process or by an exception
        in this one; makes the index whole again.
    describe
        Returns a name for the holder with a given client row.

    Attributes
    ----------
    mending
        Whether tables are being made anew: until that is done no error leaves them whole.
    counts
        Where waits for other processes are counted.
    news
        What is told when the lock is free again.

    Notes
    -----
    A signal handler of Python may raise after any call, also between taking a lock and whatever
    would give it back. Therefore the thread lock is held by its own ``with``, which no handler can
    interrupt, and the file lock is given back twice when the first time was cut short.
    """

    def __init__(
        self,
        fd: Descriptor,
        words: memoryview,
        timeout_s: float,
        mend: Callable[[], object],
        describe: Callable[[int], str],
    ) -> None:
        self.fd = fd
        self.words = words
        self.timeout_s = timeout_s
        self.mark = 0
        self.mending = False
        self.counts = counts.nowhere()
        self._patience: dict[int, float] = {}
        self._mend = mend
        self._describe = describe
        self._threads = threading.Lock()
        self._thread = 0
        self.path = ""
        self.news = news.News("")

    def run(self, step: Callable[..., Result], *args: Any) -> Result:
        """Call a function under the lock and return its result.

        What `step` refuses with it raises before it has changed anything. Any other exception is
        treated like the death of a process.

        Raises
        ------
        LockTimeoutError
            Others hold the lock for longer than the timeout, or this very thread holds it.
        """
        thread = get_ident()
        if self._thread == thread:
            raise self._reentered()
        try:
            with self._threads:
                held = False
                try:
                    self._thread = thread
                    if self.fd < 0 or not lock_descriptor(self.fd):
                        self._wait()
                    held = True
                    words, mark = self.words, self.mark
                    if words[L.W_DIRTY]:
                        self._mend()
                    if mark:
                        words[L.W_DIRTY] = mark
                        result = step(*args)
                        words[L.W_DIRTY] = 0
                    else:
                        result = step(*args)
                except BaseException as error:
                    self._fail(error, held=held)
                    raise
                finally:
                    try:
                        self._unlock()
                    except BaseException:
                        self._unlock()
                        raise
                    finally:  # last: until here a handler of this thread must be refused
                        self._thread = 0
        finally:
            if self.news.untold:
                self.news.tell()
        return result

    def _unlock(self) -> None:
        try:
            if self.fd >= 0:
                unlock_descriptor(self.fd)
        except OSError:
            if self.fd >= 0:
                raise  # else another thread has closed it, and its lock went with it

    def _wait(self) -> None:
        if self.fd < 0:
            raise _closed()
        timeout_s = self._patience.get(get_ident(), self.timeout_s)
        begun_ns = time.monotonic_ns()
        held = hold(self.fd, timeout_s)
        waited_ns = time.monotonic_ns() - begun_ns
        counts.add(self.counts, L.SEAT_LOCK_WAITS)
        counts.add(self.counts, L.SEAT_LOCK_WAITS_NS, waited_ns)
        if waited_ns > _LONG_NS:
            self.news.add(news.WARNING, "waited for the store lock for %.1f s", waited_ns / 1e9)
        if not held:
            raise self._timed_out(timeout_s)

    def _fail(self, error: BaseException, *, held: bool) -> None:
        """Make the index whole after an exception; say what it means, if it says that badly."""
        if held:
            self._unwind(error)
        if isinstance(error, OSError) and not isinstance(error, ShmStoreError):
            if self.fd < 0:
                raise _closed() from error
            shortage.refuse(error, Path(shortage.path_of(self.fd)).parent)

    def _unwind(self, error: BaseException) -> None:
        """Make the index whole after an exception. Until that is done it stays marked as dirty."""
        before = self._counts() if self.mark else []
        if self.mark:
            if self.mending or not _is_clean(error):
                self._mend_after(before)
            self.words[L.W_DIRTY] = 0
        if _is_contradiction(error):
            raise self._contradiction(error, before) from error

    def _mend_after(self, before: list[int]) -> None:
        """Make the index whole, unless somebody damages it meanwhile."""
        with shortage.told(Path(shortage.path_of(self.fd)).parent):
            try:
                self._mend()
            except Exception as error:
                if _is_contradiction(error):
                    raise self._contradiction(error, before) from error
                raise

    def _counts(self) -> list[int]:
        """Return the words that a rebuild finds out anew, from NEXT_GENERATION on."""
        return [int(word) for word in self.words[L.W_NEXT_GENERATION : L.W_NEXT_EXPIRY_NS]]

    def _contradiction(self, error: BaseException, before: list[int]) -> CorruptStoreError:
        """Return the error that tells which word was put right first, if it is one of these."""
        after = self._counts() if before else []
        changed = [
            at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new
        ]
        offset = (L.W_NEXT_GENERATION + changed[0]) * L.WORD if changed else None
        where = "" if offset is None else f", first at offset {offset}"
        rebuilt = self.mark and not self.mending
        done = f"its tables were rebuilt from the slots{where}. " if rebuilt else ""
        return CorruptStoreError(
            f"{self.path}: the index contradicts itself ({error}); {done}Try again; call check() "
            "to see what is wrong, and recover().",
            path=self.path,
            offset=offset,
        )

    def _reentered(self) -> LockTimeoutError:
        return LockTimeoutError(
            "the store was called while this very thread holds its lock (by a finalizer, a signal "
            "handler, or a hook of a fork). Do the work later, outside the handler.",
            holder=f"thread {self._thread} of this process",
            timeout_s=0.0,
        )

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Let this thread give up at once when another process holds the lock."""
        self._patience[get_ident()] = 0.0
        try:
            yield
        finally:
            del self._patience[get_ident()]

    def _timed_out(self, timeout_s: float) -> LockTimeoutError:
        row = self.words[L.W_DIRTY] - 1
        holder = self._describe(row) if row >= 0 else "a process that is about to change something"
        return LockTimeoutError(
            f"the store lock was not free within {timeout_s:g} s; it is held by {holder}. Is "
            "that process stopped or very slow? Wait, continue it, or end it: its lock goes with "
            "it.",
            holder=holder,
            timeout_s=timeout_s,
        )

    # --- fork and end --------------------------------------------------------------------------

    def hold_threads(self, held: list[Any]) -> None:
        """Keep all threads of this process out, across a fork, until `let_noted` of `held`."""
        hold_noted(self._threads, held)
        self._thread = get_ident()  # hooks of others must be refused, too

    def let_threads(self) -> None:
        """Refuse this thread no longer, after `let_noted`."""
        own = get_ident()
        if self._thread == own:  # another thread may have the lock by now
            self._thread = 0

    def is_mine(self) -> bool:
        """Return whether this very thread holds the lock."""
        return self._thread == get_ident()

    def replace_descriptor(self, fd: Descriptor) -> None:
        """Go on with a lock file that this (forked) process has opened for itself."""
        if self.fd is not fd:  # or a signal handler had cut this short
            self.fd.close()
        self.fd = fd
        self._threads = threading.Lock()
        self._thread = 0

    def close(self) -> None:
        """Close the lock file, and let go of what the callbacks hold."""
        fd, self.fd = self.fd, CLOSED
        fd.close()
        self._mend, self._describe = _closed, str
