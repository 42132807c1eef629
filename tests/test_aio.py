"""The store in an event loop: nothing blocks it, nobody needs a thread, nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
from stores import MakeStore, StartPython, forked, wait_until
from waits import Run, activity_at_rest, activity_of, threads_of_waiters, waiters

import shmstore
from shmstore import ChangesLostError, ObjectNotFoundError, Store, WaitTimeoutError, aio


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: waiting has nothing to do with it."""
    return False


def later(seconds: float, do: Any, *args: Any) -> None:
    """Let another process do something, a little later, and nothing else."""

    def child() -> None:
        time.sleep(seconds)
        do(*args)

    CHILDREN.append(forked(child))


CHILDREN: list[int] = []


@pytest.fixture(autouse=True)
def children() -> Iterator[None]:
    """Wait for all processes that a test has forked."""
    yield
    while CHILDREN:
        assert stores.exit_code(CHILDREN.pop()) == 0


# --- getting and putting -------------------------------------------------------------------------


def test_get_waits_for_what_another_process_puts(store: Store, run: Run) -> None:
    """Other coroutines go on meanwhile, and no thread is needed."""

    async def main() -> None:
        view = aio.Store(store)
        threads, ticks = threads_of_waiters(), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        later(0.1, lambda: store.put(5, key="key"))
        assert await view.get("key", timeout=stores.WAIT_S) == 5
        assert ticks >= 2
        assert threads_of_waiters() == threads
        ticker.cancel()

    run(main())
    assert waiters(store) == 0


def test_get_without_success_raises_or_returns_the_default(store: Store, run: Run) -> None:
    """As the get of a store: at once, or after the timeout."""

    async def main() -> None:
        view = aio.Store(store)
        with pytest.raises(ObjectNotFoundError):
            await view.get("missing")
        with pytest.raises(WaitTimeoutError, match="'missing'"):
            await view.get("missing", timeout=0.01)
        assert await view.get("missing", 7) == 7
        assert await view.get("missing", 7, timeout=0.01) == 7
        ref = await view.put([1])
        assert await view.get(ref, timeout=None) == [1]
        await view.delete(ref)
        assert not await view.discard(ref)
        with pytest.raises(ObjectNotFoundError):
            await view.get(ref, timeout=None)

    run(main())


def test_coroutines_share_a_bell_and_each_gets_its_own(store: Store, run: Run) -> None:
    """A hundred that wait need one FIFO, and one put wakes only those that wait for it."""
    count = 100

    async def main() -> None:
        view = aio.Store(store)
        waits = [
            asyncio.create_task(view.get(f"k{number}", timeout=None)) for number in range(count)
        ]
        await asyncio.sleep(0.02)
        assert waiters(store) == count
        assert len(list((store.path / "seats").glob("*-*"))) == 1
        later(0, lambda: store.put("first", key="k7"))
        assert await waits[7] == "first"
        await asyncio.sleep(0)
        assert [number for number, task in enumerate(waits) if task.done()] == [7]
        later(0, lambda: [store.put(number, key=f"k{number}") for number in range(count)])
        assert await asyncio.gather(*waits[:7], *waits[8:]) == [n for n in range(count) if n != 7]

    run(main())
    assert waiters(store) == 0


def test_large_objects_are_put_and_built_in_threads(store: Store, run: Run, monkeypatch) -> None:
    """What is copied or decoded for long does not stop the loop; the rest is quick."""
    used: list[str] = []
    original = asyncio.to_thread

    async def to_thread(call: Any) -> Any:
        used.append("thread")
        return await original(call)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    large, small = np.zeros(1 << 17), {"a": [1, 2.5, "text", None, np.arange(9)]}

    async def main() -> None:
        view = aio.Store(store)
        assert (await view.get(await view.put(small)))["a"][:3] == [1, 2.5, "text"]
        await view.put_many({"x": 1, "y": b"2"})
        assert used == []
        ref = await view.put(large)
        await view.put_many([list(range(1000))])
        await view.put(object())
        assert used == ["thread"] * 3
        assert (await view.get(ref)).shape == large.shape
        assert used == ["thread"] * 3
        assert (await view.get(ref, mode="copy")).shape == large.shape
        text = await view.put("text" * 50_000)
        assert len(await view.get(text)) == 200_000
        assert used == ["thread"] * 6

    run(main())


