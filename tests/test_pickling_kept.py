"""A pickler is kept for the next put: nothing of one object may reach another."""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from stores import MakeStore, in_threads

from shmstore import SerializationError, Store
from shmstore.serialization import pickling


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Give a store, in a process that has pickled more than plain values."""
    store = make_store()
    store.put([{1, 2}, object])
    return store


def put_and_get(store: Store, x: Any) -> Any:
    """Return what comes back."""
    ref = store.put(x)
    got = store.get(ref)
    store.delete(ref)
    return got


class Putting:
    """Puts another object, and gets it, while it is pickled."""

    store: Store

    def __reduce__(self) -> Any:
        assert put_and_get(self.store, {"inner": [1, 2]}) == {"inner": [1, 2]}
        return list, ((3,),)


def test_object_that_puts_while_it_is_pickled_comes_back(store: Store) -> None:
    """The pickler that is at work is nobody else's meanwhile."""
    Putting.store = store
    for _ in range(5):
        assert put_and_get(store, {"a": "text", "b": Putting()}) == {"a": "text", "b": [3]}


def test_object_after_one_that_failed_is_whole(store: Store) -> None:
    """What had been written of the one is not part of the next."""
    for _ in range(5):
        with pytest.raises(SerializationError):
            store.put(["before", threading.Lock()])
        assert put_and_get(store, ["after"]) == ["after"]


class Late:
    """A reduction of it is registered when picklers are kept already."""


@pytest.fixture
def late() -> Iterator[None]:
    """Forget the reduction afterwards."""
    yield
    copyreg.dispatch_table.pop(Late, None)


@pytest.mark.usefixtures("late")
def test_reduction_that_is_registered_later_is_used(store: Store) -> None:
    """A pickler that was made before knows nothing of it."""
    assert put_and_get(store, [1]) == [1]
    assert pickling._Kept.idle
    copyreg.pickle(Late, lambda _: (str, ("reduced",)))  # type: ignore[arg-type]
    assert put_and_get(store, [Late()]) == ["reduced"]


def test_threads_that_put_at_once_get_their_own(store: Store) -> None:
    """Each has a pickler for itself as long as it needs it."""
    Putting.store = store
    done: list[int] = []

    def work(number: int) -> None:
        for turn in range(200):
            x = {"thread": number, "turn": turn, "text": "x" * number}
            assert put_and_get(store, [x, Putting()]) == [x, [3]]
        done.append(number)

    in_threads(*[partial(work, number) for number in range(4)])
    assert sorted(done) == [0, 1, 2, 3]
