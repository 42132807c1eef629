"""How long does the first get of a large array take, in a process that has the store open?

The process has attached and got something small, so everything is imported and open. Then it gets
the array for the first time, and reads all of it three times: the first reading meets its pages for
the first time, the later ones should cost what reading an array of one's own does.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks import actor
from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.crew import LEADERS
from benchmarks.peers import FLOOR
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import ARRAY_64M, ARRAY_512M, SMALL, Sample

FIRST = "first get"
READ = ("read all, first time", "read all, second time", "read all, third time")
OWN = "array of one's own"
MOST_ROUNDS, QUICK_ROUNDS = 9, 3
OTHERS_ROUNDS = 4  # of what no target is about


def run(arena: Arena) -> Iterator[Result]:
    """Attach, get, read and detach, by turns."""
    found = arena.choose(lambda kind: kind.gets)
    sample = ARRAY_64M if arena.plan.quick else ARRAY_512M
    times: dict[tuple[str, str], list[float]] = {}
    with arena.crew(found) as crew:
        for flight in crew.flights(sample):
            with crew.set_up(sample.nbytes, flight) as teams:
                rounds = QUICK_ROUNDS if arena.plan.quick else MOST_ROUNDS
                handles = {
                    label: [
                        team.owner.call(actor.put, each.make, each.label)
                        for each in (SMALL, sample)
                    ]
                    for label, team in teams.items()
                }
                teams[FLOOR].owner.call(make_own, sample)
                addresses = {label: team.owner.call(address) for label, team in teams.items()}
                for turn in range(rounds):
                    for label, team in teams.items():
                        if turn >= OTHERS_ROUNDS and not label.startswith(LEADERS):
                            continue
                        progress(f"{FIRST}: {label}")
                        taken = team.reader.call(
                            attach_and_get, addresses[label], *handles[label], sample
                        )
                        for measure, value in taken.items():
                            times.setdefault((measure, label), []).append(value)
                    own = teams[FLOOR].owner.call(read_own)
                    times.setdefault((READ[-1], OWN), []).append(own)
    yield from collect("first_get", sample.label, times)


def address(stand: Stand) -> object:
    """Return what the reader needs to attach again."""
    return stand.peer.address


def attach_and_get(
    stand: Stand, where: Any, small: bytes, large: bytes, sample: Sample
) -> dict[str, float]:
    """Do it once; return the nanoseconds by measure."""
    del sample
    actor.close(stand)
    actor.attach(stand, where)
    peer = stand.peer
    if stand.kind.shared:  # the floor has one object only
        peer.getter(peer.load(small))()
    get = peer.getter(peer.load(large))
    start = perf_counter_ns()
    got = get()
    taken = {FIRST: float(perf_counter_ns() - start)}
    return taken | {measure: _reading_ns(got) for measure in READ}


def make_own(stand: Stand, sample: Sample) -> None:
    """Make an array that lies on the heap, and read it."""
    stand.kept[OWN] = sample.make()
    read_own(stand)


def read_own(stand: Stand) -> float:
    """Return what it takes to read it again."""
    return _reading_ns(stand.kept[OWN])


def _reading_ns(values: np.ndarray) -> float:
    start = perf_counter_ns()
    values.sum()
    return float(perf_counter_ns() - start)
