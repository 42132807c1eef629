"""How is what a command has found written: for people, for grep, for programs?

On a terminal with rich: a table. Elsewhere, or with ``--plain``: the same columns as plain text,
each cell one word except the last one's, so that `awk` and `grep` can be used. With ``--json``: the
exact values.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from shmstore.cli import _words

Row = Mapping[str, Any]


class Column(NamedTuple):
    """Which value of a row stands here, under which heading, and written how."""

    field: str
    heading: str
    kind: str = "text"


def _share(value: float) -> str:
    return f"{value:.0%}"


_WAYS: Final[dict[str, Callable[[Any], str]]] = {
    "size": _words.size,
    "count": "{:,}".format,
    "number": str,
    "age": lambda since: _words.span(time.time() - since),
    "moment": _words.moment,
    "share": _share,
    "rate": _words.rate,
    "duration": _words.duration,
    "flag": lambda value: "yes" if value else "no",
    "text": lambda value: _words.clean(str(value)),
}
_EXACT: Final[dict[str, Callable[[Any], str]]] = {
    "size": "{:.0f}".format,
    "count": str,
    "age": lambda since: f"{max(0.0, time.time() - since):.3f}",
    "rate": "{:.3f}".format,
    "duration": "{:.9f}".format,
}
_TO_THE_RIGHT: Final = frozenset({"size", "count", "number", "age", "share", "rate", "duration"})


class Output:
    """Where a command writes to.

    Parameters
    ----------
    as_json, plain, exact
        What the user chose: JSON; no colours and frames; numbers of bytes and seconds in full.
    """

    def __init__(self, *, as_json: bool = False, plain: bool = False, exact: bool = False) -> None:
        self.as_json = as_json
        self.exact = exact
        self.fancy = not (plain or as_json) and is_terminal(sys.stdout) and _has_rich()

    def table(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        """Write rows."""
        if self.as_json:
            self.json(rows)
        elif self.fancy:
            self._rich_table(columns, rows)
        else:
            self.lines(aligned(columns, self._cells(columns, rows)))

    def record(self, columns: Sequence[Column], row: Row) -> None:
        """Write one row, a value to a line; what it has none of is left out."""
        if self.as_json:
            self.json(row)
            return
        shown = [column for column in columns if row.get(column.field) not in (None, "")]
        width = max((len(column.heading) for column in shown), default=0)
        for column in shown:
            value = self.write(column.kind, row[column.field])
            head = f"{column.heading:<{width}}"
            self.styled(f"[bold]{head}[/bold]  ", f"{head}  ", value)

    def styled(self, markup: str, plain: str, rest: str = "") -> None:
        """Write a line that begins in colours where there are any; `rest` is never markup."""
        if self.fancy:
            console = _console()
            console.print(markup, end="", highlight=False, soft_wrap=True)
            console.print(rest, markup=False, highlight=False, soft_wrap=True)
        else:
            self.lines([plain + rest])

    def json(self, value: Any) -> None:
        """Write one JSON document."""
        print(json.dumps(value, default=_as_json, indent=2, allow_nan=False))  # noqa: T201

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines as they are."""
        for line in lines:
            print(line)  # noqa: T201

    def write(self, kind: str, value: Any) -> str:
        """Return a value as it is written in this output."""
        if value is None or value == "":
            return "-"
        ways = _EXACT if self.exact and kind in _EXACT else _WAYS
        return ways[kind](value)

    def _cells(self, columns: Sequence[Column], rows: Sequence[Row]) -> list[list[str]]:
        last = len(columns) - 1
        return [
            [
                cell if at == last else "_".join(cell.split(" "))
                for at, cell in enumerate(self.write(c.kind, row.get(c.field)) for c in columns)
            ]
            for row in rows
        ]

    def _rich_table(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        from rich.table import Table  # noqa: PLC0415 - an extra, and slow to import
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, header_style="bold")
        for at, column in enumerate(columns):
            right = column.kind in _TO_THE_RIGHT
            whole = at < len(columns) - 1
            table.add_column(
                column.heading,
                justify="right" if right else "left",
                no_wrap=True,
                overflow="ellipsis",
                min_width=len(column.heading) if whole else None,
            )
        for row in rows:
            cells = [Text(self.write(c.kind, row.get(c.field))) for c in columns]
            table.add_row(*cells, style=_STYLES.get(str(row.get("state")), ""))
        _console().print(table)


_STYLES: Final = {"damaged": "red", "dead": "yellow", "deleted": "yellow", "kept": "cyan"}


def aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return headings and rows as lines in which the columns stand below each other."""
    table = [[column.heading for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if column.kind in _TO_THE_RIGHT else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def note(text: str) -> None:
    """Tell people something beside the output."""
    print(text, file=sys.stderr)  # noqa: T201


def is_terminal(stream: Any) -> bool:
    """Return whether somebody looks at a stream who wants colours."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def _has_rich() -> bool:
    try:
        import rich.console  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True


def _console() -> Any:
    from rich.console import Console  # noqa: PLC0415 - an extra, and slow to import

    return Console(emoji=False)


def _as_json(value: Any) -> Any:
    """Return what stands for a value that JSON does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)


def finite(value: float | None) -> float | None:
    """Return a number that JSON can write, or None."""
    return None if value is None or not math.isfinite(value) else value
