"""Objects of which types are put and got, beside plain arrays and dicts?

One for each type that has a handler, and for the ways in which objects lie inside of others. Each
can be made in any size; what is not installed is left out, and said to be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samples import KIB, MIB

SMALL, QUICK, LARGE = 64 * KIB, 4 * MIB, 64 * MIB
SIZES = {SMALL: "64 KiB", QUICK: "4 MiB", LARGE: "64 MiB"}
COLUMNS = 8
TEXT_NBYTES = 64
PARTS = 1000


class Tagged(np.ndarray):
    """An array of a class of its own."""


class Track:
    """An object that is nothing but its attributes, registered as such."""

    def __init__(self, points: object) -> None:
        self.name, self.score, self.points = "track", 0.5, points


class Untold(Track):
    """The same, by its own pickle."""

    def __reduce__(self) -> tuple[object, ...]:
        return Untold, (self.points,)


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of objects.

    Attributes
    ----------
    label : str
        Its name in the tables.
    package : str
        What it needs.
    make : callable
        Makes an object of about so many bytes, with the package.
    sizes : tuple of int
        In which it is measured, if not in all.
    """

    label: str
    package: str
    make: Callable[[Any, int], object]
    sizes: tuple[int, ...] = ()

    @property
    def toplevel(self) -> str:
        """What has to be installed."""
        return self.package.partition(".")[0]

    def of(self, nbytes: int) -> object:
        """Make one."""
        return self.make(import_module(self.package), nbytes)

    def named(self, nbytes: int) -> str:
        """Return the label of an object of that size."""
        return f"{self.label}, {SIZES[nbytes]}"


def find() -> tuple[list[Kind], list[str]]:
    """Return the kinds that can be made here, and what is missing for the others."""
    found = [kind for kind in KINDS if find_spec(kind.toplevel) is not None]
    missing = {kind.toplevel for kind in KINDS if kind not in found}
    return found, [f"{package}: not installed" for package in sorted(missing)]


