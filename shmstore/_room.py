"""Where does room come from when there is none?

In this order: deleted objects that nobody looks at any more, objects whose time is over, what dead
processes left, and where the store was created for it the objects that were not used for longest
(`on_full="evict"`; for "spill" see `_spilling`).

Which objects these are is told by LAST_USED: get writes there what NEXT_GENERATION is, a clock that
goes on with each put. Of a large store a random sample is looked at, as Redis does for its
"allkeys-lru": what is oldest among hundreds is almost always among the oldest of all, and costs the
same whatever the number of objects.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore import _announcing
from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.queues import are_of
from shmstore._catalog.table import extents_of, first_end, holds_extent
from shmstore._memory import layout as L
from shmstore._memory import news
from shmstore._sharing import counts
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    import numpy.typing as npt

    from shmstore._catalog.table import Table
    from shmstore._session import Session

    Rows = npt.NDArray[np.intp]


# Of so many slots at a time the oldest objects are found.
_SAMPLE: Final = 256

# Around so many of them room is looked for.
_CENTRES: Final = 8

_NEVER: Final = 1 << 64


# --- objects whose time is over ----------------------------------------------------------------


def expire(session: Session) -> int:
    """Delete all objects whose time is over; return how many there were."""
    words = session.words
    now = boottime_ns()
    if not words[L.W_NEXT_EXPIRY_NS] or now < words[L.W_NEXT_EXPIRY_NS]:
        return 0
    slots, count = session.slots, 0
    for group, rows in slots.due(now):
        ends = rows[:, L.S_EXPIRES_NS]
        over = states.are_present(rows[:, L.S_STATE]) & (ends != 0) & (ends <= np.uint64(now))
        first = group * session.index.geometry.expiry_group
        for row in np.flatnonzero(over).tolist():
            end(session, first + row)
            count += 1
        words[L.W_EXPIRIES + group] = first_end(rows)
    slots.note_first_end()
    _note_expired(session, count)
    return count


def expire_some(session: Session, count: int) -> None:
    """Look at the next `count` slots for objects whose time is over."""
    words = session.words
    table = session.slots.table()
    first = words[L.W_EXPIRY_HAND] if words[L.W_EXPIRY_HAND] < len(table) else 0
    rows = table[first : first + count]
    ends = rows[:, L.S_EXPIRES_NS]
    over = (ends != 0) & (ends <= np.uint64(boottime_ns())) & states.are_present(rows[:, L.S_STATE])
    words[L.W_EXPIRY_HAND] = first + len(rows)
    for row in np.flatnonzero(over).tolist():
        end(session, first + row)
        _note_expired(session, 1)


def end(session: Session, slot: int) -> None:
    """Take a published object away from new readers."""
    if session.words[session.slots.state_index(slot) + L.S_KIND] & L.KIND_NAMED:
        if session.words[L.W_WAITERS]:
            _announcing.key_ends(session, slot)
        session.keys.remove(slot)
    session.doom(slot)


def end_if_over(session: Session, slot: int) -> bool:
    """Take an object away whose time is over; False: it may stay."""
    if not session.slots.is_over(slot):
        return False
    end(session, slot)
    _note_expired(session, 1)
    return True


def _note_expired(session: Session, count: int) -> None:
    counts.add(session.words, L.W_EXPIRATIONS, count)
    counts.add(session.counts, L.SEAT_EXPIRATIONS, count)


# --- objects that were not used for long -------------------------------------------------------


def evict_for(session: Session, nbytes: int) -> bool:
    """Delete the least recently used objects until `nbytes` (0: a slot) must be free.

    Returns
    -------
    bool
        False when what nobody looks at is not enough; else it may be tried again, since somebody
        may have got one of the objects at this moment.
    """
    chosen = choose(session, nbytes)
    victims = withdraw(session, chosen)
    for slot in victims:
        end(session, slot)
    counts.add(session.words, L.W_EVICTIONS, len(victims))
    counts.add(session.counts, L.SEAT_EVICTIONS, len(victims))
    session.news.add_at_times(news.INFO, "it is full, what was not used for longest is evicted")
    if victims:
        session.reclaim(session.identity.max_objects)
    return bool(chosen)


def choose(session: Session, nbytes: int) -> list[int]:
    """Return slots of unpinned objects, least recently used first, that lie side by side.

    Parameters
    ----------
    nbytes
        Without these objects there is an extent of so many bytes; 0: one object will do.
    """
    table = session.slots.table()
    pinned = session.clients.pinned() | _must_stay(session, table)
    # An extent is looked for where extents are: there may be a million objects without one.
    count = session.allocator.count() if nbytes else len(table)
    rows = _sample(count)
    centres = _oldest(session, table, rows, pinned, with_extent=nbytes > 0)
    if not centres and len(rows) < count:
        centres = _oldest(session, table, np.arange(count), pinned, with_extent=nbytes > 0)
    if not nbytes:
        return centres[:1]
    best: _Window | None = None
    for centre in centres:
        before = best.last_used if best else _NEVER
        best = _window_around(session, centre, nbytes, pinned, before) or best
    if best is not None:
        return best.slots
    return _first_gap(table, pinned, nbytes, session.identity.capacity) if centres else []


def _must_stay(session: Session, table: Table) -> set[int]:
    """Return what is never given up: what was put into a queue is somebody's to take."""
    if session.spills or not session.words[L.W_QUEUES]:
        return set()
    return set(np.flatnonzero(are_of(table, L.KINDS_OF_QUEUES)).tolist())


