"""Objects in files, among processes: readers, forks, and writers that push each other out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers
from rooms import small_file_system
from spilling import MakeSpilling, block, files, push_out, spill_dir, spilling
from stores import MIB, Flag, MakeStore, StartPython, exit_code, forked, lock_free_only

from shmstore import Store
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned

__all__ = ["spill_dir", "spilling"]  # fixtures


def test_readonly_handle_reads_files_and_writes_nothing(
    spilling: MakeSpilling, spill_dir: Path, start_python: StartPython
) -> None:
    """A read-only reader gets what lies in files and changes no byte of them."""
    store = spilling()
    store.put(block(3), key="k")
    others = push_out(store)
    [file] = files(spill_dir)
    before = file.read_bytes(), file.stat().st_mtime_ns
    child = start_python(
        """
        import numpy as np, shmstore
        store = shmstore.Store.attach(path, readonly=True)
        view = store["k"]
        print(view.sum(), view.flags.writeable, flush=True)
        input()
        print(store["k"].sum(), view.sum(), flush=True)
        """,
        path=str(store.path),
    )
    assert child.hear() == f"{3 << 16} False"
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    store.delete_many(others)
    assert store["k"].sum() == 3 << 16
    assert child.ask() == f"{3 << 16} {3 << 16}"
    child.end()


def test_forked_child_has_the_views_of_files(spilling: MakeSpilling) -> None:
    """Parent and child see the same file, whoever of them ends first."""
    store = spilling()
    ref = store.put(block(0))
    held = [other.get() for other in push_out(store)]
    view = ref.get()

    def work() -> None:
        held.clear()
        view[0] = 5
        again = ref.get()
        assert again[0] == 5
        again[1] = 6

    assert exit_code(forked(work)) == 0
    assert view[:3].tolist() == [5, 6, 0]
    assert ref.get()[:3].tolist() == [5, 6, 0]


WORK = """
import random, time
import numpy as np, shmstore
store = shmstore.Store.attach(path)
chance = random.Random(seed)
end = time.monotonic() + seconds
counts = {"hit": 0, "miss": 0, "put": 0}
held = []
while time.monotonic() < end:
    key = str(chance.randrange(40))
    way = chance.randrange(4)
    if way == 0:
        number = int(key) + 40 * chance.randrange(6)
        store.put(np.full(1 << chance.randrange(12, 17), number, np.uint8), key=key)
        counts["put"] += 1
    elif way == 1 and chance.random() < 0.2:
        store.discard(key)
    else:
        view = store.get(key, None)
        if view is None:
            counts["miss"] += 1
            continue
        assert (view == view[0]).all() and view[0] % 40 == int(key), (key, view)
        counts["hit"] += 1
        held.append((view, view[0]))
        if len(held) > 5:
            view, number = held.pop(chance.randrange(5))
            assert (view == number).all()
print(counts["put"], counts["hit"], flush=True)
"""


@lock_free_only
def test_processes_push_each_others_objects_out_and_back(
    spilling: MakeSpilling, start_python: StartPython, spill_dir: Path, locked_reads: Flag
) -> None:
    """Four processes put, get, overwrite and delete more than fits; each value is whole."""
    store = spilling()
    children = [start_python(WORK, path=str(store.path), seed=seed, seconds=1) for seed in range(4)]
    counts = [[int(count) for count in child.hear().split()] for child in children]
    for child in children:
        child.end()
    puts, hits = np.sum(counts, axis=0)
    assert puts > 100
    assert hits > 100
    stats = store.stats()
    assert stats.spills > 10
    assert stats.restores > 10
    assert len(files(spill_dir)) == stats.spilled
    assert store.check(deep=True) == []
    for key, view in store.items():
        assert (view == view[0]).all()
        assert view[0] % 40 == int(key)
        del view


class _Given:
    """Something that is made by plans."""

    def __init__(self, *plans: Planned) -> None:
        self.plans = plans


def _die_in_a_file(store: Store, nbytes: int) -> None:
    """Be killed when so much of a file is written."""

    def die(_: memoryview) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    register_serialization(_Given, lambda x: ({}, x.plans), lambda _, frames: len(frames))
    Store.attach(store.path).put(_Given(Planned(nbytes, bytes), Planned(MIB, die)))


def _allocate(store: Store) -> None:
    with store.allocate(3 * MIB, np.uint8) as array:
        array[:] = 7


PUTS: dict[str, Callable[[Store], Any]] = {
    "store": lambda store: store.put(np.zeros(3 * MIB, np.uint8)),
    "batch": lambda store: store.put_many([1, np.zeros(3 * MIB, np.uint8)]),
    "queue": lambda store: store.queue("jobs").put(np.zeros(3 * MIB, np.uint8)),
    "array that is built": _allocate,
    "what leaves memory": lambda store: [store.put(np.zeros(MIB, np.uint8)) for _ in range(5)],
}


@lock_free_only
@pytest.mark.parametrize("put", PUTS.values(), ids=list(PUTS))
def test_file_of_a_dead_writer_keeps_nobody_from_room(
    make_store: MakeStore, put: Callable[[Store], Any]
) -> None:
    """Who finds the disk full buries the dead, as who finds memory full does."""
    with small_file_system(6 * MIB) as folder, own_handlers():
        store = make_store(capacity=2 * MIB, on_full="spill", spill_dir=folder)
        exit_code(forked(lambda: _die_in_a_file(store, 4 * MIB)))
        assert sum(path.stat().st_blocks for path in files(folder)) == 4 * MIB >> 9
        put(store)
        assert store.check() == []
        assert not [path for path in files(folder) if path.name.startswith("new-")]
        store.destroy()
