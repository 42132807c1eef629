"""When a container is taken apart, what then becomes of its elements, and what it costs."""

from __future__ import annotations

import collections
import gc
from typing import Any

import numpy as np
import pytest
from family_helpers import plain_header, travel

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
from shmstore.serialization import Serialize, Serialized, deserialize, serialize
from shmstore.serialization.msgpacking import packb

Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024 - the one of collections is meant


class Keyed(str):
    """A subclass of text."""

    __slots__ = ()


def is_taken_apart(x: Any, serializers: Any = None, **options: Any) -> bool:
    """Return whether `serialize` makes a header per element."""
    return "is-collection" in serialize(x, serializers, **options)[0]


# --- which, and when ----------------------------------------------------------------------------


@pytest.mark.row("S30", "S31")
@pytest.mark.parametrize("x", [[1], (1,), {1}, {"k": 1}, [], (), set(), {}])
def test_container_of_the_exact_type_is_taken_apart_on_request(x: Any) -> None:
    """Also when it is empty; and never without being asked."""
    assert is_taken_apart(x, iterate_collection=True)
    assert not is_taken_apart(x, iterate_collection=False)
    assert not is_taken_apart(x)
    back = travel(x, iterate_collection=True)
    assert back == x
    assert type(back) is type(x)


@pytest.mark.row("S30", "F05")
@pytest.mark.parametrize(
    "x",
    [
        Pair(1, np.zeros(2)),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        collections.deque([1]),
        frozenset({1}),
        {1: 2}.items(),
        range(3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_container_of_another_type_is_a_leaf(x: Any) -> None:
    """It would lose its class."""
    assert not is_taken_apart(x, iterate_collection=True)


@pytest.mark.row("S31", "F06", "F07")
@pytest.mark.parametrize(
    ("serializers", "apart"),
    [
        (None, False),
        (["custom", "pickle"], False),
        (["pickle", "custom"], False),
        (["msgpack", "custom", "pickle"], False),
        (["custom"], True),
        (["custom", "msgpack"], True),
        (["msgpack"], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("place", [0, 50, 99])
def test_container_is_taken_apart_where_no_pickle_is_asked_for_and_a_handler_is_needed(
    serializers: Any, place: int, *, apart: bool
) -> None:
    """Wherever in it the element is that has a handler."""
    x: list[Any] = [1] * 100
    x[place] = np.zeros(1)
    assert is_taken_apart(x, serializers) is apart
    assert not is_taken_apart([1] * 100, serializers)


@pytest.mark.row("S31", "S53")
def test_list_under_msgpack_stays_a_list() -> None:
    """At any depth, whole or in part."""
    x = [[1, (2, [3])], {"k": [4]}]
    for serializers in (["msgpack"], ["msgpack", "pickle"], ["custom", "msgpack"]):
        assert travel(x, serializers) == x
        assert travel(x, serializers, iterate_collection=True) == x


@pytest.mark.row("S31")
def test_nested_containers_without_pickle_are_taken_apart_to_the_leaves() -> None:
    """Those who accept no pickle can read what holds arrays."""
    x = {"a": [np.arange(3), {"b": (np.zeros(2), 1)}], "c": {2, 3}}
    back = travel(x, ["custom", "msgpack"], ("custom", "msgpack"))
    assert back["a"][0].tolist() == [0, 1, 2]
    assert back["a"][1]["b"][1] == 1
    assert back["c"] == {2, 3}


@pytest.mark.row("S32")
@pytest.mark.parametrize(
    "key", ["k", b"k", 1, -(2**63), 2**64 - 1, 1.5, None, True, (1, "a", (None,)), ()]
)
def test_key_that_msgpack_packs_as_it_is_keeps_its_type(key: Any) -> None:
    """Such a dict can be taken apart."""
    assert is_taken_apart({key: 1}, iterate_collection=True)
    back = travel({key: np.zeros(1), "other": 2}, iterate_collection=True)
    assert list(back) == [key, "other"]
    assert type(next(iter(back))) is type(key)


@pytest.mark.row("S32", "F13")
@pytest.mark.parametrize(
    "key",
    [frozenset({1}), 1 << 64, -(1 << 63) - 1, Keyed("k"), np.str_("k"), Pair(1, 2), 1j, int, (1j,)],
    ids=repr,
)
def test_key_that_msgpack_would_change_makes_the_dict_a_leaf(key: Any) -> None:
    """One such key is enough; it keeps its class."""
    x = {"a": 1, key: 2}
    assert not is_taken_apart(x, iterate_collection=True)
    back = travel(x, iterate_collection=True)
    assert back == x
    assert [type(k) for k in back] == [type(k) for k in x]


@pytest.mark.row("S33")
def test_iterate_collection_is_not_handed_down() -> None:
    """Each container inside decides anew."""
    header, _ = serialize([[1], {"k": (1,)}], iterate_collection=True)
    assert [sub["serializer"] for sub in header["sub-headers"]] == ["pickle", "pickle"]
    header, _ = serialize([[1], [Serialize([1])]], iterate_collection=True)
    assert "is-collection" not in header["sub-headers"][1]
    header, _ = serialize([Serialize([1])], iterate_collection=True)
    assert header["sub-headers"][0]["is-collection"] is True


@pytest.mark.row("S33")
def test_elements_are_serialized_by_the_same_families() -> None:
    """And errors are raised, or not, as for the whole."""
    header, _ = serialize([1, "a"], ["msgpack", "pickle"], iterate_collection=True)
    assert {sub["serializer"] for sub in header["sub-headers"]} == {"msgpack"}
    with pytest.raises(SerializationError, match=r"obj\[1\]\['k'\]"):
        serialize([1, {"k": object(), "a": b""}], ["custom", "msgpack"], "raise")
    with pytest.raises(SerializationError, match=r"obj\['a'\]\[2\]"):
        serialize({"a": (b"", 1, sorted.__call__)}, ["custom", "msgpack"], "raise")
    with pytest.raises(SerializationError, match=r"obj\{\.\.\.\}"):
        serialize({b"", len}, ["custom"], "raise")


# --- header, frames and back --------------------------------------------------------------------


@pytest.mark.row("S34")
def test_header_of_a_container_tells_its_type_and_the_frames_of_each_element() -> None:
    """There is no family for the whole."""
    header, frames = serialize([b"a", [1], np.zeros(3)], iterate_collection=True)
    assert header["is-collection"] is True
    assert header["type-serialized"] == "list"
    assert header["frame-lengths"] == [1, 1, 1]
    assert "serializer" not in header
    assert "compression" not in header
    assert frames[0] == b"a"
    header, frames = serialize({"x": {1}, 2: b""}, iterate_collection=True)
    assert [sub["key"] for sub in header["sub-headers"]] == ["x", 2]
    for empty in ([], (), set(), {}):
        header, frames = serialize(empty, iterate_collection=True)
        assert (header["sub-headers"], header["frame-lengths"], frames) == ([], [], [])


@pytest.mark.row("S34", "S62")
def test_header_of_a_container_has_a_codec_per_frame_if_an_element_brought_one() -> None:
    """Undecided for all others."""
    done = Serialized({"serializer": "pickle", "compression": ["zlib", None]}, [b"1", b"2"])
    header, frames = serialize([b"a", done, b"c"], iterate_collection=True)
    assert header["compression"] == [None, "zlib", None, None]
    assert len(frames) == 4


@pytest.mark.row("S35", "F01")
@pytest.mark.parametrize(
    "x", [{"a": 1, "b": {"c": b"x"}, 3: [4]}, [1, {"k": 2}], (1, (2,)), {1, "a"}]
)
def test_header_can_be_decoded_twice(x: Any) -> None:
    """It is not changed by it, nor by a trip through bytes."""
    header, frames = serialize(x, iterate_collection=True)
    before = packb(header)
    for _ in range(2):
        assert deserialize(header, frames) == x
        assert packb(header) == before
    assert deserialize(plain_header(header), tuple(frames)) == x


@pytest.mark.row("S04", "F02")
@pytest.mark.parametrize("family", ["custom", "pickle", "msgpack"])
def test_serialized_object_in_two_places_is_itself_in_both(family: str) -> None:
    """Its header is not written to."""
    value = np.arange(3) if family == "custom" else [0, 1, 2]
    header, frames = serialize(value, [family])
    before = packb(header)
    done = Serialized(header, frames)
    for x in ({"a": done, "b": done}, [done, done, done]):
        found = serialize(x, iterate_collection=True)
        back = deserialize(*found)
        values = list(back.values()) if isinstance(back, dict) else back
        assert all(list(value) == [0, 1, 2] for value in values)
        assert packb(header) == before
        assert done.header is header


@pytest.mark.row("S35", "F21")
@pytest.mark.parametrize(
    "changes",
    [
        {"type-serialized": "object"},
        {"type-serialized": 3},
        {"type-serialized": "os.system"},
        {"sub-headers": None},
        {"sub-headers": [{}]},
        {"sub-headers": [1, 2]},
        {"frame-lengths": [1]},
        {"frame-lengths": [1, 1, 1]},
        {"frame-lengths": [3, -1]},
        {"frame-lengths": [1, "1"]},
        {"frame-lengths": [0, 1]},
        {"frame-lengths": None},
        {"writeable": [True]},
        {"frame-nbytes": [1, 2]},
        {"frame-nbytes": "ab"},
    ],
)
def test_header_of_a_container_that_does_not_fit_is_refused(changes: Any) -> None:
    """Whichever count is wrong."""
    header, frames = serialize([b"abc", b"de"], iterate_collection=True)
    with pytest.raises(CorruptHeaderError):
        deserialize({**header, **changes}, frames)
    with pytest.raises(CorruptHeaderError):
        deserialize(header, frames[:1])
    with pytest.raises(CorruptHeaderError):
        deserialize(header, [*frames, b""])


@pytest.mark.row("S35", "F21")
def test_header_of_a_container_without_a_key_is_refused() -> None:
    """A dict needs a key for each element, and a set elements that can be hashed."""
    header, frames = serialize({"a": b"1"}, iterate_collection=True)
    for sub in ({}, {"key": []}):
        rest = {k: v for k, v in header["sub-headers"][0].items() if k != "key"}
        with pytest.raises(DeserializationError):
            deserialize({**header, "sub-headers": [{**rest, **sub}]}, frames)
    header, frames = serialize([[1]], iterate_collection=True)
    with pytest.raises(DeserializationError, match="unhashable"):
        deserialize({**header, "type-serialized": "set"}, frames)


@pytest.mark.row("S33", "F21")
@pytest.mark.parametrize("depth", [3, 5000])
def test_container_that_is_too_deep_to_be_taken_apart_is_an_error_of_ours(depth: int) -> None:
    """Neither side ends in a RecursionError, whoever made the header."""
    x: list[Any] = [np.zeros(1)]
    for _ in range(depth):
        x = [x]
    if depth < 10:
        assert is_taken_apart(x, ["custom"])
        return
    with pytest.raises(SerializationError, match="nested too deeply"):
        serialize(x, ["custom"], "raise")
    header: dict[str, Any] = {"serializer": "custom", "type": "bytes", "sub-header": {}}
    for _ in range(depth):
        header = {
            "is-collection": True,
            "type-serialized": "list",
            "sub-headers": [header],
            "frame-lengths": [1],
        }
    with pytest.raises(DeserializationError):
        deserialize(header, [b"x"])


# --- identity and cost --------------------------------------------------------------------------


@pytest.mark.row("S33", "F06")
def test_container_pickled_whole_keeps_what_is_shared_and_what_contains_itself() -> None:
    """Taken apart it is serialized as often as it is met."""
    shared = np.arange(3)
    x: list[Any] = [shared, shared, {"again": shared}]
    x.append(x)
    back = travel(x)
    assert back[0] is back[1] is back[2]["again"]
    assert back[3] is back
    left, right = travel([shared, shared], iterate_collection=True)
    assert left is not right


@pytest.mark.row("S33", "F06")
def test_container_that_contains_itself_cannot_be_taken_apart_and_is_told_so() -> None:
    """Instead of running out of stack."""
    x: list[Any] = [np.arange(3)]
    x.append(x)
    with pytest.raises(SerializationError, match="contain themselves") as caught:
        serialize(x, ["custom", "msgpack"], on_error="raise")
    assert len(str(caught.value)) < 4000
    header, frames = serialize(x, ["custom", "msgpack"])
    with pytest.raises(SerializationError, match="contain themselves"):
        deserialize(header, frames)


@pytest.mark.row("S36", "F07")
def test_taking_apart_costs_a_header_and_a_frame_per_element() -> None:
    """That is why it is not done by default."""
    header, frames = serialize([np.zeros(1), *range(1000)], iterate_collection=True)
    assert len(header["sub-headers"]) == len(frames) == 1001


@pytest.mark.row("S36", "F07")
@pytest.mark.parametrize("place", [0, -1])
def test_array_among_many_numbers_is_one_header_and_two_frames(place: int) -> None:
    """However many they are, and wherever it is."""
    numbers = list(range(100_000))
    array = np.arange(1000)
    x = [array, *numbers] if place == 0 else [*numbers, array]
    header, frames = serialize(x)
    assert len(frames) == 2
    assert len(packb(header)) < 200
    assert [np.shares_memory(np.frombuffer(frame, np.uint8), array) for frame in frames] == [
        False,
        True,
    ]
    back = travel(x)
    assert back[place].tolist() == array.tolist()
    assert sum(back[1:] if place == 0 else back[:-1]) == sum(numbers)


@pytest.mark.row("S36", "F07")
def test_array_among_many_numbers_is_one_object_with_one_frame_table(store: Store) -> None:
    """In a store the cost is the same."""
    x = [np.arange(1000), *range(100_000)]
    ref = store.put(x)
    found = ref.get(mode="readonly")
    assert len(store.get(ref, decode=False).frames) == 2
    assert found[0].tolist() == x[0].tolist()
    assert found[1:] == x[1:]
    del found
    gc.collect()
