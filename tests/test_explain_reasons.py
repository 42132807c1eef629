"""Each reason why a part of an object travels as it does has its words."""

from __future__ import annotations

import array
import decimal
import mmap
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from explanations import (
    MIXED,
    Buffered,
    Copying,
    Exporting,
    Made,
    Pair,
    Refusing,
    View,
    pandas_frame,
    part_at,
    parts_of,
)

from shmstore import Store
from shmstore.errors import CodecNotFoundError
from shmstore.serialization.explaining import explain

REASONS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "contiguous": (lambda: np.zeros(9), "obj", "contiguous: its memory is the frame"),
    "contiguous inside": (lambda: [np.zeros(9)], "obj[0]", "contiguous: its memory is the frame"),
    "Fortran": (lambda: np.zeros((3, 4), order="F"), "obj", "contiguous in Fortran order: its m"),
    "gaps": (lambda: np.zeros((9, 9))[:, ::2], "obj", "not contiguous: re-ordered while it is w"),
    "gaps inside": (lambda: [np.zeros(9)[::2]], "obj[0]", "not contiguous: re-ordered while it"),
    "broadcast": (
        lambda: np.broadcast_to(np.arange(4), (1000, 4)),
        "obj",
        "broadcast: only the distinct elements are stored, 32 of 32,000 B; read-only",
    ),
    "broadcast with gaps": (
        lambda: [np.broadcast_to(np.arange(9)[::2], (1000, 5))],
        "obj[0]",
        "broadcast: only the distinct elements are stored, 40 of 40,000 B, re-ordered while",
    ),
    "objects": (lambda: np.array(MIXED, object), "obj", "object dtype: its elements are Python"),
    "objects inside": (lambda: {"o": np.array(MIXED, object)}, "obj['o']", "object dtype: its el"),
    "fields of objects": (lambda: [np.zeros(9, "f8,O")], "obj[0]", "object dtype: its elements"),
    "text": (
        lambda: np.array(["a", "b"] * 10_000, object),
        "obj",
        "object dtype, but all text: encoded as UTF-8",
    ),
    "few texts": (
        lambda: [np.array(["a", "b"], object)],
        "obj[0]",
        "arrays of str are encoded from 16,384 elements on",
    ),
    "subclass": (lambda: [np.zeros(9).view(Copying)], "obj[0]", "its own pickle copies the data"),
    "subclass as array": (lambda: [np.zeros(9).view(View)], "obj[0]", "its memory as an array"),
    "masked": (lambda: np.ma.masked_array([1, 2], [0, 1]), "obj.mask", "contiguous: its memory"),
    "empty": (lambda: [np.zeros(0), 1, np.zeros(0, "V0")], "obj[2]", ""),
    "bytes": (lambda: b"x" * 5000, "obj", "get() returns a copy, as bytes own their memory, get_v"),
    "bytearray": (lambda: bytearray(5000), "obj", "get() returns a copy, as bytearrays own their"),
    "array.array": (lambda: array.array("d", [1]), "obj", "get() returns a copy, as arrays of the"),
    "bytes inside": (lambda: [b"x" * 5000], "obj[0]", "inside of other objects: part of the stre"),
    "large bytes": (lambda: [b"x" * 70_000], "obj[0]", "part of the stream, without a second copy"),
    "bytearray inside": (lambda: {"b": bytearray(5000)}, "obj['b']", "as bytearrays own their mem"),
    "text inside": (
        lambda: {"t": "t" * 5000, 1: np.pi, 2: {3}},
        "obj['t']",
        "text inside of other objects: encoded",
    ),
    "memoryview": (lambda: memoryview(b"abc"), "obj", "contiguous: its memory is the frame, writt"),
    "memoryview gaps": (lambda: memoryview(bytearray(9))[::2], "obj", "not contiguous: re-ordered"),
    "small": (lambda: {"a": 1, "b": [2, 3]}, "obj", "small builtin values: one short pickle"),
    "rest": (lambda: [np.zeros(3), 1], "obj", "the rest of the stream: structure and small"),
    "declined": (Refusing, "obj", "its handler declined (not on Sundays)"),
    "declined inside": (lambda: [Refusing()], "obj[0]", "its handler declined (not on Sundays)"),
    "made": (Made, "obj", "its handler makes the bytes where they will lie, once"),
    "made inside": (lambda: [Made()], "obj[0]", "its handler makes the bytes where they will lie"),
    "local": (lambda: [lambda x: x], "obj[0]", "it is a lambda, or was made inside of a function"),
    "no module": (lambda: _in_module("nowhere"), "obj", "it cannot be imported by its name"),
    "main": (lambda: _in_module("__main__"), "obj", "by value, with all its code: it lives in __m"),
    "class of main": (
        lambda: [_in_module("__main__")()],
        "obj[0].__class__",
        "pickled by value, with all its code: it lives in __main__",
    ),
    "exported": (lambda: Exporting(np.zeros(9)), "obj", "that it exports comes back as a NumPy"),
    "own pickle": (lambda: [Buffered(b"x" * 99)], "obj[0]", "gives its memory as buffers beside"),
}


