"""Memory that no object occupies goes back to the system: when asked, and by itself."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MIB, Flag, MakeStore, StartPython, exit_code, forked, lock_free_only

from shmstore import ReadOnlyStoreError, Store, _trimming
from shmstore._memory import layout as L
from shmstore._memory.segment import SEGMENT_NAME

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")


def resident(store: Store) -> int:
    """Return the bytes of memory that the data of a store takes, as `du` counts them."""
    command = ["du", "--block-size=1", str(Path(store.path, SEGMENT_NAME))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


@pytest.fixture
def large(make_store: MakeStore) -> Store:
    """Give a store of 32 MiB."""
    return make_store(capacity="32MiB", max_objects=5000)


# --- when asked -----------------------------------------------------------------------------------


def test_memory_of_deleted_objects_goes_back(large: Store) -> None:
    """`du` shows it, and `trim` says how much it was."""
    label = resident(large)
    large["k"] = np.ones(20 * MIB, np.uint8)
    assert resident(large) >= 20 * MIB
    del large["k"]
    assert resident(large) >= 20 * MIB
    assert large.trim() >= 20 * MIB
    assert resident(large) <= label + L.PAGE
    assert large.trim() == 0


def test_objects_that_are_there_stay_as_they_are(large: Store) -> None:
    """Between objects of any size only whole pages that nobody has go back."""
    chance = np.random.default_rng(5)
    kept, used = [], 0
    for number in range(300):
        array = chance.integers(0, 256, int(2 ** chance.uniform(3, 17)), np.uint8)
        ref = large.put(array)
        if number % 3:
            ref.delete()
        else:
            kept.append((ref, array, ref.get() if number % 2 else None))
            used += -(-array.nbytes // L.PAGE) + 2
    before = resident(large)
    assert large.trim() > 0
    assert resident(large) < before
    assert resident(large) <= used * L.PAGE
    assert large.check() == []
    for ref, array, view in kept:
        assert np.array_equal(ref.get(), array)
        assert view is None or np.array_equal(view, array)
    del view, kept


def test_deleted_object_under_a_view_keeps_its_memory(large: Store) -> None:
    """What somebody looks at is not given back, whether it is deleted or not."""
    large["k"] = np.full(4 * MIB, 7, np.uint8)
    view = large["k"]
    del large["k"]
    assert large.trim() < MIB
    assert (view == 7).all()
    del view
    gc.collect()
    assert large.trim() >= 4 * MIB


def test_array_that_is_being_built_keeps_its_memory(large: Store) -> None:
    """A place that was reserved and not yet published is left alone."""
    with large.allocate(4 * MIB, np.uint8, key="k") as array:
        array[:] = 3
        large.trim()
        assert (array == 3).all()
    del array
    assert (large["k"] == 3).all()


def test_expired_objects_are_given_back_too(large: Store) -> None:
    """What is over is taken back first."""
    large.put(np.ones(4 * MIB, np.uint8), ttl=1e-6)
    assert large.trim() >= 4 * MIB


def test_trimmed_memory_can_be_had_again(large: Store) -> None:
    """Puts after a trim find pages, in all sizes and again and again."""
    for turn in range(5):
        refs = [large.put(np.full(n * 50_000, turn, np.uint8)) for n in range(1, 25)]
        assert all((ref.get() == turn).all() for ref in refs)
        large.delete_many(refs)
        assert large.trim() > 10 * MIB
    assert large.stats().free == large.stats().capacity


def test_prefaulted_memory_goes_back_only_when_asked(make_store: MakeStore) -> None:
    """`prefault=True` keeps the pages until somebody calls `trim`."""
    store = make_store(capacity="8MiB", prefault=True)
    assert resident(store) >= 8 * MIB
    session: Any = store._session
    store.put(np.zeros(4 * MIB, np.uint8)).delete()
    assert not _trimming.tidy(session, _trimming.deque([0] * 4, maxlen=5))
    assert resident(store) >= 8 * MIB
    assert store.trim() >= 7 * MIB
    ref = store.put(np.full(8 * MIB, 3, np.uint8))
    assert (ref.get() == 3).all()


def test_readonly_handle_cannot_trim(large: Store) -> None:
    """It must not change the store."""
    with Store.attach(large.path, readonly=True) as reader, pytest.raises(ReadOnlyStoreError):
        reader.trim()


def test_store_that_wipes_gives_zeros_back(make_store: MakeStore) -> None:
    """Trimmed memory of a store with `zero_on_free` stays wiped, and its books exact."""
    store = make_store(capacity="8MiB", zero_on_free=True, max_objects=100)
    for _ in range(3):
        store["k"] = np.ones(3 * MIB, np.uint8)
        store["s"] = np.ones(3000, np.uint8)
        store.clear()
        store.trim()
    assert not any(np.fromfile(Path(store.path, SEGMENT_NAME), np.uint8)[: 8 * MIB])


PUT_AND_DELETE = """
import random, time
import numpy as np, shmstore
store = shmstore.Store.attach(path)
chance = random.Random(seed)
end = time.monotonic() + seconds
puts = 0
while time.monotonic() < end:
    refs = []
    for _ in range(8):
        number = chance.randrange(256)
        refs.append((store.put(np.full(1 << chance.randrange(10, 19), number, np.uint8)), number))
        puts += 1
    for ref, number in refs:
        assert (ref.get() == number).all()
        ref.delete()
