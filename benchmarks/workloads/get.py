"""How long does it take another process to get an object, time and again?"""

from collections.abc import Iterator

from benchmarks.arena import Arena
from benchmarks.reader import time_gets
from benchmarks.report import progress
from benchmarks.results import Result, collect


def run(arena: Arena) -> Iterator[Result]:
    """Put each sample once, and let the reader, attached before, get it by turns from each peer."""
    kinds = [kind for kind in arena.kinds if kind.gets]
    for sample in arena.samples:
        progress(f"get: {sample.label}")
        value = sample.make()
        with arena.peers(kinds, sample.nbytes) as peers:
            handles = {label: peer.putter(value)() for label, peer in peers.items()}
            timings = arena.reader.call(time_gets, handles, sample.touch, arena.plan)
        yield from collect("get", sample.label, timings)