def _in_module(module: str) -> type:
    return types.new_class("Here", exec_body=lambda names: names.update(__module__=module))


@pytest.mark.parametrize("name", REASONS)
def test_reason_is_told(name: str) -> None:
    """Each way to travel has its words."""
    make, path, reason = REASONS[name]
    assert reason in part_at(make(), path).reason


def test_memory_map_is_told(tmp_path: Any) -> None:
    """A memory map arrives as an array, whatever becomes of its file."""
    x = np.memmap(tmp_path / "map", float, "w+", shape=(9,))
    part = part_at([x], "obj[0]")
    assert part.reason == "memory map: its content is stored, and comes back as an array"
    assert (part.frames, part.out_of_band) == (1, 72)


def test_exported_buffer_is_told() -> None:
    """What refuses pickle but is a buffer comes back as a memoryview."""
    with mmap.mmap(-1, 5000) as x:
        part = part_at([x], "obj[0]")
    assert part.reason.endswith("comes back as a memoryview")
    assert part.out_of_band == 5000


def test_arrays_in_the_stream_have_its_bytes() -> None:
    """Objects, and a subclass that copies itself, are in-band; other arrays are not."""
    x = {"o": np.array([b"x" * 100] * 5 + [b"y" * 900], object), "a": np.zeros(500)}
    x["c"] = np.ones(500).view(Copying)
    parts = parts_of(explain(x))
    assert 1000 < parts["obj['o']"].in_band < 1300
    assert 4000 < parts["obj['c']"].in_band < 4200
    assert parts["obj['a']"].in_band < 300
    assert [parts[f"obj[{key!r}]"].frames for key in "oca"] == [0, 0, 1]
    assert parts["obj['a']"].out_of_band == 4000


def test_large_streams_are_told_apart_as_well() -> None:
    """Half a million elements in-band are told apart from what lies around them."""
    x = {"o": np.array([(n, n) for n in range(100_000)] + [None], object)[:-1]}
    x.update(n=[float(n) for n in range(50_000)], s="s" * 200_000, b=b"b" * 100_000)
    told = explain(x)
    parts = parts_of(told)
    alone = explain(x["o"]).in_band
    assert alone - 128_000 < parts["obj['o']"].in_band <= alone
    assert parts["obj['b']"].in_band == 100_000
    assert parts["obj[...]"].in_band == 200_000
    assert parts["obj[...]"].type == "str"
    assert parts["obj"].in_band > 300_000


def test_small_objects_in_large_streams_are_not_blamed() -> None:
    """Whatever is being written when the pickler empties its buffer has not filled it."""
    told = explain([decimal.Decimal(n) for n in range(20_000)])
    assert [part.path for part in told.parts] == ["obj"]
    small = [np.array([n, None], object) for n in range(5000)]
    assert {part.in_band for part in explain(small).parts[1:]} == {0}


