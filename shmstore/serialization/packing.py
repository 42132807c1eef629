"""How are frames cut into pieces, joined again, and laid one behind the other in one buffer?

All of it works on flat bytes: a frame of another shape or format is flattened before it is cut or
measured. Joining is free where the pieces lie behind each other in one piece of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.buffers import Frame, ensure_memoryview, nbytes

SPLIT_SIZE = 64 * 2**20
"""Bytes of the longest piece of a frame, unless somebody asks for another size."""

_NUMBER = struct.Struct("<Q")


# --- cutting and joining -----------------------------------------------------------------------


def frame_split_size(frame: Frame, n: int | None = None) -> list[memoryview]:
    """Cut a frame into pieces of at most `n` bytes, without a copy.

    Parameters
    ----------
    frame
        Any buffer. It is seen as bytes in memory order; only non-contiguous memory is copied.
    n
        Bytes per piece; None or 0: 64 MiB.

    Returns
    -------
    pieces : list of memoryview
        At least one, all flat views of bytes, as writable as the frame.

    Raises
    ------
    ValueError
        `n` is negative.
    """
    if n is not None and n < 0:
        message = f"n={n!r}: expected a number of bytes, or None for {SPLIT_SIZE}"
        raise ValueError(message)
    size = n or SPLIT_SIZE
    view = ensure_memoryview(frame)
    if view.nbytes <= size:
        return [view]
    return [view[start : start + size] for start in range(0, view.nbytes, size)]


def merge_memoryviews(views: Iterable[Any]) -> memoryview:
    """Join memoryviews that lie behind each other in one object, without a copy.

    Parameters
    ----------
    views
        Empty ones are skipped.

    Returns
    -------
    view : memoryview
        Read-only if any of the parts is. The part itself where there is only one; an empty view
        where there is none.

    Raises
    ------
    TypeError
        A part is no memoryview.
    ValueError
        The parts cannot be joined; the message names the first that breaks a condition, and which.
    """
    parts: list[memoryview] = list(views)
    for number, part in enumerate(parts):
        _check_memoryview(number, part)
    filled = {number: part for number, part in enumerate(parts) if part.nbytes}
    if not filled:
        return parts[0] if parts else memoryview(bytearray())
    first = next(iter(filled.values()))
    if len(filled) == 1:
        return first
    for number, part in filled.items():
        _check_joinable(number, part, first)
    joined = _window(first, *_span(filled))
    return joined.toreadonly() if any(part.readonly for part in filled.values()) else joined


def _check_memoryview(number: int, part: Any) -> None:
    if not isinstance(part, memoryview):
        message = f"part {number} is of type {type(part).__name__}, expected a memoryview"
        raise TypeError(message)


def _span(parts: dict[int, memoryview]) -> tuple[int, int]:
    """Return where the parts start and how many bytes they have, if there is no gap."""
    start = end = _address(next(iter(parts.values())))
    for number, part in parts.items():
        address = _address(part)
        if address != end:
            message = (
                f"part {number} starts {address - end} bytes behind the end of the part before it"
            )
            raise ValueError(message)
        end += part.nbytes
    return start, end - start


def _check_joinable(number: int, part: memoryview, first: memoryview) -> None:
    if part.ndim != 1:
        broken = f"has {part.ndim} dimensions instead of one"
    elif not part.c_contiguous:
        broken = "is not contiguous"
    elif part.format != first.format:
        broken = f"has the format {part.format!r}, the first has {first.format!r}"
    elif part.obj is not first.obj:
        broken = "is a view of another object than the first"
    else:
        return
    message = f"part {number} {broken}"
    raise ValueError(message)


def _address(view: memoryview) -> int:
    flat = np.frombuffer(view, np.uint8)
    address: int = flat.__array_interface__["data"][0]
    return address


def _window(part: memoryview, start: int, size: int) -> memoryview:
    """Return `size` bytes of the memory that `part` is a view of, from an address on."""
    try:
        base = memoryview(part.obj)
    except (TypeError, BufferError) as error:
        message = f"a {type(part.obj).__name__} does not show its memory again: {error}"
        raise ValueError(message) from error
    if not base.contiguous:
        message = "the parts are views of an object whose memory is not contiguous"
        raise ValueError(message)
    base = ensure_memoryview(base)
    offset = start - _address(base)
    if not 0 <= offset <= base.nbytes - size:
        message = f"the parts do not lie in the memory that a {type(part.obj).__name__} shows"
        raise ValueError(message)
    joined = base[offset : offset + size]
    return joined if part.format == "B" else joined.cast(part.format)  # type: ignore[call-overload]


# --- one behind the other ----------------------------------------------------------------------


def pack_frames_prelude(frames: Sequence[Frame]) -> bytes:
    """Return the number of frames and the bytes of each, as little-endian 64-bit numbers."""
    return struct.pack(f"<{len(frames) + 1}Q", len(frames), *map(nbytes, frames))


def pack_frames(frames: Sequence[Frame]) -> bytes:
    """Return the prelude and all frames, one behind the other."""
    return b"".join([pack_frames_prelude(frames), *map(ensure_memoryview, frames)])


def unpack_frames(packed: Frame) -> list[memoryview]:
    """Undo `pack_frames` without a copy.

    Parameters
    ----------
    packed
        What `pack_frames` returned, or any other buffer of the same bytes. All frames are views of
        it and keep it alive.

    Raises
    ------
    CorruptHeaderError
        The buffer is shorter or longer than its prelude says.
    """
    view = ensure_memoryview(packed)
    if view.nbytes < _NUMBER.size:
        raise _wrong_size("prelude", view.nbytes, _NUMBER.size)
    (count,) = _NUMBER.unpack_from(view)
    start = _NUMBER.size * (count + 1)
    if start > view.nbytes:
        raise _wrong_size("prelude", view.nbytes, start)
    lengths = struct.unpack_from(f"<{count}Q", view, _NUMBER.size)
    if start + sum(lengths) != view.nbytes:
        raise _wrong_size("frames", view.nbytes, start + sum(lengths))
    frames = []
    for length in lengths:
        frames.append(view[start : start + length])
        start += length
    return frames


def _wrong_size(key: str, found: int, expected: int) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"packed frames take {found} bytes where their {key} needs {expected}; they were cut, "
        "extended or damaged.",
        key=key,
        found=found,
        expected=expected,
    )
