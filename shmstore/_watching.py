"""How is a program told what others put and delete?

A watcher has a row in the table of waiters, and whoever changes something under its prefix writes
what it is into the watcher's bell (see `_announcing`). The bell holds what the watcher has not read
yet, some thousand changes; of what finds no room there the row keeps count.

Concurrency: one thread at a time reads from a watch. After a fork the child's watch begins anew.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from time import monotonic
from typing import Final, Self

from shmstore import _announcing, _waiting
from shmstore._memory.descriptors import Closing
from shmstore._ref import ObjectRef
from shmstore._tuples import NamedTuple
from shmstore.errors import ChangesLostError, StoreClosedError, WaitTimeoutError

_KINDS: Final = {_announcing.PUT: "put", _announcing.DELETED: "delete"}


class Change(NamedTuple):
    """What happened to a key.

    Attributes
    ----------
    kind
        "put": the key leads to a new object; "delete": it leads to none any more.
    key
        The name.
    ref
        The new object, or the one that it was.
    """

    kind: str
    key: str
    ref: ObjectRef


class Watch(Closing):
    """The changes under a prefix, from the moment on at which this was made.

    An iterator without end, and a context manager; made by `Store.watch`.

    Parameters
    ----------
    live
        Of the store, see `_waiting`.
    prefix
        How the keys begin.
    """

    def __init__(self, live: _waiting.Live, prefix: str) -> None:
        self._live = live
        self._session = session = live()
        self._prefix = len(prefix.encode())
        self._topic = _announcing.topic_of(prefix)
        self._sleeper = _waiting.Sleeper(live)
        self._closed = False
        self._reader = 0  # the process in which the bell is held
        self._unended = [self._sleeper]  # whoever takes it out ends it
        self._read = b""
        self._changes: deque[Change | ChangesLostError] = deque()
        self._lost = 0
        session.lock.run(self._enter)

    def _enter(self) -> None:
        """Requires: the store lock."""
        self._sleeper.settle(_nothing, [self._topic], self._prefix)
        self._lost = 0

    def get(self, timeout: float | None = None) -> Change:
        """Return the next change.

        Parameters
        ----------
        timeout
            Seconds to wait for it; None: for ever.

        Raises
        ------
        WaitTimeoutError
            Nothing has happened.
        ChangesLostError
            Changes were made that this watch was not told, since it was not read for long, or a
            process died in the middle of one. It goes on with those that came later.
        StoreClosedError
            The store, or this watch, was closed.
        """
        before = self.hold()
        try:
            return self._get(timeout)
        finally:
            self.let_go(before)

    def hold(self) -> int:
        """Keep the bell until `let_go`, also when this is closed meanwhile; return what that takes.

        Who closes rings the bell, so that whoever holds it sees that and lets go.
        """
        before, self._reader = self._reader, os.getpid()
        return before

    def let_go(self, before: int) -> None:
        """End what `hold` has begun; the last one ends a watch that was closed meanwhile."""
        self._reader = before
        if self._closed and before != os.getpid():
            self._end()

    def _get(self, timeout: float | None) -> Change:
        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        while not self._changes:
            if not _waiting.spin(self._collect, deadline) and not self._sleep(deadline):
                raise WaitTimeoutError(
                    f"nothing was put or deleted within {timeout:g} s in store "
                    f"{self._session.path.name!r}.",
                    timeout_s=timeout,
                )
        change = self._changes.popleft()
        if isinstance(change, ChangesLostError):
            raise change
        return change

    def _sleep(self, deadline: float | None) -> bool:
        """Sleep until there may be something; False: the time is over."""
        if deadline is not None and monotonic() >= deadline:
            return False
        self._check_open()
        return self._sleeper.sleep(deadline)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("this watch has been closed")
        self._live()

    def _collect(self) -> bool | None:
        """Take out what was written into the bell; None: nothing."""
        self._check_open()
        data = self._sleeper.bell.drain()
        if not data and self._sleeper.is_entered(self._topic):
            return None
        self._read += data
        self._unpack()
        self._session.lock.run(self._confirm)
        return True if self._changes else None

    def _unpack(self) -> None:
        """Make changes of what was read."""
        notices, self._read = _announcing.unpack(self._read)
        session = self._session
        for notice in notices:
            key = notice.key.decode()
            place = notice.slot, notice.generation, notice.nbytes
            ref = ObjectRef(session.uuid, session.path_text, *place, key, session.gid)
            self._changes.append(Change(_KINDS[notice.kind], key, ref))

    def _confirm(self) -> None:
        """Wait for the end of the changes that were told, and find out whether all were.

        Requires: the store lock. Who told them told them under the lock, before the change.
        """
        self._session.check_alive()
        left = self._sleeper.is_entered(self._topic)
        lost = self._sleeper.lost(self._topic) if left else self._lost + 1
        if lost != self._lost:
            self._changes.append(
                ChangesLostError(
                    f"this watch of store {self._session.path.name!r} has missed changes: it was "
                    "not read for too long, or a process died in the middle of a change. Look at "
                    "the keys (`list(store)`) and go on.",
                )
            )
        self._lost = lost
        if not left:
            self._enter()

    def fileno(self) -> int:
        """Return a descriptor that can be read from when there may be a change: for `select`."""
        self._check_open()
        return int(self._sleeper.bell.fd)

    def close(self) -> None:
        """Watch no longer; a thread that waits for a change is told."""
        self._closed = True
        if self._reader != os.getpid():
            self._end()
        else:
            self._sleeper.ring()  # the reader ends its sleep itself

    def _end(self) -> None:
        with contextlib.suppress(IndexError):
            self._unended.pop().close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        return self.get()


def _nothing() -> None:
    """Find nothing: a watcher sees what comes, not what is there."""
