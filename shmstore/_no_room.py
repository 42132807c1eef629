"""Why does a put find no room?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmstore import _spares
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory import news
from shmstore.errors import ObjectTooLargeError, StoreFullError

if TYPE_CHECKING:
    from shmstore._session import Session


def check_size(session: Session, nbytes: int) -> None:
    """Raise ObjectTooLargeError for what could not fit even into the empty store."""
    if nbytes > session.identity.capacity:
        raise ObjectTooLargeError(
            f"the object needs {nbytes:,} bytes, the whole store {session.path.name!r} has "
            f"{session.identity.capacity:,}. Create it with a larger capacity.",
            asked=nbytes,
            capacity=session.identity.capacity,
        )


def full(session: Session, asked: int) -> StoreFullError:
    """Return the error that tells why there is no room. Requires: the store lock."""
    words, objects = session.words, _spares.count_objects(session.clients)
    stuck, holders = _what_is_held(session)
    facts = {
        "asked": asked,
        "free": session.identity.capacity - words[L.W_USED],
        "largest_free": session.allocator.largest_free(),
        "capacity": session.identity.capacity,
        "objects": objects,
        "pinned": words[L.W_DOOMED_BYTES],
        "stuck": stuck,
        "pinned_by": holders,
        "out_of_slots": session.slots.take() is None,
        "set_aside": max(0, words[L.W_OBJECTS] - objects),
    }
    if facts["out_of_slots"]:
        kept = f"{facts['set_aside']:,} slots are set aside for the next ones of some processes"
        also = f" and {kept}" if facts["set_aside"] else ""
        reason = f"it holds {facts['objects']:,} objects{also}, as many as it takes"
        remedy = "create the store with a larger max_objects"
    else:
        reason = (
            f"asked for {asked:,} bytes, {facts['free']:,} of {facts['capacity']:,} are free, the "
            f"largest extent has {facts['largest_free']:,}"
        )
        remedy = "create the store with a larger capacity"
    session.news.add_at_times(news.WARNING, "it is full: %s", reason)
    held = f"{facts['pinned']:,} bytes of deleted objects are still looked at"
    if session.evicts or session.spills:
        way = "evicted" if session.evicts else "moved to files"
        held += f", and {stuck:,} bytes of others, which cannot be {way}"
    by = f", by {', '.join(holders)}" if holders else ""
    drop = "views" if stuck else "views of deleted ones"
    return StoreFullError(
        f"store {session.path.name!r} has no room: {reason}. {held}{by}. Delete objects, drop "
        f"{drop}, or {remedy}; `store.why_full({asked})` tells more.",
        **facts,
    )


def _what_is_held(session: Session) -> tuple[int, tuple[str, ...]]:
    """Return what cannot leave because it is looked at, and by whom that and deleted ones are.

    Returns
    -------
    int
        Bytes of published objects that would leave if nobody looked at them.
    tuple of str
        The processes in question.
    """
    slots, clients = session.slots, session.clients
    doomed = set(slots.doomed())
    pins = {c.row: {pin - 1 for pin in clients.seat(c).pinned()} for c in clients.rows()}
    held, stuck = doomed, 0
    if session.evicts or session.spills:
        known = range(session.words[L.W_SLOT_TOP])
        live = [slots.read(slot) for slot in set().union(*pins.values()) - doomed if slot in known]
        live = [record for record in live if states.state_of(record.word) == states.READY]
        held = doomed.union(record.slot for record in live)
        stuck = sum(record.extent_nbytes for record in live)
    holders = [clients.describe(row) for row, seen in pins.items() if held & seen]
    return stuck, tuple(holders)
