"""How do sparse matrices and arrays of SciPy become their component arrays, and come back?

All formats, matrices and arrays alike, of exactly these types: each component array is a frame, and
so is shared without a copy. What SciPy has found out about the order of indices travels along. The
formats of Python objects (lil, dok) travel as arrays and are built anew.

Inside other objects SciPy's own pickling is used: it shares the arrays too, and an array that
several matrices have in common stays common.

Methods of SciPy sort indices and sum duplicates in place when they need to. A matrix that several
processes share should be put in canonical format (``x.sum_duplicates()``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import scipy.sparse

from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import Frame
from shmstore.serialization.handlers.indices import (
    check_compressed,
    check_length,
    check_within,
    is_trusted,
    sizes,
    spread,
    take,
    take_indices,
)
from shmstore.serialization.parts import deserialize_parts, serialize_parts
from shmstore.serialization.registry import own_way, register_reducer, register_serialization

Header = dict[str, Any]
Parts = dict[str, Any]
Shape = tuple[int, ...]

# What a matrix has among its attributes; one with more has been given some by its user.
_ATTRIBUTES: Final = frozenset(
    {
        *("_dict", "_has_canonical_format", "_has_sorted_indices", "_shape", "coords", "data"),
        *("dtype", "has_canonical_format", "indices", "indptr", "maxprint", "offsets", "rows"),
    }
)


class Format(NamedTuple):
    """How one format is taken apart and put together."""

    pack: Callable[[Any], Parts]
    unpack: Callable[[Any, Shape, Parts], None]


def register() -> None:
    """Register the handlers of this module."""
    for name, kind in itertools.product(_FORMATS, ("array", "matrix")):
        cls = getattr(scipy.sparse, f"{name}_{kind}")
        register_serialization(cls, serialize_sparse, deserialize_sparse)
        register_reducer(cls, own_way)


def serialize_sparse(x: Any, context: dict[str, Any] | None = None) -> tuple[Header, list[Frame]]:
    """Return shape and flags of a sparse matrix or array, and its component arrays."""
    own = vars(x)
    if not own.keys() <= _ATTRIBUTES:
        raise NotImplementedError("it has attributes of its own")
    header: Header = {"shape": [int(size) for size in x.shape]}
    for key, name in _FLAGS.items():
        if type(own.get(name)) in (bool, int):
            header[key] = own[name]
    if x.format == "coo" and x.has_canonical_format:
        header["canonical"] = True
    header["parts"], frames = serialize_parts(_FORMATS[x.format].pack(x), context)
    return header, frames


# Keys of the header and where a compressed matrix, or any, keeps what they tell.
_FLAGS: Final = {
    "sorted": "_has_sorted_indices",
    "canonical": "_has_canonical_format",
    "maxprint": "maxprint",
}


def deserialize_sparse(header: Header, frames: Sequence[Frame], cls: type) -> Any:
    """Return a sparse matrix or array of class `cls` over its component arrays."""
    shape = sizes(header)
    kind: Any = cls
    name, of = cls.__name__.split("_")
    if len(shape) != 2 and (of == "matrix" or len(shape) not in _DIMENSIONS.get(name, ())):
        raise CorruptHeaderError(f"a {cls.__name__} has the shape {shape}", key="shape")
    x = kind.__new__(kind)
    x._shape = shape  # noqa: SLF001 - a constructor copies some indices, and looks at all of them
    maxprint = header.get("maxprint")
    x.maxprint = maxprint if isinstance(maxprint, int) else None
    _FORMATS[name].unpack(x, shape, deserialize_parts(header["parts"], frames))
    if is_trusted():
        for key in ("canonical", "sorted"):
            if key in header:
                setattr(x, _PROPERTIES[key], bool(header[key]))
    return x


# How many dimensions arrays of a format may have besides two.
_DIMENSIONS: Final = {"coo": range(1, 65), "csr": (1,), "dok": (1,)}

_PROPERTIES: Final = {"sorted": "has_sorted_indices", "canonical": "has_canonical_format"}


# --- compressed: csr, csc, bsr -----------------------------------------------------------------


def _pack_compressed(x: Any) -> Parts:
    return {"indptr": spread(x.indptr), "indices": spread(x.indices), "data": x.data}


def _unpack_rows(x: Any, shape: Shape, parts: Parts) -> None:
    _set_compressed(x, parts, 1, (1, *shape)[-2:])


def _unpack_columns(x: Any, shape: Shape, parts: Parts) -> None:
    _set_compressed(x, parts, 1, shape[::-1])


def _unpack_blocks(x: Any, shape: Shape, parts: Parts) -> None:
    blocksize = take(parts, "data", 3).shape[1:]
    if any(block == 0 or size % block for size, block in zip(shape, blocksize, strict=True)):
        raise CorruptHeaderError(f"blocks of {blocksize} do not make {shape}", key="shape")
    _set_compressed(x, parts, 3, [n // block for n, block in zip(shape, blocksize, strict=True)])


def _set_compressed(x: Any, parts: Parts, ndim: int, shape: Sequence[int]) -> None:
    x.indptr, x.indices = take_indices(parts, "indptr"), take_indices(parts, "indices")
    x.data = take(parts, "data", ndim)
    check_compressed(x.indptr, x.indices, x.data, shape)


# --- coordinates: coo, dok ---------------------------------------------------------------------


def _pack_coordinates(x: Any) -> Parts:
    return {**{str(axis): spread(one) for axis, one in enumerate(x.coords)}, "data": x.data}


def _unpack_coordinates(x: Any, shape: Shape, parts: Parts) -> None:
    x.coords, x.data = _coordinates(shape, parts, thorough=not is_trusted())
    x.has_canonical_format = False


def _coordinates(shape: Shape, parts: Parts, *, thorough: bool) -> tuple[Any, Any]:
    check_length("parts", len(parts), len(shape) + 1)
    data = take(parts, "data")
    coords = tuple(take_indices(parts, str(axis)) for axis in range(len(shape)))
    for size, indices in zip(shape, coords, strict=True):
        check_length("coords", len(indices), len(data))
        if thorough:
            check_within(indices, size)
    return coords, data


def _pack_dict(x: Any) -> Parts:
    return _pack_coordinates(x.tocoo())


def _unpack_dict(x: Any, shape: Shape, parts: Parts) -> None:
    coords, data = _coordinates(shape, parts, thorough=True)
    keys = [indices.tolist() for indices in coords]
    x._dict = dict(zip(zip(*keys, strict=True) if len(keys) > 1 else keys[0], data, strict=True))  # noqa: SLF001
    x.dtype = data.dtype


# --- diagonals and lists: dia, lil -------------------------------------------------------------


def _pack_diagonals(x: Any) -> Parts:
    return {"offsets": spread(x.offsets), "data": x.data}


def _unpack_diagonals(x: Any, shape: Shape, parts: Parts) -> None:
    x.offsets, x.data = take_indices(parts, "offsets"), take(parts, "data", 2)
    check_length("data", len(x.data), len(x.offsets))
    if not is_trusted():
        check_within(x.offsets + shape[0], sum(shape) + 1)


def _pack_lists(x: Any) -> Parts:
    return _pack_compressed(x.tocsr())


def _unpack_lists(x: Any, shape: Shape, parts: Parts) -> None:
    indptr, indices = take_indices(parts, "indptr"), take_indices(parts, "indices")
    data = take(parts, "data")
    check_compressed(indptr, indices, data, shape, thorough=True)
    x.dtype = data.dtype
    x.rows, x.data = np.empty(shape[0], object), np.empty(shape[0], object)
    columns, values = indices.tolist(), data.tolist()
    for row, (start, stop) in enumerate(itertools.pairwise(indptr.tolist())):
        x.rows[row], x.data[row] = columns[start:stop], values[start:stop]


_FORMATS: Final = {
    "bsr": Format(_pack_compressed, _unpack_blocks),
    "coo": Format(_pack_coordinates, _unpack_coordinates),
    "csc": Format(_pack_compressed, _unpack_columns),
    "csr": Format(_pack_compressed, _unpack_rows),
    "dia": Format(_pack_diagonals, _unpack_diagonals),
    "dok": Format(_pack_dict, _unpack_dict),
    "lil": Format(_pack_lists, _unpack_lists),
}