def test_store_with_files_is_read_in_threads(make_store: MakeStore, tmp_path: Path) -> None:
    """Reading a file may take long; waiting needs no thread all the same."""
    store = make_store(capacity="64KiB", on_full="spill", spill_dir=tmp_path)

    async def main() -> None:
        view = aio.Store(store)
        later(0.05, lambda: store.put(np.arange(100_000), key="key"))
        assert (await view.get("key", timeout=stores.WAIT_S))[-1] == 99_999
        assert await view.get("missing", 7) == 7
        with pytest.raises(ObjectNotFoundError):
            await view.get("missing")
        with pytest.raises(WaitTimeoutError):
            await view.get("missing", timeout=0.01)

    asyncio.run(main())
    store.clear()


# --- waiting -------------------------------------------------------------------------------------


def test_wait_and_as_completed_are_as_those_of_a_store(store: Store, run: Run) -> None:
    """What is there, what comes, in which order, and what did not come in time."""

    async def main() -> None:
        view = aio.Store(store)
        store["a"] = 1
        assert await view.wait(["a", "b"], timeout=0.01) == ({"a"}, {"b"})
        assert await view.wait(["a", "b"], return_when="FIRST") == ({"a"}, {"b"})
        later(0.05, lambda: [store.put(1, key=key) for key in "cb"])
        found = [key async for key in view.as_completed("abc", timeout=stores.WAIT_S)]
        assert found[0] == "a"
        assert set(found) == {"a", "b", "c"}
        assert await view.wait("abc") == ({"a", "b", "c"}, set())
        with pytest.raises(WaitTimeoutError, match="of 1 keys"):
            assert [key async for key in view.as_completed("ad", timeout=0.01)] == ["a"]
        assert "a" in view
        assert len(view) == 3

    run(main())
    assert waiters(store) == 0


def test_wait_for_more_keys_than_one_may_enter_is_woken_by_any(store: Store, run: Run) -> None:
    """Beyond a part of the table the loop listens to all keys."""
    session: Any = store._session
    keys = [f"k{number}" for number in range(session.waiters.most_topics() + 10)]

    async def main() -> None:
        later(0.05, lambda: [store.put(1, key=key) for key in keys])
        done, _ = await aio.Store(store).wait(keys, timeout=stores.WAIT_S)
        assert done == set(keys)

    run(main())
    assert waiters(store) == 0


def test_end_of_an_object_is_waited_for(store: Store, run: Run) -> None:
    """It is deleted by another process, its time is over, or it stays."""

    async def main() -> None:
        view = aio.Store(store)
        ref = await view.put([1])
        assert not await view.wait_for_end(ref, timeout=0.01)
        later(0.05, ref.delete)
        assert await view.wait_for_end(ref)
        assert await view.wait_for_end(await view.put([1], ttl=0.05))

    run(main())


def test_end_of_what_is_no_reference_is_refused(store: Store, run: Run) -> None:
    """A key may get other objects: its end is none."""

    async def main() -> None:
        with pytest.raises(TypeError, match="expected an ObjectRef, not str: 'key'"):
            await aio.Store(store).wait_for_end("key")  # type: ignore[arg-type]

    run(main())


def test_watch_is_an_asynchronous_iterator(store: Store, run: Run) -> None:
    """It sleeps until something happens, and tells what it missed."""

    async def main() -> None:
        view = aio.Store(store)

        def change() -> None:
            store["job/1"] = store["other"] = 1
            del store["job/1"]

        async with view.watch("job/") as changes:
            with pytest.raises(WaitTimeoutError):
                await changes.get(timeout=0.01)
            later(0.05, change)
            found = []
            async for kind, key, _ in changes:
                found.append((kind, key))
                if kind == "delete":
                    break
            assert found == [("put", "job/1"), ("delete", "job/1")]
            for number in range(3000):
                store["job/2"] = number
            with pytest.raises(ChangesLostError):
                async for _ in changes:
                    pass
        with view.watch() as everything:
            store["x"] = 1
            assert (await everything.get())[:2] == ("put", "x")

    run(main())
    assert waiters(store) == 0


# --- ends ----------------------------------------------------------------------------------------


def test_wait_that_is_cancelled_leaves_nothing_behind(store: Store, run: Run) -> None:
    """No row, no bell in use, no reader of the loop; those who still wait are not disturbed."""

    async def main() -> None:
        view = aio.Store(store)
        changes = view.watch()
        waits: list[Any] = [
            view.get("key", timeout=None),
            view.wait(["key", "other"]),
            anext(view.as_completed(["key"])),
            view.wait_for_end(await view.put(1)),
            changes.get(),
        ]
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.sleep(0.02)
        assert waiters(store) == 6
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks[1:])
        changes.close()
        assert waiters(store) == 1
        later(0, lambda: store.put(3, key="key"))
        assert await tasks[0] == 3
        assert waiters(store) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(view.get("never", timeout=None), 0.01)

    run(main())
    assert waiters(store) == 0
    session: Any = store._session
    assert sum(not bell.closed for bell in session.bells._own.values()) == len(session.bells._idle)


