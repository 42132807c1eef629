"""Is every invariant of the format true? One function per number of `docs/format.md`.

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
from shmstore._catalog.slots import boottime_ns
from shmstore._catalog.table import extents_of, holds_extent
from shmstore._info import Finding
from shmstore._memory import layout as L
from shmstore._memory.allocator import size_class
from shmstore._reading import make_plan
from shmstore._restoring import FilePlan
from shmstore._session import Session
from shmstore.errors import CorruptStoreError, ShmStoreError

Table = npt.NDArray[np.uint64]

_SECOND_LOOKS: Final = 5
_PAUSE_S: Final = 2e-3


def check(session: Session, *, deep: bool = False) -> list[Finding]:
    """Return a finding for each violation; none when all is well.

    With `deep` the data is read too, without the lock.
    """
    findings = session.lock.run(_check, session)
    if deep:
        findings += [Finding(DEEP, message) for message in data_is_whole(session)]
    return findings


def _check(session: Session) -> list[Finding]:
    session.check_alive()
    findings = []
    try:
        session.reclaim_all()
    except CorruptStoreError as error:
        findings.append(Finding(error.facts.get("invariant", 10), error.message))
    table = session.slots.table().copy()
    for number, invariant in INVARIANTS.items():
        try:
            findings += [Finding(number, message) for message in invariant(session, table)]
        except (ShmStoreError, LookupError, ArithmeticError, ValueError, TypeError) as error:
            findings.append(Finding(number, f"cannot be told: {error}"))
    return findings


def _state(table: Table) -> Table:
    return states.states_of(table[:, L.S_STATE])


def _present(table: Table) -> npt.NDArray[np.bool_]:
    return states.are_present(table[:, L.S_STATE])


def _with_extent(table: Table) -> Table:
    """Return the rows that have an extent in the segment, lowest first; EXTENT without check."""
    used = table[holds_extent(table)]
    used[:, L.S_EXTENT] = extents_of(used)
    by_offset: Table = used[np.argsort(used[:, L.S_EXTENT], kind="stable")]
    return by_offset


def extents_are_disjoint(session: Session, table: Table) -> Iterator[str]:
    """1: extents lie inside the segment, at multiples of 64, and never overlap."""
    end = 0
    for offset, nbytes in _with_extent(table)[:, [L.S_EXTENT, L.S_EXTENT_NBYTES]].tolist():
        if offset < end:
            yield f"the extent at {offset} begins before {end}, where the one below it ends"
        end = offset + nbytes
        if end > session.identity.capacity or offset % L.ALIGNMENT or nbytes % L.ALIGNMENT:
            yield f"the extent {offset}+{nbytes} leaves the segment or is not aligned"


def blocks_fill_the_segment(session: Session, _: Table) -> Iterator[str]:
    """2: free + used = size: the blocks follow each other without gaps up to the top."""
    top = session.words[L.W_SEGMENT_TOP]
    used = 0
    for block in session.allocator.blocks():
        if block.offset + block.nbytes != top:
            yield f"the block {block.offset}+{block.nbytes} does not end at {top}"
        top = block.offset
        used += block.nbytes if block.status == L.NODE_USED else 0
    if top:
        yield f"the lowest block begins at {top}, not at 0"
    if used != session.words[L.W_USED]:
        yield f"used blocks have {used} bytes, USED says {session.words[L.W_USED]}"


def free_blocks_are_merged(session: Session, _: Table) -> Iterator[str]:
    """3: no two free neighbours; every free block hangs in the list of its size class."""
    expected = {}
    above_is_free = False
    for block in session.allocator.blocks():
        is_free = block.status == L.NODE_FREE
        if is_free and above_is_free:
            yield f"the free block at {block.offset} has a free neighbour above"
        if is_free:
            expected[block.node] = size_class(block.nbytes)
        above_is_free = is_free
    listed = session.allocator.listed()
    for node in expected.keys() | listed.keys():
        if expected.get(node) != listed.get(node):
            yield f"block {node} belongs into list {expected.get(node)}, is in {listed.get(node)}"


def keys_are_found_once(session: Session, table: Table) -> Iterator[str]:
    """4: the key of each published object is found, exactly once; nothing else is found."""
    found = Counter(slot for _, slot in session.keys.chains())
    named = table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
    expected = set(np.flatnonzero(_present(table) & named).tolist())
    for slot in expected - found.keys():
        yield f"the key of slot {slot} is in no bucket"
    for slot, times in found.items():
        if times > 1 or slot not in expected:
            yield f"slot {slot} is {times} times in the key index; has a key: {slot in expected}"
    for slot in expected:
        digest = int(table[slot, L.S_DIGEST]), int(table[slot, L.S_DIGEST + 1])
        if session.keys.find(digest) != slot:
            yield f"the key of slot {slot} leads to slot {session.keys.find(digest)}"


def headers_parse(session: Session, table: Table) -> Iterator[str]:
    """5: a published slot's checksum agrees, its header parses, its frames fit its extent."""
    for slot in np.flatnonzero(_present(table)).tolist():
        try:
            plan = make_plan(session, slot, int(table[slot, L.S_STATE]), deep=False)
            if plan is None and not 0 < int(table[slot, L.S_EXPIRES_NS]) <= boottime_ns():
                yield f"slot {slot} changes although the lock is held"
        except ShmStoreError as error:
            yield str(error)


