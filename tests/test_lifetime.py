"""A view, and whatever was made from it, is valid while it lives; then its memory is used again."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import (
    MIB,
    MakeStore,
    RunPython,
    StartPython,
    address,
    exit_code,
    fill_up,
    forked,
    lock_free_only,
    reclaim_at_once,
)

from shmstore import Store, StoreFullError

# Python 3.12 and newer warn when a process with threads forks; the libraries here have threads.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

N = 1200
EXPECTED = np.arange(N, dtype=np.int64)


class Labelled(np.ndarray):
    """An array class of a user."""


class Holder:
    """An object that shows an array to NumPy without being one."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__


class Cycle:
    """An array in a reference cycle."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.itself = self


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Import what is there, and keep it out of the many collections that these tests ask for."""
    for name in LIBRARY_OF.values():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


# --- what can be made from an array ---------------------------------------------------------------


def through_pandas_frame(array: np.ndarray) -> Any:
    """Return a frame over the array."""
    import pandas as pd

    frame = pd.DataFrame(array.reshape(-1, 4), copy=False)
    assert np.shares_memory(frame.to_numpy(), array)
    return frame


def through_pandas_series(array: np.ndarray) -> Any:
    """Return a part of a series over the array."""
    import pandas as pd

    series = pd.Series(array, copy=False)
    assert np.shares_memory(series.to_numpy(), array)
    return series.iloc[:]


def through_arrow_buffer(array: np.ndarray) -> Any:
    """Return an Arrow buffer over the array."""
    import pyarrow as pa

    return pa.py_buffer(array).slice(0)


def through_arrow_array(array: np.ndarray) -> Any:
    """Return an Arrow array over the array."""
    import pyarrow as pa

    arrow = pa.array(array)
    assert arrow.buffers()[1].address == array.ctypes.data
    return arrow.slice(0)


def through_arrow_table(array: np.ndarray) -> Any:
    """Return a column of an Arrow table over the array."""
    import pyarrow as pa

    return pa.table({"x": pa.array(array)}).column("x")


def through_torch(array: np.ndarray) -> Any:
    """Return a view of a tensor over the array."""
    import torch

    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    return tensor.view(-1, 4)[:].reshape(-1)


def through_iterator(array: np.ndarray) -> Any:
    """Return an iterator that has begun."""
    items = iter(array)
    return itertools.chain([next(items)], items)


DERIVATIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "itself": lambda a: a,
    "slice of slice": lambda a: a[0:][:N][...],
    "part of part of reshape": lambda a: a.reshape(2, -1)[:].reshape(-1),
    "transpose": lambda a: a.reshape(4, -1).T,
    "ravel": lambda a: a.reshape(4, -1).ravel(),
    "swapped and squeezed": lambda a: a[None, :, None].swapaxes(0, 1).squeeze(),
    "strided": lambda a: np.lib.stride_tricks.as_strided(a, (N,), (8,)),
    "broadcast": lambda a: np.broadcast_to(a, (2, N))[0],
    "view of another type": lambda a: a.view(np.uint8).view(np.int64),
    "field": lambda a: a.view([("x", "i8")])["x"],
    "subclass": lambda a: a.view(Labelled)[:],
    "record array": lambda a: a.view([("x", "i8")]).view(np.recarray).x,
    "masked array": lambda a: np.ma.masked_array(a, copy=False),
    "matrix of chunks": lambda a: np.split(a, 4),
    "flat": lambda a: a.flat,
    "iterator": through_iterator,
    "nditer": np.nditer,
    "asarray": np.asarray,
    "asarray of memoryview": lambda a: np.asarray(memoryview(a)),
    "frombuffer": lambda a: np.frombuffer(a, np.int64),
    "frombuffer of part": lambda a: np.frombuffer(memoryview(a)[:], np.int64),
    "ndarray over memoryview": lambda a: np.ndarray(N, np.int64, buffer=memoryview(a)),
    "memoryview": lambda a: memoryview(a)[:],
    "memoryview cast": lambda a: memoryview(a).cast("B").cast("q")[:],
    "data": lambda a: a.data,
    "dlpack": np.from_dlpack,
    "array interface": lambda a: np.asarray(Holder(a)),
    "pickle buffer": lambda a: pickle.PickleBuffer(a).raw().cast("q"),
    "ctypes": lambda a: np.ctypeslib.as_array(np.ctypeslib.as_ctypes(a)),
    "closure": lambda a: lambda: a,
    "in a cycle": Cycle,
    "pandas frame": through_pandas_frame,
    "pandas series": through_pandas_series,
    "arrow buffer": through_arrow_buffer,
    "arrow array": through_arrow_array,
    "arrow table": through_arrow_table,
    "torch": through_torch,
}


