"""What an object looks like: text that is equal for objects that are the same, in any process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def likeness(x: Any) -> str:
    """Return a digest of type, layout and content of an object, whatever memory it lies on."""
    return hashlib.sha256(repr(portrait(x)).encode(errors="replace")).hexdigest()[:16]


def portrait(x: Any) -> Any:
    """Return type, layout and content of an object as nested tuples of plain values."""
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    paint = _PAINTERS.get(kind.partition(".")[0], _paint_plain)
    return kind, *paint(x)


def _paint_array(x: Any) -> Any:
    if isinstance(x, np.ma.MaskedArray) and x is not np.ma.masked:
        mask = None if x.mask is np.ma.nomask else portrait(np.asarray(x.mask))
        return portrait(np.asarray(x.data)), mask, x.hardmask, str(x.fill_value)
    if not isinstance(x, np.ndarray) or x is np.ma.masked:
        return (repr(x),)
    order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
    has_content = x.dtype.hasobject or x.dtype.kind == "T"
    content = [portrait(e) for e in x.ravel().tolist()] if has_content else x.tobytes()
    return repr(x.dtype), x.shape, order, content


def _paint_plain(x: Any) -> Any:
    if isinstance(x, memoryview):
        return x.format, x.shape, x.tobytes()
    if isinstance(x, dict):
        return tuple((portrait(key), portrait(value)) for key, value in x.items())
    if isinstance(x, (list, tuple)):
        return tuple(map(portrait, x))
    if isinstance(x, (set, frozenset)):
        return tuple(sorted(repr(portrait(element)) for element in x))
    if type(x).__module__ in ("builtins", "array", "enum", "datetime", "collections"):
        return (repr(x),)
    return portrait(vars(x)) if hasattr(x, "__dict__") else (repr(x),)


def _paint_pandas(x: Any) -> Any:
    if hasattr(x, "columns"):
        columns = [x.iloc[:, n] for n in range(x.shape[1])]
        return portrait(x.index), portrait(list(x.columns)), tuple(map(_paint_series, columns))
    return _paint_series(x)


def _paint_series(x: Any) -> Any:
    index = portrait(x.index.tolist()) if hasattr(x, "index") else None
    return str(x.dtype), str(x.name), index, repr([str(value) for value in x.tolist()])


def _paint_pyarrow(x: Any) -> Any:
    return str(getattr(x, "schema", getattr(x, "type", ""))), repr(x.to_pylist())


def _paint_polars(x: Any) -> Any:
    if hasattr(x, "rows"):
        return str(x.schema), repr(x.rows())
    return str(x.dtype), x.name, repr(x.to_list())


def _paint_sparse(x: Any) -> Any:
    dense = x.todense() if hasattr(x, "todense") else x.toarray()
    fill = repr(getattr(x, "fill_value", 0))
    return x.shape, str(x.dtype), fill, x.nnz, portrait(np.asarray(dense))


def _paint_torch(x: Any) -> Any:
    if hasattr(x, "state_dict"):
        return tuple((name, portrait(value)) for name, value in x.state_dict().items())
    gradient = None if not x.is_leaf or x.grad is None else portrait(x.grad)
    return str(x.dtype), tuple(x.shape), x.requires_grad, repr(x.tolist()), gradient


_PAINTERS = {
    "numpy": _paint_array,
    "pandas": _paint_pandas,
    "pyarrow": _paint_pyarrow,
    "polars": _paint_polars,
    "scipy": _paint_sparse,
    "sparse": _paint_sparse,
    "torch": _paint_torch,
}
