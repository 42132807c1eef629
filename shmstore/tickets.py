"""How does an object lie in a store for as long as processes have it, and not longer?

For what schedules work among processes (`shmstore.integrations.dask`). Whoever *deposits* an object
is its owner, and deletes it when he lets go of it. Whoever gets it pins it, as any view does: that
it is deleted then only means that nobody comes anew. What a killed owner leaves is deleted by the
others (`delete_orphans`), and pins go with their process.

A *ticket* leads another process to an object. It names a pin of the sender, which the sender keeps
while the message is on its way: by that the object is found even if its owner lets go meanwhile.

Objects are got copy-on-write: who writes to what he got writes to a copy of the page of his own.

Concurrency: threads and processes; `redeem` takes the store lock only for what has been deleted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np

from shmstore import _claiming, _deleting, _lifecycle, _plans, _reading, _ref, _spares
from shmstore._catalog import states
from shmstore._lease import PRIVATE_COPY_NBYTES, Lease
from shmstore._memory import layout as L
from shmstore._ref import ObjectRef
from shmstore._session import Session
from shmstore._store import Store
from shmstore._tuples import NamedTuple
from shmstore.errors import ObjectNotFoundError, SerializationError, ShmStoreError

_MODE: Final = "private"

# What has fewer bytes is copied when it is got: nothing holds it, and there is no ticket to it.
SMALLEST_NBYTES: Final = PRIVATE_COPY_NBYTES

# What was deleted may be given back by its owner, once, while it is looked at.
_LOOKS: Final = 2

__all__ = [
    "SMALLEST_NBYTES",
    "Hold",
    "Place",
    "Ticket",
    "boot_id",
    "delete_orphans",
    "deposit",
    "domain_of",
    "is_sender_alive",
    "place_of",
    "redeem",
    "use_of",
]


class Ticket(NamedTuple):
    """What is sent instead of an object; all of it goes through msgpack."""

    store: bytes
    path: str
    gid: int | None
    slot: int
    generation: int
    row: int
    serial: int
    cell: int
    since: float
    writeable: bool


class Hold:
    """What this process has of one object.

    Parameters
    ----------
    session, ref
        Where it lies.
    anchor
        The array under all views of it.
    obj
        What was built there.

    Attributes
    ----------
    own
        Whether this process put it, and deletes it.
    """

    __slots__ = ("_anchor", "nbytes", "own", "ref", "session", "writeable")

    def __init__(self, session: Session, ref: ObjectRef, anchor: memoryview, obj: Any) -> None:
        self.own = False
        self.session = session
        self.ref = ref
        self.nbytes = anchor.nbytes
        self.writeable = bool(obj.flags.writeable) if type(obj) is np.ndarray else True
        self._anchor = weakref.ref(anchor.obj)

    def is_used(self) -> bool:
        """Return whether anything lies on the memory of the object; a copy does not."""
        return self._anchor() is not None

    def ticket(self) -> Ticket | None:
        """Return a ticket, good while a view of the object lives here.

        None: none does any more, or none ever did: what is small was copied, see `deposit`.
        """
        session, anchor, ref = self.session, self._anchor(), self.ref
        pin = None if anchor is None or session.closed else session.pins.pin_of(anchor)
        if pin is None:
            return None
        _, cell, since = pin
        place = ref._slot, ref._generation, session.row, session.pins.seat.serial
        return Ticket(
            session.uuid, session.path_text, session.gid, *place, cell, since, self.writeable
        )


def deposit(store: Store, obj: Any) -> tuple[Any, Hold]:
    """Put an object; return its twin there, which nobody else can write to.

    What takes less than `SMALLEST_NBYTES`, 128 KiB, is copied out again, which is faster than
    mapping it, and so is what is no view whatever its size, such as bytes. Such a twin lies on the
    heap: nothing holds the object, and there is no ticket to it.

    Raises
    ------
    SerializationError
        It lies in a slot, or has no bytes: there is nothing to hold.
    ShmStoreError, OSError
        There is no room, or it cannot be put.
    """
    session = store._live()
    ref = store.put(obj)
    try:
        plan, held = _ref.secure(session, ref)
        _check_memory(plan, held, obj)
        twin, hold = _build(session, ref, plan, held)
    except BaseException:
        ref.delete()
        raise
    hold.own = True
    if type(twin) is np.ndarray and not obj.flags.writeable:
        twin.flags.writeable = hold.writeable = False
    return twin, hold


def _check_memory(plan: _plans.Plan, held: Any, obj: Any) -> None:
    """Raise SerializationError for what lies in a slot, or has no bytes."""
    if isinstance(held, Lease) and plan.extent_nbytes:
        return
    kind = type(obj).__name__
    raise SerializationError(
        f"obj={obj!r:.100}: this {kind} takes no memory of the store that could be held. Send it "
        "as it is.",
        type=kind,
    )


def redeem(ticket: Ticket) -> tuple[Any, Hold]:
    """Return the object that a ticket leads to.

    Raises
    ------
    ObjectNotFoundError, StoreNotFoundError
        It is gone, and so is its sender.
    """
    session = _lifecycle.session_of(ticket.store, ticket.path, ticket.gid)
    place = ticket.slot, ticket.generation
    ref = ObjectRef(ticket.store, ticket.path, *place, 0, None, ticket.gid)
    try:
        plan, held = _ref.secure(session, ref)
    except ObjectNotFoundError:
        for _ in range(_LOOKS):
            found = session.lock.run(_hold_deleted, session, ticket)
            if found is None:
                raise
            made = _reading.make_plan(session, ticket.slot, found.word)
            if made is not None:
                plan, held = made, Lease(made, found.cells)
                break
        else:
            raise
    obj, hold = _build(session, ref, plan, held)
    if type(obj) is np.ndarray and not ticket.writeable:
        obj.flags.writeable = hold.writeable = False
    return obj, hold


def _build(session: Session, ref: ObjectRef, plan: _plans.Plan, held: Any) -> tuple[Any, Hold]:
    anchor = held.anchor(_MODE)
    obj = plan.build(held, _MODE)
    return obj, Hold(session, ref, anchor, obj)


def _hold_deleted(session: Session, ticket: Ticket) -> _claiming.Held | None:
    """Pin what was deleted meanwhile and its sender still pins. Requires: the store lock."""
    pin = ticket.row, ticket.serial, ticket.cell, ticket.since
    return _claiming.hold_deleted(session, ticket.slot, ticket.generation, pin, pins=2)


def is_sender_alive(ticket: Ticket) -> bool:
    """Return whether the process that sent a ticket lives, as far as can be told from here."""
    try:
        session = _lifecycle.session_of(ticket.store, ticket.path, ticket.gid)
        return session.lock.run(session.clients.lives, ticket.serial)
    except (ShmStoreError, OSError):
        return True


def delete_orphans(store: Store) -> int:
    """Undo what dead processes left: their views, and the objects that they owned.

    Returns
    -------
    int
        How many objects these were.

    Raises
    ------
    LockTimeoutError
        Another process holds the store lock at this moment.
    """
    session = store._live()
    with session.lock.impatient():
        orphans, someone_died = session.lock.run(_orphans, session)
        deleted = _deleting.delete(session, _ref.find, orphans) if orphans else 0
        if someone_died:
            session.lock.run(session.bury)
        return deleted


def _orphans(session: Session) -> tuple[list[ObjectRef], bool]:
    """Return the objects of dead owners, and whether somebody died. Requires: the store lock."""
    session.check_alive()
    clients = list(session.clients.rows())
    living = [each.serial for each in clients if session.clients.is_alive(each)]
    table = session.slots.table()
    words = table[:, L.S_STATE]
    owned = np.isin(table[:, L.S_OWNER], np.array(living, np.uint64))
    place = session.uuid, session.path_text
    orphans = [
        ObjectRef(*place, slot, states.generation_of(int(words[slot])), 0, None, session.gid)
        for slot in np.flatnonzero(states.are_present(words) & ~owned).tolist()
    ]
    return orphans, len(living) < len(clients)


# --- where things are ----------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the object of a reference lies; the path is that of the store."""

    path: str
    store: str
    slot: int
    generation: int


def place_of(ref: ObjectRef) -> Place:
    """Return what a reference says."""
    return Place(ref._path, ref._uuid.hex(), ref._slot, ref._generation)


@functools.cache
def boot_id() -> str:
    """Return what names the running kernel, among all hosts."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def domain_of(store: Store) -> str:
    """Return what two processes agree on if, and only if, they have the same store open."""
    session = store._live()
    folder = os.fstat(session.folder_fd)
    return f"{boot_id()}/{folder.st_dev:x}/{folder.st_ino:x}/{session.uuid.hex()}"


def use_of(store: Store) -> tuple[int, int]:
    """Return how many bytes of a store are used, and how many there are. Takes no lock."""
    session = store._live()
    used = int(session.words[L.W_USED]) - _spares.kept_nbytes(session.clients)
    return used, session.identity.capacity
