"""What does a program say to a queue?"""

# ruff: noqa: FBT001, FBT002 - the arguments stand in the order of queue.Queue

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Final

from shmstore import _enqueueing, _queueing, _restoring, _tallies, _waiting
from shmstore._arguments import check_mode
from shmstore._copying import PlanFailed
from shmstore._enqueueing import Putting
from shmstore._queue_handle import QueueHandle
from shmstore._queueing import Line, Taken

if TYPE_CHECKING:
    from shmstore._packing import Package
    from shmstore._session import Session

# So often those who wait in `join` look whether they live who have taken objects.
JOIN_LOOK_S: Final = 0.25


class Queue(QueueHandle):
    """A first-in, first-out queue of objects between processes that need not be related.

    It has the methods of `queue.Queue` and `multiprocessing.Queue`. Objects are put as by
    `Store.put` and got as by `Store.get`: arrays are not copied on the way out, and their memory is
    free again when the last view of them has died. Get one by `Store.queue`.

    Parameters
    ----------
    store
        The handle of the store in which the queue lies.
    name
        Up to 64 bytes of UTF-8. Queues and objects may have the same names.
    maxsize
        As many objects may wait at most; 0: any number, or as many as it was made with.

    Notes
    -----
    Concurrency: threads and processes share a queue, and it may be pickled. Whoever is killed
    blocks nobody. An object that was put stays until somebody takes it, also when its producer or
    all consumers die; one that was taken is the consumer's, and dies with it.

    Examples
    --------
    >>> from shmstore import Store
    >>> with Store.create(capacity="1MiB") as store, store.queue("jobs", maxsize=3) as jobs:
    ...     jobs.put("first")
    ...     jobs.put_many([2, 3])
    ...     jobs.full(), jobs.get(), jobs.get_many(10)
    2
    (True, 'first', [2, 3])
    """

    # --- putting -------------------------------------------------------------------------------

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object at the end of the queue.

        Parameters
        ----------
        obj
            What `Store.put` takes.
        block
            Wait while `maxsize` objects are in the queue.
        timeout
            Seconds to wait; None: for ever.

        Raises
        ------
        queue.Full
            There was no room within the time.
        StoreFullError
            The store itself has no memory, or no slot, left. That is not waited for.
        StoreClosedError
            This queue was closed, or destroyed by somebody.
        """
        if not self._put(partial(_enqueueing.pack, obj=obj), patience(block, timeout)):
            raise Full

    def put_nowait(self, obj: Any) -> None:
        """Put an object if there is room now; else raise queue.Full."""
        self.put(obj, block=False)

    def put_many(
        self, objects: Iterable[Any], block: bool = True, timeout: float | None = None
    ) -> int:
        """Put objects at the end of the queue, in their order: small ones under one lock hold.

        What was put before an error, such as StoreFullError, stays in the queue.

        Returns
        -------
        int
            How many: all of them, or, when the time is over, those that there was room for.

        Raises
        ------
        queue.Full
            There was no room for any of them within the time.
        SerializationError
            One of them cannot be serialized; the message says which. None is put.
        """
        objects = list(objects)
        count = self._put(partial(_enqueueing.pack_many, objects=objects), patience(block, timeout))
        if objects and not count:
            raise Full
        return count

    def _put(self, pack: Callable[[Session], list[Package]], timeout_s: float | None) -> int:
        session, line = self._live()
        session.check_writeable()
        putting = Putting(session, line, pack(session))
        deadline = _waiting.deadline_of(timeout_s)
        look = partial(_queueing.has_room, session, line)
        own: BaseException | None = None
        try:
            while not putting.advance():
                left_s = _waiting.left_until(deadline)
                if left_s == 0:
                    break
                _waiting.sleep_until(self._live_session, look, [line.room], left_s)
                self._live()
        except PlanFailed as failed:
            own = failed.error
        except BaseException as error:
            putting.give_up(error)
            raise
        putting.give_up()
        if own is not None:
            raise own
        return putting.count

    # --- getting -------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None, *, mode: str = "shared") -> Any:
        """Take the first object out of the queue and return it, its buffers as views.

        Parameters
        ----------
        block
            Wait while the queue is empty.
        timeout
            Seconds to wait; None: for ever.
        mode
            What buffers become; see `Store.get`.

        Raises
        ------
        queue.Empty
            No object came within the time.
        DeserializationError
            The object could not be rebuilt here. It has left the queue.
        StoreClosedError
            This queue was closed, or destroyed by somebody.
        """
        return self._get(1, patience(block, timeout), mode)[0]

    def get_nowait(self) -> Any:
        """Take the first object if there is one now; else raise queue.Empty."""
        return self.get(block=False)

    def get_many(
        self,
        count: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        mode: str = "shared",
    ) -> list[Any]:
        """Take up to so many objects under one lock hold: at least one, those that are there.

        Raises
        ------
        queue.Empty
            No object came within the time.
        """
        return self._get(operator.index(count), patience(block, timeout), mode)

    def _get(self, count: int, timeout_s: float | None, mode: str) -> list[Any]:
        check_mode(mode)
        session, line = self._live()
        if count <= 0:
            return []
        deadline = _waiting.deadline_of(timeout_s)
        look = partial(_queueing.has_object, session, line)
        while True:
            taken = self._take(session, line, count, mode)
            if taken:
                return [_queueing.build(one, mode) for one in taken]
            left_s = _waiting.left_until(deadline)
            if left_s == 0:
                raise Empty
            _waiting.sleep_until(self._live_session, look, [line.objects], left_s)
            self._live()

    def _take(self, session: Session, line: Line, count: int, mode: str) -> list[Taken]:
        """Take objects that are there, in memory or in files."""
        if not _queueing.has_object(session, line):
            session.check_alive()
            return []
        if session.spills:
            self._bring_back()
        taken: list[Taken] = session.lock.run(_queueing.take, session, line, count, mode)
        return taken

    def _bring_back(self) -> None:
        """Read the first object back into memory, if it lies in a file and there is room."""
        session, line = self._live()
        found = session.lock.run(_queueing.first_in_file, session, line)
        if found is not None:
            _restoring.bring_back(session, *found)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the objects that come, for ever."""
        while True:
            yield self.get()

    # --- what was taken and is to be done ------------------------------------------------------

    def task_done(self, count: int = 1) -> None:
        """Say that an object that was taken is done. Who dies, or closes the store, has done all.

        Raises
        ------
        ValueError
            No more objects were taken than are done.
        """
        session, line = self._live()
        session.check_writeable()
        if not session.lock.run(_done, session, line, max(0, operator.index(count))):
            message = "task_done() called more often than objects were taken from the queue"
            raise ValueError(message)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all objects were taken and `task_done` was called for each of them.

        What a process had taken that died is not waited for: whether they live is looked at four
        times a second while nothing else happens.

        Parameters
        ----------
        timeout
            Seconds; None: for ever.

        Returns
        -------
        bool
            False: the time is over.
        """
        session, line = self._live()
        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        look = partial(_queueing.is_done, session, line)
        settle = partial(_queueing.settle_done, session, line)
        while True:
            left_s = _waiting.left_until(deadline)
            wait_s = JOIN_LOOK_S if left_s is None else min(JOIN_LOOK_S, left_s)
            live = self._live_session
            if _waiting.sleep_until(live, look, [line.done], wait_s, settle):
                session.lock.run(_queueing.check, session, line)
                return True
            if left_s is not None and left_s <= wait_s:
                return False


def patience(block: bool, timeout: float | None) -> float | None:
    """Return the seconds to wait, None: for ever; TypeError, ValueError: they are none."""
    if not block:
        return 0.0
    timeout_s = _waiting.check_timeout(timeout)
    if timeout is not None and float(timeout) < 0:
        message = f"timeout={timeout!r}: give seconds from 0 on, or None to wait for ever"
        raise ValueError(message)
    return timeout_s


def _done(session: Session, line: Line, count: int) -> bool:
    """Requires: the store lock."""
    _queueing.check(session, line)
    return _tallies.count_done(session, line.slot, count)
