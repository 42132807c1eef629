"""References as arguments and results of dask's tasks, on every scheduler."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore, lock_free_only

dask = pytest.importorskip("dask")

from dask.base import tokenize

from shmstore import ObjectNotFoundError, Store, StoreNotFoundError, tickets
from shmstore.integrations.dask import Reference, WrongDomainError, refer

pytestmark = [lock_free_only, pytest.mark.usefixtures("process_helpers")]
COUNT = 100_000


def total(reference: Reference) -> float:
    """Add up what a reference leads to."""
    return float(reference.get().sum())


def passed_on(reference: Reference) -> Reference:
    """Return the argument as the result."""
    return reference


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that makes this process one of another host."""

    def move() -> None:
        monkeypatch.setattr("shmstore.integrations.dask._references.boot_id", lambda: "other boot")

    return move


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_reference_goes_through_tasks_of_every_scheduler(store: Store, scheduler: str) -> None:
    """It is an argument, a result, and an argument again."""
    reference = refer(store.put(np.ones(COUNT)))
    result = dask.delayed(total)(dask.delayed(passed_on)(reference))
    options: dict[str, Any] = {}
    if scheduler == "processes":
        options["pool"] = ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"))
    try:
        assert result.compute(scheduler=scheduler, **options) == COUNT
    finally:
        if options:
            options["pool"].shutdown()


def test_reference_when_pickled_is_short_and_equal(store: Store) -> None:
    """What it leads to stays where it is."""
    reference = refer(store.put(np.ones(COUNT)))
    stream = pickle.dumps(reference)
    arrived = pickle.loads(stream)
    assert len(stream) < 400
    assert arrived == reference
    assert hash(arrived) == hash(reference)
    assert np.shares_memory(arrived.get(), reference.get())


def test_reference_has_one_token_per_object(store: Store) -> None:
    """Dask takes equal references for the same argument, and other ones for others."""
    ref = store.put(np.ones(COUNT))
    same = tokenize(refer(ref)), tokenize(pickle.loads(pickle.dumps(refer(ref))))
    assert same[0] == same[1] != tokenize(refer(store.put(np.ones(COUNT))))


def test_reference_to_what_is_no_reference_is_refused(store: Store) -> None:
    """Before it is sent to a task."""
    store["key"] = values = np.arange(3)
    for ref in (5, "key", values):
        with pytest.raises(TypeError, match=f"expected an ObjectRef.*not {type(ref).__name__}: "):
            refer(ref)  # type: ignore[arg-type]


def test_reference_on_another_host_says_so(store: Store, elsewhere: Any) -> None:
    """The error tells where the object is, and what can be done."""
    stream = pickle.dumps(refer(store.put(np.ones(COUNT))))
    elsewhere()
    with pytest.raises(WrongDomainError, match="another host or container") as caught:
        pickle.loads(stream).get()
    assert isinstance(caught.value, StoreNotFoundError)
    assert caught.value.path == str(store.path)


def test_reference_with_fallback_carries_its_data_to_another_host(
    store: Store, elsewhere: Any
) -> None:
    """Whoever cannot see the store uses what came along."""
    stream = pickle.dumps(refer(store.put(np.ones(COUNT)), inline_fallback=True))
    assert len(stream) > 8 * COUNT
    elsewhere()
    arrived = pickle.loads(stream)
    assert arrived.get().sum() == COUNT
    assert pickle.loads(pickle.dumps(arrived)).get().sum() == COUNT


def test_reference_with_fallback_at_home_drops_what_came_along(store: Store) -> None:
    """There it is a view of the store, as without."""
    reference = refer(store.put(np.ones(COUNT)), inline_fallback=True)
    arrived = pickle.loads(pickle.dumps(reference))
    assert np.shares_memory(arrived.get(), reference.get())


def test_reference_to_what_is_gone_says_which(make_store: MakeStore) -> None:
    """A deleted object, and a store that has ended, are two errors."""
    store = make_store(capacity=MIB)
    reference = refer(store.put(np.ones(10)))
    reference.ref.delete()
    with pytest.raises(ObjectNotFoundError):
        reference.get()
    store.close()
    with pytest.raises(WrongDomainError):
        refer(reference.ref).get()


def test_domains_of_two_stores_differ(make_store: MakeStore) -> None:
    """The same store has the same domain for every handle."""
    one, other = make_store(capacity=MIB), make_store(capacity=MIB)
    with Store.attach(one.path) as again:
        assert tickets.domain_of(again) == tickets.domain_of(one) != tickets.domain_of(other)
    assert Path(one.path).name == one.name
