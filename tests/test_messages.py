"""Messages: every part comes as it went, relays pass on what they do not open, lies are refused."""

from __future__ import annotations

import collections
import decimal
import enum
import threading
from typing import NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.errors import (
    DeserializationError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    families,
    nested_deserialize,
    register_serialization_family,
    serialize,
    to_serialize,
)
from shmstore.serialization.compression import compressions, decompress
from shmstore.serialization.messages import dumps, loads
from shmstore.serialization.splitting import merge_and_deserialize, restore

ARRAY = np.arange(5000, dtype="f8")
CODECS = [None, "auto", *list(compressions)[2:]]


def transport(frames: list) -> list[bytes]:
    """Return frames as they come out of a socket."""
    return [memoryview(frame).tobytes() for frame in frames]


# --- there and back -------------------------------------------------------------------------------


PLAIN = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.complex_numbers(allow_nan=False),
    lambda some: st.lists(some) | st.tuples(some, some) | st.dictionaries(st.integers(), some),
)


@pytest.mark.row("S110", "S111")
@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        PLAIN | st.builds(Serialize, PLAIN) | st.builds(ToPickle, PLAIN),
        lambda some: (
            st.lists(some)
            | st.tuples(some, some)
            | st.dictionaries(st.integers() | st.tuples(st.text(), st.integers()), some)
        ),
    )
)
def test_messages_come_as_they_went(msg):
    """Types included; markers are replaced by what they marked."""
    assert loads(transport(dumps(msg))) == nested_deserialize(msg)


@pytest.mark.row("S110")
def test_frame_zero_is_msgpack_of_the_whole_message():
    """The only frame where nothing is marked; other readers of msgpack can look into it."""
    (frame,) = dumps({"op": "get", "keys": [1, b"x"]})
    assert msgpack.unpackb(frame) == [1, {"op": "get", "keys": [1, b"x"]}]


@pytest.mark.row("S110", "S111")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [None, 10_000])
@pytest.mark.parametrize("marker", [Serialize, to_serialize, ToPickle, lambda x: x])
def test_arrays_in_messages(marker, size, codec):
    """Marked or not, with any codec, whole and in pieces, each read twice."""
    zeros = np.zeros((300, 40), order="F")
    msg = {"a": marker(ARRAY), "b": [marker(zeros)], "c": (marker(ARRAY[::2]), {"d": marker(7)})}
    frames = transport(dumps(msg, context={"compression": codec}, frame_split_size=size))
    if codec is not None:
        assert sum(map(len, frames)) < zeros.nbytes
    for _ in range(2):
        back = loads(frames)
        np.testing.assert_equal(back, {"a": ARRAY, "b": [zeros], "c": (ARRAY[::2], {"d": 7})})
        assert back["b"][0].flags.f_contiguous
        assert back["a"].flags.writeable


@pytest.mark.row("S110")
@pytest.mark.parametrize("marker", [Serialize, ToPickle, lambda x: x])
def test_frames_are_the_memory_of_the_objects(marker):
    """Nothing is copied on the way, in both directions."""
    frames = dumps([marker(ARRAY)])
    assert any(np.shares_memory(np.frombuffer(frame, "u1"), ARRAY) for frame in frames)
    assert np.shares_memory(loads(frames)[0], ARRAY)


@pytest.mark.row("S110", "F14", "S54", "S55")
@pytest.mark.parametrize("marker", [Serialize, ToPickle])
def test_markers_in_tuples_sets_and_as_keys(marker):
    """Wherever a value may stand."""
    msg = {marker("key"): ((marker(1), marker(ARRAY)),), "set": {marker(5), 6}}
    back = loads(transport(dumps(msg)))
    assert list(back) == ["key", "set"]
    assert back["set"] == {5, 6}
    assert back["key"][0][0] == 1
    assert np.array_equal(back["key"][0][1], ARRAY)


@pytest.mark.row("F14", "S55")
@pytest.mark.parametrize(
    "data",
    [
        {"__Serialized__": 1},
        {"__Pickled__": 1, "data": 2},
        {"__Set__": True, "as-list": [1]},
        {"__Enum__": True, "name": "A", "__module__": "os", "__type__": "x"},
        {"num-sub-frames": 3},
    ],
)
def test_keys_that_mark_something_elsewhere_are_data(data):
    """No key of a dict has a meaning, in the message and in what is serialized."""
    assert loads(dumps(data)) == data
    assert loads(dumps([Serialize(data), ToPickle(data)])) == [data, data]


