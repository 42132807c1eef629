"""A view is sent to another process although its owner has deleted the object without the lock."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest
from spares import TOGETHER, filled, make_quick
from stores import MakeStore, StartPython, lock_free_only

from shmstore import ObjectNotFoundError, Store, _traveling, tickets
from shmstore._catalog import states

RECEIVER = """
import pickle
import shmstore
from shmstore import _traveling
store = shmstore.Store.attach(path, readonly=readonly)
for _ in range(10):
    number, sent = input().split()
    view = _traveling.arrive(*pickle.loads(bytes.fromhex(sent)))
    print("got", flush=True)
    input()
    assert (view == int(number)).all(), (view, number)
    del view
    print("same", flush=True)
"""


@lock_free_only  # under the lock nothing is kept
@pytest.mark.parametrize("readonly", [False, True])
def test_view_of_what_its_owner_has_taken_back_is_kept_where_it_arrives(
    make_store: MakeStore, start_python: StartPython, *, readonly: bool
) -> None:
    """The sender lets go and fills all memory that nobody looks at; the receiver sees no change."""
    store = make_quick(make_store)
    child = start_python(RECEIVER, path=str(store.path), readonly=readonly)
    for number in range(10):
        ref = store.put(filled(number))
        view = ref.get()
        ref.delete()
        assert states.state_of(store._session.slots.word(ref._slot)) == states.SPARE
        referred = _traveling.refer(view, keep=False)
        assert referred is not None
        assert child.ask(f"{number} {pickle.dumps(referred[1]).hex()}") == "got"
        del view
        gc.collect()
        for value in range(2 * TOGETHER):
            store.put(filled(100 + value)).delete()
        assert child.ask() == "same"
    child.end()
    assert not store.check()


@pytest.mark.parametrize("slot", [-1, 1 << 40, 1 << 70])
def test_place_that_no_store_has_is_missed_and_nothing_is_blamed(store: Store, slot: int) -> None:
    """Others may send anything."""
    view, hold = tickets.deposit(store, np.zeros(50_000))  # no copy
    ticket = hold.ticket()
    assert ticket is not None
    with pytest.raises(ObjectNotFoundError):
        tickets.redeem(ticket._replace(slot=slot))
    function, (place, *rest) = _traveling.refer(store.put(np.zeros(5000)).get()) or pytest.fail(
        "no view"
    )
    _traveling.sent.forget()
    with pytest.raises(ObjectNotFoundError):
        function((*place[:3], slot, place[-1]), *rest)
    assert (view == 0).all()
    hold.ref.delete()