def test_stores_are_opened_and_closed_in_the_loop(root: Path, run: Run) -> None:
    """By `async with`, or by awaiting; the others join by name."""

    async def main() -> None:
        async with aio.create("made", capacity="1MiB") as made:
            await made.put(1, key="a")
            other = await aio.attach("made", readonly=True)
            assert await other.get("a") == 1
            await other.close()
            async with await aio.open("made") as joined:
                assert await joined.get_many(["a", "b"], None) == [1, None]
                assert await joined.delete_many(["a", "b"]) == 1
        with pytest.raises(shmstore.StoreNotFoundError):
            await aio.attach("made")
        own = await aio.create(capacity="1MiB")
        await own.destroy()

    run(main())
    assert list(root.iterdir()) == []


def test_opening_that_is_cancelled_closes_what_was_opened(root: Path, run: Run) -> None:
    """Whether the thread has come to its end before or not."""

    async def main() -> None:
        for pause in (0, 0.001, 0.003, 0.01):
            opening = asyncio.ensure_future(_await(aio.create(capacity="1MiB")))
            await asyncio.sleep(pause)
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled():
                await opening.result().close()

    run(main())
    assert list(root.iterdir()) == []


async def _await(opening: Any) -> aio.Store:
    return await opening


def test_store_that_is_destroyed_ends_all_waits(make_store: MakeStore, run: Run) -> None:
    """By another process: those who wait for keys learn it, and so does a watch."""
    store = make_store()

    async def main() -> None:
        view = aio.Store(store)
        changes = view.watch()
        waits = [view.get("key", timeout=None), view.wait(["a"]), changes.get()]
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.sleep(0.02)
        later(0, store.destroy)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in done] == [shmstore.StoreClosedError] * 3
        changes.close()

    run(main())
    store.close()


def test_handle_that_is_closed_ends_its_waits(store: Store, run: Run) -> None:
    """The loop lets go of the descriptor before it is closed."""

    async def main() -> None:
        view = await aio.attach(store.path, readonly=True)
        changes = view.watch()
        tasks = [asyncio.ensure_future(w) for w in (view.get("key", timeout=None), changes.get())]
        await asyncio.sleep(0.02)
        await view.close()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in done] == [shmstore.StoreClosedError] * 2
        changes.close()

    run(main())


def test_idle_loop_is_not_woken(store: Store, start_python: StartPython) -> None:
    """Coroutines that wait use no processor, whatever others put meanwhile."""
    child = start_python(
        """
        import asyncio
        from shmstore import aio
        async def main():
            async with aio.attach(name) as store:
                waits = [store.get("key", timeout=None), store.wait(["key"])]
                async with store.watch("k") as changes:
                    waits.append(changes.get())
                    print("ready", flush=True)
                    await asyncio.gather(*waits)
        asyncio.run(main())
        """,
        name=store.name,
    )
    assert child.hear() == "ready"
    wait_until(lambda: waiters(store) == 3)
    before = activity_at_rest(child.pid)
    for number in range(50):
        store[f"other {number}"] = number
        time.sleep(0.002)
    assert activity_of(child.pid) == before
    store["key"] = 1
    child.end()


def test_rings_of_loops_lose_no_wake_up(store: Store) -> None:
    """Three processes with an event loop each pass many tokens around at once."""
    count, tokens, laps = 3, 10, 20

    def turn(number: int) -> None:
        async def carry(token: int) -> None:
            view = aio.Store(store)
            for lap in range(laps):
                before = f"{token}/{lap - (number == 0)}/{(number - 1) % count}"
                if lap or number:
                    await view.get(before, timeout=stores.WAIT_S)
                await view.put(lap, key=f"{token}/{lap}/{number}")

        async def main() -> None:
            await asyncio.gather(*map(carry, range(tokens)))

        asyncio.run(main())

    children = [forked(lambda number=number: turn(number)) for number in range(count)]
    assert [stores.exit_code(child) for child in children] == [0] * count
    assert len(store) == count * tokens * laps
    assert waiters(store) == 0
