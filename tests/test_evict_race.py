"""Eviction among processes and at any size: no wrong miss, the right victims, the same price."""

from __future__ import annotations

import select
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from stores import Flag, MakeStore, RunPython, StartPython, exit_code, forked, lock_free_only

from shmstore import Store, _room
from shmstore._catalog.table import SlotTable
from shmstore._memory.blocks import Blocks

BLOCK = np.zeros(1 << 16, np.uint8)


def block(number: int) -> np.ndarray:
    """Return 64 KiB that say a number: a store of 1 MiB takes sixteen of them."""
    return np.full(1 << 16, number, np.uint8)


# --- readers --------------------------------------------------------------------------------------

READ_WHILE_EVICTED = """
import gc, random, time
import numpy as np, shmstore
store = shmstore.Store.attach(path)
chance = random.Random(seed)
seen = {}
hits = misses = 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    key = str(chance.randrange(24))
    view = store.get(key, None)
    if view is None:
        assert key not in seen, f"{key} is looked at, and missed"
        misses += 1
    else:
        hits += 1
        number = view[0]
        assert (view == number).all() and number % 24 == int(key)
        seen[key] = view
        assert (store.get(key) == number).all()
        if len(seen) > 4:
            del seen[chance.choice(sorted(seen))], view
for view in seen.values():
    assert (view == view[0]).all()
print(hits, misses, flush=True)
"""

WRITE_AND_EVICT = """
import random, time
import numpy as np, shmstore
store = shmstore.Store.attach(path)
chance = random.Random(seed)
end = time.monotonic() + seconds
puts = 0
while time.monotonic() < end:
    key = str(chance.randrange(24))
    number = int(key) + 24 * chance.randrange(10)
    try:
        store.put(np.full(1 << 16, number, np.uint8), key=key, overwrite=False)
        puts += 1
    except (shmstore.KeyExistsError, shmstore.StoreFullError):
        pass
print(puts, flush=True)
"""


