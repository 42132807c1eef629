"""How are buffers seen as frames, and how is a flag kept that a transport has lost?

A frame is one contiguous run of bytes: any buffer, or one of two promises of bytes. `Planned` is
filled when its destination is known, `Pieces` are buffers that follow each other. The store writes
both straight into the segment; whoever needs a buffer asks `ensure_memoryview`.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.wording import shown

Frame = Any
"""Anything that exports a buffer (bytes, bytearray, memoryview, an array), Planned or Pieces."""

ALIGNMENT: Final = 64


class Planned:
    """A frame whose bytes are made at their destination, once.

    Parameters
    ----------
    nbytes
        How many bytes it will have.
    write_into
        Called with a writeable memoryview of exactly `nbytes` unsigned bytes, aligned to 64.
    writeable
        Whether readers may write to it.

    Raises
    ------
    TypeError, ValueError
        `nbytes` is no int, or negative.

    Notes
    -----
    What `write_into` reads must stay as it is until then.
    """

    __slots__ = ("nbytes", "readonly", "write_into")

    def __init__(
        self, nbytes: int, write_into: Callable[[memoryview], Any], *, writeable: bool = True
    ) -> None:
        self.nbytes = operator.index(nbytes)
        if nbytes < 0:
            message = f"nbytes={nbytes!r}: expected a number of bytes"
            raise ValueError(message)
        self.readonly = not writeable
        self.write_into = write_into

    def materialize(self) -> memoryview:
        """Return the bytes in memory of their own."""
        target = allocate(self.nbytes)
        self.write_into(target)
        return target.toreadonly() if self.readonly else target


class Pieces:
    """A read-only frame that consists of buffers, one behind the other."""

    __slots__ = ("nbytes", "views")

    readonly: Final = True

    def __init__(self, buffers: Iterable[Any]) -> None:
        self.views = [ensure_memoryview(buffer) for buffer in buffers]
        self.nbytes = sum([view.nbytes for view in self.views])

    def materialize(self) -> memoryview:
        """Return the bytes in memory of their own, or the only buffer itself."""
        joined = self.views[0] if len(self.views) == 1 else memoryview(b"".join(self.views))
        return joined.toreadonly()


def allocate(nbytes: int) -> memoryview:
    """Return writeable memory of unsigned bytes, aligned to 64 and not cleared."""
    if not nbytes:
        return memoryview(bytearray())
    raw = np.empty(nbytes + ALIGNMENT - 1, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].data


def nbytes(frame: Frame) -> int:
    """Return the number of bytes of a frame."""
    if type(frame) in (Planned, Pieces):
        return int(frame.nbytes)
    return memoryview(frame).nbytes


def is_readonly(frame: Frame) -> bool:
    """Return whether readers may only look at a frame."""
    if type(frame) in (Planned, Pieces):
        return bool(frame.readonly)
    return memoryview(frame).readonly


def parts_of(frame: Frame) -> Sequence[memoryview | Planned]:
    """Return what has to be written, one behind the other, to have a frame in place."""
    if type(frame) is Planned:
        return (frame,)
    if type(frame) is Pieces:
        return frame.views
    return (ensure_memoryview(frame),)


def ensure_memoryview(frame: Frame) -> memoryview:
    """Return a frame as a flat, contiguous memoryview of unsigned bytes.

    Notes
    -----
    No copy is made of C- or Fortran-contiguous memory, which is seen in memory order; other memory
    is copied in C order. A read-only frame stays read-only, also when it is copied.
    """
    if type(frame) in (Planned, Pieces):
        made: memoryview = frame.materialize()
        return made
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


def hoist_flags(
    header: dict[str, Any], frames: Sequence[Frame]
) -> tuple[dict[str, Any], list[bool]]:
    """Return a header without its writeable flags, and the flags of all frames.

    Notes
    -----
    A header that has flags knows better than the frames, which may have come through a transport
    that lost them. The stream of a pickle, its frame 0, has none and is never written. What other
    families keep under this name is theirs.
    """
    pickled = header.get("serializer") == "pickle"
    flags = header.get("writeable")
    if flags is None or not (
        pickled or "serializer" not in header or header["serializer"] == "custom"
    ):
        return header, [not is_readonly(frame) for frame in frames]
    if not isinstance(flags, (list, tuple)):
        raise _wrong_flags(flags, frames)
    found: list[Any] = [False, *flags] if pickled else list(flags)
    if len(found) != len(frames):
        raise _wrong_flags(flags, frames)
    rest = header.copy()
    del rest["writeable"]
    if None in found:
        pairs = zip(found, frames, strict=True)
        found = [not is_readonly(frame) if flag is None else flag for flag, frame in pairs]
    return rest, found


def is_flat(frame: Frame) -> bool:
    """Return whether a frame is what `ensure_memoryview` returns."""
    return type(frame) is memoryview and frame.format == "B" and frame.ndim == 1


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
        return [frame if is_flat(frame) else ensure_memoryview(frame) for frame in frames]
    if not isinstance(flags, (list, tuple)) or len(flags) != len(frames):
        raise _wrong_flags(flags, frames)
    return [_conform(frame, flag) for frame, flag in zip(frames, flags, strict=True)]


def _wrong_flags(flags: Any, frames: Sequence[Frame]) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"the header has the writeable flags {shown(flags, 200)} for {len(frames)} frames; it does "
        "not belong to them.",
        key="writeable",
        found=len(frames),
        expected=len(flags) if isinstance(flags, (list, tuple)) else None,
    )


def _conform(frame: Frame, flag: bool | None) -> Frame:  # noqa: FBT001 - one of a pair
    view = ensure_memoryview(frame)
    if flag and view.readonly:
        return memoryview(bytearray(view))
    if flag is False and not view.readonly:
        return view.toreadonly()
    return view
