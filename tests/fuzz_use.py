"""What does a reader do with an object? Reads out of bounds show only when it is used."""

from __future__ import annotations

import array
import math
from typing import Any

import numpy as np

MOST = 100_000
"""Larger objects are looked at, not walked through: whoever made them may honestly be so large."""


def use(x: Any, *, thorough: bool) -> None:
    """Look at all of an object; the library of its type may raise, but it must not crash.

    Parameters
    ----------
    thorough
        Follow its indices and offsets too: what readers get who accept no pickles is checked.
    """
    waiting = [x]
    for _ in range(200):
        if not waiting:
            return
        x = waiting.pop()
        if type(x) in (list, tuple, set, frozenset):
            waiting += list(x)[:50]
        elif type(x) is dict:
            waiting += [*x, *x.values()][:50]
        else:
            _use_one(x, thorough=thorough)


def _use_one(x: Any, *, thorough: bool) -> None:
    library = type(x).__module__.partition(".")[0]
    try:
        if thorough or library in ("builtins", "numpy", "array", "fuzz_corpus"):
            repr(x)
        if isinstance(x, (np.ndarray, memoryview, array.array, bytes, bytearray)):
            _use_memory(x)
        elif library in _USES and thorough:
            _USES[library](x)
    except Exception:  # what a library refuses to do is its own matter
        pass


def _use_memory(x: Any) -> None:
    view = x if isinstance(x, np.ndarray) else memoryview(x)
    if view.nbytes > MOST or math.prod(n or 1 for n in view.shape) > MOST:
        return
    _ = x.tolist() if hasattr(x, "tolist") else bytes(x)
    if isinstance(x, np.ndarray):
        _ = x.copy(), x.tobytes(), x.sum() if x.dtype.kind in "iufcb" else x.shape
        if isinstance(x, np.ma.MaskedArray):
            x.filled()


def _use_scipy(x: Any) -> None:
    if max(x.shape, default=0) > MOST or x.nnz > MOST:
        return
    y = x.tocsr()
    _ = y @ np.ones(y.shape[-1]), y.sum(), x.tocoo().coords, y.T.tocsr(), y.copy().sum_duplicates()
    if np.prod(x.shape) <= MOST:
        x.toarray()


def _use_sparse(x: Any) -> None:
    indices = x.coords if hasattr(x, "coords") else getattr(x, "indices", np.empty(0, np.int64))
    compiled = x.dtype == np.float64 and indices.dtype == np.int64  # for others it takes seconds
    if compiled and x.size <= MOST and x.nnz <= MOST:
        _ = x.todense(), x.sum()


def _use_torch(x: Any) -> None:
    if x.numel() <= MOST:
        _ = x.tolist(), x.detach().clone(), x.grad
        x.sum()


def _use_arrow(x: Any) -> None:
    if not hasattr(x, "validate"):
        x.to_pybytes()
    elif len(x) <= MOST and x.nbytes <= MOST * 8:
        x.to_pylist()
        x.validate(full=True)


def _use_polars(x: Any) -> None:
    if len(x) <= MOST:
        _ = x.to_dict(as_series=False) if hasattr(x, "to_dict") else x.to_list()
        x.sum()


_USES = {
    "scipy": _use_scipy,
    "sparse": _use_sparse,
    "torch": _use_torch,
    "pyarrow": _use_arrow,
    "polars": _use_polars,
}
