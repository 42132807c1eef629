"""What is mutated: a real header with its frames of every handler, family and layout."""

from __future__ import annotations

import array
import importlib.util
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shmstore.serialization import Serialize, Serialized, register_generic, serialize
from shmstore.serialization.compression import compress_frames, compressions
from shmstore.serialization.frames import ensure_memoryview

Encoded = tuple[dict[str, Any], list[bytes]]

TEXTS = [f"text {number % 7000}" for number in range(20_000)]


class Track:
    """Nothing but attributes."""

    def __init__(self, points: Any) -> None:
        """Keep plain and other attributes."""
        self.points = points
        self.name = "track"
        self.tags = {"a": [1, (2.5, None)], "b": b"bytes"}
        self.more = {"x": points[:3], "y": {1, 2}}


class Trail(Track):
    """Its class lies in the header as a pickle."""


def corpus(folder: Path) -> dict[str, Encoded]:
    """Return all seeds by name; of libraries that are missing there are none.

    Parameters
    ----------
    folder
        Where the files of file handles are made.
    """
    register_generic(Track)
    seeds = dict(_encoded(_builtins()))
    seeds |= _encoded(_numpy())
    for library, objects in _LIBRARIES.items():
        if importlib.util.find_spec(library) is not None:
            seeds |= _encoded(objects())
    if importlib.util.find_spec("h5py") is not None:
        seeds |= _encoded(_h5py(folder))
    seeds |= _collections()
    seeds |= _compressed(seeds)
    return seeds


def _encode(x: Any, *args: Any, **options: Any) -> Encoded:
    header, frames = serialize(x, *args, **{"on_error": "raise", **options})
    return header, [bytes(ensure_memoryview(frame)) for frame in frames]


def _encoded(objects: Iterator[tuple[str, Any]]) -> dict[str, Encoded]:
    return {name: _encode(x) for name, x in objects}


def _builtins() -> Iterator[tuple[str, Any]]:
    yield "bytes", b"some bytes" * 20
    yield "bytearray", bytearray(b"more bytes" * 20)
    yield "array", array.array("d", range(30))
    yield "view", memoryview(np.arange(24.0).reshape(4, 6))
    yield "view of structs", memoryview(np.zeros(5, "i4,f8"))
    yield "view with gaps", memoryview(np.arange(30, dtype="i2"))[::2]
    yield "generic", Track(np.arange(20))
    yield "generic subclass", Trail(np.arange(20.0))


def _numpy() -> Iterator[tuple[str, Any]]:
    yield "f8", np.arange(40.0)
    yield "fortran", np.asfortranarray(np.arange(24, dtype=">i4").reshape(2, 3, 4))
    yield "broadcast", np.broadcast_to(np.arange(4), (5, 4))
    yield "backwards", np.arange(40)[::-3]
    yield "scalar", np.array(3 + 4j)
    yield "empty", np.empty((0, 3), "f4")
    yield "dates", np.arange(10).astype("M8[us]")
    fields = np.dtype(
        [("a", "i4"), (("title", "b"), "f8", (2, 3)), ("c", [("d", "S3")])], align=True
    )
    yield "structured", np.zeros(6, fields)
    few = np.array(TEXTS[:300] * 60, object)
    yield "text repeated", few
    many = np.array([f"{number}" for number in range(17_000)], object)
    many[5], many[8] = None, np.nan
    yield "text with gaps", many
    yield "text table", np.array([TEXTS[:9000], [f"{n}" for n in range(9000)]], object)
    masked = np.ma.MaskedArray(np.arange(6.0).reshape(2, 3), [[0, 1, 0], [1, 1, 0]], fill_value=7)
    yield "masked", masked
    yield "masked structured", np.ma.array(np.zeros(3, "i4,f8"), mask=[(0, 1), (1, 0), (0, 0)])
    yield "masked constant", np.ma.masked


def _pandas() -> Iterator[tuple[str, Any]]:
    import pandas as pd

    yield "frame", pd.DataFrame({"a": range(20), "b": np.arange(20.0), "c": ["x", "y"] * 10})
    yield "series", pd.Series(range(5), name="s").astype("category")


