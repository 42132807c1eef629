"""How long do many small objects take in one call?"""

from collections.abc import Iterator

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, interleave
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import MIB, small_dict

COUNT = 1000
LABEL = f"{COUNT} small dicts"
PUT, GET = "put_many", "get_many, drop"


def run(arena: Arena) -> Iterator[Result]:
    """Put them in one call and delete them; put them once and let the reader get them."""
    progress("put_many, get_many")
    with arena.crew(arena.choose(lambda kind: kind.batches)) as crew, crew.set_up(MIB) as teams:
        puts = {}
        for label, team in teams.items():
            team.owner.call(prepare_puts)
            puts[PUT, label] = team.owner.timer(PUT)
        times = interleave(puts, arena.plan)
        gets = {}
        for label, team in teams.items():
            team.reader.call(prepare_gets, team.owner.call(put_once))
            gets[GET, label] = team.reader.timer(GET)
        times |= interleave(gets, arena.plan)
    yield from collect("many", LABEL, times)


def prepare_puts(stand: Stand) -> None:
    """Prepare to put and delete them."""
    put = stand.peer.many_putter([small_dict(number) for number in range(COUNT)])
    stand.operations[PUT] = Operation(put, undo=stand.peer.delete_many)


def put_once(stand: Stand) -> bytes:
    """Put those that are got; return what the reader needs."""
    return stand.peer.dump(stand.operations[PUT].run())


def prepare_gets(stand: Stand, dumped: bytes) -> None:
    """Prepare to get those that stay."""
    stand.operations[GET] = Operation(stand.peer.many_getter(stand.peer.load(dumped)))
