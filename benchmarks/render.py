"""How do results become a page of the documentation, with its pictures?"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from benchmarks import beside, catalogue, plots, report
from benchmarks.peers import FLOOR, MEMCPY
from benchmarks.results import NS, Figure, Result, Volume, written
from benchmarks.targets import PREFIX, judge

PAGE, FIGURES, IMAGES = "benchmarks.md", "benchmarks.json", "images"
INTRODUCTION = """\
# How fast it is

Written by `make bench BENCH_ARGS='--render docs'`; the figures with their quartiles are in
[benchmarks.json](benchmarks.json). Each peer runs in processes of its own, the reader in another
than the owner and attached before. All of a table was measured in one run, in rounds: a round
times each peer once, in random order, and medians over the rounds are told. *Floor* is the least
that Python itself needs for the same effect: pickle 5 with its buffers beside it, and a copy into
shared pages that were used before. Compare within a table: times drift by up to two from one run
to the next, and differences under 1.5 between runs are ties. `make bench-peers` installs the
peers, as far as the index has them; what is left out is said below. An empty cell: too slow to be
worth the time, or the peer has nothing for it.
"""
PICTURES = {
    "put": "by-size",
    "handoff": "handoff",
    "contention": "processes",
    "objects": "objects",
    "readers": "readers",
}
MICROSECONDS = "microseconds"
_place = attrgetter("workload", "sample")
UNITS = {NS: MICROSECONDS, "x": "times", "/s": "per second"}


def render(folder: Path, context: dict[str, str], results: list[Result]) -> None:
    """Write the page, the pictures and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results, folder / IMAGES)
    report.write_json(folder / FIGURES, context, results)
    parts = [INTRODUCTION, *_machine(context), *_targets(results)]
    for name, meaning in catalogue.WORKLOADS.items():
        own = [each for each in results if each.workload == name]
        if own:
            parts += [f"## {name}: {meaning}", _told(name)]
            if PICTURES.get(name) in drawn:
                parts.append(f"![{meaning}]({IMAGES}/{PICTURES[name]}.svg)")
            parts += _tables(own)
    (folder / PAGE).write_text("\n\n".join(part.strip() for part in parts) + "\n")


def read(paths: Sequence[Path]) -> tuple[dict[str, str], list[Result]]:
    """Return what was written by runs before; what was measured twice is told by the later one."""
    context: dict[str, str] = {}
    told: dict[tuple[str, str], list[Result]] = {}
    for path in paths:
        document = json.loads(path.read_text())
        context |= document["context"]
        here: dict[tuple[str, str], list[Result]] = {}
        for each in map(_result, document["results"]):
            here.setdefault(_place(each), []).append(each)
        told |= here
    return context, [each for results in told.values() for each in results]


def _result(told: dict) -> Result:
    told = {name: value for name, value in told.items() if name != "over_floor"}
    volume = told.pop("volume")
    figure = Figure(**told.pop("figure"))
    return Result(**told, figure=figure, volume=None if volume is None else Volume(**volume))


def _machine(context: dict[str, str]) -> Iterator[str]:
    yield "## The machine"
    yield _table(("", ""), context.items())


def _targets(results: list[Result]) -> Iterator[str]:
    rows = [report.verdict(each) for each in judge(results)]
    if rows:
        yield "## What it is meant to reach"
        met = sum(row[-1] == "yes" for row in rows)
        yield f"{met} of {len(rows)} targets are met. Ratios are of medians of the same run."
        yield _table(report.TARGET_HEADS, rows)


def _told(name: str) -> str:
    """Return what the workload says of itself."""
    return inspect.getdoc(import_module(f"benchmarks.workloads.{name}")) or ""


def _tables(results: list[Result]) -> Iterator[str]:
    """Give a table for each measure: a line for each peer, a column for each object."""
    for measure, heads, sections in beside.tables([each for each in results if each.volume]):
        yield f"**{measure}**, {MICROSECONDS}"
        yield _table(heads, [row for section in sections for row in section])
    plain = [each for each in results if each.volume is None]
    for measure, group in groupby(sorted(plain, key=attrgetter("measure")), attrgetter("measure")):
        of_measure = list(group)
        unit = of_measure[0].figure.unit
        yield f"**{measure}**, {UNITS.get(unit, unit)}"
        yield _pivot(of_measure)


def _pivot(results: list[Result]) -> str:
    cells = {(each.peer, each.sample): each.figure for each in results}
    samples = list(dict.fromkeys(each.sample for each in results))
    peers = sorted(dict.fromkeys(each.peer for each in results), key=_rank)
    rows = [
        (
            f"**{peer}**" if peer.startswith(PREFIX) else peer,
            *(_cell(cells.get((peer, sample))) for sample in samples),
        )
        for peer in peers
    ]
    return _table(("", *samples), rows)


def _rank(peer: str) -> int:
    """Floors come first, then what is ours, then the others as they were measured."""
    return 0 if peer in (FLOOR, MEMCPY) else 1 if peer.startswith(PREFIX) else 2


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else written(figure.median, figure.unit)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
