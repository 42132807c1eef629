"""How does a segment look: `map`."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np

from shmstore.cli import _drawing, _picture, _stores, _words
from shmstore.cli._errors import UsageError
from shmstore.cli._output import Column, Output, note
from shmstore.cli._picture import NAMES, SIGNS, Stretches

GROUPS: Final = (
    Column("by", "BY"),
    Column("extents", "EXTENTS", "count"),
    Column("nbytes", "BYTES", "size"),
    Column("share", "SHARE", "share"),
    Column("name", "CLASS"),
)
_COLOURS: Final = ("bright_black", "blue", "green", "red", "yellow")
_SHADES: Final = ((60.0, "bold "), (3600.0, ""), (np.inf, "dim "))
_WIDEST: Final = 96
_LABEL: Final = 10


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Draw a segment; 1 when a part of the store cannot be read."""
    with _stores.looked_at(arguments) as store:
        survey = store.survey()
        if arguments.output is not None:
            path = Path(arguments.output)
            if path.suffix.lower() not in (".svg", ".png"):
                raise UsageError(f"{path}: a picture is a .svg or a .png")
            _drawing.write(path, survey, str(store.path))
        title = str(store.path)
    found = _picture.stretches(survey)
    rows = [
        {**group._asdict(), "share": group.nbytes / found.capacity}
        for group in _picture.groups(found)
    ]
    if output.as_json:
        output.json(_as_json(found, rows))
    elif arguments.output is None:
        _draw(found, title, arguments.lines, output)
        output.table(GROUPS, [row for row in rows if row["extents"]])
    else:
        note(f"{arguments.output}: {_words.plural(len(found.start), 'extent')}")
    for problem in survey.problems:
        note(f"shmstore: {_words.clean(problem)}")
    return int(bool(survey.problems))


def _as_json(found: Stretches, rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = zip(
        found.start.tolist(),
        (found.end - found.start).tolist(),
        found.kind.tolist(),
        found.age.tolist(),
        strict=True,
    )
    extents = [
        {"offset": offset, "nbytes": nbytes, "kind": NAMES[kind], "age": age}
        for offset, nbytes, kind, age in columns
    ]
    return {"capacity": found.capacity, "extents": extents, "classes": rows}


def _draw(found: Stretches, title: str, lines: int, output: Output) -> None:
    terminal = shutil.get_terminal_size((_WIDEST, 24)).columns
    width = max(16, min(_WIDEST, terminal - _LABEL - 1))
    each = found.capacity / (lines * width)
    output.styled(
        f"[bold]{os.path.basename(title)}[/bold]  ",  # noqa: PTH119 - a piece of text
        f"{os.path.basename(title)}  ",  # noqa: PTH119
        f"{_words.size(found.capacity)}, each sign {_words.size(each)}",
    )
    kinds = _kinds(found, lines * width)
    shades = _picture.cell_ages(found, lines * width)
    for line in range(lines):
        part = slice(line * width, (line + 1) * width)
        label = f"{_words.size(line * width * each):>{_LABEL - 2}}  "
        if output.fancy:
            markup = "".join(_coloured(kinds[part].tolist(), shades[part].tolist()))
            output.styled(f"[dim]{label}[/dim]{markup}", "")
        else:
            output.lines([label + "".join(SIGNS[kind] for kind in kinds[part].tolist())])
    legend = "  ".join(f"{sign} {name}" for sign, name in zip(SIGNS, NAMES, strict=True))
    coloured = "  ".join(
        f"[{colour}]{'·' if not at else '█'}[/] {name}"
        for at, (colour, name) in enumerate(zip(_COLOURS, NAMES, strict=True))
    )
    output.styled(
        f"{' ' * _LABEL}{coloured}[dim]; dim is older than an hour[/dim]\n",
        f"{' ' * _LABEL}{legend}\n",
    )


def _kinds(found: Stretches, count: int) -> Any:
    """Return what each sign stands for: what has most of it, but something rather than nothing."""
    shares = _picture.cells(found, count)
    kinds = shares.argmax(axis=1)
    most = shares[:, 1:].argmax(axis=1) + 1
    return np.where((kinds == 0) & (shares[:, 1:].sum(axis=1) > 0.02), most, kinds)


def _coloured(kinds: list[int], ages: list[float]) -> Iterator[str]:
    styles = map(_style, kinds, ages)
    for style, same in groupby(zip(styles, kinds, strict=True), key=itemgetter(0)):
        signs = "".join("█" if kind else "·" for _, kind in same)
        yield f"[{style}]{signs}[/]"


def _style(kind: int, age: float) -> str:
    dated = kind and np.isfinite(age)
    shade = next(s for bound, s in _SHADES if age <= bound) if dated else ""
    return shade + _COLOURS[kind]
