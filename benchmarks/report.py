"""What came out: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks import beside
from benchmarks.peers import FLOOR
from benchmarks.results import NS, Result, number, written
from benchmarks.targets import Judged, judge

try:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
except ImportError:
    RICH = False
else:
    RICH = True

HEADS = ("object", "peer", "median", "unit", "quartiles", "x floor")
TARGET_HEADS = ("target", "beside", "measured", "wanted", "met")
TEXT_COLUMNS = 2
MICROSECONDS = "us"
BOLD = "shmstore"
PIPED_WIDTH = 160

Row = tuple[str, ...]


def show(context: dict[str, str], results: list[Result]) -> None:
    """Print on what it ran, a table for each measure, and the targets."""
    for name, value in context.items():
        _say(f"{name}: {value}")
    ratios = over_floor(results)
    voluminous = [each for each in results if each.volume is not None]
    others = [each for each in results if each.volume is None]
    ordered = sorted(others, key=attrgetter("workload", "measure"))
    for measure, group in groupby(ordered, key=attrgetter("measure")):
        sections = [
            [row(each, ratios.get(each)) for each in rows]
            for _, rows in groupby(group, key=attrgetter("sample"))
        ]
        _show_table(measure, HEADS, sections)
    for measure, heads, rows in beside.tables(voluminous):
        _show_table(measure, heads, rows)
    verdicts = [verdict(each) for each in judge(results)]
    if verdicts:
        _show_table("targets", TARGET_HEADS, [verdicts])


def write_json(path: Path, context: dict[str, str], results: list[Result]) -> None:
    """Write everything that is known."""
    ratios = over_floor(results)
    records = [{**asdict(each), "over_floor": ratios.get(each)} for each in results]
    verdicts = [{**asdict(each), "met": each.met} for each in judge(results)]
    lists = {"results": records, "targets": verdicts}
    parts = [f'"context": {json.dumps(context, indent=1)}']
    for name, members in lists.items():
        lines = ",\n".join(json.dumps(_rounded(each)) for each in members)
        parts.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _rounded(value: Any) -> Any:
    """Return a record with numbers of five digits: no figure is better than that."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if isfinite(value) else None


def over_floor(results: list[Result]) -> dict[Result, float]:
    """Return each median divided by the floor of the same measure and object."""
    place = attrgetter("workload", "measure", "sample")
    floors = {place(each): each.figure.median for each in results if each.peer == FLOOR}
    return {
        each: each.figure.median / floors[place(each)]
        for each in results
        if floors.get(place(each))
    }


def progress(text: str) -> None:
    """Say what is going on, to the one who waits at a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def row(result: Result, ratio: float | None) -> Row:
    """Return a result as cells under `HEADS`."""
    figure = result.figure
    middle, low, high = (
        written(each, figure.unit) for each in (figure.median, figure.low, figure.high)
    )
    unit = MICROSECONDS if figure.unit == NS else figure.unit
    over = "" if ratio is None else number(ratio)
    return (result.sample, result.peer, middle, unit, f"{low}-{high}", over)


def verdict(judged: Judged) -> Row:
    """Return a target as cells under `TARGET_HEADS`."""
    target = judged.target
    return (
        target.subject,
        judged.beside,
        f"{number(judged.value)}{target.unit}",
        f"{target.bound}{target.unit}",
        "yes" if judged.met else "no",
    )


def _show_table(title: str, heads: Row, sections: list[list[Row]]) -> None:
    show_table = _show_rich_table if RICH else _show_plain_table
    show_table(title, heads, sections)


def _show_rich_table(title: str, heads: Row, sections: list[list[Row]]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE, show_edge=False, pad_edge=False)
    for column, head in enumerate(heads):
        justify = "left" if column < TEXT_COLUMNS else "right"
        table.add_column(head, justify=justify, no_wrap=True)
    for rows in sections:
        for row in rows:
            table.add_row(*row, style="bold" if row[1].startswith(BOLD) else None)
        table.add_section()
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    console.print("", table)


def _show_plain_table(title: str, heads: Row, sections: list[list[Row]]) -> None:
    rows = [heads, *(row for section in sections for row in section)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    _say(f"\n{title}")
    for row in rows:
        _say("  ".join(_aligned(row, widths)).rstrip())


def _aligned(row: Row, widths: list[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column < TEXT_COLUMNS else cell.rjust(width)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
