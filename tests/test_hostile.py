"""Forged on purpose: each case here once crashed, hung, imported, allocated or was believed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import rooms
from family_helpers import own_handlers
from forgeries import SAFE, custom

from shmstore import Store
from shmstore.errors import (
    CorruptHeaderError,
    DeserializationError,
)
from shmstore.serialization import (
    deserialize,
    merge_and_deserialize,
    register_generic,
    serialize,
)
from shmstore.serialization.compression import decompress, decompress_frame
from shmstore.serialization.frames import ensure_memoryview

HUGE = 1 << 200_000
DEEP: list[Any] = []
for _ in range(1015):
    DEEP = [DEEP]


def encoded(x: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Return a header that can be changed, without sizes and flags, and the frames."""
    header, frames = serialize(x, on_error="raise")
    header = msgpack.unpackb(msgpack.packb(header), strict_map_key=False)
    for key in ("frame-nbytes", "writeable"):
        header.pop(key, None)
    return header, [bytes(ensure_memoryview(frame)) for frame in frames]


def stretch(header: dict[str, Any], frames: list[bytes], part: str, size: int) -> None:
    """Let a part be an array of so many elements, all of them the same one."""
    place = header["sub-header"]["parts"][part]
    layout = place["header"]["sub-header"]
    shape = [*layout["shape"][:-1], size]
    layout.update(shape=shape, strides=[0] * len(shape))
    frames[place["start"]] = bytes(np.dtype(layout["dtype"]).itemsize)


# --- the interpreter survives ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("depth", [100, 200, 1000, 20_000])
def test_nested_extensions_do_not_end_the_process(depth: int, code: int) -> None:
    """Unpacking each takes 40 KB of stack; a small thread has little of that."""
    source = """
import sys, threading, msgpack
from shmstore.serialization import deserialize
from shmstore.errors import DeserializationError
depth, code = map(int, sys.argv[1:])
data = msgpack.packb([])
for _ in range(depth):
    data = msgpack.packb([msgpack.ExtType(code, data)])
def read():
    try:
        deserialize({"serializer": "msgpack", "type": "list"}, [data], ("msgpack",))
    except DeserializationError:
        print("refused", end=" ")
read()
thread = threading.Thread(target=read)
thread.start()
thread.join()
"""
    assert rooms.run_python(source, depth, code).split() == ["refused"] * 2


def fields(*offsets: int, itemsize: int, **more: Any) -> dict[str, Any]:
    """Return a packed dtype of integers at some offsets."""
    names = [f"f{number}" for number in range(len(offsets))]
    spec = {"names": names, "formats": ["<i4"] * len(names), "offsets": list(offsets)}
    spec |= {"titles": [None] * len(names), "itemsize": itemsize, "aligned": False}
    return spec | more


DTYPES = {
    "beyond": fields((1 << 31) - 2, itemsize=4),
    "wrapped to 4": "S2147483647,S2147483647,S6",
    "negative": "S2147483647,i4",
    "in an array": [fields((1 << 31) - 2, itemsize=4), [1]],
    "in a field": fields(0, itemsize=4, formats=[fields((1 << 31) - 2, itemsize=4)]),
    "objects": "O",
    "objects inside": "i4,O",
    "text of NumPy": "T",
}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [[3], [1], [0], []])
@pytest.mark.parametrize("nbytes", [0, 4, 12])
def test_dtype_whose_fields_leave_its_items_is_refused(
    dtype: Any, shape: list[int], nbytes: int
) -> None:
    """The check of NumPy itself wraps at 2**31."""
    for header in (
        custom("numpy.ndarray", dtype=dtype, shape=shape),
        custom("memoryview", dtype=dtype, shape=shape, format="x"),
    ):
        with pytest.raises(DeserializationError):
            deserialize(header, [bytes(nbytes)], SAFE)


