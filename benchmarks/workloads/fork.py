"""How long does `os.fork` take in a process that looks at many objects?

The time of the call in the parent; the child leaves at once. The floor is a process that has as
many arrays over one mapping.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, Timer, interleave
from benchmarks.peers import FLOOR
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import MIB
from benchmarks.targets import BY_REF

COUNTS = (0, 1_000, 100_000)
QUICK_COUNTS = COUNTS[:2]
MEASURE = "fork"
LENGTH = 512


def run(arena: Arena) -> Iterator[Result]:
    """Get views, fork, and get more."""
    found = arena.choose(lambda kind: kind.label in (FLOOR, BY_REF))
    with arena.crew(found, readers=0) as crew, crew.set_up(MIB) as teams:
        for count in QUICK_COUNTS if arena.plan.quick else COUNTS:
            progress(f"fork: {count:,} views")
            timers: dict[tuple[str, str], Timer] = {}
            for label, team in teams.items():
                team.owner.call(prepare, count)
                timers[MEASURE, label] = team.owner.timer(MEASURE)
            yield from collect("fork", f"{count:,} views", interleave(timers, arena.plan))


def prepare(stand: Stand, count: int) -> None:
    """Hold so many views, and prepare to fork."""
    peer = stand.peer
    if "handle" not in stand.kept:
        stand.kept["handle"] = peer.put(np.arange(1, LENGTH + 1, dtype=float), "array")
    get = peer.getter(stand.kept["handle"])
    stand.kept["views"] = [get() for _ in range(count)]
    stand.operations[MEASURE] = Operation(_fork, undo=_reap)


def _fork() -> int:
    if not (pid := os.fork()):
        os._exit(0)
    return pid


def _reap(pid: int) -> None:
    os.waitpid(pid, 0)
