"""How does an object get into a queue and out of it, once, whoever dies?

::

    put                                             get
     |  pack                        (no lock)        |  look whether there is one    (no lock)
     |  copy, insert, append        (lock)           |  pin the first, or copy it out   (lock)
     |                                               |  count it as taken
     |  what is large is reserved and copied,        |  take it out of the chain; DOOMED
     |  or written to a file, before, as by any put  |  build                        (no lock)

An object is in its queue from the store of its state word on, and no more from the next one on: the
chain follows (see `_catalog.queues`). Who dies before has put, or taken, nothing.

Concurrency: threads and processes. Whoever finds a queue empty or full waits for a ring; everybody
who waits is rung, and those who come too late wait again.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import numpy as np

from shmstore import _announcing, _packing, _reading, _tallies, _writing
from shmstore._catalog import states
from shmstore._catalog.inserts import Content
from shmstore._catalog.keys import Digest, digest_of
from shmstore._memory import layout as L
from shmstore._packing import Package
from shmstore._plans import GONE, ArrayPlan, Plan
from shmstore._session import Session
from shmstore._sharing import counts
from shmstore._tuples import NamedTuple
from shmstore.errors import StoreClosedError, StoreFullError
from shmstore.serialization import deserialize
from shmstore.serialization.pickling import loads

MOST_NAME_NBYTES: Final = 64

_QUEUE_TYPE: Final = "shmstore.Queue"
_TALLY_TYPE: Final = "shmstore.Queue.tally"

# A small pickle that lies in the slot, and how one says so to those who build it.
_SMALL: Final = L.KIND_PLAIN | L.KIND_INLINE | L.KIND_QUEUED
_SMALL_HEADER: Final = {"serializer": "pickle", "type": "unknown"}


class Line:
    """One queue, as a process knows it.

    Attributes
    ----------
    name, maxsize
        As it was made.
    slot, word, base
        Where it is: its slot, the state word of that, and where its words begin.
    objects, room, done
        The topics that are rung when objects come, when there is room, when all is done.
    tally
        The tally of this client, with its own state word and the serial of the seat.
    """

    __slots__ = ("base", "done", "maxsize", "name", "objects", "room", "slot", "tally", "word")

    def __init__(self, name: str, maxsize: int, slot: int, word: int, base: int) -> None:
        self.name, self.maxsize = name, maxsize
        self.slot, self.word, self.base = slot, word, base
        generation = states.generation_of(word)
        self.objects = _announcing.topic_of(f"queue/objects/{generation}")
        self.room = _announcing.topic_of(f"queue/room/{generation}")
        self.done = _tallies.done_topic(generation)
        self.tally = (-1, 0, 0)


class Taken(NamedTuple):
    """An object that has left its queue: how it is built, and of what.

    Without a plan it is a small pickle; an array that lies on the mapping is what it is built of.
    """

    plan: Plan | None
    held: Any


# --- the queue itself --------------------------------------------------------------------------


def open_line(session: Session, name: str, maxsize: int) -> Line:
    """Return the queue of a name; make it if there is none."""
    nbytes = len(name.encode())
    if not 0 < nbytes <= MOST_NAME_NBYTES:
        message = (
            f"the name of a queue has 1 to {MOST_NAME_NBYTES} bytes, {name!r:.80} has {nbytes}"
        )
        raise ValueError(message)
    line = session.lock.run(_open_line, session, name, maxsize)
    if maxsize not in (0, line.maxsize):
        message = f"the queue {name!r} was made with maxsize={line.maxsize}, not {maxsize}"
        raise ValueError(message)
    return line


def _open_line(session: Session, name: str, maxsize: int) -> Line:
    """Requires: the store lock."""
    session.check_alive()
    digest = digest_of(name)
    slot = session.queues.find(digest)
    if slot < 0:
        session.check_writeable()
        value = (name, maxsize)
        slot = _insert_own(session, L.KIND_QUEUE, _QUEUE_TYPE, value, digest)
        session.queues.enter(slot)
    word = session.slots.word(slot)
    plan = _reading.make_plan(session, slot, word)
    if plan is None:
        raise session.slots.damaged(slot, "it is a queue whose time is over")
    _, most = plan.build(plan.secure_once())
    return Line(name, most, slot, word, session.queues.base(slot))


def _insert_own(session: Session, kind: int, type_name: str, value: Any, digest: Digest) -> int:
    """Put an object that queues are made of; return its slot. Requires: the store lock."""
    package = _packing.pack_plain(type_name, value)
    content = content_of(package, kind, digest)
    assert len(content.header) + len(content.inline) <= L.QUEUE_INLINE_NBYTES, "names are short"
    slot, _ = _writing.find_place(session, package)
    session.queues.clear(slot)
    session.slots.insert(slot, content, session.pins.seat.serial, session.pid, None)
    return slot


def content_of(package: Package, kind: int, digest: Digest) -> Content:
    """Return what is written into a slot: a package, told to be part of a queue."""
    kinds, header, inline, data_nbytes, _, _ = package.content
    return Content(kinds | kind, header, inline, data_nbytes, digest)


def check(session: Session, line: Line) -> None:
    """Raise unless a queue is still there. Sure only under the store lock."""
    if session.words[line.base] != line.word:
        session.check_alive()
        raise StoreClosedError(f"the queue {line.name!r} was destroyed", queue=line.name)


def destroy(session: Session, line: Line) -> None:
    """Take a queue away, with all that waits in it. Requires: the store lock."""
    check(session, line)
    session.check_writeable()
    queues = session.queues
    parts = [*queues.waiting(line.slot), *queues.tallies(line.slot)]
    for topic in (line.objects, line.room, line.done):
        _announcing.ring(session, topic)
    queues.leave(line.slot)
    for slot in (line.slot, *parts):
        session.doom(slot)


def size(session: Session, line: Line) -> int:
    """Return how many objects wait in a queue; StoreClosedError: it is gone."""
    count = int(session.words[line.base + L.S_WAITING])
    check(session, line)
    return count


# --- looking, without the lock -----------------------------------------------------------------


def has_object(session: Session, line: Line) -> bool | None:
    """Return True when there may be something to take (or the queue is gone), else None."""
    words = session.words
    return True if words[line.base + L.S_HEAD] or words[line.base] != line.word else None


def has_room(session: Session, line: Line) -> bool | None:
    """Return True when there may be room (or the queue is gone), else None."""
    words = session.words
    full = 0 < line.maxsize <= words[line.base + L.S_WAITING]
    return None if full and words[line.base] == line.word else True


def is_done(session: Session, line: Line) -> bool | None:
    """Return True when all may be done (or the queue is gone), else None."""
    gone = session.words[line.base] != line.word
    return True if gone or _tallies.is_done(session, line.slot) else None


def settle_done(session: Session, line: Line) -> bool | None:
    """As `is_done`; what dead clients have taken is not waited for. Requires: the store lock."""
    check(session, line)
    if not session.readonly:
        _tallies.forget(session, line.slot, session.clients.lives)
    return is_done(session, line)


# --- get -----------------------------------------------------------------------------------------


def first_in_file(session: Session, line: Line) -> tuple[int, int] | None:
    """Return slot and slot word of the first object if it lies in a file. Requires: the lock."""
    check(session, line)
    slot = session.queues.head(line.slot)
    word = session.slots.word(slot) if slot >= 0 else 0
    return (slot, word) if states.state_of(word) == states.SPILLED else None


def take(session: Session, line: Line, count: int, mode: str) -> list[Taken]:
    """Take up to so many objects, and none behind the first that lies in a file.

    There may be room for that in memory when it is its turn. Requires: the store lock.
    """
    check(session, line)
    session.check_writeable()
    found: list[Taken] = []
    while len(found) < count:
        slot = session.queues.head(line.slot)
        if slot < 0:
            break
        word = session.slots.word(slot)
        if found and states.state_of(word) == states.SPILLED:
            break
        found.append(_take(session, line, slot, word, mode))
    sizes = [len(each.held) for each in found if each.plan is None]
    counts.add(session.counts, L.SEAT_GETS, len(sizes))
    counts.add(session.counts, L.SEAT_GOT_NBYTES, sum(sizes))
    return found


def _take(session: Session, line: Line, slot: int, word: int, mode: str) -> Taken:
    """Take the first object: pin it, count it, end its life, in this order."""
    words = session.words
    taken = _secure(session, slot, word, mode)
    if taken is None:
        raise session.slots.damaged(slot, "it waits in a queue, but is not to be got")
    tally = _tally(session, line)
    if words[L.W_WAITERS] and 0 < line.maxsize <= words[line.base + L.S_WAITING]:
        _announcing.ring(session, line.room)
    session.queues.take(line.slot, tally)
    session.queues.pop(line.slot, slot)
    session.doom(slot)
    return taken


def _secure(session: Session, slot: int, word: int, mode: str) -> Taken | None:
    """Copy an object out, or pin it; None: it is not there.

    What is small is read without a plan: the workload "queue" of the benchmarks pays for it.
    """
    slots = session.slots
    kinds = session.words[slots.state_index(slot) + L.S_KIND] & L.KINDS
    if kinds == _SMALL and session.allowed_modules is None:
        raw = slots.inline_pickle(slot)
        if raw is not None:
            return Taken(None, raw)
    plan = _reading.make_plan(session, slot, word)
    if plan is None:
        return None
    if type(plan) is ArrayPlan and plan.flat and mode == "shared":
        obj = plan.fetch()
        return None if obj is GONE else Taken(plan, obj)
    plan.count()
    held = plan.secure_once()
    return None if held is GONE else Taken(plan, held)


def _tally(session: Session, line: Line) -> int:
    """Return the tally of this client, which is made for its first object; -1: no room for it."""
    serial = session.pins.seat.serial
    tally, word, owner = line.tally
    if owner == serial and session.slots.word(tally) == word:
        return tally
    tally = _tallies.find(session, line.slot, serial)
    if tally < 0:
        digest = states.generation_of(line.word), serial
        with contextlib.suppress(StoreFullError):
            tally = _insert_own(session, L.KIND_TALLY, _TALLY_TYPE, line.name, digest)
            session.queues.enter_tally(line.slot, tally)
    if tally >= 0:
        line.tally = tally, session.slots.word(tally), serial
    return tally


def build(taken: Taken, mode: str) -> Any:
    """Return an object that was taken."""
    plan, held = taken
    if isinstance(held, np.ndarray):
        return held
    if plan is None:
        try:
            return loads(held)
        except Exception:  # noqa: BLE001 - raised again by what knows how to say it
            return deserialize(_SMALL_HEADER, [held])
    return plan.build(held, mode)
