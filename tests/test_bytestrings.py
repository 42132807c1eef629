"""Objects as strings of bytes: aligned, without a copy, and nothing damaged is ever believed."""

from __future__ import annotations

import gc
import mmap
import struct
import subprocess
import sys
import threading
import weakref
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.errors import CodecNotFoundError, CorruptHeaderError, SerializationError
from shmstore.serialization import (
    Serialize,
    Serialized,
    families,
    register_serialization_family,
)
from shmstore.serialization.bytestrings import (
    MAGIC,
    VERSION,
    deserialize_bytes,
    serialize_bytelist,
    serialize_bytes,
)
from shmstore.serialization.compression import compressions

ARRAY = np.arange(5000, dtype="f8")
CODECS = [None, *list(compressions)[2:]]


def address(view) -> int:
    """Return where a buffer lies."""
    return np.frombuffer(view, np.uint8).ctypes.data


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.row("S73", "S74", "S75")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [None, 1, 100, 10_000])
@pytest.mark.parametrize(
    "x",
    [None, 7, "text", [1, (2, {3})], {"a": ARRAY, 5: ARRAY[::3]}, ARRAY, b"x" * 30_000, Ellipsis],
    ids=lambda x: type(x).__name__,
)
def test_what_is_written_is_read(x, codec, size):
    """Any object, with any codec, in pieces of any size."""
    if size == 1 and isinstance(x, np.ndarray | bytes | dict):
        size = 64
    text = serialize_bytes(x, compression=codec, frame_split_size=size)
    assert isinstance(text, bytes)
    for source in (text, bytearray(text), memoryview(text), np.frombuffer(text, "u1")):
        np.testing.assert_equal(deserialize_bytes(source), x)
        np.testing.assert_equal(deserialize_bytes(source, copy=True), x)


@pytest.mark.row("S73", "S74")
@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
        lambda some: st.lists(some) | st.dictionaries(st.integers(), some),
    ),
    st.booleans(),
)
def test_the_list_joined_is_the_string(x, iterate):
    """Prelude, header and frames, and no other byte."""
    pieces = serialize_bytelist(x, iterate_collection=iterate)
    text = serialize_bytes(x, iterate_collection=iterate)
    assert b"".join(pieces) == text
    assert deserialize_bytes(text) == x


@pytest.mark.row("S73")
def test_the_frames_of_the_list_are_the_memory_of_the_object():
    """Nothing is copied before the pieces are written."""
    assert ARRAY.ctypes.data in [
        address(piece) for piece in serialize_bytelist(ARRAY) if memoryview(piece).nbytes
    ]


@pytest.mark.row("S73")
def test_an_object_without_frames():
    """An empty container that was taken apart has a header and nothing behind it."""
    text = serialize_bytes([], iterate_collection=True)
    assert deserialize_bytes(text) == []
    assert len(serialize_bytelist([], iterate_collection=True)) == 2


@pytest.mark.row("S73")
def test_the_arguments_of_serialize_are_accepted():
    """Families, context and taking apart; what is unknown is a TypeError."""
    text = serialize_bytes(
        [ARRAY], serializers=("pickle",), context={"pickle-protocol": 4}, iterate_collection=False
    )
    assert np.array_equal(deserialize_bytes(text)[0], ARRAY)
    with pytest.raises(TypeError):
        serialize_bytes(1, compress="zlib")
    with pytest.raises(ValueError, match="serializers"):
        serialize_bytes(1, serializers=("nope",))
    with pytest.raises(CodecNotFoundError):
        serialize_bytes(ARRAY, compression="nope")


@pytest.mark.row("S75")
def test_families_that_are_not_accepted_are_refused():
    """Reading without pickle reads what others wrote without running it."""
    text = serialize_bytes({"a": 1}, serializers=("msgpack",))
    assert deserialize_bytes(text, ("msgpack",)) == {"a": 1}
    with pytest.raises(TypeError, match="pickle"):
        deserialize_bytes(serialize_bytes(object), ("custom", "msgpack"))


@pytest.mark.row("S76")
def test_what_cannot_be_serialized_is_refused_by_the_writer():
    """By default; otherwise the reader is told."""
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        serialize_bytes(lock)
    with pytest.raises(SerializationError, match="lock"):
        serialize_bytes([1, lock], iterate_collection=True)
    text = serialize_bytes(lock, on_error="message")
    with pytest.raises(TypeError, match="lock"):
        deserialize_bytes(text)


