"""How does an object leave memory for a file, so that others find room?

A store with `on_full="spill"` moves what was not used for longest and nobody looks at:

1. choose   (lock)     LAST_USED := 0, barrier, pins loaded: what is unpinned is pinned by us
2. write    (no lock)  the extent into a file under a temporary name
3. commit   (lock)     our pins dropped; the slot is withdrawn (see `_room`). If nobody has got the
                       object since 1, the file gets its name and the extent is free

A get notes LAST_USED after its pin and before its look at the slot word. Who got the object between
1 and 3, and may have written to it, is seen in 3 by its pin or, when that is gone, by LAST_USED.

Concurrency: threads and processes. A file under a temporary name goes with its writer's seat; one
whose object is in memory is a stray: `_recovery` removes both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from zlib import crc32

from shmstore import _room
from shmstore._catalog import states
from shmstore._catalog.slots import Record
from shmstore._memory import layout as L
from shmstore._memory import news
from shmstore._memory.folder import NO_ROOM, free_bytes
from shmstore._memory.mapping import write_all
from shmstore._sharing import counts
from shmstore._sharing.seats import Anchor
from shmstore.errors import ObjectTooLargeError, StoreClosedError, StoreFullError

if TYPE_CHECKING:
    from shmstore._session import Session

Result = TypeVar("Result")

_GOES: Final = "it is full, what was not used for longest goes to %s"

_CHUNK_NBYTES: Final = 16 << 20

# How often others may take the room that was made.
_TRIES: Final = 100


def spilling(
    session: Session,
    needed: Callable[[], int],
    attempt: Callable[[], Result],
    otherwise: Callable[[], Result],
) -> Result:
    """Repeat what finds no room in memory, and make some in between, while that helps.

    Parameters
    ----------
    needed
        Returns the bytes of extents that the next attempt needs.
    attempt
        Raises StoreFullError, or ObjectTooLargeError, when there is no room in memory.
    otherwise
        Called when there can be none.
    """
    for _ in range(_TRIES):
        if needed() > session.identity.capacity:
            break
        try:
            return attempt()
        except ObjectTooLargeError:
            break
        except StoreFullError as error:
            if error.facts.get("out_of_slots") is not False:
                raise
        if not make_room(session, needed()) and not session.lock.run(session.bury).nbytes:
            break
    return otherwise()


def burying(session: Session, attempt: Callable[[], Result]) -> Result:
    """Write to a file; once more if the file system was full of what somebody dead had left there.

    Parameters
    ----------
    attempt
        Writes, and may do so twice.

    Raises
    ------
    OSError
        ENOSPC: the file system is full of what the living have there.
    """
    try:
        return attempt()
    except OSError as error:
        if error.errno not in NO_ROOM or not session.lock.run(session.bury).clients:
            raise
    return attempt()


def make_room(session: Session, nbytes: int) -> bool:
    """Move objects to files until an extent of `nbytes` should be free.

    Returns
    -------
    bool
        False when what nobody looks at is not enough.

    Raises
    ------
    StoreFullError
        The file system of the files is full too.
    """
    guards: list[Anchor] = []
    names: list[str] = []
    try:
        records = session.lock.run(_choose, session, nbytes, guards)
        for record in records:
            names.append(session.files.new_name(session.pins.seat.serial))
            _write(session, record, names[-1])
        session.lock.run(_commit, session, records, names, guards)
    except OSError as error:
        raise full(session, nbytes, error) from error
    finally:
        guards.clear()  # an error keeps this frame
        discard(session, names)
    return bool(records)


def _choose(session: Session, nbytes: int, guards: list[Anchor]) -> list[Record]:
    """Find what may leave, and pin it with the guards. Requires: the store lock."""
    session.check_alive()
    words, at = session.words, session.slots.state_index
    slots = _room.choose(session, nbytes)
    while slots:
        for slot in slots:
            words[at(slot) + L.S_LAST_USED] = 0
        session.pass_barrier()
        if session.clients.pinned().isdisjoint(slots):
            break
        slots = _room.choose(session, nbytes)  # somebody got one of them since
    guards.extend(map(session.pins.hold, slots))
    records = [session.slots.read(slot) for slot in slots]
    for record in records:
        place = record.extent, L.align(record.extent_nbytes)
        if not session.slots.is_placed(record) or session.allocator.place(record.node) != place:
            raise session.slots.damaged(record.slot, "its extent is not the one that it was given")
    return records


def _write(session: Session, record: Record, name: str) -> None:
    """Write the extent of an object to a temporary file."""
    generation, nbytes = states.generation_of(record.word), record.extent_nbytes
    view = memoryview(session.segment.readonly)[record.extent : record.extent + nbytes]

    def fill(fd: int) -> int:
        crc = 0
        for start in range(0, nbytes, _CHUNK_NBYTES):
            part = view[start : start + _CHUNK_NBYTES]
            burying(session, partial(write_all, fd, part, L.PAGE + start))
            crc = crc32(part, crc)
        return crc

    session.files.write(name, record.slot, generation, nbytes, fill)


def _commit(
    session: Session, records: list[Record], names: list[str], guards: list[Anchor]
) -> None:
    """Let the objects leave that nobody has got meanwhile; `names` has the files that are left.

    Requires: the store lock.
    """
    session.check_alive()
    guards.clear()  # and with them their pins
    words, at = session.words, session.slots.state_index
    session.news.add_at_times(news.INFO, _GOES, session.files.path)
    waiting = {record.slot: (record, name) for record, name in zip(records, names, strict=True)}
    same = [record.slot for record in records if session.slots.is_same(record)]
    withdrawn = _room.withdraw(session, same)
    try:
        while withdrawn:
            record, name = waiting[withdrawn[-1]]
            if not words[at(record.slot) + L.S_LAST_USED]:
                generation = states.generation_of(record.word)
                session.files.commit(name, record.slot, generation)
                names.remove(name)
                withdrawn.pop()
                session.free_extent(record.slot)
                counts.add(words, L.W_SPILLS)
                counts.add(session.counts, L.SEAT_SPILLS)
            else:
                session.slots.return_to_memory(withdrawn.pop())
    except OSError:
        for slot in withdrawn:
            session.slots.return_to_memory(slot)
        raise


def discard(session: Session, names: Iterable[str]) -> None:
    """Remove temporary files, unless the store has gone and they with it."""
    try:
        with contextlib.ExitStack() as left:
            for name in names:
                left.callback(session.files.discard, name)
    except (OSError, StoreClosedError):
        if not session.closed:
            raise


def full(session: Session, asked: int, error: OSError) -> StoreFullError:
    """Return the error for files that find no room (or another OSError as it is)."""
    session.check_alive()  # its files go with a store
    if error.errno not in NO_ROOM:
        raise error
    free = free_bytes(session.files.fd)
    return StoreFullError(
        f"store {session.path.name!r} is full, and {session.files.path.parent} has no room for "
        f"{asked:,} bytes either ({free:,} are free; {error.strerror}). Delete objects, or create "
        "the store with a spill_dir on a larger file system.",
        asked=asked,
        free=free,
        path=str(session.files.path),
    )
