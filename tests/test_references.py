"""References and handles travel; a reference never leads to another object."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from stores import HOLD_A_STORE, MakeStore, RunPython, StartPython, used

from shmstore import (
    ObjectNotFoundError,
    ObjectRef,
    Store,
    StoreNotFoundError,
)


def test_reference_pickles_to_about_a_hundred_bytes(make_store: MakeStore) -> None:
    """A reference is cheap to send."""
    ref = make_store("short").put(np.zeros(100_000))
    assert len(pickle.dumps(ref, 5)) < 140


def test_reference_survives_pickling_as_the_same_reference(store: Store) -> None:
    """Equal, with equal hash, and it still works."""
    ref = store.put([1, 2], key="k")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(ref, protocol))
        assert again == ref
        assert hash(again) == hash(ref)
        assert (again.key, again.nbytes, repr(again)) == (ref.key, ref.nbytes, repr(ref))
        assert again.get() == [1, 2]


def test_reference_and_handle_work_in_a_process_that_never_attached(
    store: Store, run_python: RunPython
) -> None:
    """Both attach on arrival."""
    ref = store.put(np.arange(1000), key="k")
    code = """
    assert int(ref.get().sum()) == 499500
    assert ref.info().key == "k"
    assert int(store["k"][7]) == 7
    assert not store.readonly
    store["answer"] = 42
    ref.delete()
    """
    run_python(code, ref=ref, store=store)
    assert store["answer"] == 42
    assert "k" not in store


def test_handle_that_is_read_only_stays_so_when_pickled(store: Store) -> None:
    """Rights do not grow by travelling."""
    with (
        Store.attach(store.name, readonly=True) as reader,
        pickle.loads(pickle.dumps(reader)) as again,
    ):
        assert again.readonly
        assert again == reader
        assert again != store


def test_references_are_equal_where_they_mean_the_same_object(make_store: MakeStore) -> None:
    """Of the same store, slot and life."""
    store = make_store()
    ref, other = store.put(1), store.put(1)
    assert ref == pickle.loads(pickle.dumps(ref))
    assert ref != other
    assert ref != 5
    assert len({ref, other, pickle.loads(pickle.dumps(ref))}) == 2
    elsewhere = make_store().put(1)
    assert elsewhere != ref


def test_reference_cannot_be_changed(store: Store) -> None:
    """Its facts are read-only."""
    ref = store.put(1, key="k")
    for name in ("key", "nbytes", "anything"):
        with pytest.raises(AttributeError):
            setattr(ref, name, 5)


def test_reference_as_context_manager_deletes_at_the_end(store: Store) -> None:
    """Also after an exception, and if it is deleted already."""
    with store.put(np.zeros(1000)) as ref:
        assert isinstance(ref, ObjectRef)
        assert ref in store
    assert ref not in store
    with pytest.raises(ZeroDivisionError), store.put(1) as ref:
        raise ZeroDivisionError
    assert ref not in store
    with store.put(1) as ref:
        ref.delete()
    assert used(store) == 0


@pytest.mark.parametrize("value", [1, np.zeros(10), {"x": np.zeros(100_000)}])
def test_reference_to_a_deleted_object_never_leads_to_another(store: Store, value: Any) -> None:
    """Slots and memory are used again, references are not."""
    refs = []
    for _ in range(50):
        ref = store.put(value)
        ref.get()
        refs.append(pickle.loads(pickle.dumps(ref)))
        ref.delete()
        refs.append(ref)
    store.put(value, key="k")
    slots = {store.info("k").slot}
    assert len(slots) == 1
    for ref in refs:
        assert ref not in store
        assert store.get(ref, "gone") == "gone"
        assert store.discard(ref) is False
        for call in (ref.get, ref.info, ref.delete):
            with pytest.raises(ObjectNotFoundError, match="deleted"):
                call()


def test_reference_of_another_store_is_refused(make_store: MakeStore) -> None:
    """Its slot means something else here."""
    ref = make_store().put(1)
    store = make_store()
    store.put(2)
    for call in (store.get, store.delete, store.info, store.__contains__):
        with pytest.raises(ValueError, match="another store"):
            call(ref)


def test_reference_to_a_store_that_is_gone_raises_store_not_found(make_store: MakeStore) -> None:
    """Also where another store has its name."""
    store = make_store("name")
    ref = store.put(1, key="k")
    store.close()
    with pytest.raises(StoreNotFoundError):
        ref.get()
    with ref:
        pass  # nothing to delete
    again = make_store("name")
    again["k"] = 2
    for call in (ref.get, ref.delete, ref.info):
        with pytest.raises(StoreNotFoundError):
            call()


def test_reference_goes_on_after_the_handle_was_closed(start_python: StartPython) -> None:
    """It attaches the store again by itself."""
    owner = start_python(HOLD_A_STORE, name="theirs", persist=False)
    owner.hear()
    with Store.attach("theirs") as store:
        ref = store.put([1, 2, 3])
    assert ref.get() == [1, 2, 3]
    assert pickle.loads(pickle.dumps(ref)).get() == [1, 2, 3]
    ref.delete()
    owner.say()
    owner.end()
    with pytest.raises(StoreNotFoundError):
        Store.attach("theirs")
