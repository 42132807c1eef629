"""Is this machine set up well for stores, and what is to be done where it is not: `doctor`.

A finding is "ok", a "note" (worth to know), a "warning" (will hurt some day) or a "problem" (does
not work). Warnings and problems make the exit code 1, and each has a remedy.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from shmstore.cli import _diagnoses, _leftovers, _words
from shmstore.cli._output import Output, is_terminal

BAD: Final = ("warning", "problem")
_MARGIN: Final = " " * 25
_STYLES: Final = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}

Diagnosis = Callable[[argparse.Namespace], Iterator["_diagnoses.Finding"]]

DIAGNOSES: Final[Sequence[tuple[str, Diagnosis]]] = (
    ("versions", _diagnoses.versions),
    ("shared memory", _diagnoses.shared_memory),
    ("memory limit", _diagnoses.memory_limit),
    ("process limits", _diagnoses.process_limits),
    ("large pages", _diagnoses.large_pages),
    ("logging out", _diagnoses.logging_out),
    ("self-test", _diagnoses.self_test),
    ("stores", _leftovers.stores),
    ("leftovers", _leftovers.leftovers),
)


class _Row(NamedTuple):
    level: str
    topic: str
    finding: str
    remedy: str


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Look at everything; 1 when there is a warning or a problem."""
    rows = []
    for topic, diagnose in DIAGNOSES:
        for found in diagnose(arguments):
            rows.append(_Row(found.level, topic, found.text, found.remedy))
            if not output.as_json:
                _tell(rows[-1], output)
    if output.as_json:
        output.json([row._asdict() for row in rows])
    bad = [row for row in rows if row.level in BAD]
    if not output.as_json:
        verdict = _words.plural(len(bad), "thing to do", "things to do") if bad else "all is well"
        output.styled(f"[bold]{verdict}[/bold]", verdict)
    return int(bool(bad))


def _tell(row: _Row, output: Output) -> None:
    level, topic = f"{row.level:<9}", f"{row.topic.replace(' ', '-'):<16}"
    style = _STYLES[row.level]
    finding, *more = _wrapped(row.finding, len(_MARGIN))
    output.styled(f"[{style}]{level}[/]{topic}", level + topic, finding)
    for line in more:
        output.lines([_MARGIN + line])
    if row.remedy:
        remedy, *more = _wrapped(row.remedy, len(_MARGIN) + 3)
        output.styled(f"{_MARGIN}[bold]->[/bold] ", f"{_MARGIN}-> ", remedy)
        output.lines(f"{_MARGIN}   {line}" for line in more)


def _wrapped(text: str, used: int) -> list[str]:
    """Return text in lines as wide as the terminal; where there is none it stays one line."""
    text = _words.clean(text)
    if not is_terminal(sys.stdout):
        return [text]
    return textwrap.wrap(text, max(30, shutil.get_terminal_size().columns - used)) or [""]
