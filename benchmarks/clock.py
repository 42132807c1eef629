"""How long does an operation take?

Operations are timed in batches, so that reading the clock does not count, and in rounds: a round
times one batch of each operation, in random order, so that a disturbance of the machine hits all of
them alike. Slow operations sit out some rounds. The operations may live in several processes: what
is passed around here is a timer, which runs a batch, wherever that is, and says how long it took.
"""

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from time import monotonic, perf_counter_ns
from typing import Any, TypeVar

Key = TypeVar("Key")

# Runs a batch of so many operations; returns the nanoseconds that they took.
Timer = Callable[[int], float]

LONGEST_BATCH = 1 << 16
# Before a batch is timed, this part of it is run: caches may be another process's by then, and
# memory may be the system's again.
WARM_UP_SHARE = 8
# What takes longer is run once before, and in few rounds.
LONG_NS, LONG_ROUNDS = 250_000_000, 3
LEAST_ROUNDS = 2


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
    most_seconds : float
        When a set of operations has taken this long, there are only the rounds that must be.
    quick : bool
        Whether this is for a first look: small objects only, few of them.
    """

    seconds: float
    fewest_rounds: int
    most_rounds: int
    batch_ns: int
    most_seconds: float = 25.0
    quick: bool = False


FULL = Plan(seconds=3.0, fewest_rounds=5, most_rounds=30, batch_ns=2_000_000)
QUICK = Plan(
    seconds=0.6,
    fewest_rounds=3,
    most_rounds=15,
    batch_ns=1_000_000,
    most_seconds=15.0,
    quick=True,
)


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
    before : callable, optional
        Runs while the clock still stands still.
    """

    run: Callable[[], object]
    undo: Callable[[Any], object] | None = None
    before: Callable[[], object] | None = None


class TimerError(Exception):
    """What was to be timed failed."""


def interleave(timers: Mapping[Key, Timer], plan: Plan) -> dict[Key, list[float]]:
    """Time each operation by turns; return what each took, round by round, in nanoseconds.

    What fails is told, and left out.
    """
    share_ns = plan.seconds * 1e9 / max(len(timers), 1)
    schedules: dict[Key, _Schedule] = {}
    times: dict[Key, list[float]] = {}
    for key, timer in timers.items():
        try:
            schedules[key] = _schedule(timer, share_ns, plan)
            times[key] = []
        except TimerError as error:
            sys.stderr.write(f"\n{key} is left out:\n{error}\n")
    shuffled = random.Random(0)
    stop = monotonic() + plan.most_seconds
    for turn in range(plan.most_rounds):
        due = [key for key, each in schedules.items() if each.is_due(turn, plan.most_rounds)]
        if monotonic() > stop:
            due = [key for key in due if len(times[key]) < LEAST_ROUNDS]
        for key in shuffled.sample(due, len(due)):
            batch = schedules[key].batch
            times[key].append(timers[key](batch) / batch)
    return times


@dataclass(frozen=True, slots=True)
class _Schedule:
    """How often one operation is timed, and how often it is repeated each time."""

    rounds: int
    batch: int

    def is_due(self, turn: int, turns: int) -> bool:
        """Spread the rounds evenly over the turns."""
        return (turn + 1) * self.rounds // turns > turn * self.rounds // turns


def _schedule(timer: Timer, share_ns: float, plan: Plan) -> _Schedule:
    """Find out how long the operation takes; it is warm after that."""
    if timer(1) > LONG_NS:
        return _Schedule(LONG_ROUNDS, 1)
    batch = 1
    while (taken_ns := timer(batch)) < plan.batch_ns / 2 and batch < LONGEST_BATCH:
        batch *= 2
    rounds = int(share_ns / max(taken_ns, 1))
    return _Schedule(min(max(rounds, plan.fewest_rounds), plan.most_rounds), batch)


def time_batch(operation: Operation, batch: int) -> float:
    """Run a batch and return the nanoseconds that it took.

    A single one is run twice before: memory that the system has taken back meanwhile comes back at
    the first time, and is met through the mapping at the second.
    """
    before_ns = _batch_ns(operation, max(batch // WARM_UP_SHARE, 1))
    if batch == 1:
        if operation.before is None:  # else it begins anew each time
            before_ns = _batch_ns(operation, 1)
        if before_ns > LONG_NS:
            return before_ns
    return _batch_ns(operation, batch)


def _batch_ns(operation: Operation, batch: int) -> float:
    if operation.undo is None and operation.before is None:
        return _looped_ns(operation.run, batch)
    undo, before = operation.undo or _nothing, operation.before or _nothing
    return max(_stepped_ns(operation.run, undo, before, batch) - batch * CLOCK_NS, 1.0)


def _looped_ns(run: Callable[[], object], batch: int) -> int:
    """Time the loop as a whole."""
    start = perf_counter_ns()
    for _ in repeat(None, batch):
        run()
    return perf_counter_ns() - start


def _stepped_ns(
    run: Callable[[], object],
    undo: Callable[[object], object],
    before: Callable[[], object],
    batch: int,
) -> int:
    """Time each run by itself; the reading of the clock is still in the sum."""
    spent = 0
    for _ in repeat(None, batch):
        before()
        start = perf_counter_ns()
        result = run()
        spent += perf_counter_ns() - start
        undo(result)
        result = None  # dropped here, or the next assignment would drop it under the clock
    return spent


def _nothing(*_: object) -> None:
    pass


def _reading_the_clock_ns() -> float:
    return median(-(perf_counter_ns() - perf_counter_ns()) for _ in range(20_000))


CLOCK_NS = _reading_the_clock_ns()
