"""How do coroutines wait for what other processes do, without a thread?

As threads do (see `_waiting`), but the event loop looks after the bell. All coroutines of one loop
that wait at one store share a bell, so that there are a descriptor and a FIFO for all of them. It
is there while somebody waits.

The loop is told that the bell was rung, and finds out for whom: their rows are gone. Whoever rings
takes the rows away a moment later, under the same hold of the lock. So where somebody holds it the
loop waits for him before it looks.

Concurrency: everything that belongs to one event loop is done in its thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, Final, TypeVar

import numpy as np

from shmstore import _waiting
from shmstore._memory import layout as L
from shmstore._session import Session
from shmstore._sharing import counts
from shmstore._sharing.waking import Bell
from shmstore.errors import ShmStoreError, StoreClosedError

Result = TypeVar("Result")

# What is copied or decoded beyond this is done in a thread: it takes longer than to start one.
SMALL_NBYTES: Final = 64 << 10

# So many objects are looked at to find out whether something is small.
_FEW: Final = 64

_CONTAINERS: Final = (list, tuple, set, frozenset, dict)
_TEXTS: Final = (str, bytes, bytearray)
_NUMBERS: Final = (int, float, complex, bool, type(None))


class _Hub:
    """The coroutines of one event loop that wait at one store.

    Parameters
    ----------
    session
        Of the store.
    loop
        The event loop.
    """

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._loop = loop
        self._sleepers: set[AsyncSleeper] = set()
        self._bell: Bell | None = None

    def join(self, sleeper: AsyncSleeper, make: Callable[[], Bell]) -> Bell:
        """Return the bell, which is made for the first one."""
        if self._bell is None or self._bell.closed:
            self._bell = make()
            self._loop.add_reader(self._bell.fd, self._is_rung)
            _hubs[self._session, self._loop] = self
        self._sleepers.add(sleeper)
        return self._bell

    def leave(self, sleeper: AsyncSleeper, drop: Callable[[Bell], None]) -> None:
        """Need the bell no longer; the last one drops it."""
        self._sleepers.discard(sleeper)
        bell = self._bell
        if not self._sleepers and bell is not None:
            self._bell = None
            _hubs.pop((self._session, self._loop), None)
            if not bell.closed and not self._loop.is_closed():
                self._loop.remove_reader(bell.fd)
            drop(bell)

    def _is_rung(self) -> None:
        session, bell = self._session, self._bell
        if bell is not None:
            bell.drain()
        try:
            if not session.closed and session.words[L.W_DIRTY]:
                session.lock.run(_nothing)
        except ShmStoreError:
            pass  # who waits finds out by himself
        for sleeper in list(self._sleepers):
            if sleeper.is_over() or sleeper.is_rung():
                sleeper.wake()


def _nothing() -> None:
    """Wait for whoever holds the lock."""


# Those of them that have a bell.
_hubs: Final[dict[tuple[Session, asyncio.AbstractEventLoop], _Hub]] = {}


class AsyncSleeper(_waiting.Sleeper):
    """A coroutine that waits.

    Parameters
    ----------
    live
        Of the store where it happens.
    """

    def __init__(self, live: _waiting.Live) -> None:
        super().__init__(live)
        self._hub: _Hub | None = None
        self._woken: asyncio.Future[None] | None = None

    def _take_bell(self) -> Bell:
        loop = asyncio.get_running_loop()
        self._hub = _hubs.get((self._session, loop)) or _Hub(self._session, loop)
        return self._hub.join(self, super()._take_bell)

    def _drop_bell(self, bell: Bell) -> None:  # noqa: ARG002 - it is the hub's
        assert self._hub is not None, "who has a bell has it from a hub"
        self._hub.leave(self, super()._drop_bell)

    def is_over(self) -> bool:
        """Return whether it is not to wait any more."""
        try:
            return self._live().closed
        except StoreClosedError:
            return True

    def wake(self) -> None:
        """End the rest."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def rest(self, deadline: float | None) -> None:
        """Wait until the bell was rung for a topic, or the time is over."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - monotonic()), self.wake)
        try:
            await self._woken
        finally:
            self._woken = None
            if timer is not None:
                timer.cancel()


async def sleep_until(
    live: _waiting.Live,
    look: Callable[[], Result | None],
    topics: Collection[int],
    timeout_s: float | None,
    settle: Callable[[], Result | None] | None = None,
    sleeper: AsyncSleeper | None = None,
) -> Result | None:
    """Wait until a look finds something: as `_waiting.sleep_until`, for coroutines.

    It does not spin: meanwhile the others of the loop could go on.
    """
    session = live()
    deadline = _waiting.deadline_of(timeout_s)
    settle = settle or look
    found = look()
    if found is not None:
        return found
    own = AsyncSleeper(live) if sleeper is None else sleeper
    try:
        while deadline is None or monotonic() < deadline:
            settled: Result | None = session.lock.run(own.settle, settle, topics)
            if settled is not None:
                return settled
            live()
            counts.add(session.counts, L.SEAT_WAITS)
            await own.rest(deadline)
            found = look()
            if found is not None:
                return found
    finally:
        if sleeper is None:
            own.close()
    last: Result | None = session.lock.run(settle)
    return last


def is_small(obj: Any) -> bool:
    """Return whether an object is known to be serialized and copied within microseconds."""
    todo, nbytes = [obj], 0
    for found in todo:
        kind = type(found)
        if kind in _CONTAINERS and len(found) <= _FEW:
            todo += [*found, *found.values()] if kind is dict else found
        elif kind in _TEXTS:
            nbytes += len(found)
        elif kind is np.ndarray and found.dtype.kind != "O":
            nbytes += found.nbytes
        elif kind not in _NUMBERS:
            return False
        if len(todo) > _FEW or nbytes > SMALL_NBYTES:
            return False
    return True
