"""A store that spills takes what memory has no room for: batches, and arrays built in place."""

from __future__ import annotations

import errno
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rooms import small_file_system
from spilling import MakeSpilling, block, files, push_out, spill_dir, spilling
from stores import MIB, MakeStore, StartPython, exit_code, forked

from shmstore import KeyExistsError, Store, StoreFullError
from shmstore._memory.spill_files import SpillFiles

__all__ = ["spill_dir", "spilling"]  # fixtures

BLOCKS = {str(number): block(number) for number in range(40)}


def are_there(store: Store, numbers: range) -> bool:
    """Return whether blocks are there, and sound."""
    right = all((store[str(number)] == number).all() for number in numbers)
    return right and store.check(deep=True) == []


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int, error: BaseException) -> None:
    """Let the n-th call of a method of the files fail."""
    original = getattr(SpillFiles, name)
    left = [number]

    def call(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise error
        return original(*args)

    monkeypatch.setattr(SpillFiles, name, call)


# --- batches --------------------------------------------------------------------------------------


def test_batch_larger_than_the_store_is_there_as_a_whole(
    spilling: MakeSpilling, spill_dir: Path
) -> None:
    """What memory has room for lies there, what it has none for in files; all can be got."""
    store = spilling()
    refs = store.put_many(BLOCKS)
    assert store.stats().used == MIB
    assert len(files(spill_dir)) == store.stats().spilled == 24
    assert are_there(store, range(40))
    assert all((ref.get() == int(key)).all() for key, ref in refs.items())
    store.clear()
    assert (files(spill_dir), store.stats().objects) == ([], 0)


def test_update_takes_more_than_there_is_memory_for(spilling: MakeSpilling) -> None:
    """Also in place of objects that lie in memory, in files, and in slots."""
    store = spilling()
    store.update({key: number for number, key in enumerate(BLOCKS)})
    for _ in range(2):
        store.update(BLOCKS, small=5)
        assert are_there(store, range(40))
    assert (len(store), store["small"]) == (41, 5)


def test_batch_with_one_object_larger_than_the_store(spilling: MakeSpilling) -> None:
    """It alone becomes a file."""
    store = spilling()
    big, small, tiny = store.put_many([np.ones(3 * MIB, "u1"), np.full(9000, 2, "u1"), "tiny"])
    assert [info.spilled for info in store.objects()] == [True, False, False]
    assert (big.get().sum(), small.get().sum(), tiny.get()) == (3 * MIB, 18_000, "tiny")
    assert store.check(deep=True) == []


def test_batch_where_all_memory_is_looked_at_goes_into_files(
    spilling: MakeSpilling, spill_dir: Path
) -> None:
    """Views keep what is in memory there."""
    store = spilling()
    views = [ref.get() for ref in push_out(store)]
    store.update({"a": block(70), "b": block(80)})
    assert len(files(spill_dir)) == 2
    assert [int(store[key][9]) for key in "ab"] == [70, 80]
    assert all((view == number).all() for number, view in enumerate(views))


def test_batch_with_checksums_that_goes_into_files_comes_back(spilling: MakeSpilling) -> None:
    """The checksums of what is sealed agree wherever it lies."""
    store = spilling(checksum=True)
    store.put_many(BLOCKS, readonly=True)
    assert are_there(store, range(40))
    store.delete_many([str(number) for number in range(30)])
    assert are_there(store, range(30, 40))
    assert store.stats().spilled == 0
    assert store.check(deep=True) == []


@pytest.mark.parametrize("method", ["write", "commit"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), KeyboardInterrupt()], ids=repr)
def test_batch_that_fails_in_the_middle_leaves_nothing(
    spilling: MakeSpilling,
    spill_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: BaseException,
) -> None:
    """All or none, also when the first of its files are whole already."""
    store = spilling()
    store["0"] = "old"
    with monkeypatch.context() as patched:
        fail_at(patched, method, 7, error)
        with pytest.raises(type(error)):
            store.put_many(BLOCKS)
    assert (dict(store.items()), files(spill_dir)) == ({"0": "old"}, [])
    assert store.stats().used == 0
    assert store.check(deep=True) == []
    store.put_many(BLOCKS)
    assert are_there(store, range(40))


def test_batch_with_a_key_that_is_taken_leaves_nothing(
    spilling: MakeSpilling, spill_dir: Path
) -> None:
    """Also when somebody takes it while the files are written."""
    store = spilling()
    other = Store.attach(store.path)
    with pytest.MonkeyPatch.context() as patched:
        original = SpillFiles.write

        def write(*args: Any) -> None:
            other.setdefault("39", "first")
            original(*args)

        patched.setattr(SpillFiles, "write", write)
        with pytest.raises(KeyExistsError):
            store.put_many(BLOCKS, overwrite=False)
    assert (dict(store.items()), files(spill_dir)) == ({"39": "first"}, [])
    other.close()


def test_full_file_system_of_files_refuses_the_whole_batch(make_store: MakeStore) -> None:
    """The error is the one that users know, names the folder, and nothing is left there."""
    with small_file_system(MIB) as path:
        store = make_store(capacity="1MiB", max_objects=500, on_full="spill", spill_dir=path / "s")
        with pytest.raises(StoreFullError, match=rf"{path}.*no room for 2,621,440 bytes") as caught:
            store.put_many(BLOCKS)
        assert type(caught.value) is StoreFullError
        assert (store.stats().objects, store.stats().used, files(path)) == (0, 0, [])
        assert store.check() == []
        store.close()


