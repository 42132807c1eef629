"""What can a dead process leave behind, and how is each thing undone?

========================  =====================================================================
left behind               undone by
========================  =====================================================================
a lock held               the kernel; the next holder finds DIRTY and calls `mend`
a half-made change        `mend`: key index, allocator, lists and counts made anew from the slots
a half-made put           `bury`: the slot is WRITING, its owner's seat not locked (ORPHANS)
slots set aside           `bury`: they are SPARE or FILLING, their owner gone (ORPHANS)
pins                      `bury`: they lie in a seat that is not locked
a seat                    `bury`: its row is cleared, then its file removed
a seat without a row      `bury`, `mend`: the file is removed
a deleted object          `reclaim`, by whoever needs room: it is DOOMED
an overwritten key        `mend`: of two published ones with one key the younger stays
an object on its way      `mend`: between memory and file it is READY while it has an extent
a file without an object  `bury`, `mend`: it is removed
pages about to go         nobody needs to: their extents are marked as cold before
what was taken of queues  `mend`, `bury`: the tally of a client that is gone counts no more
who waits for it          `mend`: all are woken, and look again; `bury`: the rows of the dead go
a bell                    `bury`, `mend`: the file is removed, if its client is gone
a store half made         `removal.remove_leftovers`, by whoever next creates or prunes: `.new-*`
a store half removed      the same: `.old-*`, and its files elsewhere with it
a store of the dead       `_ending.make_way`, by whoever wants its name, or by `prune`
========================  =====================================================================

Damage is undone in the same way, as far as the slots tell what was there. Where two slots
contradict each other, the one whose checksum agrees stays, else the younger. An object whose slot
is damaged is kept by `mend`, so that a get says what happened to it; `recover` gives it up.

Each step may be repeated, and may itself be cut short at any point: what tells that there is work
to do (DIRTY, a state word, a row) is cleared last.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore import _claiming, _spares, _tallies
from shmstore._catalog import states
from shmstore._catalog.slots import Record
from shmstore._catalog.soundness import unsound
from shmstore._catalog.table import are_placed, extents_of, first_end, holds_extent
from shmstore._memory import layout as L
from shmstore._memory import news
from shmstore._memory.segment import Absent
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError, UnsafePathError

if TYPE_CHECKING:
    import numpy.typing as npt

    from shmstore._info import Recovered
    from shmstore._session import Session
    from shmstore._sharing.clients import Client

    Table = npt.NDArray[np.uint64]
    Slots = npt.NDArray[np.intp]


_DEAD: Final = "ended without leaving: %s; half-made puts undone: %d, bytes freed: %d"
_MENDED: Final = "all tables were made anew; found dead: %s, half-made puts undone: %d"

_NEVER: Final = (1 << 64) - 1
_MANY_GENERATIONS: Final = 1 << 32


class Buried(NamedTuple):
    """How many clients were found dead, and puts of theirs half done; the bytes that came back."""

    clients: int
    puts: int
    nbytes: int


def bury(session: Session) -> Buried:
    """Undo what dead clients left. Requires: the store lock.

    All slots are looked at only if a client was found dead since that was last done.
    """
    words = session.index.words
    used, puts = words[L.W_USED], 0
    dead: list[Client] = []
    try:
        dead = session.clients.bury(session.row)
        session.clients.remove_strays()
    finally:  # rows may have gone before a seat file could not be looked at, or removed
        if words[L.W_ORPHANS]:
            _tallies.forget_dead(session)
            puts = _doom_abandoned(session)
    if dead:
        _sweep_files(session)
    session.reclaim(session.identity.max_objects)
    freed = used - words[L.W_USED]
    if dead:
        session.news.add(news.INFO, _DEAD, _pids(dead), puts, freed)
    return Buried(len(dead), puts, freed)


def _pids(clients: list[Client]) -> str:
    return ", ".join(f"pid {client.pid}" for client in clients) or "nobody"


def recover(session: Session) -> Recovered:
    """Make the store whole: `mend`, then give up what is damaged, then `bury`.

    Requires: the store lock.
    """
    from shmstore._info import Recovered  # noqa: PLC0415 - takes time that most processes can save

    session.check_alive()
    words = session.index.words
    used = words[L.W_USED]
    dead, puts = mend(session)
    if used > session.identity.capacity:
        used = words[L.W_USED]
    table = session.slots.table()
    lost = [slot for slot in _damaged(session, table) if _stays_damaged(session, slot)]
    if lost:
        session.news.add(news.WARNING, "%d damaged objects are given up", len(lost))
        for slot in lost:
            table[slot, L.S_STATE] = states.move(int(table[slot, L.S_STATE]), states.DOOMED)
        mend(session)
    also = session.bury()
    return Recovered(
        dead + also.clients, puts + also.puts, used - words[L.W_USED], objects=len(lost)
    )


def mend(session: Session) -> tuple[int, int]:
    """Make everything that is derived anew from the slot table. Requires: the store lock.

    Returns
    -------
    tuple of int
        How many clients were found dead, and how many of their puts were half done.
    """
    session.lock.mending = True
    session.bells.ring_all()
    pins = getattr(session, "pins", None)  # None: this process is just attaching
    session.clients.recount(session.row, None if pins is None else pins.seat)
    dead = session.clients.bury(session.row)
    session.clients.remove_strays()
    table = session.slots.recount()
    session.waiters.clear()
    _return_withdrawn(session, table)
    _end_copies(session, table)
    _end_older_twins(session, table)
    _rebuild_extents(session, table)
    _wipe_free(session)
    _rebuild_lists(session, table)
    present = states.are_present(table[:, L.S_STATE])
    named = present & _have_keys(table)
    words = session.index.words
    words[L.W_OBJECTS] = int(states.are_counted(table[:, L.S_STATE]).sum())
    words[L.W_NAMED] = int(named.sum())
    _count_special(session, table)
    words[L.W_NEXT_GENERATION] = _next_generation(session, table)
    session.keys.rebuild(np.flatnonzero(named))
    for slot in session.queues.rebuild(table, {c.serial for c in session.clients.rows()}):
        if table[slot, L.S_KIND] & np.uint64(L.KIND_NAMED):  # damage has made it a part of a queue
            session.keys.remove(slot)
        session.doom(slot)
    abandoned = _doom_abandoned(session)
    _claiming.recount_seized(session, table)
    _spares.recount(session, table)
    _sweep_files(session)
    session.lock.mending = False
    session.news.add(news.WARNING, _MENDED, _pids(dead), abandoned)
    return len(dead), abandoned


def _return_withdrawn(session: Session, table: Table) -> None:
    """Make objects READY that were about to leave memory, or have just come back to it."""
    away = states.states_of(table[:, L.S_STATE]) == states.SPILLED
    if session.spills:
        placed = (table[:, L.S_NODE] != 0) & are_placed(table, np.arange(len(table)))
        away &= placed | (table[:, L.S_EXTENT_NBYTES] == 0)
    for slot in np.flatnonzero(away).tolist():
        table[slot, L.S_STATE] = states.move(int(table[slot, L.S_STATE]), states.READY)


def _sweep_files(session: Session) -> None:
    """Remove the files of objects that are in memory, and those that dead clients were writing."""
    if session.spills:
        serials = {client.serial for client in session.clients.rows()}
        for name in session.files.strays(session.slots.in_files(), serials):
            if not session.slots.is_in_file(name):  # in_files believes SLOT_TOP
                session.files.discard(name)


def _count_special(session: Session, table: Table) -> None:
    """Count the objects in files, and find out which object expires first."""
    words = session.index.words
    spilled = states.states_of(table[:, L.S_STATE]) == states.SPILLED
    words[L.W_SPILLED] = int(spilled.sum())
    words[L.W_SPILLED_BYTES] = int(table[spilled, L.S_EXTENT_NBYTES].sum())
    size = session.index.geometry.expiry_group
    starts = range(0, size * L.EXPIRY_GROUPS, size)
    column = session.index.rows(L.W_EXPIRIES, L.EXPIRY_GROUPS, 1)
    column[:, 0] = [first_end(table[start : start + size]) for start in starts]
    session.slots.note_first_end()
    words[L.W_EXPIRY_HAND] = 0


def _end_copies(session: Session, table: Table) -> None:
    """Of slots with the same generation leave the one that is right: the others are copies."""
    generations = states.generations_of(table[:, L.S_STATE])
    if not _repeats(generations[generations != 0]):
        return
    lived, times = np.unique(generations, return_counts=True)
    doubtful = np.flatnonzero(np.isin(generations, lived[(times > 1) & (lived != 0)]))
    right: set[int] = set()
    for weak, generation, _, _, slot in sorted(_claims(session, table, doubtful)):
        if weak and generation in right:  # two that are right had NEXT_GENERATION damaged between
            table[slot, L.S_STATE] = states.NEVER_USED
        right.add(generation)


def _next_generation(session: Session, table: Table) -> int:
    """Return a generation that no object has had."""
    following = int(session.index.words[L.W_NEXT_GENERATION])
    known = int(states.generations_of(table[:, L.S_STATE]).max(initial=0)) + 1
    if following > states.MOST_GENERATIONS:  # damaged: those of deleted objects are not known
        return max(known, session.slots.following) + _MANY_GENERATIONS
    return max(following, known, session.slots.following)


def _damaged(session: Session, table: Table) -> list[int]:
    """Return the published slots that do not agree with their checksums, in memory and in files."""
    state = states.states_of(table[:, L.S_STATE])
    absent = isinstance(session.segment, Absent)
    segment = None if absent else memoryview(session.segment.readonly)
    ready = np.flatnonzero(state == states.READY)
    lost: list[int] = unsound(session.index, table, ready, segment).tolist()
    spilled = np.flatnonzero(state == states.SPILLED).tolist()
    return lost + [slot for slot in spilled if not _is_whole(session, slot)]


def _stays_damaged(session: Session, slot: int) -> bool:
    """Return whether that is so when the owner of a slot no longer changes it without the lock."""
    if _claiming.is_own(session, slot):
        _claiming.claim(session, slot)
    return states.is_present(session.slots.word(slot)) and not _is_whole(session, slot)


def _is_whole(session: Session, slot: int) -> bool:
    """Return whether a published slot and its checksum agree, as far as that can be told."""
    slots = session.slots
    record = slots.read(slot)
    in_segment = record.kind & L.KIND_HEADER_IN_EXTENT
    if states.state_of(record.word) == states.SPILLED:
        return _is_whole_in_file(session, record)
    if in_segment and isinstance(session.segment, Absent):
        return True
    try:
        if in_segment:
            start = record.extent + record.header_offset
            if start < 0 or start + record.header_nbytes > session.identity.capacity:
                return False
            packed = session.segment.readonly[start : start + record.header_nbytes]
        else:
            packed = slots.inline_header(record)
        return slots.is_sound(record, packed)
    except CorruptStoreError:
        return False


def _is_whole_in_file(session: Session, record: Record) -> bool:
    """Return whether a slot, its checksum and the head of its file agree."""
    slots, in_file = session.slots, record.kind & L.KIND_HEADER_IN_EXTENT
    generation = states.generation_of(record.word)
    try:
        with session.files.open(record.slot, generation, record.extent_nbytes) as file:
            if in_file and record.header_offset >= 0:
                packed = file.read(record.header_offset, record.header_nbytes)
            else:
                packed = slots.inline_header(record)
        return slots.is_sound(record, packed)
    except UnsafePathError:
        return True
    except (CorruptStoreError, FileNotFoundError):
        return False


def _doom_abandoned(session: Session) -> int:
    """Doom the half-made puts of clients that are gone; return how many there were."""
    table = session.slots.table()
    writing = np.flatnonzero(states.states_of(table[:, L.S_STATE]) == states.WRITING).tolist()
    owners = {client.serial for client in session.clients.rows()}
    abandoned = [slot for slot in writing if int(table[slot, L.S_OWNER]) not in owners]
    for slot in abandoned:
        session.doom(slot)
    _claiming.give_back_of_dead(session, table, owners)
    session.index.words[L.W_ORPHANS] = 0
    return len(abandoned)


def _end_older_twins(session: Session, table: Table) -> None:
    """Of published objects with the same key leave the youngest: an overwrite was cut short."""
    youngest: dict[tuple[int, int], int] = {}
    for slot in _alike(table).tolist():
        digest = int(table[slot, L.S_DIGEST]), int(table[slot, L.S_DIGEST + 1])
        older = youngest.get(digest)
        if older is None:
            youngest[digest] = slot
            continue
        ends = older if _is_whole(session, slot) or not _is_whole(session, older) else slot
        table[ends, L.S_STATE] = states.move(int(table[ends, L.S_STATE]), states.DOOMED)
        youngest[digest] = older + slot - ends


def _alike(table: Table) -> Slots:
    """Return the published slots that share the first word of their digest, oldest first."""
    named = states.are_present(table[:, L.S_STATE]) & _have_keys(table)
    slots = np.flatnonzero(named)
    lows = table[slots, L.S_DIGEST]
    if not _repeats(lows):
        return slots[:0]
    order = np.argsort(lows)
    same = np.flatnonzero(lows[order[1:]] == lows[order[:-1]])
    slots = slots[order[np.union1d(same, same + 1)]]
    alike: Slots = slots[np.argsort(table[slots, L.S_STATE])]
    return alike


def _repeats(numbers: Table) -> bool:
    """Return whether a number comes more than once."""
    ordered = np.sort(numbers)
    return bool((ordered[1:] == ordered[:-1]).any())


def _have_keys(table: Table) -> npt.NDArray[np.bool_]:
    have: npt.NDArray[np.bool_] = table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
    return have


def _rebuild_extents(session: Session, table: Table) -> None:
    """Give the allocator exactly the extents of the slots that have one.

    An extent that cannot be right is taken from its slot: that object is lost, the others are not.
    While somebody looks at it nobody can tell where, so nothing may be given out.
    """
    state = states.states_of(table[:, L.S_STATE])
    ready = (state == states.READY) & (table[:, L.S_EXTENT_NBYTES] != 0)
    slots = np.flatnonzero(holds_extent(table) | ready)
    slots = slots[np.argsort(_offsets(table, slots), kind="stable")]
    inside = _are_inside(table[slots, : L.S_HEADER_NBYTES], slots, session.identity.capacity)
    kept = _disjoint(session, table, slots[inside])
    lost = np.setdiff1d(slots, kept, assume_unique=True)
    for slot in session.clients.pinned().intersection(lost.tolist()) if len(lost) else ():
        raise session.slots.damaged(slot, "its extent overlaps another or leaves the segment")
    table[lost, L.S_NODE] = 0
    aside = lost[states.are_set_aside(table[lost, L.S_STATE])]
    table[aside, L.S_LINK] = 0  # its owner does not write there
    again = lost[are_placed(table[lost], lost)]
    table[again, L.S_EXTENT] ^= np.uint64(_NEVER) << np.uint64(L.EXTENT_SHIFT)  # for good
    sizes = table[kept, L.S_EXTENT_NBYTES]
    nodes = session.allocator.rebuild(_offsets(table, kept), sizes, kept)
    table[kept, L.S_NODE] = (nodes + 1).astype(np.uint64)


def _wipe_free(session: Session) -> None:
    """Leave nothing in free space of what somebody had no time to wipe."""
    if not session.slots.wipes or session.readonly:
        return
    allocator, segment, words = session.allocator, session.segment, session.words
    for block in allocator.blocks():
        if block.status == L.NODE_FREE:
            segment.wipe(block.offset, block.nbytes, cold=allocator.is_cold(block.node))
    top = int(words[L.W_SEGMENT_TOP])
    segment.wipe(top, session.identity.capacity - top, cold=not words[L.W_BACKED])


def _offsets(table: Table, slots: Slots) -> Table:
    """Return where the extents of slots begin."""
    offsets: Table = table[slots, L.S_EXTENT] & np.uint64(L.EXTENT_MASK)
    return offsets


def _are_inside(rows: Table, slots: Slots, capacity: int) -> npt.NDArray[np.bool_]:
    """Return which extents lie where their slots say, inside the segment."""
    offsets, sizes = extents_of(rows), rows[:, L.S_EXTENT_NBYTES]
    limit = np.uint64(capacity)
    aligned = (offsets | sizes) % np.uint64(L.ALIGNMENT) == 0
    inside = (sizes != 0) & (sizes <= limit) & (offsets <= limit - np.minimum(sizes, limit))
    found: npt.NDArray[np.bool_] = are_placed(rows, slots) & aligned & inside
    return found


def _disjoint(session: Session, table: Table, slots: Slots) -> Slots:
    """Return those of the slots, lowest extent first, that may keep their extents."""
    offsets, sizes = _offsets(table, slots), table[slots, L.S_EXTENT_NBYTES]
    if bool((offsets[1:] >= (offsets + sizes)[:-1]).all()):
        return slots
    kept: list[tuple[int, int, int]] = []
    for *_, start, end, slot in sorted(_claims(session, table, slots)):
        at = bisect.bisect(kept, (start,))
        free_below = at == 0 or kept[at - 1][1] <= start
        if free_below and (at == len(kept) or end <= kept[at][0]):
            kept.insert(at, (start, end, slot))
    return np.array([slot for *_, slot in kept], np.intp)


def _claims(
    session: Session, table: Table, slots: Slots
) -> Iterator[tuple[bool, int, int, int, int]]:
    """Yield (weak, minus generation, start, end, slot) per extent: the best claim sorts first."""
    for slot in slots.tolist():
        word, start = int(table[slot, L.S_STATE]), int(table[slot, L.S_EXTENT]) & L.EXTENT_MASK
        strong = states.is_present(word) and _is_whole(session, slot)
        end = start + int(table[slot, L.S_EXTENT_NBYTES])
        yield not strong, -states.generation_of(word), start, end, slot


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
