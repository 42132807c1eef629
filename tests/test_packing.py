"""Frames cut, joined, packed: no byte is lost or copied without need, no lie is believed."""

from __future__ import annotations

import array
import mmap
import struct
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.packing import (
    SPLIT_SIZE,
    frame_split_size,
    merge_memoryviews,
    pack_frames,
    pack_frames_prelude,
    unpack_frames,
)


def address(view) -> int:
    """Return where a buffer lies."""
    return np.frombuffer(view, np.uint8).ctypes.data if memoryview(view).nbytes else 0


# --- cutting --------------------------------------------------------------------------------------


@pytest.mark.row("S60")
@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [1] * 10), (3, [3, 3, 3, 1]), (5, [5, 5]), (9, [9, 1]), (10, [10]), (11, [10])],
)
def test_pieces_have_at_most_the_size(size, expected):
    """Exactly the size is one piece; the last one has the rest."""
    frame = bytearray(range(10))
    pieces = frame_split_size(frame, size)
    assert [piece.nbytes for piece in pieces] == expected
    assert b"".join(pieces) == frame
    assert all(address(piece) == address(frame) + piece[0] for piece in pieces)


@pytest.mark.row("S60")
@pytest.mark.parametrize("size", [None, 0])
def test_no_size_is_64_mebibytes(size):
    """None and 0 ask for the default."""
    frame = np.empty(2 * SPLIT_SIZE + 1, np.uint8)
    assert [piece.nbytes for piece in frame_split_size(frame, size)] == [2**26, 2**26, 1]
    assert len(frame_split_size(frame[: 2**26], size)) == 1


@pytest.mark.row("S60")
def test_a_negative_size_is_refused():
    """Nothing can be cut into pieces of less than nothing."""
    with pytest.raises(ValueError, match="-1"):
        frame_split_size(b"abc", -1)


@pytest.mark.row("S60", "F09")
@pytest.mark.parametrize(
    "frame",
    [
        np.arange(600.0).reshape(20, 30),
        np.arange(600.0).reshape(20, 30, order="F"),
        np.arange(600.0).reshape(2, 3, 4, 25)[:, 1:2],
        np.zeros(30, "c16"),
        np.array(5.0),
        np.zeros((0, 7)),
        array.array("d", range(100)),
        memoryview(bytes(900)).cast("H"),
        b"",
    ],
    ids=["2d", "fortran", "window", "complex", "0d", "empty", "array", "items", "no bytes"],
)
@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_frames_of_any_shape_are_cut_as_bytes(frame, size):
    """Also in the middle of an item; the pieces joined are the frame in memory order."""
    pieces = frame_split_size(frame, size)
    assert all((piece.ndim, piece.format) == (1, "B") for piece in pieces)
    assert all(0 < piece.nbytes <= size for piece in pieces) or pieces[0].nbytes == 0
    order = "A" if memoryview(frame).contiguous else "C"
    assert b"".join(pieces) == memoryview(frame).tobytes(order)
    assert merge_memoryviews(pieces) == b"".join(pieces)


@pytest.mark.row("S60")
@pytest.mark.parametrize("frame", [b"abcdef", bytearray(b"abcdef")])
def test_pieces_are_as_writable_as_the_frame(frame):
    """Cutting neither freezes nor thaws."""
    pieces = frame_split_size(frame, 4)
    assert [piece.readonly for piece in pieces] == [isinstance(frame, bytes)] * 2


# --- joining --------------------------------------------------------------------------------------


def make_base(kind: str):
    """Return an object with 1000 bytes that all differ from their neighbours."""
    content = bytes(range(250)) * 4
    if kind == "bytes":
        return content
    if kind == "bytearray":
        return bytearray(content)
    if kind == "numpy":
        return np.frombuffer(bytearray(content), "f8").reshape(25, 5)
    if kind == "fortran":
        return np.frombuffer(bytearray(content), "f8").reshape(25, 5, order="F")
    base = mmap.mmap(-1, 1000)
    base[:] = content
    return base


@pytest.mark.row("S69", "S70")
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "numpy", "fortran", "mmap"])
@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8))
def test_neighbours_are_joined_without_a_copy(kind, cuts):
    """Views of bytes, bytearrays, arrays and mappings, with empty ones in between."""
    base = make_base(kind)
    flat = np.frombuffer(base, np.uint8) if kind == "mmap" else base
    view = memoryview(flat).cast("B") if kind != "fortran" else memoryview(base.T).cast("B")
    cuts.sort()
    parts = [view[one:two] for one, two in pairwise(cuts)]
    joined = merge_memoryviews(parts)
    assert joined == view[cuts[0] : cuts[-1]]
    assert joined.readonly == view.readonly
    if joined.nbytes:
        assert address(joined) == address(view) + cuts[0]


