"""What is worth sharing? Asked of every result of every task, so it must be told quickly."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from dask.sizeof import sizeof

from shmstore.serialization import custom_serialize

# What has many parts takes some 0.5 ms to put and 0.2 ms to get, and the pages of its parts are
# touched anew: below that a shuffle, whose pieces go to one worker each, took longer than by TCP.
_TABLES_FROM: Final = 16
_CELL_NBYTES: Final = 8
_TABLES: Final = frozenset({"pandas", "pyarrow", "polars"})


def is_large(obj: Any, threshold: int) -> bool:
    """Return whether an object is data, of a size that is worth sharing. Asked of all results."""
    kind = type(obj)
    if kind is np.ndarray:
        return bool(obj.nbytes >= threshold and not obj.dtype.hasobject and 0 not in obj.strides)
    if not kind.__weakrefoffset__ or not _is_data(kind):
        return False
    try:
        return _nbytes_of(obj) >= threshold * _TABLES_FROM
    except Exception:  # noqa: BLE001 - attributes of anything, and dask closes a worker for it
        return False


def _nbytes_of(obj: Any) -> int:
    """Return the size of data, about: dask's `sizeof` takes longer for a frame than small ones.

    A frame is not asked for what it has not: it would look among its columns, and say so.
    """
    kind = type(obj)
    if kind.__module__.startswith("pandas") and len(obj.shape) == 2:
        rows, columns = obj.shape
        return int(rows * columns * _CELL_NBYTES)
    nbytes = getattr(obj, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if hasattr(obj, "estimated_size"):
        return int(obj.estimated_size())
    return int(sizeof(obj))


def has_objects(obj: Any) -> bool:
    """Return whether data consists of objects of Python. Takes longer: asked before it is put."""
    try:
        dtypes = getattr(obj, "dtypes", None)
        if dtypes is None or not hasattr(dtypes, "__iter__"):
            dtypes = [getattr(obj, "dtype", None)]
        return object in list(dtypes)
    except Exception:  # noqa: BLE001 - as above
        return True


def _is_data(kind: type) -> bool:
    return _is_table(kind) or custom_serialize.find(kind) is not None


def _is_table(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _TABLES
