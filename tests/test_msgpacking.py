"""How are plain values packed, and what may they not be taken for?"""

from __future__ import annotations

import array
import collections
import datetime as dt
import mmap
from typing import Any

import msgpack
import numpy as np
import pytest
from family_helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import Store
from shmstore.errors import (
    DeserializationError,
    SerializationError,
)
from shmstore.serialization import (
    Serialize,
    Serialized,
    deserialize,
    msgpack_decode_default,
    msgpack_encode_default,
    serialize,
)
from shmstore.serialization.family import msgpack_dumps
from shmstore.serialization.msgpacking import packb, unpackb

GIB = 1 << 30


class Text(str):
    """A subclass of text."""

    __slots__ = ()


Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024 - the one of collections is meant


def travel(x: Any) -> Any:
    """Serialize by the family and back, over bytes."""
    header, frames = serialize(x, ["msgpack"], on_error="raise")
    return deserialize(header, [bytes(frame) for frame in frames], ("msgpack",))


hashable = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.binary(),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
values = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=4),
    ),
    max_leaves=15,
)


# --- plain values -------------------------------------------------------------------------------


@pytest.mark.row("S51", "S52", "S53", "S56", "F12", "F13")
@settings(deadline=None, max_examples=300)
@given(x=values)
def test_plain_value_comes_back_with_all_its_types(x: Any) -> None:
    """Lists are lists and tuples are tuples at any depth, also in keys; ints are of any size."""
    header, frames = serialize(x, ["msgpack"], on_error="raise", iterate_collection=False)
    assert header["serializer"] == "msgpack"
    assert len(frames) == 1
    assert same(deserialize(header, frames), x)


@pytest.mark.row("S51", "F13")
@pytest.mark.parametrize(
    "x",
    [
        Text("a"),
        np.str_("a"),
        np.float64(1),
        Pair(1, 2),
        collections.OrderedDict(a=1),
        collections.Counter("a"),
        type("MyInt", (int,), {})(3),
        type("MyBytes", (bytes,), {})(b"x"),
        type("MyList", (list,), {})([1]),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        array.array("b", b"x"),
        object(),
        int,
        len,
    ],
    ids=lambda x: type(x).__name__,
)
def test_value_that_msgpack_would_change_is_declined(x: Any) -> None:
    """Alone, inside of others, and as a key; the next family gets it."""
    places = [x, [x], (1, {"k": x}), {1: [x]}]
    if type(x).__hash__ is not None:
        places += [{x: 1}, {x}, {(1, x): 1}]
    for place in places:
        with pytest.raises(NotImplementedError):
            msgpack_dumps(place)
    assert serialize((1, [x]), ["msgpack", "pickle"])[0]["serializer"] in ("pickle", "error")


@pytest.mark.row("S51", "F13")
@pytest.mark.parametrize("x", [memoryview(b"abc"), bytearray(b"abc"), msgpack.ExtType(1, b"\x90")])
def test_value_that_packs_as_something_else_keeps_its_type_or_is_declined(x: Any) -> None:
    """Buffers are not bytes, and extensions of users are not ours."""
    for place in (x, [x], {"k": (x,)}):
        try:
            header, frames = msgpack_dumps(place)
        except NotImplementedError:
            continue
        assert same(deserialize({**header, "serializer": "msgpack"}, frames), place)


@pytest.mark.row("S51")
def test_value_that_contains_itself_or_is_too_deep_is_declined() -> None:
    """No overflow of the stack."""
    x: list[Any] = []
    x.append(x)
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (x, deep, [(deep,)], {"a": {"b": x}}):
        with pytest.raises(NotImplementedError):
            msgpack_dumps(value)


@pytest.mark.row("S52")
def test_packed_value_may_come_in_pieces_and_one_piece_is_not_copied() -> None:
    """Any buffer is read in place."""
    header, [frame] = serialize([b"x" * 100, {"k": (1, 2)}], ["msgpack"])
    packed = bytes(frame)
    header = {key: value for key, value in header.items() if key != "frame-nbytes"}
    for frames in (
        [packed[:1], packed[1:50], packed[50:]],
        [bytearray(packed)],
        [memoryview(packed)],
        [np.frombuffer(packed, np.uint8)],
    ):
        assert deserialize(header, frames) == [b"x" * 100, {"k": (1, 2)}]