@pytest.mark.row("S69")
def test_views_of_a_mapping_itself_are_joined():
    """The base is what the views name, an mmap without NumPy in between."""
    with mmap.mmap(-1, 4096) as base:
        view = memoryview(base)
        parts = [view[:100], view[100:4000]]
        joined = merge_memoryviews(parts)
        joined[3999] = 7
        assert base[3999] == 7
        for each in (*parts, view, joined):
            each.release()


@pytest.mark.row("S69")
def test_no_view_one_view_and_nothing_but_empty_views():
    """An empty view, the very object, and the first of them."""
    assert merge_memoryviews([]) == b""
    one = memoryview(b"abc")
    assert merge_memoryviews([one]) is one
    empty = [memoryview(b""), memoryview(bytearray()), memoryview(b"abc")[1:1]]
    assert merge_memoryviews(empty) is empty[0]
    assert merge_memoryviews(iter([*empty, one])) is one


@pytest.mark.row("S69")
def test_empty_views_of_other_objects_do_not_matter():
    """Not even in front."""
    view = memoryview(bytearray(b"abcdef"))
    parts = [memoryview(b""), view[:2], np.zeros((0, 3)).data, view[2:]]
    assert merge_memoryviews(parts) == b"abcdef"


@pytest.mark.row("S69", "F10")
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_one_read_only_part_makes_the_whole_read_only(frozen):
    """Nobody can write to a part through the whole who could not before."""
    view = memoryview(bytearray(b"abcdef"))
    parts = [view[:2], view[2:4], view[4:]]
    joined = merge_memoryviews(
        [part.toreadonly() if number in frozen else part for number, part in enumerate(parts)]
    )
    assert joined == b"abcdef"
    assert joined.readonly
    assert not merge_memoryviews(parts).readonly


@pytest.mark.row("S69")
@pytest.mark.parametrize("code", ["H", "d", "i", "c"])
def test_the_format_of_the_parts_is_kept(code):
    """Whole items on both sides."""
    view = memoryview(bytearray(range(80))).cast(code)
    joined = merge_memoryviews([view[2:5], view[5:]])
    assert joined.format == code
    assert joined.tolist() == view[2:].tolist()


VIEW = memoryview(bytearray(range(64)))


@pytest.mark.row("S69")
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([VIEW[:8], VIEW[9:]], "part 1 starts 1 bytes behind"),
        ([VIEW[:8], VIEW[7:]], "part 1 starts -1 bytes behind"),
        ([VIEW[8:], VIEW[:8]], "part 1 starts"),
        ([VIEW[:8], VIEW[:8]], "part 1 starts"),
        ([VIEW[:8], VIEW[8:16], memoryview(b"x")], "part 2 is a view of another object"),
        ([VIEW[:8], memoryview(bytearray(VIEW))[8:]], "part 1 is a view of another object"),
        ([VIEW[:8].cast("B", (2, 4)), VIEW[8:]], "part 0 has 2 dimensions"),
        ([VIEW[:8], VIEW[8:16].cast("d")], "part 1 has the format 'd', the first has 'B'"),
        ([VIEW[:8], VIEW[8::2]], "part 1 is not contiguous"),
        ([VIEW[:8], VIEW[:7:-1]], "part 1 is not contiguous"),
        ([VIEW[:0], VIEW[:8], VIEW[9:]], "part 2 starts 1 bytes behind"),
    ],
)
def test_what_cannot_be_joined_is_named(parts, words):
    """The message says which part breaks which condition."""
    with pytest.raises(ValueError, match=words):
        merge_memoryviews(parts)


@pytest.mark.row("S69")
@pytest.mark.parametrize("part", [b"abc", bytearray(b"abc"), None, "abc", np.zeros(3, "u1")])
def test_what_is_no_memoryview_is_named(part):
    """Also if it exports a buffer, and also if it is alone."""
    with pytest.raises(TypeError, match="part 1 is of type"):
        merge_memoryviews([VIEW[:2], part])
    with pytest.raises(TypeError, match="part 0 is of type"):
        merge_memoryviews([part])


@pytest.mark.row("S69")
def test_windows_of_memory_with_gaps_are_not_joined():
    """An exporter whose memory is not contiguous shows no bytes to join."""
    base = np.zeros((4, 10), "u1")[:, :5]
    rows = memoryview(base)
    with pytest.raises(ValueError, match="dimensions"):
        merge_memoryviews([rows, rows])
    backwards = memoryview(np.arange(20, dtype="u1")[::-1])
    with pytest.raises(ValueError, match="memory is not contiguous"):
        merge_memoryviews([backwards[1:2], backwards[:1]])


