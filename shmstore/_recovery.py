"""What can a dead process leave behind, and how is each thing undone?

=======================  ======================================================================
left behind              undone by
=======================  ======================================================================
a lock held              the kernel; the next holder finds DIRTY and calls `mend`
a half-made change       `mend`: key index, allocator, lists and counts made anew from the slots
a half-made put          `bury`: the slot is WRITING and its owner's seat is not locked
pins                     `bury`: they lie in a seat that is not locked
a seat                   `bury`: its row is cleared, then its file removed
a seat without a row     `mend`: the file is removed
an overwritten key       `mend`: of two READY objects with one key the younger stays
=======================  ======================================================================

Each step may be repeated, and may itself be cut short at any point: what tells that there is work
to do (DIRTY, a state word, a row) is cleared last.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shmstore._catalog import states
from shmstore._info import Recovered
from shmstore._memory import layout as L

if TYPE_CHECKING:
    from shmstore._session import Session

Table = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.intp]


def bury(session: Session) -> Recovered:
    """Undo what dead clients left. Requires: the store lock.

    Returns
    -------
    Recovered
        How many clients were found dead, how many of their puts were half done, and the bytes that
        came back.
    """
    used = session.index.words[L.W_USED]
    dead = session.clients.bury(session.row)
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
    ready = states.states_of(table[:, L.S_STATE]) == states.READY
    named = ready & (table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0)
    words = session.index.words
    words[L.W_OBJECTS] = int(ready.sum())
    words[L.W_NAMED] = int(named.sum())
    words[L.W_NEXT_GENERATION] = max(
        words[L.W_NEXT_GENERATION],
        int(states.generations_of(table[:, L.S_STATE]).max(initial=0)) + 1,
    )
    session.keys.rebuild(np.flatnonzero(named).tolist())
    _doom_abandoned(session)


def _doom_abandoned(session: Session) -> int:
    """Doom the half-made puts of clients that are gone; return how many there were."""
    table = session.slots.table()
    writing = np.flatnonzero(states.states_of(table[:, L.S_STATE]) == states.WRITING).tolist()
    owners = {client.serial for client in session.clients.rows()}
    abandoned = [slot for slot in writing if int(table[slot, L.S_OWNER]) not in owners]
    for slot in abandoned:
        session.slots.doom(slot)
    return len(abandoned)


def _end_older_twins(session: Session, table: Table) -> None:
    """Of READY objects with the same key leave the youngest: an overwrite was cut short."""
    youngest: dict[tuple[int, int], int] = {}
    for _, slot in session.slots.ready():
        if not int(table[slot, L.S_KIND]) & L.KIND_NAMED:
            continue
        digest = int(table[slot, L.S_DIGEST]), int(table[slot, L.S_DIGEST + 1])
        older = youngest.get(digest)
        if older is not None:
            table[older, L.S_STATE] = states.move(int(table[older, L.S_STATE]), states.DOOMED)
        youngest[digest] = slot


def _rebuild_extents(session: Session, table: Table) -> None:
    """Give the allocator exactly the extents of the slots that are not free."""
    used = (states.states_of(table[:, L.S_STATE]) != states.FREE) & (
        table[:, L.S_EXTENT_NBYTES] != 0
    )
    slots = np.flatnonzero(used)
    slots = slots[np.argsort(table[slots, L.S_EXTENT])]
    offsets, sizes = table[slots, L.S_EXTENT], table[slots, L.S_EXTENT_NBYTES]
    ends = offsets + sizes
    bad = (offsets[1:] < ends[:-1]).nonzero()[0]
    if len(bad) or (len(ends) and int(ends[-1]) > session.identity.capacity):
        slot = int(slots[bad[0] + 1]) if len(bad) else int(slots[-1])
        raise session.slots.damaged(slot, "its extent overlaps another or leaves the segment")
    nodes = session.allocator.rebuild(zip(offsets.tolist(), sizes.tolist(), strict=True))
    table[slots, L.S_NODE] = np.array(nodes, np.uint64) + np.uint64(1)


def _rebuild_lists(session: Session, table: Table) -> None:
    """Chain the free slots, lowest first, and the doomed ones, oldest first."""
    words = session.index.words
    for word in (L.W_FREE_SLOT, L.W_DOOMED_HEAD, L.W_DOOMED_TAIL, L.W_DOOMED_BYTES):
        words[word] = 0
    state = states.states_of(table[:, L.S_STATE])
    for wanted, head in ((states.FREE, L.W_FREE_SLOT), (states.DOOMED, L.W_DOOMED_HEAD)):
        slots = np.flatnonzero(state == wanted)
        if wanted == states.DOOMED:
            slots = _free_without_extent(session, table, slots)
            words[L.W_DOOMED_BYTES] = int(table[slots, L.S_EXTENT_NBYTES].sum())
            words[L.W_DOOMED_TAIL] = int(slots[-1]) + 1 if len(slots) else 0
        if len(slots):
            table[slots[:-1], L.S_LINK] = (slots[1:] + 1).astype(np.uint64)
            table[slots[-1], L.S_LINK] = 0
            words[head] = int(slots[0]) + 1


def _free_without_extent(
    session: Session,
    table: Table,
    doomed: Slots,
) -> Slots:
    """Free the doomed slots that have no extent to wait for; return the others."""
    waits = table[doomed, L.S_EXTENT_NBYTES] != 0
    for slot in doomed[~waits].tolist():
        session.slots.free(slot)
    waiting: Slots = doomed[waits]
    return waiting
