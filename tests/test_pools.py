"""A pool of processes whose large arguments and results go through a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_work import (
    COUNT,
    doubled,
    full,
    looked_at,
    make_pool,
    missing,
    nested,
    pid,
    prepare,
    prepared,
    sum_when,
    total,
    wait_for,
    zeroed,
)
from stores import MIB, MakeStore, forks, lock_free_only, used, wait_until

from shmstore import ProcessPoolExecutor, Store

METHODS = ("fork", "spawn", "forkserver")

pytestmark = [forks, pytest.mark.usefixtures("process_helpers")]


@pytest.fixture(scope="module")
def method() -> str:
    """Give the start method of pools whose start method does not matter."""
    return "fork"


@pytest.fixture
def pool(method: str, root: Path) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of two workers with a store of its own."""
    with make_pool(method) as pool:
        yield pool


class Counted:
    """Counts what a pool puts into its store."""

    def __init__(self, pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.puts = 0
        put = Store.put

        def counted(store: Store, *args: Any, **options: Any) -> Any:
            self.puts += store == pool.store
            return put(store, *args, **options)

        monkeypatch.setattr(Store, "put", counted)


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
