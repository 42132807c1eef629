"""Who is told that something is about to change?

Whoever changes something rings the bells of those who wait for it, under the store lock and before
he makes the change. The order is what makes a death harmless: (1) the bell is rung, (2) the row of
the waiter goes, (3) the change is made, (4) the lock is given back. Who dies before (1) has changed
nothing. Who dies later has woken the waiter, who looks again under the lock: whatever was changed
he sees, and otherwise he enters a new row. If the bell were rung after the change, a death between
the two would leave him asleep for ever.

And no wake-up is lost: a waiter looks a last time under the same hold of the lock in which he
enters his row. A change came before, and is seen, or comes later, and finds the row.

Where nobody waits, all this costs a look at the word WAITERS.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmstore._arguments import MAX_KEY_NBYTES
from shmstore._catalog import states
from shmstore._catalog.keys import Digest, digest_of
from shmstore._memory import layout as L
from shmstore._sharing.waking import JUST_RING
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError, ShmStoreError
from shmstore.serialization import headers, trust

if TYPE_CHECKING:
    from shmstore._sharing.waiters import Waiter
    from shmstore._space import Space

PUT: Final = b"p"
DELETED: Final = b"d"

# So often somebody is told of a change before it is looked whether all who wait live.
_PATIENCE: Final = 256

_NUMBER_NBYTES: Final = 8
_SIZE_NBYTES: Final = 2
_HEAD_NBYTES: Final = 1 + 3 * _NUMBER_NBYTES + _SIZE_NBYTES


EVERY_KEY: Final = digest_of("")[0]
"""The topic of the prefix that all keys begin with."""


class Notice(NamedTuple):
    """What a watcher is told: PUT or DELETED, which object, under which key."""

    kind: bytes
    slot: int
    generation: int
    nbytes: int
    key: bytes


# --- topics ------------------------------------------------------------------------------------


def topic_of(text: str) -> int:
    """Return the number that stands for a key, or for anything that two processes agree on."""
    return digest_of(text)[0] or 1


def topic_of_digest(digest: Digest) -> int:
    """Return the number that stands for a key of which the digest is known."""
    return digest[0] or 1


def topic_of_object(generation: int) -> int:
    """Return the number that stands for the end of an object."""
    return generation * L.FIBONACCI & (1 << 64) - 1


# --- telling -----------------------------------------------------------------------------------


def ring(session: Space, topic: int) -> int:
    """Wake all who wait for a topic, before the change is made; return how many bells were rung."""
    waiters = session.clients.waiters.waiting_for(topic)
    for waiter in waiters:
        session.bells.ring(waiter.serial, waiter.bell)
        session.clients.waiters.remove(waiter.row)
    return len(waiters)


def key_changes(
    session: Space, kind: bytes, digest: Digest, place: tuple[int, int, int], key: str | None
) -> None:
    """Tell that the object of a key is about to come or to go.

    Parameters
    ----------
    kind
        PUT or DELETED.
    digest, key
        Of the key; its text may be None, then it is looked up where somebody watches.
    place
        Slot, generation and size of the object.
    """
    session.announced += 1
    if session.announced % _PATIENCE == 0:
        forget_dead(session)
    ring(session, topic_of_digest(digest))
    watchers = session.clients.waiters.watchers()
    if not watchers:
        return
    try:
        text = _key_of(session, place[0]) if key is None else key.encode()
    except (ShmStoreError, LookupError, OSError):  # damaged: it goes all the same
        for watcher in watchers:
            session.clients.waiters.note_lost(watcher.row)
            _tell(session, watcher, JUST_RING)
        return
    topics: dict[int, int] = {}
    for watcher in watchers:
        length = watcher.prefix
        if length not in topics:
            start = text[:length].decode(errors="surrogateescape")
            topics[length] = topic_of(start)
        if topics[length] == watcher.topic and length <= len(text):
            _tell(session, watcher, pack(Notice(kind, *place, text)))


def _tell(session: Space, watcher: Waiter, message: bytes) -> None:
    if not session.bells.ring(watcher.serial, watcher.bell, message):
        session.clients.waiters.note_lost(watcher.row)


def object_ends(session: Space, slot: int) -> None:
    """Tell those who wait for the end of an object that it comes."""
    word = session.slots.word(slot)
    if states.is_present(word):
        ring(session, topic_of_object(states.generation_of(word)))


def key_ends(session: Space, slot: int) -> None:
    """Tell that a named object is about to be taken away from its key."""
    record = session.slots.read(slot)
    place = slot, states.generation_of(record.word), record.data_nbytes
    key_changes(session, DELETED, record.digest, place, None)


def forget_dead(session: Space) -> None:
    """Take away the rows of clients that have died, which would cost every change something."""
    waiters = session.clients.waiters
    for serial in {waiter.serial for waiter in waiters.rows()}:
        if not session.clients.lives(serial):
            waiters.forget(serial)


def wake_all(session: Space) -> None:
    """Wake everybody, who then looks at everything: nobody knows what has changed."""
    session.bells.ring_all()
    session.clients.waiters.clear()


def _key_of(session: Space, slot: int) -> bytes:
    """Return the key of an object, from its header."""
    record = session.slots.read(slot)
    if not record.kind & L.KIND_HEADER_IN_EXTENT:
        packed = session.slots.inline_header(record)
    elif states.state_of(record.word) == states.SPILLED:
        generation = states.generation_of(record.word)
        with session.files.open(slot, generation, record.extent_nbytes) as file:
            packed = file.read(record.header_offset, record.header_nbytes)
    else:
        start = record.extent + record.header_offset
        packed = session.segment.readonly[start : start + record.header_nbytes]
    with trust.reading(trust.Policy(modules=session.allowed_modules)):
        header, _ = headers.unpack(packed, record.extent_nbytes)
    return str(header["key"]).encode()


# --- what is written into the bell of a watcher ---------------------------------------------------


def pack(notice: Notice) -> bytes:
    """Return a notice as bytes; they fit into what a FIFO takes in one step."""
    numbers = (notice.slot, notice.generation, notice.nbytes)
    head = b"".join(number.to_bytes(_NUMBER_NBYTES, "little") for number in numbers)
    return notice.kind + head + len(notice.key).to_bytes(_SIZE_NBYTES, "little") + notice.key


def unpack(data: bytes) -> tuple[list[Notice], bytes]:
    """Return the notices in what a bell held, and what is left of the last one.

    Raises
    ------
    CorruptStoreError
        Somebody has written something else.
    """
    notices, at = [], 0
    while len(data) - at >= _HEAD_NBYTES or data[at : at + 1] == JUST_RING:
        kind = data[at : at + 1]
        if kind == JUST_RING:
            at += 1
            continue
        start = at + _HEAD_NBYTES
        numbers = [
            int.from_bytes(data[first : first + _NUMBER_NBYTES], "little")
            for first in range(at + 1, start - _SIZE_NBYTES, _NUMBER_NBYTES)
        ]
        end = start + int.from_bytes(data[start - _SIZE_NBYTES : start], "little")
        if kind not in (PUT, DELETED) or end - start > MAX_KEY_NBYTES:
            raise CorruptStoreError("what was written into a bell is no change")
        if end > len(data):
            break
        slot, generation, nbytes = numbers
        notices.append(Notice(kind, slot, generation, nbytes, data[start:end]))
        at = end
    return notices, data[at:]