def _pyarrow() -> Iterator[tuple[str, Any]]:
    import pyarrow as pa

    ints = pa.array([1, None, 3])
    columns = {
        "text": pa.array(["a", None, "ccc"]),
        "large": pa.array(["a", "bb", "c"], pa.large_string()),
        "lists": pa.array([[1, 2], None, [3]]),
        "structs": pa.array([{"a": 1}, {"a": 2}, None]),
        "codes": pa.array(["x", "y", "x"]).dictionary_encode(),
        "seen": pa.array(["long enough to lie outside", "b", None], pa.string_view()),
        "maps": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "fixed": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([7, 8])),
        "nothing": pa.nulls(3),
        "decimals": pa.array([1, 2, None], pa.decimal128(10, 2)),
        "flags": pa.array([True, None, False]),
    }
    yield "table", pa.table(columns)
    yield "batch", pa.record_batch([ints], ["a"])
    yield "chunked", pa.chunked_array([[1, 2], [3]])
    for name in ("text", "lists", "codes", "seen", "runs"):
        yield f"arrow {name}", columns[name]
    types, offsets = pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32())
    yield "union", pa.UnionArray.from_dense(types, offsets, [ints[:2], pa.array(["x"])])
    yield "buffer", pa.py_buffer(b"in a buffer")


def _polars() -> Iterator[tuple[str, Any]]:
    import polars as pl

    columns = {"a": [1, 2, None], "t": ["x", None, "a long text, not in the view"]}
    yield "polars", pl.DataFrame(columns | {"l": [[1], [], None]}).sort("a")
    yield "polars codes", pl.Series("c", ["x", "y", "x"], pl.Categorical)
    yield "polars wide", pl.DataFrame({"i": pl.Series([1, 2], dtype=pl.Int128)})


def _scipy() -> Iterator[tuple[str, Any]]:
    import scipy.sparse

    dense = np.kron(np.eye(3), np.ones((2, 2)))
    for name in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil"):
        yield f"{name} matrix", getattr(scipy.sparse, f"{name}_matrix")(dense)
        yield f"{name} array", getattr(scipy.sparse, f"{name}_array")(dense)


def _sparse() -> Iterator[tuple[str, Any]]:
    import sparse

    dense = np.kron(np.eye(3), np.ones((2, 2)))
    for name in ("COO", "GCXS", "DOK"):
        yield name, getattr(sparse, name).from_numpy(dense)


def _torch() -> Iterator[tuple[str, Any]]:
    import torch

    yield "tensor", torch.arange(24.0).reshape(4, 6)
    yield "tensor with gaps", torch.arange(24).reshape(4, 6)[:, ::2]
    yield "conjugate", torch.complex(torch.ones(3), torch.ones(3)).conj()
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    yield "parameter", weight
    yield "module", torch.nn.Linear(3, 2)


def _h5py(folder: Path) -> Iterator[tuple[str, Any]]:
    import h5py

    path = folder / f"{uuid.uuid4().hex}.h5"
    with h5py.File(path, "w") as file:
        file["group/data"] = np.arange(5)
    opened = h5py.File(path, "r")
    yield "h5py file", opened
    yield "h5py data", opened["group/data"]
    opened.close()


_LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "pandas": _pandas,
    "pyarrow": _pyarrow,
    "polars": _polars,
    "scipy": _scipy,
    "sparse": _sparse,
    "torch": _torch,
}


def values() -> Any:
    """Return a value with every extension of our msgpack."""
    numbers = (1 << 70, -(1 << 70), 2 + 3j, 1.5, -1)
    sets = [{1, "a"}, frozenset({(1, 2)}), bytearray(b"abc"), b"abc", None, True]
    marked = Serialized({"serializer": "custom", "type": "bytes", "sub-header": {}}, [b"x"])
    return {"numbers": numbers, "sets": sets, ("a", 1): "text", "marked": marked, 5: Serialize([1])}


def _collections() -> dict[str, Encoded]:
    whole = [np.arange(9.0), np.array(TEXTS, object), {"a": np.arange(9)[::2], "b": bytearray(99)}]
    apart = {"a": [np.arange(4), b"abc"], 2: (1, {"x": "y"}), b"k": {1.5, 2.5}, None: np.ones(3)}
    return {
        "pickle": _encode(whole),
        "apart": _encode(apart, iterate_collection=True),
        "safe apart": _encode([np.arange(5), {"k": b"abc"}], ("custom", "msgpack")),
        "msgpack": _encode(values(), ("msgpack",)),
        "error": _encode(lambda: 0, ("msgpack",), on_error="message"),
    }


def _compressed(seeds: dict[str, Encoded]) -> dict[str, Encoded]:
    """Return some seeds with their frames compressed, by each codec that is installed."""
    long = {"zeros": _encode(np.zeros(5000)), "list": _encode([np.zeros(5000), bytes(20_000)])}
    found = {}
    for codec in filter(None, compressions):
        for name, seed in (long | {"text": seeds["text repeated"]}).items():
            header, frames = compress_frames(*seed, codec)
            found[f"{name} by {codec}"] = header, [bytes(ensure_memoryview(f)) for f in frames]
    return found
