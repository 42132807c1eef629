"""Stores that set nothing aside, or not any more: they take what they say, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from spares import MANY, TOGETHER, filled, kept_slots, spare_slots
from stores import MIB, MakeStore, in_child

from shmstore import Store, StoreClosedError, StoreFullError


def test_last_slots_of_a_small_store_are_not_set_aside(make_store: MakeStore) -> None:
    """A store takes as many objects as it says."""
    store = make_store(max_objects=100)
    refs = [store.put(number) for number in range(100)]
    assert spare_slots(store) == 0
    assert [ref.get() for ref in refs] == list(range(100))
    with pytest.raises(StoreFullError):
        store.put(100)


def test_objects_of_a_store_without_room_to_keep_any_are_put_under_the_lock(
    make_store: MakeStore,
) -> None:
    """No client keeps more than a part of the capacity."""
    store = make_store(max_objects=MANY, capacity=MIB)
    for number in range(3 * TOGETHER):
        store.put(filled(number)).delete()
    assert kept_slots(store) == 0
    assert not store.check()


@pytest.mark.parametrize("value", [1, filled(1)], ids=["in a slot", "with an extent"])
def test_put_into_a_store_that_is_destroyed_meanwhile_is_refused(
    make_store: MakeStore, value: Any
) -> None:
    """Also without the lock, with memory at hand, nobody puts into a store that has ended."""
    store = make_store(max_objects=MANY, capacity=64 * MIB)
    for ref in [store.put(value) for _ in range(2 * TOGETHER)]:
        ref.delete()
    session: Any = store._session
    assert bool(session.spares.count) == session.quick
    in_child(lambda: Store.attach(store.path).destroy())
    with pytest.raises(StoreClosedError):
        store.put(value)
    store.close()
