"""A full store that may delete what was not used for longest: whom it takes, and whom never."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import MIB, Flag, MakeStore, address, lock_free_only

from shmstore import ObjectNotFoundError, Store, StoreFullError

BLOCK = np.zeros(1 << 16, np.uint8)


def block(number: int) -> np.ndarray:
    """Return 64 KiB that say a number: a store of 1 MiB takes sixteen of them."""
    return np.full(1 << 16, number, np.uint8)


def filled(make_store: MakeStore, count: int = 16, **options: Any) -> Store:
    """Return a full store of 1 MiB that evicts, with the keys "0", "1", ... put in this order."""
    store: Store = make_store(capacity="1MiB", on_full="evict", **options)
    for number in range(count):
        store[str(number)] = block(number)
    return store


# --- who goes -------------------------------------------------------------------------------------


def test_full_store_gives_up_what_was_put_first(make_store: MakeStore) -> None:
    """What nobody has got since goes in the order in which it came."""
    store = filled(make_store)
    for number in range(5):
        store[f"new {number}"] = BLOCK
        assert str(number) not in store
        assert len(store) == 16
    assert [key for key in store if not key.startswith("new")] == [str(n) for n in range(5, 16)]


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get("3"),
        lambda store: store.get("3", mode="copy"),
        lambda store: store.get("3", mode="private"),
        lambda store: store.get("3", mode="readonly"),
        lambda store: store.get("3", decode=False),
        lambda store: store.get_many(["3"]),
    ],
    ids=["key", "copy", "private", "readonly", "undecoded", "many"],
)
def test_object_that_was_got_outlives_those_put_later(
    make_store: MakeStore, use: Callable[[Store], Any]
) -> None:
    """Each way to get an object counts as use, also when its plan is remembered."""
    store = filled(make_store)
    for turn in range(40):
        use(store)
        store.put(BLOCK)
        assert "3" in store, f"evicted in turn {turn}"


def test_get_by_reference_counts_as_use(make_store: MakeStore) -> None:
    """References keep their objects in the store like keys do, as long as somebody gets them."""
    store = filled(make_store, 14)
    kept, asked = store.put(block(3)), store.put(block(4))
    for _ in range(40):
        assert (kept.get()[0], store.get(asked)[0]) == (3, 4)
        store.put(BLOCK)


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [np.arange(9000), np.arange(2)], b"x" * 70_000, "y" * 70_000, list(range(20_000))],
    ids=["inline", "pickle with buffers", "bytes", "text", "stream"],
)
def test_object_of_any_kind_that_is_got_stays(make_store: MakeStore, value: Any) -> None:
    """Dictionaries, pickles, bytes and text say that they are used as arrays do."""
    store = make_store(capacity="1MiB", max_objects=12, on_full="evict")
    store["kept"] = value
    for _ in range(40):
        assert "kept" in store
        store["kept"]
        store.put(BLOCK[:60_000])


def test_looking_at_a_key_or_its_info_is_no_use(make_store: MakeStore) -> None:
    """`in`, `info` and iteration leave the order of eviction as it is."""
    store = filled(make_store)
    for _ in range(3):
        assert "0" in store
        store.info("0")
        list(store)
        store.objects()
    store.put(BLOCK)
    assert "0" not in store


def test_overwriting_counts_as_use(make_store: MakeStore) -> None:
    """An object under an old key is a new object."""
    store = filled(make_store, 15)
    store["0"] = block(0)
    store.put_many([BLOCK, BLOCK])
    assert "0" in store
    assert "1" not in store


def test_evicted_objects_are_gone_for_references_and_keys(make_store: MakeStore) -> None:
    """A reference raises ObjectNotFoundError, a key is missing everywhere."""
    store = filled(make_store, 15)
    ref = store.put(BLOCK, key="last")
    store.put_many([BLOCK] * 16)
    with pytest.raises(ObjectNotFoundError):
        ref.get()
    with pytest.raises(ObjectNotFoundError):
        store["last"]
    assert (len(store), list(store), "last" in store, ref in store) == (0, [], False, False)
    assert store.get("last", "none") == "none"
    assert store.stats().objects == 16


# --- how many go ----------------------------------------------------------------------------------


def test_equal_sizes_cost_one_object_each(make_store: MakeStore) -> None:
    """No put takes more than the one whose place it gets."""
    store = make_store(capacity=100 * 4096, on_full="evict")
    page = np.zeros(4096, np.uint8)
    for _ in range(500):
        store.put(page)
    stats = store.stats()
    assert (stats.objects, stats.used, stats.free) == (100, stats.capacity, 0)
    assert sum(info.stored_nbytes for info in store.objects()) == stats.used


@pytest.mark.parametrize("value", [{"a": 1}, np.zeros(100)], ids=["in the index", "with extent"])
def test_full_table_of_objects_gives_up_one_for_one(make_store: MakeStore, value: Any) -> None:
    """Where `max_objects` is what is short, one object makes room for one."""
    store = make_store(capacity="1MiB", max_objects=10, on_full="evict")
    refs = [store.put(value) for _ in range(25)]
    assert [ref in store for ref in refs] == [False] * 15 + [True] * 10


def test_put_many_and_allocate_evict_what_they_need(make_store: MakeStore) -> None:
    """A batch and an array built in place find room as a put does."""
    store = filled(make_store)
    store.put_many({"a": BLOCK, "b": BLOCK, "c": BLOCK})
    with store.allocate(1 << 16, np.uint8, key="d") as array:
        array[:] = 7
    assert sorted(store) == sorted([*"abcd", *(str(n) for n in range(4, 16))])
    assert store["d"].sum() == 7 << 16


def test_batch_larger_than_the_store_is_refused_whole(make_store: MakeStore) -> None:
    """A batch does not evict its own objects: it raises, and leaves none of them."""
    store = filled(make_store)
    with pytest.raises(StoreFullError):
        store.put_many({f"new {number}": BLOCK for number in range(17)})
    assert not [key for key in store if key.startswith("new")]
    store["works"] = BLOCK


@lock_free_only
def test_large_object_finds_room_among_small_ones(
    make_store: MakeStore, locked_reads: Flag
) -> None:
    """1 MiB goes into a store full of 64 B to 64 KiB, and nearly everything else stays."""
    chance = random.Random(7)
    store = make_store(capacity="8MiB", on_full="evict", locked_reads=locked_reads)
    while store.stats().free > 1 << 16:
        store.put(np.zeros(1 << chance.randrange(6, 17), np.uint8))
    for _ in range(300):
        store.put(np.zeros(1 << chance.randrange(6, 17), np.uint8))
    before = store.stats()
    ref = store.put(np.ones(MIB, np.uint8))
    after = store.stats()
    assert ref.get().sum() == MIB
    assert after.used >= before.used - (MIB >> 2)
    assert after.objects > before.objects * 0.7


def test_object_of_the_size_of_the_store_takes_all_places(make_store: MakeStore) -> None:
    """The largest object that there may be replaces all others."""
    store = filled(make_store)
    store["all"] = np.ones(MIB, np.uint8)
    assert list(store) == ["all"]


# --- who never goes -------------------------------------------------------------------------------


def test_objects_that_are_looked_at_stay_and_can_be_got(make_store: MakeStore) -> None:
    """Views keep their objects in the store, not only their bytes."""
    store = filled(make_store)
    views = {key: store[key] for key in ("0", "1", "2")}
    store.put_many([BLOCK] * 13)
    assert sorted(store) == ["0", "1", "2"]
    for key, view in views.items():
        assert address(store[key]) == address(view)
        assert (view == int(key)).all()


def test_store_of_objects_that_are_all_looked_at_is_full(make_store: MakeStore) -> None:
    """The error says how much is looked at, by whom, and where to ask on."""
    store = filled(make_store)
    views = [store[str(number)] for number in range(16)]
    with pytest.raises(StoreFullError, match=r"1,048,576 bytes of others, which cannot be evicted"):
        store.put(BLOCK)
    with pytest.raises(StoreFullError) as caught:
        store.put(BLOCK)
    assert f"by pid {os.getpid()}" in str(caught.value)
    assert "`store.why_full(65536)` tells more" in str(caught.value)
    assert (caught.value.stuck, caught.value.pinned) == (MIB, 0)
    assert len(store) == 16
    views.pop(9)
    gc.collect()
    store["new"] = BLOCK
    assert "9" not in store
    del views


def test_room_between_scattered_views_is_found(make_store: MakeStore) -> None:
    """Where no old object has room around it, any other place will do."""
    store = make_store(capacity=2000 * 4096, on_full="evict")
    page = np.zeros(4096, np.uint8)
    refs = [store.put(page) for _ in range(2000)]
    views = [ref.get() for ref in refs[:1500:2]]
    for ref in refs[1500:]:
        ref.get()
    big = store.put(np.ones(300 * 4096, np.uint8))
    assert big.get().all()
    with pytest.raises(StoreFullError):
        store.put(np.ones(600 * 4096, np.uint8))
    assert all(ref in store for ref in refs[:1500:2])
    del views


def test_half_made_object_is_never_evicted(make_store: MakeStore) -> None:
    """What is being built in place keeps its place."""
    store = filled(make_store, 0)
    with store.allocate(1 << 16, np.uint8, key="built") as array:
        array[:] = 1
        store.put_many([BLOCK] * 15)
        store.put_many([BLOCK] * 15)
        array[:] = 2
    assert (store["built"] == 2).all()
