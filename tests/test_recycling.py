"""Deleted objects whose extents are filled anew without passing through the allocator."""

from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore, address, reclaim_at_once

import shmstore._space
from shmstore import Store
from shmstore._memory import layout as L
from shmstore._memory.allocator import Allocator
from shmstore._sharing.clients import Clients


def _fill(store: Store, count: int, nbytes: int) -> list[Any]:
    return [store.put(np.full(nbytes, number, np.uint8)) for number in range(count)]


def test_extent_of_the_same_size_is_filled_anew(store: Store, monkeypatch: Any) -> None:
    """The allocator is not asked at all where objects of one size come and go."""
    reclaim_at_once(store)
    refs = _fill(store, 3, 5000)
    monkeypatch.delattr(Allocator, "allocate")
    monkeypatch.delattr(Allocator, "release")
    for value in range(20):
        refs.pop(0).delete()
        refs.append(store.put(np.full(5000, value, np.uint8)))
    monkeypatch.undo()
    assert [int(ref.get()[-1]) for ref in refs] == [17, 18, 19]
    assert store.check() == []
    assert store.stats().used == 3 * 5056


def test_extent_of_another_size_is_given_back(store: Store) -> None:
    """What does not fit is merged with its neighbours, so that nothing is left in pieces."""
    reclaim_at_once(store)
    refs = _fill(store, 8, 5000)
    for ref in refs[:7]:
        ref.delete()
    with store.put(np.zeros(30_000, np.uint8)) as ref:
        assert address(ref.get()) < address(refs[7].get())
    assert store.check() == []


def test_extent_that_somebody_looks_at_is_passed_over(store: Store) -> None:
    """The next one that nobody looks at is taken; nothing under a view changes."""
    reclaim_at_once(store)
    refs = _fill(store, 6, 5000)
    views = {number: refs[number].get() for number in (0, 1, 3)}
    places = [address(ref.get()) for ref in refs]
    for ref in refs:
        ref.delete()
    taken = [address(store.put(np.full(5000, 99, np.uint8)).get()) for _ in range(3)]
    assert taken == [places[number] for number in (2, 4, 5)]
    assert [int(view[0]) for view in views.values()] == [0, 1, 3]
    assert store.check() == []


def test_little_is_kept_until_more_was_deleted(make_store: MakeStore) -> None:
    """One barrier serves many puts: deleted objects wait until it is worth it."""
    store = make_store(capacity=64 * MIB)
    session: Any = store._session
    session.most_spare = waiting = 0
    for _ in range(200):
        with store.put(np.zeros(10_000, np.uint8)):
            pass
        waiting = max(waiting, session.words[L.W_DOOMED_BYTES])
    assert 0 < waiting <= session.most_doomed + 2 * 10_048


def test_barriers_are_shared_by_many_puts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was seen without a pin after the barrier stays so: no second look is needed."""
    barriers = []
    real = shmstore._space.membarrier
    monkeypatch.setattr(shmstore._space, "membarrier", lambda: barriers.append(real()))
    looks = []
    pinned = Clients.pinned
    monkeypatch.setattr(Clients, "pinned", lambda self: looks.append(1) or pinned(self))
    reclaim_at_once(store)
    for ref in _fill(store, 50, 5000):
        ref.delete()
    del barriers[:], looks[:]
    refs = _fill(store, 50, 5000)
    assert len(looks) <= 2
    assert len(barriers) <= 2
    assert [int(ref.get()[0]) for ref in refs] == list(range(50))


def test_memory_is_wiped_at_once_where_that_was_asked_for(make_store: MakeStore) -> None:
    """A store with zero_on_free leaves nothing waiting for the next put, and recycles nothing."""
    store = make_store(capacity=MIB, zero_on_free=True)
    session: Any = store._session
    for _ in range(3):
        ref = store.put(np.full(5000, 7, np.uint8))
        place = ref.info().slot
        ref.delete()
        store.put(b"")
        assert session.words[L.W_DOOMED_BYTES] == 0, place


def test_small_store_is_filled_to_the_last_byte_after_deletes(make_store: MakeStore) -> None:
    """What waits is given back when room is needed, whatever its size."""
    store = make_store(capacity=MIB)
    refs = _fill(store, 64, MIB // 64)
    for _ in range(3):
        for ref in refs:
            ref.delete()
        refs = _fill(store, 64, MIB // 64)
        for ref in refs:
            ref.delete()
        refs = [store.put(np.zeros(MIB, np.uint8))]
    assert store.check() == []
