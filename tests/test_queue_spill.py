"""Queues in stores that spill: more waits than memory holds, and what is larger than all of it."""

from __future__ import annotations

import errno
import pickle
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers
from rooms import small_file_system
from stores import MakeStore, StartPython, used, wait_until

from shmstore import Store, StoreFullError
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned

# The store has so many bytes; no array of so many numbers fits.
_CAPACITY = 1 << 20
_TOO_MANY = 200_000


@pytest.fixture
def store(make_store: MakeStore, tmp_path: Path) -> Store:
    """Give a small store that moves objects to files."""
    return make_store(capacity=_CAPACITY, on_full="spill", spill_dir=tmp_path)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _ends(array: Any) -> tuple[int, int]:
    return int(array[0]), int(array[-1])


def test_queue_holds_more_than_memory(store: Store) -> None:
    """What was put first is there again when it is its turn."""
    jobs = store.queue("jobs")
    for number in range(10):
        jobs.put(np.full(40_000, number))
    assert store.stats().spilled > 0
    for number in range(10):
        assert _ends(jobs.get()) == (number, number)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_queue_batch_that_begins_small_leaves_the_queue(store: Store, count: int) -> None:
    """What leaves memory for its large objects is no object without memory, such as the queue."""
    jobs = store.queue("jobs")
    objects = [1, *(np.full(50_000, number) for number in range(count)), "last"]
    assert jobs.put_many(objects) == jobs.qsize() == count + 2
    assert jobs.get() == 1
    assert [_ends(jobs.get()) for _ in range(count)] == [(n, n) for n in range(count)]
    assert jobs.get() == "last"
    assert store.check() == []


def test_queue_batch_of_nothing_is_no_error(store: Store) -> None:
    """Nothing is put."""
    assert store.queue("jobs").put_many([]) == 0


def test_queue_object_larger_than_the_store_lies_in_a_file(
    store: Store, tmp_path: Path, start_python: StartPython
) -> None:
    """It waits in its place, is got by another process, and its file goes with it."""
    jobs = store.queue("jobs")
    large = [np.full(_TOO_MANY, number) for number in (2, 4)]
    assert jobs.put_many([1, large[0], 3]) == 3
    jobs.put(large[1])
    assert store.stats().spilled == 2
    child = start_python(
        """
        jobs = pickle.loads(message)
        print(jobs.get(), int(jobs.get()[-1]), jobs.get(), flush=True)
        """,
        message=pickle.dumps(jobs),
    )
    assert child.hear() == "1 2 3"
    child.end()
    array = jobs.get_many(5)[0]
    assert _ends(array) == (4, 4)
    array[0] = 5
    del array
    store.recover()
    assert (store.stats().spilled, _files(tmp_path), store.check()) == (0, [], [])


class _Given:
    """Something that is made by a plan."""


@pytest.fixture
def planned() -> Iterator[list[Planned]]:
    """Give a list; what is serialized by it is larger than the store."""
    plans: list[Planned] = []
    with own_handlers():
        register_serialization(_Given, lambda _: ({}, plans), lambda _, frames: bytes(frames[0]))
        yield plans


def test_queue_full_meanwhile_leaves_no_file(
    store: Store, tmp_path: Path, planned: list[Planned]
) -> None:
    """Who has written a file and finds no room in the queue removes it."""
    jobs = store.queue("jobs", maxsize=1)
    seen: list[int] = []

    def write(view: memoryview) -> None:
        seen.append(len(_files(tmp_path)))
        jobs.put("first")

    planned.append(Planned(2 * _CAPACITY, write))
    with pytest.raises(queue.Full):
        jobs.put(_Given(), timeout=0.01)
    assert seen == [1]
    assert (_files(tmp_path), jobs.get_many(3, block=False), store.check()) == ([], ["first"], [])


def test_queue_waits_with_a_file_for_room(store: Store, planned: list[Planned]) -> None:
    """It is written once, and put when there is room."""
    jobs = store.queue("jobs", maxsize=1)
    written: list[int] = []
    taken: list[str] = []

    def take_when_written() -> None:
        wait_until(lambda: written)
        taken.append(jobs.get())

    def write(view: memoryview) -> None:
        view[:] = b"x" * len(view)
        jobs.put("first")
        written.append(len(view))

    planned.append(Planned(2 * _CAPACITY, write))
    taker = threading.Thread(target=take_when_written)
    taker.start()
    jobs.put(_Given(), timeout=60)
    taker.join()
    assert (written, taken) == ([2 * _CAPACITY], ["first"])
    assert jobs.get() == b"x" * (2 * _CAPACITY)


@pytest.mark.parametrize("nbytes", [300_000, 2 * _CAPACITY])
@pytest.mark.parametrize("error", [LookupError("my own"), OSError(errno.ENOSPC, "my own disk")])
def test_queue_tells_what_a_plan_raises(
    store: Store, tmp_path: Path, planned: list[Planned], nbytes: int, error: Exception
) -> None:
    """The error is that of the plan, whether it writes to memory or to a file."""

    def fail(view: memoryview) -> None:
        raise error

    planned.append(Planned(nbytes, fail))
    jobs = store.queue("jobs")
    with pytest.raises(type(error), match="my own") as caught:
        jobs.put_many([1, _Given(), 2])
    assert caught.value is error
    with pytest.raises(type(error), match="my own"):
        store.put(_Given())
    del caught
    error.__traceback__ = None  # whose frames see the window
    assert jobs.get_many(5, block=False) == [1]
    assert (used(store), _files(tmp_path), store.check()) == (0, [], [])


def test_queue_says_that_there_is_no_room_for_files_either(make_store: MakeStore) -> None:
    """What was put before stays, and nothing of the file."""
    with small_file_system(_CAPACITY) as folder:
        store = make_store(capacity=_CAPACITY, on_full="spill", spill_dir=folder)
        jobs = store.queue("jobs")
        with pytest.raises(StoreFullError, match="has no room for"):
            jobs.put_many([1, np.zeros(_TOO_MANY), 2])
        assert jobs.get_many(5, block=False) == [1]
        assert (_files(folder), store.check()) == ([], [])
        store.destroy()
