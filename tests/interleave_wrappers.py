"""What do simulated processes take for mapped memory?

Objects in the place of the memoryviews, mappings and tables of a session, which load and store
through an `interleave_memory.Process`.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from interleave_memory import CALL, DISK, GRANULE, SEATS, SEGMENT, WORD, Process
from numpy.lib.mixins import NDArrayOperatorsMixin

from shmstore._sharing import seats as seats_module


class Words:
    """Words, as ``memoryview.cast("Q")`` gives them; with a stride, as a slice of that.

    Parameters
    ----------
    process
        Who loads and stores.
    start, stride
        The address of the first word, and the distance to the next.
    doubles
        The words are floating-point numbers.
    """

    __slots__ = ("_doubles", "_process", "_start", "_stride")

    def __init__(
        self, process: Process, start: int, stride: int = 1, *, doubles: bool = False
    ) -> None:
        self._process, self._start, self._stride, self._doubles = process, start, stride, doubles

    def __getitem__(self, at: Any) -> Any:
        if type(at) is slice:
            first = self._start + at.start * self._stride
            return Slice(self._process, first, at.stop - at.start, self._stride)
        return self._process.load(self._start + at * self._stride)

    def __setitem__(self, at: Any, value: Any) -> None:
        if self._doubles:
            value = int.from_bytes(struct.pack("=d", value), "little")
        self._process.store(self._start + at * self._stride, int(value))


class Slice:
    """A slice of words, which are loaded when they are looked at."""

    def __init__(self, process: Process, start: int, count: int, stride: int = 1) -> None:
        self._process, self._start, self._count, self._stride = process, start, count, stride

    def __len__(self) -> int:
        return self._count

    def tolist(self) -> list[int]:
        """Load the words, from the first to the last."""
        return list(self)

    def __iter__(self) -> Iterator[int]:
        end = self._start + self._count * self._stride
        return map(self._process.load, range(self._start, end, self._stride))

    def tobytes(self) -> bytes:
        """Load the words as bytes."""
        return b"".join(word.to_bytes(WORD, "little") for word in self)


class Bytes:
    """Bytes of the index, as its mapping gives them."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __getitem__(self, at: slice) -> bytes:
        first, last = at.start // WORD, -(-at.stop // WORD)
        loaded = Slice(self.process, first, last - first).tobytes()
        return loaded[at.start - first * WORD : at.stop - first * WORD]

    def __setitem__(self, at: slice, value: Any) -> None:
        self.write(at.start, bytes(value))

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes, from the first word to the last; one that is half written keeps the rest."""
        for word in range(offset // WORD, -(-(offset + len(data)) // WORD)):
            start = word * WORD - offset
            part = data[max(start, 0) : start + WORD]
            if len(part) < WORD:
                whole = bytearray(self.process.own(word).to_bytes(WORD, "little"))
                whole[max(-start, 0) : max(-start, 0) + len(part)] = part
                part = bytes(whole)
            self.process.store(word, int.from_bytes(part, "little"))


class Packing:
    """A ``struct.Struct`` that packs into `Bytes` too."""

    def __init__(self, real: Any) -> None:
        self.size, self.pack, self._real = real.size, real.pack, real

    def pack_into(self, target: Any, offset: int, *values: int) -> None:
        """Store the values one after the other."""
        if isinstance(target, Bytes):
            target.write(offset, self._real.pack(*values))
        else:
            self._real.pack_into(target, offset, *values)


class Frames:
    """Bytes of the segment, for writing."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __setitem__(self, at: slice, frame: Any) -> None:
        data = bytes(frame)
        for granule in range(at.start // GRANULE, -(-at.stop // GRANULE)):
            start = granule * GRANULE - at.start
            part = bytearray(self._process.own(SEGMENT + granule))
            begin = max(-start, 0)
            piece = data[max(start, 0) : start + GRANULE]
            part[begin : begin + len(piece)] = piece
            self._process.store(SEGMENT + granule, bytes(part))

    def release(self) -> None:
        """Do as a memoryview does."""


class Table(NDArrayOperatorsMixin):
    """A part of a table of the index, as NumPy sees it: looking waits for the own stores.

    Only who holds the store lock looks, and nobody else changes these words meanwhile, except what
    `Knowledge.loose` says. So stores are labels, one by one, and most loads are none.
    """

    def __init__(self, process: Process, real: Any, where: Any) -> None:
        self._process, self._real, self._where = process, real, where

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        found = self._see(...)
        return found if dtype is None else found.astype(dtype)

    def _see(self, at: Any) -> Any:
        """Load a part, and no more: each word that others store at any time is a label."""
        self._process.drain()
        where = set(np.ravel(self._where[at]).tolist())
        for address in sorted(where & self._process.known.loose):
            self._process.load(address)
        found = np.array(self._real[at])
        self._process.history = hash((self._process.history, found.tobytes()))
        return found

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **named: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, Table) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **named)

    def __len__(self) -> int:
        return len(self._real)

    def __getitem__(self, at: Any) -> Any:
        part = self._real[at]
        if isinstance(part, np.ndarray) and np.may_share_memory(part, self._real):
            return Table(self._process, part, self._where[at])
        return self._see(np.asarray(at) if isinstance(at, Table) else at)

    def __setitem__(self, at: Any, values: Any) -> None:
        at = np.asarray(at) if isinstance(at, Table) else at
        both = np.broadcast_arrays(self._where[at], np.asarray(values))
        for address, value in zip(*(x.ravel().tolist() for x in both), strict=True):
            self._process.store(address, int(value))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def reshape(self, *shape: int) -> Table:
        """Return the same words in another shape."""
        return Table(self._process, self._real.reshape(*shape), self._where.reshape(*shape))


