"""How long does it take another process to get an object, time and again?"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import actor
from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, interleave
from benchmarks.crew import Team
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import ARRAY_64M, Sample


def run(arena: Arena) -> Iterator[Result]:
    """Put each sample once, and let the readers, attached before, get it by turns."""
    found = arena.choose(lambda kind: kind.gets)
    with arena.crew(found) as crew:
        for sample in arena.samples:
            progress(f"get: {sample.label}")
            times: dict[tuple[str, str], list[float]] = {}
            for flight in crew.flights(sample):
                with crew.set_up(sample.nbytes, flight) as teams:
                    timers = {
                        (measure, label): team.reader.timer(measure)
                        for label, team in teams.items()
                        for measure in crew.attempt(label, _put, team, sample) or ()
                    }
                    for key, values in interleave(timers, arena.plan).items():
                        times.setdefault(key, []).extend(values)
            yield from collect("get", sample.label, times)


def _put(team: Team, sample: Sample) -> list[str]:
    handle = team.owner.call(actor.put, sample.make)
    return team.reader.call(prepare, handle, sample)


def prepare(stand: Stand, dumped: bytes, sample: Sample) -> list[str]:
    """Prepare get by itself, and with reading one element and dropping the object."""
    get = stand.peer.getter(stand.peer.load(dumped))
    stand.operations = {"get, touch, drop": Operation(_touching(get, sample.touch))}
    if sample.nbytes <= ARRAY_64M.nbytes:
        stand.operations["get"] = Operation(get, undo=_ignore)
    return list(stand.operations)


def _touching(get: Callable[[], object], touch: Callable[[Any], object]) -> Callable[[], object]:
    return lambda: touch(get())


def _ignore(_: object) -> None:
    pass
