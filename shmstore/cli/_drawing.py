"""How is the picture of a segment written to a file?"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

import shmstore
from shmstore.cli import _picture, _words
from shmstore.cli._errors import CommandError
from shmstore.cli._picture import COLOURS, NAMES, Stretches

_WIDTH: Final = 960
_ROWS: Final = 32
_ROW_HEIGHT: Final = 14
_GAP: Final = 2
_MARGIN: Final = 20
_HEAD: Final = 64
_FOOT: Final = 44
_THINNEST: Final = 0.4
_MOST_TITLES: Final = 2000
_OLD_S: Final = 86400.0
_FONT: Final = "font-family='DejaVu Sans, Verdana, sans-serif'"


def write(path: Path, survey: shmstore.Survey, title: str) -> None:
    """Write a picture in the format that the suffix tells."""
    found = _picture.stretches(survey)
    if path.suffix.lower() == ".svg":
        path.write_text("\n".join(_svg(survey, found, title)) + "\n", encoding="utf-8")
    else:
        _png(path, found, title)


# --- SVG -----------------------------------------------------------------------------------------


def _svg(survey: shmstore.Survey, found: Stretches, title: str) -> Iterator[str]:
    """Yield the lines of a picture: the segment in rows, each extent with a tip for the mouse."""
    height = _HEAD + _ROWS * (_ROW_HEIGHT + _GAP) + _FOOT
    width = _WIDTH + 2 * _MARGIN
    yield (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}'>"
    )
    yield f"<rect width='{width}' height='{height}' fill='white'/>"
    yield f"<text x='{_MARGIN}' y='26' {_FONT} font-size='16'>{html.escape(title)}</text>"
    used = _words.size(int((found.end - found.start).sum()))
    what = f"{used} of {_words.size(found.capacity)} used; each row is {_row_size(found)}"
    grey = f"{_FONT} font-size='12' fill='#555'"
    yield f"<text x='{_MARGIN}' y='48' {grey}>{what}; paler is older</text>"
    for row in range(_ROWS):
        yield _rect(0, row, _WIDTH, COLOURS[_picture.FREE], 1.0) + "/>"
    titles = _titles(survey, found)
    for at in _wide_enough(found):
        yield from _extent(found, int(at), titles.get(int(at), ""))
    yield from _legend(_HEAD + _ROWS * (_ROW_HEIGHT + _GAP) + 24)
    yield "</svg>"


def _row_size(found: Stretches) -> str:
    return _words.size(found.capacity / _ROWS)


def _wide_enough(found: Stretches) -> Any:
    """Return the extents that can be seen; of many thin ones beside each other each n-th."""
    widths = (found.end - found.start) * (_ROWS * _WIDTH / found.capacity)
    seen = np.cumsum(np.minimum(widths, _THINNEST)) // _THINNEST
    first = np.diff(seen, prepend=-1) > 0
    return np.flatnonzero(first | (widths >= _THINNEST))


def _extent(found: Stretches, at: int, title: str) -> Iterator[str]:
    """Yield an extent, in as many rows as it takes."""
    scale = _ROWS * _WIDTH / found.capacity
    start, end = float(found.start[at] * scale), float(found.end[at] * scale)
    end = max(end, start + _THINNEST)
    colour = COLOURS[int(found.kind[at])]
    opacity = 1 - 0.6 * min(1.0, np.log1p(found.age[at]) / np.log1p(_OLD_S))
    row = int(start // _WIDTH)
    while start < end and row < _ROWS:
        stop = min(end, (row + 1) * _WIDTH)
        shape = _rect(start - row * _WIDTH, row, stop - start, colour, opacity)
        yield f"{shape}><title>{title}</title></rect>" if title else f"{shape}/>"
        start, row = stop, row + 1


def _rect(x: float, row: int, width: float, colour: str, opacity: float) -> str:
    y = _HEAD + row * (_ROW_HEIGHT + _GAP)
    return (
        f"<rect x='{_MARGIN + x:.2f}' y='{y}' width='{width:.2f}' height='{_ROW_HEIGHT}' "
        f"fill='{colour}' fill-opacity='{opacity:.2f}'"
    )


def _titles(survey: shmstore.Survey, found: Stretches) -> dict[int, str]:
    """Return what is told of the largest extents when the mouse is over them."""
    largest = np.argsort(-(found.end - found.start), kind="stable")[:_MOST_TITLES]
    by_place = {
        (int(survey.slot[found.row[at]]), int(survey.generation[found.row[at]])): int(at)
        for at in largest
    }
    titles = {}
    for info in survey.infos(found.row[largest].tolist()):
        at = by_place[info.slot, info.generation]
        kind, age = NAMES[int(found.kind[at])], _words.span(float(found.age[at]))
        name = _words.clean(info.key) if info.key is not None else "no key"
        text = f"{name}: {info.type}, {_words.size(info.stored_nbytes)}, {kind}, {age} old"
        titles[at] = html.escape(text)
    return titles


def _legend(y: int) -> Iterator[str]:
    x = _MARGIN
    for name, colour in zip(NAMES, COLOURS, strict=True):
        yield f"<rect x='{x}' y='{y - 10}' width='12' height='12' fill='{colour}'/>"
        yield f"<text x='{x + 18}' y='{y}' {_FONT} font-size='12'>{name}</text>"
        x += 110


# --- PNG -----------------------------------------------------------------------------------------


def _png(path: Path, found: Stretches, title: str) -> None:
    try:
        from matplotlib import colors  # noqa: PLC0415 - an extra, and slow to import
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.patches import Patch  # noqa: PLC0415
    except ModuleNotFoundError as error:
        what = "a picture in PNG needs matplotlib: pip install 'shmstore[png]', or write an .svg"
        raise CommandError(what) from error
    shares = _picture.cells(found, _ROWS * _WIDTH // 4)
    mixed = shares @ np.array([colors.to_rgb(colour) for colour in COLOURS])
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(mixed.reshape(_ROWS, -1, 3).clip(0, 1), aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(
        f"{title}: {_words.size(found.capacity)}, each row {_row_size(found)}", loc="left"
    )
    patches = [Patch(color=c, label=name) for name, c in zip(NAMES, COLOURS, strict=True)]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(NAMES), frameon=False)
    figure.savefig(path, dpi=120)
