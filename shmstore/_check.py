"""Is every invariant of the format true? One function per number of `explanation/format.md`.

Concurrency: runs under the store lock, after taking back what nobody looks at, so that a busy
store can be checked too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.queues import are_of
from shmstore._catalog.table import extents_of, holds_extent
from shmstore._info import Finding
from shmstore._memory import layout as L
from shmstore._memory.allocator import size_class
from shmstore._reading import make_plan
from shmstore._restoring import FilePlan
from shmstore._session import Session
from shmstore._sharing.clients import Client
from shmstore._spares import told_by_seat
from shmstore.errors import CorruptStoreError, ShmStoreError

Table = npt.NDArray[np.uint64]

# What is wrong, and where: a word of the index, or a file, or what the error says.
Found = tuple[str, int | str] | ShmStoreError

_SECOND_LOOKS: Final = 5
_PAUSE_S: Final = 2e-3


def check(session: Session, *, deep: bool = False) -> list[Finding]:
    """Return a finding for each violation; none when all is well.

    Headers are read without the lock, and with `deep` the data too.
    """
    findings = session.lock.run(_check, session)
    findings += _told(session, HEADERS, session.slots.table)
    if deep:
        findings += [_finding(session, DEEP, found) for found in data_is_whole(session)]
    return sorted(findings, key=lambda finding: finding.invariant)


def _check(session: Session) -> list[Finding]:
    """Look at what only holds while nothing changes. Requires: the store lock."""
    session.check_alive()
    findings = []
    try:
        session.reclaim_all()
    except CorruptStoreError as error:
        findings.append(_finding(session, error.facts.get("invariant", 10), error))
    table = session.slots.table()
    for number in INVARIANTS:
        if number != HEADERS:
            findings += _told(session, number, lambda: table)
    return findings


def _told(session: Session, number: int, table: Callable[[], Table]) -> list[Finding]:
    """Return what violates one invariant, or why that cannot be told."""
    found: Found
    try:
        return [_finding(session, number, found) for found in INVARIANTS[number](session, table())]
    except ShmStoreError as error:
        return [_finding(session, number, error, "cannot be told: ")]
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        found = f"cannot be told: {error}", 0
        return [_finding(session, number, found)]


def _finding(session: Session, number: int, found: Found, lead: str = "") -> Finding:
    """Return what was found, with its place."""
    if isinstance(found, ShmStoreError):
        path, offset = found.facts.get("path", session.index.path), found.facts.get("offset")
        return Finding(number, f"{lead}{found}", path, offset)
    message, place = found
    path, offset = (session.index.path, place * L.WORD) if isinstance(place, int) else (place, 0)
    return Finding(number, f"{path}, offset {offset}: {message}", path, offset)


def _state(table: Table) -> Table:
    return states.states_of(table[:, L.S_STATE])


def _present(table: Table) -> npt.NDArray[np.bool_]:
    return states.are_present(table[:, L.S_STATE])


def _with_extent(table: Table) -> tuple[list[int], Table]:
    """Return the slots that have an extent, lowest first, and offset, size and node + 1 of each."""
    slots = np.flatnonzero(holds_extent(table))
    slots = slots[np.argsort(extents_of(table[slots]), kind="stable")]
    used = table[slots]
    columns = (extents_of(used), used[:, L.S_EXTENT_NBYTES], used[:, L.S_NODE])
    return slots.tolist(), np.column_stack(columns)


def extents_are_disjoint(session: Session, table: Table) -> Iterator[Found]:
    """1: extents lie inside the segment, at multiples of 64, and never overlap."""
    slots, rows = _with_extent(table)
    offsets, sizes = rows[:, 0], np.minimum(rows[:, 1], np.uint64(L.MAX_CAPACITY))
    ends = offsets + sizes
    below = np.concatenate([np.zeros(1, np.uint64), ends])[: len(ends)]
    outside = ends > np.uint64(session.identity.capacity)
    outside |= (offsets | rows[:, 1]) % np.uint64(L.ALIGNMENT) != 0
    for at in np.flatnonzero((offsets < below) | outside).tolist():
        place = session.slots.state_index(slots[at]) + L.S_EXTENT
        offset, nbytes, end = int(offsets[at]), int(rows[at, 1]), int(below[at])
        if offset < end:
            yield f"the extent at {offset} begins before {end}, where the one below it ends", place
        if outside[at]:
            yield f"the extent {offset}+{nbytes} leaves the segment or is not aligned", place


def blocks_fill_the_segment(session: Session, _: Table) -> Iterator[Found]:
    """2: free + used = size: the blocks follow each other without gaps up to the top."""
    if session.allocator.are_in_order():
        return
    top = session.words[L.W_SEGMENT_TOP]
    used = 0
    for block in session.allocator.blocks():
        if block.offset + block.nbytes != top:
            place = session.allocator.word_of(block.node)
            yield f"the block {block.offset}+{block.nbytes} does not end at {top}", place
        top = block.offset
        used += block.nbytes if block.status == L.NODE_USED else 0
    if top:
        yield f"the lowest block begins at {top}, not at 0", L.W_LAST_NODE
    if used != session.words[L.W_USED]:
        yield f"used blocks have {used} bytes, USED says {session.words[L.W_USED]}", L.W_USED


def free_blocks_are_merged(session: Session, _: Table) -> Iterator[Found]:
    """3: no two free neighbours; every free block hangs in the list of its size class."""
    if session.allocator.are_in_order():
        return
    expected = {}
    above_is_free = False
    for block in session.allocator.blocks():
        is_free = block.status == L.NODE_FREE
        if is_free and above_is_free:
            place = session.allocator.word_of(block.node)
            yield f"the free block at {block.offset} has a free neighbour above", place
        if is_free:
            expected[block.node] = size_class(block.nbytes)
        above_is_free = is_free
    listed = session.allocator.listed()
    for node in expected.keys() | listed.keys():
        own, found = expected.get(node), listed.get(node)
        if own != found:
            place = session.allocator.word_of(node)
            yield f"block {node} belongs into list {own}, is in {found}", place


def keys_are_found_once(session: Session, table: Table) -> Iterator[Found]:
    """4: the key of each published object is found, exactly once; nothing else is found."""
    named = table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
    slots = np.flatnonzero(_present(table) & named)
    if session.keys.holds_exactly(slots):
        return
    place = session.slots.state_index
    found = Counter(slot for _, slot in session.keys.chains())
    expected = set(slots.tolist())
    for slot in expected - found.keys():
        yield f"the key of slot {slot} is in no bucket", place(slot)
    for slot, times in found.items():
        if times > 1 or slot not in expected:
            named_here = slot in expected
            yield f"slot {slot} is {times} times in the key index; a key: {named_here}", place(slot)
    for slot in expected:
        digest = int(table[slot, L.S_DIGEST]), int(table[slot, L.S_DIGEST + 1])
        if session.keys.find(digest) != slot:
            yield f"its key leads to slot {session.keys.find(digest)}", place(slot)


def headers_parse(session: Session, table: Table) -> Iterator[Found]:
    """5: a published slot's checksum agrees, its header parses, its frames fit its extent.

    Takes no lock, but for those that are not right, or go or move while they are looked at.
    """
    unclear: list[int] = []
    words = table[:, L.S_STATE].copy()
    for slot in np.flatnonzero(states.are_present(words)).tolist():
        try:
            plan = make_plan(session, slot, int(words[slot]), deep=False)
            if plan is not None:
                plan.examine()
        except ShmStoreError:
            plan = None
        if plan is None:
            unclear.append(slot)
    if unclear:
        yield from session.lock.run(_look_again, session, unclear)


def _look_again(session: Session, slots: list[int]) -> list[Found]:
    """Tell what is wrong with some slots. Requires: the store lock."""
    found: list[Found] = []
    for slot in slots:
        word = session.slots.word(slot)
        if not states.is_present(word):
            continue
        try:
            plan = make_plan(session, slot, word, deep=False)
            if plan is not None:
                plan.examine()
        except ShmStoreError as error:
            found.append(error)
            continue
        expires_ns = session.words[session.slots.state_index(slot) + L.S_EXPIRES_NS]
        if plan is None and not 0 < expires_ns <= boottime_ns():
            place = session.slots.state_index(slot)
            found.append((f"slot {slot} changes although the lock is held", place))
    return found


def writers_live(session: Session, table: Table) -> Iterator[Found]:
    """6: the owner of a slot without an object is a client; else ORPHANS tells that one is gone."""
    if session.words[L.W_ORPHANS]:
        return
    owners = {client.serial for client in session.clients.rows()}
    held = (_state(table) == states.WRITING) | states.are_set_aside(table[:, L.S_STATE])
    for slot in np.flatnonzero(held).tolist():
        if int(table[slot, L.S_OWNER]) not in owners:
            yield f"slot {slot} is being written by nobody", session.slots.state_index(slot)


def generations_only_grow(session: Session, table: Table) -> Iterator[Found]:
    """7: the generations of all slots are different, and below the next one."""
    generations = states.generations_of(table[:, L.S_STATE])
    following = session.words[L.W_NEXT_GENERATION]
    if len(generations) and int(generations.max()) >= following:
        last = int(generations.max())
        yield f"generation {last} is used, the next one is {following}", L.W_NEXT_GENERATION
    lived, counts = np.unique(generations[generations != 0], return_counts=True)
    for generation in lived[counts > 1].tolist():
        slots = np.flatnonzero(generations == np.uint64(generation)).tolist()
        place = session.slots.state_index(slots[1])
        yield f"slots {slots[:9]} have the same generation, {generation}", place


def pinned_extents_are_used(session: Session, table: Table) -> Iterator[Found]:
    """8: a pinned extent is never reallocated: its slot is not FREE."""

    def suspects() -> set[int]:
        state = _state(table)
        pinned = session.clients.pinned()
        return {slot for slot in pinned if slot >= len(state) or state[slot] == states.FREE}

    # A reader pins first and looks afterwards: such a pin on a freed slot is gone in a moment.
    lasting = suspects()
    for _ in range(_SECOND_LOOKS):
        if lasting:
            time.sleep(_PAUSE_S)
            lasting &= suspects()
    for slot in lasting:
        inside = slot < session.identity.max_objects
        yield f"slot {slot} is pinned and free", session.slots.state_index(slot) if inside else 0


def used_bytes_add_up(session: Session, table: Table) -> Iterator[Found]:
    """9: used bytes equal the sum over the slots, each of which has the extent it names."""
    words = session.words
    slots, extents = _with_extent(table)
    total = int(extents[:, 1].sum())
    if total != words[L.W_USED]:
        yield f"the slots have {total} bytes, USED says {words[L.W_USED]}", L.W_USED
    nodes = session.allocator.block_table()
    numbers = extents[:, 2].astype(np.intp) - 1
    used = int((nodes[:, L.N_STATUS] == L.NODE_USED).sum())
    if used == len(slots) and bool((numbers < len(nodes)).all()):
        rows = nodes[numbers]
        same = rows[:, [L.N_OFFSET, L.N_NBYTES]] == extents[:, :2]
        if bool(same.all()) and bool((rows[:, L.N_STATUS] == L.NODE_USED).all()):
            return
    blocks = {
        b.node: (b.offset, b.nbytes) for b in session.allocator.blocks() if b.status == L.NODE_USED
    }
    if len(blocks) != len(extents):
        yield f"{len(slots)} slots have an extent, {len(blocks)} blocks are used", L.W_LAST_NODE
    for slot, (offset, nbytes, node) in zip(slots, extents.tolist(), strict=True):
        if blocks.get(node - 1) != (offset, nbytes):
            place = session.slots.state_index(slot) + L.S_NODE
            yield f"the extent {offset}+{nbytes} is not its block, {blocks.get(node - 1)}", place


def counts_agree(session: Session, table: Table) -> Iterator[Found]:
    """10: the counts of objects and the lists of free and doomed slots agree with the states."""
    words, state = session.words, _state(table)
    has_key = table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
    present, spilled = _present(table), state == states.SPILLED
    found = (
        int(states.are_counted(table[:, L.S_STATE]).sum()),
        int((present & has_key).sum()),
        int(spilled.sum()),
        int(table[spilled, L.S_EXTENT_NBYTES].sum()),
    )
    counted = tuple(words[w] for w in (L.W_OBJECTS, L.W_NAMED, L.W_SPILLED, L.W_SPILLED_BYTES))
    if found != counted:
        what = "(objects and slots set aside, named, spilled, bytes of these)"
        yield f"{what} are {found}, counted {counted}", L.W_OBJECTS
    yield from _told_is_set_aside(session, table)
    doomed = set(session.slots.doomed())
    waiting = set(np.flatnonzero(state == states.DOOMED).tolist())
    if doomed != waiting:
        text = f"the list of doomed slots has {len(doomed)}, {len(waiting)} are DOOMED"
        yield text, L.W_DOOMED_HEAD
    if session.slots.free_are_listed():
        return
    free, are_free = session.slots.count_free(), int((state == states.FREE).sum())
    if free != are_free:
        yield f"the list of free slots has {free}, {are_free} are FREE", L.W_FREE_SLOT


def _told_is_set_aside(session: Session, table: Table) -> Iterator[Found]:
    """Each client has the slots that it tells of: no fewer, where it does not change them just now.

    Who was stopped between two stores may tell of one more. Whoever puts or deletes while the slots
    are counted is left out: the same numbers come again when he has done both.
    """

    def tell(client: Client) -> tuple[int, int, int]:
        words = session.words
        puts = told_by_seat(session.clients, client, L.SEAT_PUTS)
        return words[client.at + L.C_SPARES], words[client.at + L.C_SEIZED], puts

    def suspects() -> set[tuple[int, int, int]]:
        before = [(client, tell(client)) for client in session.clients.rows()]
        aside = table[states.are_set_aside(table[:, L.S_STATE]), L.S_OWNER]
        found = set()
        for client, (spares, seized, puts) in before:
            told, held = spares & L.SPARE_MASK, int((aside == client.serial).sum())
            if told > held + 1 and not seized and tell(client) == (spares, seized, puts):
                found.add((client.at, told, held))
        return found

    lasting = suspects()
    for _ in range(_SECOND_LOOKS):
        if lasting:
            time.sleep(_PAUSE_S)
            lasting &= suspects()
    for row, told, held in lasting:
        yield f"a client tells of {told} slots set aside, it has {held}", row + L.C_SPARES


def files_are_there(session: Session, _: Table) -> Iterator[Found]:
    """11: each object outside of memory has its file, and each file its object or writer."""
    if not session.spills:
        if session.words[L.W_SPILLED]:
            count = session.words[L.W_SPILLED]
            yield f"{count} objects are SPILLED, the store has no files", L.W_SPILLED
        return
    objects = session.slots.in_files()
    for slot, generation in session.files.missing(objects):
        place = session.slots.state_index(slot)
        yield f"the file of slot {slot}, generation {generation}, is gone", place
    serials = {client.serial for client in session.clients.rows()}
    for name in session.files.strays(objects, serials):
        yield f"the file {name} belongs to nobody", str(session.files.path / name)


def queues_are_chained(session: Session, table: Table) -> Iterator[Found]:
    """13: a queue leads to what is of it, objects in the order of their numbers, and counts it."""
    queues, words = session.queues, session.words
    left = set(np.flatnonzero(are_of(table, L.KINDS_OF_QUEUES)).tolist())
    for queue in queues.all():
        base = queues.base(queue)
        waiting, tallies = list(queues.waiting(queue)), list(queues.tallies(queue))
        left -= {queue, *waiting, *tallies}
        numbers = table[waiting, L.S_DIGEST + 1].tolist()
        if sorted(set(numbers)) != numbers or words[base + L.S_NUMBER] <= max(numbers, default=-1):
            yield f"the objects of queue {queue} are numbered {numbers!r:.100}", base + L.S_HEAD
        tail = waiting[-1] + 1 if waiting else 0
        taken = sum(words[queues.base(slot) + L.S_TAKEN] for slot in (queue, *tallies))
        found = len(waiting), tail, taken
        counted = tuple(words[base + at] for at in (L.S_WAITING, L.S_TAIL, L.S_OPEN))
        if found != counted:
            yield f"(waiting, tail, open) of queue {queue} are {found}, not {counted}", base
    for slot in sorted(left):
        yield f"slot {slot} belongs to no queue", session.slots.state_index(slot)


def data_is_whole(session: Session) -> Iterator[Found]:
    """14: the checksums of files agree, and of data that readers cannot write, where kept."""
    for word, slot in session.slots.present():
        try:
            plan = make_plan(session, slot, word)
            if isinstance(plan, FilePlan):
                plan.verify_again()
        except ShmStoreError as error:
            yield error


def waiters_are_clients(session: Session, _: Table) -> Iterator[Found]:
    """12: each waiter belongs to a client, and none lies beyond WAITERS."""
    serials = {client.serial for client in session.clients.rows()}
    waiters, top = session.waiters, session.words[L.W_WAITERS]
    for waiter in waiters.rows(everywhere=True):
        place = session.index.geometry.waiters + waiter.row * L.WAITER_WORDS
        if waiter.serial not in serials:
            yield f"waiter {waiter.row} belongs to seat {waiter.serial}, which nobody has", place
        if waiter.row >= top:
            yield f"waiter {waiter.row} lies beyond WAITERS, {top}", place
    if top > waiters.room():
        yield f"WAITERS is {top}, there are pages for {waiters.room()}", L.W_WAITERS


HEADERS: Final = 5
DEEP: Final = 14
INVARIANTS: Final[dict[int, Callable[[Session, Table], Iterator[Found]]]] = {
    1: extents_are_disjoint,
    2: blocks_fill_the_segment,
    3: free_blocks_are_merged,
    4: keys_are_found_once,
    5: headers_parse,
    6: writers_live,
    7: generations_only_grow,
    8: pinned_extents_are_used,
    9: used_bytes_add_up,
    10: counts_agree,
    11: files_are_there,
    12: waiters_are_clients,
    13: queues_are_chained,
}
