"""How long does it take to put an object, with memory that was used before?"""

from collections.abc import Callable, Iterator

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, interleave
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import ARRAY_64M, Sample


def run(arena: Arena) -> Iterator[Result]:
    """Put and delete, or overwrite, the same object over and over, with a reader attached."""
    found = arena.choose(lambda kind: kind.puts)
    with arena.crew(found) as crew:
        for sample in arena.samples:
            progress(f"put: {sample.label}")
            times: dict[tuple[str, str], list[float]] = {}
            for flight in crew.flights(sample):
                with crew.set_up(sample.nbytes, flight) as teams:
                    timers = {
                        (measure, label): team.owner.timer(measure)
                        for label, team in teams.items()
                        for measure in crew.attempt(label, team.owner.call, prepare, sample) or ()
                    }
                    for key, values in interleave(timers, arena.plan).items():
                        times.setdefault(key, []).extend(values)
            yield from collect("put", sample.label, times)


def prepare(stand: Stand, sample: Sample) -> list[str]:
    """Prepare put by itself (deleted while the clock stands still), both together, overwriting."""
    put, delete = stand.peer.putter(sample.make()), stand.peer.delete
    stand.operations = {"put": Operation(put, undo=delete)}
    delete(put())
    if sample.nbytes <= ARRAY_64M.nbytes:  # else all of it is copying
        stand.operations["put, delete"] = Operation(_both(put, delete))
        if stand.kind.keyed:
            stand.operations["put, overwrite"] = Operation(put)
    return list(stand.operations)


def _both(put: Callable[[], object], delete: Callable[[object], object]) -> Callable[[], object]:
    return lambda: delete(put())
