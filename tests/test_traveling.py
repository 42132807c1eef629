"""Views of stored objects, sent to other processes as references."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, address, forks, lock_free_only, used

import shmstore
from shmstore import ObjectNotFoundError, Store, StoreNotFoundError, _traveling

MOST_NBYTES = 300  # of a reference, with a path as long as those of the tests

pytestmark = [forks, pytest.mark.usefixtures("process_helpers")]


@pytest.fixture(autouse=True)
def forgotten(make_store: MakeStore) -> Iterator[None]:
    """Let go of what was sent, before the stores are looked at whether they are clean."""
    yield
    _traveling.sent.forget()


def a_view(store: Store) -> np.ndarray:
    """Return a view of 80 kB that can be written. No fixture, which would outlive the test."""
    return store.put(np.arange(10_000.0).reshape(100, 100)).get()


def dumps(obj: Any) -> bytes:
    """Pickle as multiprocessing does."""
    return bytes(ForkingPickler.dumps(obj))


VIEWS = {
    "whole": lambda a: a,
    "slice": lambda a: a[3:50:2],
    "column": lambda a: a[:, 7],
    "transpose": lambda a: a.T,
    "backward": lambda a: a[::-1, ::-3],
    "reshape": lambda a: a.reshape(50, -1)[1],
    "one": lambda a: a[5, 5:6],
    "dtype": lambda a: a.view("u1")[:, 3:],
    "broadcast": lambda a: np.broadcast_to(a[0], (3, 100)),
    "memoryview": lambda a: np.asarray(memoryview(a)[10:20]),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_view_arrives_as_the_same_view(store: Store, make: Any) -> None:
    """It has the same memory, shape, strides, type and flag, and is sent in few bytes."""
    view = a_view(store)
    part = make(view)
    sent = dumps(part)
    assert len(sent) < MOST_NBYTES
    arrived = pickle.loads(sent)
    # What is read-only lies on the mapping that cannot be written.
    assert (address(arrived) == address(part)) == part.flags.writeable
    np.testing.assert_array_equal(arrived, part)
    assert (arrived.shape, arrived.strides) == (part.shape, part.strides)
    assert (arrived.dtype, arrived.flags.writeable) == (part.dtype, part.flags.writeable)


def test_readonly_view_arrives_readonly(store: Store) -> None:
    """By the mode it was got in, by its own flag, or because it was put so."""
    view = a_view(store)
    frozen = view[1:]
    frozen.flags.writeable = False
    key_view = store.get(store.put(view, readonly=True))
    for each in (frozen, key_view, store.get(store.put(view), mode="readonly")):
        arrived = pickle.loads(dumps(each))
        assert not arrived.flags.writeable
        np.testing.assert_array_equal(arrived, each)


def test_view_inside_of_an_object_is_sent_by_reference(store: Store) -> None:
    """Buffers of a pickle are views, too; so are structured ones."""
    table = np.zeros(1000, [("a", "i4"), ("b", "f8")])
    stored = store.put({"x": np.arange(1000), "t": table}).get()
    sent = dumps([stored["x"][::2], {"t": stored["t"][5:]}])
    assert len(sent) < 3 * MOST_NBYTES
    numbers, others = pickle.loads(sent)
    assert address(numbers) == address(stored["x"])
    assert others["t"].dtype == table.dtype
    assert address(others["t"]) == address(stored["t"][5:])


def test_memoryview_travels_as_a_view(store: Store) -> None:
    """One that lies elsewhere cannot be pickled, as ever."""
    view = a_view(store)
    arrived = pickle.loads(dumps(memoryview(view)[3:5]))
    assert type(arrived) is memoryview
    assert address(np.asarray(arrived)) == address(view[3:5])
    with pytest.raises(TypeError, match="cannot pickle 'memoryview' object"):
        dumps(memoryview(b"elsewhere"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1000),
        np.arange(1000)[::2],
        np.zeros((10, 10)).T,
        np.array([{}, None]),
        np.array(1),
    ],
    ids=["own", "strided", "transpose", "objects", "scalar"],
)
def test_array_elsewhere_travels_as_before(store: Store, array: np.ndarray) -> None:
    """Its bytes are the same as without a store."""
    assert store.path.exists()
    assert dumps(array) == pickle.dumps(array, 4)


def test_private_and_copied_arrays_travel_with_their_data(store: Store) -> None:
    """What was written to them is nobody else's."""
    ref = store.put(np.zeros(100_000))
    for mode in ("private", "copy"):
        array = store.get(ref, mode=mode)
        array[0] = 1
        arrived = pickle.loads(dumps(array))
        assert (arrived[0], address(arrived) != address(ref.get())) == (1, True)


def test_plain_pickles_hold_the_data(store: Store) -> None:
    """They may go to a file, or to another machine; unless they are asked for otherwise."""
    view = a_view(store)
    assert len(pickle.dumps(view)) > view.nbytes
    assert len(shmstore.dumps_by_reference([view, "word"])) < MOST_NBYTES
    arrived, word = pickle.loads(shmstore.dumps_by_reference([view, "word"]))
    assert (address(arrived), word) == (address(view), "word")


