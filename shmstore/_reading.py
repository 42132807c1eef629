"""How does an object come out of the store without being copied?

By a plan (see `_plans`): it is made from the slot at the first get, kept by the reference and under
the key, and valid for as long as the slot word reads the same: generation and state together name
this object for ever.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.keys import digest_of
from shmstore._catalog.slots import Record
from shmstore._heads import NONSENSE, unpack
from shmstore._memory import layout as L
from shmstore._plans import GONE, ArrayPlan, InlinePlan, PicklePlan, Plan
from shmstore._session import Session
from shmstore.errors import CorruptStoreError, ObjectNotFoundError, ShmStoreError
from shmstore.serialization import custom_deserialize, headers
from shmstore.serialization.handlers.numpy import deserialize_array

_UNCERTAIN_TRIES: Final = 20


# --- from a slot or a key to a plan ------------------------------------------------------------


def make_plan(session: Session, slot: int, word: int, *, deep: bool = True) -> Plan | None:
    """Read what a slot says of its object; None when it holds another object by now, or expired.

    With `deep` the checksum of the data is looked at too, if there is one.
    """
    record = session.slots.read(slot)
    if record.word != word or session.slots.word(slot) != word or is_over(record):
        return None
    _check_place(session, record)
    packed = read_header(session, record)
    if packed is None:
        return None
    if not session.slots.is_sound(record, packed):
        if not session.slots.is_same(record):
            return None
        raise session.slots.damaged(slot, "its fields, header and checksum do not agree")
    try:
        plan = _interpret(session, record, packed)
    except ShmStoreError:
        raise
    except NONSENSE as error:
        raise session.slots.damaged(slot, f"its header makes no sense: {error!r}") from error
    if deep and record.kind & L.KIND_DATA_CRC and states.state_of(word) != states.SPILLED:
        return plan if _has_sound_data(plan) else None
    return plan


def rehearse(session: Session) -> None:
    """Go the way of a first get, as far as it goes without an object.

    Code that runs for the first time, and memory that is touched for the first time, take several
    times as long as later. Nothing is changed, and damage is left to who gets what is damaged.
    """
    with suppress(ShmStoreError):
        if session.words[L.W_SLOT_TOP]:  # else there may be no page
            record = session.slots.read(0)
            session.slots.is_sound(record, b"")
        _interpret(session, _ANY_ARRAY, headers.pack(_ITS_HEADER, [[0, L.WORD, False, None]]))


_ANY_ARRAY: Final = Record(0, 0, 0, 0, 0, 0, 0, L.PAGE, 0, 0, L.WORD, (0, 0), 0, 0, 0)
_ITS_HEADER: Final = {
    "serializer": "custom",
    "type": "numpy.ndarray",
    "sub-header": {"dtype": "<f8", "shape": [1]},
}


def is_over(record: Record) -> bool:
    """Return whether the time of an object is over."""
    return 0 < record.expires_ns <= boottime_ns()


def seconds_left(session: Session, slot: int) -> float | None:
    """Return in how many seconds the time of an object is over; None: never."""
    expires_ns = session.slots.read(slot).expires_ns
    return max(0, expires_ns - boottime_ns()) / 1e9 if expires_ns else None


def _has_sound_data(plan: Plan) -> bool:
    """Raise unless the checksum of the data agrees; False when the object is gone meanwhile."""
    session, record = plan.session, plan.record
    _pinned = session.pins.hold(record.slot)
    if not session.slots.is_same(record):
        return False
    ranges = [(record.extent + row.offset, row.nbytes) for row in plan.table if not row.writeable]
    if session.segment.checksum(ranges) == record.data_crc:
        return True
    raise session.slots.damaged(record.slot, "the checksum of its data does not agree")


def _interpret(session: Session, record: Record, packed: bytes) -> Plan:
    """Choose the plan that fits what a header says."""
    if record.kind & L.KIND_INLINE:
        return InlinePlan(session, record, packed)
    header, table = unpack(session, record, packed)
    if any(row.offset + row.nbytes > record.extent_nbytes for row in table):
        raise session.slots.damaged(record.slot, "a frame leaves its extent")
    if states.state_of(record.word) == states.SPILLED:
        from shmstore import _restoring  # noqa: PLC0415 - takes time that most processes can save

        return _restoring.FilePlan(session, record, header, table)
    is_array = (header.get("serializer"), header["type"]) == ("custom", "numpy.ndarray")
    plain = is_array and len(table) == 1 and "dtype" in header["sub-header"]
    on_mapping = plain and table[0].nbytes and table[0].codec is None
    if on_mapping and _is_handled_here():
        return ArrayPlan(session, record, header, table)
    whole = table and all(row.codec is None for row in table)
    kind = PicklePlan if whole and header.get("serializer") == "pickle" else Plan
    return kind(session, record, header, table)


def _is_handled_here() -> bool:
    """Return whether arrays are still rebuilt by our own handler."""
    return custom_deserialize.find(np.ndarray) is deserialize_array


def read_header(session: Session, record: Record) -> bytes | None:
    """Copy the packed header of an object out; None when the slot holds another object by now."""
    if not record.kind & L.KIND_HEADER_IN_EXTENT:
        packed = session.slots.inline_header(record)
        return packed if session.slots.word(record.slot) == record.word else None
    if states.state_of(record.word) == states.SPILLED:
        from shmstore import _restoring  # noqa: PLC0415 - takes time that most processes can save

        return _restoring.read_header(session, record)
    _pinned = session.pins.hold(record.slot)
    start = record.extent + record.header_offset
    packed = session.segment.readonly[start : start + record.header_nbytes]
    return packed if session.slots.is_same(record) else None


def _check_place(session: Session, record: Record) -> None:
    """Raise unless the extent lies in the segment and the header in the extent."""
    in_extent = record.kind & L.KIND_HEADER_IN_EXTENT
    header_start = record.header_offset if in_extent else 0
    end = record.extent + record.extent_nbytes if record.node >= 0 else 0
    if end > session.identity.capacity or header_start < 0:
        raise session.slots.damaged(
            record.slot,
            f"extent {record.extent}+{record.extent_nbytes} or a header of "
            f"{record.header_nbytes} bytes in it is out of bounds",
        )


def find_key(session: Session, key: str) -> tuple[int, int] | None:
    """Return (slot, slot word) of the object with a key, or None. A miss is asked again, locked."""
    return find_digest(session, digest_of(key))


def find_digest(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    """As `find_key`, for the digest of a key."""
    try:
        found = _find(session, digest)
    except CorruptStoreError:
        found = None  # under the lock it is mended, or raised again
    return found or session.lock.run(find_locked, session, digest)


def glance(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    """As `find_digest`, but without the lock: None may be wrong."""
    try:
        return _find(session, digest)
    except CorruptStoreError:
        return None


def find_locked(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    """Requires: the store lock."""
    session.check_alive()
    if session.words[L.W_DIRTY] and session.readonly:
        # A dead process left the key index half changed, and this one may not mend it.
        slot = session.slots.scan(digest)
        return (slot, session.slots.word(slot)) if slot >= 0 else None
    return _find(session, digest)


def _find(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    """Find the object that a key leads to.

    Asked twice: a first `find` may come late, with the number that a slot had in an earlier life.
    In its new life it may be an object that the key does not lead to yet, because the one before
    is not doomed. A `find` that begins after the new one is there passes the old one first.
    """
    find = session.keys.find
    slot = find(digest)
    if slot < 0:
        return None
    record = session.slots.read(slot)
    same = record.digest == digest and states.is_present(record.word) and not is_over(record)
    return (slot, record.word) if same and find(digest) == slot else None


def plan_of_key(session: Session, key: str) -> Plan | None:
    """Return a plan for the object that has a key now, or None; remember it under the key."""
    plan = plan_of_digest(session, digest_of(key))
    if plan is not None:
        session.remember(key, plan)
    return plan


def plan_of_digest(session: Session, digest: tuple[int, int]) -> Plan | None:
    """As `plan_of_key`, for the digest of a key."""
    for _ in range(_UNCERTAIN_TRIES):
        found = find_digest(session, digest)
        if found is None:
            return None
        plan = make_plan(session, *_in_memory(session, *found))
        if plan is not None:
            return plan
    return session.lock.run(_plan_locked, session, digest)


def _in_memory(session: Session, slot: int, word: int) -> tuple[int, int]:
    """Return a slot and the word of this object after bringing it back, if it lies in a file.

    Meanwhile the slot may have got another object, of which nothing must be returned.
    """
    if states.state_of(word) == states.SPILLED:
        from shmstore import _restoring  # noqa: PLC0415 - takes time that most processes can save

        now = _restoring.bring_back(session, slot, word)
        if states.is_present(now) and states.generation_of(now) == states.generation_of(word):
            return slot, now
    return slot, word


def _plan_locked(session: Session, digest: tuple[int, int]) -> Plan | None:
    """Requires: the store lock."""
    found = find_locked(session, digest)
    return make_plan(session, *found) if found else None


def plan_of_slot(session: Session, slot: int, generation: int) -> Plan | None:
    """Return a plan for the object of a reference, or None when it was deleted."""
    word = states.ready_word(generation)
    plan: Plan | None = session.plans.get(word)
    if plan is not None and plan.slot == slot and plan.is_there():
        return plan
    for _ in range(_UNCERTAIN_TRIES):
        if not 0 <= slot < session.words[L.W_SLOT_TOP]:
            return None
        word = session.slots.word(slot)
        if not states.is_present(word) or states.generation_of(word) != generation:
            return None
        _, word = _in_memory(session, slot, word)
        plan = make_plan(session, slot, word)
        if plan is not None:
            session.remember(word, plan)
            return plan
        if is_over(session.slots.read(slot)):
            return None
    return session.lock.run(_plan_of_slot_locked, session, slot, generation)


def _plan_of_slot_locked(session: Session, slot: int, generation: int) -> Plan | None:
    """Make a plan for what moves faster than it can be looked at. Requires: the store lock."""
    word = session.slots.word(slot)
    same = states.is_present(word) and states.generation_of(word) == generation
    return make_plan(session, slot, word) if same else None


# --- get -----------------------------------------------------------------------------------------


def secure_key(session: Session, key: str) -> tuple[Plan, Any] | None:
    """Return the plan of the object that has a key, and what it secured; or None."""
    for _ in range(_UNCERTAIN_TRIES):
        plan = plan_of_key(session, key)
        if plan is None:
            return None
        held = plan.secure()
        if held is not GONE:
            return plan, held
    plan, held = session.lock.run(_secure_locked, session, key)
    return None if held is GONE else (plan, held)


def secure_found(session: Session, key: str, slot: int, word: int) -> tuple[Plan, Any] | None:
    """As `secure_key`, for a key that has just been found to lead to a slot."""
    plan = make_plan(session, *_in_memory(session, slot, word))
    if plan is None:
        return secure_key(session, key)
    session.remember(key, plan)
    held = plan.secure()
    return secure_key(session, key) if held is GONE else (plan, held)


def _secure_locked(session: Session, key: str) -> tuple[Any, Any]:
    """Secure a key that is overwritten faster than it can be looked at. Requires: the lock."""
    plan = _plan_locked(session, digest_of(key))
    return plan, GONE if plan is None else plan.secure_once()


def secure_slot_locked(session: Session, slot: int, generation: int) -> tuple[Plan, Any] | None:
    """Secure an object that moves faster than it can be looked at. Requires: the store lock."""
    plan = _plan_of_slot_locked(session, slot, generation)
    held = GONE if plan is None else plan.secure_once()
    return None if plan is None or held is GONE else (plan, held)


def missing_key(session: Session, key: str) -> ObjectNotFoundError:
    """Return the error for a key that no object has."""
    return ObjectNotFoundError(
        f"no object has the key {key!r} in store {session.path.name!r}. Has it been put under this "
        "name, or deleted? `list(store)` shows the keys; get(key, default) does not raise.",
        key=key,
    )
