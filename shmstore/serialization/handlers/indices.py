"""May indices that were read be handed to compiled code that does not check them?

The routines of sparse arrays follow their indices without looking at bounds. Lengths, dtypes and
the ends of index pointers are always checked, which costs nothing. What every single index says is
checked only for readers that accept no pickles: whoever accepts them trusts the writer with more
than that, and would pay with a pass over memory that it may never need.

All work on indices is bounded by their frames: an array of them that repeats some (a stride of 0)
could be of any length, so it is written out when it is packed and refused when it is read. Data may
repeat: nothing is made of it but as many numbers as there are indices.

A writer that still has the memory can change indices after the check. Who does not trust the
writers of a store gets copies (mode "copy").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shmstore.errors import CorruptHeaderError
from shmstore.serialization import trust
from shmstore.serialization.wording import shown

Array = npt.NDArray[Any]

_INT64: Final = 1 << 63

# No number has more bytes.
_MOST_NBYTES: Final = 32


def is_trusted() -> bool:
    """Return whether whoever reads lets the writer run code anyway."""
    accepted = trust.policy.get().accepted
    return accepted is None or "pickle" in accepted


def sizes(header: Mapping[str, Any], key: str = "shape") -> tuple[int, ...]:
    """Return a shape from a header."""
    shape = tuple(header[key])
    if not all(type(size) is int and 0 <= size < _INT64 for size in shape):
        raise CorruptHeaderError(f"a sparse array has the {key} {shown(shape, 200)}", key=key)
    return shape


def spread(array: Array) -> Array:
    """Return indices, in memory of their own if some are repeated by a stride of 0."""
    return np.ascontiguousarray(array) if _repeats(array) else array


def _repeats(array: Array) -> bool:
    steps = zip(array.shape, array.strides, strict=True)
    return bool(array.size) and any(n > 1 and not step for n, step in steps)


def take(parts: Mapping[str, Any], name: str, ndim: int = 1) -> Array:
    """Return an array of some dimensions from what was deserialized."""
    array = parts.get(name)
    if type(array) is not np.ndarray or array.ndim != ndim:
        raise CorruptHeaderError(
            f"{name!r} of a sparse array is not an array of {ndim} dimensions", key=name
        )
    if array.itemsize > _MOST_NBYTES and _repeats(array):
        raise _repeated(name)
    return array


def take_indices(parts: Mapping[str, Any], name: str, ndim: int = 1) -> Array:
    """Return an array of integers."""
    array = take(parts, name, ndim)
    if array.dtype.kind not in "iu" or not array.dtype.isnative:
        raise CorruptHeaderError(f"{name!r} of a sparse array has dtype {array.dtype}", key=name)
    if _repeats(array):
        raise _repeated(name)
    return array


def _repeated(name: str) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"{name!r} of a sparse array has few elements that are repeated", key=name
    )


def check_length(name: str, found: int, expected: int) -> None:
    """Raise unless a length is as expected."""
    if found != expected:
        raise CorruptHeaderError(
            f"{name!r} of a sparse array has length {found} instead of {expected}",
            key=name,
            found=found,
            expected=expected,
        )


def check_compressed(
    indptr: Array, indices: Array, data: Array, shape: Sequence[int], *, thorough: bool = False
) -> None:
    """Raise unless three arrays make a compressed array of two dimensions, `shape`.

    Parameters
    ----------
    thorough
        Look at each index even if the writer is trusted.
    """
    rows, columns = shape
    check_length("indptr", len(indptr), rows + 1)
    check_length("indices", len(indices), len(data))
    if indptr[0] != 0 or not 0 <= indptr[-1] <= len(indices):
        raise CorruptHeaderError(
            f"index pointers lead from {indptr[0]} to {indptr[-1]} of {len(indices)} indices",
            key="indptr",
        )
    if is_trusted() and not thorough:
        return
    if (indptr[1:] < indptr[:-1]).any():
        raise CorruptHeaderError("the index pointers of a sparse array decrease", key="indptr")
    check_within(indices, columns)


def check_within(indices: Array, size: int) -> None:
    """Raise unless all indices are those of an axis of some size."""
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise CorruptHeaderError(
            f"indices of a sparse array go from {indices.min()} to {indices.max()} on an axis of "
            f"{size}",
            key="indices",
            found=int(indices.max()),
            expected=size,
        )


def product(numbers: Sequence[int]) -> int:
    """Return a product that is the size of an axis; CorruptHeaderError if it can be none."""
    size = math.prod(numbers)
    if size >= _INT64:
        raise CorruptHeaderError(f"an axis of {size} is too long", key="shape", found=size)
    return size
