"""Whose is the store of a pool, when does it end, and what is left when somebody is killed?"""

from __future__ import annotations

import gc
import os
import signal
import time
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from pool_work import COUNT, die_at, doubled, full, make_pool, pid, prepare, total
from stores import MIB, MakeStore, StartPython, forks, lock_free_only, used, wait_until

import shmstore
from shmstore import ProcessPoolExecutor

pytestmark = [forks, pytest.mark.usefixtures("process_helpers")]


# --- whose store, and when it ends ----------------------------------------------------------------


@lock_free_only
def test_store_of_the_caller_is_used_and_left_as_it_was(make_store: MakeStore) -> None:
    """Other objects stay; nothing of the pool is left."""
    store = make_store(capacity=32 * MIB)
    store["mine"] = 1
    with make_pool(store=store, initializer=prepare, initargs=(np.ones(COUNT), "")) as pool:
        assert pool.store is store
        results = list(pool.map(full, range(3)))
    assert list(store) == ["mine"]
    assert results[2][0] == 2
    del results
    assert used(store) == 0


def test_store_ends_with_the_last_call_when_shutdown_does_not_wait() -> None:
    """Calls that are under way can still bring their results."""
    pool = make_pool()
    path = pool.store.path
    calls = [pool.submit(full, number) for number in range(6)]
    thread = pool._executor_manager_thread  # type: ignore[attr-defined]
    pool.shutdown(wait=False)
    assert [call.result()[0] for call in calls] == list(range(6))
    wait_until(lambda: not path.exists())
    thread.join()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(full, 1)


def test_store_ends_with_a_pool_that_nobody_shuts_down() -> None:
    """As its workers do."""
    pool = make_pool()
    path, call = pool.store.path, pool.submit(full, 1)
    assert call.result()[0] == 1
    thread = pool._executor_manager_thread  # type: ignore[attr-defined]
    del pool
    gc.collect()
    wait_until(lambda: not path.exists())
    thread.join()


# --- death ----------------------------------------------------------------------------------------


@lock_free_only
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_killed_worker_breaks_the_pool_and_leaks_nothing(
    method: str, make_store: MakeStore
) -> None:
    """Every call fails or has its result; the store of the caller is empty afterwards."""
    store = make_store(capacity=32 * MIB)
    argument = np.ones(COUNT)
    with make_pool(method, store=store) as pool:
        calls = [pool.submit(die_at, number) for number in range(8)]
        calls += [pool.submit(total, argument) for _ in range(3)]
        with pytest.raises(BrokenProcessPool):
            _ = [call.result() for call in calls]
        futures.wait(calls)
        with pytest.raises(BrokenProcessPool):
            pool.submit(full, 1)
    del calls
    gc.collect()
    store.recover()
    assert list(store) == []
    assert used(store) == 0


def is_broken(pool: ProcessPoolExecutor) -> bool:
    """Whether the pool takes no more calls, or loses the one that it takes."""
    try:
        return isinstance(pool.submit(pid, 0).exception(), BrokenProcessPool)
    except BrokenProcessPool:
        return True


@lock_free_only
def test_workers_killed_at_any_moment_leave_nothing(make_store: MakeStore) -> None:
    """Between a put and its message, in the middle of one, while opening a parcel."""
    store = make_store(capacity=32 * MIB)
    for wait_s in np.linspace(0.001, 0.03, 6):
        argument = np.ones(COUNT)
        with make_pool(store=store) as pool:
            calls = [pool.submit(doubled, argument) for _ in range(40)]
            calls[0].result()
            time.sleep(wait_s)
            victim = next(iter(pool._processes))  # type: ignore[attr-defined]
            os.kill(victim, signal.SIGKILL)
            futures.wait(calls)
            done = [call for call in calls if call.exception() is None]
            assert all(call.result()[0] == 2 for call in done)
            wait_until(lambda: is_broken(pool))  # its death may be seen after the last call
        del calls, done
        gc.collect()
        store.recover()
        assert list(store) == []
        assert used(store) == 0


def test_store_of_a_killed_owner_is_pruned(start_python: StartPython, root: Path) -> None:
    """Its workers end by themselves, and the store goes with the next prune."""
    child = start_python(
        """
        import multiprocessing, numpy as np, shmstore
        pool = shmstore.ProcessPoolExecutor(
            2, multiprocessing.get_context("fork"), capacity=1 << 24
        )
        kept = [pool.submit(np.ones, 100_000).result() for _ in range(3)]
        print(pool.store.name, flush=True)
        input()
        """
    )
    name = child.hear()
    child.kill()  # and wait until nobody has its output open
    wait_until(lambda: shmstore.prune() == [name])
