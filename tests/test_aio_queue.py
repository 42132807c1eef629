"""A queue in an event loop: coroutines wait, nothing is lost between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from queue import Empty, Full

import numpy as np
import pytest
import stores
from stores import MIB, MakeStore, StartPython, exit_code, forked, used, wait_until
from waits import Run, threads_of_waiters, waiters

from shmstore import Store, StoreClosedError, aio


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: waiting has nothing to do with it."""
    return False


def test_objects_come_in_order_and_arrays_as_views(store: Store, run: Run) -> None:
    """Of all kinds, one by one and many at once."""

    async def main() -> None:
        with aio.Store(store).queue("jobs") as jobs:
            await jobs.put({"number": 1})
            assert await jobs.put_many([2, np.arange(5), "four"]) == 3
            assert await jobs.get() == {"number": 1}
            two, array, four = await jobs.get_many(10)
            assert (two, four) == (2, "four")
            assert array.tolist() == list(range(5))
            assert not array.flags.owndata
            assert jobs.empty()
            assert jobs.name == "jobs"

    run(main())


def test_get_waits_for_another_process_without_a_thread(store: Store, run: Run) -> None:
    """The loop goes on meanwhile."""

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs")
        threads = threads_of_waiters()

        def child() -> None:
            time.sleep(0.1)
            store.queue("jobs").put("from a child")

        pid = forked(child)
        got = asyncio.create_task(jobs.get(timeout=stores.WAIT_S))
        await asyncio.sleep(0.02)
        assert not got.done()
        assert threads_of_waiters() == threads
        assert await got == "from a child"
        assert exit_code(pid) == 0

    run(main())
    assert waiters(store) == 0


def test_put_waits_for_room(store: Store, run: Run) -> None:
    """One by one as there is room, small objects and those that a thread copies."""

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs", maxsize=1)
        for value in (b"small", np.ones(100_000)):
            await jobs.put(0)
            with pytest.raises(Full):
                await jobs.put(value, timeout=0.01)
            with pytest.raises(Full):
                await jobs.put(value, timeout=0)
            put = asyncio.create_task(jobs.put(value))
            await asyncio.sleep(0.02)
            assert not put.done()
            assert await jobs.get() == 0
            await put
            assert len(await jobs.get()) == len(value)
        assert await jobs.put_many([1, 2, 3], timeout=0.05) == 1

    run(main())


def test_timeouts(store: Store, run: Run) -> None:
    """Empty after the time, at once without any; what is no time is refused."""

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs")
        with pytest.raises(Empty):
            await jobs.get(timeout=0)
        with pytest.raises(Empty):
            await jobs.get(timeout=0.01)
        with pytest.raises(Empty):
            jobs.get_nowait()
        with pytest.raises(ValueError, match="timeout=-1"):
            await jobs.get(timeout=-1)

    run(main())


def test_cancelled_get_loses_no_object(store: Store, run: Run) -> None:
    """However the cancellation falls between a put and the get that waits for it."""

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs")
        got: list[int] = []
        for number in range(200):
            task = asyncio.create_task(jobs.get())
            for _ in range(number % 4):
                await asyncio.sleep(0)
            jobs.put_nowait(number)
            for _ in range(number // 4 % 4):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                got.append(await task)
        while not jobs.empty():
            got.append(await jobs.get())
        assert sorted(got) == list(range(200))

    run(main())
    assert waiters(store) == 0


def test_join_waits_until_all_is_done(store: Store, run: Run) -> None:
    """Also for what another process has taken, and no longer for the dead."""

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs")
        assert await jobs.join(timeout=0)
        await jobs.put_many(range(3))
        assert not await jobs.join(timeout=0.01)

        def child() -> None:
            queue = store.queue("jobs")
            for _ in range(3):
                queue.get()
                time.sleep(0.02)
                queue.task_done()

        pid = forked(child)
        assert await jobs.join(timeout=stores.WAIT_S)
        assert exit_code(pid) == 0

        def taker() -> None:
            store.queue("jobs").get()

        await jobs.put("taken by one who dies")
        assert exit_code(forked(taker)) == 0
        assert await jobs.join(timeout=stores.WAIT_S)

    run(main())


def test_objects_in_files_come_back(make_store: MakeStore, run: Run, tmp_path) -> None:
    """In a thread, so that the loop goes on; in their order."""
    store = make_store(capacity=4 * MIB, on_full="spill", spill_dir=tmp_path)

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs")
        for number in range(12):
            await jobs.put(np.full(125_000, number))
        assert any(tmp_path.rglob("*"))
        for number in range(12):
            array = await jobs.get()
            assert (array == number).all()
            del array

    run(main())
    wait_until(lambda: store.trim() == 0 or used(store) == 0)


def test_destroyed_queue_tells_who_waits(store: Store, run: Run) -> None:
    """A coroutine does not wait for ever for a queue that is gone."""

    async def main() -> None:
        jobs = aio.Store(store).queue("jobs")
        got = asyncio.create_task(jobs.get())
        await asyncio.sleep(0.02)
        store.queue("jobs").destroy()
        with pytest.raises(StoreClosedError, match="was destroyed"):
            await got

    run(main())


def test_iteration_with_consumers_in_other_processes(
    store: Store, run: Run, start_python: StartPython
) -> None:
    """Two loops in two processes share the work: each object is got once."""
    program = """
    import asyncio, shmstore
    from shmstore import aio
    async def main():
        async with aio.attach(name) as store:
            print("ready", flush=True)
            got = []
            async for number in store.queue("jobs"):
                if number is None:
                    break
                got.append(number)
                store.queue("jobs").task_done()
            print(got, flush=True)
    asyncio.run(main())
    """
    child = start_python(program, name=store.name)
    assert child.hear() == "ready"

    async def main() -> list[int]:
        jobs = aio.Store(store).queue("jobs")
        await jobs.put_many(range(50))
        mine = []
        while len(mine) < 10 and not jobs.empty():
            with contextlib.suppress(Empty):
                mine.append(await jobs.get(timeout=0.05))
                jobs.task_done()
        await jobs.join(timeout=stores.WAIT_S)
        await jobs.put(None)
        return mine

    mine = run(main())
    theirs = eval(child.hear())
    child.end()
    assert sorted(mine + theirs) == list(range(50))
