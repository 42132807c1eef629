"""Frames in pieces: whole again without a copy where that is possible, refused where they lie."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.errors import CorruptHeaderError, SerializationError
from shmstore.serialization import (
    Serialize,
    Serialized,
    deserialize,
    families,
    register_serialization_family,
    serialize,
    splitting,
)
from shmstore.serialization.compression import compress_frames
from shmstore.serialization.frames import Planned, ensure_memoryview
from shmstore.serialization.splitting import (
    merge,
    merge_and_deserialize,
    restore,
    serialize_and_split,
    split,
)

KEYS = ("split-num-sub-frames", "split-offsets", "compression")
ARRAY = np.arange(1000, dtype="i4")


def address(view) -> int:
    """Return where a buffer lies."""
    return np.frombuffer(view, np.uint8).ctypes.data


@pytest.fixture
def packing_family():
    """Give a family that brings frames which are compressed, must not be, and may be."""

    def dumps(x):
        header = {"compression": [["zlib", len(x)], False, None, "zlib"]}
        return header, [zlib.compress(x), x, x, zlib.compress(x)]

    register_serialization_family("packing", dumps, lambda _, frames: [bytes(f) for f in frames])
    yield "packing"
    del families["packing"]


@pytest.mark.row("S07", "S61")
def test_the_header_says_how_many_pieces_and_where_they_start():
    """One entry per frame, and one per piece for the compression."""
    header, pieces = serialize_and_split([ARRAY, b"abc"], size=1500, iterate_collection=True)
    assert header["split-num-sub-frames"] == [3, 1]
    assert header["split-offsets"] == [0, 3]
    assert header["compression"] == [None] * 4
    assert [memoryview(piece).nbytes for piece in pieces] == [1500, 1500, 1000, 3]
    array, text = merge_and_deserialize(header, pieces)
    assert np.array_equal(array, ARRAY)
    assert text == b"abc"


@pytest.mark.row("S07")
@pytest.mark.parametrize("size", [None, 0, 4000, 10**9])
def test_what_is_short_stays_whole(size):
    """The default is 64 MiB; the frame is still the memory of the object."""
    header, pieces = serialize_and_split(ARRAY, size=size)
    assert header["split-num-sub-frames"] == [1]
    assert address(pieces[0]) == ARRAY.ctypes.data


@pytest.mark.row("S07")
def test_the_options_of_serialize_are_passed_on():
    """Families, what to do on errors, and the context."""
    assert serialize_and_split(ARRAY, ("pickle",))[0]["serializer"] == "pickle"
    lock = __import__("threading").Lock()
    with pytest.raises(SerializationError):
        serialize_and_split(lock, on_error="raise")
    with pytest.raises(SerializationError):
        merge_and_deserialize(*serialize_and_split(lock))
    header, _ = serialize_and_split(ARRAY, ("pickle",), context={"pickle-protocol": 4})
    assert header["split-num-sub-frames"] == [1]


@pytest.mark.row("S07", "S61", "S62")
def test_what_is_compressed_or_must_not_be_stays_whole(packing_family):
    """Only the frame whose entry is None is cut."""
    data = bytes(100)
    header, pieces = serialize_and_split(data, [packing_family], size=40)
    assert header["split-num-sub-frames"] == [1, 1, 3, 1]
    assert header["split-offsets"] == [0, 1, 2, 5]
    assert header["compression"] == [["zlib", 100], False, None, None, None, "zlib"]
    assert deserialize(*restore(header, pieces)) == [data] * 4


@pytest.mark.row("S62", "F21")
@pytest.mark.parametrize("entries", [[], [None, None], "z", 1])
def test_compression_entries_that_are_not_one_per_frame_are_refused(entries):
    """Before anything is cut."""
    header, frames = serialize(ARRAY)
    with pytest.raises(CorruptHeaderError):
        split({**header, "compression": entries}, frames, 100)


@pytest.mark.row("S08")
@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 400), st.booleans())
def test_what_is_cut_becomes_whole(contents, size, transported):
    """The header is the one before, also after the pieces went through a transport."""
    header = {"serializer": "x", 1: "y"}
    cut, pieces = split(header, contents, size)
    if transported:
        pieces = [bytes(piece) for piece in pieces]
    assert merge(cut, pieces) == (header, contents)
    assert restore(cut, pieces) == (header, contents)
    assert set(cut) == {*header, *KEYS}
    assert header == {"serializer": "x", 1: "y"}


@pytest.mark.row("S08", "F09")
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_several_dimensions_are_cut_and_joined(order):
    """Neither order nor shape is lost, whatever the size of a piece."""
    table = np.arange(600.0).reshape(20, 30, order=order)
    for size in (7, 8, 1000, 4800):
        joined = merge_and_deserialize(*serialize_and_split(table, size=size))
        assert np.array_equal(joined, table)
        assert joined.strides == table.strides


@pytest.mark.row("S08")
def test_pieces_of_one_memory_are_joined_without_a_copy():
    """The array is the same memory again."""
    joined = merge_and_deserialize(*serialize_and_split(ARRAY, size=999))
    assert joined.ctypes.data == ARRAY.ctypes.data


@pytest.mark.row("S08", "S71", "F37")
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_other_pieces_are_joined_in_new_memory_once(kind, monkeypatch):
    """Memory that was not cleared before is filled piece by piece; the array may be written."""
    asked = []

    def allocate(size):
        memory = np.full(size, 77, np.uint8)
        asked.append(memory)
        return memory.data

    monkeypatch.setattr(splitting, "allocate", allocate)
    header, pieces = serialize_and_split(ARRAY, size=999)
    joined = merge_and_deserialize(header, [kind(piece) for piece in pieces])
    assert np.array_equal(joined, ARRAY)
    assert joined.flags.writeable
    assert [memory.nbytes for memory in asked] == [4000]
    assert joined.ctypes.data == asked[0].ctypes.data


@pytest.mark.row("S08")
def test_flags_survive_the_pieces():
    """A read-only array comes back read-only, with and without a copy."""
    frozen = ARRAY.copy()
    frozen.flags.writeable = False
    header, pieces = serialize_and_split(frozen, size=999)
    assert not merge_and_deserialize(header, pieces).flags.writeable
    transported = [bytearray(piece) for piece in pieces]
    assert not merge_and_deserialize(header, transported).flags.writeable


@pytest.mark.row("S08")
def test_without_the_keys_frames_are_used_as_they_are():
    """What `serialize` returned can be given as well."""
    assert np.array_equal(merge_and_deserialize(*serialize(ARRAY)), ARRAY)
    header, frames = serialize(ARRAY)
    assert merge(header, frames) == (header, frames)
    assert restore(header, frames)[0] is header


@pytest.mark.row("S08")
def test_families_that_are_not_accepted_are_refused():
    """The list of accepted families is passed on."""
    header, pieces = serialize_and_split(ARRAY, ("pickle",), size=999)
    with pytest.raises(TypeError, match="pickle"):
        merge_and_deserialize(header, pieces, ("custom",))


@pytest.mark.row("S61", "F02")
def test_headers_that_are_passed_in_are_not_written_to():
    """A Serialized may be split, put under two keys, and be as it was."""
    header, frames = serialize(ARRAY)
    before = dict(header)
    one = Serialized(header, frames)
    cut, pieces = serialize_and_split(one, size=100)
    again = dict(cut)
    merge_and_deserialize(cut, pieces)
    assert cut == again
    assert one.header is header
    assert header == before
    both = merge_and_deserialize(*serialize_and_split(Serialize({"a": one, "b": one}), size=100))
    assert sorted(both) == ["a", "b"]
    assert header == before


@pytest.mark.row("F03")
@pytest.mark.parametrize("transported", [False, True])
@pytest.mark.parametrize("size", [None, 50, 999, 1024])
def test_what_was_split_can_be_split_again(size, transported):
    """It is joined first; twice is as once."""
    header, pieces = serialize_and_split(ARRAY, size=512)
    if transported:
        pieces = [bytes(piece) for piece in pieces]
    again, smaller = serialize_and_split(Serialized(header, pieces), size=size)
    assert again == serialize_and_split(ARRAY, size=size)[0]
    assert np.array_equal(merge_and_deserialize(again, smaller), ARRAY)


@pytest.mark.row("F03")
def test_what_was_split_and_compressed_is_left_as_it_is():
    """It can be passed on, and becomes whole at the end."""
    header, pieces = compress_frames(*serialize_and_split(np.zeros(9000), size=20_000), "zlib")
    again, same = serialize_and_split(Serialized(header, pieces), size=100)
    assert again == header
    assert again is not header
    assert same == pieces
    assert np.array_equal(deserialize(*restore(again, same)), np.zeros(9000))


@pytest.mark.row("S07")
def test_planned_frames_are_made_before_they_are_cut():
    """A promise of bytes is kept once."""
    calls = []

    def write_into(target):
        calls.append(target.nbytes)
        target[:] = bytes(range(100))

    _, pieces = split({}, [Planned(100, write_into)], 30)
    assert b"".join(pieces) == bytes(range(100))
    _, pieces = split({"compression": [False]}, [Planned(100, write_into)], 30)
    assert b"".join(map(ensure_memoryview, pieces)) == bytes(range(100))
    assert calls == [100, 100]


@pytest.mark.row("S08", "F21")
@pytest.mark.parametrize("key", ["split-num-sub-frames", "split-offsets", "compression"])
@pytest.mark.parametrize(
    "forged",
    [[], [4], [6], [5, 0], [0, 5], [-1, 6], [2**63], ["5"], [5.0], [True, 4], 5, "5", [[5]], {}],
    ids=repr,
)
def test_forged_counts_are_refused(key, forged):
    """Whatever stands there instead of what `split` wrote."""
    header, pieces = serialize_and_split(ARRAY, size=800)
    assert header["split-num-sub-frames"] == [5]
    with pytest.raises(CorruptHeaderError) as caught:
        merge_and_deserialize({**header, key: forged}, pieces)
    assert caught.value.key == key


@pytest.mark.row("S08", "F21")
def test_missing_pieces_and_keys_are_refused():
    """One piece more or less; one of the keys without the other."""
    header, pieces = serialize_and_split(ARRAY, size=800)
    for wrong in (pieces[:-1], [*pieces, b""], [], pieces * 2):
        with pytest.raises(CorruptHeaderError):
            merge_and_deserialize(header, wrong)
        with pytest.raises(CorruptHeaderError):
            split(header, wrong, 100)
    del header["split-offsets"]
    with pytest.raises(CorruptHeaderError):
        merge_and_deserialize(header, pieces)
