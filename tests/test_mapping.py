"""The named objects of a store as a mapping."""

from __future__ import annotations

import random
from collections.abc import MutableMapping
from typing import Any

import pytest

from shmstore import Store


def test_store_is_a_mutable_mapping_that_agrees_with_a_dict(store: Store) -> None:
    """A thousand random operations, each with the same outcome on both."""
    random_ = random.Random(11)
    model: dict[str, int] = {}
    assert isinstance(store, MutableMapping)

    def outcome(mapping: Any, name: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(mapping, name)(*arguments)
        except KeyError:
            return KeyError

    for step in range(1000):
        key = f"key {random_.randrange(20)}"
        name, arguments = random_.choice(
            [
                ("__setitem__", (key, step)),
                ("__setitem__", (key, step)),
                ("__getitem__", (key,)),
                ("__delitem__", (key,)),
                ("__contains__", (key,)),
                ("__len__", ()),
                ("pop", (key,)),
                ("pop", (key, "default")),
                ("get", (key, "default")),
                ("setdefault", (key, step)),
                ("update", ({key: step, "more": -step},)),
            ]
        )
        assert outcome(store, name, arguments) == outcome(model, name, arguments)
        assert dict(store) == dict(store.items()) == model
    store.put("anonymous objects do not count")
    assert sorted(store.keys()) == sorted(model)
    assert sorted(store.values()) == sorted(model.values())
    store.clear()
    assert (len(store), len(store.objects())) == (0, 1)


def test_keys_come_in_the_order_of_their_last_put(store: Store) -> None:
    """The oldest object first; an overwritten one is new."""
    for key in "cab":
        store[key] = 1
    store["a"] = 2
    assert list(store) == list(store.keys()) == ["c", "b", "a"]
    assert store.popitem() == ("a", 2)
    assert store.popitem() == ("b", 1)
    assert store.popitem() == ("c", 1)
    with pytest.raises(KeyError):
        store.popitem()


def test_update_takes_mappings_pairs_and_names(store: Store) -> None:
    """As dict.update does, with self and other as keys too."""
    store.update({"a": 1})
    store.update([("b", 2)], c=3)
    store.update(other=4)
    store.update()
    assert dict(store) == {"a": 1, "b": 2, "c": 3, "other": 4}


def test_setdefault_returns_what_is_stored(store: Store) -> None:
    """Both times the object of the store, not the argument."""
    assert store.setdefault("k", [1]) == [1]
    assert store.setdefault("k", [2]) == [1]
    assert store.setdefault("none") is None
    assert store["none"] is None


def test_iteration_while_objects_come_and_go_sees_those_that_stay(store: Store) -> None:
    """No error, none twice, none that stays is missed."""
    store.update({f"stays {i}": i for i in range(50)})
    seen = []
    for number, key in enumerate(store):
        seen.append(key)
        store[f"new {number}"] = 1
        store.discard(f"new {number - 1}")
    assert sum(key.startswith("stays") for key in seen) == 50
    assert len(set(seen)) == len(seen)


def test_views_of_keys_and_items_compare_like_those_of_a_dict(store: Store) -> None:
    """Set operations on keys work as everywhere."""
    store.update(a=1, b=2)
    assert store.keys() & {"a", "z"} == {"a"}
    assert len(store.items()) == len(store.values()) == 2
    assert ("a", 1) in list(store.items())
    assert "a" in store.keys()  # noqa: SIM118 - the view is what is tested
