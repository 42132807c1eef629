"""Who waits by a handle, a queue or a watch is told when that is closed, whoever else has one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rooms
import stores
from stores import wait_until
from waits import Run

import shmstore
from shmstore import Store, StoreClosedError, aio

# Longer than a test takes: who waits must be told, for nothing else happens.
_LONG_S = 300

# So often the closing meets another moment of the wait.
_TIMES = 20

Wait = Callable[[Store], Any]


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: who waits enters its rows under it anyway."""
    return False


@pytest.fixture(autouse=True)
def whole(store: Store) -> Iterator[None]:
    """See that no row and no bell is left, and that all that is there can be used."""
    yield
    session = store._session
    assert session.waiters.rows() == []
    assert len(session.bells._idle) == len(session.bells._own)
    assert store.check() == []


def _fill(store: Store) -> None:
    store.queue("full", maxsize=1).put(1)


def _watch(store: Store) -> None:
    with store.watch() as watch:
        watch.get(timeout=_LONG_S)


WAITS: dict[str, Wait] = {
    "get": lambda store: store.get("never", timeout=_LONG_S),
    "get, for ever": lambda store: store.get("never", timeout=None),
    "wait": lambda store: store.wait(["never", "ever"], timeout=_LONG_S),
    "as_completed": lambda store: list(store.as_completed(["never"], timeout=_LONG_S)),
    "watch": _watch,
    "queue, get": lambda store: store.queue("empty").get(timeout=_LONG_S),
    "queue, iterate": lambda store: next(iter(store.queue("empty"))),
    "queue, put": lambda store: store.queue("full").put(2, timeout=_LONG_S),
    "queue, join": lambda store: store.queue("full").join(timeout=_LONG_S),
}


@contextlib.contextmanager
def _closed_when_waiting(store: Store, close: Callable[[], None]) -> Iterator[None]:
    """Close something in another thread as soon as somebody waits."""

    def run() -> None:
        wait_until(store._session.waiters.rows)
        close()

    closer = threading.Thread(target=run)
    closer.start()
    try:
        yield
    finally:
        closer.join()


@pytest.mark.parametrize("wait", WAITS.values(), ids=list(WAITS))
def test_handle_that_is_closed_ends_its_waits(store: Store, wait: Wait) -> None:
    """Although another handle keeps the store open."""
    _fill(store)
    for _ in range(_TIMES):
        other = Store.attach(store.path)
        with _closed_when_waiting(store, other.close), pytest.raises(StoreClosedError):
            wait(other)


def test_handle_that_is_closed_ends_no_waits_of_others(store: Store) -> None:
    """They are woken, find nothing, and sleep on."""
    heard: list[Any] = []
    waiter = threading.Thread(target=lambda: heard.append(store.get("key", timeout=_LONG_S)))
    waiter.start()
    wait_until(store._session.waiters.rows)
    for _ in range(_TIMES):
        Store.attach(store.path).close()
    store["key"] = 1
    waiter.join()
    assert heard == [1]


def test_handles_closed_under_many_threads_raise_nothing(store: Store) -> None:
    """Who is woken gives his bell back while others are still being woken."""
    told: list[type[BaseException]] = []
    for _ in range(_TIMES):
        before = rooms.descriptors()
        other = Store.create(root=store.path.parent, capacity="1MiB")
        session = other._session
        threads = [threading.Thread(target=_wait_to_be_told, args=[other, told]) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda session=session: len(session.waiters.rows()) == 8)
        other.close()
        for thread in threads:
            thread.join()
        assert rooms.descriptors() == before
    assert told == [StoreClosedError] * (8 * _TIMES)


def test_bell_that_is_about_to_be_rung_is_no_other_file(store: Store) -> None:
    """Although its store and its waiter have gone: who rings it holds it open."""
    before = rooms.descriptors()
    other = Store.create(root=store.path.parent, capacity="1MiB")
    session = other._session
    told: list[type[BaseException]] = []
    waiter = threading.Thread(target=_wait_to_be_told, args=[other, told])
    waiter.start()
    wait_until(session.waiters.rows)
    [bell] = session.bells._own.values()
    other.close()
    waiter.join()
    bell.ring()
    assert bell.drain()
    del bell
    assert told == [StoreClosedError]
    assert rooms.descriptors() == before


