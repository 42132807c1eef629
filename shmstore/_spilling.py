"""How does an object leave memory for a file, so that others find room?

A store with `on_full="spill"` moves what was not used for longest and nobody looks at:

1. choose   (lock)     LAST_USED := 0, barrier, pins loaded: what is unpinned is pinned by us
2. write    (no lock)  the extent into a file under a temporary name
3. commit   (lock)     our pins dropped; the slot is withdrawn (see `_room`). If nobody has got the
                       object since 1, the file gets its name and the extent is free

A get notes LAST_USED after its pin and before its look at the slot word. Who got the object between
1 and 3, and may have written to it, is seen in 3 by its pin or, when that is gone, by LAST_USED.

What is larger than the whole store is written to a file at once.

Concurrency: threads and processes. A file under a temporary name goes with its writer's seat; one
whose object is in memory is a stray: `_recovery` removes both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zlib import crc32

from shmstore import _room, _writing
from shmstore._catalog import states
from shmstore._catalog.slots import Record
from shmstore._memory import layout as L
from shmstore._memory.folder import NO_ROOM, free_bytes
from shmstore._memory.mapping import map_file, write_all
from shmstore._packing import Package
from shmstore._ref import ObjectRef
from shmstore.errors import StoreClosedError, StoreFullError

if TYPE_CHECKING:
    from shmstore._session import Session

Result = TypeVar("Result")

_CHUNK_NBYTES: Final = 16 << 20

# How often others may take the room that was made.
_TRIES: Final = 100


class Guard:
    """The anchor of a pin of our own."""

    __slots__ = ("__weakref__",)


def put(session: Session, package: Package, *, overwrite: bool) -> ObjectRef:
    """Store one packed object, in memory if room can be made there."""
    if package.extent_nbytes <= session.identity.capacity:
        with contextlib.suppress(_NoRoomInMemoryError):
            return spilling(
                session,
                package.extent_nbytes,
                partial(_writing.put, session, package, overwrite=overwrite),
            )
    return put_into_file(session, package, overwrite=overwrite)


def put_many(session: Session, packages: Sequence[Package], *, overwrite: bool) -> list[ObjectRef]:
    """Store packed objects in memory, all or none."""
    nbytes = sum(package.extent_nbytes for package in packages)
    attempt = partial(_writing.put_many, session, packages, overwrite=overwrite)
    return spilling(session, min(nbytes, session.identity.capacity), attempt)


def spilling(session: Session, nbytes: int, attempt: Callable[[], Result]) -> Result:
    """Repeat what needs an extent of `nbytes`, and make room for it in between."""
    for _ in range(_TRIES):
        try:
            return attempt()
        except StoreFullError as error:
            if error.facts.get("out_of_slots") is not False:
                raise
            # Not the error itself: its frames hold this one, and what is to be put.
            message, facts = error.message, error.facts
        if not make_room(session, nbytes) and not session.lock.run(session.bury).nbytes:
            break
    raise _NoRoomInMemoryError(message, **facts)


class _NoRoomInMemoryError(StoreFullError):
    """As its base; told apart because there may be room in a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreFullError(self.message, **self.facts).__reduce__()


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
    guards: list[Guard] = []
    names: list[str] = []
    try:
        records = session.lock.run(_choose, session, nbytes, guards)
        for record in records:
            names.append(session.files.new_name(session.pins.seat.serial))
            _write(session, record, names[-1])
        session.lock.run(_commit, session, records, names, guards)
    except OSError as error:
        raise _full(session, nbytes, error) from error
    finally:
        guards.clear()  # an error keeps this frame
        _discard(session, names)
    return bool(names)


def _choose(session: Session, nbytes: int, guards: list[Guard]) -> list[Record]:
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
    for slot in slots:
        guards.append(Guard())
        session.pins.pin(guards[-1], slot)
    return [session.slots.read(slot) for slot in slots]