def _sample(count: int) -> Rows:
    """Return the numbers of some of `count` rows, or of all if these are few."""
    if count <= _SAMPLE:
        return np.arange(count)
    drawn = os.urandom(_SAMPLE * L.WORD)
    numbers = np.frombuffer(drawn, np.uint64)
    return np.unique(numbers % np.uint64(count)).astype(np.intp)


def _oldest(
    session: Session, table: Table, rows: Rows, pinned: set[int], *, with_extent: bool
) -> list[int]:
    """Return those of the slots that were not used for longest and that nobody looks at.

    With `with_extent` the rows are blocks of the allocator.
    """
    if with_extent:
        rows = session.allocator.owners(rows)
        rows = rows[rows < len(table)]
    rows = rows[states.states_of(table[rows, L.S_STATE]) == states.READY]
    ages, ends = table[rows, L.S_LAST_USED], table[rows, L.S_EXPIRES_NS]
    ages[(ends != 0) & (ends <= np.uint64(boottime_ns()))] = 0
    rows = rows[np.argsort(ages, kind="stable")]
    return [slot for slot in rows.tolist() if slot not in pinned][:_CENTRES]


def _first_gap(table: Table, pinned: set[int], nbytes: int, capacity: int) -> list[int]:
    """Return the objects to give up between what must stay, wherever there is enough, or none.

    The last resort, for what is so large that around no old object there is room.
    """
    held = holds_extent(table)
    evictable = held & (states.states_of(table[:, L.S_STATE]) == states.READY)
    evictable[[slot for slot in pinned if slot < len(table)]] = False
    stays = table[held & ~evictable]
    starts = extents_of(stays)
    order = np.argsort(starts)
    edges = np.concatenate([starts[order], [np.uint64(capacity)]])
    begins = np.concatenate([[np.uint64(0)], (starts + stays[:, L.S_EXTENT_NBYTES])[order]])
    (wide,) = np.nonzero(edges >= begins + np.uint64(nbytes))
    if not len(wide):
        return []
    begin = begins[wide[0]]
    offsets = extents_of(table)
    ends = offsets + table[:, L.S_EXTENT_NBYTES]
    inside = (ends > begin) & (offsets < begin + np.uint64(nbytes))
    slots: list[int] = np.flatnonzero(evictable & inside).tolist()
    return slots


class _Window(NamedTuple):
    """Objects side by side, and the last time that one of them was used."""

    last_used: int
    slots: list[int]


def _window_around(
    session: Session, centre: int, nbytes: int, pinned: set[int], before: int
) -> _Window | None:
    """Return the objects that must go for an extent around one of them, or None.

    It grows to the side where it finds what is free, or else what was not used for longer, as long
    as all of them were last used before `before`.
    """
    blocks = session.allocator
    node = session.slots.node(centre)
    slots, last_used = [centre], _last_used(session, centre)
    size = blocks.nbytes(node)
    ends = {False: node, True: node}
    while size < nbytes and last_used < before:
        sides: list[tuple[int, bool, int]] = []
        for up, edge in ends.items():
            following = blocks.neighbour(edge, up=up)
            if following is None:
                continue
            slot = blocks.owner(following)
            if slot < 0:
                sides.append((0, up, following))
            elif slot not in pinned and _is_ready(session, slot, following):
                sides.append((_last_used(session, slot) + 1, up, following))
        if not sides:
            room_above = blocks.room_above(ends[True])
            return _Window(last_used, slots) if size + room_above >= nbytes else None
        age, up, following = min(sides)
        ends[up] = following
        size += blocks.nbytes(following)
        if age:
            slots.append(blocks.owner(following))
            last_used = max(last_used, age - 1)
    return _Window(last_used, slots) if last_used < before else None


def _last_used(session: Session, slot: int) -> int:
    """Return when an object was last used, 0 if its time is over."""
    words, at = session.words, session.slots.state_index(slot)
    ends = words[at + L.S_EXPIRES_NS]
    return 0 if ends and ends <= boottime_ns() else int(words[at + L.S_LAST_USED])


def _is_ready(session: Session, slot: int, node: int) -> bool:
    word = session.slots.word(slot)
    return states.state_of(word) == states.READY and session.slots.node(slot) == node


# --- out of circulation ------------------------------------------------------------------------


def withdraw(session: Session, slots: Iterable[int]) -> list[int]:
    """Take objects that nobody looks at out of circulation: SPILLED, although they are there.

    A reader (1) pins, (2) looks at the slot word. Here (3) the word changes, (4) comes the barrier,
    (5) the pins are loaded. Whoever was there before (4) is seen by (5), and the object goes back;
    whoever comes later sees the change, asks for the lock, and finds what became of the object.

    Returns
    -------
    list of int
        The slots that were withdrawn; the others are as they were.
    """
    words, at = session.words, session.slots.state_index
    slots = [slot for slot in slots if states.state_of(words[at(slot)]) == states.READY]
    for slot in slots:
        session.slots.leave_memory(slot)
    if slots:
        session.pass_barrier()
    pinned = session.clients.pinned()
    for slot in pinned.intersection(slots):
        session.slots.return_to_memory(slot)
    return [slot for slot in slots if slot not in pinned]
