"""How does a program hold a queue?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from shmstore import _queueing
from shmstore._arguments import check_maxsize, check_queue_name
from shmstore._memory.descriptors import Closing
from shmstore._queueing import Line
from shmstore.errors import StoreClosedError

if TYPE_CHECKING:
    from shmstore._handle import Handle
    from shmstore._session import Session


class QueueHandle(Closing):
    """A queue, and what can be asked of it at once.

    Parameters
    ----------
    store, name, maxsize
        As `Store.queue` gets them.
    """

    def __init__(self, store: Handle, name: str, maxsize: int = 0) -> None:
        self._store: Handle | None = store
        name, most = check_queue_name(name), check_maxsize(maxsize)
        self._line = _queueing.open_line(store._live(), name, most)

    @property
    def name(self) -> str:
        """The name of the queue."""
        return self._line.name

    @property
    def maxsize(self) -> int:
        """How many objects may wait; 0: any number."""
        return self._line.maxsize

    # --- looking -------------------------------------------------------------------------------

    def qsize(self) -> int:
        """Return how many objects wait; it may be another number at once."""
        return _queueing.size(*self._live())

    __len__ = qsize

    def empty(self) -> bool:
        """Return whether no object waits."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Return whether `put` would have to wait."""
        return 0 < self._line.maxsize <= self.qsize()

    def __bool__(self) -> bool:
        return True

    # --- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Use the queue no longer in this place. It and what waits in it stay for others.

        Who waits by this very handle gets StoreClosedError.
        """
        store, self._store = self._store, None
        with contextlib.suppress(StoreClosedError):
            if store is not None:
                store._live().bells.ring_own()  # who waits by this handle waits no more

    def destroy(self) -> None:
        """Take the queue away for everyone, with all that waits in it; those who wait are told."""
        session, line = self._live()
        session.lock.run(_queueing.destroy, session, line)

    def _live(self) -> tuple[Session, Line]:
        if self._store is None:
            raise StoreClosedError(f"the queue {self._line.name!r} was closed here")
        return self._store._live(), self._line

    def _live_session(self) -> Session:
        return self._live()[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QueueHandle):
            return NotImplemented
        same = self._store == other._store and self._store is not None
        return same and self._line.word == other._line.word

    def __hash__(self) -> int:
        return hash(self._line.word)

    def __reduce__(self) -> tuple[Any, ...]:
        self._live()
        return type(self), (self._store, self.name)

    def __repr__(self) -> str:
        most = f", maxsize={self.maxsize}" if self.maxsize else ""
        return f"<Queue {self.name!r}{most}>"
