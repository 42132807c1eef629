"""How long does it take to hand an object over to a process that waits for it?

A puts an object and tells B, over a pipe where the peer has nothing for that; B gets it, reads one
element and answers. *There and back* is all of that; *one way* ends when B has read the element,
by the clock that both share, and begins when A begins to put. B is asleep when it has waited for
some milliseconds; it is just waiting when it has for some microseconds. The object is deleted and B
drops it while the clock stands still. A and B stay on a processor each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import LONG_NS, Timer, interleave
from benchmarks.crew import Crew, Team
from benchmarks.line import MOMENT, Line
from benchmarks.machine import pin
from benchmarks.peers import FLOOR
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import SMALL, Sample

THERE_AND_BACK = "there and back"
# How long B has waited when A puts, in nanoseconds.
ONE_WAY = {"one way, B asleep": 2_000_000, "one way, B just waiting": 30_000}
BYTE = "a byte, pipe"
SPIN_NS = 200_000
# Trips that do not count: memory that the system has taken back comes back, and is met.
WARM_UPS = 2


def run(arena: Arena) -> Iterator[Result]:
    """Hand over each sample, there and back, and small ones one way, by turns."""
    found = arena.choose(lambda kind: kind.hands)
    with arena.crew(found) as crew:
        for sample in arena.samples:
            if sample.package != "numpy":
                continue
            progress(f"handoff: {sample.label}")
            times: dict[tuple[str, str], list[float]] = {}
            for flight in crew.flights(sample):
                with crew.set_up(sample.nbytes, flight) as teams:
                    timers = _timers(crew, teams, sample)
                    for key, values in interleave(timers, arena.plan).items():
                        times.setdefault(key, []).extend(values)
            yield from collect("handoff", sample.label, times)


def _timers(crew: Crew, teams: dict[str, Team], sample: Sample) -> dict[tuple[str, str], Timer]:
    timers: dict[tuple[str, str], Timer] = {}
    for label, team in teams.items():
        if crew.attempt(label, _prepare, team, sample) is None:
            continue
        timers[THERE_AND_BACK, label] = _Trips(team, label, THERE_AND_BACK)
        for measure in ONE_WAY if sample is SMALL else ():
            timers[measure, label] = _Trips(team, label, measure)
            if label == FLOOR:
                timers[measure, BYTE] = _Trips(team, BYTE, measure)
        if label == FLOOR:
            timers[THERE_AND_BACK, BYTE] = _Trips(team, BYTE, THERE_AND_BACK)
    return timers


def _prepare(team: Team, sample: Sample) -> bool:
    for each in team.all:
        each.call(prepare, sample, each is team.owner)
    return True


@dataclass(slots=True)
class _Trips:
    """Makes trips that do not count, unless they are long even so, and those that do."""

    team: Team
    label: str
    measure: str
    taken_ns: float = 0.0

    def __call__(self, batch: int) -> float:
        extra = 0 if self.taken_ns > LONG_NS else WARM_UPS
        own_consumer = self.team.found.kind.own_consumer
        if not own_consumer:
            self.team.reader.start(answer, self.label, batch + extra)
        taken_ns = self.team.owner.call(hand_over, self.label, self.measure, extra, batch)
        if not own_consumer:
            self.team.reader.result()
        self.taken_ns = taken_ns / batch
        return taken_ns


def prepare(stand: Stand, sample: Sample, owner: bool) -> None:  # noqa: FBT001 - which end this is
    """Make the object, and open the pipes."""
    pin(0 if owner else 1)
    stand.kept["sample"] = sample
    if owner:
        stand.kept["value"] = sample.make()
    stand.peer.line = stand.kept["line"] = Line(stand.folder, owner=owner)


def hand_over(stand: Stand, label: str, measure: str, extra: int, batch: int) -> float:
    """Be A; return the nanoseconds of all trips, as if each had taken as long as the median."""
    ends = _Byte(stand.kept["line"]) if label == BYTE else stand.peer
    value, pause_ns = stand.kept["value"], ONE_WAY.get(measure, 0)
    taken = []
    for trip in range(batch + extra):
        _wait(pause_ns)
        start = perf_counter_ns()
        handle = ends.hand_over(value, f"trip-{trip}")
        read_at = ends.answered(f"trip-{trip}")
        stop = read_at if pause_ns else perf_counter_ns()
        taken.append(stop - start)
        ends.delete(handle)
    return float(median(taken[extra:])) * batch


def answer(stand: Stand, label: str, trips: int) -> None:
    """Be B."""
    ends = _Byte(stand.kept["line"]) if label == BYTE else stand.peer
    touch: Callable[[object], object] = bool if label == BYTE else stand.kept["sample"].touch
    for trip in range(trips):
        value = ends.take(f"trip-{trip}")
        touch(value)
        ends.answer(f"trip-{trip}", perf_counter_ns())
        del value


class _Byte:
    """The pipe and nothing else."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def hand_over(self, value: object, key: str) -> None:
        del value, key
        self._line.send(b"x")

    def take(self, key: str) -> bytes:
        del key
        return self._line.receive()

    def answer(self, key: str, read_at: int) -> None:
        del key
        self._line.send(MOMENT.pack(read_at))

    def answered(self, key: str) -> int:
        del key
        return MOMENT.unpack(self._line.receive())[0]

    def delete(self, handle: object) -> None:
        pass


def _wait(pause_ns: int) -> None:
    stop = perf_counter_ns() + pause_ns
    if pause_ns > SPIN_NS:
        time.sleep(pause_ns / 1e9)
    while perf_counter_ns() < stop:
        pass
