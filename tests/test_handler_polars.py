"""polars: DataFrames and Series of every dtype, read in place, with and without pyarrow."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from stores import RunPython, lock_free_only

from shmstore import SerializationError, Store
from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.family import encode
from shmstore.serialization.frames import Planned, ensure_memoryview, is_readonly

pl = pytest.importorskip("polars")

N = 50
WITHOUT_PICKLE = ("custom", "msgpack")
MODES = ("shared", "readonly", "private", "copy")
LONG = "longer than twelve bytes, é"
NOON = dt.datetime(2020, 1, 1, 12)  # noqa: DTZ001 - polars stores it so

# What polars starts once, with descriptors that stay open, is no difference between tests.
pl.Series([NOON], dtype=pl.Datetime("ns"))

SERIES: dict[str, Callable[[], Any]] = {
    "int8": lambda: pl.Series([1, None] * N, dtype=pl.Int8),
    "uint64": lambda: pl.Series([1, 2**63] * N, dtype=pl.UInt64),
    "int128": lambda: pl.Series([1, None, 2**100] * N, dtype=pl.Int128),
    "list of int128": lambda: pl.Series([[1], None] * N, dtype=pl.List(pl.Int128)),
    "float32": lambda: pl.Series([1.5, None] * N, dtype=pl.Float32),
    "float64": lambda: pl.Series(np.arange(100.0)),
    "bool": lambda: pl.Series([True, False, None] * N),
    "null": lambda: pl.Series([None] * N),
    "string": lambda: pl.Series(["a", LONG, None, ""] * N),
    "binary": lambda: pl.Series([b"a", LONG.encode(), None] * N),
    "categorical": lambda: pl.Series(["a", "b", None] * N, dtype=pl.Categorical),
    "enum": lambda: pl.Series(["a", "b", None] * N, dtype=pl.Enum(["b", "a", "c"])),
    "decimal": lambda: pl.Series([Decimal("1.5"), None] * N, dtype=pl.Decimal(20, 2)),
    "date": lambda: pl.Series([dt.date(2020, 1, 1), None] * N),
    "datetime": lambda: pl.Series([NOON, None] * N, dtype=pl.Datetime("ns")),
    "zoned": lambda: pl.Series([NOON, None] * N, dtype=pl.Datetime("us", "Europe/Berlin")),
    "duration": lambda: pl.Series([dt.timedelta(1), None] * N, dtype=pl.Duration("ms")),
    "time": lambda: pl.Series([dt.time(1, 2, 3), None] * N),
    "list": lambda: pl.Series([[1, 2], None, []] * N),
    "list of string": lambda: pl.Series([["a", LONG], None, []] * N),
    "list of enum": lambda: pl.Series([["a"], None] * N, dtype=pl.List(pl.Enum(["a", "b"]))),
    "list of categorical": lambda: pl.Series([["a"], None] * N, dtype=pl.List(pl.Categorical)),
    "array": lambda: pl.Series([[[1, 2], [3, 4]], None] * N, dtype=pl.Array(pl.Int32, (2, 2))),
    "struct": lambda: pl.Series([{"a": 1, "b": LONG}, None, {"a": None, "b": "y"}] * N),
    "struct of enum": lambda: pl.Series([{"a": "x"}] * N, dtype=pl.Struct({"a": pl.Enum(["x"])})),
}


@pytest.fixture(params=["with pyarrow", "without pyarrow"])
def arrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Say whether pyarrow is there."""
    from shmstore.serialization.handlers import polars as handler

    there = request.param == "with pyarrow"
    if there:
        pytest.importorskip("pyarrow")
    else:
        monkeypatch.setattr(handler, "arrow", None)
    return there


def through(x: Any) -> Any:
    """Return what comes back, without any pickle where pyarrow looks at it first."""
    from shmstore.serialization.handlers import polars as handler

    header, frames = serialize(x, on_error="raise")
    assert header["serializer"] == "custom"
    checked = handler.arrow is not None and not header["sub-header"]["only-polars"]
    accepted = WITHOUT_PICKLE if checked else None
    return deserialize(header, [ensure_memoryview(f) for f in frames], accepted)


