"""Arrow data: one stream, no copy when it is read, and nothing forged gets through."""

from __future__ import annotations

import datetime as dt
import decimal
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import RunPython, lock_free_only

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.family import encode
from shmstore.serialization.frames import Planned, ensure_memoryview, is_readonly

pa = pytest.importorskip("pyarrow")

N = 1000
WITHOUT_PICKLE = ("custom", "msgpack")
MODES = ("shared", "readonly", "private", "copy")


def sparsely(value: Callable[[int], Any]) -> list[Any]:
    """Return values, some of them missing."""
    return [None if i % 7 == 0 else value(i) for i in range(N)]


DAY = dt.date(2020, 2, 1)
NUMBERS = pa.array(sparsely(lambda i: i % 100))
TEXTS = [f"text {i}, é" if i % 3 else "x" * (i % 40) for i in range(N)]
CODES = pa.array([i % 3 for i in range(N)], pa.int8())

ARRAYS: dict[str, Callable[[], Any]] = {
    "null": lambda: pa.nulls(N),
    "bool": lambda: pa.array(sparsely(lambda i: i % 3 == 0)),
    "int8": lambda: NUMBERS.cast(pa.int8()),
    "uint64": lambda: NUMBERS.cast(pa.uint64()),
    "float16": lambda: NUMBERS.cast(pa.float16()),
    "float64": lambda: NUMBERS.cast(pa.float64()),
    "no nulls": lambda: pa.array(np.arange(N)),
    "date32": lambda: pa.array(sparsely(lambda i: DAY + dt.timedelta(i))),
    "time64": lambda: NUMBERS.cast(pa.time64("ns")),
    "timestamp": lambda: NUMBERS.cast(pa.timestamp("ns", "Europe/Berlin")),
    "duration": lambda: NUMBERS.cast(pa.duration("us")),
    "interval": lambda: pa.array(sparsely(lambda i: (i, i, i)), pa.month_day_nano_interval()),
    "decimal128": lambda: pa.array(sparsely(decimal.Decimal), pa.decimal128(20, 3)),
    "decimal256": lambda: pa.array(sparsely(decimal.Decimal), pa.decimal256(50, 3)),
    "string": lambda: pa.array(sparsely(TEXTS.__getitem__)),
    "large_string": lambda: pa.array(sparsely(TEXTS.__getitem__), pa.large_string()),
    "string_view": lambda: pa.array(sparsely(TEXTS.__getitem__), pa.string_view()),
    "binary": lambda: pa.array(sparsely(lambda i: TEXTS[i].encode())),
    "fixed_size_binary": lambda: pa.array(sparsely(lambda i: b"%04d" % i), pa.binary(4)),
    "dictionary": lambda: pa.DictionaryArray.from_arrays(CODES, ["a", "b", "c"]),
    "ordered dictionary": lambda: pa.DictionaryArray.from_arrays(CODES, [1, 2, 3], ordered=True),
    "list": lambda: pa.array(sparsely(lambda i: list(range(i % 5)))),
    "large_list": lambda: pa.array(sparsely(lambda i: TEXTS[: i % 5]), pa.large_list(pa.string())),
    "fixed_size_list": lambda: pa.array(sparsely(lambda i: [i, i]), pa.list_(pa.int64(), 2)),
    "list_view": lambda: pa.array(sparsely(lambda i: [i] * (i % 5)), pa.list_view(pa.int64())),
    "struct": lambda: pa.array(sparsely(lambda i: {"a": i, "b": [TEXTS[i]]})),
    "map": lambda: pa.array(sparsely(lambda i: [("k", i)]), pa.map_(pa.string(), pa.int64())),
    "dense union": lambda: pa.UnionArray.from_dense(
        pa.array([i % 2 for i in range(N)], pa.int8()),
        pa.array([i // 2 for i in range(N)], pa.int32()),
        [pa.array(range(N)), pa.array(TEXTS)],
    ),
    "sparse union": lambda: pa.UnionArray.from_sparse(
        pa.array([i % 2 for i in range(N)], pa.int8()), [pa.array(range(N)), pa.array(TEXTS)]
    ),
    "run ends": lambda: pa.RunEndEncodedArray.from_arrays(
        pa.array(range(10, N + 1, 10), pa.int32()), pa.array(TEXTS[: N // 10])
    ),
    "list of dictionary": lambda: pa.ListArray.from_arrays(
        pa.array(range(0, N + 1, 2), pa.int32()), pa.array(TEXTS).dictionary_encode()
    ),
    "extension": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(
        np.arange(N * 4).reshape(N, 2, 2)
    ),
    "text extension": lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(TEXTS)),
}


@pytest.fixture(params=ARRAYS)
def array(request: pytest.FixtureRequest) -> Any:
    """Give an array of each type."""
    return ARRAYS[request.param]()


def through(x: Any) -> Any:
    """Return what comes back without any pickle."""
    header, frames = serialize(x, on_error="raise")
    assert header["serializer"] == "custom"
    return deserialize(header, [ensure_memoryview(f) for f in frames], WITHOUT_PICKLE)


def nbytes_of(x: Any) -> int:
    """Return how many bytes the frames of an object have."""
    return sum(ensure_memoryview(frame).nbytes for frame in serialize(x, on_error="raise")[1])


def assert_same(got: Any, x: Any) -> None:
    """Fail unless both are equal, of one type, and sound."""
    got.validate(full=True)
    assert type(got) is type(x)
    assert got.equals(x)
    schema = "schema" if hasattr(x, "schema") else "type"
    assert getattr(got, schema) == getattr(x, schema)


def buffers_of(x: Any) -> list[Any]:
    """Return the buffers of an array, or of all arrays of a table."""
    if isinstance(x, pa.Array):
        return [buffer for buffer in x.buffers() if buffer is not None and buffer.size]
    if isinstance(x, pa.ChunkedArray):
        return [buffer for chunk in x.chunks for buffer in buffers_of(chunk)]
    return [buffer for column in x.columns for buffer in buffers_of(column)]


def table() -> Any:
    """Return a table of all types but those that IPC cannot put into one."""
    return pa.table({name: make().slice(0, N // 2) for name, make in ARRAYS.items()})


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.row("S105")
def test_array_of_each_type_comes_back_without_pickle(array: Any) -> None:
    """Whole, sliced at odd bits, and empty."""
    for x in (array, array.slice(501, 9), array.slice(3), array.slice(0, 0)):
        assert_same(through(x), x)


@pytest.mark.row("S105")
def test_chunks_of_each_type_come_back(array: Any) -> None:
    """As they were cut."""
    x = pa.chunked_array([array, array.slice(3, 5), array.slice(100)])
    got = through(x)
    assert_same(got, x)
    assert got.num_chunks == 3
    none = pa.chunked_array([], array.type)
    assert_same(through(none), none)


@pytest.mark.row("S105")
def test_batch_and_table_of_each_type_come_back(array: Any) -> None:
    """With their names."""
    batch = pa.record_batch([array, array], names=["a", ""])
    for x in (batch, batch.slice(7, 20), batch.slice(0, 0)):
        assert_same(through(x), x)
    x = pa.Table.from_batches([batch, batch.slice(5, 3)])
    for part in (x, x.slice(N - 3, 5), x.slice(0, 0)):
        assert_same(through(part), part)


def test_array_of_each_type_comes_back_out_of_a_container(array: Any) -> None:
    """Inside of a pickle a slice stores no more than it shows, too."""
    for x in (array, array.slice(501, 9), pa.chunked_array([array, array.slice(3, 5)])):
        header, frames = serialize([x], on_error="raise")
        (got,) = deserialize(header, [ensure_memoryview(frame) for frame in frames])
        assert_same(got, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.table({}),
        lambda: pa.table({"a": [1, 2, 3]}).select([]),
        lambda: pa.schema([("a", pa.int64())]).empty_table(),
        lambda: pa.table({"a": [1], "b": ["x"]}, metadata={"key": "value"}),
        lambda: pa.table(
            [[1]],
            schema=pa.schema([pa.field("a", pa.int64(), nullable=False, metadata={"k": "v"})]),
        ),
        lambda: pa.table(
            {"a": pa.chunked_array([[1], [2, 3]]), "b": pa.chunked_array([[1, 2], [3]])}
        ),
        lambda: pa.table(
            {"a": pa.chunked_array([pa.array(t).dictionary_encode() for t in (["a"], ["b", "c"])])}
        ),
        lambda: pa.table({"a": pa.chunked_array([[i] for i in range(3000)])}),
        lambda: pa.table({str(i): [i] for i in range(2000)}),
    ],
    ids=[
        *("no columns", "only rows", "no rows", "metadata", "field metadata", "other chunks"),
        *("other dictionaries", "many chunks", "many columns"),
    ],
)
def test_table_of_an_odd_kind_comes_back(make: Callable[[], Any]) -> None:
    """Equal with all its metadata."""
    x = make()
    got = through(x)
    assert_same(got, x)
    assert got.schema.equals(x.schema, check_metadata=True)
    assert got.num_rows == x.num_rows


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.schema([("a", pa.int64())], metadata={"a": "b"}),
        lambda: pa.field("a", pa.list_(pa.string()), nullable=False),
        lambda: pa.timestamp("ns", "Europe/Berlin"),
        lambda: pa.scalar("text"),
        lambda: pa.scalar({"a": [1, None]}),
    ],
    ids=["schema", "field", "type", "scalar", "struct"],
)
def test_what_describes_data_comes_back_by_pickle(store: Store, make: Callable[[], Any]) -> None:
    """They need no handler."""
    x = make()
    got = store.get(store.put(x))
    assert got.equals(x)
    assert type(got) is type(x)


class Meters(pa.ExtensionType):
    """A type of ours."""

    def __init__(self) -> None:
        super().__init__(pa.float64(), "shmstore.test.meters")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Any:
        return cls()


def test_extension_type_of_a_user_keeps_its_class_without_being_registered(store: Store) -> None:
    """Its class travels with the data, at any depth."""
    x = pa.ExtensionArray.from_storage(Meters(), pa.array(np.arange(1000.0)))
    inside = pa.StructArray.from_arrays([x], names=["x"])
    for sent in (x, pa.table({"x": x}), pa.chunked_array([x]), inside, pa.table({"x": inside})):
        ref = store.put(sent)
        got = ref.get()
        assert_same(got, sent)
        assert "Meters" in repr(got.schema if hasattr(got, "schema") else got.type)
        assert not any(buffer.is_mutable for buffer in buffers_of(got))


# --- no copy --------------------------------------------------------------------------------------


@pytest.mark.row("S105")
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x]], ids=["itself", "in a list"])
def test_table_is_read_where_it_lies(wrap: Callable[[Any], Any]) -> None:
    """Every buffer is part of a frame, and none may be written."""
    header, planned = serialize(wrap(table()), on_error="raise")
    frames = [ensure_memoryview(frame) for frame in planned]
    got = deserialize(header, frames)
    got = got[0] if isinstance(got, list) else got
    ranges = [np.frombuffer(frame, np.uint8) for frame in frames]
    spans = [(data.ctypes.data, data.ctypes.data + len(data)) for data in ranges]
    buffers = buffers_of(got)
    assert len(buffers) > len(ARRAYS)
    for buffer in buffers:
        assert any(a <= buffer.address and buffer.address + buffer.size <= b for a, b in spans)
        assert not buffer.is_mutable


