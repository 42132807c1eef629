"""How many objects cross a queue between two processes?

One process puts, another gets and touches one element of each; the queue holds 64 objects at most
(faster-fifo: as many bytes). The time is from the first put to the last get.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter_ns
from typing import Any

from benchmarks import apart
from benchmarks.arena import Arena
from benchmarks.report import progress
from benchmarks.results import PER_SECOND, Result, collect
from benchmarks.samples import ARRAY_1M, MIB, SMALL, Sample

MEASURE = "through a queue"
SIZE, BATCH = 64, 32
ROUNDS, QUICK_ROUNDS = 5, 1
SAMPLES = {SMALL.label: (SMALL, 51_200), ARRAY_1M.label: (ARRAY_1M, 2_048)}
QUICK_SHARE = 8
OURS, OURS_MANY = "shmstore", f"shmstore, {BATCH} at once"
MP, FIFO, FIFO_MANY = "mp.Queue", "faster-fifo", f"faster-fifo, {BATCH} at once"
MANY = (OURS_MANY, FIFO_MANY)
TIMEOUT_S = 60.0


def run(arena: Arena) -> Iterator[Result]:
    """Let the same objects cross each queue, each time in new processes."""
    ways = [OURS, OURS_MANY, MP]
    if find_spec("faster_fifo") is not None:
        ways += [FIFO, FIFO_MANY]
    else:
        arena.notes.append("queue: faster-fifo is not installed")
    for label in SAMPLES:
        rates: dict[tuple[str, str], list[float]] = {(MEASURE, way): [] for way in ways}
        for turn in range(QUICK_ROUNDS if arena.plan.quick else ROUNDS):
            for way in random.Random(turn).sample(ways, len(ways)):
                progress(f"queue: {label}, {way}")
                rates[MEASURE, way].append(apart.call(cross, way, label, arena.plan.quick))
        yield from collect("queue", label, rates, PER_SECOND)


def cross(way: str, label: str, quick: bool) -> float:  # noqa: FBT001 - comes as JSON
    """Let a child put objects, get them here; return how many there were per second."""
    sample, count = SAMPLES[label]
    count //= QUICK_SHARE if quick else 1
    if way in (OURS, OURS_MANY):
        import shmstore

        with (
            shmstore.Store.create(capacity=256 * MIB + 2 * SIZE * sample.nbytes) as store,
            store.queue("line", maxsize=SIZE) as line,
        ):
            return _race(line, partial(line.get_many, BATCH), way, sample, count)
    if way == MP:
        return _race(multiprocessing.Queue(SIZE), None, way, sample, count)
    fifo = import_module("faster_fifo").Queue(SIZE * max(sample.nbytes, MIB >> 10))
    get_many = partial(fifo.get_many, max_messages_to_get=BATCH)
    return _race(fifo, get_many, way, sample, count)


def _race(
    line: Any, get_many: Callable[..., list[Any]] | None, way: str, sample: Sample, count: int
) -> float:
    """Put in a child, get here, one by one or many at once; return objects per second."""
    started_ns = multiprocessing.Value("q")
    args = (line, way in MANY, sample, count, started_ns)
    child = multiprocessing.Process(target=_produce, args=args)
    child.start()
    touch, left = sample.touch, count
    if way in MANY:
        assert get_many is not None
        while left:
            values = get_many(timeout=TIMEOUT_S)
            for value in values:
                touch(value)
            left -= len(values)
            del value, values  # their memory is for what comes next
    else:
        for _ in range(count):
            touch(line.get(timeout=TIMEOUT_S))
    end_ns = perf_counter_ns()
    child.join()
    return count / (end_ns - started_ns.value) * 1e9


def _produce(line: Any, many: bool, sample: Sample, count: int, started_ns: Any) -> None:  # noqa: FBT001
    """Put the same object over and over."""
    value = sample.make()
    started_ns.value = perf_counter_ns()
    if many:
        for _ in range(count // BATCH):
            line.put_many([value] * BATCH, timeout=TIMEOUT_S)
    else:
        for _ in range(count):
            line.put(value, timeout=TIMEOUT_S)
