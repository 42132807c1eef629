"""How a store is left, and what its handles say afterwards."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import HOLD_A_STORE, MakeStore, StartPython

from shmstore import (
    Store,
    StoreClosedError,
    StoreNotFoundError,
)


def test_owner_that_closes_destroys_the_store_for_everyone(
    make_store: MakeStore, root: Path
) -> None:
    """The other handles say so, and nothing is left."""
    owner = make_store("mine")
    other = Store.attach("mine")
    owner.close()
    assert owner.closed
    assert other.closed
    with pytest.raises(StoreClosedError):
        other["word"] = "too late"
    other.close()
    assert list(root.iterdir()) == []


def test_owner_that_closes_is_noticed_by_other_processes(
    start_python: StartPython, root: Path
) -> None:
    """Changes are refused; there is no store that anybody could still join."""
    owner = start_python(HOLD_A_STORE, name="theirs", persist=False)
    owner.hear()
    store = Store.attach("theirs")
    owner.say()
    owner.end()
    with pytest.raises(StoreClosedError, match="destroyed"):
        store["word"] = "too late"
    with pytest.raises(StoreNotFoundError):
        Store.attach("theirs")
    store.close()
    assert list(root.iterdir()) == []


def test_destroy_by_somebody_else_than_the_owner_ends_the_store(
    make_store: MakeStore, root: Path
) -> None:
    """Any handle that may write may destroy."""
    owner = make_store("mine")
    Store.attach("mine").destroy()
    assert owner.closed
    owner.close()
    assert list(root.iterdir()) == []


def test_close_twice_does_nothing_more(store: Store) -> None:
    """Handles may be closed in a finally clause as well."""
    store.close()
    store.close()
    assert store.closed
    assert repr(store) == "<Store closed>"


CALLS: list[Callable[[Store], Any]] = [
    lambda s: s.put(1),
    lambda s: s.put(1, key="k"),
    lambda s: s.put_many([1]),
    lambda s: s.get("k"),
    lambda s: s.get("k", None),
    lambda s: s.get("k", mode="copy"),
    lambda s: s.get_many(["k"]),
    lambda s: s.delete("k"),
    lambda s: s.discard("k"),
    lambda s: s.delete_many(["k"]),
    lambda s: s.allocate(3),
    lambda s: s["k"],
    lambda s: "k" in s,
    len,
    list,
    lambda s: s.pop("k"),
    lambda s: s.setdefault("k", 1),
    lambda s: s.update(k=1),
    lambda s: s.clear(),
    lambda s: s.info("k"),
    lambda s: s.stats(),
    lambda s: s.objects(),
    lambda s: s.clients(),
    lambda s: s.check(),
    lambda s: s.recover(),
    lambda s: s.destroy(),
    lambda s: s.name,
    lambda s: s.path,
    lambda s: s.readonly,
    pickle.dumps,
    lambda s: s.__enter__(),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("end", [Store.close, Store.destroy])
def test_closed_handle_refuses_every_call_with_store_closed(
    store: Store, call: Callable[..., Any], end: Callable[[Store], None]
) -> None:
    """No call works on a store that has been left, also where the object is remembered."""
    store["k"] = 1
    assert store["k"] == 1
    end(store)
    with pytest.raises(StoreClosedError) as caught:
        call(store)
    assert isinstance(caught.value, ValueError)


def test_with_block_closes_also_after_an_error(make_store: MakeStore, root: Path) -> None:
    """The owner's store goes however the block ends."""
    with pytest.raises(ZeroDivisionError), make_store() as store:
        store["x"] = 1 / 0
    assert store.closed
    assert list(root.iterdir()) == []


def test_repr_of_a_live_store_tells_name_and_use(make_store: MakeStore) -> None:
    """What a session at the prompt wants to know."""
    store = make_store("seen")
    store.put(np.zeros(8))
    assert repr(store) == "<Store 'seen' 1 objects, 64 of 4,194,304 bytes>"