def patched_stream(case: str) -> tuple[str, bytes]:
    """Return the type of an object of Arrow data, and its stream with some numbers changed."""
    pa = pytest.importorskip("pyarrow")
    texts = ["x" * 40, "y" * 50]
    columns = {
        "lists": pa.array([[1, 2], [3]]),
        "views": pa.array(texts, pa.string_view()),
        "texts": pa.array(["aaaa", "bbbb", "cccc"]),
        "letters": pa.array(["aaaa", "bbbb"], pa.large_string()),
        "codes": pa.array(["x", "y", "x"]).dictionary_encode(),
    }
    changes = {
        "lists": (np.array([0, 2, 3], "<i4"), np.array([0, 2**30, 3], "<i4")),
        "views": (np.array([40], "<i4"), np.array([2**31 - 1], "<i4")),
        "texts": (np.array([0, 4, 8, 12], "<i4"), np.array([0, -(2**30), 2**30, 12], "<i4")),
        "letters": (np.frombuffer(b"aaaa", "u1"), np.frombuffer(b"\xff\xff\xff\xff", "u1")),
        "codes": (np.array([0, 1, 0], "<i4"), np.array([2**30, -5, 0], "<i4")),
    }
    sink = pa.BufferOutputStream()
    table = pa.table({"a": columns[case]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue().to_pybytes()
    old, new = (part.tobytes() for part in changes[case])
    place = stream.rindex(old)
    return "pyarrow.lib.Table", stream[:place] + new + stream[place + len(old) :]


@pytest.mark.parametrize("case", ["lists", "views", "texts", "letters", "codes"])
@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_arrow_data_that_points_elsewhere_is_refused_without_pickles(
    library: str, case: str
) -> None:
    """Whoever accepts no pickles may look at all of it."""
    pytest.importorskip(library)
    kind, stream = patched_stream(case)
    header = custom(kind)
    if library == "polars":
        header = custom(
            "polars.dataframe.frame.DataFrame", columns=["a"], sorted=[], **{"only-polars": False}
        )
    with pytest.raises(CorruptHeaderError):
        deserialize(header, [stream], SAFE)


# --- time and memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [None, SAFE], ids=["trusting", "safe"])
@pytest.mark.parametrize(
    ("library", "name", "parts"),
    [
        ("scipy.sparse", "csr_array", ["indptr"]),
        ("scipy.sparse", "lil_array", ["indptr"]),
        ("scipy.sparse", "coo_array", ["0", "1", "data"]),
        ("scipy.sparse", "dok_array", ["0", "1", "data"]),
        ("sparse", "COO", ["coords", "data"]),
        ("sparse", "DOK", ["coords", "data"]),
        ("sparse", "GCXS", ["indptr"]),
    ],
)
def test_indices_that_are_all_the_same_element_are_refused(
    library: str, name: str, parts: list[str], accepted: Any
) -> None:
    """A frame of 8 bytes claims a million indices, or 2**40, which somebody would walk through."""
    module = pytest.importorskip(library)
    cls = getattr(module, name)
    header, frames = encoded(cls(np.eye(3)) if "scipy" in library else cls.from_numpy(np.eye(3)))
    size = 1 << 20
    for part in parts:
        stretch(header, frames, part, size + (part == "indptr"))
    header["sub-header"]["shape"] = [size, 3]
    with pytest.raises(CorruptHeaderError):
        deserialize(header, frames, accepted)


@pytest.mark.parametrize("part", ["data", "mask", "fill_value"])
def test_parts_of_masked_arrays_belong_together(part: str) -> None:
    """NumPy would make one that fits of what does not, whatever its size."""
    header, frames = encoded(np.ma.MaskedArray(np.arange(3.0), [0, 1, 0], fill_value=7))
    place = header["sub-header"]["parts"][part]
    place["header"]["sub-header"] = {"dtype": "<f8", "shape": [1 << 40], "strides": [0]}
    frames[place["start"]] = bytes(8)
    with pytest.raises(CorruptHeaderError):
        deserialize(header, frames, SAFE)


def test_data_of_a_masked_array_is_an_array() -> None:
    """Not anything that NumPy can make an array of."""
    header, frames = encoded(np.ma.MaskedArray(np.arange(3.0)))
    header["sub-header"]["parts"]["data"]["header"] = custom("bytes")
    with pytest.raises(CorruptHeaderError):
        deserialize(header, frames, SAFE)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_streams_are_refused(codec: str) -> None:
    """None of ours is; what comes out of them may be thousands of times as long."""
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    table = pa.table({"a": np.zeros(1 << 20)})
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(CorruptHeaderError):
        deserialize(custom("pyarrow.lib.Table"), [sink.getvalue().to_pybytes()], SAFE)


class Bag:
    """Nothing but attributes."""


@pytest.fixture
def handlers() -> Iterator[None]:
    """Forget afterwards which types were registered."""
    with own_handlers():
        yield


@pytest.mark.usefixtures("handlers")
def test_parts_do_not_share_frames() -> None:
    """Else a short header makes many copies of one long frame."""
    register_generic(Bag)
    header, _ = encoded(Bag())
    names = [str(number) for number in range(50)]
    part = {"header": custom("bytes"), "start": 0, "stop": 1}
    header["sub-header"] = {
        "simple": {},
        "complex": {name: {**part, "header": custom("bytes")} for name in names},
        "names": names,
    }
    with pytest.raises(CorruptHeaderError):
        deserialize(header, [bytes(1000)], SAFE)


def test_long_names_of_types_cost_no_time() -> None:
    """Each dot might end a module."""
    started = time.process_time()
    for count in (40_000, 400_000):
        with pytest.raises(DeserializationError):
            deserialize(custom("a" + ".b" * count), [], SAFE)
    assert time.process_time() - started < 5


def test_object_with_a_long_name_of_its_type_comes_back(store: Store) -> None:
    """As every other."""
    cls = type("N" * 20_000, (), {})
    assert type(store.put(cls()).get()).__name__ == "N" * 20_000


# --- nothing else is imported ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("shmstore.serialization.handlers.numpy", "np.f2py"),
        ("shmstore.serialization.handlers.numpy", "np.testing.sys.modules"),
        ("shmstore.serialization.handlers.scipy", "scipy.datasets.Dataset"),
        ("shmstore.serialization.dispatch", "inspect._ParameterKind"),
        ("shmstore.serialization.msgpacking", "enum.EnumCheck"),
        ("shmstore.__main__", "main"),
        ("os", "system"),
        ("shmstore.errors.x", "y"),
        ("shmstore.", "y"),
    ],
)
def test_enum_leads_to_no_other_module(module: str, qualname: str) -> None:
    """Neither by its name nor through what a module of ours has imported."""
    source = """
import sys, msgpack
from shmstore.serialization import msgpacking
from shmstore.errors import ModuleRefusedError
if "handlers" in sys.argv[1]:
    __import__(sys.argv[1])
before = set(sys.modules)
member = msgpack.packb([sys.argv[1], sys.argv[2], "POSITIONAL_ONLY", None])
try:
    msgpacking.unpackb(msgpack.packb(msgpack.ExtType(7, member)))
except ModuleRefusedError:
    print("refused", *[m for m in set(sys.modules) - before if not m.startswith("shmstore")])
"""
    if "scipy" in module:
        pytest.importorskip("scipy")
    assert rooms.run_python(source, module, qualname).split() == ["refused"]


