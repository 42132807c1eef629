"""What did each process do, when, and what did it see? A file per worker that a kill cannot take.

A record is five words of a mapped file: written before the operation (start, what, value) and after
it (result, end), without a system call, so that a process that is killed leaves its last operation
as one that has begun. The clock is CLOCK_MONOTONIC, one for all processes of the system.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from time import monotonic_ns
from typing import Final

import numpy as np
from history_checker import ANY, MISSING, OTHER, PRESENT, SAME, Operation

START, WHAT, VALUE, RESULT, END = range(5)
WORDS: Final = 5
WORD: Final = 8

PUT, PUT_IF_ABSENT, GET, CONTAINS, DISCARD, POP, SETDEFAULT, REF_GET, REF_DELETE = range(1, 10)
NAMES: Final = {
    PUT: "put",
    PUT_IF_ABSENT: "put if absent",
    GET: "get",
    CONTAINS: "in",
    DISCARD: "discard",
    POP: "pop",
    SETDEFAULT: "setdefault",
    REF_GET: "ref.get",
    REF_DELETE: "ref.delete",
}
_READS: Final = {GET, CONTAINS, REF_GET}

# The result of a put that found no room: it has not happened, and must not be seen.
FULL: Final = (1 << 64) - 1

_KEY_SHIFT: Final = 8


class Recorder:
    """The records of one worker.

    Parameters
    ----------
    path
        Its file, made here.
    most
        How many operations there is room for.
    """

    def __init__(self, path: Path, most: int) -> None:
        with path.open("xb") as file:
            file.truncate(most * WORDS * WORD)
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._at = 0
        self._end = most * WORDS

    def left(self) -> int:
        """Return how many more operations there is room for."""
        return (self._end - self._at) // WORDS

    def begin(self, kind: int, key: int, value: int = 0) -> int:
        """Record that an operation begins now; return its place."""
        words, at = self._words, self._at
        self._at = at + WORDS
        words[at + VALUE] = value
        words[at + START] = monotonic_ns()
        words[at + WHAT] = kind | key << _KEY_SHIFT
        return at

    def end(self, at: int, result: int, now: int) -> None:
        """Record what it returned, and when."""
        words = self._words
        words[at + RESULT] = result
        words[at + END] = now


def read(path: Path, over_ns: int) -> list[tuple[int, Operation]]:
    """Return (key, operation) for each record of a file that says anything about a key.

    Parameters
    ----------
    path
        The file of a recorder.
    over_ns
        When nothing that its process had begun could happen any more.
    """
    rows = np.fromfile(path, np.uint64).reshape(-1, WORDS)
    operations = []
    for start, what, value, result, end in rows[rows[:, WHAT] != 0].tolist():
        kind, key = what & ((1 << _KEY_SHIFT) - 1), what >> _KEY_SHIFT
        if end and result == FULL:
            continue
        if end:
            meaning = _ended(kind, value, result)
        elif kind in _READS:
            continue
        else:
            meaning = _cut_short(kind, value)
        operations.append((key, _operation(meaning, kind, start, end or over_ns, not end)))
    return operations


def room_in(path: Path) -> int:
    """Return how many records a file has room for yet."""
    rows = np.fromfile(path, np.uint64).reshape(-1, WORDS)
    return int(np.count_nonzero(rows[:, WHAT] == 0))


Meaning = tuple[int, int, int, str]


def _operation(
    meaning: Meaning,
    kind: int,
    start: int,
    end: int,
    optional: bool,  # noqa: FBT001 - passed along
) -> Operation:
    needs, leaves, value, text = meaning
    return Operation(start, end, needs, leaves, value, optional, f"{NAMES[kind]} {text}")


def _ended(kind: int, value: int, result: int) -> Meaning:
    """Return what an operation that has ended says of the register."""
    found = bool(result)
    if kind == PUT:
        return ANY, value, 0, f"{value:x}"
    if kind == PUT_IF_ABSENT:
        return (MISSING, value, 0, f"{value:x}") if found else (PRESENT, SAME, 0, "refused")
    if kind == GET:
        return result, SAME, 0, f"-> {result:x}"
    if kind == CONTAINS:
        return PRESENT if found else MISSING, SAME, 0, f"-> {found}"
    if kind == DISCARD:
        return PRESENT if found else MISSING, MISSING, 0, f"-> {found}"
    if kind == POP:
        return result, MISSING, 0, f"-> {result:x}"
    if kind == SETDEFAULT:
        mine = result == value
        return (MISSING if mine else result), (value if mine else SAME), 0, f"-> {result:x}"
    leaves = MISSING if kind == REF_DELETE else SAME
    if found:
        return value, leaves, 0, f"{value:x} -> found"
    return OTHER, SAME, value, f"{value:x} -> gone"


def _cut_short(kind: int, value: int) -> Meaning:
    """Return what an operation may have done whose process was killed in the middle."""
    needs, leaves = {
        PUT: (ANY, value),
        PUT_IF_ABSENT: (MISSING, value),
        SETDEFAULT: (MISSING, value),
        DISCARD: (PRESENT, MISSING),
        POP: (PRESENT, MISSING),
        REF_DELETE: (value, MISSING),
    }[kind]
    return needs, leaves, 0, f"{value:x}"
