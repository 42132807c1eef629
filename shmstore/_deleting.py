"""How does an object leave the store while others may look at it?

New readers miss it as soon as its slot is DOOMED. Its extent is used again when nobody pins it any
more: whoever next needs room sees to that (`Session.reclaim`).

Concurrency: under the store lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shmstore import _room
from shmstore._session import Session


def delete(session: Session, finders: Sequence[Callable[[], int]]) -> int:
    """Delete the objects whose slots are found under the lock (-1: not there); return how many."""
    session.check_writeable()
    return session.lock.run(_delete, session, finders)


def _delete(session: Session, finders: Sequence[Callable[[], int]]) -> int:
    """Requires: the store lock."""
    session.check_alive()
    deleted = 0
    for find in finders:
        slot = find()
        if slot >= 0 and not _room.end_if_over(session, slot):
            _room.end(session, slot)
            deleted += 1
    return deleted
