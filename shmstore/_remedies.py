"""What would give a store that is full its memory back?"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from shmstore._catalog import states
from shmstore._census import Census, Flags, Sitter
from shmstore._inspection import queue_name
from shmstore._memory.folder import HOW_TO_ENLARGE
from shmstore._page import nbytes, plural, process
from shmstore._reading import make_plan
from shmstore._situation import Situation
from shmstore._tuples import NamedTuple
from shmstore.errors import ShmStoreError

_LITTLE: Final = 1 << 10
_FEW: Final = 3
_OLD: Final = ((86400, "a day"), (3600, "an hour"), (60, "a minute"))


class Rank(enum.IntEnum):
    """In which order advice is given: what costs least comes first."""

    SHORTAGE = enum.auto()
    RECOVER = enum.auto()
    VIEWS = enum.auto()
    WAITING = enum.auto()
    OBJECTS = enum.auto()
    ANY_OBJECTS = enum.auto()
    SEEN_OBJECTS = enum.auto()
    NEW_STORE = enum.auto()
    NEW_CHOICE = enum.auto()
    DEBUGGING = enum.auto()


class Remedy(NamedTuple):
    """What would help: its rank, how many bytes it gives, and how to say it."""

    rank: Rank
    nbytes: int
    text: str


def remedies(now: Situation) -> list[str]:
    """Return what would help, best first."""
    found = [remedy for source in _SOURCES for remedy in source(now)]
    return [r.text for r in sorted(found, key=lambda r: (r.rank, -r.nbytes))]


# --- what is short, if it is not memory --------------------------------------------------------


def _slots(now: Situation) -> Iterator[Remedy]:
    if not now.has_no_slot:
        return
    census = now.census
    small = census.are(states.READY) & (census.nbytes <= _LITTLE)
    yield Remedy(
        Rank.SHORTAGE,
        1,
        f"create the store with a larger max_objects: {now.max_objects:,} are all in use",
    )
    if small.sum() > 1:
        yield Remedy(
            Rank.SHORTAGE,
            0,
            f"put small objects together, as one list or dict: {int(small.sum()):,} have at most "
            f"{nbytes(_LITTLE)}",
        )


def _pages(now: Situation) -> Iterator[Remedy]:
    if not now.has_no_pages:
        return
    disk = now.disk
    largest = ", ".join(f"{path} ({nbytes(size)})" for path, size in disk.largest)
    if disk.others:
        named = f"; the largest: {largest}" if largest else ""
        yield Remedy(
            Rank.SHORTAGE,
            disk.others,
            f"remove what others have on {disk.path}: {nbytes(disk.others)}{named}",
        )
    yield Remedy(
        Rank.SHORTAGE,
        0,
        f"the file system has only {nbytes(disk.free)} free: {HOW_TO_ENLARGE.removeprefix('Or ')}",
    )


# --- memory that nobody would miss -------------------------------------------------------------


def _recovery(now: Situation) -> Iterator[Remedy]:
    census = now.census
    looked_at = census.looked_at(), census.looked_at(alive=False)
    doomed = census.are(states.DOOMED) & (looked_at[0] == 0) & (looked_at[1] > 0)
    lost = doomed | (census.half_made & census.left_by(with_the_dead=True))
    if lost.any():
        size = census.total(lost)
        dead = plural(len(now.dead), "dead process", "dead processes")
        yield Remedy(Rank.RECOVER, size, f"recover(): {nbytes(size)} held by {dead}")


def _views(now: Situation) -> Iterator[Remedy]:
    """What keeps memory from being used again: views of deleted objects, or of those that stay."""
    doomed = now.census.are(states.DOOMED)
    yield from _droppings(now, doomed, "deleted object", "")
    if now.leaves:
        stays = now.census.are(states.READY)
        yield from _droppings(now, stays, "object", f" that can then be {now.leaves}")
    if doomed.any() and not now.session.traced:
        text = "create the store with trace_pins=True: who_pins() and this page then tell the lines"
        yield Remedy(Rank.DEBUGGING, 0, f"{text} that got the views")


def _droppings(now: Situation, which: Flags, noun: str, effect: str) -> Iterator[Remedy]:
    """Objects by those who look at them: one process alone, or several together."""
    census = now.census
    lookers = census.looked_at()

    def dropping(who: str, slots: npt.NDArray[np.intp], places: str = "") -> Remedy:
        size = census.total(slots)
        what = f"{nbytes(size)} of {plural(len(slots), noun)}{effect}{places}"
        return Remedy(Rank.VIEWS, size, f"drop views in {who}: {what}")

    living = [sitter for sitter in census.sitters if sitter.alive]
    alone = [(s, s.slots[which[s.slots] & (lookers[s.slots] == 1)]) for s in living]
    alone = [(sitter, slots) for sitter, slots in alone if len(slots)]
    alone.sort(key=lambda both: -census.total(both[1]))
    for sitter, slots in alone[:_FEW]:
        who = process(sitter.client.pid, sitter.name, own=sitter.own)
        yield dropping(who, slots, "" if effect else _places(sitter))
    if rest := [slots for _, slots in alone[_FEW:]]:
        yield dropping(f"{len(rest):,} more processes, each for itself", np.concatenate(rest))
    shared = np.flatnonzero(which & (lookers > 1))
    if len(shared):
        pids = [str(s.client.pid) for s in living if np.isin(s.slots, shared).any()]
        yield dropping(f"all of pids {_some(pids)}", shared)


def _places(sitter: Sitter) -> str:
    places = sorted(sitter.sites, key=lambda site: -sitter.sites[site])
    return f", got at {_some(places)}" if places else ""


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _FEW:,} more" if len(texts) > _FEW else ""
    return ", ".join(texts[:_FEW]) + more


# --- memory that comes by waiting --------------------------------------------------------------


def _puts(now: Situation) -> Iterator[Remedy]:
    for client in now.clients:
        if client.half_made and client.alive:
            who = process(client.pid, client.name, own=client.own)
            size = client.half_made_nbytes
            puts = plural(client.half_made, "put")
            yield Remedy(
                Rank.WAITING, size, f"wait for {who}: {nbytes(size)} in {puts} that it has begun"
            )
    expired = now.census.expired
    if expired.any():
        size = now.census.total(expired)
        count = plural(int(expired.sum()), "object")
        yield Remedy(
            Rank.WAITING, size, f"trim(), or the next put: {nbytes(size)} of {count} that expired"
        )


def _queues(now: Situation) -> Iterator[Remedy]:
    """Objects that wait, by queue."""
    if not now.is_short:
        return
    census = now.census
    in_memory = census.are(states.READY)
    found = [census.queue == each for each in np.unique(census.queue[census.queue > 0])]
    found.sort(key=lambda which: -census.total(which & in_memory))
    for which in found[:_FEW]:
        name = queue_name(now.session, int(census.queue[which][0]))
        if name is not None:
            size = census.total(which & in_memory)
            objects = plural(int(which.sum()), "object")
            yield Remedy(
                Rank.WAITING,
                size,
                f"get what waits in queue {name!r}: {nbytes(size)} of {objects}; with a maxsize "
                "its producers would wait instead",
            )


# --- objects -----------------------------------------------------------------------------------


def _pieces(now: Situation) -> Iterator[Remedy]:
    if not now.is_in_pieces:
        return
    wanted = now.asked or min(now.free, 4 * now.census.largest_free)
    slots = _cheapest_run(now.census, now.loose, now.capacity, wanted)
    if len(slots):
        names = [_name_of(now, slot) for slot in slots[:_FEW].tolist()]
        more = f" and {len(slots) - _FEW:,} more" if len(slots) > _FEW else ""
        size = now.census.total(slots)
        yield Remedy(
            Rank.SHORTAGE,
            size,
            f"delete {', '.join(names)}{more}: {nbytes(size)} between free pieces; then "
            f"{nbytes(wanted)} fit",
        )


def _cheapest_run(census: Census, loose: Flags, capacity: int, wanted: int) -> npt.NDArray[np.intp]:
    """Return the neighbours with fewest bytes whose end would make a free extent of that size."""
    slots = np.flatnonzero(census.nbytes)
    slots = slots[np.argsort(census.offset[slots])]
    starts, sizes = census.offset[slots], census.nbytes[slots]
    below = np.append(0, (starts + sizes)[:-1])
    above = np.append(starts[1:], capacity)
    first = np.arange(len(slots))
    last = np.maximum(np.searchsorted(above, below + wanted), first)
    kept = ~loose[slots]
    kept_so_far = np.append(0, np.cumsum(kept))
    nbytes_so_far = np.append(0, np.cumsum(sizes))
    inside = last < len(slots)
    first, last = first[inside], last[inside]
    free = kept_so_far[last + 1] == kept_so_far[first]
    first, last = first[free], last[free]
    if not len(first):
        return slots[:0]
    best = int(np.argmin(nbytes_so_far[last + 1] - nbytes_so_far[first]))
    return slots[first[best] : last[best] + 1]


def _name_of(now: Situation, slot: int) -> str:
    """Return how a user finds an object."""
    word = int(now.census.words[slot])
    try:
        plan = make_plan(now.session, slot, word, deep=False)
    except ShmStoreError:
        plan = None
    if plan is not None and "key" in plan.header:
        return repr(plan.header["key"])
    return f"the unnamed object of generation {states.generation_of(word)}"


def _deletions(now: Situation) -> Iterator[Remedy]:
    if not now.is_short or now.is_too_small or now.leaves:
        return
    census = now.census
    loose = now.loose & ~census.expired
    for seconds, name in _OLD:
        old = loose & (census.age > seconds)
        if old.any():
            found = f"store.objects() if o.age > {seconds}"
            yield _deletion(census, old, f"delete objects older than {name}", found)
            break
    else:
        if loose.any():
            remedy = _deletion(census, loose, "delete objects that are not needed any more", "")
            yield remedy._replace(rank=Rank.ANY_OBJECTS)
    unknown = loose & ~census.named & census.left_by(with_the_dead=True)
    if unknown.any():
        pids = np.unique(census.pid[unknown]).tolist()
        found = f"store.objects() if o.key is None and o.owner_pid == {pids[0]}"
        text = f"delete unnamed objects of processes that have left (pid {_some_pids(pids)})"
        yield _deletion(census, unknown, text, found)
    looked_at = census.are(states.READY) & (census.looked_at() > 0)
    if looked_at.any():
        size = census.total(looked_at)
        count = plural(int(looked_at.sum()), "object")
        yield Remedy(
            Rank.SEEN_OBJECTS,
            size,
            f"delete what is looked at, and drop the views: {nbytes(size)} of {count}",
        )


def _deletion(census: Census, which: Flags, text: str, found: str) -> Remedy:
    size = census.total(which)
    count = plural(int(which.sum()), "object")
    gives = f"{nbytes(size)} of {count}" if size else count
    how = f": `store.delete_many(o.ref for o in {found})`" if found else ""
    return Remedy(Rank.OBJECTS, size, f"{text}: {gives} that nobody looks at{how}")


def _some_pids(pids: Sequence[int]) -> str:
    return _some([str(pid) for pid in pids])


# --- another store -----------------------------------------------------------------------------


def _creation(now: Situation) -> Iterator[Remedy]:
    if not now.is_short:
        return
    if not (now.has_no_slot or now.has_no_pages):
        wanted = max(now.capacity, now.asked or 0)
        text = f"create the store with a larger capacity than {nbytes(wanted)}"
        yield Remedy(Rank.NEW_STORE, 0, f"{text}: {now.disk.path} has {nbytes(now.disk.free)} free")
    if not (now.leaves or now.has_no_pages or now.is_too_small):
        yield Remedy(
            Rank.NEW_CHOICE,
            0,
            'create it with on_full="evict" (the least recently used objects go) or '
            'on_full="spill" (they go to disk and come back)',
        )


_SOURCES: Final = (
    _slots,
    _pages,
    _recovery,
    _views,
    _pieces,
    _puts,
    _queues,
    _deletions,
    _creation,
)
