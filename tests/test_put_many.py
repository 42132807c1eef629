"""Batches that are published in one step."""

import pickle
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import MIB, MakeStore

from shmstore import (
    CorruptStoreError,
    KeyExistsError,
    ReadOnlyStoreError,
    SerializationError,
    Store,
    StoreFullError,
)
from shmstore._memory import layout as L


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcdefgh"), st.integers() | st.text(), max_size=8),
            st.lists(st.sampled_from("abcdefgh"), max_size=4),
        ),
        max_size=12,
    )
)
def test_batches_and_deletes_behave_like_a_dict(steps: list[Any]) -> None:
    """Slots that were freed, in any order, and fresh ones are filled together."""
    with Store.create(capacity="1MiB", max_objects=24) as store:
        expected: dict[str, Any] = {}
        for batch, gone in steps:
            refs = store.put_many(batch)
            assert {key: ref.get() for key, ref in refs.items()} == batch
            expected.update(batch)
            for key in gone:
                assert store.discard(key) == (key in expected)
                expected.pop(key, None)
            assert dict(store.items()) == expected
        assert store.check() == []
        assert len(store) == len(expected)


def test_batch_that_finds_too_few_slots_changes_nothing(make_store: MakeStore) -> None:
    """All or none: not one object of it is there, and the next batch that fits is taken."""
    store = make_store(capacity=MIB, max_objects=10)
    kept = store.put_many(range(6))
    with pytest.raises(StoreFullError):
        store.put_many({str(number): number for number in range(5)})
    assert list(store) == []
    assert store.stats().objects == 6
    refs = store.put_many(range(4))
    assert [ref.get() for ref in [*kept, *refs]] == [*range(6), *range(4)]
    assert store.check() == []


def test_batch_with_a_key_that_is_taken_changes_nothing(store: Store) -> None:
    """Nor does it if only the last of its keys is."""
    store["taken"] = 1
    with pytest.raises(KeyExistsError):
        store.put_many({"free": 2, "taken": 3}, overwrite=False)
    assert dict(store.items()) == {"taken": 1}


@pytest.mark.parametrize(
    ("batch", "which", "path"),
    [
        ({"g": 1, "h": threading.Lock()}, "the object 'h' of the batch: ", "objects['h']"),
        ([1, {"a": threading.Lock()}], "object 1 of the batch: ", "objects[1]['a']"),
    ],
)
def test_object_that_cannot_be_serialized_is_named(
    store: Store, batch: Any, which: str, path: str
) -> None:
    """By its key, or by where it stands; nothing is put."""
    with pytest.raises(SerializationError, match=f"^{which}could not serialize") as caught:
        store.put_many(batch)
    assert caught.value.facts["path"] == path
    assert pickle.loads(pickle.dumps(caught.value)).facts == caught.value.facts
    assert store.objects() == []


def test_list_of_free_slots_with_a_loop_is_refused(store: Store) -> None:
    """No slot is given to two objects of a batch; afterwards the list has been made anew."""
    session: Any = store._session
    store.delete_many(store.put_many(range(4)))
    first = session.words[L.W_FREE_SLOT] - 1
    second = session.words[session.slots.state_index(first) + L.S_LINK] - 1
    session.words[session.slots.state_index(second) + L.S_LINK] = first + 1
    with pytest.raises(CorruptStoreError, match="loop"):
        store.put_many(range(10))
    refs = store.put_many(range(10))
    assert [ref.get() for ref in refs] == list(range(10))
    assert store.check() == []


def test_empty_batch_is_nothing(store: Store) -> None:
    """No object, no error."""
    assert store.put_many([]) == []
    assert store.put_many({}) == {}


def test_references_of_a_batch_never_lead_to_later_objects(store: Store) -> None:
    """Each slot got a generation of its own."""
    refs = store.put_many(range(20))
    assert store.delete_many(refs[::2]) == 10
    again = store.put_many(range(100, 110))
    assert [store.get(ref, None) for ref in refs[:4]] == [None, 1, None, 3]
    assert [ref.get() for ref in again] == list(range(100, 110))
    assert len({(ref._slot, ref._generation) for ref in [*refs, *again]}) == 30


def test_batch_counts_the_time_to_live_of_each(store: Store) -> None:
    """What is inserted together expires like what is put alone."""
    refs = store.put_many([1, 2], ttl=1000)
    ends = [ref.info().expires for ref in refs]
    assert all(end is not None and 990 < end - time.time() <= 1000 for end in ends)


def test_readonly_handle_puts_no_batch(store: Store) -> None:
    """Not an empty index changes."""
    with Store.attach(store.path, readonly=True) as reader, pytest.raises(ReadOnlyStoreError):
        reader.put_many([1, 2])
