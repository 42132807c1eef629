"""Buffers seen as frames, flags that a transport has lost, and promises of bytes."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers
from roundtrips import address

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization import deserialize, register_serialization, serialize
from shmstore.serialization.frames import (
    ALIGNMENT,
    Pieces,
    Planned,
    allocate,
    conform,
    ensure_memoryview,
    hoist_flags,
    is_readonly,
    nbytes,
    parts_of,
)


@pytest.mark.row("S72")
@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"abc", b"abc"),
        (bytearray(b""), b""),
        (np.arange(3, dtype="<i2"), b"\0\0\1\0\2\0"),
        (np.arange(3, dtype=">i2"), b"\0\0\0\1\0\2"),
        (np.array([[1, 2], [3, 4]], "u1"), b"\1\2\3\4"),
        (np.asfortranarray(np.array([[1, 2], [3, 4]], "u1")), b"\1\3\2\4"),
        (np.arange(10, dtype="u1")[::3], b"\0\3\6\x09"),
        (np.arange(4, dtype="u1")[::-1], b"\3\2\1\0"),
        (np.array(7, "u1"), b"\7"),
        (np.array([(1, 2)], dtype=[("a", "u1"), ("b", "<u2")]), b"\1\2\0"),
        (np.array([1 + 2j], "c8"), np.array([1, 2], "f4").tobytes()),
        (np.zeros((0, 3)), b""),
        (memoryview(b"abcdef")[1:4], b"bcd"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_frame_is_seen_as_flat_bytes(frame: Any, expected: bytes, *, readonly: bool) -> None:
    """Whatever exports it, and with its flag."""
    view = memoryview(frame)
    readonly = readonly or view.readonly
    flat = ensure_memoryview(view.toreadonly() if readonly else frame)
    assert (flat.ndim, flat.format, flat.c_contiguous) == (1, "B", True)
    assert bytes(flat) == expected
    assert flat.readonly is readonly


@pytest.mark.row("S72")
def test_frame_that_is_contiguous_is_not_copied() -> None:
    """In C order or Fortran order."""
    for order in "CF":
        x = np.asarray(np.arange(6).reshape(2, 3), order=order)  # type: ignore[call-overload]
        assert np.shares_memory(np.frombuffer(ensure_memoryview(x), np.uint8), x)


@pytest.mark.row("S44", "F30")
def test_frames_conform_to_their_flags() -> None:
    """Read-only is undone by a copy, writeable by a view, and unknown is left alone."""
    frames = [b"a", bytearray(b"b"), bytearray(b"c"), b"d"]
    views = conform(frames, (True, False, None, None))
    assert [view.readonly for view in views] == [False, True, False, True]
    assert [bytes(view) for view in views] == [b"a", b"b", b"c", b"d"]
    assert conform(frames, None) == frames
    with pytest.raises(DeserializationError, match=r"writeable flags .* for 4 frames"):
        conform(frames, (True, True, True))


# --- promises of bytes --------------------------------------------------------------------------


@pytest.mark.row("S59")
@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (b"abc", 3),
        (bytearray(b"abc"), 3),
        (memoryview(b"abcdef").cast("H"), 6),
        (np.zeros((2, 3), "c16"), 96),
        (np.zeros((0, 3)), 0),
        (np.zeros(10, "u2")[::3], 8),
        (Planned(7, lambda _: None), 7),
        (Pieces([b"ab", b"", np.zeros(2)]), 18),
    ],
    ids=lambda x: type(x).__name__,
)
def test_frame_has_so_many_bytes(frame: Any, size: int) -> None:
    """Bytes, not items."""
    assert nbytes(frame) == size


@pytest.mark.row("F08")
@pytest.mark.parametrize("size", [1, 63, 64, 65, 4097])
def test_memory_for_frames_is_aligned(size: int) -> None:
    """And writeable, of bytes, of just that length; none at all for nothing."""
    view = allocate(size)
    assert address(view) % ALIGNMENT == 0
    assert (view.nbytes, view.format, view.readonly) == (size, "B", False)
    assert allocate(0).nbytes == 0


@pytest.mark.row("S72")
@pytest.mark.parametrize("writeable", [True, False])
def test_promise_of_bytes_is_kept_once_for_whoever_needs_a_buffer(*, writeable: bool) -> None:
    """Then it is a view like any other."""
    calls = []

    def write_into(target: memoryview) -> None:
        calls.append((target.nbytes, address(target) % ALIGNMENT, target.readonly))
        target[:] = b"made"

    frame = Planned(4, write_into, writeable=writeable)
    assert is_readonly(frame) is not writeable
    view = ensure_memoryview(frame)
    assert (bytes(view), view.readonly) == (b"made", not writeable)
    assert calls == [(4, 0, False)]
    assert parts_of(frame) == (frame,)


@pytest.mark.row("S72")
def test_pieces_behind_each_other_are_one_read_only_frame() -> None:
    """One piece alone is not copied."""
    frame = Pieces([b"ab", b"", bytearray(b"cd")])
    assert is_readonly(frame)
    assert bytes(ensure_memoryview(frame)) == b"abcd"
    assert [bytes(part) for part in parts_of(frame)] == [b"ab", b"", b"cd"]
    single = bytearray(b"xyz")
    view = ensure_memoryview(Pieces([single]))
    assert view.readonly
    assert address(view) == address(single)


@pytest.mark.row("S18")
@pytest.mark.parametrize("writeable", [True, False])
def test_promise_of_a_handler_is_kept_at_its_destination(store: Store, *, writeable: bool) -> None:
    """In a store straight in the segment, small or large, alone or nested; elsewhere in memory."""

    class Image:
        def __init__(self, size: int) -> None:
            self.size = size

    def write_into(target: memoryview) -> None:
        assert address(target) % ALIGNMENT == 0
        target[:] = b"i" * target.nbytes

    with own_handlers():
        register_serialization(
            Image,
            lambda x: ({}, [Planned(x.size, write_into, writeable=writeable)]),
            lambda _, frames: frames[0],
        )
        for size in (1, 1000, 1_000_000):
            for x in (Image(size), [Image(size)]):
                for back in (store.put(x).get(), deserialize(*serialize(x, on_error="raise"))):
                    view = back[0] if isinstance(back, list) else back
                    assert bytes(view) == b"i" * size
                    assert view.readonly is not writeable
                    del back, view
        gc.collect()


# --- flags --------------------------------------------------------------------------------------


@pytest.mark.row("S43", "S95", "F26")
def test_flags_of_a_header_know_better_than_the_frames() -> None:
    """They are taken out of it; a pickle stream has none and is never written."""
    frames = [b"stream", bytearray(b"x"), bytearray(b"y"), b"z"]
    header = {"serializer": "pickle", "writeable": (False, None, None), "a": 1}
    assert hoist_flags(header, frames) == (
        {"serializer": "pickle", "a": 1},
        [False, False, True, False],
    )
    header = {"serializer": "custom", "writeable": [True, False, None, True]}
    assert hoist_flags(header, frames) == ({"serializer": "custom"}, [True, False, True, True])
    other = {"serializer": "other", "writeable": "its own"}
    assert hoist_flags(other, frames) == (other, [False, True, True, False])
    assert hoist_flags({"a": 1}, frames[:1]) == ({"a": 1}, [False])
    with pytest.raises(CorruptHeaderError):
        hoist_flags({"serializer": "custom", "writeable": (True,)}, frames)


@pytest.mark.row("F08")
@pytest.mark.parametrize(
    "x",
    [
        np.arange(7, dtype="i2"),
        {"a": np.zeros(3), "b": np.ones((5, 5), order="F"), "c": np.arange(9)[::2]},
        [np.zeros(n, "u1") for n in range(1, 130, 7)],
    ],
    ids=["array", "arrays in a dict", "arrays of odd sizes"],
)
def test_frames_of_a_stored_object_begin_at_multiples_of_64(store: Store, x: Any) -> None:
    """Vector instructions and other libraries find their data aligned."""
    for serializers in (None, ("custom",)):
        for _ in range(3):
            back = store.put(x, serializers=serializers).get()
            values = back.values() if isinstance(back, dict) else back
            arrays = [back] if isinstance(back, np.ndarray) else list(values)
            for array in arrays:
                assert array.ctypes.data % 64 == 0
            del array, arrays, back, values
    gc.collect()