def test_readers_never_miss_what_they_look_at(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """What a reader has a view of it can get again, unchanged, however writers evict."""
    store = make_store(capacity="1MiB", on_full="evict")
    path = str(store.path)
    children = [
        start_python(code, path=path, seed=seed, seconds=1)
        for seed, code in enumerate([READ_WHILE_EVICTED, WRITE_AND_EVICT] * 2)
    ]
    counts = [[int(count) for count in child.hear().split()] for child in children]
    for child in children:
        child.end()
    hits, misses = np.sum(counts[::2], axis=0)
    assert hits > 100
    assert misses > 10
    assert sum(puts for [puts] in counts[1::2]) > 100


GET_IN_THE_MIDDLE = """
import shmstore
store = shmstore.Store.attach(path)
if remembered:
    ref.get(), store["k"]
print("ready", flush=True)
ways = ref.get, lambda: store["k"], lambda: store.get(ref), lambda: store.get("k", None)
for way in ways:
    input()
    print(way()[0], flush=True)
"""


@lock_free_only
@pytest.mark.parametrize("remembered", [False, True], ids=["first get", "remembered"])
def test_get_while_an_eviction_changes_its_mind_finds_the_object(
    make_store: MakeStore, start_python: StartPython, locked_reads: Flag, remembered: Flag
) -> None:
    """A reader that meets an object out of circulation waits for the lock, and gets it."""
    store = make_store(capacity="1MiB", on_full="evict")
    ref = store.put(block(7), key="k")
    child = start_python(GET_IN_THE_MIDDLE, path=str(store.path), ref=ref, remembered=remembered)
    assert child.hear() == "ready"
    session: Any = store._session

    def meet() -> None:
        session.slots.leave_memory(ref._slot)
        child.say()
        answered, _, _ = select.select([child.process.stdout], [], [], 0.1)
        assert not answered
        session.slots.return_to_memory(ref._slot)

    for _ in range(4):
        session.lock.run(meet)
        assert child.hear() == "7"
    child.end()


@lock_free_only
def test_view_got_in_an_eviction_keeps_its_bytes(make_store: MakeStore, locked_reads: Flag) -> None:
    """An object that is looked at between choice and withdrawal goes back, unharmed."""
    store = make_store(capacity="1MiB", on_full="evict")
    refs = [store.put(block(number)) for number in range(16)]
    session: Any = store._session
    views = []

    def withdraw_under_a_view() -> list[int]:
        views.append(refs[3].get())
        return _room.withdraw(session, [ref._slot for ref in refs[2:5]])

    gone = session.lock.run(withdraw_under_a_view)
    assert gone == [refs[2]._slot, refs[4]._slot]
    for slot in gone:
        session.lock.run(session.slots.return_to_memory, slot)
    assert (views[0] == 3).all()
    assert [int(ref.get()[0]) for ref in refs] == list(range(16))


def test_readonly_handle_reads_what_evicts_and_pins_it(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """A read-only reader writes no time of use, but what it looks at stays."""
    store = make_store(capacity="1MiB", on_full="evict")
    for number in range(16):
        store[str(number)] = block(number)
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(path, readonly=True)
        view = store["0"], store["1"]
        print(view[0][0], view[1][0], flush=True)
        input()
        print(store["0"][0], "2" in store, flush=True)
        """,
        path=str(store.path),
    )
    assert child.hear() == "0 1"
    store.put_many([BLOCK] * 14)
    assert sorted(store) == ["0", "1"]
    assert child.ask() == "0 False"
    child.end()


# --- writers --------------------------------------------------------------------------------------

EVICT_TOGETHER = """
import random
import numpy as np, shmstore
store = shmstore.Store.attach(path)
chance = random.Random(seed)
mine = {}
for turn in range(80):
    nbytes = 1 << chance.randrange(6, 18)
    way = chance.randrange(4)
    if way == 0:
        mine[turn] = store.put({"of": seed, "turn": turn}), turn
    elif way == 1:
        with store.allocate(nbytes, np.uint8) as array:
            array[:] = turn
        ref = None
    elif way == 2:
        refs = store.put_many([np.full(nbytes, turn, np.uint8), turn])
        mine[turn] = refs[1], turn
    else:
        store.put(np.full(nbytes, turn, np.uint8), key=str(chance.randrange(40)))
    if mine:
        ref, turn = mine[chance.choice(sorted(mine))]
        try:
            got = ref.get()
            assert got in (turn, {"of": seed, "turn": turn})
        except shmstore.ObjectNotFoundError:
            mine = {number: pair for number, pair in mine.items() if pair[0] is not ref}
print("done", flush=True)
"""


@lock_free_only
def test_eight_processes_evict_at_once(
    make_store: MakeStore, start_python: StartPython, locked_reads: Flag
) -> None:
    """All puts of all processes find room, and the store is exact afterwards."""
    store = make_store(capacity="2MiB", max_objects=300, on_full="evict")
    path = str(store.path)
    children = [start_python(EVICT_TOGETHER, path=path, seed=seed) for seed in range(8)]
    for child in children:
        assert child.hear() == "done"
        child.end()
    stats = store.stats()
    assert stats.used + stats.free == stats.capacity
    assert sum(info.stored_nbytes for info in store.objects()) == stats.used
    assert len(store.objects()) == stats.objects <= 300


def test_forked_child_evicts_and_its_views_count(make_store: MakeStore) -> None:
    """A child's puts evict, but neither what it nor what its parent looks at."""
    store = make_store(capacity="1MiB", on_full="evict")
    for number in range(16):
        store[str(number)] = block(number)
    view = store["0"]

    def work() -> None:
        own = store["1"]
        store.put_many([BLOCK] * 14)
        assert (own[0], sorted(store)) == (1, ["0", "1"])

    assert exit_code(forked(work)) == 0
    assert view[0] == 0
    store.put(BLOCK)
    assert sorted(store) == ["0"]


KILLED_IN_AN_EVICTION = """
import os, signal
import numpy as np, shmstore
from shmstore import _room
store = shmstore.Store.attach(path)
if point == "withdraw":
    def end(session, slot):
        os.kill(os.getpid(), signal.SIGKILL)
    _room.end = end
else:
    session = store._session
    def free(slot):
        os.kill(os.getpid(), signal.SIGKILL)
    session.slots.free = free
store.put(np.zeros(6 << 16, np.uint8))
"""


@lock_free_only
@pytest.mark.parametrize("point", ["withdraw", "free"])
def test_writer_killed_while_it_evicts_leaves_a_sound_store(
    make_store: MakeStore, run_python: RunPython, locked_reads: Flag, point: str
) -> None:
    """Objects that were chosen are there whole, or are gone; room is found again."""
    store = make_store(capacity="1MiB", on_full="evict")
    for number in range(16):
        store[str(number)] = block(number)
    run_python(KILLED_IN_AN_EVICTION, path=str(store.path), point=point, returncode=-9)
    assert store.check() == []
    left = {key: int(array[0]) for key, array in store.items()}
    assert all(key == str(number) for key, number in left.items())
    assert len(left) == (16 if point == "withdraw" else 10)
    store.put_many([BLOCK] * 16)
    assert store.stats().objects == 16


# --- how good and how dear ------------------------------------------------------------------------


@lock_free_only
def test_hit_rate_is_that_of_true_lru(make_store: MakeStore, locked_reads: Flag) -> None:
    """On requests that follow a Zipf law sampling hits as often as an exact order would."""
    count, places = 4000, 800
    store = make_store(capacity=places * 4096, max_objects=2 * places, on_full="evict")
    page = np.zeros(4096, np.uint8)
    weights = 1 / np.arange(1, count + 1) ** 0.9
    requests = np.random.default_rng(3).choice(count, 8000, p=weights / weights.sum()).tolist()
    true: OrderedDict[int, None] = OrderedDict()
    hits = true_hits = 0
    for number in requests:
        key = str(number)
        if store.get(key, None) is None:
            store[key] = page
        else:
            hits += 1
        true_hits += number in true
        true[number] = None
        true.move_to_end(number)
        if len(true) > places:
            true.popitem(last=False)
    assert true_hits > 2000
    assert hits > true_hits * 0.98


class Counted(np.ndarray):
    """A table that counts the values that are taken out of it."""

    taken = 0

    def __getitem__(self, item: Any) -> Any:
        found = np.asarray(self)[item]
        Counted.taken += np.size(found)
        return found


def looked_at(store: Store, value: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many values of the slot table, and of the blocks, an evicting put looks at."""
    tables = (SlotTable, "table"), (Blocks, "block_table")
    for owner, name in tables:
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, real=real: real(self).view(Counted), raising=True
        )
    Counted.taken = 0
    store.put(value)
    monkeypatch.undo()
    return Counted.taken


@lock_free_only
@pytest.mark.parametrize("kind", ["index", "extents", "both"])
def test_evicting_put_looks_at_as_much_in_a_large_store(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, locked_reads: Flag, kind: str
) -> None:
    """At 30,000 objects as at 1,000 the same number of slots is looked at."""
    small = np.zeros(64, np.uint8)
    values = {"index": [{"a": 1}], "extents": [small], "both": [{"a": 1}] * 9 + [small]}[kind]
    counts = []
    for objects in (1000, 30_000):
        extents = (
            1 << 20
            if kind == "index"
            else 64 * objects * sum(x is small for x in values) // len(values)
        )
        store = make_store(
            capacity=extents,
            max_objects=objects if kind == "index" else 2 * objects,
            on_full="evict",
        )
        batch = [x for x in values for _ in range(objects // len(values))]
        store.put_many(batch)
        store.put_many(values[-1:] * 100)
        counts.append(max(looked_at(store, values[-1], monkeypatch) for _ in range(5)))
    assert 0 < counts[1] <= 2 * counts[0] + 100, counts
