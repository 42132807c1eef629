"""Who has taken objects from a queue, and not said yet that they are done?

Each client has a tally of its own in each queue that it takes from (see `_catalog.queues`). What a
client has taken that dies, or leaves, is nobody's to do: its tally goes, so that `join` does not
wait for it.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shmstore import _announcing
from shmstore._memory import layout as L

if TYPE_CHECKING:
    from shmstore._session import Session

_ALL_DONE: Final = "queue/done/"


def done_topic(generation: int) -> int:
    """Return the topic that is rung when all objects of a queue may be done."""
    return _announcing.topic_of(f"{_ALL_DONE}{generation}")


def find(session: Session, queue: int, serial: int) -> int:
    """Return the tally of a client, or -1."""
    for slot in session.queues.tallies(queue):
        if session.queues.owner(slot) == serial:
            return slot
    return -1


def is_done(session: Session, queue: int) -> bool:
    """Return whether nothing waits in a queue, and nothing that was taken from it is to be done."""
    words, at = session.words, session.queues.base(queue)
    return not (words[at + L.S_WAITING] or words[at + L.S_OPEN])


def count_done(session: Session, queue: int, count: int) -> bool:
    """Count objects as done, one's own first, then those of others; False: fewer were taken."""
    queues, words = session.queues, session.words
    own = find(session, queue, session.pins.seat.serial)
    others = [tally for tally in queues.tallies(queue) if tally != own]
    counters = [*([own] if own >= 0 else ()), queue, *others]
    taken = [int(words[queues.base(slot) + L.S_TAKEN]) for slot in counters]
    if count > sum(taken):
        return False
    at = queues.base(queue)
    if words[L.W_WAITERS] and words[at + L.S_OPEN] <= count and not words[at + L.S_WAITING]:
        _announcing.ring(session, done_topic(queues.generation(queue)))
    for slot, most in zip(counters, taken, strict=True):
        part = min(count, most)
        if part:
            queues.done(queue, slot, part)
        count -= part
    return True


def forget_dead(session: Session) -> None:
    """Forget what clients have taken that have no seat any more."""
    serials = {client.serial for client in session.clients.rows()}
    for queue in session.queues.all():
        forget(session, queue, lambda serial: serial in serials)


def forget(session: Session, queue: int, lives: Callable[[int], bool]) -> None:
    """Forget what those clients have taken from a queue that do not live."""
    queues = session.queues
    for tally in list(queues.tallies(queue)):
        if not lives(queues.owner(tally)):
            if session.words[L.W_WAITERS]:
                _announcing.ring(session, done_topic(queues.generation(queue)))
            queues.leave_tally(queue, tally)
            session.doom(tally)
