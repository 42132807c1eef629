"""How do many processes fare that use one store at once?

Each process of a team is told to do the same work until a moment that they all know, and tells how
long each operation took; the clock is the same in all processes of a machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np

from benchmarks.actor import Stand
from benchmarks.crew import Actor
from benchmarks.peers import FLOOR

HEAD_START_NS = 30_000_000
OWN = 8


@dataclass(slots=True)
class Log:
    """What one process did.

    Attributes
    ----------
    taken : dict
        Nanoseconds of each operation, by its name.
    elapsed_ns : int
        From the start to the end of its last operation.
    """

    taken: dict[str, np.ndarray]
    elapsed_ns: int


@dataclass(frozen=True, slots=True)
class Work:
    """What each process does in a loop.

    Attributes
    ----------
    make : tuple of callables
        The objects that it puts, by turns.
    gets : int
        How many objects it gets after each put; they may be another process's.
    seconds : float
        For how long.
    pause_s : float
        How long it sleeps after each turn, on average.
    """

    make: tuple[Callable[[], object], ...]
    gets: int
    seconds: float
    pause_s: float = 0.0


def run(actors: Sequence[Actor], work: Work) -> list[Log]:
    """Let the processes work at once; return what each of them did."""
    start_ns = perf_counter_ns() + HEAD_START_NS
    for each in actors:
        each.start(do, work, start_ns)
    return [each.result() for each in actors]


def per_second(logs: Sequence[Log]) -> float:
    """Return the operations per second of all together."""
    return sum(sum(map(len, log.taken.values())) / log.elapsed_ns * 1e9 for log in logs)


def prepare(stand: Stand, work: Work, number: int) -> list[bytes]:
    """Put some objects for others to get; return what they need for that.

    A process that measures the floor gets memory of its own: what it shows is what the machine and
    the scheduler leave to processes that have nothing to do with each other.
    """
    if stand.kind.label == FLOOR:
        folder = stand.folder / f"own-{number}"
        folder.mkdir()
        stand.peer = stand.kind.create(folder, 4 << 20)
    stand.kept["number"] = number
    stand.kept["values"] = values = [make() for make in work.make]
    return [
        stand.peer.dump(stand.peer.put(value, f"shared-{number}-{place}"))
        for place, value in enumerate(values)
    ]


def share(stand: Stand, dumped: Sequence[bytes]) -> None:
    """Take what all processes may get; of the floor each gets only what it has put last."""
    shared = [] if stand.kind.label == FLOOR else dumped
    stand.kept["shared"] = [stand.peer.load(each) for each in shared]


@dataclass(slots=True)
class _Hand:
    """One process at work."""

    stand: Stand
    taken: dict[str, list[int]] = field(
        default_factory=lambda: {"put": [], "get": [], "delete": []}
    )

    def put(self, value: object, key: str) -> object:
        start = perf_counter_ns()
        handle = self.stand.peer.put(value, key)
        self.taken["put"].append(perf_counter_ns() - start)
        return handle

    def get(self, handle: object) -> None:
        start = perf_counter_ns()
        self.stand.peer.get(handle)
        self.taken["get"].append(perf_counter_ns() - start)

    def delete(self, handle: object) -> None:
        start = perf_counter_ns()
        self.stand.peer.delete(handle)
        self.taken["delete"].append(perf_counter_ns() - start)


def do(stand: Stand, work: Work, start_ns: int) -> Log:
    """Put one object, get others, delete one's own that is oldest; over and over."""
    hand = _Hand(stand)
    number, values = stand.kept["number"], stand.kept["values"]
    shared = stand.kept["shared"]
    chance = random.Random(number)
    mine: list[object] = []
    stop_ns = start_ns + int(work.seconds * 1e9)
    time.sleep(max(start_ns - perf_counter_ns(), 0) / 1e9)
    turn = 0
    while (now := perf_counter_ns()) < stop_ns:
        mine.append(hand.put(values[turn % len(values)], f"{number}-{turn % (2 * OWN)}"))
        for _ in range(work.gets):
            hand.get(chance.choice(shared) if shared else mine[-1])
        if len(mine) > OWN:
            hand.delete(mine.pop(0))
        if work.pause_s:
            time.sleep(chance.uniform(0, 2 * work.pause_s))
        turn += 1
    for handle in mine:
        stand.peer.delete(handle)
    return Log({name: np.array(each) for name, each in hand.taken.items()}, now - start_ns)
