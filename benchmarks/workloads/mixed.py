"""How long do operations take under a mixed load, most of them and the slowest of them?

Four processes put objects from a small dict to 1 MiB, get four times as often as they put, and
delete. Told are percentiles over all operations of all processes. The floor is four processes that
pickle and copy each for itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.arena import Arena
from benchmarks.results import Result, collect
from benchmarks.samples import ARRAY_1M, ARRAY_64K, BYTES, SMALL
from benchmarks.together import Work
from benchmarks.workloads import contention

PROCESSES = 4
PERCENTILES = (50, 90, 99, 99.9)
MAKERS = (
    *(SMALL.make, BYTES.make, SMALL.make, ARRAY_64K.make),
    *(SMALL.make, BYTES.make, BYTES.make, ARRAY_1M.make),
)
GETS = 4


def run(arena: Arena) -> Iterator[Result]:
    """Let the processes of each peer work, by turns."""
    seconds = contention.QUICK_SECONDS if arena.plan.quick else contention.SECONDS
    work = Work(MAKERS, GETS, 2 * seconds)
    logs = contention.measure(arena, work, "mixed load", (PROCESSES,))
    for percentile in PERCENTILES:
        values = {
            (f"mixed load, {verb}", peer): [
                float(np.percentile(np.concatenate([log.taken[verb] for log in each]), percentile))
                for each in rounds[PROCESSES]
            ]
            for peer, rounds in logs.items()
            for verb in ("put", "get")
        }
        yield from collect("mixed", f"p{percentile:g}", values)
