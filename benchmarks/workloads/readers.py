"""What do several readers of one object take, in time and in memory?

All readers get the same array at once and read all of it. Memory is the proportional set size of
all processes, of the owner's and of servers that it started, while all hold the array; what it was
before the array was put is taken off. It is told in copies of the array.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter_ns

import numpy as np

from benchmarks import actor
from benchmarks.actor import Stand
from benchmarks.apart import pss
from benchmarks.arena import Arena
from benchmarks.crew import Team
from benchmarks.report import progress
from benchmarks.results import TIMES, Result, collect
from benchmarks.samples import ARRAY_64M, ARRAY_512M, SMALL, Sample

READERS = (1, 2, 4, 8)
QUICK_READERS = (1, 4)
ROUNDS = 3
TWICE = ("shmstore, new ref", "LMDB writemap")  # they read as their neighbours do
TIME, MEMORY = "get and read all, at once", "PSS of all, in copies"


def run(arena: Arena) -> Iterator[Result]:
    """Measure each peer with one reader, and with more."""
    sample = ARRAY_64M if arena.plan.quick else ARRAY_512M
    counts = QUICK_READERS if arena.plan.quick else READERS
    found = arena.choose(
        lambda kind: (
            kind.gets and kind.shared and kind.label not in TWICE and sample.nbytes <= kind.largest
        )
    )
    values: dict[int, dict[tuple[str, str], list[float]]] = {count: {} for count in counts}
    with arena.crew(found, readers=max(counts)) as crew:
        for label in list(crew.teams):  # one after the other: some hold a copy in each reader
            with crew.set_up(sample.nbytes, [label]) as teams:
                before = (
                    crew.attempt(label, _prepare, teams[label], sample) if label in teams else None
                )
                for count in counts if before is not None else ():
                    progress(f"readers: {label}, {count}")
                    measured = crew.attempt(label, _measure, teams[label], count)
                    if measured is None:
                        break
                    times, held = measured
                    copies = [(each - before) / sample.nbytes for each in held]
                    values[count] |= {(TIME, label): times, (MEMORY, label): copies}
    for count in counts:
        name = f"{sample.label}, {count} reader{'s' if count > 1 else ''}"
        yield from collect("readers", name, _of(values[count], TIME))
        yield from collect("readers", name, _of(values[count], MEMORY), TIMES)


def _of(values: dict[tuple[str, str], list[float]], measure: str) -> dict:
    return {key: each for key, each in values.items() if key[0] == measure}


def _prepare(team: Team, sample: Sample) -> int:
    """Make the array, let everybody get something small; return the memory that all have then."""
    team.owner.call(make, sample)
    small = team.owner.call(actor.put, SMALL.make, "small")
    for each in team.readers:
        each.call(read, small)
        each.call(drop)
    return _pss(team)


def _measure(team: Team, count: int) -> tuple[list[float], list[int]]:
    times: list[float] = []
    held: list[int] = []
    readers = team.readers[:count]
    for number in range(ROUNDS):
        handle = team.owner.call(put_kept, f"large-{number}")
        for each in readers:
            each.start(read, handle)
        times.append(max(each.result() for each in readers))
        if not held:  # it is the same in each round, and takes longer than the reading
            held.append(_pss(team))
        for each in readers:
            each.call(drop)
        team.owner.call(delete, handle)
    return times, held


def make(stand: Stand, sample: Sample) -> None:
    """Make the object that is put."""
    stand.kept["value"] = sample.make()


def put_kept(stand: Stand, key: str) -> bytes:
    """Put that object; return what the readers need to get it."""
    return stand.peer.dump(stand.peer.put(stand.kept["value"], key))


def read(stand: Stand, dumped: bytes) -> float:
    """Get an object, read all of it and keep it; return the nanoseconds."""
    start = perf_counter_ns()
    stand.kept["got"] = got = stand.peer.get(stand.peer.load(dumped))
    if isinstance(got, np.ndarray):
        got.sum()
    return float(perf_counter_ns() - start)


def drop(stand: Stand) -> None:
    """Drop what was got."""
    stand.kept.pop("got", None)


def delete(stand: Stand, dumped: bytes) -> None:
    """Delete the object."""
    stand.peer.delete(stand.peer.load(dumped))


def _pss(team: Team) -> int:
    """Return the memory of all processes of a team."""
    return pss(*(each.pid for each in team.all))
