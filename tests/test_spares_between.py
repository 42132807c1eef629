"""What comes in between while a process puts or deletes without the lock.

Between two lines of a put there may be a signal handler, a finalizer, or another thread.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from spares import make_quick, with_slots
from stores import MakeStore, exit_code, forked, lock_free_only

from shmstore import ObjectRef, Store, _puts, _refilling, _spares
from shmstore._memory import layout as L

pytestmark = lock_free_only  # under the lock nothing is set aside


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Give a store of which this process has slots for itself."""
    return with_slots(make_store)


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Let the test say when garbage is collected."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.disable()
    yield
    gc.set_threshold(*threshold)
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("length", [1, 1000], ids=["in slots", "with extents"])
def test_finalizer_that_puts_in_the_midst_of_a_put_gets_a_slot_of_its_own(
    store: Store, length: int
) -> None:
    """Garbage is collected after each number of allocations in turn."""
    own: list[ObjectRef] = []
    mine, its = "m" * length, "i" * length
    for ref in [store.put(mine) for _ in range(40)]:
        ref.delete()

    class Circle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if not own and not store._session.lock._thread:
                own.append(store.put(its))

    kept, put = [], 0
    for later in range(1, 40):
        own.clear()
        Circle()
        kept.append(slice(0, 1))  # the one slice that Python keeps ready
        gc.set_threshold(gc.get_count()[0] + later)
        gc.enable()
        ref = store.put(mine)
        gc.disable()
        gc.collect()
        assert ref.get() == mine
        if own:
            assert own[0].get() == its
            store.delete(own[0])
            put += 1
        store.delete(ref)
    assert put
    assert not store.check()


def test_child_forked_in_the_midst_of_a_put_fills_no_slot_of_its_parent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both go on with the put that a signal handler has forked in."""
    clock, pids = _puts.time_ns, []

    def fork_and_tell() -> int:
        monkeypatch.setattr(_puts, "time_ns", clock)
        pids.append(os.fork())
        if pids[0]:
            assert exit_code(pids[0]) == 0
        return clock()

    monkeypatch.setattr(_puts, "time_ns", fork_and_tell)
    before = store._session.spares.small.slots[store._session.spares.small.top - 1]
    ref = None
    try:
        ref = store.put("put twice")
    finally:
        if not pids[0]:
            os._exit(ref is None or ref._slot == before[0])
    assert ref._slot == before[0]
    assert ref.get() == "put twice"
    assert store.stats().objects == 2
    assert not store.check()


def test_child_forked_while_a_slot_is_filled_publishes_no_slot_of_its_parent(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is about to be published: the child puts the object once more, as its own."""
    store = make_quick(make_store)
    pair = [np.full(3000, 1), np.full(100, 2)]
    for ref in [store.put(pair) for _ in range(40)]:
        ref.delete()
    clock, pids = _refilling.time_ns, []

    def fork_and_tell() -> int:
        monkeypatch.setattr(_refilling, "time_ns", clock)
        pids.append(os.fork())
        if pids[0]:
            assert exit_code(pids[0]) == 0
        return clock()

    monkeypatch.setattr(_refilling, "time_ns", fork_and_tell)
    ref = None
    try:
        ref = store.put(pair)
    finally:
        if not pids[0]:
            os._exit(ref is None)
    assert (ref.get()[0] == 1).all()
    assert store.stats().objects == 2
    assert not store.check()


def test_sizes_that_come_while_it_is_found_out_what_there_is_have_no_pile(store: Store) -> None:
    """What a thread took back there would be in no pile, and counted."""
    session: Any = store._session
    spares = session.spares
    spares.close()
    assert spares.pile(4096) is None
    session.lock.run(_spares.recount, session, session.slots.table())
    assert spares.pile(4096).top == 0
    store.delete(store.put(1))
    assert not store.check()


def test_thread_that_takes_back_while_another_leaves_takes_nothing(
    make_store: MakeStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seat goes between its first look and its first store."""
    first_crc = L.first_crc

    def child() -> None:
        store.put("has slots of its own")
        ref = store.put("stays")
        session: Any = store._session
        spares = session.spares

        def leave(*about: int) -> int:
            monkeypatch.setattr(L, "first_crc", first_crc)
            words = session.words
            assert session.leave_seat()
            session.words = words
            return first_crc(*about)

        monkeypatch.setattr(L, "first_crc", leave)
        assert not _spares.take_back(session, ref._slot, ref._generation)
        assert not spares.count

    assert exit_code(forked(child)) == 0
    assert [info.type for info in store.objects()] == ["str", "str"]
    assert not store.check()


@pytest.mark.parametrize("viewed", [0, 1])
def test_thread_that_looks_for_pins_while_another_counts_anew_fills_nothing_pinned(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, viewed: int
) -> None:
    """It finds as many slots as before, but in another order."""
    store = make_quick(make_store)
    session: Any = store._session
    many = _refilling._SHARED_SLOTS
    refs = [store.put(np.full(5000, number)) for number in range(many)]
    view = refs[viewed].get()
    for ref in reversed(refs):
        ref.delete()
    look = session.clients.pinned_meanwhile

    def look_while_another_counts() -> Any:
        pinned = look()
        counting = threading.Thread(
            target=lambda: session.lock.run(_spares.recount, session, session.slots.table())
        )
        counting.start()
        counting.join()
        return pinned

    monkeypatch.setattr(session.clients, "pinned_meanwhile", look_while_another_counts)
    for number in range(many):
        store.put(np.full(5000, -1 - number))
    assert (view == viewed).all()
    monkeypatch.undo()
    assert not store.check()


def test_slots_that_are_not_what_a_client_tells_of_are_found(store: Store) -> None:
    """Somebody has taken them, and nobody has said so."""
    session: Any = store._session
    assert session.spares.count > 3
    session.lock.run(_spares.give_back_slots, session, 3)
    session.words[session.spares.row + L.C_SPARES] += 2
    [finding] = store.check()
    assert finding.invariant == 10
    assert "slots set aside" in finding.message
    assert finding.offset == (session.spares.row + L.C_SPARES) * L.WORD
    store.recover()
    assert not store.check()
