"""How fast are puts and gets on this machine: `bench`.

Each figure is the median of many tries. What is compared with a pipe is the same in both ways: an
array goes to another process, which reads one byte of each page and answers.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Any, Final

import numpy as np

import shmstore
from shmstore.cli import _measuring, _words
from shmstore.cli._errors import CommandError
from shmstore.cli._output import Column, Output, is_terminal, note

SIZES: Final = (
    Column("nbytes", "ARRAY", "size"),
    Column("put_s", "PUT", "duration"),
    Column("put_rate", "PUT/S", "size"),
    Column("get_s", "GET", "duration"),
    Column("handover_s", "STORE", "duration"),
    Column("pipe_s", "PIPE", "duration"),
    Column("ratio", "PIPE:STORE", "number"),
)
SMALL: Final = (
    Column("seconds", "TIME", "duration"),
    Column("per_s", "PER-S", "rate"),
    Column("what", "SMALL OBJECTS"),
)
CROWD: Final = (
    Column("processes", "PROCESSES", "count"),
    Column("puts", "PUT/S", "rate"),
    Column("gets", "GET/S", "rate"),
)
LEGEND: Final = """\
PUT copies the array into the store; GET gives a view of it, whatever its size. STORE: put, tell
the other process, it gets and reads; PIPE: the same by pickle and a pipe. PROCESSES all put, or
all get, small arrays at once."""

_LARGE: Final = (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 28)
_QUICK: Final = _LARGE[:-1]
_ROOM: Final = 3
_SPARE_NBYTES: Final = 32 << 20
_MOST_PROCESSES: Final = 8


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Measure, in a store of its own that is gone afterwards."""
    sizes = _affordable(_QUICK if arguments.quick else _LARGE)
    budget_s = 0.15 if arguments.quick else 2.0
    options: dict[str, Any] = {"root": arguments.root, "group": arguments.group}
    with shmstore.Store.create(capacity=_ROOM * sizes[-1] + _SPARE_NBYTES, **options) as store:
        progress = _Progress()
        with _measuring.Peer(store.path, arguments.group) as peer:
            rows = []
            for nbytes in sizes:
                progress.tell(f"arrays of {_words.size(nbytes)}")
                rows.append(_measuring.of_size(store, peer, nbytes, budget_s))
        progress.tell("small objects")
        small = _measuring.of_small_objects(store, budget_s)
        crowd = []
        for processes in _crowds():
            progress.tell(_words.plural(processes, "process", "processes"))
            crowd.append(_measuring.of_crowd(store, processes, budget_s, arguments.group))
        progress.end()
    _show(_machine(budget_s), rows, small, crowd, output)
    return 0


def _affordable(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes for which there is room in shared memory, or fail."""
    status = os.statvfs("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp")  # noqa: PTH112, S108
    free = status.f_bavail * status.f_frsize
    found = tuple(size for size in sizes if _ROOM * size + _SPARE_NBYTES < free // 2)
    if not found:
        raise CommandError(f"only {_words.size(free)} of shared memory are free: too little")
    return found


def _crowds() -> list[int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [count for count in (1, 2, 4, 8) if count <= min(cores or 1, _MOST_PROCESSES)]


def _machine(budget_s: float) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "shmstore": shmstore.__version__,
        "memcpy_rate": _measuring.memcpy_rate(budget_s / 2),
    }


def _show(
    machine: dict[str, Any],
    rows: list[dict[str, Any]],
    small: list[dict[str, Any]],
    crowd: list[dict[str, Any]],
    output: Output,
) -> None:
    if output.as_json:
        output.json({**machine, "arrays": rows, "small": small, "processes": crowd})
        return
    facts = f"{machine['cores']} cores, Python {machine['python']}, NumPy {machine['numpy']}"
    copy = f"memory is copied at {_words.size(machine['memcpy_rate'])}/s"
    output.lines([f"{machine['machine']}, {facts}; {copy}", ""])
    output.table(SIZES, rows)
    output.lines([""])
    output.table(SMALL, small)
    output.lines([""])
    output.table(CROWD, crowd)
    output.lines(["", LEGEND])


class _Progress:
    """Says on a terminal what is being measured, on a line that goes away."""

    def __init__(self) -> None:
        self._shown = is_terminal(sys.stderr)

    def tell(self, text: str) -> None:
        """Say what is next."""
        if self._shown:
            print(f"\r\x1b[Kmeasuring {text} ...", end="", file=sys.stderr, flush=True)  # noqa: T201

    def end(self) -> None:
        """Remove the line."""
        if self._shown:
            note("\r\x1b[K\x1b[A")
