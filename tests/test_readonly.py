"""A read-only handle sees everything and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shmstore import (
    ReadOnlyStoreError,
    Store,
)


@pytest.fixture
def reader(store: Store) -> Iterator[Store]:
    """Give a read-only handle on a store with an array "a" and a dict "d"."""
    store["a"] = np.arange(1000)
    store["d"] = {"x": 1}
    with Store.attach(store.name, readonly=True) as handle:
        yield handle


def test_readonly_handle_reads_everything(store: Store, reader: Store) -> None:
    """Objects, also those put later, sums, lists and checks."""
    assert reader.readonly
    assert reader["a"].sum() == 499500
    assert reader["d"] == {"x": 1}
    ref = store.put(np.ones(300_000), key="later")
    assert reader.get(ref).sum() == 300_000
    assert reader["later"].all()
    assert list(reader) == ["a", "d", "later"]
    assert reader.stats().objects == 3
    assert reader.check() == []
    assert {client.readonly for client in reader.clients()} == {True, False}
    assert reader.info("a").key == "a"
    assert reader.get("nowhere", 5) == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.put(1),
        lambda s: s.put(np.zeros(100_000), key="k"),
        lambda s: s.put_many([1]),
        lambda s: s.delete("a"),
        lambda s: s.discard("a"),
        lambda s: s.pop("a"),
        lambda s: s.clear(),
        lambda s: s.update(a=1),
        lambda s: s.setdefault("new", 1),
        lambda s: s.allocate(3).__enter__(),
        lambda s: s.recover(),
        lambda s: s.destroy(),
        lambda s: s._ref_of("a").delete() if False else s.delete_many(["a"]),
    ],
)
def test_readonly_handle_refuses_every_change(reader: Store, call: Callable[..., Any]) -> None:
    """The error derives from PermissionError and says how the handle was attached."""
    with pytest.raises(ReadOnlyStoreError, match="readonly=True") as caught:
        call(reader)
    assert isinstance(caught.value, PermissionError)
    assert sorted(reader) == ["a", "d"]


def test_readonly_handle_gives_views_that_cannot_be_written(store: Store, reader: Store) -> None:
    """Even of arrays that were writeable; private ones may be, for this reader alone."""
    for mode in ("shared", "readonly"):
        view = reader.get("a", mode=mode)
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
    private = reader.get("a", mode="private")
    private[:] = 0
    assert store["a"].sum() == 499500


def test_readonly_handle_pins_what_it_looks_at(store: Store, reader: Store) -> None:
    """Its seat is the one thing that it writes."""
    view = reader["a"]
    del store["a"]
    store.put_many([np.zeros(8000, np.uint8)] * 400)
    assert view.sum() == 499500
    assert store.stats().reclaimable == 8000
    del view
    assert store.stats().reclaimable == 0
