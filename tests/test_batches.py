"""Batches of small objects enter the slot table in a few steps, and are like those put alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import MIB, MakeStore, RunPython

from shmstore import (
    CorruptStoreError,
    ReadOnlyStoreError,
    Store,
    StoreFullError,
    _batches,
    _packing,
    _puts,
)
from shmstore._catalog import batches, states
from shmstore._memory import layout as L
from shmstore.serialization import plain, register_serialization

MANY = 300

# Batches of one type, by what is peculiar about them.
PLAIN: dict[str, list[Any]] = {
    "records of one shape": [{"id": n, "score": 0.5, "tags": ["a", "b"]} for n in range(MANY)],
    "numbers of several sizes": [7**n for n in range(200)],
    "texts of all sizes": ["é" * (n % 80) for n in range(MANY)],
    "bytes": [bytes(n % 160) for n in range(MANY)],
    "nothing": [None] * MANY,
    "complex numbers": [complex(n, -n) for n in range(MANY)],
    "sets": [{n, str(n)} for n in range(MANY)],
    "deep": [[[[[n], {"a": (n,)}]]] for n in range(MANY)],
    "more than fit at once": [(n, n * n) for n in range(3000)],
    "as few as go together": [{"n": n} for n in range(_batches._FEWEST)],
}


class Told:
    """An object that counts how often it was pickled."""

    times = 0

    def __reduce__(self) -> tuple[Any, ...]:
        Told.times += 1
        return Told, ()


def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that tells how many objects have entered together, each time."""
    counts: list[int] = []
    insert = batches.insert

    def noted(table: Any, slots: Any, *rest: Any) -> None:
        counts.append(len(slots))
        insert(table, slots, *rest)

    monkeypatch.setattr(batches, "insert", noted)
    return counts


