"""A view, and whatever was made from it, is valid while it lives."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from derivations import DERIVATIONS, EXPECTED, LIBRARY_OF, N, every_derivation, numbers_in
from stores import (
    MIB,
    MakeStore,
    StartPython,
    exit_code,
    fill_up,
    forked,
    forks,
    in_threads,
    lock_free_only,
)

from shmstore import Store

pytestmark = forks


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Import what is there, and keep it out of the many collections that these tests ask for."""
    for name in LIBRARY_OF.values():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


# --- what can happen to the object meanwhile ------------------------------------------------------


FILLER = """
import numpy as np, shmstore
while True:
    faulthandler.dump_traceback_later(60, exit=True)
    store = shmstore.Store.attach(input())
    for size in (200_000, 9600):
        refs = []
        try:
            while len(refs) < 500:
                refs.append(store.put(np.full(size, 255, np.uint8)))
        except shmstore.StoreFullError:
            pass
        store.delete_many(refs)
    store.close()
    print("filled", flush=True)
"""


@pytest.fixture(scope="module")
def fill(module_child: Callable[[str], Any]) -> Callable[[Path], None]:
    """Give a function that lets another process fill a store to the brim, several times."""
    child = module_child(FILLER)

    def fill(path: Path) -> None:
        assert child.ask(str(path)) == "filled"

    return fill


def delete(store: Store) -> None:
    """Take the object away."""
    del store["k"]


def overwrite(store: Store) -> None:
    """Put another object of the same size in its place, again and again."""
    for value in range(10):
        store["k"] = np.full(N, -value)


EVENTS: dict[str, Callable[[Store], None]] = {"delete": delete, "overwrite": overwrite}


@pytest.mark.parametrize("event", EVENTS)
@lock_free_only
@every_derivation
def test_derived_object_stays_valid_when_the_object_goes(
    store: Store, fill: Callable[[Path], None], name: str, event: str
) -> None:
    """With the array gone that get has returned, while another process fills the store."""
    store["k"] = EXPECTED
    derived = DERIVATIONS[name](store["k"])
    gc.collect()
    EVENTS[event](store)
    fill(store.path)
    assert store.stats().reclaimable == N * 8
    assert numbers_in(derived) == list(range(N))
    del derived
    gc.collect()
    store.discard("k")
    assert store.stats().used == 0


@lock_free_only
@every_derivation
def test_derived_object_stays_valid_after_close(
    make_store: MakeStore, fill: Callable[[Path], None], name: str
) -> None:
    """The handle may go before the view; others delete the object and fill the store."""
    store = make_store(persist=True)
    store["k"] = EXPECTED
    path = store.path
    derived = DERIVATIONS[name](store["k"])
    store.close()
    with Store.attach(path) as again:
        del again["k"]
    fill(path)
    assert numbers_in(derived) == list(range(N))
    Store.attach(path).destroy()


@lock_free_only
@every_derivation
def test_derived_object_stays_valid_after_destroy(store: Store, name: str) -> None:
    """The store may go before the view, with all its files."""
    store["k"] = EXPECTED
    store["other"] = np.zeros(MIB, np.uint8)
    derived = DERIVATIONS[name](store["k"])
    store.destroy()
    with Store.create() as another:
        another["k"] = np.full(N, -1)
        assert numbers_in(derived) == list(range(N))


@lock_free_only
@every_derivation
def test_derived_object_pins_until_it_dies(store: Store, name: str) -> None:
    """One pin as long as it lives, none afterwards."""
    store["k"] = EXPECTED
    derived = DERIVATIONS[name](store["k"])
    gc.collect()
    assert store.info("k").pinned_by == (os.getpid(),)
    del derived
    gc.collect()
    assert store.info("k").pinned_by == ()