@pytest.mark.row("S75", "F12")
def test_headers_with_keys_of_any_kind():
    """Numbers, tuples, bytes and None are keys of a dict that is taken apart."""
    x = {1: ARRAY, (2, "b"): 2, b"c": 3, None: 4, 5.5: 5, False: ARRAY}
    back = deserialize_bytes(serialize_bytes(Serialize(x)))
    np.testing.assert_equal(back, x)


@pytest.mark.row("S74", "F04")
@pytest.mark.parametrize(
    "frame", [ARRAY.reshape(50, 100).T, ARRAY[::7], ARRAY.reshape(50, 100)[:, 3:9]]
)
def test_frames_of_any_order_are_written(frame):
    """Those of a Serialized too, which nobody has flattened."""
    assert np.array_equal(deserialize_bytes(serialize_bytes(frame)), frame)
    held = Serialized({"serializer": "pickle", "writeable": []}, [np.asfortranarray([b"N."])])
    assert deserialize_bytes(serialize_bytes(held)) is None


@pytest.mark.row("S75")
@pytest.mark.parametrize(
    "view",
    [
        lambda text: np.repeat(np.frombuffer(text, "u1"), 2)[::2],
        lambda text: memoryview(text).cast("B", (1, len(text))),
    ],
)
def test_strings_in_any_view_are_read(view):
    """What is not contiguous is copied."""
    assert np.array_equal(deserialize_bytes(view(serialize_bytes(ARRAY))), ARRAY)


@pytest.mark.row("S75")
def test_what_is_no_buffer_is_a_type_error():
    """A str has no bytes."""
    with pytest.raises(TypeError):
        deserialize_bytes("text")


