"""Where does one object lie, and how is it built there?

A *plan* is what a process knows about one object. Its `secure` makes sure that the bytes stay what
they are: it copies the few bytes of an object that lies in the index, or pins the extent; then it
looks at the slot word again. Its `build` makes the object; from then on its views hold the pin (see
`_lease`). `fetch` does both in mode "shared", in one go where that is quicker.

Concurrency: takes no lock where the store is read with barriers (see `Session.reclaim`); otherwise
`secure` runs under the store lock.
"""

from __future__ import annotations

from collections.abc import Container
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import ref as weak_ref

import numpy as np

from shmstore import _gets
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.slots import Record
from shmstore._gets import NO_TICKS, Counted
from shmstore._heads import unpack_late
from shmstore._lease import Lease
from shmstore._memory import layout as L
from shmstore._session import Session
from shmstore.serialization import Serialized, deserialize, headers, trust
from shmstore.serialization.handlers.numpy import array_layout, check_extent
from shmstore.serialization.pickling import loads

if TYPE_CHECKING:
    import mmap

LIST_TYPE: Final = "shmstore.serialization.handlers.records.Records"
"""The type in the header of a list of records, which knows where it lies."""

GONE: Final = _gets.GONE
"""What `fetch` and `secure` return when the slot holds another object by now."""

# Streams of pickles up to this size are copied out.
_COPY_OUT_NBYTES: Final = 64 << 10


class Plan(Counted):
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
        "asks",
        "at",
        "clocked",
        "expires_ns",
        "extent",
        "extent_nbytes",
        "flat",
        "header",
        "place",
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
        self.place = record.place
        self.extent = record.place & L.EXTENT_MASK
        self.extent_nbytes = record.extent_nbytes
        self.expires_ns = record.expires_ns
        self.flat = session.flat
        self.clocked = session.clocked
        self.ticks = self.dealt = NO_TICKS
        self.asks = session.clocked or record.expires_ns != 0
        self.header = header
        self.table = table

    def fetch(self) -> Any:
        """Get the object in mode "shared", or GONE."""
        self.count()
        return self.fetch_by_steps()

    def fetch_by_steps(self) -> Any:
        """Get the object, which was counted, or GONE."""
        held = self.secure()
        return self.gone() if held is GONE else self.build(held)

    def secure(self) -> Any:
        """Return what keeps the bytes as they are until `build`, or GONE."""
        if self.session.lock_free:
            return self.secure_once()
        return self.session.lock.run(self.secure_once)

    def secure_once(self) -> Any:
        """Pin the extent, then look at the slot again (the reader's half of the pin race)."""
        lease = Lease(self)
        return lease if self.is_there() else GONE

    def examine(self) -> None:
        """Raise CorruptStoreError if the header makes no sense, also where a get needs none."""
        _ = self.header

    def is_there(self) -> bool:
        """Look at the slot again, and note that the object is used. What pins must come before."""
        words, at = self.session.words, self.at
        if self.clocked:
            words[at + L.S_LAST_USED] = words[L.W_NEXT_GENERATION]
        if self.expires_ns and boottime_ns() >= self.expires_ns:
            return False
        there: bool = words[at] == self.word and words[at + L.S_EXTENT] == self.place
        return there

    def exporter(self, mode: str) -> tuple[mmap.mmap, int]:
        """Return the mapping for views of a mode, and where the extent begins in it."""
        segment = self.session.segment
        if mode == "private":
            return segment.map_private(self.extent, self.extent_nbytes)
        return (segment.writeable if mode == "shared" else segment.readonly), self.extent

    def build(
        self, held: Any, mode: str = "shared", deserializers: Container[str] | None = None
    ) -> Any:
        """Make the object from what `secure` returned; afterwards only its views hold pins."""
        obj = self._decode(self.frames(held, mode), mode, deserializers)
        if self.header["type"] == LIST_TYPE:
            return import_module("shmstore._lists").of_plan(self, obj, mode, deserializers)
        return obj

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
    """A plain pickle that lies in the slot itself: nothing to pin, its bytes are copied out.

    Its header says nothing that a get needs: it is unpacked when somebody asks for it.
    """

    __slots__ = ("packed", "where")

    def __init__(self, session: Session, record: Record, packed: bytes) -> None:
        super().__init__(session, record, {}, [])
        del self.header  # see __getattr__
        self.packed = packed
        start, end = session.slots.inline_range(record)
        in_slot = not record.kind & L.KIND_HEADER_IN_EXTENT
        self.where = slice(start + (record.header_nbytes if in_slot else 0), end)

    def __getattr__(self, name: str) -> Any:
        """Unpack the header; CorruptStoreError: it makes no sense."""
        if name != "header":
            raise AttributeError(name)
        self.header = unpack_late(self.session, self.record, self.packed)
        return self.header

    def fetch(self) -> Any:
        """Get the object, or GONE. Flat: the workload "get dict" of the benchmarks pays for it."""
        session = self.session
        words = session.words
        if None not in self.ticks and not self.count():
            return self.fetch_by_steps()
        stream = session.memory[self.where]  # a copy
        if words[self.at] != self.word or (self.asks and not self.is_there()):
            return self.gone()
        try:
            return loads(stream)
        except (MemoryError, OSError):
            raise  # says nothing about the object
        except Exception:  # noqa: BLE001 - raised again by what knows how to say it
            return deserialize(self.header, [stream])

    def secure_once(self) -> Any:
        """Copy the bytes out and look at the slot again."""
        stream = self.session.memory[self.where]
        return stream if self.is_there() else GONE

    def build(
        self,
        held: Any,
        mode: str = "shared",  # noqa: ARG002 - a stream is the same in all modes
        deserializers: Container[str] | None = None,
    ) -> Any:
        """Unpickle the bytes."""
        if deserializers is not None:
            return deserialize(self.header, [held], deserializers)
        try:
            return loads(held)
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 - as in fetch
            return deserialize(self.header, [held])

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
        if None not in self.ticks and not self.count():
            return self.fetch_by_steps()
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
        pins.times[cell] = monotonic()
        pins.cells[cell] = self.slot + 1
        if self.asks:
            return array if self.is_there() else self.gone()
        return array if session.words[self.at] == self.word else self.gone()