def test_pandas_parts_have_the_names_of_columns() -> None:
    """Columns that share a block are told together, others alone; indices are parts too."""
    pd = pytest.importorskip("pandas")
    frame = pandas_frame().set_index(pd.Index(np.arange(50) * 1.5, name="x"))
    parts = parts_of(explain(frame))
    assert parts["obj[['a', 'b']]"].reason.startswith("contiguous")
    assert parts["obj[['a', 'b']]"].out_of_band == 800
    assert parts["obj['i']"].out_of_band == 400
    assert parts["obj['o']"].reason.startswith("object dtype")
    assert parts["obj['c']"].reason == (
        "pandas pickles its arrays, their memory lies beside the stream"
    )
    assert parts["obj.index.values"].out_of_band == 400
    wide = pd.DataFrame(np.zeros((3, 9)), columns=[f"c{n}" for n in range(9)])
    assert "obj['wide'][['c0', 'c1', 'c2', and 6 more]]" in parts_of(explain({"wide": wide}))
    assert "obj[0].values" in parts_of(explain([pd.Series(np.zeros(9))]))


def test_arrow_is_told() -> None:
    """Tables and arrays are written as streams or give their buffers; neither is in-band."""
    pa = pytest.importorskip("pyarrow")
    stream = "Arrow stream, written in place once and read without a copy"
    assert part_at(pa.table({"a": [1, 2]}), "obj").reason == stream
    assert part_at([pa.table({"a": [1, 2]})], "obj[0]").reason == stream
    whole = part_at([pa.array(range(1000))], "obj[0]")
    assert whole.reason.startswith("Arrow ")
    assert whole.out_of_band >= 8000
    assert part_at(pa.py_buffer(b"abc"), "obj").reason.endswith("read-only")


def test_polars_is_told() -> None:
    """A frame of polars is an Arrow stream."""
    pl = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    assert part_at(pl.DataFrame({"a": [1, 2]}), "obj").reason.startswith("Arrow stream")


def test_tensors_are_told() -> None:
    """A tensor by itself is what it shows, inside of others its whole storage."""
    torch = pytest.importorskip("torch")
    x = torch.zeros(10, 10)
    assert "its memory is the frame" in part_at(x, "obj").reason
    assert (
        part_at(x[:, ::2], "obj").reason == "not contiguous: re-ordered while it is written, once"
    )
    parts = parts_of(explain({"x": x, "view": x[:2]}))
    assert parts["obj['x']"].reason.startswith("its whole storage")
    assert (parts["obj['x']"].out_of_band, parts["obj['x']"].frames) == (400, 1)
    assert [path for path, part in parts.items() if part.out_of_band] == ["obj['x']"]


def test_parts_of_handlers_have_names() -> None:
    """What a handler asks for in turn is told by the names of its parts, at any depth."""
    pair = Pair(np.zeros(9), Pair(b"x" * 5000, {"text": "t" * 2000, 1: {2}}))
    for x, path in ((pair, "obj"), ([1, pair], "obj[1]")):
        told = explain(x)
        parts = parts_of(told)
        assert parts[f"{path}.left"].out_of_band == 72
        assert parts[f"{path}.right.left"].reason.startswith("its memory is the frame")
        assert parts[f"{path}.right.right['text']"].in_band >= 2000
    sparse = pytest.importorskip("scipy.sparse")
    told = explain(sparse.eye_array(9, format="csr"))
    assert {part.path for part in told.parts} >= {"obj.data", "obj.indices", "obj.indptr"}


def test_compression_is_told(store: Store) -> None:
    """Of frames that are worth it, size and price are told; the others stay as they are."""
    noise = np.random.default_rng(1).bytes(50_000)
    x = {"zeros": np.zeros(10_000), "noise": np.frombuffer(noise, np.uint8), "n": "n" * 50_000}
    told = explain(x, compression="zlib")
    parts = parts_of(told)
    assert "compressed by zlib from 78.1 KiB to" in parts["obj['zeros']"].reason
    assert "every get() decompresses it" in parts["obj['zeros']"].reason
    assert "compressed" not in parts["obj['noise']"].reason
    assert "the stream compressed by zlib" in parts["obj"].reason
    assert told.stored_nbytes < told.nbytes == explain(x).nbytes
    with pytest.raises(CodecNotFoundError):
        explain(x, compression="none such")
