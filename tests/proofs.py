"""What do the tests prove, counted? The figures of docs/explanation/reliability.md.

Tests call `note`. It does nothing unless the environment variable SHMSTORE_NOTE_PROOFS names a JSON
file: then whole numbers are added to what the file has under that name, and texts replace it.
``make soak`` and ``make fuzz`` name one, run the long versions, and end with::

    python tests/proofs.py FILE

which takes the figures over into docs/explanation/reliability.json and writes the tables of
docs/explanation/reliability.md. Without FILE the tables are only written anew.

A name is "subject: row", or a subject alone. What a run has noted of a subject replaces all that
was known of this subject before, so a row that is no longer tested does not stay.

Concurrency: tests run in many processes; the file is changed under a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "SHMSTORE_NOTE_PROOFS"

Count = int | str
Rows = dict[str, dict[str, Count]]

DOCS: Final = Path(__file__).parent.parent / "docs" / "explanation"
KNOWN: Final = DOCS / "reliability.json"
PAGE: Final = DOCS / "reliability.md"

# <!-- proofs: subject, subject --> ... <!-- end of proofs -->
_PLACE: Final = re.compile(
    r"(<!-- (proofs|matrix): ([^>]+) -->\n).*?(<!-- end of proofs -->)", re.DOTALL
)


def note(name: str, **counts: Count) -> None:
    """Add to what this run has proved; nothing, where nobody has asked for it.

    Parameters
    ----------
    name
        "subject: row", or a subject alone.
    counts
        Whole numbers, which are added up, and texts, of which the last one stays.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows: Rows = json.loads(file.read() or "{}")
        row = rows.setdefault(name, {})
        for what, count in counts.items():
            before = row.get(what)
            adds = isinstance(count, int) and isinstance(before, int)
            row[what] = before + count if adds else count  # type: ignore[operator]
        file.seek(0)
        file.truncate()
        json.dump(rows, file, indent=1)


# --- the page -------------------------------------------------------------------------------------


def subject_of(name: str) -> str:
    """Return the part of a name that says what was proved."""
    return name.partition(": ")[0]


def take_over(known: dict[str, Any], noted: Rows) -> dict[str, Any]:
    """Return what is known after a run: its subjects replace those of earlier runs."""
    when = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    subjects = {subject_of(name) for name in noted}
    rows = {
        name: row
        for name, row in known.get("proofs", {}).items()
        if subject_of(name) not in subjects
    }
    runs = {**known.get("runs", {}), **dict.fromkeys(subjects, when)}
    return {"runs": dict(sorted(runs.items())), "proofs": dict(sorted({**rows, **noted}.items()))}


def rows_of(known: dict[str, Any], subject: str) -> Rows:
    """Return the rows of a subject, by what comes after its name."""
    return {
        name.partition(": ")[2] or subject: row
        for name, row in known.get("proofs", {}).items()
        if subject_of(name) == subject
    }


def when_run(known: dict[str, Any], subject: str) -> Iterator[str]:
    """Tell when, and on what, a subject was proved last."""
    run = known.get("runs", {}).get(subject)
    if run:
        yield f"Last full run: {run['date']}, Python {run['python']}, {run['system']}."
        yield ""


def as_table(known: dict[str, Any], subject: str) -> Iterator[str]:
    """Yield a table: a row per name, a column per count."""
    rows = rows_of(known, subject)
    if not rows:
        yield f"(no full run of *{subject}* has been noted yet)"
        return
    yield from when_run(known, subject)
    columns = list(dict.fromkeys(what for row in rows.values() for what in row))
    yield f"| {subject} | " + " | ".join(column.replace("_", " ") for column in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name, row in rows.items():
        yield f"| {name} | " + " | ".join(shown(row.get(column, "")) for column in columns) + " |"


def shown(count: Count) -> str:
    """Return a count as people read it."""
    return f"{count:,}" if isinstance(count, int) else count


def as_matrix(known: dict[str, Any], subject: str) -> Iterator[str]:
    """Yield a block of text: a line per count, a column per name, and the names as a legend."""
    rows = rows_of(known, subject)
    if not rows:
        yield f"(no full run of *{subject}* has been noted yet)"
        return
    yield from when_run(known, subject)
    points = sorted({point for row in rows.values() for point in row})
    total = sum(int(count) for row in rows.values() for count in row.values())
    yield f"{total:,} kills at {len(points):,} points in {len(rows):,} operations."
    yield ""
    yield "```text"
    for number, name in enumerate(rows, 1):
        yield f"{number:>3}  {name}"
    yield ""
    wide = max(map(len, points))
    widths = [
        1 + max(len(str(number)), *(len(str(count)) for count in row.values()))
        for number, row in enumerate(rows.values(), 1)
    ]
    numbers = range(1, len(rows) + 1)
    yield " " * wide + "".join(f"{n:>{width}}" for n, width in zip(numbers, widths, strict=True))
    for point in points:
        cells = zip(rows.values(), widths, strict=True)
        line = "".join(f"{row.get(point, '.'):>{width}}" for row, width in cells)
        yield f"{point:<{wide}}{line}"
    yield "```"


SHAPES: Final[dict[str, Callable[[dict[str, Any], str], Iterator[str]]]] = {
    "proofs": as_table,
    "matrix": as_matrix,
}


def render(page: str, known: dict[str, Any]) -> str:
    """Return the page with its tables written anew, between their markers."""

    def written(place: re.Match[str]) -> str:
        opening, shape, subjects, end = place.groups()
        tables = ["\n".join(SHAPES[shape](known, name)) for name in subjects.split(", ")]
        return opening + "\n" + "\n\n".join(tables) + "\n\n" + end

    return _PLACE.sub(written, page)


def as_text(known: dict[str, Any]) -> str:
    """Return JSON with a line per row, so that a change shows as one."""
    parts = []
    for part, rows in known.items():
        lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
        parts.append(json.dumps(part) + ": {\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(arguments: list[str]) -> None:
    """Take the figures of a run over, if one is given, and write the tables."""
    known = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}
    for path in arguments:
        noted = Path(path)
        if noted.exists():
            known = take_over(known, json.loads(noted.read_text(encoding="utf-8") or "{}"))
    KNOWN.write_text(as_text(known), encoding="utf-8")
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), known), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