def assert_same(got: Any, x: Any) -> None:
    """Fail unless both are equal, of equal dtypes and names."""
    assert type(got) is type(x)
    if isinstance(x, pl.Series):
        got, x = got.to_frame(), x.to_frame()
    assert got.schema == x.schema
    assert got.equals(x)
    assert got.flags == x.flags


def frame_of_all() -> Any:
    """Return a frame with a column of each dtype that Arrow has too."""
    return pl.DataFrame(
        {name: make().gather(range(N)) for name, make in SERIES.items() if "int128" not in name}
    )


def addresses(x: Any) -> list[int]:
    """Return where the columns of numbers lie."""
    columns = [x[name].drop_nulls() for name in ("float64",)]
    return [column.to_numpy(allow_copy=False).ctypes.data for column in columns]


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.row("S102")
@pytest.mark.parametrize("make", SERIES.values(), ids=SERIES)
def test_series_of_each_dtype_comes_back_without_pickle(
    arrow: bool,  # noqa: FBT001 - a fixture
    make: Callable[[], Any],
) -> None:
    """Whole, sliced, in chunks, empty, as a column."""
    x = make().alias("x")
    chunks = pl.concat([x, x.slice(3, 9)], rechunk=False)
    for sent in (x, x.slice(7, 9), chunks, x.clear(), x.to_frame(), chunks.to_frame()):
        assert_same(through(sent), sent)