@pytest.mark.parametrize("name", PLAIN)
def test_batch_is_stored_like_single_objects(
    make_store: MakeStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header, frame, kind and place of each are the same; the checksums are right."""
    counts = together(monkeypatch)
    store, values = make_store(capacity="16MiB", max_objects=10_000), PLAIN[name]
    refs = store.put_many(values)
    assert counts == [len(values)]
    assert [store.get(ref) for ref in refs] == values
    slots = store._session.slots
    for ref, value in zip(refs, values, strict=True):
        alone = store.put(value)
        one, other = slots.read(ref._slot), slots.read(alone._slot)
        assert one.kind == other.kind
        assert one.owner == other.owner
        assert one.pid == other.pid
        assert slots.inline_pickle(ref._slot) == slots.inline_pickle(alone._slot)
        assert slots.inline_header(one) == slots.inline_header(other)
        assert ref.nbytes == alone.nbytes == one.data_nbytes
        sent = pickle.loads(pickle.dumps(ref))
        assert (sent, sent.key, sent.nbytes) == (ref, None, ref.nbytes)
        store.delete(alone)
    assert store.stats().objects == len(values)
    assert store.check() == []


def test_batch_is_read_by_another_process(
    store: Store, run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has to believe the checksums."""
    counts, values = together(monkeypatch), PLAIN["records of one shape"]
    refs = store.put_many(values)
    assert counts == [len(values)]
    out = run_python("print([ref.get() for ref in refs] == values)", refs=refs, values=values)
    assert out.strip() == "True"


@pytest.mark.parametrize("filler", [b"a", "a"], ids=["bytes", "str"])
def test_batch_fills_slots_to_the_last_byte(
    store: Store, filler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has one byte more than fits goes the general way."""
    batch = _packing.pack_batch([filler] * 12)
    assert batch is not None
    room = L.INLINE_NBYTES - len(batch.header)
    counts = together(monkeypatch)
    for length in range(100, 200):
        value = filler * length
        fits = len(pickle.dumps(value, 5)) <= room
        assert store.get_many(store.put_many([value] * 30)) == [value] * 30
        assert counts == [30] * fits
        counts.clear()
    assert len(pickle.dumps(filler * 100, 5)) < room < len(pickle.dumps(filler * 199, 5))
    assert store.check() == []


@pytest.mark.parametrize(
    "values",
    [
        [1, "a", None] * 10,
        [{"n": n} for n in range(30)] + [{"n": np.arange(3)}],
        [[n] for n in range(30)] + [["a" * 200]],
        [[n] for n in range(30)] + [["a" * 200_000]],
        [np.float64(n) for n in range(30)],
        [[bytearray(b"a")] for n in range(30)] + [[np.ma.masked]],
        [1] * (_batches._FEWEST - 1),
    ],
    ids=["types", "array", "long", "large", "numpy", "instance", "few"],
)
def test_batch_that_is_not_alike_is_put_all_the_same(
    store: Store, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the general way."""
    counts = together(monkeypatch)
    got = store.get_many(store.put_many(values))
    assert counts == []
    assert list(map(repr, got)) == list(map(repr, values))
    assert store.check() == []


def test_code_of_an_object_runs_once(store: Store) -> None:
    """What is not of a builtin type is refused before it is asked how to pickle it."""
    Told.times = 0
    store.put_many([[n, Told] for n in range(40)] + [[Told()]])
    assert Told.times == 1


def test_buffer_in_a_batch_is_shared(store: Store) -> None:
    """It does not go into the stream of a small object."""
    data = bytearray(b"abc")
    refs = store.put_many([[n, pickle.PickleBuffer(data)] for n in range(40)])
    refs[3].get()[1][:1] = b"x"
    assert bytes(refs[3].get()[1]) == b"xbc"


def test_handler_of_a_builtin_type_is_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when small objects of the type have been put without one."""
    from shmstore.serialization.registry import custom_deserialize, custom_serialize

    store.put_many([{n} for n in range(40)])
    store.put({1})
    for registry in (custom_serialize, custom_deserialize):
        monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))
        monkeypatch.setattr(registry, "_by_name", dict(registry._by_name))
        monkeypatch.setattr(registry, "cache", {})
    register_serialization(
        set,
        lambda x: ({"count": len(x)}, []),
        lambda header, _: {"a set of", header["count"]},
    )
    assert store.put_many([{n} for n in range(40)])[7].get() == {"a set of", 1}
    assert store.put({1, 2}).get() == {"a set of", 2}


# --- slots ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from(["all", "some", "back", "shuffled"])),
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_slots_in_any_order_are_filled(steps: list[tuple[int, str]], seed: int) -> None:
    """Whatever was deleted, in whichever order, each object gets a slot of its own."""
    random_ = random.Random(seed)
    with Store.create(capacity="1MiB", max_objects=1000) as store:
        living: dict[Any, int] = {}
        for count, way in steps:
            values = range(len(living), len(living) + min(count, 1000 - len(living)))
            living |= zip(store.put_many(values), values, strict=True)
            assert {ref: ref.get() for ref in living} == living
            gone = list(living)
            if way == "some":
                gone = random_.sample(gone, len(gone) // 3)
            elif way == "back":
                gone.reverse()
            elif way == "shuffled":
                random_.shuffle(gone)
                gone = gone[: len(gone) - len(gone) // 4]
            assert store.delete_many(gone) == len(gone)
            for ref in gone:
                del living[ref]
            assert store.check() == []
        assert store.stats().objects == len(living)


def test_batch_takes_the_last_slots_or_none(make_store: MakeStore) -> None:
    """One that finds too few changes nothing; one that evicts finds enough."""
    store = make_store(capacity=MIB, max_objects=100)
    kept = store.put_many(range(50))
    with pytest.raises(StoreFullError):
        store.put_many(range(51))
    assert store.stats().objects == 50
    assert len(store.put_many(range(50))) == 50
    assert store.get_many(kept) == list(range(50))
    evicting = make_store(capacity=MIB, max_objects=100, on_full="evict")
    refs = [ref for _ in range(3) for ref in evicting.put_many(range(60))]
    assert [evicting.get(ref, None) for ref in refs[120:]] == list(range(60))
    assert store.check() == evicting.check() == []


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda words, at: words.__setitem__(at(50) + L.S_LINK, at.first + 90), "loop"),
        (lambda words, at: words.__setitem__(at(50), words[at(50)] | states.DOOMED), "is free"),
        (lambda words, at: words.__setitem__(at(50) + L.S_LINK, 1 << 40), "is free"),
    ],
    ids=["loop", "taken", "outside"],
)
def test_list_of_free_slots_that_is_damaged_is_refused(
    make_store: MakeStore, damage: Callable[..., None], match: str
) -> None:
    """In the middle of a run, too; afterwards the list has been made anew."""
    store: Any = make_store(max_objects=1000)
    refs = store.put_many(range(100))
    store.delete_many(refs)
    slots = store._session.slots

    def at(number: int) -> int:
        return slots.state_index(refs[number]._slot)

    at.first = refs[0]._slot + 1  # type: ignore[attr-defined]
    damage(store._session.words, at)
    with pytest.raises(CorruptStoreError, match=match):
        store.put_many(range(100))
    refs = store.put_many(range(100))
    assert store.get_many(refs) == list(range(100))
    assert store.check() == []


@pytest.mark.parametrize("where", ["insert", "refer_batch"])
def test_batch_that_is_interrupted_is_not_there(
    store: Store, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before nor after it was published: nobody has a reference to it."""
    module = batches if where == "insert" else _puts
    once = getattr(module, where)

    def interrupted(*args: Any) -> None:
        once(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put_many(range(40))
    monkeypatch.undo()
    assert store.stats().objects == 0
    assert store.check() == []


def test_readonly_handle_puts_no_batch(store: Store) -> None:
    """It says so, as for a single object."""
    with Store.attach(store.path, readonly=True) as reader, pytest.raises(ReadOnlyStoreError):
        reader.put_many(range(40))


def test_batch_expires_in_a_store_that_says_so(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time to live goes the general way."""
    counts = together(monkeypatch)
    store = make_store(ttl=1000)
    assert all(ref.info().expires is not None for ref in store.put_many(range(40)))
    assert make_store().put_many(range(40), ttl=1000)[7].info().expires is not None
    assert counts == []


# --- sums ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    streams=st.lists(st.binary(min_size=1, max_size=180), min_size=1, max_size=300),
    start=st.binary(min_size=72, max_size=84),
    places=st.integers(0, 12),
    data=st.data(),
)
def test_checksums_of_a_batch_are_those_of_each(
    streams: list[bytes], start: bytes, places: int, data: Any
) -> None:
    """Whether the streams are alike or not."""
    if data.draw(st.booleans()):
        base = bytearray(streams[0])
        streams = []
        for number in range(data.draw(st.integers(100, 400))):
            for place in range(places):
                base[place * 37 % len(base)] = (number * (place + 3)) & 0xFF
            streams.append(bytes(base))
    sizes = np.frombuffer(bytes(map(len, streams)), np.uint8)
    firsts = np.arange(len(streams), dtype=np.uint32) * np.uint32(2654435761)
    block = batches._lay_out(start, streams, sizes)
    sums = batches._sum_up(start, streams, sizes, block, firsts).tolist()
    for stream, first, total in zip(streams, firsts.tolist(), sums, strict=True):
        whole = start[:24] + len(stream).to_bytes(8, "little") + start[32:] + stream
        assert total == crc32(whole, first)


def test_what_is_not_small_ends_pickling_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of a batch is pickled to see that it has to go another way."""
    pickled: list[Any] = []

    class Telling(plain.BuiltinPickler):
        def dump(self, obj: Any) -> None:
            pickled.append(obj)
            super().dump(obj)

    monkeypatch.setattr(plain, "BuiltinPickler", Telling)
    large = [list(range(1000)) for _ in range(1000)]
    assert plain.dumps_each(large) is None
    assert len(pickled) == 1
    pickled.clear()
    assert plain.dumps_each([[n] for n in range(100)] + large) is None
    assert 100 < len(pickled) < 300
    assert _batches.put(None, large[:3]) is None  # type: ignore[arg-type]
