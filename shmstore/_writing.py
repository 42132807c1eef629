"""How does an object get into the store, whole or not at all?

A put packs the object without any lock, reserves slot and extent under the lock, copies the
frames, and publishes under the lock. What is small and goes into warm pages does the last three in
one lock hold; the memcpy is shorter than a second one.

Concurrency: threads and processes. Whatever ends a put before it is published (an error, a signal,
the death of the process) gives its slot and extent back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shmstore import _announcing, _claiming, _no_room, _room, _spares
from shmstore._catalog import states
from shmstore._copying import Place, PlanFailed, copy
from shmstore._memory import folder
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._packing import COPY_LOCKED_NBYTES, Package
from shmstore._puts import put_spare, refer, refer_all
from shmstore._ref import ObjectRef
from shmstore._refilling import refill
from shmstore._session import Session
from shmstore._sharing.seats import Anchor
from shmstore.errors import (
    KeyExistsError,
    LockTimeoutError,
    ShmStoreError,
)

# How many slots one put looks at for objects whose time is over.
_EXPIRE_FEW: Final = 64


# --- 2 reserve, 3 copy, 4 publish --------------------------------------------------------------


def put(session: Session, package: Package, *, overwrite: bool) -> ObjectRef:
    """Store one packed object."""
    content = package.content
    if package.key is None and not content.ttl_ns:
        if not package.extent_nbytes:
            ref = put_spare(session, content.kind, content.header, content.inline)
        else:
            ref = refill(session, package)
        if ref is not None:
            return ref
    places: list[Place] = []
    run = session.lock.run
    try:
        guard = run(put_small, session, package, places, overwrite)
        if guard is not None:
            copy(session, package, places[0], guard)
            run(publish_all, session, [package], places, overwrite)
        return refer(session, package, places[0])
    except PlanFailed as failed:
        own = failed.error
    except BaseException as error:
        guard = None  # the traceback keeps this frame
        discard(session, [package], places, error)
        raise
    guard = None
    discard(session, [package], places)
    raise own


def put_many(session: Session, packages: Sequence[Package], *, overwrite: bool) -> list[ObjectRef]:
    """Store packed objects, all or none, in one lock hold if they are small and two if not."""
    places: list[Place] = []
    run = session.lock.run
    try:
        guard = run(_put_all_small, session, packages, places, overwrite)
        if guard is not None:
            for package, place in zip(packages, places, strict=True):
                copy(session, package, place, session.pins.hold(place.slot))
            run(publish_all, session, packages, places, overwrite)
        return refer_all(session, packages, places)
    except PlanFailed as failed:
        own = failed.error
    except BaseException as error:
        guard = None
        discard(session, packages, places, error)
        raise
    guard = None
    discard(session, packages, places)
    raise own


def put_small(
    session: Session,
    package: Package,
    places: list[Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> Anchor | None:
    """Find a place; if it is small and warm, copy and insert. Requires: the store lock.

    Flat: the workload "put" of the benchmarks pays for it.

    Returns
    -------
    Anchor or None
        What the caller holds until it has copied and published itself; None: it is done.
    """
    words = session.words
    if words[L.W_DESTROYED] or words[L.W_NEXT_EXPIRY_NS] or session.readonly or not overwrite:
        begin(session, [package], overwrite=overwrite)
    slot, extent = find_place(session, package)
    if extent is not None and (extent.cold or extent.nbytes > COPY_LOCKED_NBYTES):
        take_place(session, slot, extent, places, _link_for(session, package))
        guard = session.pins.hold(places[0].slot)
    else:
        guard = None
        insert(session, package, slot, extent, places)
    if package.key is None:
        (_spares.settle if package.extent_nbytes else _spares.set_aside)(session)
    return guard


def _put_all_small(
    session: Session,
    packages: Sequence[Package],
    places: list[Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> Anchor | None:
    """Reserve places; if all are small and warm, copy and publish. Requires: the store lock."""
    inline = not any(package.extent_nbytes for package in packages)
    if inline and _insert_all(session, packages, places, overwrite):
        return None
    reserve_all(session, packages, places, overwrite)
    extents = [place.extent for place in places if place.extent is not None]
    nbytes = sum(extent.nbytes for extent in extents)
    if nbytes > COPY_LOCKED_NBYTES or any(extent.cold for extent in extents):
        return session.pins.hold(places[0].slot)
    for package, place in zip(packages, places, strict=True):
        copy(session, package, place)
        publish(session, package, place)
    return None


def _insert_all(
    session: Session,
    packages: Sequence[Package],
    places: list[Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> bool:
    """Publish what has no extents; False: there are not enough slots without looking for some."""
    begin(session, packages, overwrite=overwrite)
    slots, keys = session.slots, session.keys
    taken = slots.take_many(len(packages))
    if taken is None:
        return False
    numbered = enumerate(taken, slots.next_generation())
    places += [Place(slot, generation, None) for generation, slot in numbered]
    named = [both for both in zip(packages, places, strict=True) if both[0].key is not None]
    if named:
        keys.prepare(len(named))
        if session.words[L.W_WAITERS]:
            for package, place in named:
                _tell(session, package, place)
    old = [keys.find(package.content.digest) for package, _ in named]
    contents = [package.content for package in packages]
    slots.insert_many(taken, contents, session.pins.seat.serial, session.pid)
    for (_, place), before in zip(named, old, strict=True):
        _take_key(session, place.slot, before)
    return True


def reserve_all(
    session: Session,
    packages: Sequence[Package],
    places: list[Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> None:
    """Reserve a place for each package; `places` always tells which. Requires: the store lock."""
    begin(session, packages, overwrite=overwrite)
    for package in packages:
        reserve(session, package, places)


def begin(session: Session, packages: Sequence[Package], *, overwrite: bool) -> None:
    """Raise unless these may be put; look for some whose time is over. Requires: the lock."""
    if session.words[L.W_DESTROYED]:
        session.check_alive()
    if session.readonly or not overwrite:
        check_allowed(session, packages, overwrite=overwrite)
    if session.words[L.W_NEXT_EXPIRY_NS]:
        _room.expire_some(session, _EXPIRE_FEW)


def publish_all(
    session: Session,
    packages: Sequence[Package],
    places: Sequence[Place],
    overwrite: bool,  # noqa: FBT001 - called under the lock
) -> None:
    """Make objects visible whose frames lie in their extents. Requires: the store lock."""
    check_publication(session, packages, places, overwrite=overwrite)
    for package, place in zip(packages, places, strict=True):
        publish(session, package, place)


def check_publication(
    session: Session, packages: Sequence[Package], places: Sequence[Place], *, overwrite: bool
) -> None:
    """Raise unless reserved places are still ours and the keys may be taken."""
    session.check_alive()
    check_allowed(session, packages, overwrite=overwrite)
    for place in places:
        if not session.slots.is_writing(place.slot, place.generation):
            raise session.slots.damaged(place.slot, "it was taken away while it was written")


def discard(
    session: Session,
    packages: Sequence[Package],
    places: Sequence[Place],
    error: BaseException | None = None,
) -> None:
    """Undo a put that ended in an exception; let ENOSPC say which file system is full."""
    no_room = isinstance(error, OSError) and not isinstance(error, ShmStoreError)
    if places:
        try:
            session.lock.run(_discard_all, session, packages, places, no_room)
        except BaseException as second:
            session.abandoned += [(place.slot, place.generation) for place in places]
            if not isinstance(second, LockTimeoutError):
                raise
    if isinstance(error, OSError) and no_room:
        asked = sum(place.extent.nbytes for place in places if place.extent) or L.SLOT_NBYTES
        raise folder.full_file_system(session.folder_fd, session.path, asked, error) from error


def _discard_all(
    session: Session,
    packages: Sequence[Package],
    places: Sequence[Place],
    no_room: bool,  # noqa: FBT001 - called under the lock
) -> None:
    """Doom half-made objects, and whole ones that nobody has a name or a reference for.

    With `no_room` no view was made yet, and the pages that there was room for go back.
    """
    for package, place in zip(packages, places, strict=False):
        word = session.slots.word(place.slot)
        half_made = word == states.first_word(place.generation)
        if no_room and half_made and place.extent is not None and place.extent.cold:
            session.segment.release_pages(place.extent.offset, place.extent.nbytes)
        whole = states.is_present(word) and states.generation_of(word) == place.generation
        if half_made or (package.key is None and whole):
            session.doom(place.slot)


def check_allowed(session: Session, packages: Sequence[Package], *, overwrite: bool) -> None:
    """Raise for a read-only session, and for the first key that is taken and may not be."""
    session.check_writeable()
    for package in () if overwrite else packages:
        slot = -1 if package.key is None else session.keys.find(package.content.digest)
        if slot >= 0 and not _room.end_if_over(session, slot):
            raise KeyExistsError(
                f"the key {package.key!r} is taken in store {session.path.name!r}. Delete it, use "
                "another key, or put with overwrite=True.",
                key=package.key,
            )


def reserve(session: Session, package: Package, places: list[Place]) -> None:
    """Take a slot and an extent for a put that goes on without the lock."""
    take_place(session, *find_place(session, package), places, _link_for(session, package))


def take_place(
    session: Session, slot: int, extent: Extent | None, places: list[Place], link: int = 0
) -> None:
    """Give a slot, and an extent, to a put that goes on without the lock."""
    places.append(Place(slot, session.slots.next_generation(), extent))
    session.slots.reserve(slot, session.pins.seat.serial, extent, link)


def _link_for(session: Session, package: Package) -> int:
    """Return whether this process may take the object back without the lock, as its LINK."""
    nbytes = package.extent_nbytes
    ends_alone = package.key is None and not package.content.ttl_ns
    return L.LINK_OWN if ends_alone and 0 < nbytes <= session.most_spare else 0


def find_place(session: Session, package: Package) -> tuple[int, Extent | None]:
    """Return a free slot, and an extent; find room and look again before giving up.

    The slot is taken by whoever fills it next, under the same hold of the lock.
    """
    nbytes = package.extent_nbytes
    if nbytes > session.identity.capacity:
        _no_room.check_size(session, nbytes)
    if place := _try_place(session, package):
        return place
    if not session.evicts:  # there what is over is the first to go
        _room.expire(session)
    _claiming.seize(session)
    _spares.give_back_slots(session, _spares.ROOM)
    session.bury()
    if place := _try_place(session, package):
        return place
    if session.evicts:
        asked = nbytes if session.slots.take() is not None else 0
        while _room.evict_for(session, asked):
            if place := _try_place(session, package):
                return place
            asked = nbytes
        session.bury()
        if place := _try_place(session, package):
            return place
    raise _no_room.full(session, nbytes)


def _try_place(session: Session, package: Package) -> tuple[int, Extent | None] | None:
    if package.key is not None:
        session.keys.prepare()
    if session.words[L.W_DOOMED_BYTES] > session.most_doomed:
        place = session.recycle(package.extent_nbytes)
        if place is not None:
            return place
    slot = session.slots.take()
    if slot is None:
        return None
    if not package.extent_nbytes:
        return slot, None
    extent = session.allocator.allocate(package.extent_nbytes, slot)
    return None if extent is None else (slot, extent)


def insert(
    session: Session, package: Package, slot: int, extent: Extent | None, places: list[Place]
) -> None:
    """Copy the frames into a warm extent and publish, all in this hold of the lock."""
    slots, content = session.slots, package.content
    place = Place(slot, slots.next_generation(), extent)
    places.append(place)
    if extent is not None:
        copy(session, package, place)
    if session.words[L.W_WAITERS] and package.key is not None:
        _tell(session, package, place)
    old = -1 if package.key is None else session.keys.find(content.digest)
    link = _link_for(session, package)
    slots.insert(slot, content, session.pins.seat.serial, session.pid, extent, link)
    if package.key is not None:
        _take_key(session, slot, old)


def publish(session: Session, package: Package, place: Place, state: int = states.READY) -> None:
    """Make an object visible; it takes the place of an older one under the same key.

    Requires: the store lock. The new slot is READY and stands behind the old one in the chain of
    their key when the old one is doomed: with that one store every reader, whether it asks by the
    key or remembers the slot, passes from the old object to the new, and none passes back.
    """
    if place.extent is not None and place.extent.cold:
        session.allocator.mark_warm(session.slots.read(place.slot).node)
    if package.key is None:
        session.slots.publish(place.slot, package.content, session.pid, state)
        return
    if session.words[L.W_WAITERS]:
        _tell(session, package, place)
    old = session.keys.find(package.content.digest)
    session.slots.publish(place.slot, package.content, session.pid, state)
    _take_key(session, place.slot, old)


def _take_key(session: Session, slot: int, old: int) -> None:
    """Let a key lead to a new slot; `old` is the one that it led to, or -1."""
    if old >= 0:
        link = session.keys.add_behind(old, slot)
        session.doom(old)
        session.keys.pass_by(link, slot)
    else:
        session.keys.add(slot)


def _tell(session: Session, package: Package, place: Place) -> None:
    """Tell those who wait for a key that its object comes."""
    content, where = package.content, (place.slot, place.generation, package.content.data_nbytes)
    _announcing.key_changes(session, _announcing.PUT, content.digest, where, package.key)