class Point(NamedTuple):
    """A tuple that msgpack would make a list."""

    x: int
    y: int


@pytest.mark.row("S110")
@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5),
        np.int32(7),
        decimal.Decimal("1.1"),
        Point(1, 2),
        collections.OrderedDict(a=1),
        range(3),
        Ellipsis,
        print,
        2**70,
        frozenset({1}),
    ],
    ids=lambda x: type(x).__name__,
)
def test_values_that_msgpack_lacks_are_pickled_one_by_one(value):
    """As values and, where they can be hashed, as keys; they keep their type."""
    back = loads(transport(dumps({"v": value, "w": [value, 1]})))
    assert back == {"v": value, "w": [value, 1]}
    assert type(back["v"]) is type(value)
    if not isinstance(value, dict):
        assert loads(transport(dumps({value: 1}))) == {value: 1}


@pytest.mark.row("S54")
def test_enum_members_travel_by_name(monkeypatch):
    """If the reader allows their module."""
    monkeypatch.setattr("shmstore.serialization.trust.allowed_modules", {__name__})
    back = loads(dumps({Colour.RED: [Colour.BLUE]}))
    assert back == {Colour.RED: [Colour.BLUE]}
    monkeypatch.setattr("shmstore.serialization.trust.allowed_modules", {"shmstore"})
    with pytest.raises(ShmStoreError):
        loads(dumps(Colour.RED))


class Colour(enum.Enum):
    """A plain enum."""

    RED = 1
    BLUE = 2


@pytest.mark.row("S110", "F25")
def test_nothing_is_compressed_unless_asked_for():
    """And not twice what brings a codec."""
    zeros = np.zeros(10_000)
    assert sum(memoryview(f).nbytes for f in dumps(Serialize(zeros))) > zeros.nbytes
    small = sum(
        memoryview(f).nbytes for f in dumps(Serialize(zeros), context={"compression": "zlib"})
    )
    assert small < zeros.nbytes // 10


@pytest.mark.row("F29")
@pytest.mark.parametrize("marker", [Serialize, ToPickle, lambda x: x])
def test_what_was_compressed_is_decompressed_on_every_way(marker):
    """Buffers of what was pickled too."""
    zeros = np.zeros(10_000)
    frames = transport(dumps(marker(zeros), context={"compression": "zlib"}))
    assert sum(map(len, frames)) < 10_000
    assert np.array_equal(loads(frames), zeros)


@pytest.mark.row("S110")
def test_errors_of_parts_and_of_messages():
    """A marked part becomes an error of its reader, or raises here; what is pickled raises here."""
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        loads(transport(dumps({"a": Serialize(lock)})))
    for msg in ({"a": Serialize(lock)}, ToPickle(lock), [lock]):
        with pytest.raises(SerializationError, match="lock"):
            dumps(msg, on_error="raise")
    with pytest.raises(SerializationError, match="lock"):
        dumps([lock])
    cycle: list = []
    cycle.append(cycle)
    with pytest.raises(SerializationError, match="list"):
        dumps(cycle)


@pytest.mark.row("S110")
def test_the_options_of_serialize_are_passed_on():
    """Families and context, for marked parts."""
    relayed = loads(dumps(Serialize(ARRAY), serializers=("pickle",)), deserialize=False)
    assert relayed.header["serializer"] == "pickle"
    relayed = loads(
        dumps(Serialize(ARRAY), ("pickle",), context={"pickle-protocol": 4}), deserialize=False
    )
    assert len(relayed.frames) == 1


# --- relays ---------------------------------------------------------------------------------------


@pytest.mark.row("S111", "S110")
@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("size", [None, 9000, 16])
def test_a_relay_passes_on_what_it_does_not_open(codec, size):
    """The same frames, still compressed and in pieces, through any number of relays."""
    msg = {"op": "put", "data": [Serialize(np.zeros(9000)), (Serialize(ARRAY),)], "n": 1}
    frames = transport(dumps(msg, context={"compression": codec}, frame_split_size=size))
    relayed = loads(frames, deserialize=False)
    assert relayed["op"] == "put"
    first = relayed["data"][0]
    assert type(first) is Serialized
    assert all(any(one is frame for frame in frames) for one in first.frames)
    again = dumps(relayed, frame_split_size=size)
    assert transport(again) == frames
    assert transport(dumps(loads(again, deserialize=False), frame_split_size=size)) == frames
    for last in (frames, again):
        np.testing.assert_equal(
            loads(last), {"op": "put", "data": [np.zeros(9000), (ARRAY,)], "n": 1}
        )


