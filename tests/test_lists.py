"""Is a list in a store a sequence of the records that were put, each of them got by itself?"""

from __future__ import annotations

import collections.abc
import gc
import itertools
import pickle
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from likeness import likeness
from stores import MakeStore, lock_free_only, reclaim_at_once, used

from shmstore import (
    FamilyRefusedError,
    KeyExistsError,
    ObjectNotFoundError,
    SerializationError,
    SharedList,
    Store,
    StoreClosedError,
)
from shmstore.serialization import deserialize

SAFE = ("custom", "msgpack")
pytestmark = lock_free_only


class Point:
    """An object that only pickle takes."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    def __hash__(self) -> int:
        return self.x


def frozen(x: Any) -> np.ndarray:
    """Return an array that may not be written."""
    array = np.asarray(x)
    array.flags.writeable = False
    return array


MANY_AXES = (1,) * (32 if np.__version__.startswith("1.") else 64)

LISTS: dict[str, list[Any]] = {
    "empty": [],
    "text": ["", "a", "ü", "\ud800", "\x00", "long" * 500] * 300,
    "bytes": [b"", b"x", bytes(70_000)] * 9,
    "rows": [np.full((3, 5), n, "i2") for n in range(2000)],
    "rows-large": [np.full((300, 51), n, "f4") for n in range(5)],
    "rows-frozen": [frozen([n, n]) for n in range(5)],
    "rows-of-one": [np.array(n) for n in range(9)],
    "rows-of-none": [np.zeros((0, 3)) for _ in range(3)],
    "rows-structured": [np.array([(n, 0.5)], [("a", "i1"), ("b", "f8")]) for n in range(9)],
    "rows-of-many-axes": [np.full(MANY_AXES, n) for n in range(3)],
    "fields-of-many-axes": [{"a": np.full(MANY_AXES, n)} for n in range(3)],
    "ragged": [np.arange(n % 7, dtype="i4") for n in range(2000)],
    "ragged-tables": [np.ones((n % 3, 4), ">f4") for n in range(10)],
    "fields": [{"tokens": np.arange(n % 9), "label": n, "kind": "a"} for n in range(50)],
    "tuples": [(np.full(20, n), n, 0.5, b"b", None, [n]) for n in range(50)],
    "numbers": [0, -1, 1 << 200, -(1 << 63), 255, 0.0, float("inf"), True, None, 1j],
    "mixed": [
        "a",
        b"b",
        np.arange(4),
        frozen(np.arange(5)),
        [np.ones(3), frozen(np.ones(100_000))],
        [np.arange(3), {"deep": [np.arange(2)]}],
        np.asfortranarray(np.ones((3, 4))),
        np.arange(10)[::2],
        np.zeros(3, "M8[s]"),
        np.array(["a", None], object),
        np.ma.masked_array([1, 2], [True, False]),
        bytearray(b"q"),
        {1, 2},
        Point(3),
        {4: np.arange(4)},
        {"not": "an array"},
        range(7),
    ],
}


def flags_of(x: Any) -> list[bool]:
    """Return which of the arrays directly in a record may be written."""
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else [x]
    return [part.flags.writeable for part in parts if isinstance(part, np.ndarray)]


def assert_same(found: Any, items: list[Any]) -> None:
    """Fail unless these are the records of that list, with the flags of their arrays."""
    assert [likeness(x) for x in found] == [likeness(x) for x in items]
    assert [flags_of(x) for x in found] == [flags_of(x) for x in items]


@pytest.mark.parametrize("name", LISTS)
def test_list_of_any_records_comes_back(store: Store, name: str) -> None:
    """Type, content and flags of each record are what they were, in whatever order they are got."""
    items = LISTS[name]
    found: SharedList[Any] = store.get(store.put_list(iter(items), key="list"))
    assert type(found) is SharedList
    assert len(found) == len(items)
    assert_same(found, items)
    assert_same(list(reversed(found)), items[::-1])
    assert_same([found[-1 - at] for at in range(len(items))], items[::-1])
    assert_same(pickle.loads(pickle.dumps(found)), items)


KINDS = {
    "text": "text",
    "bytes": "bytes",
    "rows": "rows",
    "rows-frozen": "rows",
    "rows-of-one": "rows",
    "ragged": "ragged",
    "ragged-tables": "ragged",
    "fields": "mixed",
}


@pytest.mark.parametrize("name", KINDS)
def test_records_of_one_kind_lie_compactly(store: Store, name: str) -> None:
    """Of a list of one kind each record costs a few bytes beside its own."""
    items = LISTS[name]
    ref = store.put_list(items)
    assert store.get(ref, decode=False).header["sub-header"]["layout"] == KINDS[name]
    own = {str: lambda x: len(x.encode("utf-8", "surrogatepass")), bytes: len}
    if type(items[0]) in own:
        assert ref.nbytes == sum(map(own[type(items[0])], items)) + 4 * (len(items) + 1)
    elif KINDS[name] == "rows":
        assert ref.nbytes <= sum(x.nbytes + 8 for x in items)


def test_records_without_pickle_are_read_by_who_accepts_none(store: Store) -> None:
    """Text, bytes, numbers, arrays and containers of such with arrays need no pickle."""
    for name in ("text", "bytes", "rows", "ragged", "fields"):
        assert_same(store.get(store.put_list(LISTS[name]), deserializers=SAFE), LISTS[name])
    mixed = ["a", b"b", 1, 0.5, np.arange(3), (np.arange(3), 7, "x")]
    found = store.get(store.put_list([*mixed, Point(1)]), deserializers=SAFE)
    assert_same(found[:-1], mixed)
    with pytest.raises(FamilyRefusedError):
        _ = found[-1]
    again = pickle.loads(pickle.dumps(found[4:]))
    with pytest.raises(FamilyRefusedError):
        _ = again[-1]


def test_records_put_without_pickle_are_read_without(store: Store) -> None:
    """The families that are asked can be chosen, as those of an object."""
    items: list[Any] = [{"a": 1}, [None, True], "text"]
    found = store.get(store.put_list(items, serializers=SAFE), deserializers=SAFE)
    assert list(found) == items
    with pytest.raises(SerializationError, match="record 1 of the list"):
        store.put_list(["a", Point(1)], serializers=SAFE)
    with pytest.raises(ValueError, match="serializers="):
        store.put_list(["a"], serializers=("nothing",))


def test_record_that_cannot_be_pickled_is_named(store: Store) -> None:
    """The error says which record it is; nothing has been put."""
    items = [1, 2, (n for n in range(3))]
    with pytest.raises(SerializationError, match="record 2 of the list") as raised:
        store.put_list(items, key="never")
    assert raised.value.path == "items[2]"
    assert "never" not in store


# --- a sequence -----------------------------------------------------------------------------------

PLAIN = ["zero", "one", "two", "three", "two"]


def test_list_is_a_sequence_like_any_other(store: Store) -> None:
    """What a list answers, a SharedList answers."""
    found = store.get(store.put_list(PLAIN))
    assert isinstance(found, collections.abc.Sequence)
    assert found.index("two") == 2
    assert found.index("two", 3) == 4
    assert found.count("two") == 2
    assert "three" in found
    assert "four" not in found
    assert found == PLAIN
    assert PLAIN == found  # noqa: SIM300 - the list is asked first
    assert found != PLAIN[:-1]
    assert found != [*PLAIN[:-1], "x"]
    assert found != tuple(PLAIN)
    assert found == store.get(store.put_list(PLAIN))
    assert found[:2] != found[1:3]
    assert found.__getitems__([4, 0, -2]) == ["two", "zero", "three"]
    assert found[np.int64(1)] == "one"
    assert found[True] == "one"
    assert repr(found).startswith("<SharedList of 5 records in <ObjectRef ")
    for index in (5, -6):
        with pytest.raises(IndexError, match="of a SharedList of 5"):
            _ = found[index]
    for wrong in ("1", 1.0, None, (1, 2)):
        with pytest.raises(TypeError):
            _ = found[wrong]
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        found.index("four")
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)
    with pytest.raises(TypeError, match="put_list"):
        SharedList()


def test_slices_of_slices_are_views_of_the_same_records(store: Store) -> None:
    """Every slice gives what that of a list gives, and is a SharedList of the same object."""
    items = [str(n) for n in range(12)]
    found = store.get(store.put_list(items))
    ends = (None, 0, 3, -2, 20, -20)
    for start, stop, step in itertools.product(ends, ends, (None, 1, 3, -1, -2)):
        part, expected = found[start:stop:step], items[start:stop:step]
        assert (part, len(part), part.ref) == (expected, len(expected), found.ref)
        assert part[1:-1:2] == expected[1:-1:2]
        assert pickle.loads(pickle.dumps(part[::-1])) == expected[::-1]


def test_pickle_of_a_list_is_a_reference(store: Store) -> None:
    """Its size does not depend on the number of records."""
    small, large = (store.get(store.put_list(["x" * 9] * n)) for n in (1, 50_000))
    assert len(pickle.dumps(large)) <= len(pickle.dumps(small)) + 8 <= 180
    assert len(pickle.dumps(large[5:40_000:3])) <= 200


def test_list_tells_of_its_object(store: Store) -> None:
    """It has the reference, by which it can be deleted, and what is known of the object."""
    found = store.get(store.put_list(PLAIN, key="words"))
    assert found.ref == store.info("words").ref
    assert found[2:].info().key == "words"
    with pytest.raises(KeyExistsError):
        store.put_list(PLAIN, key="words", overwrite=False)
    found.ref.delete()
    with pytest.raises(ObjectNotFoundError):
        pickle.loads(pickle.dumps(found))
    assert found == PLAIN


def test_forged_reference_to_a_slice_is_refused(store: Store) -> None:
    """A range that leaves the list is no slice of it."""
    found = store.get(store.put_list(PLAIN))
    arrive, arguments = found[1:3].__reduce__()
    for start, stop, step in [(0, 6, 1), (-1, 2, 1), (4, -2, -1)]:
        with pytest.raises(IndexError, match="leaves a list of 5"):
            arrive(arguments[0], start, stop, step)


# --- modes ----------------------------------------------------------------------------------------


def test_modes_say_what_arrays_among_the_records_are(store: Store) -> None:
    """Shared as they were, read-only, private or copied: as for a single array."""
    for items in ([np.zeros(3), np.zeros(3)], [np.zeros(3), "x", [np.zeros(3)]]):
        ref = store.put_list(items)
        store.get(ref)[0][0] = 1
        assert store.get(ref)[0][0] == 1
        private, copy = store.get(ref, mode="private"), store.get(ref, mode="copy")
        private[0][1] = copy[0][2] = 5
        assert store.get(ref)[0].tolist() == [1, 0, 0]
        assert private[0].tolist() == [1, 5, 0]
        readonly = pickle.loads(pickle.dumps(store.get(ref, mode="readonly")))
        assert not readonly[0].flags.writeable
        sealed = store.get(store.put_list(items, readonly=True))
        assert not sealed[0].flags.writeable
        assert sealed[-1] is not None


# --- how long it lives ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "ragged", "fields", "tuples"])
def test_view_of_a_record_outlives_list_object_and_store(make_store: MakeStore, name: str) -> None:
    """One array is enough to keep the memory of all; when it dies, all of it goes back."""
    items = LISTS[name]
    store = make_store(capacity="2MiB")
    reclaim_at_once(store)
    found = store.get(store.put_list(items, key="list"))
    record = found[40]
    view = record if isinstance(record, np.ndarray) else next(iter(record_arrays(record)))
    expected = view.copy()
    store.delete("list")
    part = found[3:6]
    del found, record
    filled = [store.put(np.full(4000, 7.0)) for _ in range(20)]
    assert (view == expected).all()
    assert_same(part, items[3:6])
    del part, filled
    gc.collect()
    assert used(store) > 0
    store.close()
    assert (view == expected).all()
    with pytest.raises(StoreClosedError):
        store.put_list([])


def record_arrays(record: Any) -> list[np.ndarray]:
    """Return the arrays in a record of fields."""
    values = record.values() if isinstance(record, dict) else record
    return [value for value in values if isinstance(value, np.ndarray)]


def test_memory_goes_back_with_the_last_view_of_a_list(make_store: MakeStore) -> None:
    """A list and its slices hold the object, and nothing holds it after them."""
    store = make_store(capacity="2MiB")
    reclaim_at_once(store)
    found = store.get(store.put_list(LISTS["rows"], key="list"))
    part = found[1:3]
    store.delete("list")
    del found
    assert store.stats().pinned > 0
    del part
    gc.collect()
    store.put(np.ones(10_000))
    assert store.stats().pinned == 0


def test_list_in_a_store_that_spills_is_read_from_its_file(
    make_store: MakeStore, tmp_path: Any
) -> None:
    """A list larger than the store lies in a file, and is a list all the same."""
    store = make_store(capacity="1MiB", on_full="spill", spill_dir=tmp_path)
    items = [np.full(50_000, n) for n in range(8)]
    ref = store.put_list(iter(items))
    assert ref.nbytes > 1 << 20
    assert_same(store.get(ref), items)
    assert_same(pickle.loads(pickle.dumps(store.get(ref)[2:4])), items[2:4])


def test_list_travels_undecoded_into_another_store(make_store: MakeStore) -> None:
    """Header and frames of a list are a list wherever they are put."""
    store, other = make_store(), make_store()
    items = LISTS["mixed"]
    ref = store.put_list(items)
    assert_same(other.get(other.put(store.get(ref, decode=False))), items)
    assert_same(other.load_bytes(store.dump_bytes(ref)).get(), items)
    undecoded = store.get(ref, decode=False)
    records = deserialize(undecoded.header, undecoded.frames)
    assert_same(records, items)
    assert_same(records[2:4], items[2:4])


# --- any records ----------------------------------------------------------------------------------

ARRAYS = arrays.arrays(
    st.sampled_from(["u1", "i4", "f8", "c16", "?", "U3", "S2", "M8[ns]", ">i2"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
LEAVES = st.one_of(
    st.text(max_size=9),
    st.binary(max_size=9),
    st.integers(),
    st.floats(allow_nan=False),
    st.none(),
    ARRAYS,
)
RECORDS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    items=st.one_of(
        st.lists(RECORDS, max_size=12),
        st.lists(st.text(max_size=5), max_size=40),
        st.lists(ARRAYS, max_size=6),
    ),
    serializers=st.sampled_from([None, ("custom", "pickle"), ("pickle",)]),
)
@example(items=[np.empty((0, 1, 0)), np.empty((1, 1, 0))], serializers=None)
@example(items=[np.empty((3, 0)), np.empty((5, 0))], serializers=None)
@example(items=[np.empty((0, 2)), np.ones((1, 2))], serializers=None)
@example(items=[np.empty(2, "S0"), np.empty(3, "S0")], serializers=None)
def test_any_records_come_back(store: Store, items: list[Any], serializers: Any) -> None:
    """Whatever the records are and whatever their neighbours are."""
    ref = store.put_list(iter(items), serializers=serializers)
    found = store.get(ref)
    assert [likeness(x) for x in found] == [likeness(x) for x in items]
    del found
    ref.delete()
