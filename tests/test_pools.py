"""A pool of processes whose large arguments and results go through a store."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore, StartPython, lock_free_only, used, wait_until

import shmstore
from shmstore import ProcessPoolExecutor, Store

METHODS = ("fork", "spawn", "forkserver")
COUNT = 100_000  # elements: 800 kB

# Python 3.12 and newer warn when a process with threads forks, as the pool of the library does.
pytestmark = [
    pytest.mark.usefixtures("process_helpers"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def method() -> str:
    """Give the start method of pools whose start method does not matter."""
    return "fork"


@pytest.fixture
def pool(method: str, root: Path) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of two workers with a store of its own."""
    with make_pool(method) as pool:
        yield pool


def make_pool(method: str = "fork", workers: int = 2, **options: Any) -> ProcessPoolExecutor:
    """Make a pool with a small store."""
    if "store" not in options:
        options.setdefault("capacity", 32 * MIB)
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), **options)


class Counted:
    """Counts what a pool puts into its store."""

    def __init__(self, pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.puts = 0
        put = Store.put

        def counted(store: Store, *args: Any, **options: Any) -> Any:
            self.puts += store == pool.store
            return put(store, *args, **options)

        monkeypatch.setattr(Store, "put", counted)


# --- what workers are asked to do -----------------------------------------------------------------


def total(array: np.ndarray, more: float = 0) -> float:
    """Add up."""
    return float(array.sum()) + more


def doubled(array: np.ndarray) -> np.ndarray:
    """Return a large result."""
    return array * 2


def full(number: int) -> np.ndarray:
    """Return a large result of one number."""
    return np.full(COUNT, number, float)


def zeroed(array: np.ndarray) -> bool:
    """Write to the argument; return whether it is writeable."""
    array[:] = 0
    return bool(array.flags.writeable)


def nested(number: int) -> dict[str, Any]:
    """Return what has large parts of several kinds."""
    return {
        "large": np.full(COUNT, number),
        "many": [np.full(100, number) for _ in range(200)],
        "text": "x" * 100_000,
        "bytes": b"y" * 100_000,
    }


def looked_at(array: np.ndarray) -> tuple[bool, tuple[int, ...], str]:
    """Return what the argument is."""
    return array.flags.writeable, array.shape, array.dtype.str


def missing(array: np.ndarray) -> None:
    """Fail."""
    raise KeyError(len(array))


def die_at(number: int) -> np.ndarray:
    """Be killed in one of many calls."""
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return full(number)


def wait_for(path: str) -> None:
    """Wait until a file is there."""
    while not Path(path).exists():
        time.sleep(0.005)


def sum_when(path: str, array: np.ndarray) -> float:
    """Add up when a file is there."""
    wait_for(path)
    return total(array)


_prepared: list[Any] = []


def prepare(array: np.ndarray, word: str) -> None:
    """Note what the initializer got."""
    _prepared.append((float(array.sum()), word))


def prepared(_: int) -> Any:
    """Return what the initializer got."""
    return _prepared[-1]


def pid(_: int) -> int:
    """Return which worker it is."""
    return os.getpid()


# --- as any pool ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, scope="module")
def test_arguments_and_results_are_right_with_every_start_method(pool: ProcessPoolExecutor) -> None:
    """Small and large, alone and inside of others, by submit and by map."""
    array = np.arange(COUNT, dtype=float)
    assert pool.submit(total, array, more=1).result() == array.sum() + 1
    assert pool.submit(pow, 2, 5).result() == 32
    np.testing.assert_array_equal(pool.submit(doubled, array).result(), array * 2)
    found = pool.submit(nested, 7).result()
    assert found["large"][-1] == 7
    assert [part[0] for part in found["many"]] == [7] * 200
    assert (len(found["text"]), len(found["bytes"])) == (100_000, 100_000)
    sums = pool.map(total, [array] * 7, range(7), chunksize=3)
    assert list(sums) == [array.sum() + number for number in range(7)]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_initializer_gets_large_arguments(method: str) -> None:
    """They go through the store too, once for all workers."""
    array = np.ones(COUNT)
    with make_pool(method, initializer=prepare, initargs=(array, "word")) as pool:
        assert set(pool.map(prepared, range(4))) == {(COUNT, "word")}


def test_workers_are_replaced_after_max_tasks_per_child() -> None:
    """Each finds the store anew."""
    with make_pool("forkserver", 1, max_tasks_per_child=2) as pool:
        results = [pool.submit(full, number).result()[0] for number in range(5)]
        assert results == [0, 1, 2, 3, 4]
        assert len({pool.submit(pid, number).result() for number in range(4)}) > 1


def test_exception_has_its_remote_traceback(pool: ProcessPoolExecutor) -> None:
    """It says where in the worker it was raised, and the pool goes on."""
    with pytest.raises(KeyError) as caught:
        pool.submit(missing, np.zeros(COUNT)).result()
    assert caught.value.args == (COUNT,)
    assert "in missing" in str(caught.value.__cause__)
    assert pool.submit(total, np.ones(COUNT)).result() == COUNT


def test_argument_that_cannot_be_pickled_fails_its_call_alone(pool: ProcessPoolExecutor) -> None:
    """The future gets the error; the pool goes on, and keeps nothing."""
    future = pool.submit(total, [np.zeros(COUNT), threading.Lock()])
    with pytest.raises(TypeError, match="lock"):
        future.result()
    assert pool.submit(total, np.ones(COUNT)).result() == COUNT
    wait_until(lambda: used(pool.store) == 0)


def test_lambda_is_sent_by_value(pool: ProcessPoolExecutor) -> None:
    """The pool of the standard library cannot."""
    factor = 3
    assert pool.submit(lambda x: x * factor, 4).result() == 12


def test_class_of_results_is_that_of_the_caller(pool: ProcessPoolExecutor) -> None:
    """What has a name is sent by name, so that isinstance holds."""
    assert type(pool.submit(Counted.__new__, Counted).result()) is Counted


def test_cancelled_calls_leave_nothing(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What was never packed is forgotten."""
    gate = str(tmp_path / "gate")
    first = [pool.submit(wait_for, gate) for _ in range(2)]
    rest = [pool.submit(total, np.ones(COUNT)) for _ in range(10)]
    cancelled = sum(future.cancel() for future in rest)
    Path(gate).touch()
    futures.wait([*first, *rest])
    assert cancelled > 0
    wait_until(lambda: used(pool.store) == 0)


def test_wrong_options_are_refused_before_anything_is_made(root: Path) -> None:
    """Nothing is left of a pool that could not be."""
    with pytest.raises(ValueError, match="mode='shared'"):
        make_pool(mode="shared")
    with pytest.raises(ValueError, match="max_workers"):
        make_pool(workers=0)
    with pytest.raises(ValueError, match="not a size"):
        make_pool(threshold="many")
    assert list(root.iterdir()) == []


# --- arguments ------------------------------------------------------------------------------------


def test_argument_of_many_calls_is_stored_once(
    pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also inside of other arguments; and it is gone when all have finished."""
    counted = Counted(pool, monkeypatch)
    array, gate = np.ones(COUNT), str(tmp_path / "gate")
    calls = [pool.submit(sum_when, gate, array) for _ in range(6)]
    calls += [pool.submit(np.sum, [array, array]) for _ in range(2)]
    Path(gate).touch()
    assert [call.result() for call in calls] == [COUNT] * 6 + [2 * COUNT] * 2
    assert counted.puts == 1
    wait_until(lambda: used(pool.store) == 0)


def test_argument_that_changes_between_calls_is_stored_again(pool: ProcessPoolExecutor) -> None:
    """Once a call has finished its arguments may be changed, as with any pool."""
    other = pool.submit(time.sleep, 0.5)
    array = np.zeros(COUNT)
    for number in range(50):
        array[:] = number
        assert pool.submit(total, array).result() == number * COUNT
    other.result()


def test_worker_may_write_to_its_argument(pool: ProcessPoolExecutor) -> None:
    """What it writes stays with the call: neither the caller nor another call sees it."""
    array = np.ones(COUNT)
    assert list(pool.map(zeroed, [array] * 4)) == [True] * 4
    assert array.sum() == COUNT
    assert list(pool.map(total, [array] * 4)) == [COUNT] * 4


def test_argument_keeps_its_flag_its_shape_and_its_type(pool: ProcessPoolExecutor) -> None:
    """Read-only arrays and strided ones arrive as they were."""
    frozen = np.zeros((300, 200), ">i4")
    frozen.flags.writeable = False
    assert pool.submit(looked_at, frozen).result() == (False, (300, 200), ">i4")
    assert pool.submit(looked_at, frozen.T[::2]).result() == (False, (100, 300), ">i4")
    assert pool.submit(looked_at, np.zeros((300, 100))[:, 3:]).result() == (True, (300, 97), "<f8")


def test_arguments_are_views_in_mode_readonly() -> None:
    """Whoever wants no private mappings gets views that cannot be written."""
    with make_pool(mode="readonly") as pool:
        assert pool.submit(looked_at, np.zeros(COUNT)).result()[0] is False
        with pytest.raises(ValueError, match="read-only"):
            pool.submit(zeroed, np.zeros(COUNT)).result()


def test_small_arguments_stay_out_of_the_store(
    pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is below the threshold travels through the pipe."""
    counted = Counted(pool, monkeypatch)
    assert pool.submit(total, np.ones(8000)).result() == 8000
    assert counted.puts == 0


def test_what_finds_no_room_travels_through_the_pipe() -> None:
    """A store that is full, or too small, slows the pool down and no more."""
    with make_pool(capacity=MIB) as pool:
        array = np.ones(5 * COUNT)
        assert list(pool.map(total, [array] * 3)) == [5 * COUNT] * 3
        assert pool.submit(doubled, array).result().sum() == 10 * COUNT


@lock_free_only
def test_view_of_a_stored_object_is_worked_on_in_place(
    pool: ProcessPoolExecutor, make_store: MakeStore
) -> None:
    """It travels as a reference: the worker writes to the object itself."""
    store = make_store()
    view = store.put(np.ones(COUNT)).get()
    assert pool.submit(zeroed, view[: COUNT // 2]).result()
    assert view.sum() == COUNT - COUNT // 2


def test_result_is_passed_on_without_a_copy(
    pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its object is deleted already, and pinned by the view; the worker's writes are its own."""
    result = pool.submit(full, 3).result()
    counted = Counted(pool, monkeypatch)
    assert pool.submit(zeroed, result).result()
    assert pool.submit(total, result[1:]).result() == 3 * (COUNT - 1)
    assert counted.puts == 0


# --- results --------------------------------------------------------------------------------------


def test_memory_of_results_goes_back_with_their_last_view(pool: ProcessPoolExecutor) -> None:
    """A slice keeps its result; the store is empty when all have died."""
    results = list(pool.map(full, range(10), chunksize=2))
    assert used(pool.store) >= 10 * COUNT * 8
    part = results[3][5:]
    del results
    assert 0 < used(pool.store) < 2 * COUNT * 8
    assert part.sum() == 3 * (COUNT - 5)
    del part
    assert used(pool.store) == 0


def test_results_outlive_their_pool() -> None:
    """The store goes with the executor, the views stay."""
    with make_pool() as pool:
        result = pool.submit(full, 4).result()
        path = pool.store.path
    assert not path.exists()
    assert result.sum() == 4 * COUNT
    result[:] = 1


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