@pytest.mark.row("S111", "F03", "F11")
@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("other", [None, "zlib", "zstd"])
def test_a_relay_may_have_other_options(codec, other):
    """What is compressed keeps its codec; what is not may be cut and compressed anew."""
    if other:
        pytest.importorskip({"zlib": "zlib", "zstd": "zstandard"}[other])
    zeros = np.zeros(9000)
    frames = dumps(Serialize(zeros), context={"compression": codec}, frame_split_size=20_000)
    relayed = loads(transport(frames), deserialize=False)
    again = dumps(relayed, context={"compression": other}, frame_split_size=7000)
    assert np.array_equal(loads(transport(again)), zeros)


@pytest.mark.row("S111", "S12", "S13")
def test_a_relay_unpickles_only_what_it_may():
    """What was pickled is opened by default; without pickle it stays Pickled, to be passed on."""
    frames = transport(dumps([ToPickle(ARRAY), Serialize(ARRAY), np.float64(3)]))
    opened = loads(frames, deserialize=False)
    assert np.array_equal(opened[0], ARRAY)
    assert type(opened[1]) is Serialized
    closed = loads(frames, deserialize=False, deserializers=("msgpack",))
    assert [type(part) for part in closed] == [Pickled, Serialized, Pickled]
    assert transport(dumps(closed)) == frames
    assert np.array_equal(loads(dumps(closed))[0], ARRAY)


@pytest.mark.row("S111")
def test_families_that_are_not_accepted_are_refused():
    """Pickles that nobody has marked included."""
    frames = dumps({"a": Serialize(ARRAY)})
    assert np.array_equal(loads(frames, deserializers=("custom",))["a"], ARRAY)
    for msg in (ToPickle(1), Serialize(print), np.float64(3)):
        with pytest.raises(TypeError, match="pickle"):
            loads(dumps(msg), deserializers=("custom", "msgpack"))


@pytest.mark.row("S111")
def test_markers_that_cannot_be_keys_are_our_error():
    """A Serialized has no hash."""
    with pytest.raises(DeserializationError, match="unhashable"):
        loads(dumps({Serialize(1): 2}), deserialize=False)


@pytest.mark.row("S111", "F02")
def test_what_a_relay_got_is_not_written_to():
    """Neither headers nor the list of frames change by being passed on or opened."""
    frames = transport(dumps([Serialize(ARRAY)], frame_split_size=100))
    copy = list(frames)
    (part,) = loads(frames, deserialize=False)
    header, held = dict(part.header), list(part.frames)
    dumps([part, part])
    both = loads(dumps([part, part]))
    assert np.array_equal(both[0], both[1])
    merge_and_deserialize(part.header, decompress(part.header, part.frames))
    assert part.header == header
    assert part.frames == held
    assert frames == copy


@pytest.mark.row("S04", "S111")
def test_what_was_serialized_before_is_sent():
    """A Serialized that never was in a message, and one that was and is restored."""
    header, frames = serialize({"a": ARRAY})
    sent = dumps(Serialized(header, frames), context={"compression": "zlib"}, frame_split_size=512)
    assert np.array_equal(loads(transport(sent))["a"], ARRAY)
    part = loads(transport(sent), deserialize=False)
    restored, whole = restore(part.header, part.frames)
    assert restored == header
    assert [bytes(frame) for frame in whole] == [bytes(frame) for frame in frames]


@pytest.mark.row("S62", "F11")
@pytest.mark.parametrize("codec", CODECS)
def test_frames_that_bring_a_codec_keep_it(codec):
    """A family may bring frames that are compressed, or must not be."""
    data = bytes(range(100)) * 1000

    def dump(x):
        packed = compressions["zlib"].compress(x)
        return {"compression": [["zlib", len(x)], False, None]}, [packed, x, x]

    register_serialization_family("packing", dump, lambda _, frames: [bytes(f) for f in frames])
    try:
        frames = dumps(Serialize(data), ("packing",), "raise", {"compression": codec})
        assert loads(transport(frames)) == [data] * 3
        assert data in transport(frames)
    finally:
        del families["packing"]
