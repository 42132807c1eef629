"""What a killed process leaves behind is undone by the others."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import (
    MIB,
    Flag,
    MakeStore,
    StartPython,
    exit_code,
    forked,
    lock_free_only,
    replaced_words,
)

import shmstore
from shmstore import ObjectRef, Store, StoreFullError

# Python 3.12 and newer warn when a process with threads forks.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

HALF_A_PUT = """
import shmstore
import numpy as np

class Stops:
    def __init__(self, nbytes):
        self.nbytes = nbytes
    def __reduce__(self):
        return bytes, ()

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


# --- killed at each step --------------------------------------------------------------------------


class DeadlyWords:
    """The words of an index, of which the n-th store is the last thing that a process does.

    Parameters
    ----------
    words
        What is stored to.
    left
        A list with the number of stores to go, shared by all words of the index.
    """

    def __init__(self, words: Any, left: list[int]) -> None:
        self._words, self._left = words, left

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._words[at] = value
        self._left[0] -= 1
        if not self._left[0]:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(store: Store, number: int, change: Callable[[Store], Any]) -> bool:
    """Let a forked child make a change and die at its n-th store; return whether it did."""
    left = [number]

    def child() -> None:
        with replaced_words(store, lambda words: DeadlyWords(words, left)):
            change(store)

    code = exit_code(forked(child))
    assert code in {0, -signal.SIGKILL}
    return code != 0


def build(store: Store) -> None:
    """Build an array in place."""
    with store.allocate(1000, "u1", key="k") as array:
        array[:] = 2


OLD, NEW = np.full(3000, 1, np.uint8), np.full(5000, 2, np.uint8)
LARGE = np.full(200_000, 2, np.uint8)

CHANGES: dict[str, Callable[[Store], Any]] = {
    "overwrite": lambda s: s.put(NEW, key="k"),
    "overwrite by a large object": lambda s: s.put(LARGE, key="k"),
    "overwrite by a plain object": lambda s: s.put([2], key="k"),
    "new key": lambda s: s.put(NEW, key="n"),
    "no key": lambda s: s.put(NEW),
    "batch": lambda s: s.put_many({"k": NEW, "l": LARGE, "n": [2]}),
    "delete": lambda s: s.delete("k"),
    "delete several": lambda s: s.delete_many(["k", "l", "p"]),
    "build": build,
    "recover": lambda s: s.recover(),
}


def begin(store: Store) -> None:
    """Put the objects that the changes are about, among memory that is free in pieces."""
    store.clear()
    store.delete_many(store.put_many([OLD] * 6)[::2])
    store.update({"k": OLD, "l": OLD, "p": [1]})


def assert_whole(store: Store) -> None:
    """Fail unless a store is sound, and its objects are as before a change or as after it."""
    assert store.check() == []
    for key, got in store.items():
        values = set(got if isinstance(got, list) else got.tolist())
        assert values == {1} or (values == {2} and key != "p"), (key, values)
    assert set(store) - {"n"} <= {"k", "l", "p"}


def forget_all(store: Store) -> None:
    """Delete what has a key, and what has none, of which nobody may have a reference."""
    session = store._session
    store.delete_many(
        [
            ObjectRef(session.uuid, str(store.path), info.slot, info.generation, info.nbytes)
            for info in store.objects()
        ]
    )


@lock_free_only
@pytest.mark.parametrize("name", CHANGES)
def test_process_killed_at_any_store_of_a_change_leaves_the_store_whole(
    make_store: MakeStore, name: str
) -> None:
    """Each word of the index that it writes may be its last one."""
    store = make_store(capacity=MIB)
    for number in range(1, 1000):
        begin(store)
        killed = killed_at(store, number, CHANGES[name])
        assert_whole(store)
        if name.startswith("overwrite"):
            assert "k" in store, f"store {number}: neither the old nor the new object"
        store.recover()
        assert_whole(store)
        assert [client.pid for client in store.clients()] == [os.getpid()]
        forget_all(store)
        assert store.stats().used == 0, f"store {number}: memory is lost"
        if not killed:
            break
    assert number > 2


@lock_free_only
def test_recovery_killed_at_any_store_begins_again(make_store: MakeStore) -> None:
    """Who repairs may die as well: the next one finds all that is to be done."""
    store = make_store(capacity=MIB)
    for number in range(1, 1000, 11):
        for step in range(1, 1000):
            begin(store)
            if not killed_at(store, number, CHANGES["batch"]):
                return
            if not killed_at(store, step, Store.check):
                break
            assert_whole(store)
            store.recover()
            forget_all(store)
            assert store.stats().used == 0
        assert step > 1