def writers_live(session: Session, table: Table) -> Iterator[str]:
    """6: a WRITING slot's owner is a client (a dead one's is reclaimable by `recover`)."""
    owners = {client.serial for client in session.clients.rows()}
    for slot in np.flatnonzero(_state(table) == states.WRITING).tolist():
        if int(table[slot, L.S_OWNER]) not in owners:
            yield f"slot {slot} is being written by nobody"


def generations_only_grow(session: Session, table: Table) -> Iterator[str]:
    """7: the generation of a slot never falls: all are different and below the next one."""
    generations = states.generations_of(table[:, L.S_STATE])
    following = session.words[L.W_NEXT_GENERATION]
    if len(generations) and int(generations.max()) >= following:
        yield f"generation {int(generations.max())} is used, the next one is {following}"
    lived = generations[generations != 0]
    if len(np.unique(lived)) != len(lived):
        yield "two slots have the same generation"


def pinned_extents_are_used(session: Session, table: Table) -> Iterator[str]:
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
        yield f"slot {slot} is pinned and free"


def used_bytes_add_up(session: Session, table: Table) -> Iterator[str]:
    """9: used bytes equal the sum over the slots, each of which has the extent it names."""
    words = session.words
    extents = _with_extent(table)
    total = int(extents[:, L.S_EXTENT_NBYTES].sum())
    if total != words[L.W_USED]:
        yield f"the slots have {total} bytes, USED says {words[L.W_USED]}"
    blocks = {
        b.node: (b.offset, b.nbytes) for b in session.allocator.blocks() if b.status == L.NODE_USED
    }
    if len(blocks) != len(extents):
        yield f"{len(extents)} slots have an extent, {len(blocks)} blocks are used"
    for offset, nbytes, node in extents[:, [L.S_EXTENT, L.S_EXTENT_NBYTES, L.S_NODE]].tolist():
        if blocks.get(node - 1) != (offset, nbytes):
            yield f"the extent {offset}+{nbytes} is not its block, {blocks.get(node - 1)}"


def counts_agree(session: Session, table: Table) -> Iterator[str]:
    """10: the counts of objects and the lists of free and doomed slots agree with the states."""
    words, state = session.words, _state(table)
    has_key = table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
    present, spilled = _present(table), state == states.SPILLED
    found = (
        int(present.sum()),
        int((present & has_key).sum()),
        int(spilled.sum()),
        int(table[spilled, L.S_EXTENT_NBYTES].sum()),
    )
    counted = tuple(words[w] for w in (L.W_OBJECTS, L.W_NAMED, L.W_SPILLED, L.W_SPILLED_BYTES))
    if found != counted:
        yield f"(objects, named, spilled, bytes of these) are {found}, counted {counted}"
    doomed = set(session.slots.doomed())
    waiting = set(np.flatnonzero(state == states.DOOMED).tolist())
    if doomed != waiting:
        yield f"the list of doomed slots has {len(doomed)}, {len(waiting)} are DOOMED"
    free = session.slots.count_free()
    if free != int((state == states.FREE).sum()):
        yield f"the list of free slots has {free}, {int((state == states.FREE).sum())} are FREE"


def files_are_there(session: Session, _: Table) -> Iterator[str]:
    """11: each object outside of memory has its file, and each file its object or writer."""
    if not session.spills:
        if session.words[L.W_SPILLED]:
            yield f"{session.words[L.W_SPILLED]} objects are SPILLED, the store has no files"
        return
    objects = session.slots.in_files()
    for slot, generation in session.files.missing(objects):
        yield f"the file of slot {slot}, generation {generation}, is gone"
    serials = {client.serial for client in session.clients.rows()}
    for name in session.files.strays(objects, serials):
        yield f"the file {name} belongs to nobody"


def data_is_whole(session: Session) -> Iterator[str]:
    """12: the checksums of files agree, and of data that readers cannot write, where kept."""
    for word, slot in session.slots.present():
        try:
            plan = make_plan(session, slot, word)
            if isinstance(plan, FilePlan):
                plan.verify_again()
        except ShmStoreError as error:
            yield str(error)


DEEP: Final = 12
INVARIANTS: Final[dict[int, Callable[[Session, Table], Iterator[str]]]] = {
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
}
