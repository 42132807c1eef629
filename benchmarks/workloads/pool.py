"""What does a process pool take for a large argument of many calls, and for large results?

Two workers, by default start method. *Argument*: eight calls get the same 256 MiB array, and sum a
part of it each. *Results*: 100 calls return 64 MiB each; the caller reads one element of each and
drops it. Memory is the highest proportional set size of the program and its workers, over what it
was before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent import futures
from time import perf_counter_ns

import numpy as np

from benchmarks import apart
from benchmarks.arena import Arena
from benchmarks.report import progress
from benchmarks.results import NBYTES, Result, collect
from benchmarks.samples import MIB

TIME, MEMORY = "map", "highest PSS"
OURS, STOCK = "shmstore", "concurrent.futures"
ARGUMENT, RESULTS = "256 MiB argument, 8 calls", "100 results of 64 MiB"
SMALL_ARGUMENT, FEW_RESULTS = "16 MiB argument, 8 calls", "8 results of 4 MiB"
WORKERS, CALLS = 2, 8
ROUNDS, QUICK_ROUNDS = 2, 1


def run(arena: Arena) -> Iterator[Result]:
    """Run the same calls in both pools, each time in new processes."""
    if arena.plan.quick:
        tasks = {SMALL_ARGUMENT: (argue, 16), FEW_RESULTS: (return_all, 8, 4)}
    else:
        tasks = {ARGUMENT: (argue, 256), RESULTS: (return_all, 100, 64)}
    for sample, (task, *sizes) in tasks.items():
        taken: dict[tuple[str, str], list[float]] = {(TIME, way): [] for way in (OURS, STOCK)}
        held: dict[tuple[str, str], list[float]] = {(MEMORY, way): [] for way in (OURS, STOCK)}
        for turn in range(QUICK_ROUNDS if arena.plan.quick else ROUNDS):
            for way in random.Random(turn).sample((OURS, STOCK), 2):
                progress(f"pool: {sample}, {way}")
                elapsed_ns, nbytes = apart.call(task, way, *sizes)
                taken[TIME, way].append(elapsed_ns)
                held[MEMORY, way].append(nbytes)
        yield from collect("pool", sample, taken)
        yield from collect("pool", sample, held, NBYTES)


def argue(way: str, size: int) -> tuple[int, int]:
    """Give many calls the same array; return nanoseconds and bytes."""
    array = np.arange(1, size * MIB // 8 + 1, dtype=float)

    def work(pool: futures.Executor) -> None:
        assert all(pool.map(_part_of, [array] * CALLS, range(CALLS)))

    return _watch(way, work)


def return_all(way: str, count: int, size: int) -> tuple[int, int]:
    """Get many arrays as results; return nanoseconds and bytes."""

    def work(pool: futures.Executor) -> None:
        for array in pool.map(_made, [size * MIB // 8] * count):
            assert array[-1] == 1

    return _watch(way, work)


def _watch(way: str, work: Callable[[futures.Executor], None]) -> tuple[int, int]:
    import shmstore

    kind = shmstore.ProcessPoolExecutor if way == OURS else futures.ProcessPoolExecutor
    with kind(WORKERS) as pool:
        assert all(pool.map(_part_of, [np.ones(CALLS)] * WORKERS, range(WORKERS)))  # all are up
        with apart.Peak() as peak:
            start = perf_counter_ns()
            work(pool)
            elapsed_ns = perf_counter_ns() - start
    return elapsed_ns, peak.nbytes


def _part_of(array: np.ndarray, number: int) -> float:
    return float(array[number::CALLS].sum())


def _made(length: int) -> np.ndarray:
    return np.ones(length)