@pytest.mark.row("S69")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes export buffers since Python 3.12")
def test_exporters_that_do_not_show_their_memory_again_are_not_joined():
    """A class with a buffer method may show other memory each time, or none."""

    class Fickle:
        def __buffer__(self, flags):
            return memoryview(bytearray(20))

    view = memoryview(Fickle())
    with pytest.raises(ValueError, match="memory"):
        merge_memoryviews([view[:10], view[10:]])


@pytest.mark.row("S69")
def test_formats_that_cannot_be_cast_are_an_error_not_garbage():
    """Structs and foreign byte orders cannot be shown by a view of bytes."""
    view = memoryview(np.zeros(10, ">i4"))
    with pytest.raises(ValueError, match="format"):
        merge_memoryviews([view[:5], view[5:]])


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.row("S59", "S67")
def test_the_prelude_is_little_endian():
    """The number of frames, then the bytes of each, whatever their items are."""
    frames = [b"abc", np.zeros((2, 3), ">i4"), b""]
    assert pack_frames_prelude(frames) == struct.pack("<4Q", 3, 3, 24, 0)
    assert pack_frames_prelude([]) == bytes(8)


@pytest.mark.row("S68")
@settings(deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=20))
def test_what_is_packed_is_unpacked(frames):
    """Zero-copy slices of the buffer that was given."""
    packed = bytearray(pack_frames(frames))
    unpacked = unpack_frames(packed)
    assert unpacked == frames
    start = len(packed) - sum(map(len, frames))
    for frame in unpacked:
        assert isinstance(frame, memoryview)
        assert not frame.nbytes or address(frame) == address(packed) + start
        assert not frame.readonly
        start += frame.nbytes
    assert all(frame.readonly for frame in unpack_frames(bytes(packed)))


@pytest.mark.row("S68", "F04")
def test_frames_of_any_kind_are_packed():
    """Items, several dimensions, Fortran order and strides; the latter are copied in C order."""
    table = np.arange(12, dtype="i4").reshape(3, 4)
    frames = [table, np.asfortranarray(table), table[:, ::2], array.array("d", [1.5]), b"x"]
    assert [bytes(frame) for frame in unpack_frames(pack_frames(frames))] == [
        table.tobytes(),
        table.T.tobytes(),
        table[:, ::2].tobytes(),
        struct.pack("d", 1.5),
        b"x",
    ]


@pytest.mark.row("S68", "F21")
@pytest.mark.parametrize(
    "view",
    [
        lambda packed: memoryview(packed).cast("Q"),
        lambda packed: memoryview(packed).cast("B").cast("B", (2, len(packed) // 2)),
        lambda packed: np.frombuffer(packed, "u2"),
        lambda packed: np.repeat(np.frombuffer(packed, "u1"), 2)[::2],
    ],
    ids=["items", "2d", "numpy", "strided"],
)
def test_views_of_other_items_are_unpacked_by_bytes(view):
    """Never by items; what is not contiguous is copied."""
    frames = [b"abcdefgh", bytes(16), b""]
    assert unpack_frames(view(pack_frames(frames))) == frames


@pytest.mark.row("S68", "F21")
@pytest.mark.parametrize("frames", [[], [b""], [b"abc"], [b"abc", b"", bytes(100)]])
def test_a_byte_too_few_or_too_many_is_noticed(frames):
    """Every cut, and every extension."""
    packed = pack_frames(frames)
    for length in range(len(packed)):
        with pytest.raises(CorruptHeaderError):
            unpack_frames(packed[:length])
    for tail in (b"\0", bytes(8), packed):
        with pytest.raises(CorruptHeaderError) as caught:
            unpack_frames(packed + tail)
        assert caught.value.found == len(packed) + len(tail)
        assert caught.value.expected <= len(packed)


@pytest.mark.row("S68", "F21")
@pytest.mark.parametrize("count", [1, 2**32, 2**61 - 1, 2**61, 2**63, 2**64 - 1])
def test_a_forged_number_of_frames_allocates_nothing(count):
    """A count that the buffer has no room for is refused before it is used."""
    with pytest.raises(CorruptHeaderError, match="prelude"):
        unpack_frames(struct.pack("<Q", count) + bytes(7))


@pytest.mark.row("S68", "F21")
@pytest.mark.parametrize("lengths", [(2**64 - 1, 9), (2**63, 2**63), (7, 0), (9, 0), (0, 0)])
def test_forged_lengths_are_refused(lengths):
    """They must add up to the bytes that are there, without wrapping around."""
    with pytest.raises(CorruptHeaderError, match="frames"):
        unpack_frames(struct.pack("<3Q", 2, *lengths) + bytes(8))
