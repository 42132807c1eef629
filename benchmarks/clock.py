"""How long does an operation take?

Operations are timed in batches, so that reading the clock does not count, and in rounds: a round
times one batch of each operation, in random order, so that a disturbance of the machine hits all of
them alike. Slow operations sit out some rounds.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from statistics import median, quantiles
from time import perf_counter_ns
from typing import TypeVar

Key = TypeVar("Key")

WARM_UPS = 2
LONGEST_BATCH = 1 << 16


@dataclass(frozen=True, slots=True)
class Plan:
    """How much time goes into a set of operations.

    Attributes
    ----------
    seconds : float
        For all of them together. Each gets an equal share: fast ones are timed in more rounds.
    fewest_rounds, most_rounds : int
        Bounds on the number of rounds, whatever they take.
    batch_ns : int
        An operation is repeated until a batch of it takes about this long.
    """

    seconds: float
    fewest_rounds: int
    most_rounds: int
    batch_ns: int


FULL = Plan(seconds=4.0, fewest_rounds=5, most_rounds=60, batch_ns=2_000_000)
QUICK = Plan(seconds=0.5, fewest_rounds=3, most_rounds=15, batch_ns=1_000_000)


@dataclass(frozen=True, slots=True)
class Operation:
    """Something to time.

    Attributes
    ----------
    run : callable
        What the clock sees.
    undo : callable, optional
        Takes what `run` returned, while the clock stands still. Where it is given, the result is
        also dropped outside the clock; otherwise dropping it is part of the operation.
    """

    run: Callable[[], object]
    undo: Callable[[object], object] | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """What one operation took, over all rounds, in nanoseconds."""

    median_ns: float
    p10_ns: float
    p90_ns: float
    rounds: int
    batch: int


def interleave(operations: Mapping[Key, Operation], plan: Plan) -> dict[Key, Timing]:
    """Time each operation by turns."""
    share_ns = plan.seconds * 1e9 / len(operations)
    schedules = {key: _schedule(each, share_ns, plan) for key, each in operations.items()}
    times: dict[Key, list[float]] = {key: [] for key in operations}
    shuffled = random.Random(0)
    for turn in range(plan.most_rounds):
        due = [key for key, each in schedules.items() if each.is_due(turn, plan.most_rounds)]
        for key in shuffled.sample(due, len(due)):
            batch = schedules[key].batch
            times[key].append(_batch_ns(operations[key], batch) / batch)
    return {key: _summary(times[key], schedules[key].batch) for key in operations}


@dataclass(frozen=True, slots=True)
class _Schedule:
    """How often one operation is timed, and how often it is repeated each time."""

    rounds: int
    batch: int

    def is_due(self, turn: int, turns: int) -> bool:
        """Spread the rounds evenly over the turns."""
        return (turn + 1) * self.rounds // turns > turn * self.rounds // turns


def _schedule(operation: Operation, share_ns: float, plan: Plan) -> _Schedule:
    """Find out how long the operation takes; it is warm after that."""
    for _ in range(WARM_UPS):
        _batch_ns(operation, 1)
    batch = 1
    while (taken_ns := _batch_ns(operation, batch)) < plan.batch_ns / 2 and batch < LONGEST_BATCH:
        batch *= 2
    rounds = int(share_ns / taken_ns)
    return _Schedule(min(max(rounds, plan.fewest_rounds), plan.most_rounds), batch)


def _summary(times: list[float], batch: int) -> Timing:
    deciles = quantiles(times, n=10, method="inclusive")
    return Timing(median(times), deciles[0], deciles[-1], len(times), batch)


def _batch_ns(operation: Operation, batch: int) -> float:
    if operation.undo is None:
        return _looped_ns(operation.run, batch)
    return _stepped_ns(operation.run, operation.undo, batch) - batch * CLOCK_NS


def _looped_ns(run: Callable[[], object], batch: int) -> int:
    """Time the loop as a whole."""
    start = perf_counter_ns()
    for _ in repeat(None, batch):
        run()
    return perf_counter_ns() - start


def _stepped_ns(run: Callable[[], object], undo: Callable[[object], object], batch: int) -> int:
    """Time each run by itself; the reading of the clock is still in the sum."""
    spent = 0
    for _ in repeat(None, batch):
        start = perf_counter_ns()
        result = run()
        spent += perf_counter_ns() - start
        undo(result)
        result = None  # dropped here, or the next assignment would drop it under the clock
    return spent


def _reading_the_clock_ns() -> float:
    return median(-(perf_counter_ns() - perf_counter_ns()) for _ in range(20_000))


CLOCK_NS = _reading_the_clock_ns()
