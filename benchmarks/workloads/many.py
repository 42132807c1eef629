"""How long do many small objects take in one call?"""

from collections.abc import Iterator

from benchmarks.arena import Arena
from benchmarks.clock import Operation, interleave
from benchmarks.peers import Peer
from benchmarks.reader import time_many_gets
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import MIB, small_dict

COUNT = 1000
LABEL = f"{COUNT} small dicts"


def run_put(arena: Arena) -> Iterator[Result]:
    """Put them in one call; delete them while the clock stands still."""
    progress("put_many")
    values = [small_dict(number) for number in range(COUNT)]
    with arena.peers(_batching(arena), MIB) as peers:
        operations = {
            ("put_many", label): Operation(peer.many_putter(values), undo=peer.delete_many)
            for label, peer in peers.items()
        }
        timings = interleave(operations, arena.plan)
    yield from collect("put_many", LABEL, timings)


def run_get(arena: Arena) -> Iterator[Result]:
    """Put them once; let the reader get them all in one call, over and over."""
    progress("get_many")
    values = [small_dict(number) for number in range(COUNT)]
    with arena.peers(_batching(arena), MIB) as peers:
        handles = {label: peer.many_putter(values)() for label, peer in peers.items()}
        timings = arena.reader.call(time_many_gets, handles, arena.plan)
    yield from collect("get_many", LABEL, timings)


def _batching(arena: Arena) -> list[type[Peer]]:
    return [kind for kind in arena.kinds if kind.batches]
