"""Objects that expire: when they are gone, for whom, and when their memory comes back."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from stores import Flag, MakeStore, StartPython, exit_code, forked, lock_free_only, used

from shmstore import KeyExistsError, ObjectNotFoundError, Store
from shmstore._catalog import clock
from shmstore._catalog.table import SlotTable

Advance = Callable[[float], None]

VALUES = {
    "in the index": {"a": 1},
    "array": np.arange(1000),
    "pickle": [np.arange(100), "x"],
    "text": "y" * 5000,
}
any_value = pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))


@pytest.fixture
def advance() -> Iterator[Advance]:
    """Give a function that puts the clock of this process forward, by seconds."""
    before = clock._ahead_ns[0]

    def go(seconds: float) -> None:
        clock._ahead_ns[0] -= int(seconds * 1e9)

    yield go
    clock._ahead_ns[0] = before


# --- gone -----------------------------------------------------------------------------------------


@any_value
@pytest.mark.parametrize("known", [False, True], ids=["first look", "got before"])
def test_expired_object_is_missing_everywhere(
    store: Store, advance: Advance, value: Any, known: Flag
) -> None:
    """No way to an object leads there when its time is over, whether it was got before or not."""
    ref = store.put(value, key="k", ttl=5)
    store["stays"] = 1
    if known:
        ref.get()
        store["k"]
    advance(4.9)
    assert "k" in store
    assert ref in store
    advance(0.2)
    assert ("k" in store, ref in store) == (False, False)
    assert (list(store), list(store.items()), list(store.keys())) == (
        ["stays"],
        [("stays", 1)],
        ["stays"],
    )
    assert (store.get("k", "none"), store.get(ref, "none")) == ("none", "none")
    for look in (ref.get, ref.info, lambda: store["k"], lambda: store.info("k")):
        with pytest.raises(ObjectNotFoundError):
            look()
    with pytest.raises(ObjectNotFoundError):
        store.get_many(["stays", "k"])
    assert [info.key for info in store.objects()] == ["stays"]
    assert not store.discard("k")
    with pytest.raises(ObjectNotFoundError):
        ref.delete()


def test_length_is_the_number_of_keys_that_can_be_got(store: Store, advance: Advance) -> None:
    """`len` does not count what iteration leaves out."""
    store.put_many({"a": 1, "b": 2}, ttl=1)
    store["c"] = 3
    advance(2)
    assert (len(store), list(store)) == (1, ["c"])


def test_default_of_the_store_holds_unless_a_put_says_otherwise(
    make_store: MakeStore, advance: Advance
) -> None:
    """`ttl` at creation is for all objects without their own; `math.inf` is for ever."""
    store = make_store(ttl=10)
    store["default"] = 1
    store.put(1, key="short", ttl=1)
    store.put(1, key="long", ttl=100)
    store.put(1, key="ever", ttl=math.inf)
    store.put_many({"many": 1, "more": 2}, ttl=20)
    for key, ttl in (("built", None), ("built to stay", math.inf)):
        with store.allocate(3, key=key, ttl=ttl) as array:
            array[:] = 1
    left = []
    for seconds in (0, 2, 10, 10, 100):
        advance(seconds)
        left.append(set(store))
    everything = {"default", "short", "long", "ever", "many", "more", "built", "built to stay"}
    assert left == [
        everything,
        everything - {"short"},
        {"long", "ever", "many", "more", "built to stay"},
        {"long", "ever", "built to stay"},
        {"ever", "built to stay"},
    ]


def test_time_begins_when_an_array_is_published(store: Store, advance: Advance) -> None:
    """How long an array was being built in place does not count."""
    with store.allocate(3, key="k", ttl=5) as array:
        array[:] = 1
        advance(100)
    assert "k" in store
    advance(6)
    assert "k" not in store


def test_overwriting_gives_a_new_time(store: Store, advance: Advance) -> None:
    """What counts is the ttl of the last put under a key, longer, shorter or none."""
    for key, ttl in (("longer", 100), ("shorter", 1), ("none", None)):
        store.put(1, key=key, ttl=10)
        store.put(2, key=key, ttl=ttl)
    advance(5)
    assert sorted(store) == ["longer", "none"]
    advance(10)
    assert sorted(store) == ["longer", "none"]
    advance(1000)
    assert list(store) == ["none"]


def test_key_of_an_expired_object_is_free(store: Store, advance: Advance) -> None:
    """Put-if-absent and setdefault take the place of what has expired, and of nothing else."""
    store.put_many({"a": 1, "b": 1}, ttl=1)
    with pytest.raises(KeyExistsError):
        store.put(2, key="a", overwrite=False)
    advance(2)
    store.put(2, key="a", overwrite=False)
    assert (store["a"], store.setdefault("b", 3), store["b"]) == (2, 3, 3)


@pytest.mark.parametrize("ttl", [0, -1, math.nan, -math.inf, 1e12, "1", True, [1]])
def test_time_that_is_none_is_refused(store: Store, ttl: Any) -> None:
    """Zero, negative, endless and other times are refused before anything is stored."""
    with pytest.raises((TypeError, ValueError), match="ttl="):
        store.put(1, ttl=ttl)
    with pytest.raises((TypeError, ValueError), match="ttl="):
        store.allocate(1, ttl=ttl)
    with pytest.raises((TypeError, ValueError), match="ttl="):
        Store.create(capacity="1MiB", ttl=ttl)
    assert store.stats().objects == 0


def test_wall_clock_does_not_matter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the time of day neither ends nor prolongs anything."""
    store.put(1, key="long", ttl=1000)
    store.put(1, key="short", ttl=0.05)
    real, day_ns = time.time_ns, 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: real() + 365 * day_ns)
    assert "long" in store
    monkeypatch.setattr(time, "time_ns", lambda: real() - 365 * day_ns)
    time.sleep(0.06)
    assert list(store) == ["long"]


