"""How is the extent of a deleted object filled anew without the lock?

By who has put that object and taken it back: its slot is SPARE, with the extent (see `_spares`).
Here the owner is the reclaimer of the pin race (see `Space.reclaim`): the slot became SPARE, then a
barrier, then the pins are looked at. Who pins what is deleted, since somebody else pins it, is
about to fork, or has been sent a view (`_claiming.hold_deleted`): PINS_COPIED tells that.

One buffer, unless it is large, is copied in the same step in which the slot is taken. For all else
the slot is FILLING meanwhile: nobody else changes it, and readers miss it.

Concurrency: threads and processes, as `_spares`.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from shmstore._catalog import states
from shmstore._catalog.inserts import DESCRIPTION, DESCRIPTION_AT, Content
from shmstore._copying import Place, PlanFailed, copy
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._packing import pack_array
from shmstore._ref import ObjectRef
from shmstore._spares import ROOM, WITH_EXTENT, Entry, Pile, Spares, take_generations
from shmstore._tracing import COVERAGE, DEBUGGER, get_tool, gettrace

if TYPE_CHECKING:
    import numpy as np

    from shmstore._packing import Package
    from shmstore._session import Session
    from shmstore._sharing.seats import Anchor

# A barrier costs 1 us, and many where other processors are at work; then come the pins of all
# clients. Unless they are as large as this together, so many extents share that.
_SHARED_NBYTES: Final = 1 << 21
_SHARED_SLOTS: Final = 16

# One buffer up to this size is copied in one step: the other threads of this process wait for some
# 100 us at most, and a step costs less than letting them run meanwhile.
_AT_ONCE_NBYTES: Final = 2 << 20

_describe: Final = DESCRIPTION.pack


def refill_array(
    session: Session,
    x: np.ndarray[Any, Any],
    readonly: bool | None,  # noqa: FBT001 - a put calls it
) -> ObjectRef | None:
    """Put an array without key into an extent of the same size; None: that needs another way.

    Flat: the workload "put" of the benchmarks pays for it.
    """
    size = x.nbytes
    nbytes = L.align(size)
    pile = session.spares.piles.get(nbytes)
    if pile is None or not 0 < size <= _AT_ONCE_NBYTES:
        return None
    entry = _unpinned(session, pile, nbytes)
    packed = None if entry is None else pack_array(x, readonly)
    if entry is None or packed is None:
        return None
    return _fill_at_once(session, pile, nbytes, entry, 0, *packed)


def refill_stream(session: Session, header: bytes, stream: bytes) -> ObjectRef | None:
    """Put a pickle without buffers into an extent of its size; None: that needs another way."""
    nbytes = L.align(len(stream))
    pile = session.spares.piles.get(nbytes)
    entry = None if pile is None else _unpinned(session, pile, nbytes)
    if pile is None or entry is None:
        return None
    frame = memoryview(stream)
    return _fill_at_once(session, pile, nbytes, entry, L.KIND_PLAIN, header, frame)


def refill(session: Session, package: Package) -> ObjectRef | None:
    """Put an object without key into an extent of the same size; None: that needs the lock."""
    nbytes, content = package.extent_nbytes, package.content
    pile = session.spares.piles.get(nbytes)
    if pile is None or content.kind & L.KIND_DATA_CRC:
        return None
    entry = _unpinned(session, pile, nbytes)
    if entry is None:
        return None
    one = len(package.frames) == 1 and not content.kind & L.KIND_HEADER_IN_EXTENT
    if one and content.data_nbytes <= _AT_ONCE_NBYTES:
        [(_, frame)] = package.frames
        if type(frame) is memoryview:
            described = content.kind, content.header, frame
            return _fill_at_once(session, pile, nbytes, entry, *described)
    return _fill(session, pile, entry, package)


def _fill(session: Session, pile: Pile, entry: Entry, package: Package) -> ObjectRef | None:
    """Fill a slot that is sound while others go on; None: that needs another way."""
    nbytes = package.extent_nbytes
    guard: Anchor | None = session.pins.hold(entry[0])  # lets nobody close the store meanwhile
    spares = session.spares  # another thread that forks exchanges them for the moment
    generation = _take(session, spares, pile, nbytes, entry)
    if not generation:
        return None
    # No call up to here.
    own = None
    try:
        extent = Extent(-1, entry[-1], nbytes, cold=False)
        copy(session, package, Place(entry[0], generation, extent), guard)
        ref = _publish(session, spares, package.content, nbytes, entry, generation)
        if ref is not None:
            return ref
    except PlanFailed as failed:
        _let_go(session, spares, pile, nbytes, entry)
        own = failed.error
    except BaseException:
        _let_go(session, spares, pile, nbytes, entry)
        guard = None  # the traceback keeps this frame
        raise
    guard = None
    if own is None:
        return None
    raise own


def _fill_at_once(
    session: Session,
    pile: Pile,
    nbytes: int,
    entry: Entry,
    kind: int,
    header: bytes,
    frame: memoryview,
) -> ObjectRef | None:
    """Fill a slot that is sound, in one step of this process; None: that needs another way.

    The owner's steps (1) to (4) of `_spares`, with the copy between (2) and (3). Flat: the workload
    "put" of the benchmarks pays for it.
    """
    spares = session.spares
    slot, base, spare, seed, start = entry
    generation, size = spares.following, frame.nbytes
    session.segment.meet(start, size)
    word = states.ready_word(generation)
    body = _describe(spares.serial, nbytes, len(header), size, 0, 0, time_ns(), session.pid, 0)
    body += header
    # As `layout.first_crc`.
    kinds = kind | crc32(body, (word & -256 | kind) ^ seed) << L.CRC_SHIFT
    at = base * L.WORD + DESCRIPTION_AT
    # Here: Python 3.11 may collect garbage as it makes a slice.
    place, extent = slice(at, at + len(body)), slice(start, start + size)
    ref = ObjectRef(session.uuid, session.path_text, slot, generation, size, None, session.gid)
    words, memory, target = session.words, session.memory, session.segment.bytes
    told, ending = session.counts, spares.row + L.C_ENDING
    # No call from here on.
    top, sound, slots = pile.top, pile.sound, pile.slots
    if not (sound and slots[sound - 1] is entry and generation == spares.following < spares.end):
        return None  # another thread was here
    words[ending] = slot + 1
    # The state last: nobody else gives a slot this word again, whoever sets its LINK.
    if words[base + L.S_LINK] != L.LINK_OWN or words[base] != spare or words[L.W_DESTROYED]:
        words[ending] = 0
        pile.sound = 0
        spares.astray = True  # it was seized
        return None
    target[extent] = frame
    memory[place] = body
    words[base + L.S_KIND] = kinds
    words[base] = word
    words[ending] = 0
    spares.following = generation + 1
    slots[sound - 1] = slots[top - 1]
    pile.top, pile.sound = top - 1, sound - 1
    words[spares.row + L.C_SPARES] = spares.count = spares.count - WITH_EXTENT
    told[L.SEAT_KEPT] = spares.nbytes = spares.nbytes - nbytes
    try:  # as `counts.add`
        told[L.SEAT_PUTS] += 1
        told[L.SEAT_PUT_NBYTES] += size
    except ValueError:
        pass
    if words[L.W_DESTROYED]:
        session.check_alive()
    return ref


def _take(session: Session, spares: Spares, pile: Pile, nbytes: int, entry: Entry) -> int:
    """Make the last sound slot of a pile FILLING; return the generation of the put, or 0.

    The owner's steps (1) to (4) of `_spares`.
    """
    words, told = session.words, session.counts
    base, spare, ending = entry[1], entry[2], spares.row + L.C_ENDING
    filling = states.filling_word(states.generation_of(spare))
    # No call from here on.
    top, sound, slots = pile.top, pile.sound, pile.slots
    generation = spares.following
    if not sound or slots[sound - 1] is not entry or generation >= spares.end:
        return 0  # another thread was here
    words[ending] = entry[0] + 1
    if words[base + L.S_LINK] != L.LINK_OWN or words[base] != spare or words[L.W_DESTROYED]:
        words[ending] = 0
        pile.sound = 0
        spares.astray = True  # it was seized
        return 0
    words[base] = filling
    words[ending] = 0
    spares.following = generation + 1
    slots[sound - 1] = slots[top - 1]
    pile.top, pile.sound = top - 1, sound - 1
    told[L.SEAT_KEPT] = spares.nbytes = spares.nbytes - nbytes
    return generation


def _publish(
    session: Session, spares: Spares, content: Content, nbytes: int, entry: Entry, generation: int
) -> ObjectRef | None:
    """Make the object of a FILLING slot visible, and count it; None: it is another's.

    A signal handler may have forked meanwhile, and this is the child.
    """
    words, memory = session.words, session.memory
    slot, base, spare, seed, _ = entry
    filling = states.filling_word(states.generation_of(spare))
    kind, header, _, data_nbytes, _, _ = content
    word = states.ready_word(generation)
    body = _describe(
        spares.serial, nbytes, len(header), data_nbytes, 0, 0, time_ns(), session.pid, 0
    )
    # As `layout.first_crc`.
    crc = crc32(header, crc32(body, (word & -256 | kind) ^ seed))
    if not kind & L.KIND_HEADER_IN_EXTENT:
        body += header
    ref = ObjectRef(
        session.uuid, session.path_text, slot, generation, data_nbytes, None, session.gid
    )
    kinds, counted = kind | crc << L.CRC_SHIFT, session.counts
    start = base * L.WORD + DESCRIPTION_AT
    place = slice(start, start + len(body))  # here: Python 3.11 may collect garbage as it makes one
    # No call from here on.
    if words[base] != filling or words[base + L.S_OWNER] != spares.serial:
        return None
    memory[place] = body
    words[base + L.S_KIND] = kinds
    words[base] = word
    words[spares.row + L.C_SPARES] = spares.count = spares.count - WITH_EXTENT
    try:  # as `counts.add`
        counted[L.SEAT_PUTS] += 1
        counted[L.SEAT_PUT_NBYTES] += data_nbytes
    except ValueError:
        pass
    if words[L.W_DESTROYED]:
        session.check_alive()
    return ref


def _let_go(session: Session, spares: Spares, pile: Pile, nbytes: int, entry: Entry) -> None:
    """Make a slot SPARE again that is still FILLING, and by this process."""
    words, told = session.words, session.counts
    base, spare = entry[1], entry[2]
    filling = states.filling_word(states.generation_of(spare))
    # No call from here on.
    top = pile.top
    if words[base] != filling or words[base + L.S_OWNER] != spares.serial:
        return
    words[base] = spare
    if top == ROOM:
        spares.astray = True
        return
    pile.slots[top] = entry
    pile.top = top + 1
    told[L.SEAT_KEPT] = spares.nbytes = spares.nbytes + nbytes


def _unpinned(session: Session, pile: Pile, nbytes: int) -> Entry | None:
    """Return a slot of a pile that nobody looks at; None: there are too few to find out.

    There is a generation to give to it then.
    """
    if session.spares.following >= session.spares.end:
        session.lock.run(take_generations, session)
    sound, top, slots = pile.sound, pile.top, pile.slots
    if session.spares.watched or gettrace() or get_tool(DEBUGGER) or get_tool(COVERAGE):
        return None
    if sound:
        return slots[sound - 1]
    if top < _SHARED_SLOTS and top * nbytes < min(_SHARED_NBYTES, session.most_spare // 2):
        return None
    entries = slots[:top]
    session.pass_barrier()
    pinned = session.clients.pinned_meanwhile()
    if pinned is None:
        return None
    free = [entry for entry in entries if entry[0] not in pinned]
    last, whole, found = entries[-1], slice(top), len(free)
    entries = free + [entry for entry in entries if entry[0] in pinned]
    # No call from here on. As long as the last one is there, those below it are the same, unless
    # another thread has found out anew which these are.
    same = pile.slots is slots and pile.top == top and slots[top - 1] is last
    if pile.sound or not same or not found:
        return None
    slots[whole] = entries
    pile.sound = found
    return slots[found - 1]
