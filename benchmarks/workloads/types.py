"""How long does each handled type take beside pickle, and how many bytes does it move?

The floor is pickle 5 with buffers beside the stream and a copy of all of it into warm shared pages,
and `pickle.loads` over those. A pickle that copies by itself makes a high floor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import kinds
from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, Plan, interleave
from benchmarks.crew import Crew, Team
from benchmarks.kinds import Kind
from benchmarks.peers import FLOOR
from benchmarks.report import progress
from benchmarks.results import Result, Volume, summary
from benchmarks.targets import BY_REF, GET_TYPE, PUT_TYPE
from benchmarks.volumes import of_pickle, of_serialized, private_nbytes
from shmstore.serialization import register_generic

WORKLOAD = "types"

# There are many: each gets less time than a sample of the other workloads.
SHARE = 0.2
SPARE = 1 << 20

register_generic(kinds.Track)


@dataclass(frozen=True, slots=True)
class Moved:
    """What one process found out about an object."""

    nbytes_written: tuple[int, int]
    nbytes_private: int


def run(arena: Arena) -> Iterator[Result]:
    """Put and get an object of each kind in each size, by turns with pickle."""
    sizes = (kinds.SMALL, kinds.QUICK if arena.plan.quick else kinds.LARGE)
    plan = replace(arena.plan, seconds=arena.plan.seconds * SHARE)
    found, _ = kinds.find()
    with arena.crew(arena.choose(lambda kind: kind.label in (FLOOR, BY_REF))) as crew:
        for kind in found:
            for nbytes in kind.sizes or sizes:
                progress(f"types: {kind.named(nbytes)}")
                yield from _measure(crew, plan, kind, nbytes)


def _measure(crew: Crew, plan: Plan, kind: Kind, nbytes: int) -> Iterator[Result]:
    room = 4 * nbytes + SPARE  # a pickle in band may hold more than the data
    with crew.set_up(room) as teams:
        moved = {
            label: told
            for label, team in teams.items()
            if (told := team.owner.call(prepare_put, kind.label, nbytes)) is not None
        }
        puts = interleave({each: teams[each].owner.timer(PUT_TYPE) for each in moved}, plan)
        private = {label: _prepare_get(teams[label], nbytes) for label in moved}
        gets = interleave({each: teams[each].reader.timer(GET_TYPE) for each in moved}, plan)
    name = kind.named(nbytes)
    for label, each in moved.items():
        volume = Volume(nbytes, *each.nbytes_written, each.nbytes_private)
        yield Result(WORKLOAD, PUT_TYPE, name, label, summary(puts[label]), volume)
        volume = Volume(nbytes, 0, 0, private[label])
        yield Result(WORKLOAD, GET_TYPE, name, label, summary(gets[label]), volume)


def _prepare_get(team: Team, nbytes: int) -> int:
    return team.reader.call(prepare_get, team.owner.call(put_once), nbytes)


def prepare_put(stand: Stand, label: str, nbytes: int) -> Moved | None:
    """Make an object and prepare to put it; return the bytes that this moves, None: it cannot."""
    value = next(kind for kind in kinds.KINDS if kind.label == label).of(nbytes)
    written = of_pickle(value) if stand.kind.label == FLOOR else of_serialized(value)
    if written is None:
        return None
    put = stand.peer.putter(value)
    stand.operations[PUT_TYPE] = Operation(put, undo=stand.peer.delete)
    return Moved(written, _private_of_put(stand, sum(written) + SPARE))


def _private_of_put(stand: Stand, needed: int) -> int:
    """Touch the shared pages, then put and see; a put takes back what was deleted before it."""
    peer, put = stand.peer, stand.operations[PUT_TYPE].run
    put_filler, put_little = peer.putter(np.ones(needed, np.uint8)), peer.putter(0)
    for each in (put_filler, put):  # now what is loaded at the first put is there, too
        peer.delete(each())
    put_little()
    return private_nbytes(put, peer.delete, needed)


def put_once(stand: Stand) -> bytes:
    """Put the object that is got."""
    return stand.peer.dump(stand.operations[PUT_TYPE].run())


def prepare_get(stand: Stand, dumped: bytes, nbytes: int) -> int:
    """Prepare to get and drop an object; return the memory that this takes."""
    get = stand.peer.getter(stand.peer.load(dumped))
    get()
    private = private_nbytes(get, _ignore, nbytes)
    stand.operations[GET_TYPE] = Operation(get)
    return private


def _ignore(_: object) -> None:
    pass
