"""How do the figures look when they are drawn? Small SVG files, one for each question."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers import FLOOR, MEMCPY
from benchmarks.results import NS, Result
from benchmarks.samples import FRAMES, SAMPLES
from benchmarks.targets import BY_KEY, BY_REF, GET, PREFIX

SIZES = {each.label: each.nbytes for each in SAMPLES if each not in FRAMES}
COUNTED = re.compile(r"([\d,]+) (?:process|objects|reader)")
OURS_COLOUR, FLOOR_COLOUR = "#c1121f", "#444444"
STYLES = {BY_REF: "-", BY_KEY: "--"}
NS_PER_US = 1000
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shmstore",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: a measure over what its samples count."""

    measure: str
    title: str
    across: str
    upward: str
    linear: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture."""

    name: str
    panels: tuple[Panel, ...]


US = "microseconds"
BYTES = "size of the object, bytes"
OBJECTS = "objects in the store"
PLOTS = (
    Plot(
        "by-size",
        (Panel("put", "put", BYTES, US), Panel(GET, "get in another process", BYTES, US)),
    ),
    Plot("handoff", (Panel("there and back", "hand over and hear back", BYTES, US),)),
    Plot(
        "processes",
        (
            Panel("put and get, all together", "put, get, delete", "processes", "per second"),
            Panel("put 64 KiB, all together", "put 64 KiB, delete", "processes", "per second"),
        ),
    ),
    Plot(
        "objects",
        (
            Panel("put, by number of objects", "put", OBJECTS, US),
            Panel("get, by number of objects", "get", OBJECTS, US),
        ),
    ),
    Plot(
        "readers",
        (
            Panel(
                "PSS of all, in copies", "memory of all processes", "readers", "copies", linear=True
            ),
        ),
    ),
)


def draw(results: list[Result], folder: Path) -> set[str]:
    """Draw what the results speak to; return the names of the pictures, none without matplotlib."""
    if find_spec("matplotlib") is None:
        return set()
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    drawn = set()
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for plot in PLOTS:
            drawable = {panel: dict(_lines(results, panel)) for panel in plot.panels}
            drawable = {panel: lines for panel, lines in drawable.items() if lines}
            if not drawable:
                continue
            figure, axes = plt.subplots(
                1, len(drawable), figsize=(3.4 * len(drawable) + 1.6, 3.4), squeeze=False
            )
            colours = _colours({label for lines in drawable.values() for label in lines})
            for (panel, lines), axis in zip(drawable.items(), axes[0], strict=True):
                _draw(axis, panel, lines, colours)
            _legend(figure, axes[0])
            path = folder / f"{plot.name}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
            drawn.add(plot.name)
    return drawn


def _lines(results: list[Result], panel: Panel) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Give the points of each peer that has more than one."""
    points: dict[str, dict[float, float]] = {}
    for each in results:
        at = place_of(each.sample)
        if each.measure == panel.measure and at is not None:
            scale = NS_PER_US if each.figure.unit == NS else 1
            points.setdefault(each.peer, {})[at] = each.figure.median / scale
    for peer, values in points.items():
        if len(values) > 1:
            yield peer, sorted(values.items())


def place_of(sample: str) -> float | None:
    """Return where a sample stands on the axis: its size, or what its name counts."""
    if sample in SIZES:
        return SIZES[sample]
    counted = COUNTED.search(sample)
    return None if counted is None or "pauses" in sample else int(counted[1].replace(",", ""))


def _colours(labels: set[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    others = sorted(each for each in labels if not each.startswith((PREFIX, FLOOR, MEMCPY)))
    colours = {label: colormaps["tab20"](number % 20) for number, label in enumerate(others)}
    for label in labels - set(others):
        colours[label] = OURS_COLOUR if label.startswith(PREFIX) else FLOOR_COLOUR
    return colours


def _draw(axis: Any, panel: Panel, lines: dict[str, Any], colours: dict[str, Any]) -> None:
    for label, points in lines.items():
        style = {"color": colours[label], "marker": "o", "label": label}
        if label.startswith(PREFIX):
            style |= {"linewidth": 2.2, "linestyle": STYLES.get(label, ":"), "zorder": 3}
        elif colours[label] == FLOOR_COLOUR:
            style |= {"linestyle": "-." if label == FLOOR else ":"}
        axis.plot(*zip(*points, strict=True), **style)
    if not panel.linear:
        axis.set_xscale("log", base=2 if panel.across == "processes" else 10)
        axis.set_yscale("log")
        axis.minorticks_off()
    axis.set_title(panel.title)
    axis.set_xlabel(panel.across)
    axis.set_ylabel(panel.upward)
    axis.grid(visible=True, linewidth=0.3)
    if panel.across in ("processes", "readers"):
        ticks = sorted({at for points in lines.values() for at, _ in points})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _legend(figure: Any, axes: Any) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.tight_layout()
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.5))