@pytest.mark.row("S105")
@lock_free_only
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": x}], ids=["itself", "in a dict"])
def test_table_got_from_the_store_lies_in_the_mapping(
    store: Store, wrap: Callable[[Any], Any]
) -> None:
    """Two gets lead to the same memory."""
    ref = store.put(wrap(table()))
    first, second = ref.get(), ref.get()
    first, second = (got["x"] if isinstance(got, dict) else got for got in (first, second))
    addresses = [buffer.address for buffer in buffers_of(first)]
    assert addresses == [buffer.address for buffer in buffers_of(second)]
    mapping = np.frombuffer(store._session.segment.readonly, np.uint8)
    start = mapping.ctypes.data
    assert all(start <= address < start + len(mapping) for address in addresses)


def test_table_is_written_once() -> None:
    """Its one frame is planned, and is read-only."""
    for x in (table(), table().to_batches()[0], pa.array(TEXTS)):
        _, (frame,) = encode(x, ("custom",))
        assert type(frame) is Planned
        assert is_readonly(frame)


@pytest.mark.parametrize("mode", MODES)
def test_arrow_data_is_immutable_in_each_mode(store: Store, mode: str) -> None:
    """As Arrow wants it, whatever the buffers were at put."""
    memory = bytearray(np.arange(50_000.0))
    x = pa.Array.from_buffers(pa.float64(), 50_000, [None, pa.py_buffer(memory)])
    assert x.buffers()[1].is_mutable
    for sent in (x, pa.table({"x": x}), pa.py_buffer(memory)):
        got = store.get(store.put(sent), mode=mode)
        buffers = [got] if isinstance(got, pa.Buffer) else buffers_of(got)
        assert not any(buffer.is_mutable for buffer in buffers)
        assert got.equals(sent)


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_buffer_comes_back(size: int) -> None:
    """Also nothing at all."""
    x = pa.py_buffer(bytes(range(256)) * 4)[:size]
    got = through(x)
    assert got.equals(x)
    (inside,) = deserialize(*serialize([x], on_error="raise"))
    assert inside.equals(x)
    resizable = pa.allocate_buffer(size, resizable=True)
    assert through(resizable).size == size