class NumPy:
    """The module, for code that makes arrays of the index."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def frombuffer(self, memory: Any, dtype: Any, count: int = -1, offset: int = 0) -> Any:
        """Do as NumPy does, also for what stands for memory."""
        if not isinstance(memory, Bytes):
            return np.frombuffer(memory, dtype, count, offset)
        words = count * np.dtype(dtype).itemsize // WORD  # bytes are only ever made 0
        real = np.frombuffer(memory.process.memory.index, np.uint64, words, offset)
        first = offset // WORD
        return Table(memory.process, real, np.arange(first, first + words))


class Files:
    """The files of spilled objects: real ones, a label for each call on them.

    Parameters
    ----------
    process
        Who calls.
    session
        Its session, which has the real files.
    """

    def __init__(self, process: Process, session: Any) -> None:
        self._process, self._session, self._real = process, session, session.files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        process = self._process
        if not process.direct:
            process.drain()
            process.wait(CALL, DISK)
        try:
            result = getattr(self._real, method)(*arguments, **named)
        finally:
            known = tuple((name, self._content(name)) for name in sorted(self._real.names()))
            process.memory.change(process.number, DISK, process.memory.disk, hash(known))
        process.history = hash((process.history, str(result)))
        return result

    def _content(self, name: str) -> bytes:
        path = self._real.path / name
        return path.read_bytes()

    def write(self, serial: int, slot: int, generation: int, *rest: Any) -> Any:
        """Write a file, from what memory holds at that moment."""
        record = self._session.slots.read(slot)
        for granule in range(record.extent // GRANULE, -(-_end_of(record) // GRANULE)):
            self._process.load(SEGMENT + granule)
        return self._call("write", serial, slot, generation, *rest)

    def commit(self, *place: Any) -> None:
        """Rename a file."""
        self._call("commit", *place)

    def discard(self, name: str) -> None:
        """Remove a temporary file."""
        self._call("discard", name)

    def remove(self, *place: int) -> None:
        """Remove the file of an object."""
        self._call("remove", *place)

    def strays(self, *known: Any) -> Any:
        """Look for files that belong to nobody."""
        return self._call("strays", *known)

    def open(self, *place: int, **named: Any) -> OpenFile:
        """Open the file of an object."""
        return OpenFile(self._process, self._call("open", *place, **named), self._session.segment)


def _end_of(record: Any) -> int:
    return int(record.extent + record.extent_nbytes) if record.node >= 0 else int(record.extent)


class OpenFile:
    """An open file of a spilled object; what is read into memory are stores."""

    def __init__(self, process: Process, real: Any, segment: Any) -> None:
        self._process, self._real, self._segment = process, real, segment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._real.close()

    def read_into(self, target: memoryview) -> None:
        """Read the file into the segment."""
        data = bytearray(target.nbytes)
        self._real.read_into(memoryview(data))
        whole = np.frombuffer(self._segment.writeable, np.uint8)
        start = _address_of(np.frombuffer(target, np.uint8)) - _address_of(whole)
        Frames(self._process)[start : start + len(data)] = data


def view_of(memory: Any) -> Any:
    """Do as memoryview does, also for what stands for memory."""
    return memory if isinstance(memory, Bytes) else memoryview(memory)


# --- their places ---------------------------------------------------------------------------------


def instrument(session: Any, process: Process) -> None:
    """Let all parts of a session reach memory through a simulated process."""
    index, pins = session.index, session.pins
    words, memory = Words(process, 0), Bytes(process)
    tables = session.slots, session.keys, session.allocator, session.clients, session.waiters
    parts = (session, session.lock, *tables)
    raw = index.words, index.memory
    for part in (*parts, index):
        for name, value in list(vars(part).items()):
            if value is raw[0]:
                setattr(part, name, words)
            elif value is raw[1] or (
                isinstance(value, memoryview) and value.obj is raw[1] and value.format == "B"
            ):
                setattr(part, name, memory)
    session.segment.bytes = Frames(process)
    if session.spills:
        session.files = Files(process, session)
    session.segment.readonly = _reading_map(process, session.segment)
    pins.seat = seat_for(process, pins.seat, process.number)
    pins.stay()


def parts_of(session: Any) -> tuple[Any, ...]:
    """Return what a session consists of, as far as it remembers anything."""
    return (
        session,
        session.lock,
        session.slots,
        session.keys,
        session.allocator,
        session.clients,
        session.waiters,
        session.bells,
        session.index,
        session.segment,
        session.pins,
    )


@contextlib.contextmanager
def put_back(session: Any) -> Iterator[None]:
    """Let all parts of a session reach memory as they did, afterwards."""
    kept = [(part, vars(part).copy()) for part in parts_of(session)]
    try:
        yield
    finally:
        for part, attributes in kept:
            vars(part).clear()
            vars(part).update(attributes)


def seat_for(reader: Process, real: Any, number: int) -> Any:
    """Return the seat of a client as some process reaches it."""
    seat = seats_module.Seat.__new__(seats_module.Seat)
    vars(seat).update(vars(real))
    memory = np.asarray(real.words)
    for name, value in vars(real).items():
        if isinstance(value, memoryview) and value.itemsize == WORD:
            view = np.asarray(value)
            start = (_address_of(view) - _address_of(memory)) // WORD
            doubles = value.format == "d"
            words = Words(
                reader, (1 + number) * SEATS + start, view.strides[0] // WORD, doubles=doubles
            )
            setattr(seat, name, words)
    return seat


def _address_of(view: np.ndarray) -> int:
    return int(view.__array_interface__["data"][0])


def _reading_map(process: Process, segment: Any) -> Any:
    """Return a read-only mapping of the segment with labels where it is copied out."""

    class Map(mmap.mmap):
        def __getitem__(self, at: Any) -> Any:
            if isinstance(at, slice) and not process.direct:
                for granule in range(at.start // GRANULE, -(-at.stop // GRANULE)):
                    process.load(SEGMENT + granule)
            return super().__getitem__(at)

    return Map(segment.fd, segment.nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
