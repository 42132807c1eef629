"""Damaged strings and messages: nothing cut, extended, reordered or forged does more than raise."""

from __future__ import annotations

import random
import struct
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import COUNT, mutations

from shmstore.errors import CorruptHeaderError, FormatVersionError, ShmStoreError
from shmstore.serialization import Serialize, Serialized, serialize
from shmstore.serialization.bytestrings import MAGIC, VERSION, deserialize_bytes, serialize_bytes
from shmstore.serialization.compression import compressions
from shmstore.serialization.messages import dumps, loads
from shmstore.serialization.msgpacking import EXT_PLACED_PICKLED, EXT_PLACED_SERIALIZED, packb

ARRAY = np.arange(5000, dtype="f8")


# --- strings --------------------------------------------------------------------------------------


def rewrite(text: bytes, **changed: int) -> bytes:
    """Return a string with numbers of its prelude changed, and checksums that fit."""
    names = ("magic", "version", "lead", "header_nbytes", "total", "checksum")
    facts = dict(zip(names, struct.unpack_from("<8sIIQQQ", text), strict=True)) | changed
    facts["lead"] = zlib.crc32(struct.pack("<8sI", facts["magic"], facts["version"]))
    head = struct.pack(
        "<8sIIQQ", *[facts[n] for n in ("magic", "version", "lead", "header_nbytes", "total")]
    )
    first = min(-(-(40 + facts["header_nbytes"]) // 64) * 64, len(text))
    checksum = zlib.crc32(text[40:first], zlib.crc32(head))
    return head + struct.pack("<Q", checksum) + text[40:]


@pytest.mark.row("S75")
@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_strings_of_other_versions_are_refused_by_name(version):
    """Whatever else they hold."""
    text = serialize_bytes(ARRAY)
    assert rewrite(text) == text
    for other in (rewrite(text, version=version), rewrite(text, version=version) + b"more"):
        with pytest.raises(FormatVersionError, match=f"version {version} ") as caught:
            deserialize_bytes(other)
        assert (caught.value.found, caught.value.expected) == (version, VERSION)


SOURCES = {
    "array": ARRAY[:300],
    "parts": [ARRAY[:3], b"abc", {"k": ARRAY[:50]}],
    "compressed": np.zeros(20_000),
    "plain": {"a": 1},
    "frozen": np.frombuffer(bytes(500), "u1"),
}


def written(name: str) -> bytes:
    """Return the string of one of the sources."""
    codec = "zlib" if name == "compressed" else None
    return serialize_bytes(SOURCES[name], compression=codec, iterate_collection=name == "parts")


@pytest.mark.row("F21", "S75")
@pytest.mark.parametrize("name", SOURCES)
def test_nothing_damaged_is_believed(name):
    """Cut, extended, reordered, overwritten: always our error, never an object."""
    text, other = written(name), written("array" if name != "array" else "frozen")
    for seed, damaged in enumerate(mutations(text, other, seed=5)):
        if damaged == other:
            continue
        with pytest.raises(CorruptHeaderError):
            pytest.fail(f"mutation {seed} gave {deserialize_bytes(damaged)!r}")


@pytest.mark.row("F21", "S75")
def test_every_bit_counts():
    """Each flipped bit is noticed, padding included."""
    text = bytearray(written("parts"))
    for bit in range(len(text) * 8):
        text[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptHeaderError):
            deserialize_bytes(text)
        text[bit // 8] ^= 1 << bit % 8
    deserialize_bytes(text)


@pytest.mark.row("F21", "S75")
def test_every_cut_and_extension_is_noticed():
    """Down to no bytes at all, and also where only zeros are added."""
    text = written("parts")
    for length in range(len(text)):
        with pytest.raises(CorruptHeaderError) as caught:
            deserialize_bytes(text[:length])
        assert (caught.value.key, caught.value.found) == ("nbytes", length)
    for tail in (b"\0", bytes(64), text):
        with pytest.raises(CorruptHeaderError):
            deserialize_bytes(text + tail)


@pytest.mark.row("F21", "S75")
@pytest.mark.parametrize(
    "changed",
    [{"header_nbytes": 0}, {"header_nbytes": 2**64 - 1}, {"header_nbytes": 2**40}, {"total": 0}],
    ids=str,
)
def test_forged_numbers_with_checksums_that_fit_are_refused(changed):
    """Lengths are held against each other before they are used."""
    with pytest.raises(CorruptHeaderError):
        deserialize_bytes(rewrite(serialize_bytes(ARRAY), **changed))


def forged(envelope: bytes, frames: bytes = b"") -> bytes:
    """Return a string with another packed header, and checksums that fit."""
    total = 40 + len(envelope)
    if frames:
        envelope = envelope.ljust(-(-total // 64) * 64 - 40, b"\0")
    text = struct.pack("<8sIIQQQ", MAGIC, VERSION, 0, total - 40, 0, 0) + envelope + frames
    return rewrite(text, total=len(text))


@pytest.mark.row("F21", "S75")
@pytest.mark.parametrize(
    "table",
    [
        [[2**62, 0]],
        [[2**63 - 1, 0]] * 3,
        [[-1, 0]],
        [[-64, 0], [64, 0]],
        [["64", 0]],
        [[64.0, 0]],
        [[True, 0]],
        [[None, None]],
        [[64]],
        [64],
        64,
        None,
        [[65, 0]],
        [[63, 0]],
        [[64, 0], [0, 0]],
        [[64, 1]],
        [],
        [[0, 0]],
        [[63, zlib.crc32(bytes(63))]],
    ],
    ids=repr,
)
def test_forged_frame_tables_are_refused(table):
    """Nothing is allocated by their word."""
    with pytest.raises(CorruptHeaderError):
        deserialize_bytes(forged(packb([{"serializer": "pickle"}, table]), bytes(64)))


@pytest.mark.row("F21", "S75")
@pytest.mark.parametrize(
    "envelope",
    [b"", b"\xc1", b"\x90", b"\x93\x80\x90\x90", b"\x92\x90\x90", b"\xdd\xff\xff\xff\xff"],
)
def test_headers_that_are_none_are_refused(envelope):
    """Bytes that msgpack does not know, and values that are no header and table."""
    with pytest.raises(CorruptHeaderError):
        deserialize_bytes(forged(envelope))


@pytest.mark.row("F21")
@settings(deadline=None)
@given(st.binary(max_size=200))
def test_nonsense_is_no_object(nonsense):
    """Arbitrary bytes, and arbitrary bytes that begin well."""
    for text in (nonsense, serialize_bytes(None)[:40] + nonsense, MAGIC + nonsense):
        with pytest.raises(CorruptHeaderError):
            deserialize_bytes(text)


@pytest.mark.row("F21", "F38")
def test_forged_raw_sizes_are_refused():
    """A header that asks for more memory than its compressed frame justifies."""
    header, frames = serialize(np.zeros(9000))
    packed = zlib.compress(frames[0])
    forged_header = {**header, "compression": [["zlib", 2**50]]}
    with pytest.raises(CorruptHeaderError, match="cannot give"):
        deserialize_bytes(serialize_bytes(Serialized(forged_header, [packed])))


# --- messages -------------------------------------------------------------------------------------


def transport(frames: list) -> list[bytes]:
    """Return frames as they come out of a socket."""
    return [memoryview(frame).tobytes() for frame in frames]


def example(codec: str | None = None) -> list[bytes]:
    """Return the frames of a message with every kind of part; none of them is a pickle."""
    part = Serialize(np.zeros(2000) if codec else ARRAY[:100])
    msg = {"op": "x", "a": part, "t": (1, part), "b": Serialize({"k": ARRAY[:7]}), "s": {1, 2}}
    size = None if codec else 300
    context = {"compression": codec}
    return transport(dumps(msg, ("custom", "msgpack"), "raise", context, size))


@pytest.mark.row("F21", "S111")
def test_missing_and_surplus_frames_are_refused():
    """One frame less anywhere, one more anywhere, two in the wrong order, none at all."""
    frames = example()
    for number in range(len(frames)):
        with pytest.raises(ShmStoreError):
            loads(frames[:number] + frames[number + 1 :])
        with pytest.raises(CorruptHeaderError):
            loads(frames[:number])
        with pytest.raises(ShmStoreError):
            loads([*frames[: number + 1], frames[number], *frames[number + 1 :]])
    for surplus in (b"", b"x", frames[0], frames[1]):
        with pytest.raises(CorruptHeaderError):
            loads([*frames, surplus])


@pytest.mark.row("F21", "S111")
@pytest.mark.parametrize("code", [EXT_PLACED_SERIALIZED, EXT_PLACED_PICKLED])
@pytest.mark.parametrize("position", [0, 2, -1, 2**40, 2**63, "1", 1.0, True, None, [1]], ids=repr)
@pytest.mark.parametrize("deserialize", [True, False])
def test_forged_positions_are_refused(position, code, deserialize):
    """A part lies right behind the one before it, and nowhere else."""
    frames = dumps(Serialize(1))
    frames[0] = packb([1, 5])[:2] + msgpack.packb(msgpack.ExtType(code, packb(position)))
    with pytest.raises(CorruptHeaderError) as caught:
        loads(frames, deserialize=deserialize)
    assert caught.value.key == "position"


@pytest.mark.row("F21", "S111")
def test_one_part_cannot_be_named_twice():
    """A short message cannot ask for the same frames a million times."""
    frames = dumps(Serialize(1))
    part = msgpack.ExtType(EXT_PLACED_SERIALIZED, packb(1))
    frames[0] = msgpack.packb([1, [part, part]])
    with pytest.raises(CorruptHeaderError, match="stands for frame 1"):
        loads(frames)


@pytest.mark.row("F21", "S111")
@pytest.mark.parametrize("count", [0, 2, -1, 2**62, "1", 1.0, True, None, [1]], ids=repr)
@pytest.mark.parametrize("deserialize", [True, False])
def test_forged_counts_are_refused(count, deserialize):
    """The frames of a part are those that are there."""
    frames = dumps(Serialize(1))
    header = {**msgpack.unpackb(frames[1], ext_hook=lambda *_: []), "num-sub-frames": count}
    frames[1] = packb(header)
    with pytest.raises(CorruptHeaderError):
        loads(frames, deserialize=deserialize)


@pytest.mark.row("F21", "S111")
@pytest.mark.parametrize(
    "header", [b"", b"\xc1", b"\x80", b"\x90", b"\xc0", b"\xdf\xff\xff\xff\xff"]
)
def test_headers_of_parts_that_are_none_are_refused(header):
    """Bytes that msgpack does not know, and values that are no header."""
    frames = dumps(Serialize(1))
    frames[1] = header
    with pytest.raises(CorruptHeaderError):
        loads(frames)


@pytest.mark.row("F21", "S111")
@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x92",
        b"\x92\x01",
        b"\x90",
        b"\x80",
        b"\xc1",
        b"\x93\x01\x01\x01",
        b"\x91\x02",
        b"\x93\x02\x01\x01",
        b"\x92\xc0\x01",
    ],
)
def test_messages_that_are_none_are_refused(frame):
    """Frame 0 is a pair, or it is damaged."""
    with pytest.raises(CorruptHeaderError):
        loads([frame])
    with pytest.raises(CorruptHeaderError):
        loads([])


def test_unknown_extensions_are_refused():
    """Codes that this version does not know."""
    with pytest.raises(CorruptHeaderError):
        loads([msgpack.packb([1, msgpack.ExtType(77, b"")])])


@pytest.mark.parametrize("version", [0, 2, 127])
def test_messages_of_other_versions_are_refused_by_name(version):
    """Before anything of the message is unpacked."""
    frame = bytearray(dumps({"a": 1})[0])
    frame[1] = version
    with pytest.raises(FormatVersionError, match=f"version {version} "):
        loads([frame + b"more"])


@pytest.mark.row("F21", "S111")
@pytest.mark.parametrize("deserialize", [True, False])
@pytest.mark.parametrize("codec", [None, *list(compressions)[2:]])
def test_damaged_frames_never_do_more_than_raise(deserialize, codec):
    """Frames have no checksums here: another object may come, another error may not."""
    frames = example(codec)
    noise = random.Random(4)
    changes = [
        mutations(frame, frames[0], seed=number, count=COUNT) for number, frame in enumerate(frames)
    ]
    for _ in range(COUNT):
        number = noise.choice([0, 0, *range(len(frames))])
        damaged = [*frames[:number], next(changes[number], frames[number]), *frames[number + 1 :]]
        try:
            loads(damaged, deserialize=deserialize, deserializers=("custom", "msgpack"))
        except ShmStoreError:
            continue
