"""How does memory that nobody needs go back to the system?

When it is asked for (`Store.trim`), and by itself after a while: pages of free extents stay warm
for the next puts, but not for ever. A process that deletes much has a thread that looks every few
seconds, gives back what was not needed since, and ends when nothing is left to give. It is gone
before a fork and at exit.

Concurrency: `trim` takes the store lock for each part of its work. The thread is the process's; it
takes a lock only if that is free soon.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from shmstore import _claiming
from shmstore._memory import layout as L
from shmstore._memory import news
from shmstore.errors import ShmStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmstore._session import Session

# So many bytes are given back in one lock hold, unless a single extent is larger.
_PART_NBYTES: Final = 256 << 20

# Less than this is not worth a thread.
MUCH_NBYTES: Final = 1 << 20

INTERVAL_S: Final = 2.0
_LONGEST_INTERVAL_S: Final = 60.0
_SAMPLES: Final = 5
_PATIENCE_S: Final = 0.1


def trim(session: Session, keep_nbytes: int | None = None) -> int:
    """Give the pages of free extents back to the system; return how many bytes these were.

    Parameters
    ----------
    keep_nbytes
        Bytes of free memory that may stay warm; None: nothing may, not even what clients keep of
        their deleted objects.
    """
    before = session.segment.resident_nbytes()
    while session.lock.run(_trim_part, session, keep_nbytes):
        pass
    given = max(0, before - session.segment.resident_nbytes())
    news.tell(news.DEBUG, "%s: %d bytes went back to the system", session.path, given)
    return given


def _trim_part(session: Session, keep_nbytes: int | None) -> bool:
    """Give some pages back; return whether there may be more. Requires: the store lock."""
    session.check_alive()
    if keep_nbytes is None:
        _claiming.seize(session)
    session.reclaim_all()
    words = session.words
    excess = idle_nbytes(session) - keep_nbytes if keep_nbytes else _PART_NBYTES
    ranges = session.allocator.cool(min(excess, _PART_NBYTES))
    if words[L.W_BACKED]:
        words[L.W_BACKED] = 0
        top = words[L.W_SEGMENT_TOP]
        session.segment.release_pages(top, session.identity.capacity - top)
    for offset, nbytes in ranges:
        session.segment.release_pages(offset, nbytes)
    return bool(ranges)


def idle_nbytes(session: Session) -> int:
    """Return the bytes of pages that exist beyond what is used, about."""
    return max(0, session.segment.resident_nbytes() - int(session.words[L.W_USED]) - L.PAGE)


# --- by itself ---------------------------------------------------------------------------------


class Housekeeping:
    """The thread of a process that gives memory back, while there is a reason for it.

    Parameters
    ----------
    sessions
        Returns the sessions of this process.
    registry
        Held while a session is used, so that none is closed meanwhile.
    """

    def __init__(
        self, sessions: Callable[[], Iterable[Session]], registry: threading.RLock
    ) -> None:
        self._sessions = sessions
        self._registry = registry
        self._starting = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run if it does not; never blocks, never fails."""
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                self._end = threading.Event()
                thread = threading.Thread(
                    target=self._run, args=(self._end,), name="shmstore-housekeeping", daemon=True
                )
                with contextlib.suppress(RuntimeError):  # the interpreter ends, or no thread
                    thread.start()
                    self._thread = thread
        finally:
            self._starting.release()

    def stop(self) -> None:
        """End the thread and wait for that: for a fork, and at exit."""
        thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread():
            return
        self._end.set()
        thread.join()
        # Python counts the threads of the system when it forks; this one may be about to end.
        for _ in range(100):
            if not os.path.exists(f"/proc/self/task/{thread.native_id}"):
                break
            time.sleep(1e-4)

    def begin_anew(self) -> None:
        """Forget the thread: a forked child has none, whatever others did at that moment."""
        self._starting = threading.Lock()
        self._thread = None

    def _run(self, end: threading.Event) -> None:
        histories: dict[bytes, deque[int]] = {}
        pause_s = INTERVAL_S
        while not end.wait(pause_s):
            if not self._registry.acquire(timeout=_PATIENCE_S):
                continue
            try:
                busy = self._tidy_all(histories)
            finally:
                self._registry.release()
            if not busy:
                break
            waiting = all(len(h) == _SAMPLES and len(set(h)) == 1 for h in histories.values())
            pause_s = min(2 * pause_s, _LONGEST_INTERVAL_S) if waiting else INTERVAL_S
        if not end.is_set():
            self._thread = None

    def _tidy_all(self, histories: dict[bytes, deque[int]]) -> bool:
        """Tidy every store of this process; return whether to come again."""
        busy = False
        for session in list(self._sessions()):
            history = histories.setdefault(session.uuid, deque(maxlen=_SAMPLES))
            with contextlib.suppress(ShmStoreError, OSError), session.lock.impatient():
                busy |= tidy(session, history)
        return busy


def tidy(session: Session, history: deque[int]) -> bool:
    """Give back what was not needed in the time of the history; return whether to come again."""
    words = session.words
    if session.readonly or words[L.W_BACKED] or words[L.W_DESTROYED]:
        return False
    if words[L.W_DOOMED_HEAD]:
        session.lock.run(session.reclaim, session.identity.max_objects)
    used = int(words[L.W_USED])
    history.append(used)
    idle = idle_nbytes(session)
    if idle < MUCH_NBYTES:
        return bool(words[L.W_DOOMED_HEAD])
    if len(history) == history.maxlen:
        trim(session, keep_nbytes=max(history) - used)
    return True
