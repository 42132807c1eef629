"""How does a value look, in some lines, however large it is?

Large arrays and tables are looked at where they begin and end, not read as a whole.
"""

from __future__ import annotations

import pprint
from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any, Final

import numpy as np

from shmstore.cli import _words

_WIDTH: Final = 100
_LONGEST_LINE: Final = 300
_MOST_LINES: Final = 60
_MOST_TEXT: Final = 2000
_MOST_COLUMNS: Final = 12


def lines(value: Any, rows: int) -> list[str]:
    """Return some lines about a value: what it is, then a part of what is in it.

    Parameters
    ----------
    value
        Any object.
    rows
        Of a table how many rows; of an array how many elements at each end of a dimension.
    """
    found = list(islice(_lines(value, rows), _MOST_LINES + 1))
    if len(found) > _MOST_LINES:
        found[-1] = "..."
    return [_cut(line) for line in found]


def _lines(value: Any, rows: int) -> Iterator[str]:
    if isinstance(value, np.ndarray):
        yield from _array(value, rows)
    elif _is(value, "pandas", "to_string", "head"):
        yield from _pandas(value, rows)
    elif _is(value, "polars", "head"):
        yield from str(value.head(rows)).splitlines()
    elif _is(value, "pyarrow", "schema", "slice"):
        yield from _arrow(value, rows)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield from _bytes(memoryview(value).cast("B"))
    elif isinstance(value, str):
        yield f"{_words.plural(len(value), 'character')} of text"
        yield from value[:_MOST_TEXT].splitlines()
    else:
        yield from _other(value, rows)


def _is(value: Any, package: str, *names: str) -> bool:
    """Return whether a value is of a package that nobody needs to have."""
    ours = type(value).__module__.partition(".")[0] == package
    return ours and all(hasattr(value, name) for name in names)


def _array(array: np.ndarray[Any, Any], rows: int) -> Iterator[str]:
    access = "writeable" if array.flags.writeable else "read-only"
    order = "C" if array.flags.c_contiguous else "Fortran" if array.flags.f_contiguous else "no"
    yield f"array of {array.dtype}, shape {array.shape}, {order} order, {access}"
    edge = max(1, min(rows, 10) // 2 if array.ndim > 1 else rows)
    text = np.array2string(array, threshold=2 * edge, edgeitems=edge, max_line_width=_WIDTH)
    yield from text.splitlines()


def _pandas(frame: Any, rows: int) -> Iterator[str]:
    yield f"{type(frame).__name__} of shape {frame.shape}"
    if hasattr(frame, "dtypes") and hasattr(frame, "columns"):
        types = [f"{name}: {dtype}" for name, dtype in islice(frame.dtypes.items(), _MOST_COLUMNS)]
        more = f" and {frame.shape[1] - _MOST_COLUMNS} more" if frame.shape[1] > len(types) else ""
        yield f"columns {', '.join(types)}{more}"
        yield from frame.iloc[:rows, :_MOST_COLUMNS].to_string().splitlines()
    else:
        yield from frame.head(rows).to_string().splitlines()
    if len(frame) > rows:
        yield f"... {_words.plural(len(frame) - rows, 'more row')}"


def _arrow(table: Any, rows: int) -> Iterator[str]:
    yield f"{type(table).__name__} of {table.num_rows:,} rows, {table.num_columns:,} columns"
    for field in islice(table.schema, _MOST_COLUMNS):
        values = table.column(field.name).slice(0, rows).to_pylist()
        more = ", ..." if table.num_rows > rows else ""
        yield f"{field.name}: {field.type}  {', '.join(map(repr, values))}{more}"


def _bytes(data: memoryview) -> Iterator[str]:
    yield f"{_words.plural(data.nbytes, 'byte')}"
    for start in range(0, min(data.nbytes, 128), 16):
        part = bytes(data[start : start + 16])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{start:08x}  {part.hex(' '):<47}  {text}"
    if data.nbytes > 128:
        yield "..."


def _other(value: Any, rows: int) -> Iterator[str]:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    count = (
        f" of {_words.plural(len(value), 'entry', 'entries')}" if isinstance(value, Sized) else ""
    )
    yield kind + count
    shown = value
    if isinstance(value, dict) and len(value) > rows:
        shown = dict(islice(value.items(), rows))
    elif isinstance(value, (list, tuple)) and len(value) > rows:
        shown = value[:rows]
    yield from pprint.pformat(shown, width=_WIDTH, compact=True).splitlines()
    if shown is not value:
        yield f"... {len(value) - rows:,} more"


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."
