"""Is this machine set up well for stores, and what is to be done where it is not: `doctor`.

A finding is "ok", a "note" (worth to know), a "warning" (will hurt some day) or a "problem" (does
not work). Warnings and problems make the exit code 1, and each has a remedy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from shmstore.cli import _diagnoses, _leftovers, _words
from shmstore.cli._output import Output

BAD: Final = ("warning", "problem")
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
    output.styled(f"[{style}]{level}[/]{topic}", level + topic, _words.clean(row.finding))
    if row.remedy:
        output.styled(f"{'':<25}[bold]->[/bold] ", f"{'':<25}-> ", _words.clean(row.remedy))
