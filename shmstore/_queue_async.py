"""What does a program with an event loop say to a queue?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, Full
from typing import Any, Self, TypeVar

from shmstore import _queue, _queueing, _waiting, _waiting_async
from shmstore._memory.descriptors import Closing

Result = TypeVar("Result")


class Queue(Closing):
    """A queue, for one event loop: what may wait is a coroutine.

    Cancelling one leaves nothing behind: an object that is got was taken out of the queue in the
    same step of the event loop, and is never lost between the two. So what is got is decoded by
    the event loop itself, however much that is; views of arrays take microseconds. But who cancels
    a put that was given to a thread, since it copies much or the store spills, does not know
    whether it is made.

    Parameters
    ----------
    queue
        The queue that does the work. It stays open when this one is not closed.

    Attributes
    ----------
    sync
        That queue: for everything that does not wait.
    """

    def __init__(self, queue: _queue.Queue) -> None:
        self.sync = queue
        self.put_nowait = queue.put_nowait
        self.get_nowait = queue.get_nowait
        self.task_done = queue.task_done
        self.qsize, self.empty, self.full = queue.qsize, queue.empty, queue.full
        self.destroy = queue.destroy

    @property
    def name(self) -> str:
        """The name of the queue."""
        return self.sync.name

    @property
    def maxsize(self) -> int:
        """How many objects may wait; 0: any number."""
        return self.sync.maxsize

    async def put(self, obj: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Put an object at the end of the queue; see `shmstore.Queue.put`."""
        await self._put(partial(self.sync.put, obj, block=False), [obj], timeout)

    async def put_many(
        self,
        objects: Iterable[Any],
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> int:
        """Put objects at the end of the queue, in their order; see `shmstore.Queue.put_many`."""
        objects = list(objects)
        deadline = _waiting.deadline_of(_queue.patience(block=True, timeout=timeout))
        count = 0
        while count < len(objects):
            rest = objects[count:]
            put = partial(self.sync.put_many, rest, block=False)
            try:
                count += await self._put(put, rest, _waiting.left_until(deadline))
            except Full:
                if not count:
                    raise
                break
        return count

    async def _put(
        self, put: Callable[[], Result], objects: list[Any], timeout_s: float | None
    ) -> Result:
        """Put when there is room: in a thread if much is to be copied, or may go to files."""
        deadline = _waiting.deadline_of(_queue.patience(block=True, timeout=timeout_s))
        while True:
            session, line = self.sync._live()
            small = _waiting_async.is_small(objects) and not session.spills
            if _queueing.has_room(session, line):
                try:
                    return put() if small else await asyncio.to_thread(put)
                except Full:  # somebody was faster
                    pass
            left_s = _waiting.left_until(deadline)
            if left_s == 0:
                raise Full
            look = partial(_queueing.has_room, session, line)
            await _waiting_async.sleep_until(self.sync._live_session, look, [line.room], left_s)

    async def get(self, timeout: float | None = None, *, mode: str = "shared") -> Any:  # noqa: ASYNC109
        """Take the first object out of the queue; see `shmstore.Queue.get`."""
        return (await self.get_many(1, timeout, mode=mode))[0]

    async def get_many(
        self,
        count: int,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        mode: str = "shared",
    ) -> list[Any]:
        """Take up to so many objects; see `shmstore.Queue.get_many`."""
        deadline = _waiting.deadline_of(_queue.patience(block=True, timeout=timeout))
        while True:
            session, line = self.sync._live()
            if session.spills:
                await asyncio.to_thread(self.sync._bring_back)
            try:
                return self.sync.get_many(count, block=False, mode=mode)
            except Empty:
                if _waiting.left_until(deadline) == 0:
                    raise
            look = partial(_queueing.has_object, session, line)
            left_s = _waiting.left_until(deadline)
            await _waiting_async.sleep_until(self.sync._live_session, look, [line.objects], left_s)

    async def join(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until all that was put is done; see `shmstore.Queue.join`."""
        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        while not self.sync.join(0):
            session, line = self.sync._live()
            left_s = _waiting.left_until(deadline)
            if left_s == 0:
                return False
            look = partial(_queueing.is_done, session, line)
            settle = partial(_queueing.settle_done, session, line)
            wait_s = _queue.JOIN_LOOK_S if left_s is None else min(_queue.JOIN_LOOK_S, left_s)
            await _waiting_async.sleep_until(
                self.sync._live_session, look, [line.done], wait_s, settle
            )
        return True

    def close(self) -> None:
        """Use the queue no longer in this place. It and what waits in it stay for others."""
        self.sync.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self.get()

    def __repr__(self) -> str:
        return f"<aio.Queue {self.name!r}>"