@lock_free_only
@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
@pytest.mark.parametrize("nbytes", [800, 300_000])
def test_parts_of_an_object_live_each_for_itself(
    store: Store, fill: Callable[[Path], None], mode: str, nbytes: int
) -> None:
    """Of a dict of arrays each is valid for as long as it lives, in any order of dying."""
    expected = {name: np.full(nbytes // 8, number) for number, name in enumerate("abcd")}
    for order in ("abcd", "dbca"):
        ref = store.put(expected)
        parts = store.get(ref, mode=mode)
        ref.delete()
        parts = {name: parts[name][1:][:-1] for name in parts}
        gc.collect()
        for name in order:
            del parts[name]
            fill(store.path)
            assert all(np.array_equal(parts[left], expected[left][1:-1]) for left in parts)
        gc.collect()
        assert store.stats().used == 0


# --- how views die -------------------------------------------------------------------------------


def test_view_dropped_in_another_thread_gives_its_pin_back(store: Store) -> None:
    """Finalizers run wherever the last reference goes."""
    store["k"] = np.zeros(1000)
    views = [store["k"] for _ in range(100)]

    def drop() -> None:
        with contextlib.suppress(IndexError):
            while True:
                views.pop()

    in_threads(*[drop] * 4)
    assert store.info("k").pinned_by == ()


def test_view_in_a_cycle_with_a_finalizer_is_valid_in_the_finalizer(
    store: Store, fill: Callable[[Path], None]
) -> None:
    """The collector ends the cycle; until then the memory is ours."""
    seen = []

    class Last:
        def __init__(self, view: np.ndarray) -> None:
            self.view = view
            self.itself = self

        def __del__(self) -> None:
            fill(store.path)
            seen.append(self.view.tolist())

    store["k"] = EXPECTED
    last = Last(store["k"][:])
    del store["k"]
    del last
    gc.collect()
    assert seen == [list(range(N))]
    assert store.stats().used == 0


def test_finalizer_that_calls_the_store_works(store: Store) -> None:
    """Nothing is locked while views die."""
    store.update({"k": EXPECTED, "other": EXPECTED})

    class Calls:
        def __init__(self, view: np.ndarray) -> None:
            self.view = view

        def __del__(self) -> None:
            del self.view
            store["from finalizer"] = store["other"][:10]

    calls = Calls(store["k"])
    del calls
    assert store["from finalizer"].tolist() == list(range(10))


# --- others ---------------------------------------------------------------------------------------


OWNER = """
import numpy as np, shmstore
store = shmstore.Store.create("owned", capacity="1MiB")
store["k"] = np.arange(1200)
store["dict"] = {"a": np.arange(50_000)}
print("ready", flush=True)
input()
for _ in range(3):
    store["k"] = np.full(1200, -1)
print("overwritten", flush=True)
input()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_view_stays_valid_when_the_owner_process_goes(
    start_python: StartPython, root: Path, end: str, mode: str
) -> None:
    """However it ends: the memory stays for as long as we look at it."""
    owner = start_python(OWNER)
    owner.hear()
    store = Store.attach("owned")
    view, inner = store.get("k", mode=mode)[:], store.get("dict", mode=mode)["a"]
    assert owner.ask() == "overwritten"
    if end == "kill":
        owner.kill()
    else:
        owner.say()
        owner.end()
    assert view.tolist() == list(range(N))
    np.testing.assert_array_equal(inner, np.arange(50_000))
    store.close()
    assert view.tolist() == list(range(N))
    np.testing.assert_array_equal(inner, np.arange(50_000))
    del view, inner
    gc.collect()
    Store.create("sweep").close()
    assert list(root.iterdir()) == []


@lock_free_only
@every_derivation
def test_derived_object_stays_valid_in_a_forked_child(store: Store, name: str) -> None:
    """The child looks at what it was born with, whatever its parent does to the object."""
    store["k"] = EXPECTED
    wait, go = os.pipe()
    derived = [DERIVATIONS[name](store["k"])]

    def child() -> None:
        os.read(wait, 1)
        assert numbers_in(derived[0]) == list(range(N))

    pid = forked(child)
    derived.clear()
    gc.collect()
    del store["k"]
    assert store.stats().reclaimable == N * 8
    refs = fill_up(store, np.full(N, -1))
    os.write(go, b"x")
    assert exit_code(pid) == 0
    os.close(wait)
    os.close(go)
    store.delete_many(refs)
    assert store.recover().clients == 1
    assert store.stats().used == 0
