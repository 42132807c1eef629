"""pandas has no handler: its pickle shares what it holds, and what it holds has handlers.

Blocks of numbers, object columns of text and Arrow columns are proved one by one, in every mode of
get, and in another process.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import RunPython, StartPython, address, lock_free_only

from shmstore import Store
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.handlers import text

pd = pytest.importorskip("pandas")

MODES = ("shared", "readonly", "private", "copy")
N = 20_000  # more than text.MIN_SIZE
WORDS = [f"word {i}" for i in range(N)]
FEW = ["yes", "no", "perhaps"]
TIMES = pd.date_range("2020-01-01", periods=N, freq="min")


def repeated(values: list[Any]) -> list[Any]:
    """Return N values, in turn."""
    return [values[i % len(values)] for i in range(N)]


COLUMNS: dict[str, Callable[[], Any]] = {
    "int": lambda: np.arange(N),
    "float": lambda: np.arange(N) / 7,
    "bool": lambda: np.arange(N) % 3 == 0,
    "complex": lambda: np.arange(N) * 1j,
    "object text": lambda: pd.array(WORDS, dtype=object),
    "object text of few values": lambda: pd.array(repeated(FEW), dtype=object),
    "object text with None": lambda: pd.array(repeated([*FEW, None]), dtype=object),
    "object text with NaN": lambda: pd.array(repeated([*FEW, np.nan]), dtype=object),
    "objects": lambda: pd.array(repeated([1, "a", 2.5, (1, 2), None]), dtype=object),
    "python text": lambda: pd.array(
        repeated(["a", None]), dtype=pd.StringDtype("python", na_value=np.nan)
    ),
    "python text with NA": lambda: pd.array(repeated(["a", None]), dtype=pd.StringDtype("python")),
    "categorical": lambda: pd.Categorical(repeated(FEW)),
    "ordered categorical": lambda: pd.Categorical(repeated(FEW), FEW, ordered=True),
    "categorical of numbers": lambda: pd.Categorical(np.arange(N) % 5),
    "datetime": lambda: TIMES,
    "datetime in zone": lambda: TIMES.tz_localize("Europe/Berlin", ambiguous="NaT"),
    "datetime in seconds": lambda: TIMES.as_unit("s"),
    "timedelta": lambda: TIMES - TIMES[0],
    "nullable int": lambda: pd.array(repeated([1, None, 3]), dtype="Int64"),
    "nullable float": lambda: pd.array(repeated([1.5, None]), dtype="Float32"),
    "nullable bool": lambda: pd.array(repeated([True, None]), dtype="boolean"),
    "period": lambda: pd.period_range("2020", periods=N, freq="h"),
    "interval": lambda: pd.interval_range(0, N),
    "interval of times": lambda: pd.IntervalIndex.from_breaks(
        pd.date_range("2020", periods=N + 1, freq="min"), closed="left"
    ),
    "sparse": lambda: pd.arrays.SparseArray(np.where(np.arange(N) % 10 == 0, np.arange(N), 0)),
}

ARROW_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "str": lambda _: pd.array(repeated([*WORDS[:100], None]), dtype="str"),
    "string": lambda _: pd.array(WORDS, dtype="string[pyarrow]"),
    "arrow int": lambda pa: pd.array(repeated([1, None]), dtype=pd.ArrowDtype(pa.int64())),
    "arrow time": lambda pa: pd.array(TIMES, dtype=pd.ArrowDtype(pa.timestamp("us", "UTC"))),
    "arrow list": lambda pa: pd.array(
        repeated([[1, 2], None, []]), dtype=pd.ArrowDtype(pa.list_(pa.int8()))
    ),
    "arrow text": lambda pa: pd.array(WORDS, dtype=pd.ArrowDtype(pa.string())),
    "arrow dictionary": lambda pa: pd.array(
        pa.array(repeated(FEW)).dictionary_encode(),
        dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())),
    ),
}


def frame(name: str) -> Any:
    """Return a DataFrame with columns of one kind."""
    if name in COLUMNS:
        column = COLUMNS[name]()
    else:
        column = ARROW_COLUMNS[name](pytest.importorskip("pyarrow"))
    return pd.DataFrame({"a": column, "b": column, "c": 1.5})


FRAMES: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: frame(name) for name in (*COLUMNS, *ARROW_COLUMNS)},
    "nothing": lambda: pd.DataFrame(),  # noqa: PLW0108 - the class itself says nothing
    "no rows": lambda: frame("object text").iloc[:0],
    "no columns": lambda: frame("int")[[]],
    "few rows": lambda: frame("object text").head(3),
    "slice": lambda: frame("object text").iloc[5:-5:2],
    "mixed": lambda: pd.DataFrame({name: make() for name, make in COLUMNS.items()}),
    "multi-index": lambda: frame("int").set_index(["a", "b"]),
    "multi-index of text": lambda: pd.DataFrame(
        {"x": np.arange(N)},
        index=pd.MultiIndex.from_arrays([pd.Index(WORDS, dtype=object), repeated(FEW)]),
    ),
    "columns of levels": lambda: pd.DataFrame(
        np.ones((N, 2)), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["x", "y"])
    ),
    "index of text": lambda: frame("int").set_index(pd.Index(WORDS, dtype=object, name="w")),
    "index of times": lambda: frame("int").set_index(TIMES),
    "attributes": lambda: frame("int").assign(**{"d e": 1}).pipe(with_attributes),
}

OTHERS: dict[str, Callable[[], Any]] = {
    **{f"series {name}": lambda name=name: frame(name)["a"] for name in FRAMES if name in COLUMNS},
    **{f"series {name}": lambda name=name: frame(name)["a"] for name in ARROW_COLUMNS},
    **{
        f"index {name}": lambda name=name: pd.Index(frame(name)["a"], name="i")
        for name in (*COLUMNS, *ARROW_COLUMNS)
        if name not in ("sparse", "objects", "arrow list")
    },
    "range": lambda: pd.RangeIndex(3, 100, 7, name="r"),
    "multi-index": lambda: pd.MultiIndex.from_product([FEW, [1, 2]], names=["a", None]),
    "timestamp": lambda: pd.Timestamp("2020-01-01", tz="Europe/Berlin"),
    "NA": lambda: pd.NA,
    "dtype": lambda: pd.CategoricalDtype(FEW, ordered=True),
}


def with_attributes(x: Any) -> Any:
    """Return a frame with what users may attach."""
    x.attrs["source"] = "test"
    return x.set_flags(allows_duplicate_labels=False)


def assert_same(got: Any, x: Any) -> None:
    """Fail unless both are equal, of one class and of equal dtypes."""
    assert type(got) is type(x)
    if isinstance(x, pd.DataFrame):
        pd.testing.assert_frame_equal(got, x, check_freq=True, check_flags=True)
        assert got.attrs == x.attrs
    elif isinstance(x, pd.Series):
        pd.testing.assert_series_equal(got, x, check_freq=True)
    elif isinstance(x, pd.Index):
        pd.testing.assert_index_equal(got, x, exact=True)
    else:
        assert got is x or got == x


def in_mapping(store: Store, start: int) -> bool:
    """Return whether an address lies in a mapping of the store's segment."""
    segment = store._session.segment
    views = [np.frombuffer(view, np.uint8) for view in (segment.readonly, segment.writeable)]
    return any(address(view) <= start < address(view) + len(view) for view in views)