# --- among processes ------------------------------------------------------------------------------

READER = """
import sys, shmstore
from shmstore._catalog import clock
store = shmstore.Store.attach(path, readonly=readonly)
ref, kept = refs
values = ref.get(), store["k"], kept.get()
print("known", flush=True)
for line in sys.stdin:
    clock._ahead_ns[0] -= int(line) * 10**9
    print(store.get("k", "missed"), store.get(ref, "missed"), "k" in store, list(store), flush=True)
    assert (values[2] == 1).all()
"""


@pytest.mark.parametrize("readonly", [False, True], ids=["reader", "read-only reader"])
def test_other_process_that_knows_the_object_misses_it_too(
    make_store: MakeStore, start_python: StartPython, advance: Advance, readonly: Flag
) -> None:
    """What a process remembers of an object ends with the object's time; its views do not."""
    store = make_store()
    refs = store.put({"a": 1}, key="k", ttl=1000), store.put(np.ones(1000), ttl=1000)
    child = start_python(READER, path=str(store.path), refs=refs, readonly=readonly)
    assert child.hear() == "known"
    assert child.ask("900") == "{'a': 1} {'a': 1} True ['k']"
    assert child.ask("101") == "missed missed False []"
    advance(1001)
    store.put_many([np.zeros(10_000)] * 30)
    assert child.ask("0") == "missed missed False []"
    child.end()


def test_objects_of_a_dead_owner_expire(
    store: Store, start_python: StartPython, advance: Advance
) -> None:
    """Nobody has to live for an object to end."""
    before = used(store)
    child = start_python(
        """
        import numpy as np, shmstore
        store = shmstore.Store.attach(path)
        store.put_many({str(number): np.ones(1000) for number in range(10)}, ttl=60)
        print("put", flush=True)
        input()
        """,
        path=str(store.path),
    )
    assert child.hear() == "put"
    child.kill()
    assert len(store) == 10
    advance(61)
    assert list(store) == []
    assert store.check() == []
    assert used(store) == before


def test_forked_child_goes_on_with_the_same_clock(store: Store) -> None:
    """A time that was set before the fork ends in the child too."""
    ref = store.put([1], key="k", ttl=0.05)

    def look() -> None:
        time.sleep(0.06)
        assert store.get(ref, None) is None
        assert list(store) == []

    assert exit_code(forked(look)) == 0


# --- its memory -----------------------------------------------------------------------------------


def test_view_of_an_expired_object_stays_valid(store: Store, advance: Advance) -> None:
    """The memory is reused when the last view has died, as after a delete."""
    view = store.put(np.full(100_000, 7), ttl=1).get()
    advance(2)
    for _ in range(50):
        store.put(np.zeros(10_000), ttl=1)
        advance(2)
    assert (view == 7).all()
    assert store.check() == []
    assert used(store) >= view.nbytes
    del view
    store.check()
    assert used(store) == 0


@any_value
def test_memory_of_expired_objects_is_there_when_it_is_needed(
    make_store: MakeStore, advance: Advance, value: Any
) -> None:
    """A store that is full of expired objects takes as many again."""
    store = make_store(capacity="64KiB", max_objects=8)
    for _ in range(3):
        for number in range(8):
            store.put(value, key=str(number), ttl=1, overwrite=False)
        advance(2)
    assert store.stats().objects <= 8


def test_memory_comes_back_little_by_little(store: Store, advance: Advance) -> None:
    """Puts that find room all the same take expired objects along."""
    store.put_many([np.zeros(1000)] * 200, ttl=1)
    full = used(store)
    advance(2)
    for _ in range(10):
        store.put({"small": 1})
    gc.collect()
    assert store.stats().used < full / 10


def test_expired_objects_go_before_others_are_evicted(
    make_store: MakeStore, advance: Advance
) -> None:
    """A store that evicts takes what is over first, however often it was used."""
    store = make_store(capacity="1MiB", on_full="evict")
    block = np.zeros(1 << 16, np.uint8)
    for number in range(8):
        store[f"old {number}"] = block
    store.put_many({f"over {number}": block for number in range(8)}, ttl=1)
    store.get_many([f"over {number}" for number in range(8)])
    advance(2)
    store.put_many([block] * 8)
    assert sorted(store) == [f"old {number}" for number in range(8)]


class Counted(np.ndarray):
    """A table that counts the values that are taken out of it."""

    taken = 0

    def __getitem__(self, item: Any) -> Any:
        found = np.asarray(self)[item]
        if found.ndim == 2:  # rows, of which columns will be taken
            return found.view(Counted)
        Counted.taken += found.size
        return found


@lock_free_only
@pytest.mark.parametrize("full", [False, True], ids=["with room", "full"])
def test_put_looks_at_few_of_many_objects_that_expire(
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
    advance: Advance,
    locked_reads: Flag,
    full: Flag,
) -> None:
    """Among 20,000 objects, of which one expires per put, a put looks at a few hundred slots."""
    count = 20_000
    room = 0 if full else 1000
    store = make_store(capacity="1MiB", max_objects=count + room, on_full="evict")
    for number in range(count):
        store.put(1, ttl=1000 + number / 100)
    real = SlotTable.table
    monkeypatch.setattr(SlotTable, "table", lambda self: real(self).view(Counted))
    advance(1000)
    Counted.taken = 0
    for _ in range(100):
        store.put(1)
        advance(0.01)
    monkeypatch.undo()
    assert 0 < Counted.taken < 100 * 2000
