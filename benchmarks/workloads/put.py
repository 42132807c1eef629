"""How long does it take to put an object, with memory that was used before?"""

from collections.abc import Callable, Iterator

from benchmarks.arena import Arena
from benchmarks.clock import Operation, interleave
from benchmarks.peers import Peer
from benchmarks.report import progress
from benchmarks.results import Result, collect


def run(arena: Arena) -> Iterator[Result]:
    """Put and delete, or overwrite, the same object over and over, with a reader attached."""
    kinds = [kind for kind in arena.kinds if kind.puts]
    for sample in arena.samples:
        progress(f"put: {sample.label}")
        value = sample.make()
        for operations in (_deleting, _overwriting):
            with arena.peers(kinds, sample.nbytes) as peers:
                timings = interleave(operations(peers, value), arena.plan)
            yield from collect("put", sample.label, timings)


def _deleting(peers: dict[str, Peer], value: object) -> dict[tuple[str, str], Operation]:
    """Return put by itself (deleted while the clock stands still), and both together."""
    operations = {}
    for label, peer in peers.items():
        put = peer.putter(value)
        operations["put", label] = Operation(put, undo=peer.delete)
        operations["put, delete", label] = Operation(_both(put, peer.delete))
    return operations


def _overwriting(peers: dict[str, Peer], value: object) -> dict[tuple[str, str], Operation]:
    """Return put under a key that is taken."""
    return {
        ("put, overwrite", label): Operation(peer.putter(value))
        for label, peer in peers.items()
        if peer.keyed
    }


def _both(put: Callable[[], object], delete: Callable[[object], object]) -> Callable[[], object]:
    return lambda: delete(put())
