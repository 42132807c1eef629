"""What grows with the number of objects, and what does not: counted, never timed."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import MakeStore

from shmstore import Store, _recovery
from shmstore._memory import layout as L

FEW, MANY = 1000, 9000


def calls_of(work: Callable[[], object]) -> int:
    """Return how many calls a function makes, of Python and of C."""
    calls = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def _fill(store: Store, count: int) -> Store:
    """Put named and nameless objects, in slots and in extents, and delete every third."""
    array = np.arange(20)
    store.put_many({f"key-{n}": array if n % 2 else n for n in range(count // 2)})
    refs = store.put_many([array] * (count - count // 2))
    store.delete_many([f"key-{n}" for n in range(0, count // 2, 3)])
    store.delete_many(refs[::3])
    return store


@pytest.fixture
def growth(make_store: MakeStore) -> Callable[[Callable[[Store], object]], float]:
    """Give a function that returns the calls which something makes per object."""
    few, many = _fill(make_store(), FEW), _fill(make_store(), MANY)

    def measure(work: Callable[[Store], object]) -> float:
        counts = [calls_of(lambda store=store: work(store)) for store in (few, many)]
        return (counts[1] - counts[0]) / (len(many.objects()) - len(few.objects()))

    return measure


def _mend(store: Store) -> None:
    session: Any = store._session
    session.lock.run(_recovery.mend, session)


def _check_without_headers(store: Store) -> None:
    from shmstore import _check

    session: Any = store._session
    assert session.lock.run(_check._check, session) == []


@pytest.mark.parametrize(
    ("work", "most"),
    [
        (_mend, 0.1),
        (Store.recover, 1.5),
        (len, 0.001),
        (Store.stats, 0.001),
        (_check_without_headers, 0.1),
        (lambda store: next(iter(store)), 0.1),
    ],
    ids=["mend", "recover", "len", "stats", "check under the lock", "first key"],
)
def test_calls_per_object_are_few_or_none(
    growth: Callable[..., float], work: Callable[[Store], object], most: float
) -> None:
    """A recovery takes a checksum of each; the others do nothing for each object."""
    growth(work)  # what is deleted has been reclaimed afterwards, by those who do
    assert growth(work) <= most


def test_iteration_holds_no_lock(make_store: MakeStore) -> None:
    """Between two keys anything can be done to the store."""
    store = _fill(make_store(), 300)
    session: Any = store._session
    seen = []
    for key in store:
        assert not session.lock._thread
        store[key] = "other"
        store[f"new-{key}"] = 1
        seen.append(key)
    assert len(set(seen)) == len(seen) == 100


def test_iteration_takes_little_memory_per_object(make_store: MakeStore) -> None:
    """Keys are read when they are wanted; what is kept is a few words for each."""
    store = make_store()
    store.put_many({f"key-{n}": n for n in range(MANY)})
    next(iter(store))
    tracemalloc.start()
    try:
        last = None
        for key in store:
            last = key
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last == f"key-{MANY - 1}"
    assert peak / MANY < 200


def test_check_holds_the_lock_for_no_header(make_store: MakeStore) -> None:
    """Headers are parsed while others work; what then seems wrong is looked at under the lock."""
    store = _fill(make_store(), 300)
    session: Any = store._session
    real, held = session.lock.run, []

    def run(step: Any, *args: Any) -> Any:
        held.append(step.__name__)
        return real(step, *args)

    session.lock.run = run
    assert store.check() == []
    assert held == ["_check"]
    slot = store.info("key-1").slot
    at = session.slots.state_index(slot)
    session.words[at + L.S_CREATED_NS] += 1
    assert [finding.invariant for finding in store.check()] == [5]
    assert held == ["_check", "pins_by_slot", "_check", "_look_again"] or "_look_again" in held
    session.words[at + L.S_CREATED_NS] -= 1


def test_default_store_holds_a_million_objects(make_store: MakeStore) -> None:
    """The index has addresses for them, and pages only for those that are there."""
    store = make_store()
    session: Any = store._session
    assert store.stats().max_objects >= 1_000_000
    _fill(store, FEW)
    index = (store.path / "index").stat()
    assert index.st_size >= 1_000_000 * L.SLOT_NBYTES
    assert index.st_blocks * 512 < 2 << 20
    assert session.index.geometry.max_nodes > 2_000_000
