"""How does a polars DataFrame become one frame, and a DataFrame over that frame?

The frame is an Arrow IPC stream. With pyarrow it is written straight to its destination and read
without a copy; without it, and for integers of 128 bits that Arrow lacks, polars writes and reads
the stream itself, with a copy on both sides. Pickle, polars' own way, copies twice on both.

Columns of Python objects are refused. Of a LazyFrame the plan is pickled.

polars follows every offset and index of a stream unseen. For readers that accept no pickles Arrow
looks at all of them first; what only polars can read, such readers refuse.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization.frames import Frame, ensure_memoryview
from shmstore.serialization.handlers.indices import is_trusted
from shmstore.serialization.handlers.streams import check_stream
from shmstore.serialization.registry import register_serialization

Header = dict[str, Any]
Parts = tuple[Header, list[Frame]]

arrow: Any
try:
    arrow = importlib.import_module("shmstore.serialization.handlers.pyarrow")
except ImportError:  # pyarrow is not there: one copy more, on both sides
    arrow = None

# Text stays in the layout that polars itself uses.
_NEWEST: Final = pl.CompatLevel.newest()

_ONLY_POLARS: Final = (pl.Int128, pl.UInt128)

# How polars marks a column in Arrow that holds addresses of Python objects.
_NAME_KEY: Final = b"ARROW:extension:name"
_OBJECTS: Final = b"POLARS_EXTENSION_TYPE"

# What polars raises for streams that make no sense; a panic is no Exception.
_DAMAGED: Final = (
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
    *(OSError, ValueError, TypeError, LookupError),
)


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(pl.DataFrame, serialize_frame, deserialize_frame)
    register_serialization(pl.Series, serialize_series, deserialize_series)


def serialize_frame(x: pl.DataFrame) -> Parts:
    """Return the stream of a frame; the header tells its columns and which are in order."""
    dtypes = x.dtypes
    if pl.Object in dtypes:
        message = (
            f"the column {x.columns[dtypes.index(pl.Object)]!r} holds Python objects, which polars "
            "cannot serialize. Cast it to another dtype, or put a dict of lists."
        )
        raise TypeError(message)
    ordered = [
        [number, flags["SORTED_DESC"]]
        for number, flags in enumerate(x.flags.values())
        if flags["SORTED_ASC"] or flags["SORTED_DESC"]
    ]
    only_polars = any(map(_is_only_polars, dtypes))
    header: Header = {"columns": x.columns, "sorted": ordered, "only-polars": only_polars}
    if arrow is not None and not only_polars:
        return header, arrow.serialize_table(x.to_arrow(compat_level=_NEWEST))[1]
    with io.BytesIO() as sink:
        x.write_ipc_stream(sink, compat_level=_NEWEST)
        return header, [memoryview(sink.getvalue())]


def _is_only_polars(dtype: Any) -> bool:
    """Return whether Arrow lacks a dtype, or one inside of it."""
    return dtype in _ONLY_POLARS or (dtype.is_nested() and "Int128" in str(dtype))


def serialize_series(x: pl.Series) -> Parts:
    """Return the stream of a frame with one column."""
    return serialize_frame(x.to_frame())


def deserialize_frame(header: Header, frames: Sequence[Frame]) -> pl.DataFrame:
    """Return a DataFrame over the frame."""
    try:
        x = _read(header, frames)
        if x.columns != header["columns"]:
            x.columns = header["columns"]
        for number, descending in header["sorted"]:
            column = x.to_series(number)
            if is_trusted() or _is_sorted(column, descending):
                x.replace_column(number, column.set_sorted(descending=descending))
    except DeserializationError:
        raise
    except _DAMAGED as error:
        raise _corrupt("frames", f"what polars refuses ({error})", "a stream") from error
    return x


def deserialize_series(header: Header, frames: Sequence[Frame]) -> pl.Series:
    """Return a Series over the frame."""
    x = deserialize_frame(header, frames)
    if x.width != 1:
        raise _corrupt("columns", x.width, 1)
    return x.to_series()


def _is_sorted(column: pl.Series, descending: Any) -> bool:
    """Return whether a column is in order, wherever it has what is null."""
    return any(column.is_sorted(descending=descending, nulls_last=last) for last in (False, True))


def _read(header: Header, frames: Sequence[Frame]) -> pl.DataFrame:
    if arrow is None or header["only-polars"]:
        return _read_by_polars(frames)
    table = arrow.deserialize_table({}, frames)
    if is_trusted():
        for number, kind in enumerate(table.schema.types):
            if arrow.has_dictionary(kind):  # polars looks its codes up at once
                table.column(number).validate(full=True)
    else:
        _check_for_polars(table)
    x = pl.from_arrow(table, rechunk=False)
    assert isinstance(x, pl.DataFrame)
    return x


def _read_by_polars(frames: Sequence[Frame]) -> pl.DataFrame:
    """Return a DataFrame that polars itself read, which looks at nothing before it follows it."""
    if not is_trusted():
        raise DeserializationError(
            "a polars DataFrame that pyarrow cannot read (integers of 128 bits), or a process "
            "without pyarrow: what polars reads by itself can crash it, so it is read only where "
            "'pickle' is among the accepted deserializers. Install pyarrow, or cast the column.",
            type="polars.DataFrame",
        )
    if len(frames) != 1:
        raise _corrupt("frames", len(frames), 1)
    view = ensure_memoryview(frames[0])
    check_stream(view, thorough=False)
    return pl.read_ipc_stream(io.BytesIO(view))


def _check_for_polars(table: Any) -> None:
    """Raise if polars, though not Arrow, could be led astray by a table."""
    for column in table.columns:
        for chunk in column.chunks:
            arrow.check_hidden(chunk)
    if arrow.has_note(table.schema, _NAME_KEY, _OBJECTS):
        raise _corrupt("frames", "addresses of Python objects", "data")


def _corrupt(key: str, found: Any, expected: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"a polars DataFrame is damaged at {key!r}: {str(found)[:200]} instead of {expected}.",
        key=key,
        found=str(found)[:200],
        expected=expected,
    )
