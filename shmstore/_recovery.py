"""What can a dead process leave behind, and how is each thing undone?

=======================  ======================================================================
left behind              undone by
=======================  ======================================================================
a lock held              the kernel; the next holder finds DIRTY and calls `mend`
a half-made change       `mend`: key index, allocator, lists and counts made anew from the slots
a half-made put          `bury`: the slot is WRITING and its owner's seat is not locked
pins                     `bury`: they lie in a seat that is not locked
a seat                   `bury`: its row is cleared, then its file removed
a seat without a row     `bury`, `mend`: the file is removed
an overwritten key       `mend`: of two published ones with one key the younger stays
=======================  ======================================================================

Each step may be repeated, and may itself be cut short at any point: what tells that there is work
to do (DIRTY, a state word, a row) is cleared last.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from shmstore._catalog import states
from shmstore._catalog.table import are_placed, extents_of, holds_extent
from shmstore._info import Recovered
from shmstore._memory import layout as L

if TYPE_CHECKING:
    from shmstore._session import Session

Table = npt.NDArray[np.uint64]

_NEVER: Final = (1 << 64) - 1


def bury(session: Session) -> Recovered:
    """Undo what dead clients left. Requires: the store lock.

    Returns
    -------
    Recovered
        How many clients were found dead, how many of their puts were half done, and the bytes that
        came back.
    """
    used = session.index.words[L.W_USED]
    try:
        dead = session.clients.bury(session.row)
        session.clients.remove_strays()
    finally:  # rows may have gone before a seat file could not be looked at, or removed
        puts = _doom_abandoned(session)
    session.reclaim(session.identity.max_objects)
    return Recovered(len(dead), puts, used - session.index.words[L.W_USED])


def mend(session: Session) -> None:
    """Make everything that is derived anew from the slot table. Requires: the store lock."""
    session.clients.bury(session.row)
    session.clients.remove_strays()
    table = session.slots.table()
    _end_older_twins(session, table)
    _rebuild_extents(session, table)
    _rebuild_lists(session, table)
    present = states.are_present(table[:, L.S_STATE])
    named = present & (table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0)
    words = session.index.words
    words[L.W_OBJECTS] = int(present.sum())
    words[L.W_NAMED] = int(named.sum())
    _count_special(session, table, present)
    words[L.W_NEXT_GENERATION] = max(
        words[L.W_NEXT_GENERATION],
        int(states.generations_of(table[:, L.S_STATE]).max(initial=0)) + 1,
    )
    session.keys.rebuild(np.flatnonzero(named).tolist())
    _doom_abandoned(session)


def _count_special(session: Session, table: Table, present: npt.NDArray[np.bool_]) -> None:
    """Count the objects in files, and find out which object expires first."""
    words = session.index.words
    spilled = states.states_of(table[:, L.S_STATE]) == states.SPILLED
    words[L.W_SPILLED] = int(spilled.sum())
    words[L.W_SPILLED_BYTES] = int(table[spilled, L.S_EXTENT_NBYTES].sum())
    expiries = table[present, L.S_EXPIRES_NS]
    words[L.W_NEXT_EXPIRY_NS] = int(expiries[expiries != 0].min(initial=_NEVER))
    if words[L.W_NEXT_EXPIRY_NS] == _NEVER:
        words[L.W_NEXT_EXPIRY_NS] = 0
    words[L.W_EXPIRY_HAND] = 0


def _doom_abandoned(session: Session) -> int:
    """Doom the half-made puts of clients that are gone; return how many there were."""
    table = session.slots.table()
    writing = np.flatnonzero(states.states_of(table[:, L.S_STATE]) == states.WRITING).tolist()
    owners = {client.serial for client in session.clients.rows()}
    abandoned = [slot for slot in writing if int(table[slot, L.S_OWNER]) not in owners]
    for slot in abandoned:
        session.doom(slot)
    return len(abandoned)


def _end_older_twins(session: Session, table: Table) -> None:
    """Of published objects with the same key leave the youngest: an overwrite was cut short."""
    youngest: dict[tuple[int, int], int] = {}
    for _, slot in session.slots.present():
        if not int(table[slot, L.S_KIND]) & L.KIND_NAMED:
            continue
        digest = int(table[slot, L.S_DIGEST]), int(table[slot, L.S_DIGEST + 1])
        older = youngest.get(digest)
        if older is not None:
            table[older, L.S_STATE] = states.move(int(table[older, L.S_STATE]), states.DOOMED)
        youngest[digest] = slot


def _rebuild_extents(session: Session, table: Table) -> None:
    """Give the allocator exactly the extents of the slots that have one.

    An extent that cannot be right is taken from its slot: that object is lost, the others are not.
    While somebody looks at it nobody can tell where, so nothing may be given out.
    """
    slots = np.flatnonzero(holds_extent(table))
    slots = slots[np.argsort(extents_of(table[slots]), kind="stable")]
    sound = _are_sound(table[slots], session.identity.capacity)
    kept = slots[sound]
    offsets, sizes = extents_of(table[kept]), table[kept, L.S_EXTENT_NBYTES]
    ends = np.maximum.accumulate(offsets + sizes)
    apart = np.ones(len(kept), np.bool_)
    apart[1:] = offsets[1:] >= ends[:-1]
    lost = np.concatenate([slots[~sound], kept[~apart]])
    seen = session.clients.pinned().intersection(lost.tolist()) if len(lost) else ()
    for slot in seen:
        raise session.slots.damaged(slot, "its extent overlaps another or leaves the segment")
    table[lost, L.S_NODE] = 0
    kept = kept[apart]
    places = zip(offsets[apart].tolist(), sizes[apart].tolist(), kept.tolist(), strict=True)
    nodes = session.allocator.rebuild(places)
    table[kept, L.S_NODE] = np.array(nodes, np.uint64) + np.uint64(1)


def _are_sound(rows: Table, capacity: int) -> npt.NDArray[np.bool_]:
    """Return which extents lie where their slots say, inside the segment."""
    offsets, sizes = extents_of(rows), rows[:, L.S_EXTENT_NBYTES]
    limit = np.uint64(capacity)
    aligned = (offsets | sizes) % np.uint64(L.ALIGNMENT) == 0
    inside = (sizes != 0) & (sizes <= limit) & (offsets <= limit - np.minimum(sizes, limit))
    sound: npt.NDArray[np.bool_] = are_placed(rows) & aligned & inside
    return sound


def _rebuild_lists(session: Session, table: Table) -> None:
    """Chain the free slots, lowest first, and the doomed ones, oldest first."""
    words = session.index.words
    for word in (L.W_FREE_SLOT, L.W_DOOMED_HEAD, L.W_DOOMED_TAIL, L.W_DOOMED_BYTES):
        words[word] = 0
    state = states.states_of(table[:, L.S_STATE])
    for wanted, head in ((states.FREE, L.W_FREE_SLOT), (states.DOOMED, L.W_DOOMED_HEAD)):
        slots = np.flatnonzero(state == wanted)
        if wanted == states.DOOMED:
            waiting = slots[table[slots, L.S_NODE] != 0]
            words[L.W_DOOMED_BYTES] = int(table[waiting, L.S_EXTENT_NBYTES].sum())
            words[L.W_DOOMED_TAIL] = int(slots[-1]) + 1 if len(slots) else 0
        if len(slots):
            table[slots[:-1], L.S_LINK] = (slots[1:] + 1).astype(np.uint64)
            table[slots[-1], L.S_LINK] = 0
            words[head] = int(slots[0]) + 1
