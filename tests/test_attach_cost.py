"""What attaching costs: the same however many objects a store holds."""

from __future__ import annotations

import os
from typing import Any

import pytest
from stores import MakeStore, RunPython, StartPython

from shmstore import Store
from shmstore._memory import layout as L
from shmstore._sharing import barrier, flock

FEW, MANY = 100, 6000

COUNTED = """
import sys
import shmstore
calls = 0

def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")

store = shmstore.Store.attach(path)
store.close()
sys.setprofile(count)
store = shmstore.Store.attach(path)
sys.setprofile(None)
print(calls)
"""

DIES_WRITING = """
import numpy as np, shmstore
store = shmstore.Store.attach(path)
building = store.allocate(100_000, "u1", key="half")
building.__enter__()
print("begun", flush=True)
input()
"""


def _fill(store: Store, count: int) -> None:
    store.put_many({f"key-{number}": number for number in range(count)})


def test_attach_makes_as_many_calls_for_many_objects_as_for_few(
    make_store: MakeStore, run_python: RunPython
) -> None:
    """Counted in Python and C; none of them looks at all slots (see the next test)."""
    few, many = make_store(), make_store()
    _fill(few, FEW)
    _fill(many, MANY)
    counts = [int(run_python(COUNTED, path=str(store.path))) for store in (few, many)]
    assert abs(counts[0] - counts[1]) < 40


def test_attach_looks_at_the_slots_only_where_somebody_died(
    make_store: MakeStore, start_python: StartPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-made puts are looked for among all slots once after a death, by whoever comes first."""
    store = make_store()
    session: Any = store._session
    looked: list[str] = []
    real = type(session.slots).table
    monkeypatch.setattr(type(session.slots), "table", lambda s: looked.append("all") or real(s))
    session.lock.run(session.bury)
    assert looked == []
    child = start_python(DIES_WRITING, path=str(store.path))
    assert child.hear() == "begun"
    child.kill()
    session.lock.run(session.bury)
    assert looked
    assert session.words[L.W_ORPHANS] == 0
    looked.clear()
    session.lock.run(session.bury)
    assert looked == []
    assert store.stats().used == 0


def test_puts_of_the_dead_are_found_after_a_reader_has_taken_their_rows(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """A read-only client frees the row of a dead one, and leaves a word for who may write."""
    store = make_store()
    session: Any = store._session
    child = start_python(DIES_WRITING, path=str(store.path))
    assert child.hear() == "begun"
    child.kill()
    with Store.attach(store.path, readonly=True):
        assert session.words[L.W_ORPHANS] == 1
        assert len(store.clients()) == 2
    assert session.lock.run(session.bury).puts == 1
    assert store.check() == []


@pytest.mark.slow
def test_attach_goes_the_way_of_a_first_get(make_store: MakeStore, run_python: RunPython) -> None:
    """There is room for pins, and a header of an array has been read; nothing was changed by it."""
    store = make_store()
    session: Any = store._session
    before = bytes(session.index.memory)
    code = """
    import shmstore
    store = shmstore.Store.attach(path)
    from shmstore import _heads
    session = store._session
    print(bool(session.pins.free), _heads._unpack_once.cache_info().currsize, len(session.plans))
    """
    assert run_python(code, path=str(store.path)) == "True 1 0"
    slots = slice(session.index.geometry.slots * L.WORD, None)
    assert bytes(session.index.memory)[slots] == before[slots]
    assert store.check() == []


REGISTERED = """
import ctypes, importlib, sys
import shmstore
from shmstore._sharing import barrier

order = list(sys.modules)
calls = []

class Library:
    def syscall(self, *arguments):
        calls.append(arguments)
        return 0

ctypes.CDLL = lambda *_, **__: Library()
importlib.reload(barrier)
print(order.index("shmstore._sharing.barrier") < order.index("numpy"), len(calls))
"""


@pytest.mark.skipif(barrier._number is None, reason="there is no membarrier here")
def test_import_registers_for_barriers_before_numpy_makes_threads(run_python: RunPython) -> None:
    """Later the kernel has to wait for all processors, which a first attach would feel."""
    assert run_python(REGISTERED) == "True 1"


def test_lock_is_the_one_that_filelock_takes(tmp_path: Any) -> None:
    """Whoever locks the same file with filelock is kept out, and keeps us out."""
    filelock = pytest.importorskip("filelock")
    path = tmp_path / "lock"
    path.touch()
    ours, theirs = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        for take, ask, give in (
            (flock.lock_descriptor, filelock.lock_descriptor, flock.unlock_descriptor),
            (filelock.lock_descriptor, flock.lock_descriptor, filelock.unlock_descriptor),
        ):
            options = {"blocking": False} if ask is filelock.lock_descriptor else {}
            assert take(ours)
            assert not ask(theirs, **options)
            give(ours)
            assert ask(theirs, **options)
            flock.unlock_descriptor(theirs)
    finally:
        os.close(ours)
        os.close(theirs)
