"""How does each object stand beside its floor, in one line?

For results that know how many bytes were moved. Times are medians in microseconds, spread is from
quartile to quartile; bytes are those that a put of ours writes, in band (stream
or header) and beside; copies are how often the payload is written, by us and by the floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from benchmarks.peers import FLOOR
from benchmarks.results import Result, number, written

TIME_HEADS = ("us", "spread", "floor us", "spread", "x floor")
BYTE_HEADS = ("in band", "beside")
COPY_HEADS = ("copies", "floor's")
REFUSED = "pickle refuses"

Row = tuple[str, ...]


def tables(results: list[Result]) -> Iterator[tuple[str, Row, list[list[Row]]]]:
    """Give for each measure its name, heads and sections of rows: one per object, by size."""
    ordered = sorted(results, key=attrgetter("measure"), reverse=True)  # put comes first
    for measure, group in groupby(ordered, key=attrgetter("measure")):
        pairs = [
            {each.peer: each for each in both} for _, both in groupby(group, attrgetter("sample"))
        ]
        writes = any(each.volume.beside for pair in pairs for each in pair.values())
        heads = ("object", "size", *TIME_HEADS, *(BYTE_HEADS if writes else ()), *COPY_HEADS)
        sizes = sorted({each.volume.payload for pair in pairs for each in pair.values()})
        sections = [[_row(pair, size, writes=writes) for pair in pairs] for size in sizes]
        yield measure, heads, [[row for row in section if row] for section in sections]


def _row(pair: dict[str, Result], nbytes: int, *, writes: bool) -> Row:
    """Return the line of one object, empty if it is of another size."""
    floor = pair.get(FLOOR)
    ours = next(each for peer, each in pair.items() if peer != FLOOR)
    if ours.volume.payload != nbytes:
        return ()
    label, _, size = ours.sample.rpartition(", ")
    over = REFUSED if floor is None else number(ours.figure.median / floor.figure.median)
    volume = ours.volume
    moved = (f"{volume.in_band:,}", f"{volume.beside:,}") if writes else ()
    copies = (number(volume.copies), "" if floor is None else number(floor.volume.copies))
    return (label, size, *_times(ours), *_times(floor), over, *moved, *copies)


def _times(result: Result | None) -> Row:
    if result is None:
        return "", ""
    figure = result.figure
    low, middle, high = (
        written(each, figure.unit) for each in (figure.low, figure.median, figure.high)
    )
    return middle, f"{low}-{high}"