def _numbers(nbytes: int) -> np.ndarray:
    """Return numbers none of which is zero."""
    return np.arange(1, nbytes // 8 + 1, dtype=float)


def _table(nbytes: int) -> np.ndarray:
    return _numbers(nbytes).reshape(-1, COLUMNS)


def _texts(nbytes: int) -> list[str]:
    """Return distinct strings of one length, so many bytes of text in all."""
    return [f"{number:0{TEXT_NBYTES}d}" for number in range(nbytes // TEXT_NBYTES)]


def _objects(texts: list[str]) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _columns(values: Any) -> Iterator[tuple[str, Any]]:
    """Cut one long column into several."""
    length = len(values) // COLUMNS
    for number in range(COLUMNS):
        yield f"column {number}", values[number * length : (number + 1) * length]


def _structured(_: object, nbytes: int) -> object:
    records = np.empty(nbytes // 16, [("a", "f8"), ("b", "i4"), ("c", "i4")])
    records["a"] = records["b"] = records["c"] = np.arange(len(records))
    return records


def _broadcast(_: object, nbytes: int) -> object:
    return np.broadcast_to(_numbers(nbytes // 64), (64, nbytes // 64 // 8))


def _split(_: object, nbytes: int) -> object:
    return np.split(_numbers(nbytes - nbytes % (8 * PARTS)), PARTS)


def _masked(_: object, nbytes: int) -> object:
    data = _numbers(nbytes * 8 // 9)
    return np.ma.masked_array(data, data % 7 == 0)


def _numeric_frame(pd: Any, nbytes: int) -> object:
    return pd.DataFrame(_table(nbytes), columns=[name for name, _ in _columns(())])


def _object_frame(pd: Any, nbytes: int) -> object:
    return pd.DataFrame(dict(_columns(_objects(_texts(nbytes)))), dtype=object)


def _arrow_frame(pd: Any, nbytes: int) -> object:
    columns = {
        name: pd.array(texts, dtype=pd.StringDtype("pyarrow"))
        for name, texts in _columns(_texts(nbytes))
    }
    return pd.DataFrame(columns)


def _categorical(pd: Any, nbytes: int) -> object:
    codes = np.arange(nbytes, dtype="i8") % 100
    codes = codes.astype("i1")
    return pd.Series(pd.Categorical.from_codes(codes, [f"kind {n}" for n in range(100)]))


def _moments(pd: Any, nbytes: int) -> object:
    moments = pd.date_range("2020-01-01", periods=nbytes // 8, freq="s", tz="Europe/Berlin")
    return pd.DataFrame({"when": moments})


def _arrow_numbers(pa: Any, nbytes: int) -> Any:
    return pa.table({name: pa.array(part) for name, part in _columns(_numbers(nbytes))})


def _arrow_texts(pa: Any, nbytes: int) -> object:
    return pa.table({"text": pa.array(_texts(nbytes))})


def _arrow_slice(pa: Any, nbytes: int) -> object:
    table = _arrow_numbers(pa, 2 * nbytes)
    return table.slice(table.num_rows // 4, table.num_rows // 2)


def _polars_numbers(pl: Any, nbytes: int) -> object:
    return pl.DataFrame(dict(_columns(_numbers(nbytes))))


def _polars_texts(pl: Any, nbytes: int) -> object:
    return pl.DataFrame({"text": _texts(nbytes)})


def _coordinates(nbytes: int) -> tuple[np.ndarray, ...]:
    """Return values, rows and columns of a sparse matrix, three arrays of 8 bytes per value."""
    count = nbytes // 24
    rows = np.arange(count) // 10
    return _numbers(8 * count), rows, (np.arange(count) * 7) % 1000


def _csr(name: str) -> Callable[[Any, int], object]:
    def make(sparse: Any, nbytes: int) -> object:
        values, rows, columns = _coordinates(nbytes * 2)  # its indices have 4 bytes, its rows few
        return getattr(sparse, name)((values, (rows, columns)), shape=(rows[-1] + 1, 1000))

    return make


def _coo(sparse: Any, nbytes: int) -> object:
    values, rows, columns = _coordinates(nbytes)
    return sparse.COO(np.stack([rows, columns]), values, shape=(int(rows[-1]) + 1, 1000))


def _module(torch: Any, nbytes: int) -> object:
    return torch.nn.Linear(nbytes // 4 // 128, 128)


def _dataset(h5py: Any, nbytes: int) -> object:
    path = Path(os.environ["SHMSTORE_ROOT"]).parent / "sample.h5"
    with h5py.File(path, "w") as file:
        file["numbers"] = _numbers(nbytes)
    return h5py.File(path, "r")["numbers"]


KINDS = (
    Kind("numpy, C order", "numpy", lambda _, n: _table(n)),
    Kind("numpy, Fortran order", "numpy", lambda _, n: _table(n).T),
    Kind("numpy, strided", "numpy", lambda _, n: _numbers(2 * n)[::2]),
    Kind(
        "numpy, broadcast",
        "numpy",
        _broadcast,
    ),
    Kind("numpy, structured", "numpy", _structured),
    Kind("numpy, datetime64", "numpy", lambda _, n: _numbers(n).astype("M8[s]")),
    Kind("numpy, object strings", "numpy", lambda _, n: _objects(_texts(n))),
    Kind("numpy, masked", "numpy", _masked),
    Kind("numpy, subclass", "numpy", lambda _, n: _table(n).view(Tagged)),
    Kind("bytes", "numpy", lambda _, n: _numbers(n).tobytes()),
    Kind("bytearray", "numpy", lambda _, n: bytearray(_numbers(n))),
    Kind("memoryview", "numpy", lambda _, n: memoryview(_numbers(n))),
    Kind("array.array", "array", lambda array, n: array.array("d", _numbers(n).tobytes())),
    Kind("pandas, numbers", "pandas", _numeric_frame),
    Kind("pandas, object strings", "pandas", _object_frame, (SMALL, LARGE)),
    Kind("pandas, arrow strings", "pandas", _arrow_frame, (SMALL, LARGE)),
    Kind("pandas, categorical", "pandas", _categorical),
    Kind("pandas, datetime with zone", "pandas", _moments),
    Kind("pyarrow, numbers", "pyarrow", _arrow_numbers),
    Kind("pyarrow, strings", "pyarrow", _arrow_texts),
    Kind("pyarrow, sliced", "pyarrow", _arrow_slice),
    Kind("polars, numbers", "polars", _polars_numbers),
    Kind("polars, strings", "polars", _polars_texts),
    Kind("scipy, csr_matrix", "scipy.sparse", _csr("csr_matrix")),
    Kind("scipy, csr_array", "scipy.sparse", _csr("csr_array")),
    Kind("sparse.COO", "sparse", _coo),
    Kind("torch, float32", "torch", lambda torch, n: torch.ones(n // 4)),
    Kind("torch, bfloat16", "torch", lambda torch, n: torch.ones(n // 2, dtype=torch.bfloat16)),
    Kind("torch, module", "torch", _module),
    Kind("dict of 8 arrays", "numpy", lambda _, n: dict(_columns(_numbers(n)))),
    Kind("list of 1000 arrays", "numpy", _split),
    Kind("generic object", "numpy", lambda _, n: Track(_numbers(n))),
    Kind("object, own pickle", "numpy", lambda _, n: [Untold(_numbers(n))]),
    Kind("h5py.Dataset", "h5py", _dataset, (SMALL,)),
)