class PicklePlan(Plan):
    """A pickle: its buffers are slices of an anchor per mapping, its stream is copied out if small.

    What is copied out before the slot word is looked at again needs no pin.
    """

    __slots__ = ("begin", "end", "mappings", "places")

    def __init__(
        self,
        session: Session,
        record: Record,
        header: dict[str, Any],
        table: list[headers.FrameRow],
    ) -> None:
        super().__init__(session, record, header, table)
        stream, *buffers = table
        self.begin = stream.offset
        self.end = stream.offset + stream.nbytes
        self.places = [(row.offset, row.offset + row.nbytes, row.writeable) for row in buffers]
        flags = {row.writeable for row in buffers if row.nbytes}
        self.mappings = flags | {False} if stream.nbytes > _COPY_OUT_NBYTES else flags

    def fetch(self) -> Any:
        """Get the object, or GONE. Flat: the workload "types" of the benchmarks pays for it."""
        session = self.session
        if None not in self.ticks and not self.count():
            return self.fetch_by_steps()
        segment = session.segment
        extent, nbytes, slot, pin = self.extent, self.extent_nbytes, self.slot, session.pins.pin
        views: dict[bool, memoryview] = {}
        for writeable in self.mappings:
            exporter = segment.writeable if writeable else segment.readonly
            anchor = np.ndarray(nbytes, np.uint8, exporter, extent)
            pin(anchor, slot)
            views[writeable] = anchor.data
        begin, end = self.begin, self.end
        if end - begin > _COPY_OUT_NBYTES:
            stream: Any = views[False][begin:end]
        else:
            stream = segment.readonly[extent + begin : extent + end]
        if session.words[self.at] != self.word or (self.asks and not self.is_there()):
            return self.gone()
        buffers = [
            views[writeable][start:stop] if start != stop else _empty(writeable)
            for start, stop, writeable in self.places
        ]
        try:
            return loads(stream, buffers=buffers)
        except (MemoryError, OSError):
            raise  # says nothing about the object
        except Exception:  # noqa: BLE001 - raised again by what knows how to say it
            return deserialize(self.header, [stream, *buffers])


def _empty(writeable: bool) -> memoryview:  # noqa: FBT001 - one use
    view = memoryview(bytearray())
    return view if writeable else view.toreadonly()