def _write(session: Session, record: Record, name: str) -> None:
    """Write the extent of an object to a temporary file."""
    generation, nbytes = states.generation_of(record.word), record.extent_nbytes
    view = memoryview(session.segment.readonly)[record.extent : record.extent + nbytes]

    def fill(fd: int) -> int:
        crc = 0
        for start in range(0, nbytes, _CHUNK_NBYTES):
            part = view[start : start + _CHUNK_NBYTES]
            write_all(fd, part, L.PAGE + start)
            crc = crc32(part, crc)
        return crc

    session.files.write(name, record.slot, generation, nbytes, fill)


def _commit(session: Session, records: list[Record], names: list[str], guards: list[Guard]) -> None:
    """Let the objects leave that nobody has got meanwhile. Requires: the store lock."""
    session.check_alive()
    guards.clear()  # and with them their pins
    words, at = session.words, session.slots.state_index
    waiting = {record.slot: (record, name) for record, name in zip(records, names, strict=True)}
    same = [record.slot for record in records if session.slots.is_same(record)]
    withdrawn = _room.withdraw(session, same)
    try:
        while withdrawn:
            record, name = waiting[withdrawn[-1]]
            if not words[at(record.slot) + L.S_LAST_USED]:
                generation = states.generation_of(record.word)
                session.files.commit(name, record.slot, generation)
                withdrawn.pop()
                session.free_extent(record.slot)
                words[L.W_SPILLS] += 1
            else:
                session.slots.return_to_memory(withdrawn.pop())
    except OSError:
        for slot in withdrawn:
            session.slots.return_to_memory(slot)
        raise


def _discard(session: Session, names: list[str]) -> None:
    """Remove temporary files, unless the store has gone and they with it."""
    try:
        for name in names:
            session.files.discard(name)
    except (OSError, StoreClosedError):
        if not session.closed:
            raise


def put_into_file(session: Session, package: Package, *, overwrite: bool) -> ObjectRef:
    """Store what finds no room in memory at once as a file."""
    places: list[_writing.Place] = []
    names: list[str] = []
    guard = None
    try:
        guard = session.lock.run(_reserve, session, package, places, overwrite)
        names.append(session.files.new_name(session.pins.seat.serial))
        _write_package(session, package, places[0], names[0])
        session.lock.run(_publish, session, package, places, names[0], overwrite)
        return _writing.refer(session, package, places[0])
    except BaseException as error:
        guard = None  # the traceback keeps this frame
        _writing.discard(session, [package], places)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise _full(session, package.extent_nbytes, error) from error
        raise
    finally:
        del guard
        _discard(session, names)


def _reserve(
    session: Session,
    package: Package,
    places: list[_writing.Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> _writing.Guard:
    """Take a slot without an extent. Requires: the store lock."""
    _writing.check_allowed(session, [package], overwrite=overwrite)
    _writing.reserve(session, package._replace(extent_nbytes=0), places)
    session.slots.expect_file(places[0].slot, package.extent_nbytes)
    return _writing.Guard(session, places[0])


def _write_package(session: Session, package: Package, place: _writing.Place, name: str) -> None:
    """Write what is to be put to a temporary file, and keep the checksum of what is sealed."""

    def fill(fd: int) -> int:
        for offset, frame in package.frames:
            data = frame if isinstance(frame, memoryview) else frame.materialize()
            write_all(fd, data, L.PAGE + offset)
        extent = memoryview(map_file(fd, L.PAGE + nbytes, writeable=False))[L.PAGE :]
        if package.content.kind & L.KIND_DATA_CRC:
            crc = 0
            for offset, size in package.sealed:
                crc = crc32(extent[offset : offset + size], crc)
            session.slots.note_data_crc(place.slot, crc)
        return crc32(extent)

    nbytes = package.extent_nbytes
    session.files.write(name, place.slot, place.generation, nbytes, fill)


def _publish(
    session: Session,
    package: Package,
    places: list[_writing.Place],
    name: str,
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> None:
    """Make an object visible that lies in a file. Requires: the store lock."""
    [place] = places
    _writing.check_publication(session, [package], places, overwrite=overwrite)
    session.files.commit(name, place.slot, place.generation)
    _writing.publish(session, package, place, states.SPILLED)


def _full(session: Session, asked: int, error: OSError) -> StoreFullError:
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