def double(array: np.ndarray) -> float:
    """Write in place; return how much there is."""
    array *= 2
    return float(array.sum())


def answer(pipe: Connection, queue: Any) -> None:
    """Double what comes through a queue, until None comes."""
    while (array := queue.get()) is not None:
        pipe.send((double(array), len(dumps(array))))


@lock_free_only
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_views_cross_queues_pipes_and_pools(method: str, make_store: MakeStore) -> None:
    """The other process works on the object itself, whatever its start method."""
    context: Any = multiprocessing.get_context(method)
    store = make_store()
    view = store.put(np.ones((4, 1000))).get()
    ours, theirs = context.Pipe()
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(theirs, queue))
    process.start()
    for part in view[:2]:
        queue.put(part)
        total, nbytes = ours.recv()
        assert (total, nbytes < MOST_NBYTES) == (2000, True)
    queue.put(None)
    process.join()
    for each in (ours, theirs, queue):
        each.close()
    with context.Pool(1) as pool:
        assert pool.map(double, [view[2]]) == [2000]
        pool.close()
        pool.join()
    with futures.ProcessPoolExecutor(1, context) as executor:
        assert executor.submit(double, view[3]).result() == 2000
    assert view.sum() == 8000


def test_reference_to_a_deleted_object_raises_our_error(store: Store) -> None:
    """Once nobody keeps it; and when its store is gone, the error says that."""
    ref = store.put(np.arange(1000))
    sent = dumps(ref.get()[1:])
    ref.delete()
    _traveling.sent.forget()
    gc.collect()
    with pytest.raises(ObjectNotFoundError, match="deleted"):
        pickle.loads(sent)
    with Store.create(capacity="1MiB") as other:
        late = dumps(other.put(np.arange(1000)).get())
    with pytest.raises(StoreNotFoundError):
        pickle.loads(late)


def test_deleted_object_is_kept_while_its_message_is_on_its_way(store: Store) -> None:
    """The sender's view and name for it may be gone: it is found, and then it goes."""
    ref = store.put(np.arange(50_000))
    sent = dumps(ref.get()[10:])
    ref.delete()
    gc.collect()
    arrived = pickle.loads(sent)
    _traveling.sent.forget()
    store.put(np.zeros(100_000)).delete()
    assert arrived[0] == 10
    assert arrived.sum() == np.arange(10, 50_000).sum()
    assert used(store) > 0
    del arrived
    assert used(store) == 0


def test_what_was_sent_is_kept_for_a_bounded_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next message that is sent after it lets go of it."""
    first, second = store.put(np.arange(1000)), store.put(np.arange(1000))
    monkeypatch.setattr(_traveling, "KEEP_S", -1.0)
    dumps(first.get())
    dumps(second.get())
    gc.collect()
    assert not first.info().pinned_by
    assert second.info().pinned_by


@lock_free_only
def test_store_that_is_closed_lets_go_of_what_was_sent(make_store: MakeStore) -> None:
    """A process that has left is no client any more."""
    store = make_store()
    with Store.attach(store.path, readonly=True) as other:
        ref = store.put(np.arange(1000))
        dumps(other.get(ref))
        assert len(store.clients()) == 2
    assert len(store.clients()) == 1


def test_pin_of_the_sender_must_be_the_one_that_was_sent(store: Store) -> None:
    """Another view of the same deleted object does not do: nobody saw it pinned all the time."""
    ref = store.put(np.arange(1000))
    view = ref.get()
    function, (place, pin, *rest) = _traveling.refer(view, keep=False) or (None, (None, None))
    ref.delete()
    row, serial, cell, since = pin  # type: ignore[misc]
    for wrong in ((row, serial, cell, since + 1), (row, serial + 1, cell, since), (99, 0, 0, 0.0)):
        with pytest.raises(ObjectNotFoundError):
            function(place, wrong, *rest)  # type: ignore[misc]
    assert address(function(place, pin, *rest)) == address(view)  # type: ignore[misc]


@pytest.mark.parametrize("first", ["shmstore", "multiprocessing"])
def test_views_travel_whichever_module_is_imported_first(first: str) -> None:
    """The other may be imported when the store is open already, and is not imported by it."""
    late = "import multiprocessing.reduction" if first == "shmstore" else ""
    early = "import multiprocessing.reduction" if first == "multiprocessing" else ""
    code = f"""
import sys, numpy as np, shmstore
{early}
with shmstore.Store.create(capacity="1MiB") as store:
    view = store.put(np.arange(10_000)).get()
    assert bool({early!r}) == ("multiprocessing" in sys.modules)
    {late}
    print(len(sys.modules["multiprocessing.reduction"].ForkingPickler.dumps(view)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < MOST_NBYTES
