"""How is an object put that finds no room in memory, where there are files for it?

Memory comes first: what was not used for longest leaves it (see `_spilling`). What still finds no
room, since it is larger than the store or too much is looked at, lies in a file from the beginning:

1. reserve (lock)     a slot without an extent
2. write   (no lock)  the frames into a file under a temporary name, or they are made there
3. publish (lock)     the files get their names, then the slots say SPILLED

A batch takes what room there is, object by object, and files for the others. It is published under
one lock hold.

Concurrency: as `_writing`. Files under temporary names, and those whose slots are not SPILLED yet,
are removed by `_recovery` when their writer dies.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from shmstore import _copying, _puts, _spilling, _writing
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory.folder import NO_ROOM
from shmstore._memory.mapping import map_file, write_all
from shmstore._memory.shortage import NoPagesError
from shmstore._packing import Package, Placed
from shmstore._ref import ObjectRef
from shmstore._sharing.seats import Anchor

if TYPE_CHECKING:
    import mmap

    import numpy.typing as npt

    from shmstore._session import Session


def put(session: Session, package: Package, *, overwrite: bool) -> ObjectRef:
    """Store one packed object, in memory if room can be made there."""
    attempt = partial(_writing.put, session, package, overwrite=overwrite)
    otherwise = partial(_put_where_room_is, session, [package], overwrite=overwrite)
    return _spilling.spilling(
        session, lambda: package.extent_nbytes, attempt, lambda: otherwise()[0]
    )


def put_many(session: Session, packages: Sequence[Package], *, overwrite: bool) -> list[ObjectRef]:
    """Store packed objects, all or none, in memory if room can be made for all of them."""
    nbytes = sum(package.extent_nbytes for package in packages)
    attempt = partial(_writing.put_many, session, packages, overwrite=overwrite)
    otherwise = partial(_put_where_room_is, session, packages, overwrite=overwrite)
    return _spilling.spilling(session, lambda: nbytes, attempt, otherwise)


def _put_where_room_is(
    session: Session, packages: Sequence[Package], *, overwrite: bool
) -> list[ObjectRef]:
    """Store packed objects, all or none; what finds no room in memory goes into files."""
    places: list[_copying.Place] = []
    names: list[str] = []
    guard = None
    try:
        guard = session.lock.run(reserve, session, packages, places, overwrite)
        for package, place in zip(packages, places, strict=True):
            if is_filed(package, place):
                names.append(session.files.new_name(session.pins.seat.serial))
                write(session, package, place, names[-1])
            else:
                names.append("")
                _copying.copy(session, package, place)
        session.lock.run(publish, session, packages, places, names, overwrite)
        names.clear()
        return _puts.refer_all(session, packages, places)
    except _copying.PlanFailed as failed:
        own = failed.error
    except BaseException as error:
        guard = None  # the traceback keeps this frame
        give_up(session, packages, places, error)
        raise
    finally:
        del guard
        _spilling.discard(session, filter(None, names))
    give_up(session, packages, places)
    raise own


def is_filed(package: Package, place: _copying.Place) -> bool:
    """Return whether a package was reserved a file."""
    return place.extent is None and package.extent_nbytes > 0


def reserve(
    session: Session,
    packages: Sequence[Package],
    places: list[_copying.Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> Anchor:
    """Take a slot for each package, and an extent while there are some. Requires: the lock."""
    session.check_alive()
    _writing.check_allowed(session, packages, overwrite=overwrite)
    session.reclaim(session.identity.max_objects)
    for package in packages:
        nbytes = package.extent_nbytes
        fits = nbytes <= session.allocator.largest_free()
        _writing.reserve(session, package if fits else package._replace(extent_nbytes=0), places)
        if not fits:
            session.slots.expect_file(places[-1].slot, nbytes)
    return session.pins.hold(places[0].slot)


def write(session: Session, package: Package, place: _copying.Place, name: str) -> None:
    """Write what is to be put to a temporary file, and keep the checksum of what is sealed."""

    def fill(fd: int) -> int:
        for placed in package.frames:
            _spilling.burying(session, partial(write_all, fd, *_made(placed)))
        memory = map_file(fd, L.PAGE + package.extent_nbytes, writeable=False)
        _seal(session, package, place, memory)
        return crc32(memoryview(memory)[L.PAGE :])

    session.files.write(name, place.slot, place.generation, package.extent_nbytes, fill)


def _made(placed: Placed) -> tuple[memoryview, int]:
    """Return what is to be written, and where in the file."""
    offset, frame = placed
    if isinstance(frame, memoryview):
        return frame, L.PAGE + offset
    try:
        return frame.materialize(), L.PAGE + offset
    except BaseException as error:
        raise _copying.PlanFailed(error) from error


def _seal(session: Session, package: Package, place: _copying.Place, memory: mmap.mmap) -> None:
    """Keep the checksum of what lies in a file and cannot be written by readers."""
    if package.content.kind & L.KIND_DATA_CRC:
        extent = memoryview(memory)[L.PAGE :]
        crc = 0
        for offset, size in package.sealed:
            crc = crc32(extent[offset : offset + size], crc)
        session.slots.note_data_crc(place.slot, crc)


def publish(
    session: Session,
    packages: Sequence[Package],
    places: Sequence[_copying.Place],
    names: Sequence[str],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> None:
    """Make objects visible; those with names lie in files. Requires: the store lock."""
    _writing.check_publication(session, packages, places, overwrite=overwrite)
    for place, name in zip(places, names, strict=True):
        if name:
            session.files.commit(name, place.slot, place.generation)
    for package, place, name in zip(packages, places, names, strict=True):
        state = states.SPILLED if name else states.READY
        _writing.publish(session, package, place, state)


def give_up(
    session: Session,
    packages: Sequence[Package],
    places: Sequence[_copying.Place],
    error: BaseException | None = None,
) -> None:
    """Undo a put that ended in an exception; let ENOSPC say which file system is full."""
    if isinstance(error, OSError) and not isinstance(error, NoPagesError):
        _writing.discard(session, packages, places)
        if error.errno in NO_ROOM:
            asked = sum(package.extent_nbytes for package in packages)
            raise _spilling.full(session, asked, error) from error
    else:
        _writing.discard(session, packages, places, error)


class Draft:
    """A file that an array is built in, until it is published or given up.

    Parameters
    ----------
    session, package, place
        What is built, and the slot that was reserved for it.
    """

    def __init__(self, session: Session, package: Package, place: _copying.Place) -> None:
        self._session = session
        self._package = package
        self._place = place
        self._guard: Anchor | None = Anchor()
        self._cell = session.pins.pin(self._guard, place.slot)
        self._name = session.files.new_name(session.pins.seat.serial)
        self._memory: mmap.mmap | None = None
        self._array: weakref.ref[npt.NDArray[Any]] | None = None

    def make_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Make the file; return the array that lies in it."""
        session, nbytes = self._session, self._package.extent_nbytes
        try:
            memory = _spilling.burying(session, self._build)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise _spilling.full(session, nbytes, error) from error
        array: npt.NDArray[Any] = np.ndarray(shape, dtype, memory, L.PAGE)
        self._memory, self._array = memory, weakref.ref(array)
        return array

    def _build(self) -> mmap.mmap:
        files, package, place = self._session.files, self._package, self._place
        files.discard(self._name)  # what an earlier attempt has left
        frames = map(_made, package.frames)
        return files.build(self._name, place.slot, place.generation, package.extent_nbytes, frames)

    def publish(self, *, overwrite: bool) -> None:
        """Make the object visible; the array stays a view of it."""
        session, place = self._session, self._place
        assert self._memory is not None
        _seal(session, self._package, place, self._memory)
        session.lock.run(publish, session, [self._package], [place], [self._name], overwrite)
        array = None if self._array is None else self._array()
        if array is not None:
            session.pins.pass_on(self._cell, array)  # whoever brings it back has seen no gap
        self._guard = None
        self._name = ""

    def give_up(self) -> None:
        """Let go of the slot, and of the file unless that is published."""
        self._guard = None
        _spilling.discard(self._session, filter(None, [self._name]))
