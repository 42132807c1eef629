"""How does an object come out of the store without being copied?

A *plan* is what a process knows about one object: where it lies and how it is built. It is made
from the slot at the first get, kept by the reference and under the key, and valid for as long as
the slot word reads the same: generation and state together name this object for ever.

Getting takes two steps. `secure` makes sure that the bytes stay what they are: it copies the few
bytes of an object that lies in the index, or pins the extent; then it looks at the slot word
again. `build` makes the object; from then on its views hold the pin (see `_lease`).

Concurrency: takes no lock where the store is read with barriers (see `Session.reclaim`); otherwise
`secure` runs under the store lock.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final
from weakref import ref as weak_ref

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.keys import digest_of
from shmstore._catalog.slots import Record
from shmstore._lease import Lease
from shmstore._memory import layout as L
from shmstore._session import Session
from shmstore.errors import ObjectNotFoundError, ShmStoreError
from shmstore.serialization import (
    Serialized,
    custom_deserialize,
    deserialize,
    headers,
    trust,
)
from shmstore.serialization.handlers.numpy import array_layout, check_extent, deserialize_array
from shmstore.serialization.pickling import loads

GONE: Final = object()
"""What `fetch` and `secure` return when the slot holds another object by now."""

# What a header that somebody has tampered with may raise when it is read.
_NONSENSE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

_UNCERTAIN_TRIES: Final = 20


class Plan:
    """Where one object lies and how it is built: this class builds any object, in any mode.

    Parameters
    ----------
    session
        The session it belongs to.
    record
        The fields of its slot.
    header, table
        Unpacked.
    """

    __slots__ = (
        "at",
        "extent",
        "extent_nbytes",
        "header",
        "record",
        "session",
        "slot",
        "table",
        "word",
    )

    def __init__(
        self,
        session: Session,
        record: Record,
        header: dict[str, Any],
        table: list[headers.FrameRow],
    ) -> None:
        self.session = session
        self.record = record
        self.slot = record.slot
        self.word = record.word
        self.at = session.slots.state_index(record.slot)
        self.extent = record.extent
        self.extent_nbytes = record.extent_nbytes
        self.header = header
        self.table = table

    def fetch(self) -> Any:
        """Get the object in mode "shared", or GONE."""
        held = self.secure()
        return GONE if held is GONE else self.build(held)

    def secure(self) -> Any:
        """Return what keeps the bytes as they are until `build`, or GONE."""
        if self.session.lock_free:
            return self.secure_once()
        return self.session.lock.run(self.secure_once)

    def secure_once(self) -> Any:
        """Pin the extent, then look at the slot again (the reader's half of the pin race)."""
        lease = Lease(self)
        return lease if self.session.words[self.at] == self.word else GONE

    def build(
        self, held: Any, mode: str = "shared", deserializers: Container[str] | None = None
    ) -> Any:
        """Make the object from what `secure` returned; afterwards only its views hold pins."""
        return self._decode(self.frames(held, mode), mode, deserializers)

    def frames(self, held: Any, mode: str) -> list[Any]:
        """Return the frames as the mode wants them."""
        first = int(self.header.get("serializer") == "pickle")
        frames = [held.view(row, "readonly") for row in self.table[:first]]
        return frames + [held.view(row, mode) for row in self.table[first:]]

    def serialized(self, held: Any, mode: str) -> Serialized:
        """Return header and frames; the header as `serialize` made it."""
        pickled = self.header.get("serializer") == "pickle"
        header = {key: value for key, value in self.header.items() if key != "key"}
        if pickled or header.get("serializer", "custom") == "custom":
            header["writeable"] = tuple([row.writeable for row in self.table[int(pickled) :]])
        return Serialized(header, self.frames(held, mode))

    def _decode(self, frames: list[Any], mode: str, deserializers: Container[str] | None) -> Any:
        modules = self.session.allowed_modules
        if mode != "private" and modules is None:
            return deserialize(self.header, frames, deserializers)
        rules = trust.policy.get()._replace(modules=modules, thaw=mode == "private")
        with trust.reading(rules):
            return deserialize(self.header, frames, deserializers)


class InlinePlan(Plan):
    """A plain pickle that lies in the slot itself: nothing to pin, its bytes are copied out."""

    __slots__ = ("end", "start")

    def __init__(self, session: Session, record: Record, header: dict[str, Any]) -> None:
        super().__init__(session, record, header, [])
        start, self.end = session.slots.inline_range(record)
        in_slot = not record.kind & L.KIND_HEADER_IN_EXTENT
        self.start = start + (record.header_nbytes if in_slot else 0)

    def fetch(self) -> Any:
        """Get the object, or GONE. Flat: the workload "get dict" of the benchmarks pays for it."""
        session = self.session
        words = session.words
        if not session.lock_free:
            return super().fetch()
        if words[self.at] != self.word:
            return GONE
        stream = session.memory[self.start : self.end]
        if words[self.at] != self.word:
            return GONE
        try:
            return loads(stream)
        except Exception:  # noqa: BLE001 - raised again by what knows how to say it
            return deserialize(self.header, [stream])

    def secure_once(self) -> Any:
        """Copy the bytes out and look at the slot again."""
        stream = self.session.memory[self.start : self.end]
        return stream if self.session.words[self.at] == self.word else GONE

    def build(
        self,
        held: Any,
        mode: str = "shared",  # noqa: ARG002 - a stream is the same in all modes
        deserializers: Container[str] | None = None,
    ) -> Any:
        """Unpickle the bytes."""
        return deserialize(self.header, [held], deserializers)

    def frames(self, held: Any, mode: str) -> list[Any]:  # noqa: ARG002 - as in build
        """Return the one frame."""
        return [held]


class ArrayPlan(Plan):
    """One NumPy array: it lies on the mapping itself and is its own anchor."""

    __slots__ = ("dtype", "shape", "start", "strides", "writeable")

    def __init__(
        self,
        session: Session,
        record: Record,
        header: dict[str, Any],
        table: list[headers.FrameRow],
    ) -> None:
        super().__init__(session, record, header, table)
        segment = session.segment
        self.writeable = table[0].writeable
        exporter = segment.writeable if self.writeable else segment.readonly
        self.shape, self.dtype, self.strides = array_layout(header["sub-header"])
        self.start = record.extent + table[0].offset
        frame = memoryview(exporter)[self.start : self.start + table[0].nbytes]
        self._check_bounds(frame)

    def _check_bounds(self, frame: memoryview) -> None:
        """Raise unless the array lies inside its frame; later only the mapping is checked."""
        try:
            check_extent(np.ndarray(self.shape, self.dtype, frame, 0, self.strides), frame.nbytes)
        except (TypeError, ValueError) as error:
            raise self.session.slots.damaged(
                self.slot, f"its array leaves its frame: {error}"
            ) from error

    def fetch(self) -> Any:
        """Get the array, or GONE. Flat: the workload "get array" of the benchmarks pays for it."""
        session = self.session
        if not session.lock_free:
            return super().fetch()
        pins = session.pins
        segment = session.segment
        exporter = segment.writeable if self.writeable else segment.readonly
        array: np.ndarray[Any, Any] = np.ndarray(
            self.shape, self.dtype, exporter, self.start, self.strides
        )
        try:
            cell = pins.free.pop()
        except IndexError:
            cell = pins.grow()
        pins.holders[cell] = weak_ref(array, pins.droppers[cell])
        pins.cells[cell] = self.slot + 1
        return array if session.words[self.at] == self.word else GONE


class _Pinned:
    """The anchor of a pin that is needed for a moment."""

    __slots__ = ("__weakref__",)


# --- from a slot or a key to a plan ------------------------------------------------------------


def make_plan(session: Session, slot: int, word: int) -> Plan | None:
    """Read what a slot says of its object; None when it holds another object by now."""
    record = session.slots.read(slot)
    if record.word != word or session.slots.word(slot) != word:
        return None
    packed = read_header(session, record)
    if packed is None:
        return None
    _check_place(session, record)
    try:
        return _interpret(session, record, packed)
    except ShmStoreError:
        raise
    except _NONSENSE as error:
        raise session.slots.damaged(slot, f"its header makes no sense: {error!r}") from error


def _interpret(session: Session, record: Record, packed: bytes) -> Plan:
    """Choose the plan that fits what a header says."""
    with trust.reading(trust.Policy(modules=session.allowed_modules)):
        header, table = headers.unpack(packed, record.extent_nbytes)
    if record.kind & L.KIND_PLAIN:
        header["serializer"] = "pickle"
        table = [headers.FrameRow(0, record.data_nbytes, writeable=False)]
    _check_texts(session, record, header)
    if record.kind & L.KIND_INLINE:
        return InlinePlan(session, record, header)
    if any(row.offset + row.nbytes > record.extent_nbytes for row in table):
        raise session.slots.damaged(record.slot, "a frame leaves its extent")
    is_array = (header.get("serializer"), header["type"]) == ("custom", "numpy.ndarray")
    plain = is_array and len(table) == 1 and "dtype" in header["sub-header"]
    on_mapping = plain and table[0].nbytes and table[0].codec is None
    kind = ArrayPlan if on_mapping and _is_handled_here() else Plan
    return kind(session, record, header, table)


def _is_handled_here() -> bool:
    """Return whether arrays are still rebuilt by our own handler."""
    return custom_deserialize.find(np.ndarray) is deserialize_array


def _check_texts(session: Session, record: Record, header: dict[str, Any]) -> None:
    """Raise unless family, type and, of a named object, the key are text."""
    texts = [header.get("serializer", ""), header["type"]]
    if record.kind & L.KIND_NAMED:
        texts.append(header["key"])
    if not all(isinstance(text, str) for text in texts):
        raise session.slots.damaged(record.slot, f"its header names {texts!r:.100}")


def read_header(session: Session, record: Record) -> bytes | None:
    """Copy the packed header of an object out; None when the slot holds another object by now."""
    if not record.kind & L.KIND_HEADER_IN_EXTENT:
        start, _ = session.slots.inline_range(record)
        packed = session.memory[start : start + record.header_nbytes]
        return packed if session.slots.word(record.slot) == record.word else None
    _check_place(session, record)
    pinned = _Pinned()
    session.pins.pin(pinned, record.slot)
    start = record.extent + record.header_offset
    packed = session.segment.readonly[start : start + record.header_nbytes]
    return packed if session.slots.word(record.slot) == record.word else None


def _check_place(session: Session, record: Record) -> None:
    """Raise unless the extent lies in the segment and the header in the extent."""
    in_extent = record.kind & L.KIND_HEADER_IN_EXTENT
    header_end = record.header_offset + record.header_nbytes if in_extent else 0
    end = record.extent + record.extent_nbytes if record.extent_nbytes else 0
    if end > session.identity.capacity or header_end > record.extent_nbytes:
        raise session.slots.damaged(
            record.slot,
            f"extent {record.extent}+{record.extent_nbytes} or header at {header_end} is out of "
            f"bounds",
        )


def find_key(session: Session, key: str) -> tuple[int, int] | None:
    """Return (slot, slot word) of the object with a key, or None. A miss is asked again, locked."""
    return find_digest(session, digest_of(key))


def find_digest(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    """As `find_key`, for the digest of a key."""
    return _find(session, digest) or session.lock.run(_find_locked, session, digest)


def _find_locked(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    """Requires: the store lock."""
    session.check_alive()
    if session.words[L.W_DIRTY] and session.readonly:
        # A dead process left the key index half changed, and this one may not mend it.
        slot = session.slots.scan(digest)
        return (slot, session.slots.word(slot)) if slot >= 0 else None
    return _find(session, digest)


def _find(session: Session, digest: tuple[int, int]) -> tuple[int, int] | None:
    slot = session.keys.find(digest)
    if slot < 0:
        return None
    record = session.slots.read(slot)
    same = record.digest == digest and states.state_of(record.word) == states.READY
    return (slot, record.word) if same else None


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
        plan = make_plan(session, *found)
        if plan is not None:
            return plan
    return session.lock.run(_plan_locked, session, digest)


def _plan_locked(session: Session, digest: tuple[int, int]) -> Plan | None:
    """Requires: the store lock."""
    found = _find_locked(session, digest)
    return make_plan(session, *found) if found else None


def plan_of_slot(session: Session, slot: int, generation: int) -> Plan | None:
    """Return a plan for the object of a reference, or None when it was deleted."""
    word = states.ready_word(generation)
    plan: Plan | None = session.plans.get(word)
    if plan is not None and plan.slot == slot:
        return plan
    if not 0 <= slot < session.words[L.W_SLOT_TOP] or session.slots.word(slot) != word:
        return None
    plan = make_plan(session, slot, word)
    if plan is not None:
        session.remember(word, plan)
    return plan


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


def _secure_locked(session: Session, key: str) -> tuple[Any, Any]:
    """Secure a key that is overwritten faster than it can be looked at. Requires: the lock."""
    plan = _plan_locked(session, digest_of(key))
    return plan, GONE if plan is None else plan.secure_once()


def missing_key(session: Session, key: str) -> ObjectNotFoundError:
    """Return the error for a key that no object has."""
    return ObjectNotFoundError(
        f"no object has the key {key!r} in store {session.path.name!r}. Has it been put under this "
        "name, or deleted? `list(store)` shows the keys; get(key, default) does not raise.",
        key=key,
    )
