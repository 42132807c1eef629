"""What is in a store, who is there, and who looks at what?

Concurrency: iteration holds no lock and sees each object that was there all the time once; sums
and pins are read under the store lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shmstore import _spares
from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.keys import digest_of
from shmstore._catalog.slots import Record
from shmstore._catalog.table import Named
from shmstore._memory import layout as L
from shmstore._plans import GONE, Plan
from shmstore._reading import is_over, make_plan, plan_of_digest, plan_of_slot
from shmstore._session import Session
from shmstore._sharing.clients import Client, is_process, process_name
from shmstore.errors import ShmStoreError
from shmstore.serialization import headers

if TYPE_CHECKING:
    from shmstore._info import ClientInfo, ObjectInfo, StoreStats
    from shmstore._ref import ObjectRef


def plans(session: Session) -> Iterator[Plan]:
    """Iterate over all objects, oldest first. Takes no lock."""
    for word, slot in session.slots.present():
        plan = make_plan(session, slot, word)
        if plan is None:  # it is gone, or on its way between memory and file
            plan = plan_of_slot(session, slot, states.generation_of(word))
        if plan is not None:
            yield plan


def keys(session: Session) -> Iterator[str]:
    """Iterate over the keys, oldest object first.

    Takes the lock for a snapshot, not while it iterates. Keys that are there all the time come
    exactly once, also when their objects are overwritten meanwhile.
    """
    for word, slot, digest in session.lock.run(_named, session).oldest_first():
        key = _key_at(session, slot, digest)
        if key is not None and session.slots.word(slot) == word:
            yield key
            continue
        plan = make_plan(session, slot, word) or plan_of_digest(session, digest)
        if plan is not None:
            yield plan.header["key"]


def _key_at(session: Session, slot: int, digest: tuple[int, int]) -> str | None:
    """Return the key in a slot, if it is the one of this digest; None: look more closely."""
    try:
        record = session.slots.read(slot)
        if is_over(record):
            return None
        header, _ = headers.unpack(session.slots.inline_header(record), record.extent_nbytes)
        key = header["key"]
        return key if isinstance(key, str) and digest_of(key) == digest else None
    except (ShmStoreError, LookupError):
        return None


def _named(session: Session) -> Named:
    session.check_alive()
    return session.slots.named()


def objects(session: Session, refer: Callable[[Plan], ObjectRef]) -> list[ObjectInfo]:
    """Return what is known of each object, oldest first."""
    pinned_by = pins_by_slot(session)
    return [describe(plan, refer(plan), pinned_by) for plan in plans(session)]


def describe(plan: Plan, ref: ObjectRef, pinned_by: dict[int, set[int]]) -> ObjectInfo:
    """Return what is known of the object of a plan."""
    from shmstore._info import ObjectInfo  # noqa: PLC0415 - takes time that most processes can save

    record: Record = plan.record
    spilled = states.state_of(record.word) == states.SPILLED
    left_ns = record.expires_ns - boottime_ns()
    return ObjectInfo(
        key=plan.header.get("key"),
        type=plan.header.get("type", "unknown"),
        serializer=plan.header.get("serializer", "several"),
        nbytes=record.data_nbytes,
        stored_nbytes=0 if spilled else record.extent_nbytes,
        spilled=spilled,
        expires=time.time() + left_ns / 1e9 if record.expires_ns else None,
        frames=len(plan.table) or 1,
        created=record.created_ns / 1e9,
        owner_pid=record.pid,
        pinned_by=tuple(sorted(pinned_by.get(record.slot, ()))),
        slot=record.slot,
        generation=states.generation_of(record.word),
        ref=ref,
        queue=_queue_of(plan) if record.kind & L.KINDS_OF_QUEUES else None,
    )


def _queue_of(plan: Plan) -> str | None:
    """Return the name of the queue that an object waits in, or is part of; None: it is gone."""
    session, record = plan.session, plan.record
    generation = states.generation_of(record.word)
    if not record.kind & L.KIND_QUEUE:
        generation = record.digest[0]
    return queue_name(session, generation)


def queue_name(session: Session, generation: int) -> str | None:
    """Return the name of the queue that is known by a generation; None: it is gone."""
    slot = session.lock.run(session.queues.find_generation, generation)
    found = None if slot < 0 else plan_of_slot(session, slot, generation)
    held = None if found is None else found.secure()
    return None if found is None or held is GONE else str(found.build(held)[0])


def pins_by_slot(session: Session) -> dict[int, set[int]]:
    """Return for each pinned slot the pids that pin it."""
    return session.lock.run(_pins_by_slot, session)


def _pins_by_slot(session: Session) -> dict[int, set[int]]:
    session.check_alive()
    session.pins.sweep()
    pinned_by: dict[int, set[int]] = {}
    for client in session.clients.rows():
        for pin in session.clients.seat(client).pinned():
            pinned_by.setdefault(pin - 1, set()).add(client.pid)
    return pinned_by


def stats(session: Session) -> StoreStats:
    """Return the sums over a store, after taking back what nobody looks at.

    What clients keep for their next puts is free, but for what is looked at.
    """
    return session.lock.run(_stats, session)


def _stats(session: Session) -> StoreStats:
    from shmstore._info import StoreStats  # noqa: PLC0415 - takes time that most processes can save

    session.check_alive()
    _spares.give_back_extents(session)
    session.reclaim_all()
    words = session.words
    pinned, sizes = session.clients.pinned(), session.slots.extent_nbytes
    looked_at = sum(sizes(slot) for slot in pinned if _is_kept(session, slot))
    used = words[L.W_USED] - max(0, _spares.kept_nbytes(session.clients) - looked_at)
    return StoreStats(
        capacity=session.identity.capacity,
        used=used,
        free=session.identity.capacity - used,
        pinned=sum(map(sizes, pinned)),
        reclaimable=words[L.W_DOOMED_BYTES] + looked_at,
        largest_free=session.allocator.largest_free(),
        objects=_spares.count_objects(session.clients),
        named=words[L.W_NAMED],
        max_objects=session.identity.max_objects,
        clients=sum(1 for _ in session.clients.rows()),
        spilled=words[L.W_SPILLED],
        spilled_nbytes=words[L.W_SPILLED_BYTES],
        evictions=words[L.W_EVICTIONS],
        expirations=words[L.W_EXPIRATIONS],
        spills=words[L.W_SPILLS],
        restores=words[L.W_RESTORES],
    )


def _is_kept(session: Session, slot: int) -> bool:
    """Return whether the object of a slot was deleted by its owner, who keeps the extent."""
    known = 0 <= slot < session.identity.max_objects
    return known and states.state_of(session.slots.word(slot)) == states.SPARE


def clients(session: Session) -> list[ClientInfo]:
    """Return what is known of each attached process."""
    return session.lock.run(_clients, session)


def _clients(session: Session) -> list[ClientInfo]:
    session.check_alive()
    session.pins.sweep()
    return [_describe_client(session, client) for client in session.clients.rows()]


def _describe_client(session: Session, client: Client) -> ClientInfo:
    from shmstore._info import ClientInfo  # noqa: PLC0415 - takes time that most processes can save

    views = session.clients.seat(client).views()
    slots = views.slots.tolist()
    sizes = map(session.slots.extent_nbytes, set(slots))
    alive = session.clients.is_alive(client)
    return ClientInfo(
        pid=client.pid,
        name=name_of(client, alive=alive),
        started=client.started_ns / 1e9,
        attached=client.attached_ns / 1e9,
        alive=alive,
        readonly=client.readonly,
        pins=len(slots),
        pinned_nbytes=sum(sizes),
        oldest_pin=wall_clock(float(views.since.min())) if slots else None,
        own=client.row == session.row,
    )


def name_of(client: Client, *, alive: bool) -> str:
    """Return the name of the process of a client, unless its pid is another's in our namespace."""
    if is_process(client.pid, client.started_ns):
        return process_name(client.pid)
    return "not seen from here" if alive else "gone"


def wall_clock(since: float) -> float:
    """Return a time of the monotonic clock in seconds since 1970; times to come are now."""
    now = time.monotonic()
    return time.time() - (now - since if 0 <= since <= now else 0.0)
