"""What a killed process leaves behind is undone by the others. See also test_kill_matrix.py."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from typing import Any

import numpy as np
import pytest
from stores import MIB, Flag, MakeStore, StartPython

import shmstore
from shmstore import Store, StoreFullError

HALF_A_PUT = """
import shmstore
import numpy as np

store = shmstore.Store.attach(path)
block = store.allocate(1_000_000, "u1", key="half")
array = block.__enter__()
array[:500_000] = 1
views = [store["k"], store["k"][5:]]
print("half", flush=True)
input()
"""


def test_half_made_put_and_pins_of_a_killed_process_come_back_by_recover(
    store: Store, start_python: StartPython
) -> None:
    """The facts of what came back are returned, and nobody sees half an object."""
    store["k"] = np.arange(1000)
    process = start_python(HALF_A_PUT, path=store.path)
    process.hear()
    del store["k"]
    assert store.stats().used == 1_000_000 + 8000
    assert store.recover() == shmstore.Recovered(0, 0, 0)
    process.kill()
    assert "half" not in store
    recovered = store.recover()
    assert (recovered.clients, recovered.puts) == (1, 1)
    assert recovered.nbytes == 1_000_000 + 8000
    assert store.stats().used == 0
    assert list(store) == []


def test_half_made_put_and_pins_of_a_killed_process_come_back_by_need(
    store: Store, start_python: StartPython
) -> None:
    """Whoever finds no room looks for the dead first: nobody has to call recover."""
    store["k"] = np.arange(1000)
    process = start_python(HALF_A_PUT, path=store.path)
    process.hear()
    process.kill()
    del store["k"]
    store["all"] = np.zeros(4 * MIB, np.uint8)
    assert store.stats().clients == 1


def test_pins_of_a_live_process_are_not_taken_by_recover(
    store: Store, start_python: StartPython
) -> None:
    """Only the dead are buried."""
    store["k"] = np.arange(1000)
    process = start_python(HALF_A_PUT, path=store.path)
    process.hear()
    del store["k"]
    with pytest.raises(StoreFullError) as caught:
        store.put(np.zeros(4 * MIB, np.uint8))
    assert any(str(process.pid) in holder for holder in caught.value.pinned_by)
    assert store.recover().clients == 0
    process.say()
    process.end()


HOLD_THE_LOCK = """
import shmstore
store = shmstore.Store.attach(path)
store._session.lock.run(lambda: (print("held", flush=True), input()))
"""


def test_process_stopped_with_the_lock_is_named_and_killed_it_is_replaced(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """Waiting ends with the name of the holder; its death gives the lock back."""
    store = make_store(lock_timeout=0.3)
    process = start_python(HOLD_THE_LOCK, path=store.path)
    assert process.hear() == "held"
    with pytest.raises(shmstore.LockTimeoutError, match=str(process.pid)) as caught:
        store["k"] = 1
    assert isinstance(caught.value, TimeoutError)
    assert str(process.pid) in caught.value.holder
    process.kill()
    store["k"] = 2
    assert store["k"] == 2


PUT_GET_DELETE = """
import random
import numpy as np, shmstore
random_ = random.Random(seed)
store = shmstore.Store.attach(path)
views = []
print("ready", flush=True)
for turn in range(10**9):
    key = f"{random_.randrange(6)}"
    nbytes = random_.choice([3, 700, 9000, 70_000, 200_000])
    value = random_.randrange(256)
    array = np.full(nbytes, value, np.uint8)
    try:
        action = random_.random()
        if action < 0.3:
            store[key] = array
        elif action < 0.4:
            store[key] = {"a": array, "b": array[:50].copy()}
        elif action < 0.5:
            with store.allocate(nbytes, "u1", key=key) as built:
                built[:] = value
        elif action < 0.55:
            store.put_many({key: array, "x": value})
        elif action < 0.6:
            store.put(value, key=key)
        elif action < 0.7:
            store.discard(key)
        elif action < 0.72:
            store.recover()
        else:
            got = store.get(key, None)
            if isinstance(got, dict):
                assert set(got["a"].tolist()) == {got["b"][0]}, "torn"
            elif isinstance(got, np.ndarray):
                assert (got == got[0]).all(), "torn"
            views = [*views[-3:], got]
    except shmstore.StoreFullError:
        views.clear()
"""


def test_processes_killed_at_random_moments_leave_a_store_that_is_whole(
    make_store: MakeStore, start_python: StartPython, locked_reads: Flag
) -> None:
    """Four of them put, get and delete; one after the other is killed and another one comes."""
    store = make_store(capacity="1MiB")
    random_ = random.Random(17)
    seeds = iter(range(1000))

    def start() -> Any:
        process = start_python(PUT_GET_DELETE, path=store.path, seed=next(seeds))
        process.hear()
        return process

    processes = [start() for _ in range(4)]
    kept = store.put(np.arange(1000))
    view = kept.get()
    turns = 6 if locked_reads else 10
    for turn in range(turns):
        time.sleep(random_.uniform(0.01, 0.15))
        victim = processes[turn % 4]
        victim.kill()
        if turn % 2:
            assert store.check() == []
        for key in list(store):
            got = store.get(key, None)
            if isinstance(got, np.ndarray):
                assert (got == got[0]).all()
            del got
        if turn < turns - 4:
            processes[turn % 4] = start()
    assert [process.process.poll() for process in processes] == [-signal.SIGKILL] * 4
    store.recover()
    assert store.check() == []
    assert view.tolist() == list(range(1000))
    assert [client.pid for client in store.clients()] == [os.getpid()]
    store.clear()
    kept.delete()
    del view
    gc.collect()
    assert store.stats().used == 0
    assert store.stats().largest_free == MIB
    assert len(list((store.path / "seats").iterdir())) == 1
