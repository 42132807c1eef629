"""What can be made from an array that a store has given? All of it must keep the memory valid."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

N = 1200
EXPECTED = np.arange(N, dtype=np.int64)


class Labelled(np.ndarray):
    """An array class of a user."""


class Holder:
    """An object that shows an array to NumPy without being one."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__


class Cycle:
    """An array in a reference cycle."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.itself = self


def through_pandas_frame(array: np.ndarray) -> Any:
    """Return a frame over the array."""
    import pandas as pd

    frame = pd.DataFrame(array.reshape(-1, 4), copy=False)
    assert np.shares_memory(frame.to_numpy(), array)
    return frame


def through_pandas_series(array: np.ndarray) -> Any:
    """Return a part of a series over the array."""
    import pandas as pd

    series = pd.Series(array, copy=False)
    assert np.shares_memory(series.to_numpy(), array)
    return series.iloc[:]


def through_arrow_buffer(array: np.ndarray) -> Any:
    """Return an Arrow buffer over the array."""
    import pyarrow as pa

    return pa.py_buffer(array).slice(0)


def through_arrow_array(array: np.ndarray) -> Any:
    """Return an Arrow array over the array."""
    import pyarrow as pa

    arrow = pa.array(array)
    assert arrow.buffers()[1].address == array.ctypes.data
    return arrow.slice(0)


def through_arrow_table(array: np.ndarray) -> Any:
    """Return a column of an Arrow table over the array."""
    import pyarrow as pa

    return pa.table({"x": pa.array(array)}).column("x")


def through_torch(array: np.ndarray) -> Any:
    """Return a view of a tensor over the array."""
    import torch

    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    return tensor.view(-1, 4)[:].reshape(-1)


def through_iterator(array: np.ndarray) -> Any:
    """Return an iterator that has begun."""
    items = iter(array)
    return itertools.chain([next(items)], items)


DERIVATIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "itself": lambda a: a,
    "slice of slice": lambda a: a[0:][:N][...],
    "part of part of reshape": lambda a: a.reshape(2, -1)[:].reshape(-1),
    "transpose": lambda a: a.reshape(4, -1).T,
    "ravel": lambda a: a.reshape(4, -1).ravel(),
    "swapped and squeezed": lambda a: a[None, :, None].swapaxes(0, 1).squeeze(),
    "strided": lambda a: np.lib.stride_tricks.as_strided(a, (N,), (8,)),
    "broadcast": lambda a: np.broadcast_to(a, (2, N))[0],
    "view of another type": lambda a: a.view(np.uint8).view(np.int64),
    "field": lambda a: a.view([("x", "i8")])["x"],
    "subclass": lambda a: a.view(Labelled)[:],
    "record array": lambda a: a.view([("x", "i8")]).view(np.recarray).x,
    "masked array": lambda a: np.ma.masked_array(a, copy=False),
    "matrix of chunks": lambda a: np.split(a, 4),
    "flat": lambda a: a.flat,
    "iterator": through_iterator,
    "nditer": np.nditer,
    "asarray": np.asarray,
    "asarray of memoryview": lambda a: np.asarray(memoryview(a)),
    "frombuffer": lambda a: np.frombuffer(a, np.int64),
    "frombuffer of part": lambda a: np.frombuffer(memoryview(a)[:], np.int64),
    "ndarray over memoryview": lambda a: np.ndarray(N, np.int64, buffer=memoryview(a)),
    "memoryview": lambda a: memoryview(a)[:],
    "memoryview cast": lambda a: memoryview(a).cast("B").cast("q")[:],
    "data": lambda a: a.data,
    "dlpack": np.from_dlpack,
    "array interface": lambda a: np.asarray(Holder(a)),
    "pickle buffer": lambda a: pickle.PickleBuffer(a).raw().cast("q"),
    "ctypes": lambda a: np.ctypeslib.as_array(np.ctypeslib.as_ctypes(a)),
    "closure": lambda a: lambda: a,
    "in a cycle": Cycle,
    "pandas frame": through_pandas_frame,
    "pandas series": through_pandas_series,
    "arrow buffer": through_arrow_buffer,
    "arrow array": through_arrow_array,
    "arrow table": through_arrow_table,
    "torch": through_torch,
}


LIBRARY_OF = {"pandas": "pandas", "arrow": "pyarrow", "torch": "torch"}


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Return the mark that leaves a derivation out where its library is not installed."""
    library = LIBRARY_OF.get(name.partition(" ")[0])
    missing = library is not None and importlib.util.find_spec(library) is None
    return [pytest.mark.skipif(missing, reason=f"{library} is not installed")]


every_derivation = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name)) for name in DERIVATIONS]
)


def numbers_in(derived: Any) -> list[int]:
    """Return the numbers that something made from an array shows."""
    if isinstance(derived, Cycle):
        derived = derived.array
    if isinstance(derived, list):
        derived = np.concatenate(derived)
    if callable(derived):
        derived = derived()
    kind = type(derived).__module__.partition(".")[0]
    if kind == "pandas":
        derived = derived.to_numpy().ravel()
    elif kind == "pyarrow":
        is_buffer = type(derived).__name__ == "Buffer"
        derived = np.frombuffer(derived, np.int64) if is_buffer else derived.to_numpy()
    elif isinstance(derived, np.nditer):
        derived.reset()
    elif isinstance(derived, np.ndarray) and derived.ndim == 2:
        derived = derived.T.ravel()
    return [int(number) for number in derived]
