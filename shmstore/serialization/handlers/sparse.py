"""How do arrays of the package sparse become their component arrays, and come back?

COO, GCXS and DOK, exactly these types: each component array is a frame and so is shared without a
copy. The fill value, what all elements have that are not stored, lies in the header. A DOK is a
dict in memory; it travels as arrays and is built anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sparse

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import Frame
from shmstore.serialization.handlers.indices import (
    Array,
    check_compressed,
    check_length,
    check_within,
    is_trusted,
    product,
    sizes,
    spread,
    take,
    take_indices,
)
from shmstore.serialization.parts import deserialize_parts, serialize_parts
from shmstore.serialization.registry import own_way, register_reducer, register_serialization
from shmstore.serialization.wording import shown

Header = dict[str, Any]


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(sparse.COO, serialize_coo, deserialize_coo)
    register_serialization(sparse.GCXS, serialize_gcxs, deserialize_gcxs)
    register_serialization(sparse.DOK, serialize_dok, deserialize_dok)
    for cls in (sparse.COO, sparse.GCXS):
        register_reducer(cls, own_way)


# --- COO ---------------------------------------------------------------------------------------


def serialize_coo(x: Any, context: dict[str, Any] | None = None) -> tuple[Header, list[Frame]]:
    """Return shape and fill value of an array, and its coordinates and elements."""
    header = _pack_fill(x, x.data.dtype)
    if x._cache is not None:  # noqa: SLF001 - no other way to ask
        header["cache"] = True
    header["parts"], frames = serialize_parts({"coords": spread(x.coords), "data": x.data}, context)
    return header, frames


def deserialize_coo(header: Header, frames: Sequence[Frame]) -> Any:
    """Return an array over its coordinates and elements."""
    shape, coords, data = _coordinates(header, frames)
    trusted = is_trusted()
    return sparse.COO(
        coords,
        data,
        shape,
        has_duplicates=not trusted,
        sorted=trusted,
        cache=header.get("cache") is True,
        fill_value=_unpack_fill(header, data),
    )


def _coordinates(header: Header, frames: Sequence[Frame]) -> tuple[tuple[int, ...], Array, Array]:
    shape = sizes(header)
    parts = deserialize_parts(header["parts"], frames)
    coords, data = take_indices(parts, "coords", 2), take(parts, "data")
    check_length("coords", len(coords), len(shape))
    check_length("data", len(data), coords.shape[1])
    if not shape:  # there is but one element, and coordinates take no memory
        check_length("data", len(data), min(len(data), 1))
    if not is_trusted():
        for size, indices in zip(shape, coords, strict=True):
            check_within(indices, size)
    return shape, coords, data


def _pack_fill(x: Any, dtype: np.dtype[Any]) -> Header:
    """Return a header with shape and fill value."""
    fill = np.asarray(x.fill_value)
    if fill.dtype != dtype or dtype.hasobject:
        raise NotImplementedError(f"fill value of dtype {fill.dtype} among elements of {dtype}")
    return {"shape": [int(size) for size in x.shape], "fill": fill.tobytes()}


def _unpack_fill(header: Header, data: Array) -> Any:
    fill = np.frombuffer(header["fill"], data.dtype)
    check_length("fill", len(fill), 1)
    return fill[0]


# --- GCXS --------------------------------------------------------------------------------------


def serialize_gcxs(x: Any, context: dict[str, Any] | None = None) -> tuple[Header, list[Frame]]:
    """Return shape, compressed axes and fill value of an array, and its component arrays."""
    header = _pack_fill(x, x.data.dtype)
    axes = x.compressed_axes
    header["axes"] = None if axes is None else [int(axis) for axis in axes]
    parts = {"indptr": spread(x.indptr), "indices": spread(x.indices), "data": x.data}
    header["parts"], frames = serialize_parts(parts, context)
    return header, frames


def deserialize_gcxs(header: Header, frames: Sequence[Frame]) -> Any:
    """Return an array over its component arrays."""
    parts = deserialize_parts(header["parts"], frames)
    x = sparse.GCXS.__new__(sparse.GCXS)  # its constructor looks at each index
    x.shape, x.data = sizes(header), take(parts, "data")
    x.indptr, x.indices = take_indices(parts, "indptr"), take_indices(parts, "indices")
    axes = header["axes"]
    x._compressed_axes = None if axes is None else tuple(axes)  # noqa: SLF001 - as its constructor
    x.fill_value = _unpack_fill(header, x.data)
    _check_gcxs(x, x.shape, axes or ())
    return x


def _check_gcxs(x: Any, shape: tuple[int, ...], axes: Sequence[int]) -> None:
    """Raise unless the arrays make one of that shape with these axes compressed to rows."""
    if len({*axes} & {*range(len(shape))}) != len(axes):
        raise CorruptHeaderError(
            f"the axes {shown(axes)} of {len(shape)} are compressed", key="axes"
        )
    rows = product([shape[axis] for axis in axes])
    columns = product([size for axis, size in enumerate(shape) if axis not in axes])
    if len(shape) < 2 and not len(x.indptr):
        check_length("indices", len(x.indices), len(x.data))
        check_within(x.indices, columns)
        return
    check_compressed(x.indptr, x.indices, x.data, (rows, columns))


# --- DOK ---------------------------------------------------------------------------------------


def serialize_dok(x: Any, context: dict[str, Any] | None = None) -> tuple[Header, list[Frame]]:
    """Return shape and fill value of an array, and its coordinates and elements."""
    header = _pack_fill(x, x.dtype)
    coords = np.array(list(x.data), np.int64).reshape(len(x.data), len(x.shape)).T
    data = np.array(list(x.data.values()), x.dtype)
    header["parts"], frames = serialize_parts({"coords": coords, "data": data}, context)
    return header, frames


def deserialize_dok(header: Header, frames: Sequence[Frame]) -> Any:
    """Return an array with a dict of its own."""
    shape, coords, data = _coordinates(header, frames)
    x = sparse.DOK(shape, dtype=data.dtype, fill_value=_unpack_fill(header, data))
    x.data = dict(zip(map(tuple, coords.T.tolist()), data, strict=True))
    return x
