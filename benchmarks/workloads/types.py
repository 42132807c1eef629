"""How long does each handled type take beside pickle, and how many bytes does it move?

The floor is pickle 5 with buffers beside the stream and a copy of all of it into warm shared pages,
and `pickle.loads` over those. A pickle that copies by itself makes a high floor.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks import kinds
from benchmarks.arena import Arena
from benchmarks.clock import QUICK, Operation, Plan, Timing, interleave
from benchmarks.kinds import Kind
from benchmarks.peers import FLOOR, Peer
from benchmarks.peers.floor import Floor
from benchmarks.peers.ours import ByRef
from benchmarks.reader import Attached
from benchmarks.report import progress
from benchmarks.results import Result
from benchmarks.targets import GET_TYPE, PUT_TYPE
from benchmarks.volumes import Volume, of_pickle, of_serialized, private_nbytes

WORKLOAD = "types"

# There are many: each gets less time than a sample of the other workloads.
SHARE = 0.4
SPARE = 1 << 20

Timings = dict[str, tuple[Timing, int]]


def run(arena: Arena) -> Iterator[Result]:
    """Put and get an object of each kind in each size, by turns with pickle."""
    sizes = (kinds.SMALL, kinds.QUICK if arena.plan == QUICK else kinds.LARGE)
    plan = replace(arena.plan, seconds=arena.plan.seconds * SHARE)
    found, _ = kinds.find()
    for kind in found:
        for nbytes in kind.sizes or sizes:
            progress(f"types: {kind.named(nbytes)}")
            yield from _measure(arena, plan, kind, nbytes)


def _measure(arena: Arena, plan: Plan, kind: Kind, nbytes: int) -> Iterator[Result]:
    value = kind.of(nbytes)
    written = {ByRef.label: of_serialized(value)}
    pickled = of_pickle(value)
    if pickled is not None:
        written[FLOOR] = pickled
    room = max(sum(each) for each in written.values()) + SPARE
    wanted = [each for each in (Floor, ByRef) if each.label in written]
    with arena.peers(wanted, room) as peers:
        private = {label: _private_of_put(peer, value, room) for label, peer in peers.items()}
        operations = {
            label: Operation(peer.putter(value), undo=peer.delete) for label, peer in peers.items()
        }
        puts = interleave(operations, plan)
        handles = {label: peer.putter(value)() for label, peer in peers.items()}
        gets: Timings = arena.reader.call(time_drops, handles, nbytes, plan)
    label = kind.named(nbytes)
    for peer, moved in written.items():
        volume = Volume(nbytes, *moved, private[peer])
        yield Result(WORKLOAD, PUT_TYPE, label, peer, puts[peer], volume)
        timing, got = gets[peer]
        yield Result(WORKLOAD, GET_TYPE, label, peer, timing, Volume(nbytes, 0, 0, got))


def _private_of_put(peer: Peer, value: object, room: int) -> int:
    """Touch the shared pages, then put and see; a put takes back what was deleted before it."""
    filler = np.ones(room - SPARE // 2, np.uint8)
    put, put_filler, put_little = (peer.putter(each) for each in (value, filler, 0))
    for each in (put_filler, put):  # now what is loaded at the first put is there, too
        peer.delete(each())
    put_little()
    return private_nbytes(put, peer.delete, room - SPARE)


def time_drops(attached: Attached, handles: dict[str, object], payload: int, plan: Plan) -> Timings:
    """Time get of each peer's handle together with dropping the object; runs in the reader."""
    getters = {label: attached[label].getter(handle) for label, handle in handles.items()}
    private = {}
    for label, get in getters.items():
        get()
        private[label] = private_nbytes(get, _ignore, payload)
    timings = interleave({label: Operation(get) for label, get in getters.items()}, plan)
    return {label: (timings[label], private[label]) for label in handles}


def _ignore(_: object) -> None:
    pass
