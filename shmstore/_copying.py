"""How do the frames of an object get into its extent?

Concurrency: an extent is written only by the put that it was given to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shmstore._memory import layout as L
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    from shmstore._memory.allocator import Extent
    from shmstore._packing import Package
    from shmstore._session import Session


class Place(NamedTuple):
    """Where a put may write: its slot, the number of the put, and its extent."""

    slot: int
    generation: int
    extent: Extent | None


def copy(session: Session, package: Package, place: Place, guard: object = None) -> None:
    """Copy the frames into the extent, or make them there; `guard` pins it for other threads."""
    if place.extent is None:
        return
    _, start, _, cold = place.extent
    segment = session.segment
    ready: list[tuple[int, memoryview]] = []
    for offset, frame in package.frames:
        if isinstance(frame, memoryview):
            ready.append((start + offset, frame))
            continue
        if cold:
            segment.reserve(start + offset, frame.nbytes)
        else:
            segment.meet(start + offset, frame.nbytes)
        # Whoever keeps a view of it, as a reader does, holds a pin.
        window = np.ndarray(frame.nbytes, np.uint8, segment.writeable, start + offset)
        session.pins.pin(window, place.slot)
        try:
            frame.write_into(window.data)
        except BaseException as error:
            raise PlanFailed(error) from error
    try:
        segment.write(ready, cold=cold, guard=guard)
    finally:
        del guard  # an error keeps this frame, and would keep the memory with it
    seal(session, package, place)


def seal(session: Session, package: Package, place: Place) -> None:
    """Keep the checksum of what lies in the extent and cannot be written by readers."""
    if package.content.kind & L.KIND_DATA_CRC and place.extent is not None:
        start = place.extent.offset
        ranges = [(start + offset, nbytes) for offset, nbytes in package.sealed]
        session.slots.note_data_crc(place.slot, session.segment.checksum(ranges))


class PlanFailed(BaseException):
    """What the plan of a frame raised: nothing that the store should explain."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error
