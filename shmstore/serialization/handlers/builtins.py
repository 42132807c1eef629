"""How do bytes, bytearrays, arrays of the standard library and memoryviews travel?

The frame is their own memory. What owns its memory (all but memoryviews) is a copy when it comes
back. Text files, which cloudpickle would read into memory, are refused as other files are.
"""

from __future__ import annotations

import array
import io
import math
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.dispatch import typename
from shmstore.serialization.frames import Frame, Planned, ensure_memoryview
from shmstore.serialization.handlers.numpy import pack_dtype, unpack_dtype
from shmstore.serialization.registry import register_reducer, register_serialization
from shmstore.serialization.wording import shown

Header = dict[str, Any]

# Formats that memoryview.cast makes of bytes.
_CASTABLE: Final = frozenset("cbB?hHiIlLqQnNfd")


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(bytes, serialize_bytes, deserialize_bytes)
    register_serialization(bytearray, serialize_bytes, deserialize_bytearray)
    register_serialization(array.array, serialize_array, deserialize_array)
    register_serialization(memoryview, serialize_memoryview, deserialize_memoryview)
    register_reducer(io.TextIOWrapper, reduce_text_file)


def serialize_bytes(x: bytes | bytearray) -> tuple[Header, list[Frame]]:
    """Return the object itself as the one frame."""
    return {}, [x]


def deserialize_bytes(_: Header, frames: Sequence[Frame]) -> bytes:
    """Return the very frame if it is bytes, else a copy; several frames are joined."""
    if len(frames) == 1 and type(frames[0]) is bytes:
        return frames[0]
    if len(frames) == 1:
        view = memoryview(frames[0])
        if type(view.obj) is bytes and view.nbytes == len(view.obj):
            return view.obj
    return b"".join([ensure_memoryview(frame) for frame in frames])


def deserialize_bytearray(_: Header, frames: Sequence[Frame]) -> bytearray:
    """Return the very frame if it is a bytearray, else a copy; several frames are joined."""
    if len(frames) == 1:
        if type(frames[0]) is bytearray:
            return frames[0]
        view = memoryview(frames[0])
        if type(view.obj) is bytearray and view.nbytes == len(view.obj):
            return view.obj
        return bytearray(view)
    return bytearray().join([ensure_memoryview(frame) for frame in frames])


def serialize_array(x: array.array[Any]) -> tuple[Header, list[Frame]]:
    """Return type code and size of the items, and the memory of the array."""
    return {"typecode": x.typecode, "itemsize": x.itemsize}, [memoryview(x)]


def deserialize_array(header: Header, frames: Sequence[Frame]) -> array.array[Any]:
    """Return an array that owns a copy; several frames are joined, and may cut items."""
    x: array.array[Any] = array.array(header["typecode"])
    if header.get("itemsize", x.itemsize) != x.itemsize:
        raise CorruptHeaderError(
            f"items of type {x.typecode!r} have {x.itemsize} bytes here, the header says "
            f"{shown(header['itemsize'], 50)}",
            key="itemsize",
            found=header["itemsize"],
            expected=x.itemsize,
        )
    views = [ensure_memoryview(frame) for frame in frames]
    x.frombytes(views[0] if len(views) == 1 else b"".join(views))
    return x


# --- memoryviews ---------------------------------------------------------------------------------


def serialize_memoryview(x: memoryview) -> tuple[Header, list[Frame]]:
    """Return format and shape, and the elements in C order.

    Raises
    ------
    ValueError
        The elements are objects, or of a format that cannot be made of bytes again.
    """
    kind = x.format.removeprefix("@")
    header: Header = {"format": kind, "shape": list(x.shape or ())}
    if kind not in _CASTABLE or (not x.nbytes and x.ndim > 1):
        header["dtype"] = _packed_dtype(x)
    if x.c_contiguous:
        return header, [x]
    # In C order, because that is how the elements are cast on the other side.
    return header, [Planned(x.nbytes, lambda target: _write(x, target), writeable=not x.readonly)]


def _write(x: memoryview, target: memoryview) -> None:
    source = np.asarray(x)
    np.copyto(np.ndarray(source.shape, source.dtype, target), source)


def _packed_dtype(x: memoryview) -> Any:
    """Return the dtype that NumPy gives the elements, if it is told by the same format."""
    if "O" in x.format:
        raise ValueError(
            f"a memoryview of format {x.format!r} holds pointers to objects of this process. Put a "
            "list of the objects instead."
        )
    try:
        dtype = np.asarray(x).dtype
        packed = pack_dtype(dtype)
        same = np.ndarray((1,), unpack_dtype(packed)).data.format == x.format
    except (NotImplementedError, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"a memoryview of format {x.format!r} cannot be rebuilt from bytes. Put "
            "numpy.asarray(view) or view.tobytes() instead."
        )
    return packed


def deserialize_memoryview(header: Header, frames: Sequence[Frame]) -> memoryview:
    """Return a view over the frame; several frames are joined."""
    views = [ensure_memoryview(frame) for frame in frames]
    view = views[0] if len(views) == 1 else memoryview(b"".join(views))
    kind, shape = header["format"], tuple(header["shape"])
    if not all(type(n) is int and n >= 0 for n in shape):
        raise CorruptHeaderError(f"the shape of a memoryview is {shown(shape)}", key="shape")
    dtype = unpack_dtype(header["dtype"]) if "dtype" in header else None
    itemsize = struct.calcsize(kind) if dtype is None else dtype.itemsize
    if math.prod(shape) * itemsize != view.nbytes:
        raise CorruptHeaderError(
            f"a memoryview of shape {shown(shape)} and format {shown(kind, 50)} has "
            f"{math.prod(shape) * itemsize} bytes, its frame {view.nbytes}",
            key="shape",
            found=view.nbytes,
            expected=math.prod(shape) * itemsize,
        )
    if dtype is not None:
        return np.ndarray(shape, dtype, view).data
    if not view.nbytes:
        return view.cast("B").cast(kind)  # type: ignore[call-overload, return-value, unused-ignore]
    return view.cast(kind, shape)  # type: ignore[call-overload, return-value, unused-ignore]


# --- files ---------------------------------------------------------------------------------------


def reduce_text_file(x: io.TextIOWrapper) -> Any:
    """Leave the output of a process to cloudpickle, by its name; TypeError for any other file."""
    if x is sys.stdout or x is sys.stderr:
        return NotImplemented
    message = f"cannot pickle {typename(type(x))!r} object"
    raise TypeError(message)
