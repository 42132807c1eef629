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
import numpy.typing as npt
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
        with path.open("x+b") as file:
            file.truncate(most * WORDS * WORD)
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
    operations = []
    rows = _rows(path)
    for start, what, value, result, end in rows[rows[:, WHAT] != 0].tolist():
        kind, key = what & ((1 << _KEY_SHIFT) - 1), what >> _KEY_SHIFT
        if end:
            if result != FULL:
                operations.append((key, _operation(kind, value, start, end, result)))
        elif kind not in _READS:
            operations.append((key, _cut_short(kind, value, start, over_ns)))
    return operations


def room_in(path: Path) -> int:
    """Return how many records a file has room for yet."""
    return int(np.count_nonzero(_rows(path)[:, WHAT] == 0))


def kinds_in(path: Path) -> set[str]:
    """Return the names of the calls that were recorded in a file."""
    kinds = np.unique(_rows(path)[:, WHAT] & np.uint64((1 << _KEY_SHIFT) - 1))
    return {NAMES[kind] for kind in kinds.tolist() if kind}


def _rows(path: Path) -> npt.NDArray[np.uint64]:
    return np.fromfile(path, np.uint64).reshape(-1, WORDS)


def _operation(kind: int, value: int, start: int, end: int, result: int) -> Operation:
    """Return what an operation that has ended says of the register."""
    needs, leaves = {
        PUT: (ANY, value),
        PUT_IF_ABSENT: (MISSING, value) if result else (PRESENT, SAME),
        GET: (result, SAME),
        CONTAINS: (PRESENT if result else MISSING, SAME),
        DISCARD: (PRESENT, MISSING) if result else (MISSING, SAME),
        POP: (result, MISSING),
        SETDEFAULT: (MISSING, value) if result == value else (result, SAME),
        REF_GET: (value if result else OTHER, SAME),
        REF_DELETE: (value, MISSING) if result else (OTHER, SAME),
    }[kind]
    return Operation(
        start, end, needs, leaves, value, label=f"{NAMES[kind]} {value:x} -> {result:x}"
    )


def _cut_short(kind: int, value: int, start: int, over: int) -> Operation:
    """Return what an operation may have done whose process was killed in the middle."""
    needs, leaves = {
        PUT: (ANY, value),
        PUT_IF_ABSENT: (MISSING, value),
        SETDEFAULT: (MISSING, value),
        DISCARD: (PRESENT, MISSING),
        POP: (PRESENT, MISSING),
        REF_DELETE: (value, MISSING),
    }[kind]
    return Operation(
        start, over, needs, leaves, value, optional=True, label=f"{NAMES[kind]} {value:x}"
    )