def test_another_process_reads_the_string(tmp_path):
    """It depends on nothing of the process that wrote it."""
    path = tmp_path / "object"
    path.write_bytes(serialize_bytes({"a": ARRAY, "f": lambda x: x + 1}, compression="zlib"))
    code = (
        "import sys, pathlib, shmstore.serialization.bytestrings as b;"
        "x = b.deserialize_bytes(pathlib.Path(sys.argv[1]).read_bytes());"
        "print(x['a'].sum(), x['f'](1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(ARRAY.sum()), "2"]


# --- memory ---------------------------------------------------------------------------------------


def arrays(x) -> list[np.ndarray]:
    """Return the arrays of an object."""
    return (
        [x] if isinstance(x, np.ndarray) else [part for part in x if isinstance(part, np.ndarray)]
    )


@pytest.mark.row("F08", "S75")
@pytest.mark.parametrize("iterate", [False, True])
@pytest.mark.parametrize("size", [None, 100, 4096])
def test_every_frame_starts_at_a_multiple_of_64(iterate, size):
    """In a mapped file every array is aligned, without a copy."""
    x = [np.arange(n, dtype="f8") for n in (3, 1000, 1, 77)] + [np.arange(5, dtype="u1")]
    text = serialize_bytes(x, iterate_collection=iterate, frame_split_size=size)
    with mmap.mmap(-1, len(text)) as mapped:
        mapped[:] = text
        back = deserialize_bytes(mapped)
        start = address(mapped)
        for array, expected in zip(back, x, strict=True):
            assert np.array_equal(array, expected)
            assert (array.ctypes.data - start) % 64 == 0
            assert array.flags.aligned
            assert start < array.ctypes.data < start + len(text)
        del back, array
        gc.collect()


@pytest.mark.row("S75")
def test_from_bytes_nothing_of_the_string_can_be_written():
    """A read-only array is a slice of the bytes; a writable one gets memory of its own."""
    frozen = ARRAY.copy()
    frozen.flags.writeable = False
    text = serialize_bytes(frozen)
    back = deserialize_bytes(text)
    assert not back.flags.writeable
    assert address(text) < back.ctypes.data < address(text) + len(text)
    text = serialize_bytes(ARRAY)
    before = bytes(bytearray(text))
    deserialize_bytes(text)[:] = 0
    assert text == before


@pytest.mark.row("S75", "F36")
def test_from_a_bytearray_two_calls_share_memory():
    """Unless a copy is asked for; a copy keeps nothing alive."""
    text = bytearray(serialize_bytes(ARRAY))
    one, two = deserialize_bytes(text), deserialize_bytes(text)
    one[7] = -1
    assert two[7] == -1
    three = deserialize_bytes(text, copy=True, verify=False)
    one[7] = -2
    assert three[7] == -1
    assert three.flags.writeable
    assert not np.shares_memory(one, three)
    assert np.shares_memory(one, two)


@pytest.mark.row("S75")
def test_a_string_that_was_written_to_is_read_only_without_its_checksums():
    """The header is verified anyway."""
    text = bytearray(serialize_bytes(ARRAY))
    deserialize_bytes(text)[0] = 5
    with pytest.raises(CorruptHeaderError, match="checksum of frame 0"):
        deserialize_bytes(text)
    assert deserialize_bytes(text, verify=False)[0] == 5
    text[50] ^= 1
    with pytest.raises(CorruptHeaderError, match="checksum of the header"):
        deserialize_bytes(text, verify=False)


@pytest.mark.row("F36")
def test_an_array_keeps_the_string_alive_and_a_copy_does_not():
    """Any array pins all of it."""

    class Held(bytearray):
        """A bytearray that can be watched."""

    text = Held(serialize_bytes([ARRAY, ARRAY[:3].copy()]))
    watched = weakref.ref(text)
    small = deserialize_bytes(text)[1]
    copied = deserialize_bytes(text, copy=True)[1]
    del text
    gc.collect()
    assert watched() is not None
    assert small.tolist() == copied.tolist()
    del small
    gc.collect()
    assert watched() is None
    assert copied.tolist() == [0, 1, 2]


@pytest.mark.row("S73", "F38")
@pytest.mark.parametrize("codec", CODECS[1:])
def test_compressed_frames_come_back_in_memory_of_their_own(codec):
    """The array is writable, and the string stays what it was."""
    text = serialize_bytes(np.zeros(100_000), compression=codec)
    assert len(text) < 50_000
    back = deserialize_bytes(text)
    back += 1
    assert deserialize_bytes(text).sum() == 0


@pytest.mark.row("S73", "F25")
def test_nothing_is_compressed_unless_asked_for():
    """The bytes of the array stand in the string as they are."""
    assert bytes(100_000) in serialize_bytes(np.zeros(100_000, "u1"))


@pytest.mark.row("S62", "F11")
def test_frames_that_bring_a_codec_keep_it():
    """They are not compressed again, and become what they were."""
    data = bytes(range(100)) * 1000

    def dumps(x):
        packed = zlib.compress(x)
        return {"compression": [["zlib", len(x)], "zlib", False, None]}, [packed, packed, x, x]

    register_serialization_family("packing", dumps, lambda _, frames: [bytes(f) for f in frames])
    try:
        for codec in CODECS:
            text = serialize_bytes(data, serializers=("packing",), compression=codec)
            assert deserialize_bytes(text) == [data] * 4
            assert data in text
    finally:
        del families["packing"]


# --- the format -----------------------------------------------------------------------------------


def test_the_format_is_what_the_table_says():
    """Offsets and numbers are permanent; the frame of a read-only array is found by hand."""
    frozen = np.frombuffer(b"0123456789" * 100, "u1")
    text = serialize_bytes(frozen)
    magic, version, lead, header_nbytes, total, checksum = struct.unpack_from("<8sIIQQQ", text)
    assert (magic, version, total) == (b"shmbytes", 1, len(text))
    assert (magic, version) == (MAGIC, VERSION)
    assert lead == zlib.crc32(text[:12])
    first = -(-(40 + header_nbytes) // 64) * 64
    assert checksum == zlib.crc32(text[40:first], zlib.crc32(text[:32]))
    assert text[first:] == bytes(frozen)


def test_version_one_stays_readable():
    """The bytes of None, as the first version wrote them."""
    text = bytes.fromhex(
        "73686d627974657301000000e4d955617b00000000000000c400000000000000ab089085000000009287a4747970"
        "65a84e6f6e6554797065a9777269746561626c65d40190aa73657269616c697a6572a67069636b6c65ac6672616d"
        "652d6e62797465739104b473706c69742d6e756d2d7375622d6672616d65739101ad73706c69742d6f6666736574"
        "739100ab636f6d7072657373696f6e91c0919204ce78fac488000000000000000000000000000000000000000000"
        "000000000000000080054e2e"
    )
    assert deserialize_bytes(text) is None