def test_batch_with_more_objects_than_the_store_takes_is_refused(spilling: MakeSpilling) -> None:
    """Files are no slots; the error is the one that users know."""
    store = spilling(max_objects=30)
    with pytest.raises(StoreFullError, match="as many as it takes") as caught:
        store.put_many(BLOCKS)
    assert type(caught.value) is StoreFullError
    assert (store.stats().objects, store.stats().used) == (0, 0)


# --- arrays in place ------------------------------------------------------------------------------


def test_array_larger_than_the_store_is_built_in_its_file(
    spilling: MakeSpilling, spill_dir: Path, start_python: StartPython
) -> None:
    """It is shared memory like any other: others see what is written to it later."""
    store = spilling()
    with store.allocate(3 * MIB, "u1", key="big") as array:
        array[:] = 3
        assert "big" not in store
    child = start_python(READ, path=store.path)
    assert child.hear() == f"{9 * MIB} True"
    array[5] = 8
    assert child.ask() == "8"
    child.end()
    assert (store["big"][5], len(files(spill_dir))) == (8, 1)
    assert store.check(deep=True) == []
    store.close()
    assert (array[5], files(spill_dir)) == (8, [])


READ = """
import shmstore
store = shmstore.Store.attach(path)
view = store["big"]
print(view.sum(dtype=int), view.flags.writeable, flush=True)
input()
print(view[5], flush=True)
"""


def test_array_stays_in_its_file_while_it_is_looked_at(spilling: MakeSpilling) -> None:
    """What is written through the array that was built is not lost when there is room again."""
    store = spilling()
    others = [ref.get() for ref in push_out(store)]
    with store.allocate(1 << 16, "u1", key="k") as array:
        array[:] = 1
    part = array[3:7]
    del array, others
    gc.collect()
    store.delete_many(info.ref for info in store.objects() if info.key is None)
    assert (store["k"][4], store.stats().restores) == (1, 0)
    part[1] = 9
    assert store["k"][4] == 9
    del part
    gc.collect()
    assert (store["k"][4], store.stats().restores, store.stats().spilled) == (9, 1, 0)
    assert store.check(deep=True) == []


@pytest.mark.parametrize("checksum", [False, True])
def test_readonly_array_is_built_in_its_file(spilling: MakeSpilling, checksum: bool) -> None:  # noqa: FBT001
    """Readers cannot write to it, and its checksum counts."""
    store = spilling(checksum=checksum)
    with store.allocate((3, MIB), "u1", key="big", readonly=True) as array:
        array[:] = 3
    assert not store["big"].flags.writeable
    assert store["big"].sum(dtype=int) == 9 * MIB
    assert store.check(deep=True) == []


def leave_by_an_error(store: Store) -> None:
    """Leave the block by an exception, and keep the array."""
    kept: list[Any] = []

    def build() -> None:
        with store.allocate(3 * MIB, "u1", key="k") as array:
            kept.append(array)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build()
    assert store.check() == []
    kept[0][:] = 5


def leave_it_open(store: Store) -> None:
    """Forget the block in the middle."""
    allocation = store.allocate(3 * MIB, "u1", key="k")
    allocation.__enter__()[:] = 1
    del allocation
    gc.collect()


def be_killed(store: Store) -> None:
    """Let a process die in the block."""

    def die() -> None:
        with store.allocate(3 * MIB, "u1", key="k") as array:
            array[:] = 3
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(forked(die)) == -signal.SIGKILL


def lose_the_key(store: Store) -> None:
    """Let another one take the key meanwhile."""

    def build() -> None:
        with store.allocate(3 * MIB, "u1", key="other", overwrite=False) as array:
            array[:] = 3
            store["other"] = 1

    with pytest.raises(KeyExistsError):
        build()
    del store["other"]


WAYS = (leave_by_an_error, leave_it_open, be_killed, lose_the_key)


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_array_that_is_not_published_leaves_no_file(
    spilling: MakeSpilling, spill_dir: Path, way: Callable[[Store], None]
) -> None:
    """Slot and file go, at the latest with the next recovery."""
    store = spilling()
    way(store)
    gc.collect()
    store.recover()
    stats = store.stats()
    assert (len(store), stats.used, stats.reclaimable, files(spill_dir)) == (0, 0, 0, [])
    assert store.check() == []
    assert store._session is not None
    assert store._session.pins.in_use() == 0


def test_array_for_which_the_files_have_no_room_is_refused(make_store: MakeStore) -> None:
    """No touch of the array may find the file system full: that would be SIGBUS."""
    with small_file_system(MIB) as path:
        store = make_store(capacity="1MiB", max_objects=500, on_full="spill", spill_dir=path / "s")
        with (
            pytest.raises(StoreFullError, match=rf"{path}.*no room for 3,145,728 bytes"),
            store.allocate(3 * MIB, "u1"),
        ):
            pass
        assert (store.stats().objects, files(path), store.check()) == (0, [], [])
        store.close()
