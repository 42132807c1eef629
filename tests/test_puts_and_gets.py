"""What put, get and delete promise about keys, references, options and batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from stores import MIB, used

from shmstore import (
    DeserializationError,
    KeyExistsError,
    ObjectNotFoundError,
    SerializationError,
    Store,
    StoreFullError,
)

# --- put ------------------------------------------------------------------------------------------


def test_put_returns_a_reference_with_key_and_size(store: Store) -> None:
    """The facts of the object are at hand without asking the store."""
    named, anonymous = store.put(np.zeros(10), key="k"), store.put(np.zeros(20))
    assert (named.key, named.nbytes) == ("k", 80)
    assert (anonymous.key, anonymous.nbytes) == (None, 160)


def test_put_on_a_taken_key_replaces_the_object(store: Store) -> None:
    """The key leads to the new object, the old reference to none."""
    old = store.put([1], key="k")
    new = store.put([2], key="k")
    assert store["k"] == new.get() == [2]
    with pytest.raises(ObjectNotFoundError):
        old.get()
    assert len(store) == len(store.objects()) == 1


@pytest.mark.parametrize("value", [1, np.zeros(10), np.zeros(100_000)])
def test_put_without_overwrite_on_a_taken_key_raises_and_takes_nothing(
    store: Store, value: Any
) -> None:
    """What is there stays, in every size."""
    store.put("first", key="k", overwrite=False)
    before = used(store)
    with pytest.raises(KeyExistsError, match="'k'") as caught:
        store.put(value, key="k", overwrite=False)
    assert isinstance(caught.value, KeyError)
    assert caught.value.key == "k"
    assert store["k"] == "first"
    assert used(store) == before


def test_put_without_overwrite_on_a_free_key_stores_the_object(store: Store) -> None:
    """Also where the key was used before."""
    store.put(1, key="k", overwrite=False).delete()
    store.put(2, key="k", overwrite=False)
    assert store["k"] == 2


@pytest.mark.parametrize("nbytes", [8, 1000, 300_000])
def test_put_readonly_gives_read_only_views_whatever_the_flags_were(
    store: Store, nbytes: int
) -> None:
    """The writer decides that nobody writes."""
    array = np.zeros(nbytes, np.uint8)
    for got in (
        store.put(array, readonly=True).get(),
        store.put({"x": array}, readonly=True).get()["x"],
        store.put_many([array], readonly=True)[0].get(),
    ):
        with pytest.raises(ValueError, match="read-only"):
            got[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            got.setflags(write=True)


def test_put_with_readonly_false_keeps_what_was_read_only(store: Store) -> None:
    """The flag of the object is the stricter one."""
    array = np.zeros(10)
    array.flags.writeable = False
    assert not store.put(array, readonly=False).get().flags.writeable


def test_put_many_of_a_mapping_names_the_objects(store: Store) -> None:
    """One reference per key."""
    refs = store.put_many({"a": 1, "b": np.arange(3)})
    assert list(refs) == ["a", "b"]
    assert refs["a"].get() == store["a"] == 1
    assert refs["b"].key == "b"
    assert store["b"].tolist() == [0, 1, 2]


def test_put_many_of_a_sequence_keeps_the_order(store: Store) -> None:
    """Any iterable will do; the objects are anonymous."""
    refs = store.put_many(iter([1, "two", np.zeros(200_000)]))
    assert [ref.key for ref in refs] == [None] * 3
    assert store.get_many(refs)[:2] == [1, "two"]
    assert len(store) == 0
    assert store.put_many([]) == []
    assert store.put_many({}) == {}


def test_put_many_without_room_for_the_last_stores_none(store: Store) -> None:
    """All or nothing, and what was there before stays."""
    store.put_many({"a": "old", "b": "old"})
    before = store.stats()
    with pytest.raises(StoreFullError):
        store.put_many({"a": np.zeros(MIB, np.uint8), "c": np.zeros(7 * MIB // 2, np.uint8)})
    assert dict(store) == {"a": "old", "b": "old"}
    assert store.stats() == before


def test_put_many_without_overwrite_stores_none_if_one_key_is_taken(store: Store) -> None:
    """All or nothing."""
    store["b"] = "old"
    with pytest.raises(KeyExistsError) as caught:
        store.put_many({"a": 1, "b": 2}, overwrite=False)
    assert caught.value.key == "b"
    assert dict(store) == {"b": "old"}


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [5, b"bytes", ("a",), 1.0])
def test_key_that_is_no_string_raises_type_error(store: Store, key: Any) -> None:
    """Everywhere a key is given."""
    for call in (
        lambda: store.put(1, key=key),
        lambda: store.put_many({key: 1}),
        lambda: store.allocate(3, key=key),
        lambda: store.get(key),
        lambda: store.get(key, None),
        lambda: store.delete(key),
        lambda: store.discard(key),
        lambda: store.info(key),
        lambda: store.__getitem__(key),
        lambda: store.pop(key, None),
    ):
        with pytest.raises(TypeError, match="key"):
            call()
    assert key not in store
    assert store.objects() == []


def test_reference_in_place_of_a_key_is_told_that_only_a_key_will_do(store: Store) -> None:
    """Where no reference is taken none is asked for."""
    ref = store.put(1)
    for call in (
        lambda: store.put(1, key=ref),  # type: ignore[arg-type]
        lambda: store.put_many({ref: 1}),  # type: ignore[dict-item]
        lambda: store.allocate(3, key=ref),  # type: ignore[arg-type]
        lambda: store.wait([ref]),  # type: ignore[list-item]
        lambda: list(store.as_completed([ref])),  # type: ignore[list-item]
        lambda: store.pop(ref),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"expected a key \(str\), not ObjectRef: <"):
            call()
    with pytest.raises(TypeError, match=r"expected a prefix of keys \(str\), not ObjectRef: <"):
        store.watch(ref)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "/", "../x", "a\0b", "ä", "\N{SNOWMAN}" * 341, "k" * 1024])
def test_key_may_be_any_text_up_to_its_limit(store: Store, key: Any) -> None:
    """Keys are no paths: nothing in them is special."""
    store[key] = key
    assert store[key] == key
    assert list(store) == [key]
    assert store.info(key).key == key


@pytest.mark.parametrize("key", ["k" * 1025, "\N{SNOWMAN}" * 342, "\ud800"])
def test_key_too_long_or_not_encodable_raises_value_error(store: Store, key: Any) -> None:
    """The limit is told, and nothing is stored."""
    with pytest.raises(ValueError, match="key"):
        store[key] = 1
    assert store.objects() == []


# --- get ------------------------------------------------------------------------------------------


def test_get_of_a_missing_key_raises_object_not_found(store: Store) -> None:
    """As a dict would, with the key."""
    with pytest.raises(ObjectNotFoundError, match="'nowhere'") as caught:
        store.get("nowhere")
    assert isinstance(caught.value, KeyError)
    assert caught.value.key == "nowhere"


def test_get_with_default_returns_it_only_where_nothing_is_stored(store: Store) -> None:
    """None is a default, and None is a value."""
    store["nothing"] = None
    gone = store.put(1)
    gone.delete()
    assert store.get("nothing", "default") is None
    assert store.get("nowhere", None) is None
    assert store.get(gone, "default") == "default"
    assert store.get("nowhere", default=5) == 5


def test_get_many_keeps_the_order_and_fills_in_the_default(store: Store) -> None:
    """References and keys may be mixed."""
    ref = store.put("anonymous")
    store["a"] = "named"
    assert store.get_many(["a", ref, "a"]) == ["named", "anonymous", "named"]
    assert store.get_many(["a", "b"], None) == ["named", None]
    assert store.get_many([]) == []
    with pytest.raises(ObjectNotFoundError):
        store.get_many(["a", "b"])


@pytest.mark.parametrize("target", [5, None, b"k", ("k",), object()])
def test_target_that_is_neither_reference_nor_key_raises_type_error(
    store: Store, target: Any
) -> None:
    """No guess is made."""
    for call in (store.get, store.delete, store.discard, store.info, store.who_pins):
        with pytest.raises(TypeError, match=r"expected a key \(str\) or an ObjectRef, not "):
            call(target)


def test_mode_that_is_unknown_raises_value_error(store: Store) -> None:
    """By every way to an object; the good ones are named."""
    ref = store.put(np.zeros(3), key="k")
    for call in (partial(store.get, "k"), ref.get, partial(store.get_many, ["k"])):
        with pytest.raises(ValueError, match="private"):
            call(mode="bogus")


def test_serializers_of_a_put_choose_the_family(store: Store) -> None:
    """An array may go through pickle where that is asked for."""
    array = np.arange(3)
    assert store.info(store.put(array)).serializer == "custom"
    ref = store.put(array, serializers=("pickle",))
    assert store.info(ref).serializer == "pickle"
    assert ref.get().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown-family"):
        store.put(array, serializers=("unknown-family",))
    with pytest.raises(SerializationError):
        store.put({}, serializers=("custom",))


@pytest.mark.parametrize("value", [{"small": 1}, {"large": np.zeros(100_000)}])
def test_deserializers_of_a_get_refuse_a_pickle_by_name(store: Store, value: Any) -> None:
    """A reader may decide to run no code of others; nothing stays pinned."""
    ref = store.put(value, key="k")
    for call in (partial(store.get, "k"), ref.get):
        with pytest.raises(DeserializationError, match="pickle"):
            call(deserializers=("custom", "msgpack"))
    assert store.get("k", deserializers=("pickle",)).keys() == value.keys()
    assert ref.info().pinned_by == ()


# --- delete ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, np.zeros(10), np.zeros(100_000)])
def test_delete_takes_the_object_away_by_key_and_by_reference(store: Store, value: Any) -> None:
    """Gone for new readers at once, and its memory with it."""
    for target in ("key", "ref"):
        ref = store.put(value, key="k")
        store.get("k")
        store.delete("k" if target == "key" else ref)
        assert "k" not in store
        assert ref not in store
        for again in ("k", ref):
            with pytest.raises(ObjectNotFoundError):
                store.get(again)
            with pytest.raises(ObjectNotFoundError):
                store.delete(again)
    assert used(store) == 0


def test_discard_tells_whether_there_was_something(store: Store) -> None:
    """Deleting twice is no error here."""
    ref = store.put(1, key="k")
    assert store.discard("k") is True
    assert store.discard("k") is False
    assert store.discard(ref) is False


def test_delete_many_counts_what_was_there(store: Store) -> None:
    """Keys and references, each object once."""
    refs = store.put_many({"a": 1, "b": 2, "c": 3})
    assert store.delete_many(["a", refs["a"], refs["b"], "nowhere"]) == 2
    assert list(store) == ["c"]
    assert store.delete_many([]) == 0


def test_delete_many_with_a_wrong_target_deletes_nothing(store: Store) -> None:
    """All targets are looked at before the first is deleted."""
    store["a"] = 1
    with pytest.raises(TypeError):
        store.delete_many(["a", 5])
    assert list(store) == ["a"]
