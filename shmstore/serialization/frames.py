"""How are buffers seen as frames, and how is a flag kept that a transport has lost?"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shmstore.errors import DeserializationError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore] # Python 3.12

Frame = Any
"""Anything that exports a buffer: bytes, bytearray, memoryview, an array."""


def nbytes(frame: Buffer) -> int:
    """Return the number of bytes of a frame."""
    return memoryview(frame).nbytes


def ensure_memoryview(frame: Buffer) -> memoryview:
    """Return a frame as a flat, contiguous memoryview of unsigned bytes.

    Notes
    -----
    No copy is made of C- or Fortran-contiguous memory, which is seen in memory order; other memory
    is copied in C order. A read-only frame stays read-only, also when it is copied.
    """
    view = memoryview(frame)
    if not view.nbytes:
        empty = memoryview(bytearray())
        return empty.toreadonly() if view.readonly else empty
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    try:
        return pickle.PickleBuffer(view).raw()
    except BufferError:
        copy = memoryview(bytearray(view.tobytes()))
        return copy.toreadonly() if view.readonly else copy


def conform(frames: Sequence[Frame], flags: Sequence[bool | None] | None) -> list[Frame]:
    """Return frames that may be written where the flags say so, and only there.

    Parameters
    ----------
    frames
        Frames as they arrived.
    flags
        Per frame True, False, or None for unknown; None: all are taken as they are.
    """
    if flags is None:
        return list(frames)
    if len(flags) != len(frames):
        raise DeserializationError(
            f"the header has {len(flags)} writeable flags for {len(frames)} frames; it does not "
            "belong to them.",
            key="writeable",
        )
    return [_conform(frame, flag) for frame, flag in zip(frames, flags, strict=True)]


def _conform(frame: Frame, flag: bool | None) -> Frame:  # noqa: FBT001 - one of a pair
    view = ensure_memoryview(frame)
    if flag and view.readonly:
        return memoryview(bytearray(view))
    if flag is False and not view.readonly:
        return view.toreadonly()
    return view