LIBRARY_OF = {"pandas": "pandas", "arrow": "pyarrow", "torch": "torch"}


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Return the mark that leaves a derivation out where its library is not installed."""
    library = LIBRARY_OF.get(name.partition(" ")[0])
    missing = library is not None and importlib.util.find_spec(library) is None
    return [pytest.mark.skipif(missing, reason=f"{library} is not installed")]


every_derivation = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name)) for name in DERIVATIONS]
)


def numbers_in(derived: Any) -> list[int]:
    """Return the numbers that something made from an array shows."""
    if isinstance(derived, Cycle):
        derived = derived.array
    if isinstance(derived, list):
        derived = np.concatenate(derived)
    if callable(derived):
        derived = derived()
    kind = type(derived).__module__.partition(".")[0]
    if kind == "pandas":
        derived = derived.to_numpy().ravel()
    elif kind == "pyarrow":
        is_buffer = type(derived).__name__ == "Buffer"
        derived = np.frombuffer(derived, np.int64) if is_buffer else derived.to_numpy()
    elif isinstance(derived, np.nditer):
        derived.reset()
    elif isinstance(derived, np.ndarray) and derived.ndim == 2:
        derived = derived.T.ravel()
    return [int(number) for number in derived]


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


# --- the memory comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [64, 8000, 300_000])
def test_memory_freed_last_is_given_out_first(store: Store, nbytes: int) -> None:
    """Warm pages first: the next object of the size lies where the last one lay."""
    reclaim_at_once(store)
    refs = [store.put(np.zeros(nbytes, np.uint8)) for _ in range(5)]
    places = [address(ref.get()) for ref in refs]
    assert len(set(places)) == 5
    for victim in (1, 3):
        refs[victim].delete()
        refs[victim] = store.put(np.ones(nbytes, np.uint8))
        assert address(refs[victim].get()) == places[victim]


@pytest.mark.parametrize("nbytes", [64, 8000, 300_000])
@pytest.mark.parametrize("name", ["itself", "slice of slice", "memoryview", "frombuffer"])
def test_memory_under_a_view_is_not_given_out_until_the_view_has_died(
    store: Store, nbytes: int, name: str
) -> None:
    """Not a moment before, and at the next put afterwards."""
    reclaim_at_once(store)
    array = np.resize(EXPECTED, nbytes // 8)
    ref = store.put(array)
    view = DERIVATIONS[name](store.get(ref)) if nbytes == N * 8 else store.get(ref)[:]
    place = address(np.asarray(view))
    ref.delete()
    for _ in range(5):
        with store.put(np.zeros_like(array)) as other:
            assert address(other.get()) != place
    np.testing.assert_array_equal(np.asarray(view), array)
    del view
    gc.collect()
    with store.put(np.zeros_like(array)) as other:
        assert address(other.get()) == place


def test_memory_of_an_object_overwritten_in_turn_is_the_same_few_extents(store: Store) -> None:
    """A key that is put again and again does not wander through the store."""
    places = set()
    for value in range(100):
        store["k"] = np.full(10_000, value, np.uint8)
        places.add(address(store["k"]))
    waiting = store._session.most_doomed // 10_000 + 1
    assert len(places) <= waiting + 3


def test_store_filled_by_views_of_deleted_objects_is_full_until_they_die(store: Store) -> None:
    """Pinned memory is not free; it comes back without another call."""
    views = []
    for value in range(4):
        with store.put(np.full(MIB, value, np.uint8)) as ref:
            views.append(ref.get())
    with pytest.raises(StoreFullError):
        store.put(np.zeros(MIB, np.uint8))
    assert [view[-1] for view in views] == [0, 1, 2, 3]
    del views[2]
    store.put(np.zeros(MIB, np.uint8))
    with pytest.raises(StoreFullError):
        store.put(np.zeros(MIB, np.uint8))
    assert [view[-1] for view in views] == [0, 1, 3]


def test_get_on_one_object_never_pins_another(store: Store) -> None:
    """Of many neighbours exactly those are pinned that are looked at."""
    refs = [store.put([np.zeros(100), np.ones(200)]) for _ in range(50)]
    views = {number: refs[number].get() for number in (0, 7, 49)}
    pinned = [number for number, ref in enumerate(refs) if ref.info().pinned_by]
    assert pinned == [0, 7, 49]
    (nbytes,) = {ref.info().stored_nbytes for ref in refs}
    store.delete_many(refs)
    assert store.stats().used == 3 * nbytes
    del views[7]
    gc.collect()
    assert store.stats().used == 2 * nbytes


def test_get_of_an_object_without_buffers_pins_nothing(store: Store) -> None:
    """What is copied out needs no promise, however large."""
    store.update(small={"a": 1}, large=["text" * 10_000])
    got = [store["small"], store["large"]]
    assert store.stats().pinned == 0
    assert len(got) == 2


def test_view_dropped_in_another_thread_gives_its_pin_back(store: Store) -> None:
    """Finalizers run wherever the last reference goes."""
    store["k"] = np.zeros(1000)
    views = [store["k"] for _ in range(100)]

    def drop() -> None:
        with contextlib.suppress(IndexError):
            while True:
                views.pop()

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


# --- many -----------------------------------------------------------------------------------------


MANY = """
import gc, os, resource
import numpy as np, shmstore
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
count = 100_000
with shmstore.Store.create(capacity="64MiB") as store:
    before = len(os.listdir("/proc/self/fd"))
    refs = []
    for start in range(0, count, 1000):
        refs += store.put_many([np.full(8, start + number) for number in range(1000)])
    views = [ref.get() for ref in refs[::5]]
    assert len(store.objects()) == count
    assert all(view[7] == 5 * number for number, view in enumerate(views))
    assert store.clients()[0].pins == count // 5
    assert len(os.listdir("/proc/self/fd")) <= before
    store.delete_many(refs)
    assert store.stats().reclaimable == store.stats().used == 64 * count // 5
    assert views[count // 10][0] == count // 2
    del views
    gc.collect()
    assert store.stats().used == 0
    assert store.check() == []
"""


def test_hundred_thousand_objects_and_many_views_need_no_descriptors(
    run_python: RunPython, root: Path
) -> None:
    """With 64 descriptors at most: an object is no file."""
    run_python(MANY)
    assert list(root.iterdir()) == []


MANY_PRIVATE = """
import gc, os, resource
import numpy as np, shmstore
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with shmstore.Store.create(capacity="64MiB") as store:
    refs = store.put_many([np.full(200_000, number, np.uint8) for number in range(200)])
    views = [store.get(ref, mode="private") for ref in refs for _ in range(3)]
    for view in views:
        view[::4096] += 1
    assert len(os.listdir("/proc/self/fd")) < 40
    assert all(view[0] == number // 3 + 1 for number, view in enumerate(views))
    assert all(view[1] == number // 3 for number, view in enumerate(views))
    del views, view
    gc.collect()
    store.delete_many(refs)
    assert store.stats().used == 0
"""


def test_hundreds_of_private_mappings_need_no_descriptors(run_python: RunPython) -> None:
    """A mapping holds no file open."""
    run_python(MANY_PRIVATE)


def test_view_taken_out_and_dropped_many_times_leaves_nothing(store: Store) -> None:
    """No cell, no object, no byte is lost by ten thousand gets."""
    store["k"] = EXPECTED
    store["d"] = {"a": EXPECTED, "b": np.zeros(3)}
    store.get("k"), store.get("d")
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5000):
        store["k"], store["d"]
    gc.collect()
    assert len(gc.get_objects()) <= before + 50
    assert store.stats().pinned == 0
