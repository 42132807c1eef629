"""Where does a put lie, what is returned for it, and where is it counted?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._packing import Package
from shmstore._ref import ObjectRef
from shmstore._sharing import counts

if TYPE_CHECKING:
    from shmstore._session import Session

_PUTS: Final = L.SEAT_PUTS
_NBYTES: Final = L.SEAT_PUT_NBYTES


class Place(NamedTuple):
    """Where a put may write: its slot, the number of the put, and its extent."""

    slot: int
    generation: int
    extent: Extent | None


def refer(session: Session, package: Package, place: Place) -> ObjectRef:
    """Return the reference to an object that has been published, and count it."""
    nbytes, counted = package.content.data_nbytes, session.counts
    try:  # as `counts.add`
        counted[_PUTS] += 1
        counted[_NBYTES] += nbytes
    except ValueError:
        pass
    return ObjectRef(
        session.uuid,
        session.path_text,
        place.slot,
        place.generation,
        nbytes,
        package.key,
        session.gid,
    )


def refer_all(
    session: Session, packages: Sequence[Package], places: Sequence[Place]
) -> list[ObjectRef]:
    """Return the references to objects that have been published, and count them."""
    sizes = [package.content.data_nbytes for package in packages]
    count(session, len(sizes), sum(sizes))
    store, path, gid = session.uuid, session.path_text, session.gid
    return [
        ObjectRef(store, path, place.slot, place.generation, nbytes, package.key, gid)
        for package, place, nbytes in zip(packages, places, sizes, strict=True)
    ]


def count(session: Session, objects: int, nbytes: int) -> None:
    """Count objects that have been published."""
    counts.add(session.counts, _PUTS, objects)
    counts.add(session.counts, _NBYTES, nbytes)