# --- slices ---------------------------------------------------------------------------------------

WHOLE = {"dictionary", "ordered dictionary", "list of dictionary", "list_view", "null"}


@pytest.mark.row("S105")
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x]], ids=["itself", "in a list"])
@pytest.mark.parametrize("name", sorted(ARRAYS.keys() - WHOLE))
def test_slice_stores_only_what_it_shows(name: str, wrap: Callable[[Any], Any]) -> None:
    """Dictionaries and the lists behind views stay whole, everything else is cut."""
    x = ARRAYS[name]()
    long = pa.concat_arrays([x] * 50)
    assert nbytes_of(wrap(long.slice(N, 10))) < nbytes_of(wrap(x.slice(0, 10))) + 1000
    chunked = pa.chunked_array([long, long]).slice(N, 10)
    assert nbytes_of(wrap(chunked)) < nbytes_of(wrap(x.slice(0, 10))) + 1000


def test_slice_of_a_table_stores_only_what_it_shows() -> None:
    """As its columns do; views of text are gathered."""
    whole = {name: make() for name, make in ARRAYS.items() if name not in WHOLE}
    whole.pop("list of dictionary", None)
    long = pa.table({name: pa.concat_arrays([x] * 50) for name, x in whole.items()})
    short = pa.table({name: x.slice(0, 10) for name, x in whole.items()})
    assert nbytes_of(long.slice(N, 10)) < nbytes_of(short) + 1000
    batch = long.combine_chunks().to_batches()[0].slice(N, 10)
    assert nbytes_of(batch) < nbytes_of(short) + 1000


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.row("S105")
@lock_free_only
def test_table_is_read_in_another_process(store: Store, run_python: RunPython) -> None:
    """One that imports pyarrow only because the table came."""
    x = pa.table({"a": np.arange(1000), "b": [f"text {i}" for i in range(1000)]})
    printed = run_python(
        """
        assert "pyarrow" not in sys.modules
        x = ref.get(deserializers=("custom", "msgpack"))
        x.validate(full=True)
        print(x["a"].to_numpy().sum(), x["b"][999], x.schema.names)
        """,
        ref=store.put(x),
    )
    assert printed == f"{np.arange(1000).sum()} text 999 ['a', 'b']"


