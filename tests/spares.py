"""What a process keeps for its next puts: what the tests of that share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore

from shmstore import ObjectRef, Store, _refilling, _spares
from shmstore._catalog import states
from shmstore._memory import layout as L

# Of so many objects a client gets as many slots for itself as it wants.
MANY = 1 << 20
# Of small extents so many are looked at together.
TOGETHER = _refilling._SHARED_SLOTS
N = 5000
NBYTES = L.align(N * 8)


def make_quick(make_store: MakeStore, max_objects: int = MANY, **options: Any) -> Store:
    """Make a store into which this process puts without the lock."""
    store = make_store(max_objects=max_objects, capacity=64 * MIB, **options)
    if not store._session.quick:
        pytest.skip("this machine has no barrier, so all puts are under the lock")
    return store


def filled(number: int) -> np.ndarray[Any, Any]:
    """Return an array that tells by each element which one it is."""
    return np.full(N, number, np.int64)


def have_slots(store: Store) -> None:
    """Put until slots are set aside for this process."""
    for number in range(3):
        store.delete(store.put(number))
    assert store._session.spares.small.top


def have_extents(store: Store) -> None:
    """Put and delete as many arrays as are looked at together, and one more."""
    for ref in [store.put(filled(number)) for number in range(TOGETHER)]:
        ref.delete()
    store.put(filled(0)).delete()
    assert pile_of(store).sound


def with_slots(make_store: MakeStore) -> Store:
    """Make a store of which this process has slots for itself."""
    store = make_quick(make_store)
    have_slots(store)
    return store


def with_extents(make_store: MakeStore) -> Store:
    """Make a store in which this process keeps extents of one size, which nobody looks at."""
    store = make_quick(make_store)
    have_extents(store)
    return store


def pile_of(store: Store) -> _spares.Pile:
    """Return the slots that this process keeps for arrays of that size."""
    return store._session.spares.piles[NBYTES]


def slot_states(store: Store) -> np.ndarray[Any, Any]:
    """Return the states of all slots that were ever used."""
    return states.states_of(store._session.slots.table()[:, L.S_STATE])


def spare_slots(store: Store) -> int:
    """Return how many slots of the store are set aside and not filled just now, for whomever."""
    return int((slot_states(store) == states.SPARE).sum())


def kept_slots(store: Store) -> int:
    """Return how many slots with extents are set aside, for whomever."""
    table = store._session.slots.table()
    aside = states.are_set_aside(table[:, L.S_STATE])
    return int((aside & (table[:, L.S_NODE] != 0)).sum())


def ref_to(store: Store, slot: int) -> ObjectRef:
    """Return a reference to the object in a slot."""
    session = store._session
    generation = states.generation_of(session.slots.word(slot))
    return ObjectRef(session.uuid, session.path_text, slot, generation, 0)


def check_empty(store: Store) -> None:
    """Fail unless a store says that there is nothing in it."""
    stats = store.stats()
    assert (stats.used, stats.objects, stats.free) == (0, 0, stats.capacity)


def lock_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which each hold of the lock adds what was done."""
    holds: list[Any] = []
    run = store._session.lock.run
    monkeypatch.setattr(
        store._session.lock, "run", lambda *step: holds.append(step[0]) or run(*step)
    )
    return holds
