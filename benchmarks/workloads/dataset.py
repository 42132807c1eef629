"""How much memory does a data set of many small records take with four workers that read it?

A torch `DataLoader` with four forked workers goes over all records twice, shuffled. Memory is the
proportional set size of the program and its workers when all of them have read, less what the same
program takes with a few records. The records lie in a plain list, or in a SharedList.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from time import perf_counter_ns

from benchmarks import apart
from benchmarks.arena import Arena
from benchmarks.report import progress
from benchmarks.results import NBYTES, Result, collect
from benchmarks.samples import MIB

MEMORY, TIME = "PSS of program and 4 workers", "both epochs"
COUNT, QUICK_COUNT = 300_000, 100_000
FEW = 1_000
ROUNDS, QUICK_ROUNDS = 2, 1
OURS, PLAIN = "shmstore, SharedList", "plain list"


def run(arena: Arena) -> Iterator[Result]:
    """Start programs that read the same records in both ways; nothing without torch."""
    if find_spec("torch") is None:
        arena.notes.append("dataset: torch is not installed")
        return
    count = QUICK_COUNT if arena.plan.quick else COUNT
    held: dict[tuple[str, str], list[float]] = {(MEMORY, way): [] for way in (OURS, PLAIN)}
    taken: dict[tuple[str, str], list[float]] = {(TIME, way): [] for way in (OURS, PLAIN)}
    for turn in range(QUICK_ROUNDS if arena.plan.quick else ROUNDS):
        for way in random.Random(turn).sample((OURS, PLAIN), 2):
            progress(f"dataset: {way}, {count:,} records")
            nbytes, elapsed_ns = apart.call(load, way, count)
            held[MEMORY, way].append(nbytes - apart.call(load, way, FEW)[0])
            taken[TIME, way].append(elapsed_ns)
    yield from collect("dataset", f"{count:,} dicts", held, NBYTES)
    yield from collect("dataset", f"{count:,} dicts", taken)


def load(way: str, count: int) -> tuple[int, int]:
    """Read so many records with a DataLoader; return bytes and nanoseconds."""
    import torch

    import shmstore

    records = (
        {"id": number, "name": f"sample {number}", "score": number / 7, "tags": ["a", "b"]}
        for number in range(count)
    )
    with shmstore.Store.create(capacity=512 * MIB) as store:
        loader = torch.utils.data.DataLoader(
            list(records) if way == PLAIN else store.get(store.put_list(records)),
            100,
            shuffle=True,
            num_workers=4,
            collate_fn=len,
            persistent_workers=True,
            multiprocessing_context="fork",
        )
        start = perf_counter_ns()
        for _ in range(2):
            assert sum(loader) == count
        taken = perf_counter_ns() - start
        held = apart.pss()
        del loader
    return held, taken