def test_table_outlives_its_object(store: Store) -> None:
    """A slice of a column of it holds the memory."""
    got = store.get(store.put(table(), key="k"))["string"].slice(10, 20)
    expected = got.to_pylist()
    store.delete("k")
    for _ in range(10):
        store.delete(store.put(np.full(300_000, 255, np.uint8)))
    assert got.to_pylist() == expected


# --- hostile input --------------------------------------------------------------------------------


@pytest.mark.row("F21")
def test_forged_frames_are_found() -> None:
    """Cut anywhere, extended, doubled, missing."""
    x = pa.table({"a": [1, 2, None], "b": ["x", "y", "z"]})
    for sent in (x, x.to_batches()[0], x["a"], x["b"].chunk(0)):
        header, (planned,) = serialize(sent, on_error="raise")
        frame = bytes(ensure_memoryview(planned))
        header = {key: value for key, value in header.items() if key != "frame-nbytes"}
        cut = [frame[:n] for n in range(0, len(frame), 8)]
        for forged in ([], *[[f] for f in cut], [frame + bytes(8)], [frame, frame]):
            with pytest.raises(DeserializationError):
                deserialize({**header, "writeable": [False] * len(forged)}, forged)


@pytest.mark.row("F21")
def test_forged_type_is_found() -> None:
    """The stream holds an array of another class, or not one column."""
    numbers, texts = pa.array([1, 2]), pa.array(["a", "b"])
    header, frames = serialize(numbers, on_error="raise")
    two = serialize(pa.record_batch([numbers, texts], names=["a", "b"]), on_error="raise")
    batches = serialize(pa.chunked_array([numbers, numbers]), on_error="raise")
    for name, others in (
        ("pyarrow.lib.StringArray", frames),
        ("pyarrow.lib.Int64Array", two[1]),
        ("pyarrow.lib.ChunkedArray", two[1]),
        ("pyarrow.lib.RecordBatch", batches[1]),
    ):
        views = [ensure_memoryview(frame) for frame in others]
        forged = {**header, "type": name, "frame-nbytes": [view.nbytes for view in views]}
        with pytest.raises(CorruptHeaderError):
            deserialize(forged, views)


@pytest.mark.row("F21")
@pytest.mark.parametrize("seed", range(4))
def test_damaged_stream_is_refused_or_read_within_its_bounds(seed: int) -> None:
    """Bytes changed at random lead to errors of ours, and never out of the frame."""
    rng = random.Random(seed)
    pool = [make().slice(3, 20) for make in ARRAYS.values()]
    refused = 0
    for _ in range(1500):
        x = rng.choice(pool)
        header, (planned,) = serialize(x, on_error="raise")
        frame = bytearray(ensure_memoryview(planned))
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(len(frame) // 8) * 8 + rng.choice([0, 4])
            value = rng.choice([0, 1, 8, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])
            frame[at : at + 4] = value.to_bytes(4, "little")
        try:
            got = deserialize(header, [bytes(frame)])
        except CorruptHeaderError:
            refused += 1
            continue
        except MemoryError:
            continue
        assert all(buffer is None or buffer.size <= len(frame) for buffer in got.buffers())
    assert refused > 100
