"""What is said of a store: its objects, its bytes, its clients."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from stores import MIB, StartPython

from shmstore import (
    ObjectNotFoundError,
    Store,
)


def test_info_tells_what_the_object_is_and_who_looks_at_it(store: Store) -> None:
    """By key and by reference the same."""
    before = time.time()
    ref = store.put(np.zeros(100), key="k")
    info = store.info("k")
    assert info == store.info(ref) == ref.info()
    assert (info.key, info.type, info.serializer) == ("k", "numpy.ndarray", "custom")
    assert (info.nbytes, info.stored_nbytes, info.frames) == (800, 832, 1)
    assert (info.owner_pid, info.pinned_by) == (os.getpid(), ())
    assert before - 1 <= info.created <= time.time() + 1
    assert info.age >= 0
    view = store["k"]
    assert store.info("k").pinned_by == (os.getpid(),)
    del view
    assert store.info("k").pinned_by == ()


def test_info_of_something_that_is_gone_raises(store: Store) -> None:
    """As get does."""
    ref = store.put(1, key="k")
    ref.delete()
    for target in ("k", ref):
        with pytest.raises(ObjectNotFoundError):
            store.info(target)
    with pytest.raises(ObjectNotFoundError):
        ref.info()


def test_objects_lists_all_from_the_oldest_to_the_youngest(store: Store) -> None:
    """Named or not, small or large."""
    store["a"] = 1
    store.put(np.zeros(1000))
    store["b"] = {"x": np.zeros(10), "y": np.zeros(20)}
    listed = store.objects()
    assert [(info.key, info.type) for info in listed] == [
        ("a", "int"),
        (None, "numpy.ndarray"),
        ("b", "dict"),
    ]
    assert [info.frames for info in listed] == [1, 1, 3]
    assert listed[0].stored_nbytes == 0
    assert len({(info.slot, info.generation) for info in listed}) == 3


def test_stats_follow_put_view_delete_and_the_last_view(store: Store) -> None:
    """Each byte is in one place: free, used, waiting for its last reader."""
    empty = store.stats()
    assert (empty.used, empty.free, empty.objects, empty.clients) == (0, 4 * MIB, 0, 1)
    store["k"] = np.zeros(1000)
    store.put(1)
    stats = store.stats()
    assert (stats.used, stats.objects, stats.named, stats.pinned) == (8000, 2, 1, 0)
    view = store["k"]
    assert store.stats().pinned == 8000
    del store["k"]
    stats = store.stats()
    assert (stats.used, stats.reclaimable, stats.pinned, stats.objects) == (8000, 8000, 8000, 1)
    del view
    stats = store.stats()
    assert (stats.used, stats.reclaimable, stats.pinned) == (0, 0, 0)
    assert stats.free == stats.capacity


def test_clients_lists_this_process_once_and_the_others(
    store: Store, start_python: StartPython
) -> None:
    """Who is here, since when, with how many views."""
    code = """
    import shmstore
    store = shmstore.Store.attach(path, readonly=True)
    views = [store["k"], store["k"]]
    print("ready", flush=True)
    input()
    """
    store["k"] = np.zeros(1000)
    with Store.attach(store.name):
        (own,) = store.clients()
    assert (own.pid, own.own, own.alive, own.readonly, own.pins) == (
        os.getpid(),
        True,
        True,
        False,
        0,
    )
    assert own.started <= own.attached
    child = start_python(code, path=store.path)
    child.hear()
    (other,) = (client for client in store.clients() if not client.own)
    assert (other.pid, other.alive, other.readonly) == (child.pid, True, True)
    assert (other.pins, other.pinned_nbytes) == (2, 8000)
    assert store.info("k").pinned_by == (child.pid,)
    child.say()
    child.end()
    assert [client.pid for client in store.clients() if client.alive] == [os.getpid()]


def test_recover_with_nothing_to_do_says_so(store: Store) -> None:
    """Calling it too often does no harm, also while objects are looked at."""
    store["k"] = np.zeros(1000)
    view = store["k"]
    recovered = store.recover()
    assert (recovered.clients, recovered.puts, recovered.nbytes) == (0, 0, 0)
    assert not view.any()