@pytest.mark.row("S52", "F21")
@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x81\x90\x01",
        b"\xa1\xff",
        b"\x91" * 5000,
        *(msgpack.packb(msgpack.ExtType(code, b"\xc0")) for code in range(1, 128)),
        msgpack.packb(msgpack.ExtType(2, b"\x91\x90")),
        msgpack.packb(msgpack.ExtType(6, b"\x93\x01\x02\x03")),
        msgpack.packb(msgpack.ExtType(7, b"\x90")),
        msgpack.packb(msgpack.ExtType(7, packb([None, None, None, None]))),
    ],
    ids=lambda packed: packed[:8].hex(),
)
def test_bytes_that_are_no_packed_value_are_an_error_of_ours(packed: bytes) -> None:
    """No length is believed that the bytes do not bear out."""
    try:
        deserialize({"serializer": "msgpack"}, [packed])
    except DeserializationError:
        return
    # Two extensions take any bytes: a bytearray, and an int.
    assert packed in (msgpack.packb(msgpack.ExtType(code, b"\xc0")) for code in (4, 5))


@pytest.mark.row("S52", "S56", "F39")
def test_lengths_are_limited_by_the_bytes_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by nothing else."""
    limits = {}

    def unpack(packed: Any, **options: Any) -> None:
        limits.update({key: n for key, n in options.items() if key.startswith("max_")})

    monkeypatch.setattr("shmstore.serialization.msgpacking.msgpack.unpackb", unpack)
    with mmap.mmap(-1, 3 * GIB) as memory:
        unpackb(memory)
    assert set(limits) == {
        "max_str_len",
        "max_bin_len",
        "max_ext_len",
        "max_array_len",
        "max_map_len",
    }
    assert set(limits.values()) == {3 * GIB}


# --- extensions and hooks -----------------------------------------------------------------------


@pytest.mark.row("S54", "S55")
@pytest.mark.parametrize("x", [(1, 2), {1}, frozenset({1}), 1 << 80, 1j])
def test_hooks_can_be_used_with_plain_msgpack(x: Any) -> None:
    """What is not theirs they return unchanged, and msgpack raises."""
    packed = msgpack.packb([x], default=msgpack_encode_default, strict_types=True)
    assert same(msgpack.unpackb(packed, ext_hook=msgpack_decode_default), [x])
    other = object()
    assert msgpack_encode_default(other) is other
    with pytest.raises(TypeError):
        msgpack.packb(other, default=msgpack_encode_default)


@pytest.mark.row("S54", "S55")
@pytest.mark.parametrize("done", [False, True])
def test_marked_object_is_packed_with_its_frames_and_comes_back_serialized(*, done: bool) -> None:
    """Not decoded: who reads it may not be allowed to unpickle."""
    x = {"a": np.arange(3), "b": {1}}
    marker = Serialized(*serialize(x)) if done else Serialize(x)
    back = unpackb(packb({"k": [marker]}))["k"][0]
    assert type(back) is Serialized
    found = deserialize(back.header, back.frames)
    assert (found["a"].tolist(), found["b"]) == ([0, 1, 2], {1})


@pytest.mark.row("S55", "F14")
@pytest.mark.parametrize(
    "x",
    [
        {"__Enum__": True, "name": "RED", "__module__": __name__, "__type__": "Colour"},
        {"__Set__": True, "as-list": [1, 2]},
        {"__Serialized__": 1},
        {"__Serialized__": True, "data": ({"serializer": "pickle"}, [b"x"])},
        {"__Pickled__": 1},
    ],
)
def test_value_that_looks_like_a_marker_of_others_stays_data(x: Any) -> None:
    """What is ours is an extension, which no value can be."""
    assert travel(x) == x
    assert travel([x, {"k": x}]) == [x, {"k": x}]


@pytest.mark.row("S55", "F14")
@pytest.mark.parametrize("code", [0, 11, 42, 127])
def test_extension_that_nobody_knows_is_refused(code: int) -> None:
    """By its number."""
    with pytest.raises(DeserializationError, match=f"extension type {code}"):
        unpackb(msgpack.packb(msgpack.ExtType(code, b"x")))


@pytest.mark.row("S51", "S57")
def test_object_of_plain_values_needs_no_pickle_in_a_store(store: Store) -> None:
    """What holds arrays and plain values can be read by those who accept none."""
    x = {"a": [1, (2, 3)], "b": np.arange(3), "c": {4}}
    found = store.put(x, serializers=("custom", "msgpack")).get(deserializers=("custom", "msgpack"))
    assert found["b"].tolist() == [0, 1, 2]
    assert same([found["a"], found["c"]], [x["a"], x["c"]])
    with pytest.raises(SerializationError):
        store.put({"a": object()}, serializers=("custom", "msgpack"))
    del found
