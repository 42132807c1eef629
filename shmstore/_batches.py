"""How do many small objects without keys get into the store, all or none?

As in `_writing.put_many`, but what is done for each of them is done for all at once: see
`_catalog.batches`.

Concurrency: as said in `_writing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from shmstore import _packing, _puts, _writing
from shmstore._catalog import batches
from shmstore._copying import Place

if TYPE_CHECKING:
    from shmstore._ref import ObjectRef
    from shmstore._session import Session


# Fewer gain little, and the first batch of a process loses what NumPy takes to begin.
_FEWEST: Final = 24


def put(session: Session, objects: Sequence[Any]) -> list[ObjectRef] | None:
    """Store objects if all are small, plain, and of one type; None: they need another way."""
    if len(objects) < _FEWEST or session.optioned or session.spills:
        return None
    batch = _packing.pack_batch(objects)
    if batch is None:
        return None
    taken: list[tuple[Sequence[int], int]] = []
    try:
        session.lock.run(_insert, session, batch, taken)
        if taken:
            return _puts.refer_batch(session, *taken[0], batch.sizes)
    except BaseException as error:
        places = [
            Place(slot, generation, None)
            for slots, first in taken
            for generation, slot in enumerate(slots, first)
        ]
        _writing.discard(session, _packing.pack_again(batch), places, error)
        raise
    return _writing.put_many(session, _packing.pack_again(batch), overwrite=True)


def _insert(session: Session, batch: batches.Batch, taken: list[tuple[Sequence[int], int]]) -> None:
    """Publish them all; note in `taken` the slots and the first generation, if there are enough.

    Requires: the store lock.
    """
    _writing.begin(session, (), overwrite=True)
    slots = session.slots.take_many(len(batch.sizes))
    if slots is not None:
        taken.append((slots, session.slots.next_generation()))
        batches.insert(session.slots, slots, batch, session.pins.seat.serial, session.pid)
