"""How much do processes write that do nothing but put?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import together
from benchmarks.arena import Arena
from benchmarks.report import progress
from benchmarks.results import PER_SECOND, Result, collect
from benchmarks.samples import ARRAY_64K
from benchmarks.together import Work
from benchmarks.workloads import contention

MEASURE = "put 64 KiB, all together"


def run(arena: Arena) -> Iterator[Result]:
    """Let 1, 2, 4 and 8 processes put and delete arrays, by turns."""
    seconds = contention.QUICK_SECONDS if arena.plan.quick else contention.SECONDS
    logs = contention.measure(arena, Work((ARRAY_64K.make,), 0, seconds / 2), MEASURE)
    progress("")
    for processes in contention.PROCESSES:
        values = {
            (MEASURE, peer): [together.per_second(each) for each in rounds[processes]]
            for peer, rounds in logs.items()
        }
        yield from collect("writers", contention.named(processes), values, PER_SECOND)