# --- round trips ----------------------------------------------------------------------------------


@pytest.fixture
def big(make_store: Callable[..., Store]) -> Store:
    """Give a store with room for the large ones."""
    return make_store(capacity="64MiB")


@pytest.mark.row("S106")
@lock_free_only
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_frame_of_any_kind_comes_back(big: Store, make: Callable[[], Any], mode: str) -> None:
    """In each mode: equal, with its dtypes."""
    x = make()
    assert_same(big.get(big.put(x), mode=mode), x)


@pytest.mark.row("S106")
@lock_free_only
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_series_and_index_of_any_kind_come_back(
    big: Store, make: Callable[[], Any], mode: str
) -> None:
    """In each mode: equal, with name and dtype."""
    x = make()
    assert_same(big.get(big.put(x), mode=mode), x)


@pytest.mark.row("S106")
@lock_free_only
def test_frames_come_back_in_another_process(big: Store, start_python: StartPython) -> None:
    """In each mode; pandas is imported there because they came."""
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(path)
        assert "pandas" not in sys.modules
        while True:
            name, mode = input().split("|")
            x, got = pickle.loads(store.get("pickled")), store.get("x", mode=mode)
            import pandas as pd
            pd.testing.assert_frame_equal(got, x)
            assert list(got.dtypes) == list(x.dtypes)
            del x, got
            print(name, flush=True)
        """,
        path=big.path,
    )
    for name, make in FRAMES.items():
        x = make()
        big["x"] = x
        big["pickled"] = pickle.dumps(x)
        for mode in MODES:
            assert child.ask(f"{name}|{mode}") == name
    child.kill()


def test_objects_that_refer_to_the_same_frame_still_do() -> None:
    """Handlers inside of pickles keep identities."""
    x = frame("object text")
    header, frames = serialize({"x": x, "again": x, "column": x["a"]}, on_error="raise")
    got = deserialize(header, [ensure_memoryview(part) for part in frames])
    assert got["again"] is got["x"]
    assert_same(got["column"], x["a"])


# --- no copy --------------------------------------------------------------------------------------

NUMBERS: dict[str, Callable[[Any], np.ndarray]] = {
    "int": lambda x: x["a"].to_numpy(),
    "float": lambda x: x["a"].to_numpy(),
    "bool": lambda x: x["a"].to_numpy(),
    "complex": lambda x: x["a"].to_numpy(),
    "categorical": lambda x: x["a"].array.codes,
    "datetime": lambda x: x["a"].array.asi8,
    "datetime in zone": lambda x: x["a"].array.asi8,
    "timedelta": lambda x: x["a"].array.asi8,
    "nullable int": lambda x: x["a"].array._data,
    "nullable bool": lambda x: x["a"].array._mask,
    "period": lambda x: x["a"].array.asi8,
    "interval": lambda x: x["a"].array.left.to_numpy(),
    "sparse": lambda x: x["a"].array.sp_values,
}


@pytest.mark.row("S106")
@lock_free_only
@pytest.mark.parametrize("mode", ["shared", "readonly"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_read_where_they_lie(big: Store, name: str, mode: str) -> None:
    """Whatever they stand for."""
    numbers = NUMBERS[name](big.get(big.put(frame(name)), mode=mode))
    assert in_mapping(big, address(numbers))


@pytest.mark.row("S106")
@lock_free_only
@pytest.mark.parametrize("name", ARROW_COLUMNS)
def test_arrow_columns_are_read_where_they_lie(big: Store, name: str) -> None:
    """Text too; and they are immutable."""
    x = frame(name)
    ref = big.put(x.iloc[10:-10])
    for mode in ("shared", "readonly"):
        chunks = big.get(ref, mode=mode)["a"].array._pa_array.chunks
        buffers = [buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None]
        assert buffers
        assert not any(buffer.is_mutable for buffer in buffers)
        assert all(in_mapping(big, buffer.address) for buffer in buffers if buffer.size)


@pytest.mark.row("S106")
@pytest.mark.parametrize("name", ["str", "string", "arrow text", "object text", "int"])
def test_slice_stores_only_what_it_shows(name: str) -> None:
    """Ten rows out of thousands make a small object."""
    x = frame(name)
    parts = [x.iloc[100:110], x["a"].iloc[100:110]]
    for part in parts:
        frames = serialize(part, on_error="raise")[1]
        assert sum(ensure_memoryview(frame).nbytes for frame in frames) < 6000


def test_text_in_a_frame_is_encoded_and_not_pickled() -> None:
    """Frames of its own hold it; the stream holds none of it."""
    for name in ("object text", "object text with None", "index of text", "multi-index of text"):
        header, frames = serialize(FRAMES[name](), on_error="raise")
        assert header["serializer"] == "pickle"
        assert ensure_memoryview(frames[0]).nbytes < 5000, name
    assert N >= text.MIN_SIZE


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.row("S106", "S44")
@lock_free_only
@pytest.mark.parametrize("kind", ["series", "frame"])
@pytest.mark.parametrize("mode", ["shared", "private", "copy"])
def test_numbers_of_each_mode_can_be_assigned(big: Store, kind: str, mode: str) -> None:
    """Shared: all see it; private and copy: nobody else does."""
    x = pd.Series(np.arange(N)) if kind == "series" else frame("int")[["a", "b"]]
    ref = big.put(x)
    got = big.get(ref, mode=mode)
    got.iloc[5] = -1
    assert (np.asarray(got.iloc[5]) == -1).all()
    seen = np.asarray(big.get(ref).iloc[5])
    assert (seen == (-1 if mode == "shared" else 5)).all()


@pytest.mark.row("S106")
@pytest.mark.parametrize("mode", ["readonly", "shared"])
def test_numbers_that_are_read_only_cannot_be_assigned(store: Store, mode: str) -> None:
    """By the mode, or because they were put so."""
    ref = store.put(pd.Series(np.arange(1000)), readonly=mode == "shared")
    got = store.get(ref, mode=mode)
    with pytest.raises(ValueError, match="read-only"):
        got.iloc[5] = -1
    assert got.sum() == np.arange(1000).sum()


@pytest.mark.row("S106")
@lock_free_only
@pytest.mark.parametrize("name", ["object text", "object text of few values", "str"])
@pytest.mark.parametrize("mode", ["shared", "private", "copy"])
def test_text_can_be_assigned_and_stays_with_its_reader(big: Store, name: str, mode: str) -> None:
    """Its elements are objects of this process, or Arrow data that pandas replaces."""
    x = frame(name)
    ref = big.put(x)
    got = big.get(ref, mode=mode)
    got.loc[3, "a"] = "new"
    assert got.loc[3, "a"] == "new"
    assert_same(big.get(ref), x)


@pytest.mark.row("S106")
@lock_free_only
def test_assignment_is_seen_by_another_process(big: Store, run_python: RunPython) -> None:
    """The block itself is shared."""
    ref = big.put(pd.DataFrame({"a": np.arange(N), "b": WORDS}))
    run_python("x = ref.get(); x.loc[7, 'a'] = -7", ref=ref)
    assert ref.get().loc[7, "a"] == -7


@pytest.mark.row("S106")
def test_columns_of_text_share_their_buffers_instead_of_being_written_anew() -> None:
    """Arrow arrays inside of a frame keep the way in which Arrow pickles them."""
    x = pd.DataFrame({"a": range(100)}, index=[f"row {number}" for number in range(100)])
    _, frames = serialize(x, on_error="raise")
    assert len(frames) > 2
    assert [f for f in frames[1:] if bytes(memoryview(f).cast("B")[:4]) == b"\xff" * 4] == []