@pytest.mark.parametrize("make", SERIES.values(), ids=SERIES)
def test_what_one_side_wrote_with_pyarrow_the_other_reads_without(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round: both write Arrow streams."""
    pytest.importorskip("pyarrow")
    from shmstore.serialization.handlers import polars as handler

    x = make().alias("x")
    with_arrow = serialize(x, on_error="raise")
    with monkeypatch.context() as patch:
        patch.setattr(handler, "arrow", None)
        assert_same(deserialize(*with_arrow), x)
        without_arrow = serialize(x, on_error="raise")
    assert_same(deserialize(*without_arrow), x)
    if not without_arrow[0]["sub-header"]["only-polars"]:
        assert_same(deserialize(*without_arrow, WITHOUT_PICKLE), x)


@pytest.mark.parametrize(
    "make",
    [
        pl.DataFrame,
        lambda: pl.DataFrame({"a": [1, 2]}).select([]),
        lambda: pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}).clear(),
        lambda: pl.DataFrame({"": [1], "b": [2]}),
        lambda: pl.DataFrame({"column_0": [1], "": [2]}),
        lambda: pl.DataFrame({str(i): [i] for i in range(300)}),
        lambda: pl.DataFrame({"a": [1, 2, 3], "b": [3, 2, 1]}).select(
            pl.col("a").set_sorted(), pl.col("b").set_sorted(descending=True), c=pl.col("b")
        ),
        lambda: pl.Series("", [1, 2]),
        lambda: pl.Series("x", [1, 2]).set_sorted(),
        frame_of_all,
    ],
    ids=[
        *("nothing", "no columns", "no rows", "no name", "misleading names", "many columns"),
        *("sorted", "series without a name", "sorted series", "all dtypes"),
    ],
)
def test_frame_of_an_odd_kind_comes_back(arrow: bool, make: Callable[[], Any]) -> None:  # noqa: FBT001
    """With its names, and knowing which columns are in order."""
    x = make()
    assert_same(through(x), x)


def test_frames_come_back_out_of_a_container() -> None:
    """Inside of a pickle the handler works too."""
    x = frame_of_all()
    header, frames = serialize({"x": [x, x["string"]], "same": x}, on_error="raise")
    got = deserialize(header, [ensure_memoryview(frame) for frame in frames])
    assert_same(got["x"][0], x)
    assert_same(got["x"][1], x["string"])
    assert got["same"] is got["x"][0]


def test_lazy_frame_comes_back_by_pickle(store: Store) -> None:
    """Its plan travels."""
    x = pl.DataFrame({"a": [1, 2, 3]}).lazy().filter(pl.col("a") > 1)
    assert store.get(store.put(x)).collect().equals(x.collect())


def test_column_of_objects_is_refused_with_a_reason(store: Store) -> None:
    """Neither Arrow nor polars' own pickle can express it."""
    x = pl.DataFrame({"fine": [1], "odd": pl.Series([object()], dtype=pl.Object)})
    for sent in (x, x["odd"]):
        with pytest.raises(SerializationError, match="'odd' holds Python objects"):
            store.put(sent)
    with pytest.raises(SerializationError):
        store.put([x])


# --- no copy --------------------------------------------------------------------------------------


def test_frame_is_written_once() -> None:
    """Its one frame is planned, and is read-only."""
    pytest.importorskip("pyarrow")
    _, (frame,) = encode(frame_of_all(), ("custom",))
    assert type(frame) is Planned
    assert is_readonly(frame)


@lock_free_only
def test_frame_got_from_the_store_lies_in_the_mapping(store: Store) -> None:
    """Two gets lead to the same memory, numbers and text alike."""
    pytest.importorskip("pyarrow")
    ref = store.put(frame_of_all())
    mapping = np.frombuffer(store._session.segment.readonly, np.uint8)
    start = mapping.ctypes.data
    first, second = ref.get(), ref.get()
    assert addresses(first) == addresses(second)
    assert all(start <= address < start + len(mapping) for address in addresses(first))
    newest = pl.CompatLevel.newest()
    texts = first["string"].to_frame().to_arrow(compat_level=newest)["string"].chunk(0).buffers()
    held = [buffer for buffer in texts[2:] if buffer.size]
    assert held
    assert all(start <= buffer.address < start + len(mapping) for buffer in held)


def test_slice_stores_only_what_it_shows() -> None:
    """Text of other rows is left out."""
    pytest.importorskip("pyarrow")
    whole = pl.DataFrame({"a": np.arange(100_000), "b": [f"{LONG} {i}" for i in range(100_000)]})
    short = serialize(whole.slice(50_000, 10), on_error="raise")[1]
    assert sum(ensure_memoryview(frame).nbytes for frame in short) < 3000


@pytest.mark.parametrize("mode", MODES)
def test_change_of_a_frame_changes_nothing_in_the_store(store: Store, mode: str) -> None:
    """It copies what it cannot own before it writes."""
    x = pl.DataFrame({"a": np.arange(50_000), "b": ["x"] * 50_000})
    ref = store.put(x)
    got = store.get(ref, mode=mode)
    got[0, "a"] = -1
    got = got.with_columns(pl.col("a") + 1, pl.col("b").str.to_uppercase())
    got = got.sort("a", descending=True)
    column = store.get(ref, mode=mode)["a"]
    column[5] = -5
    column.sort(in_place=True)
    column.append(column)
    column.extend(column)
    assert store.get(ref).equals(x)


@lock_free_only
def test_frame_is_read_in_another_process(store: Store, run_python: RunPython) -> None:
    """One that imports polars only because the frame came."""
    x = frame_of_all().drop("list of categorical")
    printed = run_python(
        """
        assert "polars" not in sys.modules
        x = ref.get(deserializers=("custom", "msgpack"))
        print(x.schema)
        print(x.rows())
        """,
        ref=store.put(x),
    )
    assert printed == f"{x.schema}\n{x.rows()}"


def test_frame_outlives_its_object(store: Store) -> None:
    """A slice of a column of it holds the memory."""
    got = store.get(store.put(frame_of_all(), key="k"))["string"].slice(10, 20)
    expected = got.to_list()
    store.delete("k")
    for _ in range(10):
        store.delete(store.put(np.full(300_000, 255, np.uint8)))
    assert got.to_list() == expected


# --- hostile input --------------------------------------------------------------------------------


@pytest.mark.row("F21")
def test_forged_frames_and_headers_are_found(arrow: bool) -> None:  # noqa: FBT001 - a fixture
    """Cut, extended, missing; names and marks that do not fit."""
    x = pl.DataFrame({"a": [1, 2, None], "b": ["x", "y", LONG]})
    header, frames = serialize(x, on_error="raise")
    frame = bytes(ensure_memoryview(frames[0]))
    header = {**header, "frame-nbytes": None}
    del header["frame-nbytes"]
    for forged in ([], [frame[:64]], [frame[: len(frame) // 2]], [b""], [frame, frame]):
        with pytest.raises(DeserializationError):
            deserialize({**header, "writeable": [False] * len(forged)}, forged)
    for key, values in {
        "columns": [["a"], ["a", "a"], ["a", "b", "c"], [1, 2], None, "ab"],
        "sorted": [[[7, True]], [[0]], [["a", True]], [0], None],
    }.items():
        for value in values:
            with pytest.raises(DeserializationError):
                deserialize({**header, "sub-header": {**header["sub-header"], key: value}}, [frame])
    with pytest.raises(CorruptHeaderError):
        deserialize({**header, "type": "polars.series.series.Series"}, [frame])


def forged(pa: Any, x: Any) -> tuple[Any, list[bytes]]:
    """Return header and stream of a frame, where the stream is that of any Arrow data."""
    batch = x if isinstance(x, pa.RecordBatch) else pa.record_batch([x], names=["a"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    header, _ = serialize(pl.DataFrame({"a": [1]}), on_error="raise")
    del header["frame-nbytes"]
    return header, [sink.getvalue().to_pybytes()]


@pytest.mark.row("F21", "F43")
def test_reader_that_accepts_no_pickles_refuses_what_only_polars_reads(
    arrow: bool,  # noqa: FBT001 - a fixture
) -> None:
    """Nobody has looked at what polars follows then, and a header may ask for that."""
    sent = [pl.DataFrame({"a": pl.Series([1], dtype=pl.Int128)})]
    if not arrow:
        sent.append(pl.DataFrame({"a": [1]}))
    for x in sent:
        header, frames = serialize(x, on_error="raise")
        with pytest.raises(DeserializationError, match="only where 'pickle'"):
            deserialize(header, frames, WITHOUT_PICKLE)
        assert deserialize(header, frames).equals(x)
    header, frames = serialize(pl.DataFrame({"a": [1]}), on_error="raise")
    header["sub-header"]["only-polars"] = True
    with pytest.raises(DeserializationError, match="only where 'pickle'"):
        deserialize(header, frames, WITHOUT_PICKLE)


@pytest.mark.row("F21", "F43")
def test_forged_contents_are_refused_without_pickle() -> None:
    """Offsets, views, indices and text that polars would follow or panic at."""
    pa = pytest.importorskip("pyarrow")
    offsets = pa.py_buffer(np.array([0, 1 << 40, 3], np.int64))
    views = np.array([[20, 0, 0, 0], [20, 0, 7, 1 << 30]], np.int32)
    text = pa.py_buffer(bytes(20))
    for x in (
        pa.Array.from_buffers(pa.large_string(), 2, [None, offsets, text]),
        pa.LargeListArray.from_buffers(
            pa.large_list(pa.int8()), 2, [None, offsets], children=[pa.array([1, 2, 3], pa.int8())]
        ),
        pa.Array.from_buffers(pa.string_view(), 2, [None, pa.py_buffer(views), text]),
        pa.DictionaryArray.from_arrays([0, 1 << 30], ["a", "b"], safe=False),
        pa.array([b"\xff\xff"]).view(pa.string()),
    ):
        header, frames = forged(pa, x)
        with pytest.raises(CorruptHeaderError):
            deserialize(header, frames, WITHOUT_PICKLE)


@pytest.mark.row("F21", "F43")
@pytest.mark.parametrize("wrap", ["itself", "list", "struct", "dictionary"])
def test_text_that_is_null_must_lie_inside_of_its_buffers_too(wrap: str) -> None:
    """Arrow looks at nothing that is null; polars takes all text for sound."""
    pa = pytest.importorskip("pyarrow")
    good = [20, 0, 0, 0]
    for bad, sound in (([20, 0, 7, 0], 0), ([20, 0, 0, 1], 0), ([-1, 0, 0, 0], 0), (good, 1)):
        views = pa.py_buffer(np.array([good, bad], np.int32))
        buffers = [pa.py_buffer(b"\x01"), views, pa.py_buffer(bytes(20))]
        x = pa.Array.from_buffers(pa.string_view(), 2, buffers)
        x.validate(full=True)
        if wrap == "list":
            x = pa.LargeListArray.from_arrays(pa.array([0, 2], pa.int64()), x)
        elif wrap == "struct":
            x = pa.StructArray.from_arrays([x], names=["x"])
        elif wrap == "dictionary":
            x = pa.DictionaryArray.from_arrays([0, 1], x)
        header, frames = forged(pa, x)
        if sound:
            assert deserialize(header, frames, WITHOUT_PICKLE).height == len(x)
            continue
        with pytest.raises(CorruptHeaderError, match="text"):
            deserialize(header, frames, WITHOUT_PICKLE)


@pytest.mark.row("F21", "F43")
def test_column_that_claims_to_hold_addresses_is_refused() -> None:
    """So polars marks Python objects; some versions follow them."""
    pa = pytest.importorskip("pyarrow")
    note = {"ARROW:extension:name": "POLARS_EXTENSION_TYPE", "ARROW:extension:metadata": "1;2"}
    inner = pa.field("a", pa.binary(16), metadata=note)
    struct = pa.struct([inner])
    for field in (inner, pa.field("a", struct), pa.field("a", pa.large_list(struct))):
        batch = pa.record_batch([pa.nulls(1, field.type)], schema=pa.schema([field]))
        with pytest.raises(CorruptHeaderError, match="addresses"):
            deserialize(*forged(pa, batch), WITHOUT_PICKLE)


@pytest.mark.row("F21", "F43")
def test_order_that_a_header_claims_is_not_taken_on_trust() -> None:
    """What is in order keeps its flag; what is not has none, and its maximum is its maximum."""
    for values, descending, kept in (
        ([1, 3, 2], False, False),
        ([1, 3, 2], True, False),
        ([1, 2, None], False, True),
        ([None, 1, 2], False, True),
        ([None, 2, 1], False, False),
        ([None, 2, 1], True, True),
    ):
        header, frames = serialize(pl.DataFrame({"a": values}), on_error="raise")
        header["sub-header"]["sorted"] = [[0, descending]]
        got = deserialize(header, frames, WITHOUT_PICKLE)["a"]
        assert got.flags["SORTED_DESC" if descending else "SORTED_ASC"] == kept
        assert got.max() == max(value for value in values if value)


@pytest.mark.row("F21")
def test_compressed_stream_is_refused(arrow: bool) -> None:  # noqa: FBT001 - a fixture
    """By whichever reader."""
    x = pl.DataFrame({"a": [0] * 10_000})
    header, _ = serialize(x, on_error="raise")
    del header["frame-nbytes"]
    stream = x.write_ipc_stream(None, compression="zstd").getvalue()
    with pytest.raises(CorruptHeaderError, match="compressed"):
        deserialize(header, [stream])


@pytest.mark.row("F21")
@pytest.mark.parametrize("seed", range(2))
def test_damaged_stream_is_refused_or_read(seed: int) -> None:
    """Bytes changed at random lead to errors of ours, also where polars would panic."""
    pytest.importorskip("pyarrow")
    rng = random.Random(seed)
    pool = [make().slice(3, 20) for make in SERIES.values()]
    refused = 0
    for _ in range(600):
        header, (planned,) = serialize(rng.choice(pool), on_error="raise")
        frame = bytearray(ensure_memoryview(planned))
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(len(frame) // 8) * 8 + rng.choice([0, 4])
            value = rng.choice([0, 1, 8, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])
            frame[at : at + 4] = value.to_bytes(4, "little")
        try:
            deserialize(header, [bytes(frame)])
        except DeserializationError:
            refused += 1
        except MemoryError:
            continue
    assert refused > 50
