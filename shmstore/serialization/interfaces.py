"""How does an object travel that has no handler and cannot be pickled, but exports its data?

By the buffer protocol it comes back as a memoryview; by ``__array_interface__`` or DLPack as a
NumPy array. Objects that can be pickled keep their type and never come here.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

import numpy as np

# Types that were asked before; forgotten together, so that types made while running may go.
_exporting: dict[type, bool] = {}
_MOST_TYPES: Final = 4096


def may_export(obj: Any) -> bool:
    """Return whether objects of this type export data by one of the three ways."""
    kind = type(obj)
    known = _exporting.get(kind)
    if known is None:
        if len(_exporting) >= _MOST_TYPES:
            _exporting.clear()
        known = _exporting[kind] = _has_interface(obj)
    return known


def _has_interface(obj: Any) -> bool:
    kind = type(obj)
    if hasattr(kind, "__array_interface__") or hasattr(kind, "__dlpack__"):
        return True
    try:
        memoryview(obj).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


def reduce(obj: Any, protocol: int) -> Any:
    """Return the object's own reduction, or one to its data if it refuses to be pickled.

    Raises
    ------
    TypeError
        What the object raised, if it exports nothing after all.
    """
    try:
        return obj.__reduce_ex__(protocol)
    except (TypeError, pickle.PicklingError):
        data = exported(obj)
        if data is None:
            raise
        return _itself, (data,)


def exported(obj: Any) -> memoryview | np.ndarray[Any, Any] | None:
    """Return the data that an object exports, without a copy; None if it does not."""
    try:
        return memoryview(obj)
    except (TypeError, BufferError, ValueError):
        pass
    try:
        if hasattr(obj, "__array_interface__"):
            return np.asarray(obj)
        return np.from_dlpack(obj)
    except (TypeError, AttributeError, BufferError, ValueError, RuntimeError):
        return None


def _itself(data: Any) -> Any:
    """Return the data. Its name lies in stored pickles."""
    return data
