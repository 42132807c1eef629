"""How much goes in, and what a full store says."""

from __future__ import annotations

import os
import pickle
import random
from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore, RunPython, fill_up, used

from shmstore import (
    ObjectRef,
    ObjectTooLargeError,
    Store,
    StoreFullError,
)


def test_object_of_exactly_the_capacity_fits_again_and_again(store: Store) -> None:
    """The whole store is there for objects, and all of it comes back."""
    array = np.arange(4 * MIB, dtype=np.uint8)
    for _ in range(3):
        ref = store.put(array)
        stats = store.stats()
        assert (stats.used, stats.free, stats.largest_free) == (4 * MIB, 0, 0)
        np.testing.assert_array_equal(ref.get(), array)
        ref.delete()
        assert used(store) == 0


def test_object_larger_than_the_capacity_raises_object_too_large(store: Store) -> None:
    """It could never fit: the error is another than that of a full store."""
    with pytest.raises(ObjectTooLargeError, match="capacity") as caught:
        store.put(np.zeros(4 * MIB + 1, np.uint8))
    assert isinstance(caught.value, ValueError)
    assert caught.value.capacity == 4 * MIB
    assert caught.value.asked > 4 * MIB
    assert used(store) == 0


@pytest.mark.parametrize("value", [b"", "", (), None, np.empty(0), np.empty((3, 0)), bytearray()])
def test_object_without_data_takes_no_room(store: Store, value: Any) -> None:
    """0 bytes are a size like any other."""
    refs = [store.put(value) for _ in range(100)]
    assert store.stats().used == 0
    assert len(store.objects()) == 100
    got = refs[50].get()
    assert type(got) is type(value)
    assert np.shape(got) == np.shape(value)
    store.delete_many(refs)


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 127, 128, 4095, 4096, 4097, 65537])
def test_used_counts_whole_lines_of_64_bytes(store: Store, nbytes: int) -> None:
    """Frames are aligned, and nothing else is counted."""
    ref = store.put(np.zeros(nbytes, np.uint8))
    expected = -(-nbytes // 64) * 64
    assert store.stats().used == store.info(ref).stored_nbytes == expected
    ref.delete()
    assert used(store) == 0


def test_used_is_the_sum_over_the_objects_at_every_step(store: Store) -> None:
    """A random life of a store, accounted to the byte, back to 0."""
    random_ = random.Random(5)
    refs: list[ObjectRef] = []
    for _ in range(400):
        if refs and random_.random() < 0.45:
            refs.pop(random_.randrange(len(refs))).delete()
        else:
            sizes = [random_.randrange(20_000) for _ in range(random_.randrange(1, 4))]
            refs.append(store.put([np.zeros(size, np.uint8) for size in sizes]))
        stats = store.stats()
        assert stats.used == sum(info.stored_nbytes for info in store.objects())
        assert stats.free == stats.capacity - stats.used
    store.delete_many(refs)
    assert used(store) == 0
    assert store.stats().largest_free == 4 * MIB


def test_full_store_tells_asked_free_largest_and_who_holds_deleted_objects(store: Store) -> None:
    """The facts that say what to do, as attributes and in the message."""
    kept = store.put(np.zeros(MIB, np.uint8))
    first, second, third = (store.put(np.zeros(MIB, np.uint8)) for _ in range(3))
    view = second.get()
    store.delete_many([first, second])
    with pytest.raises(StoreFullError) as caught:
        store.put(np.zeros(2 * MIB, np.uint8))
    error = caught.value
    assert (error.asked, error.free, error.largest_free) == (2 * MIB, MIB, MIB)
    assert (error.capacity, error.pinned) == (4 * MIB, MIB)
    assert len(error.pinned_by) == 1
    assert str(os.getpid()) in error.pinned_by[0]
    for number in (2 * MIB, MIB, 4 * MIB):
        assert f"{number:,}" in str(error)
    assert isinstance(error, MemoryError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.asked, again.pinned_by) == (error.asked, error.pinned_by)
    del view
    assert not store.put(np.zeros(2 * MIB, np.uint8)).get().any()
    assert {kept, third} <= {ref for ref in (kept, first, second, third) if ref in store}


def test_put_that_finds_no_room_changes_nothing(store: Store) -> None:
    """The object under the key stays, and so does every byte."""
    store["k"] = "old"
    ref = store.put(np.zeros(3 * MIB, np.uint8))
    before = store.stats()
    for _ in range(3):
        with pytest.raises(StoreFullError):
            store.put(np.zeros(2 * MIB, np.uint8), key="k")
        with pytest.raises(StoreFullError), store.allocate(2 * MIB, "u1", key="k"):
            pytest.fail("the block must not be entered")
    assert store.stats() == before
    assert store["k"] == "old"
    assert not ref.get().any()


def test_store_filled_and_emptied_takes_as_many_objects_again(make_store: MakeStore) -> None:
    """Nothing is lost to fragments, whatever the order of deleting."""
    store = make_store(capacity="1MiB")
    random_ = random.Random(3)
    counts = []
    for _ in range(4):
        refs = fill_up(store, np.zeros(3000, np.uint8))
        counts.append(len(refs))
        random_.shuffle(refs)
        store.delete_many(refs)
        assert used(store) == 0
    assert counts == [MIB // 3008] * 4


def test_store_with_as_many_objects_as_it_takes_says_so(make_store: MakeStore) -> None:
    """The limit is another one than that of bytes."""
    store = make_store(max_objects=10)
    refs = [store.put(i) for i in range(10)]
    with pytest.raises(StoreFullError, match="max_objects") as caught:
        store.put(1)
    assert caught.value.objects == 10
    with pytest.raises(StoreFullError, match="max_objects"):
        store.put(np.zeros(100))
    assert used(store) == 0
    refs[3].delete()
    assert store.put("fits").get() == "fits"


def test_store_with_as_many_clients_as_it_takes_refuses_the_next(
    make_store: MakeStore, run_python: RunPython
) -> None:
    """The error says which option was too small."""
    store = make_store(max_clients=1)
    message = run_python(
        """
        import shmstore
        try:
            shmstore.Store.attach(path)
        except shmstore.StoreFullError as error:
            print(error, error.clients)
        """,
        path=store.path,
    )
    assert "max_clients" in message
    assert message.endswith("1")
