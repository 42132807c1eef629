"""The same store for programs with an event loop: what may wait is a coroutine.

>>> import asyncio
>>> from shmstore import aio
>>> async def main():
...     async with aio.create(capacity="1MiB") as store:
...         answer = asyncio.create_task(store.get("answer", timeout=1))
...         await store.put(42, key="answer")
...         return await answer
>>> asyncio.run(main())
42

A coroutine that waits needs no thread: the event loop watches one descriptor for all that wait at
one store. Cancelling it leaves nothing behind. What takes microseconds is done at once; what copies
or decodes much, or may read a file, is done in a thread (`asyncio.to_thread`), so that the loop
goes on: 64 KiB are copied in less time than a thread takes to begin. Who cancels a put that was
given to a thread does not know whether it is made.

Concurrency: a `Store` of this module is used by one event loop. Others may use the same store, also
by `shmstore.Store`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Generator,
    Iterable,
    Mapping,
)
from functools import partial
from types import TracebackType
from typing import Any, Self

from shmstore import _expecting, _plans, _ref, _store, _waiting, _waiting_async, _watching
from shmstore._arguments import KEY_OR_REF, check_key, check_mode
from shmstore._awaiting import Waited
from shmstore._expecting import ALL, Expected
from shmstore._memory.descriptors import Closing
from shmstore._queue_async import Queue
from shmstore._ref import ObjectRef
from shmstore._waiting_async import SMALL_NBYTES, is_small
from shmstore._watching import Change
from shmstore.errors import ObjectNotFoundError, WaitTimeoutError

__all__ = ["Queue", "Store", "Watch", "attach", "create", "open"]

_RAISE: Any = object()


class _Opening:
    """A store that is about to be opened: to be awaited, or used in ``async with``.

    Parameters
    ----------
    make
        Opens it, which may take long.
    """

    def __init__(self, make: Callable[[], _store.Store]) -> None:
        self._make = make
        self._made: list[_store.Store] = []
        self._is_cancelled = False
        self._store: Store | None = None

    async def _open(self) -> Store:
        try:
            await asyncio.to_thread(self._open_in_thread)
            return Store(self._made.pop())
        except asyncio.CancelledError:
            self._is_cancelled = True
            self._close_if_cancelled()
            raise

    def _open_in_thread(self) -> None:
        self._made.append(self._make())
        self._close_if_cancelled()

    def _close_if_cancelled(self) -> None:
        """Close what nobody waits for any more: here, or in the thread that comes later."""
        if self._is_cancelled:
            with contextlib.suppress(IndexError):
                self._made.pop().close()

    def __await__(self) -> Generator[Any, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._store is not None:
            await self._store.close()


def create(name: str | None = None, **options: Any) -> _Opening:
    """Make a store and own it; see `shmstore.Store.create`."""
    return _Opening(partial(_store.Store.create, name, **options))


def attach(name_or_path: str | os.PathLike[str], **options: Any) -> _Opening:
    """Join a store that exists; see `shmstore.Store.attach`."""
    return _Opening(partial(_store.Store.attach, name_or_path, **options))


def open(name: str, **options: Any) -> _Opening:  # noqa: A001 - as Store.open
    """Join a store, or make it when there is none; see `shmstore.Store.open`."""
    return _Opening(partial(_store.Store.open, name, **options))


class Store:
    """A handle on a store, for one event loop.

    Parameters
    ----------
    store
        The handle that does the work. It stays open when this one is not closed.

    Attributes
    ----------
    sync
        That handle: for everything that does not wait and is not large.
    """

    def __init__(self, store: _store.Store) -> None:
        self.sync = store

    # --- putting and deleting ------------------------------------------------------------------

    async def put(self, obj: Any, *, key: str | None = None, **options: Any) -> ObjectRef:
        """Store an object; see `shmstore.Store.put`."""
        put = partial(self.sync.put, obj, key=key, **options)
        return put() if is_small(obj) else await asyncio.to_thread(put)

    async def put_many(
        self, objects: Mapping[str, Any] | Iterable[Any], **options: Any
    ) -> dict[str, ObjectRef] | list[ObjectRef]:
        """Store a batch under one lock hold; see `shmstore.Store.put_many`."""
        batch = objects if isinstance(objects, Mapping) else list(objects)
        put: Callable[[], Any] = partial(self.sync.put_many, batch, **options)
        small = is_small(dict(batch) if isinstance(batch, Mapping) else batch)
        return put() if small else await asyncio.to_thread(put)

    async def delete(self, target: ObjectRef | str) -> None:
        """Delete an object; see `shmstore.Store.delete`."""
        self.sync.delete(target)

    async def discard(self, target: ObjectRef | str) -> bool:
        """Delete an object if it is there; return whether it was."""
        return self.sync.discard(target)

    async def delete_many(self, targets: Iterable[ObjectRef | str]) -> int:
        """Delete those of the objects that are there; return how many."""
        return self.sync.delete_many(targets)

    # --- getting -------------------------------------------------------------------------------

    async def get(
        self,
        target: ObjectRef | str,
        default: Any = _RAISE,
        *,
        timeout: float | None = 0,  # noqa: ASYNC109 - as Store.get
        mode: str = "shared",
        deserializers: Container[str] | None = None,
    ) -> Any:
        """Return an object without copying its data; see `shmstore.Store.get`."""
        check_mode(mode)
        if not isinstance(target, ObjectRef):
            target = check_key(target, KEY_OR_REF)
        timeout_s = _waiting.check_timeout(timeout)
        read = self._read_in_thread if self.sync._live().spills else self._read
        try:
            if timeout_s == 0 or isinstance(target, ObjectRef):
                return await read(target, mode, deserializers)
            return await self._await(target, timeout_s, partial(read, target, mode, deserializers))
        except (ObjectNotFoundError, WaitTimeoutError):
            if default is _RAISE:
                raise
            return default

    async def _await(
        self, key: str, timeout_s: float | None, read: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Wait for the object of a key, and read it."""
        session = self.sync._live()
        deadline = _waiting.deadline_of(timeout_s)
        look, settle, topics = _expecting.finders(session, key)
        while True:
            left_s = _waiting.left_until(deadline)
            found = await _waiting_async.sleep_until(self.sync._live, look, topics, left_s, settle)
            if found is None:
                raise _expecting.overdue(session, key, timeout_s)
            with contextlib.suppress(ObjectNotFoundError):  # it is gone again
                return await read()

    async def _read(
        self, target: ObjectRef | str, mode: str, deserializers: Container[str] | None
    ) -> Any:
        """Get what is there, in a thread if that takes long."""
        secured = self.sync._secure(target, required=True, mode=mode, timeout=0)
        assert secured is not None, "it is required"
        plan, held = secured
        plan.count()
        build = partial(plan.build, held, mode, deserializers)
        del secured, held
        return await asyncio.to_thread(build) if _is_slow(plan, mode) else build()

    async def _read_in_thread(
        self, target: ObjectRef | str, mode: str, deserializers: Container[str] | None
    ) -> Any:
        """Get what may lie in a file."""
        get = partial(self.sync.get, target, mode=mode, deserializers=deserializers)
        return await asyncio.to_thread(get)

    async def get_many(
        self,
        targets: Iterable[ObjectRef | str],
        default: Any = _RAISE,
        **options: Any,
    ) -> list[Any]:
        """Return several objects, in the order of `targets`."""
        return [await self.get(target, default, **options) for target in targets]

    # --- waiting -------------------------------------------------------------------------------

    async def wait(
        self,
        keys: Iterable[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as Store.wait
        return_when: str = ALL,
    ) -> Waited:
        """Wait until there are objects under these keys; see `shmstore.Store.wait`."""
        sleeper = _waiting_async.AsyncSleeper(self.sync._live)
        expected = Expected(self.sync._live, keys, sleeper)
        expected.enough = expected.enough_for(return_when)
        with sleeper:
            await self._expect(expected, sleeper, _waiting.check_timeout(timeout))
        return Waited(set(expected.done), expected.missing())

    async def _expect(
        self, expected: Expected, sleeper: _waiting_async.AsyncSleeper, timeout_s: float | None
    ) -> bool:
        """Wait until enough of the keys are there; False: the time is over."""
        found = await _waiting_async.sleep_until(
            self.sync._live,
            expected.glance,
            expected.topics,
            timeout_s,
            expected.settle,
            sleeper,
        )
        return bool(found)

    async def as_completed(
        self,
        keys: Iterable[str],
        timeout: float | None = None,  # noqa: ASYNC109 - as Store.as_completed
    ) -> AsyncIterator[str]:
        """Iterate over keys as their objects come; see `shmstore.Store.as_completed`."""
        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        sleeper = _waiting_async.AsyncSleeper(self.sync._live)
        expected = Expected(self.sync._live, keys, sleeper)
        given = 0
        with sleeper:
            while expected.missing() or given < len(expected.done):
                if given == len(expected.done):
                    expected.enough = given + 1
                    left_s = _waiting.left_until(deadline)
                    if not await self._expect(expected, sleeper, left_s):
                        raise expected.overdue()
                yield expected.done[given]
                given += 1

    async def wait_for_end(
        self,
        ref: ObjectRef,
        timeout: float | None = None,  # noqa: ASYNC109 - as ObjectRef.wait
    ) -> bool:
        """Wait until an object is gone; see `ObjectRef.wait`."""
        session = self.sync._live()
        _ref.check_kind(ref)
        _ref.check_owner(session, ref)
        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        look, topics = _ref.end_of(session, ref)
        while look() is None:
            timeout_s = _ref.patience(session, ref, deadline)
            found = await _waiting_async.sleep_until(self.sync._live, look, topics, timeout_s)
            if found is None and _waiting.left_until(deadline) == 0:
                return False
        return True

    def watch(self, prefix: str = "") -> Watch:
        """Return an asynchronous iterator over changes; see `shmstore.Store.watch`."""
        return Watch(self.sync.watch(prefix))

    def queue(self, name: str, maxsize: int = 0) -> Queue:
        """Return the queue of a name, its calls as coroutines; see `shmstore.Store.queue`."""
        return Queue(self.sync.queue(name, maxsize))

    # --- the handle ----------------------------------------------------------------------------

    def __contains__(self, target: object) -> bool:
        return target in self.sync

    def __len__(self) -> int:
        return len(self.sync)

    async def close(self) -> None:
        """Give the handle back; see `shmstore.Store.close`."""
        await asyncio.to_thread(self.sync.close)

    async def destroy(self) -> None:
        """Remove the store for everyone; see `shmstore.Store.destroy`."""
        await asyncio.to_thread(self.sync.destroy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Watch(Closing):
    """The changes under a prefix: an asynchronous iterator, and a context manager.

    Parameters
    ----------
    watch
        The watch that is read from.

    Notes
    -----
    Each change is told to one of the coroutines that wait. Any thread, and a signal handler, may
    close the watch.
    """

    def __init__(self, watch: _watching.Watch) -> None:
        self._watch = watch
        self._resting: set[asyncio.Event] = set()
        self._end_rest = contextlib.ExitStack()

    async def get(self, timeout: float | None = None) -> Change:  # noqa: ASYNC109 - as Watch.get
        """Return the next change; see `shmstore.Watch.get`."""
        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        try:
            return await self._get(deadline)
        finally:
            self._wake()  # what was read beside this change is for others

    async def _get(self, deadline: float | None) -> Change:
        while True:
            try:
                return self._watch.get(timeout=0)
            except WaitTimeoutError:
                if _waiting.left_until(deadline) == 0:
                    raise
            await self._rest(_waiting.left_until(deadline))

    async def _rest(self, timeout_s: float | None) -> None:
        """Wait until there may be a change, or the watch is closed, or the time is over."""
        woken = asyncio.Event()
        if not self._resting:
            self._begin_rest()
        self._resting.add(woken)
        try:
            self._watch.fileno()  # raises if it was closed: the ring for that may have been read
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), timeout_s)
        finally:
            self._resting.discard(woken)
            if not self._resting:
                self._end_rest.close()

    def _begin_rest(self) -> None:
        """Let the event loop look after the bell, which stays this watch's until it does not."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as begun:
            begun.callback(self._watch.let_go, self._watch.hold())
            fd = self._watch.fileno()
            loop.add_reader(fd, self._wake)
            begun.callback(_remove_reader, loop, fd)
            self._end_rest = begun.pop_all()

    def _wake(self) -> None:
        """Let all who rest look."""
        for woken in self._resting:
            woken.set()

    def close(self) -> None:
        """Watch no longer; coroutines that wait for a change are told."""
        self._watch.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        return await self.get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    if not loop.is_closed():
        loop.remove_reader(fd)


def _is_slow(plan: _plans.Plan, mode: str) -> bool:
    """Return whether building an object may take longer than starting a thread."""
    if mode in ("private", "copy"):
        return plan.record.data_nbytes > SMALL_NBYTES
    if isinstance(plan, _plans.ArrayPlan):
        return False
    if isinstance(plan, _plans.PicklePlan):
        return plan.end - plan.begin > SMALL_NBYTES
    return plan.record.data_nbytes > SMALL_NBYTES
