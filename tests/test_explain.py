"""What a put copies and why: each reason, and sums that are those of the store."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import gc
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from explanations import (
    MIXED,
    Buffered,
    Copying,
    Pair,
    Plain,
    Refusing,
    View,
    pandas_frame,
    part_at,
    parts_of,
)
from stores import MakeStore

from shmstore import Store
from shmstore.serialization import (
    Serialize,
    Serialized,
    families,
    register_serialization_family,
    serialize,
)
from shmstore.serialization.explaining import Explanation, explain
from shmstore.serialization.frames import nbytes


def assert_adds_up(told: Explanation, store: Store, x: Any, **options: Any) -> None:
    """Fail unless the parts add up to the totals, and those are what the store stores."""
    assert told.error is None
    assert sum(part.frames for part in told.parts) == told.frames
    assert sum(part.out_of_band for part in told.parts) == told.out_of_band
    assert sum(part.in_band for part in told.parts) == told.in_band
    assert all(min(part.frames, part.out_of_band, part.in_band) >= 0 for part in told.parts)
    ref = store.put(x, **options)
    if told.family == "several":
        assert len(store.get(ref, decode=False).frames) == told.frames
        assert ref.nbytes == told.stored_nbytes
    else:
        info = store.info(ref)
        assert (told.stored_nbytes, told.frames) == (info.nbytes, info.frames)
        assert (told.type, told.family) == (info.type, info.serializer)


# --- sums ----------------------------------------------------------------------------------------


def _torch() -> Any:
    torch = pytest.importorskip("torch")
    x = torch.arange(100.0)
    return {"whole": x, "view": x[::2], "module": torch.nn.Linear(3, 4)}


def _arrow() -> Any:
    pa = pytest.importorskip("pyarrow")
    return {"table": pa.table({"a": [1, 2, 3]}), "array": pa.array(range(100))}


def _scipy() -> Any:
    sparse = pytest.importorskip("scipy.sparse")
    return sparse.random(50, 50, 0.2, format="csr", random_state=1)


def _many() -> Any:
    return [np.full(10, n) for n in range(200)] + [b"x" * 100_000, "\u00e9" * 100_000]


def _nested_in_itself() -> Any:
    x: list[Any] = [np.zeros(3)]
    x += [x, x[0], {"x": x}]
    return x


OBJECTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "number": lambda: 5,
    "text": lambda: "text" * 10_000,
    "short bytes": lambda: b"abc",
    "long bytes": lambda: b"abc" * 10_000,
    "bytearray": lambda: bytearray(10_000),
    "numbers": lambda: list(range(30_000)),
    "texts": lambda: [f"number {n}" for n in range(40_000)],
    "times": lambda: [dt.datetime(2020, 1, 1 + n, tzinfo=dt.UTC) for n in range(20)],
    "array": lambda: np.zeros((10, 20)),
    "slice": lambda: np.zeros((10, 20))[::2, ::3],
    "object array": lambda: np.array(MIXED, object),
    "long object array": lambda: {"o": np.array([{"n": n} for n in range(30_000)], object)},
    "text array": lambda: np.array([f"number {n}" for n in range(20_000)], object),
    "nested": lambda: {"a": [np.zeros(5), {"b": Plain(c=np.ones(7)[::2], d=b"x" * 5000)}]},
    "subclasses": lambda: [np.zeros(20_000).view(Copying), np.zeros(20_000).view(View)],
    "empty": lambda: [np.zeros(0), b"", (), {}],
    "masked": lambda: np.ma.masked_array([1, 2, 3], [0, 1, 0], fill_value=7),
    "masked inside": lambda: [np.ma.masked_array(np.arange(99.0), np.arange(99) > 3)],
    "function": lambda: lambda x: x + len(MIXED),
    "counter": lambda: collections.Counter("abca" * 100),
    "decimals": lambda: [decimal.Decimal(n) for n in range(20_000)],
    "aliases": lambda: [x := np.zeros(9), x, {"again": x}],
    "cycle": _nested_in_itself,
    "pair": lambda: Pair(np.zeros(3), {"x": [1, 2]}),
    "pair inside": lambda: [Pair(np.zeros(3), {"x": np.ones(2)[::2]}), Pair(b"", None)],
    "declined": lambda: [Refusing(), Refusing()],
    "buffers": lambda: [Buffered(b"x" * 500), bytearray(70_000), memoryview(b"abc" * 99)],
    "many": _many,
    "pandas": pandas_frame,
    "pandas inside": lambda: {"d": pandas_frame(), "e": [pandas_frame()["a"]]},
    "torch": _torch,
    "arrow": _arrow,
    "scipy": _scipy,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_sums_are_those_of_the_store(name: str, make_store: MakeStore) -> None:
    """Parts add up to frames and bytes of a real put, also compressed."""
    store = make_store(capacity="32MiB", locked_reads=True)
    x = OBJECTS[name]()
    assert_adds_up(explain(x), store, x)
    assert_adds_up(explain(x, compression="zlib"), store, x, compression="zlib")
    assert explain(x).nbytes == explain(x).stored_nbytes


@pytest.mark.parametrize("name", ["nested", "pair inside", "subclasses", "function", "aliases"])
def test_looking_on_changes_nothing(name: str) -> None:
    """The frames that are accounted for are those that serialize returns."""
    x = OBJECTS[name]()
    told = explain(x)
    _, frames = serialize(x, on_error="raise")
    assert told.frames == len(frames)
    assert told.nbytes == sum(map(nbytes, frames))
    assert explain(x) == told


@pytest.mark.parametrize("serializers", [("custom", "msgpack"), ("msgpack",), ("pickle",)])
def test_sums_of_other_families_are_those_of_the_store(
    serializers: tuple[str, ...], store: Store
) -> None:
    """Elements that are serialized one by one are parts, whatever family took them."""
    x = [1, {"a": [b"bytes", "text"]}, (2.5, None)]
    assert_adds_up(explain(x, serializers), store, x, serializers=serializers)


def test_elements_taken_apart_have_their_families(store: Store) -> None:
    """Without pickle a list of an array and a number is an array and a number."""
    x = {"a": [np.zeros(4)], 5: 5, "s": Serialized(*serialize(b"abc"))}
    names = ("custom", "msgpack")
    told = explain(x, names)
    assert_adds_up(told, store, x, serializers=names)
    assert told.family == "several"
    assert [(part.path, part.family) for part in told.parts] == [
        ("obj['a'][0]", "custom"),
        ("obj[5]", "msgpack"),
        ("obj['s']", "custom"),
    ]
    assert parts_of(told)["obj['s']"].reason == "already serialized: stored as it is"
    assert parts_of(told)["obj[5]"].reason == "packed by msgpack: plain values, copied"


def test_serialized_and_marked_objects_are_taken_as_a_put_does(store: Store) -> None:
    """Of a `Serialized` the frames are told, of a `Serialize` those of its data."""
    done = Serialized(*serialize(np.zeros(9)))
    told = explain(done)
    assert (told.frames, told.nbytes, told.type) == (1, 72, "numpy.ndarray")
    assert store.info(store.put(done)).nbytes == 72
    marked = explain(Serialize([np.zeros(9), b"abc"]))
    assert [part.path for part in marked.parts] == ["obj[0]", "obj[1]"]


def test_family_of_somebody_else_is_named() -> None:
    """What other families do is not guessed at."""
    register_serialization_family("shout", lambda x: ({}, [str(x).encode()]), lambda _, __: None)
    try:
        part = part_at("abc", "obj", serializers=("shout",))
    finally:
        del families["shout"]
    assert (part.family, part.out_of_band) == ("shout", 3)
    assert part.reason == "serialized by the family 'shout'"


# --- what fails ----------------------------------------------------------------------------------


def test_failure_names_the_part_to_blame() -> None:
    """What cannot be serialized is explained too, by the part that is to blame."""
    lock = threading.Lock()
    told = explain({"a": [1, {"deep": Plain(lock=lock)}]})
    [part] = told.parts
    assert part.path == "obj['a'][1]['deep'].lock"
    assert "cannot pickle" in part.reason
    assert told.error == part.reason
    assert (told.frames, told.nbytes, told.stored_nbytes) == (0, 0, 0)
    assert "cannot be serialized" in str(told)
    assert "cannot be serialized" in repr(told)


def test_failure_of_families_is_explained() -> None:
    """If nobody takes an object, this is the reason."""
    told = explain({"a": 1, "b": Plain()}, ("custom", "msgpack"))
    assert told.error is not None
    assert "no family of custom, msgpack takes it" in told.parts[0].reason


def test_unknown_family_and_lack_of_memory_are_raised() -> None:
    """A mistake of the caller and a lack of memory are no property of the object."""
    with pytest.raises(ValueError, match="unknown"):
        explain(1, ("unknown",))

    class Greedy:
        def __reduce_ex__(self, _: Any) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        explain([Greedy()])


def test_looking_on_ends_with_the_call() -> None:
    """After an explanation, also of a failure, nothing of the object is kept alive."""
    x = Plain(data=np.zeros(1000), text="t" * 5000, table=Pair(np.zeros(3), b""))
    before = sys.getrefcount(x), sys.getrefcount(x.data)
    gc.collect()
    gc.disable()
    try:
        explain([x])
        assert (sys.getrefcount(x), sys.getrefcount(x.data)) == before
    finally:
        gc.enable()
    explain([x, threading.Lock()])
    gc.collect()
    assert (sys.getrefcount(x), sys.getrefcount(x.data)) == before


def test_data_is_not_copied() -> None:
    """An array that has to be re-ordered, and bytes in the stream, take no memory."""
    x = {"gaps": np.zeros((1000, 2000))[:, ::2], "bytes": bytes(8_000_000), "a": np.zeros(10**6)}
    explain(x)
    tracemalloc.start()
    try:
        told = explain(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told.nbytes > 24_000_000
    assert peak < 1_000_000


# --- how it looks --------------------------------------------------------------------------------


def test_table_is_aligned_and_ends_with_the_sum() -> None:
    """One line for each part under the heads of the columns, sizes as people read them."""
    text = str(explain({"a": np.zeros(1000), "b": b"x" * 2000}))
    head, *lines, summary = text.splitlines()
    assert head.split() == ["part", "type", "family", "frames", "out-of-band", "in-band", "why"]
    assert len(lines) == 3
    assert {line[head.index("why") - 1] for line in lines} == {" "}
    assert all(line[head.index("why")] != " " for line in lines)
    assert "7.8 KiB" in lines[1]
    assert summary.startswith("dict by pickle: 2 frames, 7.8 KiB out-of-band, ")
    assert (
        repr(explain(5)) == "<Explanation of int by pickle: 1 frame, 0 B out-of-band, 5 B in-band>"
    )


def test_table_shows_the_largest_parts() -> None:
    """Of many parts the table shows forty and sums up the rest; the data has all."""
    x = [np.zeros(n) for n in range(1, 101)]
    told = explain(x)
    assert len(told.parts) == 101
    lines = str(told).splitlines()
    assert len(lines) == 1 + 40 + 2
    shown = sum(part.nbytes for part in sorted(told.parts, key=lambda part: part.nbytes)[-40:])
    assert (
        lines[-2] == f"... and 61 smaller parts of {(told.nbytes - shown) / 1024:.1f} KiB together"
    )


def test_explanation_is_plain_data() -> None:
    """As a dict it holds nothing but plain values."""
    told = explain({"a": np.zeros(9), 5: b"x" * 2000})
    plain = told.as_dict()
    assert plain["frames"] == 2
    assert plain["parts"][1]["path"] == "obj['a']"
    assert plain["parts"][1]["out_of_band"] == 72
    kinds = {type(value) for part in plain["parts"] for value in part.values()}
    assert kinds == {str, int}


def test_notebooks_get_a_table_without_markup_of_the_object() -> None:
    """Names from the object are escaped."""
    page = explain({"<b>": np.zeros(9)})._repr_html_()
    assert "<table" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
