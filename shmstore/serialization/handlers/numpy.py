"""How does a NumPy array become one frame, and an array over that frame?

Only exact ndarrays: subclasses keep their class by pickle. Arrays whose elements are objects of
Python go there too. The frame is the memory of the array in its own order; axes of stride 0
(broadcast) are cut to length 1 before and stretched again after.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shmstore.errors import DeserializationError
from shmstore.serialization.frames import Frame

Array = npt.NDArray[Any]
# NPY_ARRAY_WRITEABLE in the C API of NumPy.
_WRITEABLE: Final = 0x400

# Where a field of a structured dtype has its title, if it has one.
_TITLE: Final = 2

Layout = tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...] | None]


def register(register_serialization: Callable[..., None]) -> None:
    """Register the handler of this module."""
    register_serialization(np.ndarray, serialize_array, deserialize_array)


def serialize_array(x: Array) -> tuple[dict[str, Any], list[Frame]]:
    """Return the header (dtype, shape, strides; no strides: C order) and the memory of an array."""
    dtype = _pack_dtype(x.dtype)
    header: dict[str, Any] = {"dtype": dtype, "shape": x.shape}
    if not x.flags.c_contiguous:
        x, header["strides"] = _compact(x)
    return header, [_memory(x)]


def deserialize_array(header: dict[str, Any], frames: Sequence[Frame]) -> Array:
    """Return an array over the one frame; it is as writeable as the frame is."""
    if len(frames) != 1:
        raise DeserializationError(f"an array has one frame, these are {len(frames)}", key="frames")
    shape, dtype, strides = array_layout(header)
    return np.ndarray(shape, dtype, frames[0], 0, strides)


def array_layout(header: dict[str, Any]) -> Layout:
    """Return shape, dtype and strides (None: C order) from the header of an array."""
    strides = header.get("strides")
    return (
        tuple(header["shape"]),
        _unpack_dtype(header["dtype"]),
        None if strides is None else tuple(strides),
    )


def array_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the header of a C-ordered array; NotImplementedError for elements that are objects."""
    return {"dtype": _pack_dtype(dtype), "shape": shape}


def _compact(x: Array) -> tuple[Array, tuple[int, ...]]:
    """Return contiguous memory with the elements of `x`, and the strides that `x` has over it."""
    writeable = _is_writeable(x)
    axes = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.strides)
    distinct = x[axes]
    if not (distinct.flags.c_contiguous or distinct.flags.f_contiguous):
        distinct = np.array(distinct, order="C")
        distinct.flags.writeable = writeable
    strides = tuple(
        0 if old == 0 else new for old, new in zip(x.strides, distinct.strides, strict=True)
    )
    return distinct, strides


def _is_writeable(x: Array) -> bool:
    """Return the flag without the warning that results of `numpy.broadcast_arrays` give with it."""
    return bool(x.flags.num & _WRITEABLE)


def _memory(x: Array) -> memoryview:
    """Return the memory of a contiguous array as flat bytes, read-only if the array is."""
    if not x.nbytes:
        empty = memoryview(bytearray())
        return empty if _is_writeable(x) else empty.toreadonly()
    if not x.flags.c_contiguous:
        x = x.T
    return x.reshape(-1).view(np.uint8).data


def _pack_dtype(dtype: np.dtype[Any]) -> Any:
    """Return what msgpack can pack and `_unpack_dtype` makes the same dtype of.

    A plain dtype is its string; a structured one a dict as `numpy.dtype` takes it, with the packed
    dtypes of its fields; a field that is an array itself ``[packed dtype, shape]``.
    """
    of_a_subclass = dtype.names is not None and dtype.type is not np.void
    if dtype.metadata or dtype.hasobject or of_a_subclass:
        raise NotImplementedError(str(dtype))
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_pack_dtype(base), shape]
    if dtype.names is None:
        return _plain_dtype(dtype)
    fields = [dtype.fields[name] for name in dtype.names] if dtype.fields else []
    return {
        "names": dtype.names,
        "formats": [_pack_dtype(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > _TITLE else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


@functools.lru_cache(maxsize=256)
def _plain_dtype(dtype: np.dtype[Any]) -> str:
    """Return the string of a dtype that is told by it; others (text, extensions) decline."""
    text = dtype.str
    if dtype.kind == "T" or np.dtype(text) != dtype:
        raise NotImplementedError(str(dtype))
    return text


def _unpack_dtype(packed: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = _build_dtype(packed)
    if dtype.hasobject:
        raise DeserializationError("the header of an array names a dtype of objects", key="dtype")
    return dtype


def _build_dtype(packed: Any) -> Any:
    if isinstance(packed, str):
        return np.dtype(packed)
    if isinstance(packed, list):
        base, shape = packed
        return np.dtype((_build_dtype(base), tuple(shape)))
    spec: Any = dict(packed)
    aligned = bool(spec.pop("aligned"))
    spec["formats"] = [_build_dtype(field) for field in spec["formats"]]
    return np.dtype(spec, align=aligned)