print(puts, flush=True)
"""


@lock_free_only
def test_trim_among_busy_processes_harms_nobody(
    large: Store, start_python: StartPython, locked_reads: Flag
) -> None:
    """Others put, read and delete while pages are given back all the time."""
    path = str(large.path)
    children = [start_python(PUT_AND_DELETE, path=path, seed=n, seconds=1.0) for n in range(3)]
    trims = 0
    while any(child.process.poll() is None for child in children):
        trims += large.trim() > 0
    counts = [int(child.hear()) for child in children]
    for child in children:
        child.end()
    assert min(counts) > 0
    assert trims > 5
    large.trim()
    assert resident(large) <= 2 * L.PAGE


# --- by itself ------------------------------------------------------------------------------------


def housekeepers() -> list[threading.Thread]:
    """Return the threads of this process that give memory back."""
    return [thread for thread in threading.enumerate() if thread.name == "shmstore-housekeeping"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory go back after a fraction of a second instead of ten."""
    monkeypatch.setattr(_trimming, "INTERVAL_S", 0.02)


def wait_for(condition: Any) -> None:
    """Wait for what another thread does; fail after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("impatient")
def test_idle_memory_goes_back_by_itself(large: Store) -> None:
    """Without any call `du` falls, and then the thread is gone."""
    ref = large.put(np.ones(20 * MIB, np.uint8))
    ref.delete()
    wait_for(lambda: resident(large) < 2 * MIB)
    wait_for(lambda: not housekeepers())
    assert large.check() == []


@pytest.mark.usefixtures("impatient")
def test_memory_goes_back_after_the_last_view(large: Store) -> None:
    """An object that was deleted under a view is given back when that has died."""
    ref = large.put(np.ones(8 * MIB, np.uint8))
    view = ref.get()
    ref.delete()
    time.sleep(0.3)
    assert resident(large) >= 8 * MIB
    assert (view == 1).all()
    del view
    gc.collect()
    wait_for(lambda: resident(large) < 2 * MIB)
    wait_for(lambda: not housekeepers())


def test_memory_in_use_again_and_again_stays_warm(large: Store) -> None:
    """What was used within the last samples is kept, only what is beyond goes back."""
    session: Any = large._session
    history = _trimming.deque(maxlen=5)
    for _ in range(8):
        refs = [large.put(np.ones(4 * MIB, np.uint8)) for _ in range(2)]
        _trimming.tidy(session, history)
        large.delete_many(refs)
        assert resident(large) >= 8 * MIB
    for _ in range(6):
        _trimming.tidy(session, history)
    assert resident(large) < 2 * MIB


@pytest.mark.usefixtures("impatient")
def test_fork_finds_no_thread_and_both_sides_go_on(large: Store) -> None:
    """The thread is gone before a fork; parent and child give their memory back all the same."""
    large.put(np.ones(8 * MIB, np.uint8)).delete()

    def work() -> None:
        assert not housekeepers()
        large.put(np.ones(8 * MIB, np.uint8)).delete()
        wait_for(lambda: resident(large) < 2 * MIB)

    assert exit_code(forked(work)) == 0
    large.put(np.ones(8 * MIB, np.uint8)).delete()
    wait_for(lambda: resident(large) < 2 * MIB)
    wait_for(lambda: not housekeepers())


def test_process_ends_at_once_though_memory_is_idle(
    large: Store, start_python: StartPython
) -> None:
    """Nobody waits for the thread at exit, and nothing is printed."""
    child = start_python(
        """
        import numpy as np, shmstore
        store = shmstore.Store.attach(path)
        store.put(np.ones(8 << 20, np.uint8)).delete()
        print("deleted", flush=True)
        """,
        path=str(large.path),
    )
    assert child.hear() == "deleted"
    started = time.monotonic()
    child.end()
    assert time.monotonic() - started < 30
    assert large.check() == []
