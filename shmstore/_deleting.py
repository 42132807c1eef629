"""How does an object leave the store while others may look at it?

New readers miss it as soon as its slot is DOOMED. Its extent is used again when nobody pins it any
more: whoever next needs room sees to that (`Session.reclaim`).

Concurrency: under the store lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from shmstore import _claiming, _room, _spares
from shmstore._memory import layout as L
from shmstore._session import Session
from shmstore._sharing import counts
from shmstore.errors import ShmStoreError

Target = TypeVar("Target")


def delete(
    session: Session, find: Callable[[Session, Target], int], targets: Sequence[Target]
) -> int:
    """Delete objects; return how many there were.

    Parameters
    ----------
    session
        Of the store.
    find
        Gives the slot of a target under the lock, or -1.
    targets
        The objects.
    """
    if session.readonly:
        session.check_writeable()
    deleted = session.lock.run(_delete, session, find, targets)
    counts.add(session.counts, L.SEAT_DELETES, deleted)
    return deleted


def _delete(
    session: Session, find: Callable[[Session, Target], int], targets: Sequence[Target]
) -> int:
    """Requires: the store lock."""
    session.check_alive()
    words, slots = session.words, session.slots
    deleted, refused = 0, False
    for target in targets:
        slot = find(session, target)
        if slot < 0:
            continue
        at = slots.state_index(slot)
        if words[at + L.S_LINK] == L.LINK_OWN:
            refused |= words[at + L.S_OWNER] == session.spares.serial
            _claiming.claim(session, slot)
            if find(session, target) < 0:
                continue
        if words[at + L.S_KIND] & L.KINDS_OF_QUEUES:
            raise ShmStoreError("it is part of a queue: `get` or `destroy` of that takes it away")
        if not _room.end_if_over(session, slot):
            _room.end(session, slot)
            deleted += 1
    if refused:  # to be taken back: there may be too many
        _spares.make_room(session)
    return deleted