# --- one class of errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, DEEP, "\ud800"], ids=["huge", "-huge", "deep", "lone"]
)
@pytest.mark.parametrize(
    "read",
    [
        lambda v: deserialize({"serializer": v}, [], SAFE),
        lambda v: deserialize({"serializer": "custom", "type": v, "sub-header": {}}, [], SAFE),
        lambda v: deserialize({"serializer": "pickle", "type": v}, [], SAFE),
        lambda v: deserialize({**custom("bytes"), "frame-nbytes": [v]}, [], SAFE),
        lambda v: deserialize({**custom("bytes"), "writeable": [v, v]}, [], SAFE),
        lambda v: merge_and_deserialize({"split-num-sub-frames": [v]}, [], SAFE),
        lambda v: decompress({"compression": [v, v]}, [b"abc"]),
        lambda v: decompress({"compression": [["zlib", v]]}, [b"abc"]),
        lambda v: decompress_frame(v, b"abc"),
        lambda v: deserialize({"is-collection": True, "type-serialized": v}, [], SAFE),
    ],
)
def test_values_that_cannot_be_shown_are_refused_all_the_same(
    read: Callable[[Any], Any], value: Any
) -> None:
    """Whoever words the error must not fail."""
    with pytest.raises(DeserializationError) as caught:
        read(value)
    assert len(str(caught.value)) < 5000
    assert "4300 digits" not in str(caught.value)
    assert "recursion" not in str(caught.value)


def test_containers_do_not_lose_elements() -> None:
    """Two of a key, or two that are equal in a set."""
    twice = [{**custom("bytes"), "key": 1}, {**custom("bytes"), "key": 1}]
    for kind in ("dict", "set"):
        header = {"is-collection": True, "type-serialized": kind}
        header |= {"sub-headers": twice, "frame-lengths": [1, 1]}
        with pytest.raises(CorruptHeaderError):
            deserialize(header, [b"a", b"a"], SAFE)


def test_serialized_inside_of_msgpack_is_header_and_frames() -> None:
    """Of no other types."""
    for pair in ([5, 6], [{}, 5], [{}, [5]], [{}], 5):
        packed = msgpack.packb(msgpack.ExtType(8, msgpack.packb(pair)))
        with pytest.raises(DeserializationError):
            deserialize({"serializer": "msgpack", "type": "x"}, [packed], SAFE)


def test_handlers_get_flat_views_whatever_came() -> None:
    """Also where a header tells no flags."""
    pytest.importorskip("torch")
    header = custom("torch.Tensor", dtype="float32", shape=[1])
    assert deserialize(header, [bytearray(4)], SAFE).tolist() == [0.0]
