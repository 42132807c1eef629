"""Objects with extents come and go without the lock, in memory that a client keeps for itself."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers
from spares import (
    TOGETHER,
    N,
    check_empty,
    filled,
    have_extents,
    kept_slots,
    lock_holds,
    make_quick,
    slot_states,
    with_extents,
)
from stores import MakeStore, address, in_threads, lock_free_only

from shmstore import Store, StoreClosedError, _puts, _session, _spares
from shmstore._catalog import states
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned

pytestmark = lock_free_only  # under the lock nothing is kept


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Give a store in which this process keeps some extents of one size, which nobody looks at."""
    return with_extents(make_store)


def test_puts_and_deletes_take_the_lock_once_in_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For new generations; neither to find memory nor to give it back."""
    holds = lock_holds(store, monkeypatch)
    for number in range(1000):
        ref = store.put(filled(number))
        assert (ref.get() == number).all()
        store.delete(ref)
    assert 0 < len(holds) <= 1000 // 50
    assert not store.check()


@pytest.mark.parametrize("nbytes", [200_000, 800_000])
def test_where_only_few_can_be_kept_they_are_filled_too(
    store: Store, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    """Of large objects there are never as many as share a look otherwise."""
    array = np.ones(nbytes, np.uint8)
    store.trim()
    for _ in range(9):
        store.put(array).delete()
    holds = lock_holds(store, monkeypatch)
    for _ in range(90):
        store.put(array).delete()
    assert len(holds) <= 5
    store.trim()
    assert len(holds) > 0  # it is counted indeed


def test_memory_under_a_view_is_not_filled_until_the_view_has_died(store: Store) -> None:
    """Whoever looks, and however often the owner puts."""
    ref = store.put(filled(-1))
    view = ref.get()
    place = address(view)
    ref.delete()
    for number in range(5 * TOGETHER):
        with store.put(filled(number)) as other:
            assert address(other.get()) != place
    assert (view == -1).all()
    del view
    gc.collect()
    places = set()
    for number in range(5 * TOGETHER):
        with store.put(filled(number)) as other:
            places.add(address(other.get()))
    assert place in places


def test_where_all_are_looked_at_other_memory_is_found(store: Store) -> None:
    """A put never waits for a view."""
    refs = [store.put(filled(number)) for number in range(2 * TOGETHER)]
    views = [ref.get() for ref in refs]
    for ref in refs:
        ref.delete()
    others = [store.put(filled(-number)) for number in range(3 * TOGETHER)]
    assert [int(view[-1]) for view in views] == list(range(2 * TOGETHER))
    assert [int(ref.get()[0]) for ref in others] == [-number for number in range(3 * TOGETHER)]
    assert not store.check()


def test_header_that_is_all_there_is_leaves_the_slots_beside_it_alone(store: Store) -> None:
    """It is too long for the slot, so that it is what lies in the extent, in one piece."""

    class Told:
        pass

    told = {"text": "x" * 1000}
    with own_handlers():
        register_serialization(Told, lambda _: (told, []), lambda header, _: header["text"])
        for _ in range(2 * TOGETHER):
            store.put(Told()).delete()
        kept = kept_slots(store)
        refs = [store.put(Told()) for _ in range(3)]
        assert kept_slots(store) == kept - 3  # they were filled without the lock
        assert [ref.get() for ref in refs] == ["x" * 1000] * 3
    assert not store.check()


def test_put_that_fails_while_it_fills_leaves_nothing(store: Store) -> None:
    """The memory is kept for the next put of that size."""

    class Plan:
        fails = False

    filling: list[bool] = []

    def write(target: memoryview) -> None:
        target[:5] = b"12345"
        filling.append(states.FILLING in slot_states(store))
        if Plan.fails:
            raise OSError("no")

    with own_handlers():
        register_serialization(Plan, lambda _: ({}, [Planned(100_000, write)]), lambda *_: None)
        for _ in range(TOGETHER):
            store.put(Plan()).delete()
        before, Plan.fails = kept_slots(store), True
        for _ in range(3):
            with pytest.raises(OSError, match="no"):
                store.put(Plan())
    gc.collect()
    assert kept_slots(store) == before
    assert filling[-3:] == [True] * 3
    assert states.FILLING not in slot_states(store)
    check_empty(store)
    assert not store.check()


def test_handle_that_is_closed_in_the_midst_of_a_put_says_so(make_store: MakeStore) -> None:
    """Nothing is written any more once the process has left."""
    store = make_quick(make_store)
    other = Store.attach(store.path)
    have_extents(other)
    session: Any = other._session
    words, session.words = session.words, _session._Closed()
    with pytest.raises(StoreClosedError):
        other.put(filled(1))
    session.words = words
    other.close()
    assert not store.check()


def test_threads_do_not_fill_the_same_memory(store: Store) -> None:
    """Each object is what its thread has put, small or large enough to let others run."""
    wrong: list[Any] = []

    def work(name: int) -> None:
        for number in range(400):
            size = N if number % 2 else 60_000
            ref = store.put(np.full(size, name * 1000 + number))
            if not (ref.get() == name * 1000 + number).all():
                wrong.append((name, number))
            ref.delete()

    in_threads(*(partial(work, name) for name in range(4)))
    assert not wrong
    assert store.stats().objects == 0
    assert not store.check()


def test_sizes_that_never_come_again_are_not_kept_for_ever(store: Store) -> None:
    """Neither their memory nor the lists of their slots grow without end."""
    for size in range(1000, 3000):
        store.put(np.zeros(size)).delete()
    session: Any = store._session
    assert len(session.spares.piles) <= _spares._MOST_SIZES
    assert session.spares.nbytes <= session.most_spare
    check_empty(store)
    have_extents(store)


@pytest.mark.parametrize(
    "value", [b"x" * 1024, "text" * 300, list(range(500)), {"some": [0.5] * 200}, bytearray(3000)]
)
def test_values_that_a_slot_is_too_small_for_are_put_without_the_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    """They are pickled once, and are what they were."""
    for ref in [store.put(value) for _ in range(2 * TOGETHER)]:
        ref.delete()
    holds, dumped = lock_holds(store, monkeypatch), []
    dump = _puts.dump
    monkeypatch.setattr(_puts, "dump", lambda x: dumped.append(x) or dump(x))
    for _ in range(90):
        ref = store.put(value)
        got = ref.get()
        assert (got, type(got)) == (value, type(value))
        ref.delete()
    assert len(holds) <= 5
    assert len(dumped) == 90
    assert not store.check()
