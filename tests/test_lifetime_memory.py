"""The memory of what was deleted is used again, as soon as the last view of it has died."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from derivations import DERIVATIONS, EXPECTED, N
from stores import MIB, RunPython, address, reclaim_at_once

from shmstore import Store, StoreFullError


@pytest.mark.parametrize("nbytes", [64, 8000, 300_000])
def test_memory_freed_last_is_given_out_first(store: Store, nbytes: int) -> None:
    """Warm pages first: the next object of the size lies where the last one lay."""
    reclaim_at_once(store)
    refs = [store.put(np.zeros(nbytes, np.uint8)) for _ in range(5)]
    places = [address(ref.get()) for ref in refs]
    assert len(set(places)) == 5
    for victim in (1, 3):
        refs[victim].delete()
        refs[victim] = store.put(np.ones(nbytes, np.uint8))
        assert address(refs[victim].get()) == places[victim]


@pytest.mark.parametrize("nbytes", [64, 8000, 300_000])
@pytest.mark.parametrize("name", ["itself", "slice of slice", "memoryview", "frombuffer"])
def test_memory_under_a_view_is_not_given_out_until_the_view_has_died(
    store: Store, nbytes: int, name: str
) -> None:
    """Not a moment before, and at the next put afterwards."""
    reclaim_at_once(store)
    array = np.resize(EXPECTED, nbytes // 8)
    ref = store.put(array)
    view = DERIVATIONS[name](store.get(ref)) if nbytes == N * 8 else store.get(ref)[:]
    place = address(np.asarray(view))
    ref.delete()
    for _ in range(5):
        with store.put(np.zeros_like(array)) as other:
            assert address(other.get()) != place
    np.testing.assert_array_equal(np.asarray(view), array)
    del view
    gc.collect()
    with store.put(np.zeros_like(array)) as other:
        assert address(other.get()) == place


def test_memory_of_an_object_overwritten_in_turn_is_the_same_few_extents(store: Store) -> None:
    """A key that is put again and again does not wander through the store."""
    places = set()
    for value in range(100):
        store["k"] = np.full(10_000, value, np.uint8)
        places.add(address(store["k"]))
    waiting = store._session.most_doomed // 10_000 + 1
    assert len(places) <= waiting + 3


def test_store_filled_by_views_of_deleted_objects_is_full_until_they_die(store: Store) -> None:
    """Pinned memory is not free; it comes back without another call."""
    views = []
    for value in range(4):
        with store.put(np.full(MIB, value, np.uint8)) as ref:
            views.append(ref.get())
    with pytest.raises(StoreFullError):
        store.put(np.zeros(MIB, np.uint8))
    assert [view[-1] for view in views] == [0, 1, 2, 3]
    del views[2]
    store.put(np.zeros(MIB, np.uint8))
    with pytest.raises(StoreFullError):
        store.put(np.zeros(MIB, np.uint8))
    assert [view[-1] for view in views] == [0, 1, 3]


def test_get_on_one_object_never_pins_another(store: Store) -> None:
    """Of many neighbours exactly those are pinned that are looked at."""
    refs = [store.put([np.zeros(100), np.ones(200)]) for _ in range(50)]
    views = {number: refs[number].get() for number in (0, 7, 49)}
    pinned = [number for number, ref in enumerate(refs) if ref.info().pinned_by]
    assert pinned == [0, 7, 49]
    (nbytes,) = {ref.info().stored_nbytes for ref in refs}
    store.delete_many(refs)
    assert store.stats().used == 3 * nbytes
    del views[7]
    gc.collect()
    assert store.stats().used == 2 * nbytes


def test_get_of_an_object_without_buffers_pins_nothing(store: Store) -> None:
    """What is copied out needs no promise, however large."""
    store.update(small={"a": 1}, large=["text" * 10_000])
    got = [store["small"], store["large"]]
    assert store.stats().pinned == 0
    assert len(got) == 2


# --- many -----------------------------------------------------------------------------------------


MANY = """
import gc, os, resource
import numpy as np, shmstore
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
count = 100_000
with shmstore.Store.create(capacity="64MiB") as store:
    before = len(os.listdir("/proc/self/fd"))
    refs = []
    for start in range(0, count, 1000):
        refs += store.put_many([np.full(8, start + number) for number in range(1000)])
    views = [ref.get() for ref in refs[::5]]
    assert len(store.objects()) == count
    assert all(view[7] == 5 * number for number, view in enumerate(views))
    assert store.clients()[0].pins == count // 5
    assert len(os.listdir("/proc/self/fd")) <= before
    store.delete_many(refs)
    assert store.stats().reclaimable == store.stats().used == 64 * count // 5
    assert views[count // 10][0] == count // 2
    del views
    gc.collect()
    assert store.stats().used == 0
    assert store.check() == []
"""


@pytest.mark.slow
def test_hundred_thousand_objects_and_many_views_need_no_descriptors(
    run_python: RunPython, root: Path
) -> None:
    """With 64 descriptors at most: an object is no file."""
    run_python(MANY)
    assert list(root.iterdir()) == []


MANY_PRIVATE = """
import gc, os, resource
import numpy as np, shmstore
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with shmstore.Store.create(capacity="64MiB") as store:
    refs = store.put_many([np.full(200_000, number, np.uint8) for number in range(200)])
    views = [store.get(ref, mode="private") for ref in refs for _ in range(3)]
    for view in views:
        view[::4096] += 1
    assert len(os.listdir("/proc/self/fd")) < 40
    assert all(view[0] == number // 3 + 1 for number, view in enumerate(views))
    assert all(view[1] == number // 3 for number, view in enumerate(views))
    del views, view
    gc.collect()
    store.delete_many(refs)
    assert store.stats().used == 0
"""


def test_hundreds_of_private_mappings_need_no_descriptors(run_python: RunPython) -> None:
    """A mapping holds no file open."""
    run_python(MANY_PRIVATE)


def test_view_taken_out_and_dropped_many_times_leaves_nothing(store: Store) -> None:
    """No cell, no object, no byte is lost by ten thousand gets."""
    store["k"] = EXPECTED
    store["d"] = {"a": EXPECTED, "b": np.zeros(3)}
    store.get("k"), store.get("d")
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5000):
        store["k"], store["d"]
    gc.collect()
    assert len(gc.get_objects()) <= before + 50
    assert store.stats().pinned == 0