def _wait_to_be_told(store: Store, told: list[type[BaseException]]) -> None:
    try:
        store.get("never", timeout=_LONG_S)
    except BaseException as error:
        told.append(type(error))


QUEUE_WAITS: dict[str, Callable[[shmstore.Queue], Any]] = {
    "get": lambda jobs: jobs.get(timeout=_LONG_S),
    "get many": lambda jobs: jobs.get_many(2),
    "put": lambda jobs: jobs.put_many([1, 2]),
    "join": lambda jobs: jobs.join(),
}


@pytest.mark.parametrize("name", QUEUE_WAITS)
def test_queue_that_is_closed_ends_its_waits(store: Store, name: str) -> None:
    """Nothing is taken any more: what comes is for others."""
    other = store.queue("jobs", maxsize=1)
    if name == "join":
        other.put(0)
    for _ in range(_TIMES):
        jobs = store.queue("jobs")
        with (
            _closed_when_waiting(store, jobs.close),
            pytest.raises(StoreClosedError, match="closed here"),
        ):
            QUEUE_WAITS[name](jobs)
        if name == "put":
            assert other.get(block=False) == 1
    if name == "get":
        other.put("next")
        assert other.get(block=False) == "next"


@pytest.mark.parametrize("count", [1, 2])
def test_queue_that_is_closed_puts_nothing_any_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Although there is room by the time its waiter is woken."""
    other, jobs = store.queue("jobs", maxsize=1), store.queue("jobs")
    other.put("first")
    bells = store._session.bells

    def make_room_and_ring() -> None:
        monkeypatch.undo()
        assert other.get(block=False) == "first"
        bells.ring_own()

    monkeypatch.setattr(bells, "ring_own", make_room_and_ring)
    with _closed_when_waiting(store, jobs.close), pytest.raises(StoreClosedError):
        jobs.put_many(["late"] * count, timeout=_LONG_S)
    assert other.empty()


def test_queue_that_is_closed_puts_nothing_for_coroutines(store: Store) -> None:
    """As for threads."""
    other = store.queue("jobs", maxsize=1)
    other.put("first")

    async def run() -> None:
        jobs = aio.Store(store).queue("jobs")
        waiting = asyncio.ensure_future(jobs.put("late"))
        await asyncio.to_thread(wait_until, store._session.waiters.rows)
        jobs.close()
        assert other.get(block=False) == "first"
        with pytest.raises(StoreClosedError):
            await waiting

    asyncio.run(run())
    assert other.empty()


def test_watch_that_is_closed_ends_its_wait(store: Store) -> None:
    """Its bell is not given to others while it sleeps on it."""
    for _ in range(_TIMES):
        watch = store.watch("a")
        closer = threading.Timer(0.002, watch.close)
        closer.start()
        with pytest.raises(StoreClosedError, match="watch"):
            watch.get(timeout=_LONG_S)
        closer.join()


def test_watch_that_is_closed_when_its_reader_ends_takes_no_bell(store: Store) -> None:
    """Neither side leaves one in use: the reader has ended, and the closer rings nobody."""
    watch = store.watch()

    class Reader(int):
        """Who ends when he has been seen."""

        def __ne__(self, other: object) -> bool:
            watch.let_go(0)
            return int(self) != other

        __hash__ = int.__hash__

    watch.hold()
    watch._reader = Reader(watch._reader)
    watch.close()
    session = store._session
    assert len(session.bells._own) == len(session.bells._idle) == 1


@pytest.mark.parametrize("kind", ["watch", "queue", "store"])
def test_signal_handler_that_closes_ends_the_wait(store: Store, kind: str) -> None:
    """It runs in the thread that waits, in the midst of it."""
    other = Store.attach(store.path)
    waits: dict[str, tuple[Any, Callable[[], Any]]] = {
        "watch": (watch := other.watch(), lambda: watch.get(timeout=_LONG_S)),
        "queue": (jobs := other.queue("jobs"), lambda: jobs.get(timeout=_LONG_S)),
        "store": (other, lambda: other.get("never", timeout=_LONG_S)),
    }
    closed, wait = waits[kind]
    old = signal.signal(signal.SIGALRM, lambda *_: closed.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(StoreClosedError):
            wait()
    finally:
        signal.signal(signal.SIGALRM, old)
    watch.close()
    other.close()


async def _watch_async(store: aio.Store) -> None:
    async with store.watch() as watch:
        await watch.get()


ASYNC_WAITS: dict[str, Callable[[aio.Store], Any]] = {
    "get": lambda store: store.get("never", timeout=_LONG_S),
    "wait": lambda store: store.wait(["never", "ever"]),
    "watch": _watch_async,
    "queue, get": lambda store: store.queue("empty").get(),
    "queue, put": lambda store: store.queue("full").put(2),
}


@pytest.mark.parametrize("name", ASYNC_WAITS)
def test_handle_that_is_closed_ends_its_coroutines(store: Store, name: str) -> None:
    """As it ends threads."""
    _fill(store)

    async def run() -> None:
        other = aio.Store(Store.attach(store.path))
        waiting = asyncio.ensure_future(ASYNC_WAITS[name](other))
        await asyncio.to_thread(wait_until, store._session.waiters.rows)
        await other.close()
        with pytest.raises(StoreClosedError):
            await waiting

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["watch", "queue"])
def test_what_is_closed_ends_its_coroutines(store: Store, kind: str) -> None:
    """The event loop goes on, and the descriptor may be another's."""

    async def run() -> None:
        waited = getattr(aio.Store(store), kind)("name")
        waiting = asyncio.ensure_future(waited.get())
        for _ in range(5):
            await asyncio.sleep(0.001)
        waited.close()
        with pytest.raises(StoreClosedError):
            await waiting

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["watch", "queue"])
@pytest.mark.parametrize("by", ["a thread", "a signal handler"])
def test_what_others_close_ends_its_coroutines(store: Store, run: Run, kind: str, by: str) -> None:
    """At once, not when something else wakes the event loop; what comes later is heard by it."""
    old = signal.getsignal(signal.SIGALRM)

    async def close() -> None:
        waited = getattr(aio.Store(store), kind)("name")
        waiting = asyncio.ensure_future(waited.get())
        woken: list[str] = []
        loop = asyncio.get_running_loop()
        otherwise = loop.call_later(stores.WAIT_S / 3, woken.append, "by something else")
        await asyncio.to_thread(wait_until, store._session.waiters.rows)
        signal.signal(signal.SIGALRM, lambda *_: waited.close())
        closer = threading.Timer(0.05, waited.close)
        if by == "a thread":
            closer.start()
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(StoreClosedError):
            await waiting
        assert woken == []
        otherwise.cancel()
        closer.cancel()
        later = asyncio.ensure_future(aio.Store(store).get("key", timeout=_LONG_S))
        await asyncio.to_thread(wait_until, store._session.waiters.rows)
        store["key"] = 1
        assert await later == 1

    try:
        run(close())
    finally:
        signal.signal(signal.SIGALRM, old)


def test_coroutines_of_one_watch_are_all_told(store: Store, run: Run) -> None:
    """Each change is told to one of them, the end to all."""

    async def work() -> None:
        watch = aio.Store(store).watch()
        waiting = [asyncio.ensure_future(watch.get()) for _ in range(5)]
        await asyncio.sleep(0.01)
        waiting.pop().cancel()
        store.put_many({"a": 1, "b": 2})
        told: set[asyncio.Future[Any]] = set()
        while len(told) < 2:
            await asyncio.sleep(0.001)
            told = {task for task in waiting if task.done()}
        assert {task.result().key for task in told} == {"a", "b"}
        watch.close()
        _, left = await asyncio.wait(waiting, timeout=stores.WAIT_S)
        assert not left
        ended = set(waiting) - told
        assert [type(task.exception()) for task in ended] == [StoreClosedError] * 2

    run(work())
