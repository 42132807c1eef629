"""Objects of every kind that is handled, by name."""

from __future__ import annotations

import array
import collections
import datetime as dt
import gc
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest


class Specimen(NamedTuple):
    """How to make an object, and the library that this needs."""

    make: Callable[..., Any]
    package: str | None = None


class Bag:
    """An ordinary object."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def readonly(x: Any) -> Any:
    """Return an array after forbidding to write it."""
    x.flags.writeable = False
    return x


def objects(*elements: Any) -> Any:
    """Return an object array."""
    x = np.empty(len(elements), object)
    x[:] = elements
    return x


def frame_of_pandas(pd: Any) -> Any:
    """Return a table with several blocks, text, categories and times."""
    return pd.DataFrame(
        {
            "i": np.arange(5),
            "f": np.linspace(0, 1, 5),
            "s": ["a", None, "c", "d", "ä"],
            "c": pd.Categorical(list("abcab")),
            "t": pd.date_range("2024-02-28", periods=5, tz="UTC"),
        },
        index=[5, 4, 3, 2, 1],
    )


def table_of_arrow(pa: Any) -> Any:
    """Return a table with nulls and nested types."""
    return pa.table(
        {"i": [1, None, 3], "s": ["a", "bb", None], "l": [[1], [], [2, 3]], "d": [1.5, 2.5, None]}
    )


def module_of_torch(torch: Any) -> Any:
    """Return a module with parameters."""
    torch.manual_seed(1)
    return torch.nn.Linear(3, 2)


def tensor_with_gradient(torch: Any) -> Any:
    """Return a leaf that has one."""
    x = torch.ones(3, requires_grad=True)
    (2 * x).sum().backward()
    return x


SPECIMENS: dict[str, Specimen] = {
    "bytes": Specimen(lambda: bytes(range(256))),
    "no bytes": Specimen(lambda: b""),
    "bytearray": Specimen(lambda: bytearray(range(256))),
    "array.array": Specimen(lambda: array.array("d", range(10))),
    "memoryview": Specimen(lambda: memoryview(bytes(24)).cast("i", (2, 3))),
    "memoryview, Fortran": Specimen(lambda: np.asfortranarray(np.arange(6).reshape(2, 3)).data),
    "memoryview, big-endian": Specimen(lambda: np.arange(3, dtype=">f8").data),
    "text": Specimen(lambda: "text \u00e4"),
    "numbers": Specimen(lambda: [1, 2.5, None, True, 1 << 90, 1j, dt.date(2024, 2, 29)]),
    "objects": Specimen(lambda: objects({"a": 1}, np.arange(3), None)),
    "records of objects": Specimen(lambda: np.array([(1, [2])], [("a", "i4"), ("b", "O")])),
    "text of NumPy": Specimen(lambda: np.array(["a", "longer " * 9], "T")),
    "records": Specimen(
        lambda: np.zeros(3, np.dtype([("a", "u1"), ("b", ">f8", (2,))], align=True))
    ),
    "broadcast": Specimen(lambda: np.broadcast_to(np.arange(3.0), (4, 3))),
    "Fortran": Specimen(lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "strided": Specimen(lambda: np.arange(60).reshape(3, 4, 5)[:, ::-1, ::2]),
    "times": Specimen(lambda: np.array(["2024-02-29", "NaT"], "M8[25s]")),
    "complex": Specimen(lambda: np.arange(3, dtype=">c8")),
    "array": Specimen(lambda: np.arange(10_000)),
    "read-only": Specimen(lambda: readonly(np.arange(10))),
    "empty": Specimen(lambda: np.zeros((0, 5))),
    "recarray": Specimen(lambda: np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])),
    "masked": Specimen(
        lambda: np.ma.MaskedArray(np.arange(3), [True, False, True], fill_value=9, hard_mask=True),
    ),
    "masked constant": Specimen(lambda: np.ma.masked),
    "scalars": Specimen(lambda: [np.float32(1.5), np.datetime64("2024"), np.dtype("f4")]),
    "nested": Specimen(
        lambda: Bag(a=[np.arange(5), {"k": (b"x", bytearray(b"y"))}], b=collections.deque([1])),
    ),
    "array of text": Specimen(lambda: np.array(["some", None, "text"] * 10_000, object)),
    "scipy matrix": Specimen(lambda sparse: sparse.csr_matrix(np.eye(4)), "scipy.sparse"),
    "scipy dok": Specimen(lambda sparse: sparse.dok_matrix(np.eye(4)), "scipy.sparse"),
    "scipy array": Specimen(lambda sparse: sparse.coo_array(np.eye(4)), "scipy.sparse"),
    "sparse": Specimen(
        lambda sparse: sparse.COO.from_numpy(np.eye(4) + 7, fill_value=7.0),
        "sparse",
    ),
    "arrow table": Specimen(table_of_arrow, "pyarrow"),
    "arrow batch": Specimen(lambda pa: pa.record_batch({"a": [1, None, 3]}), "pyarrow"),
    "pandas table": Specimen(frame_of_pandas, "pandas"),
    "pandas series": Specimen(lambda pd: pd.Series(np.arange(5), name="s"), "pandas"),
    "polars table": Specimen(
        lambda pl: pl.DataFrame({"a": [1, None, 3], "b": ["x", "y", None]}), "polars"
    ),
    "tensor": Specimen(lambda torch: torch.arange(6.0).reshape(2, 3), "torch"),
    "tensor, bfloat16": Specimen(lambda torch: torch.ones(3, dtype=torch.bfloat16), "torch"),
    "tensor with gradient": Specimen(tensor_with_gradient, "torch"),
    "module": Specimen(module_of_torch, "torch"),
}


def library(name: str) -> Any:
    """Import a library, or skip the test where it is missing."""
    known = name in sys.modules
    module = pytest.importorskip(name)
    if not known:
        gc.freeze()  # the collections between tests need not look at what the import has made
    return module


def make(name: str) -> Any:
    """Return the object of a name, or skip the test where its library is missing."""
    specimen = SPECIMENS[name]
    return specimen.make() if specimen.package is None else specimen.make(library(specimen.package))
