"""A real store whose clients are simulated processes: the stage of every exploration.

The files are real, and so is all code of shmstore; each simulated process has a real `Session` of
its own in this one OS process. What is not real is what `interleave_memory` puts in the place of
mapped memory, and of the kernel: the store lock, ``membarrier``, the liveness of a seat, the names
in the folder of seats, the clock.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, Self
from unittest import mock

import numpy as np
from interleave_memory import (
    ALIVE,
    FILES,
    GRANULE,
    LOAD,
    LOCK,
    PASS,
    SEATS,
    SEGMENT,
    UNLOCK,
    WORD,
    Bytes,
    Counterexample,
    Frames,
    Knowledge,
    Memory,
    Packing,
    Process,
    Table,
    Words,
    running,
)

from shmstore import ObjectRef, Store, _session
from shmstore._catalog import slots as slots_module
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory.descriptors import Descriptor
from shmstore._options import Options
from shmstore._session import Session
from shmstore._sharing import clients as clients_module
from shmstore._sharing import lock as lock_module
from shmstore._sharing import seats as seats_module

NOW_NS = 1_700_000_000_000_000_000

_CELLS = 4  # per seat


class World:
    """A store with simulated clients.

    Parameters
    ----------
    names
        Of the processes.
    options
        For `Store.create`.
    """

    def __init__(self, *names: str, **options: Any) -> None:
        options = {"capacity": 4096, "max_objects": 6, "prefault": True, **options}
        self.store = Store.create(max_clients=len(names) + 1, **options)
        self._judge: Any = self.store._session
        self._sessions = [self._new_session(number) for number in range(len(names))]
        everyone = [*self._sessions, self._judge]
        self._seats = [session.pins.seat for session in everyone]
        self.known = Knowledge()
        self.memory = Memory(
            self._judge.index.words,
            memoryview(self._judge.segment.writeable),
            [seat.words for seat in self._seats],
        )
        both = zip(range(len(everyone)), [*names, "judge"], strict=True)
        processes = [Process(number, name, self.memory, self.known) for number, name in both]
        self.processes = processes[:-1]
        self.mortal: frozenset[int] = frozenset()
        self.deaths = 0
        self.scripts: list[Callable[[Process], None]] = []
        self.judges: list[Callable[[], None]] = []
        self._by_fd = {session.lock.fd: p for session, p in zip(everyone, processes, strict=True)}
        self._serials = {
            session.pins.seat.serial: p.number
            for session, p in zip(everyone, processes, strict=True)
        }
        self._geometry = self._judge.index.geometry
        for session, process in zip(everyone, processes, strict=True):
            self.memory.files[session.pins.seat.serial] = 1
            self.memory.alive[process.number] = 1
            _instrument(session, process)
        for session, process in zip(everyone, processes, strict=True):
            session.clients._seen = {
                other.row: _seat_for(process, seat, number)
                for number, (other, seat) in enumerate(zip(everyone, self._seats, strict=True))
            }
        self.stores = [Store._of(session, Options()) for session in self._sessions]
        self._patches = contextlib.ExitStack()
        self._patch()
        self._kept: list[tuple[Any, dict[str, Any], list[Any]]] = []

    def _new_session(self, number: int) -> Any:
        folder_fd = Descriptor(os.dup(self._judge.folder_fd))
        session = Session(folder_fd, self._judge.path, readonly=False, lock_timeout=1.0)
        session.pid = 1000 + number
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.reset()
        self._patches.close()
        for session in self._sessions:
            session.plans.clear()
            session.close_files()
        self.store.close()

    # --- making ready --------------------------------------------------------------------------

    def ready(self) -> None:
        """What was done until now is the beginning of every run."""
        self.memory._first.clear()
        self.memory.digest = 0
        self.memory.watch = self._watch
        self._kept = []
        for session in [*self._sessions, self._judge]:
            session.plans.clear()
            for owner in (session, session.pins, session.clients, session.lock):
                self._kept.append((owner, vars(owner).copy(), _contents(vars(owner))))

    def reset(self) -> None:
        """Go back to the beginning."""
        self.memory.reset()
        for owner, attributes, contents in self._kept:
            vars(owner).update(attributes)
            for container, content in contents:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)

    # --- the kernel ----------------------------------------------------------------------------

    def _patch(self) -> None:
        enter = self._patches.enter_context
        put = mock.patch.object
        enter(put(lock_module, "lock_descriptor", self._lock))
        enter(put(lock_module, "unlock_descriptor", self._unlock))
        enter(put(_session, "membarrier", self._membarrier))
        enter(put(clients_module.Clients, "is_alive", self._is_alive))
        enter(put(clients_module, "os", self._folder_of_seats()))
        enter(put(seats_module, "_FIRST_CELLS", _CELLS))
        enter(put(slots_module, "memoryview", _view, create=True))
        for module in [sys.modules[name] for name in sys.modules if name.startswith("shmstore._")]:
            for name, value in list(vars(module).items()):
                replacement = _STILL.get(id(value))
                if replacement is not None:
                    enter(put(module, name, replacement))
        for name, value in list(vars(slots_module).items()):
            if type(value).__name__ == "Struct":
                enter(put(slots_module, name, Packing(value)))

    def _lock(self, fd: int, *, blocking: bool = True) -> bool:  # noqa: ARG002 - as filelock's
        process = running()
        if process is not None:
            assert process is self._by_fd[fd]
            process.wait(LOCK, 0)
        return True

    def _unlock(self, fd: int) -> None:  # noqa: ARG002 - as filelock's
        process = running()
        if process is not None and not process.dead:
            process.wait(UNLOCK, 0)

    def _membarrier(self) -> None:
        process = running()
        if process is not None:
            process.drain()
            for other in self.processes:
                if other is not process:
                    process.wait(PASS, other.number)

    def _is_alive(self, client: Any) -> bool:
        number = self._serials[client.serial]
        process = running()
        if process is None:
            return bool(self.memory.peek(ALIVE + number))
        if number < len(self.processes):
            process.wait(LOAD, ALIVE + number)
        alive = self.memory.peek(ALIVE + number)
        process.history = hash((process.history, alive))
        return bool(alive)

    def _folder_of_seats(self) -> Any:
        """Return what stands for the module os where seats are looked for and removed."""

        def unlink(name: str, **_: object) -> None:
            process = running() or self._direct
            if not process.own(FILES + int(name)):
                raise FileNotFoundError(name)
            process.store(FILES + int(name), 0)

        def listdir(_: int) -> list[str]:
            process = running() or self._direct
            return [str(serial) for serial in self._serials if process.own(FILES + serial)]

        return types.SimpleNamespace(unlink=unlink, listdir=listdir)

    @property
    def _direct(self) -> Process:
        return self._by_fd[self._judge.lock.fd]

    # --- for scripts ---------------------------------------------------------------------------

    def refer(self, ref: ObjectRef) -> ObjectRef:
        """Return a reference as another process gets it."""
        copy: ObjectRef = pickle.loads(pickle.dumps(ref))
        return copy

    def offset_of(self, array: np.ndarray) -> int:
        """Return where an array lies in the segment, or -1."""
        address = array.__array_interface__["data"][0]
        for session in [*self._sessions, self._judge]:
            for real in (session.segment.readonly, session.segment.writeable):
                start = np.frombuffer(real, np.uint8).__array_interface__["data"][0]
                if 0 <= address - start < self._judge.identity.capacity:
                    return int(address - start)
        return -1

    @contextlib.contextmanager
    def holding(self, process: Process, array: np.ndarray) -> Iterator[None]:
        """From now on nobody may use the memory of this array for anything else."""
        start = self.offset_of(array)
        span = (start, start + array.nbytes)
        process.held.append(span)
        self._check_held(process, start)
        try:
            yield
        finally:
            if span in process.held:
                process.held.remove(span)

    def look(self, process: Process, array: np.ndarray) -> bytes:
        """Read the bytes of an array, a label for each granule."""
        start = self.offset_of(array)
        for granule in range(start // GRANULE, -(-(start + array.nbytes) // GRANULE)):
            process.load(SEGMENT + granule)
        return array.tobytes()

    # --- what must never happen ----------------------------------------------------------------

    def _watch(self, number: int, address: int, old: Any, new: Any) -> None:
        """Look at each change of memory."""
        if running() is not None or number == len(self.processes):
            return
        if SEGMENT <= address < FILES:
            start = (address - SEGMENT) * GRANULE
            self._refuse_held(start, start + GRANULE, number, "is written over")
        elif address < SEATS and self._field(address) == L.S_STATE:
            if new >> 8 < old >> 8:
                raise Counterexample(f"the generation falls from {old >> 8} to {new >> 8}")
            self._check_states(address, old, new, number)
        elif address == L.W_NEXT_GENERATION and new < old:
            raise Counterexample(f"the next generation falls from {old} to {new}")

    def _field(self, address: int) -> int:
        """Return which word of a slot lies at an address, or -1."""
        at = address - self._geometry.slots
        return at % L.SLOT_WORDS if at >= 0 else -1

    def _check_states(self, address: int, old: int, new: int, number: int) -> None:
        """A slot is freed, or begins a new life: its extent may be nobody's."""
        if states.state_of(new) in (states.FREE, states.WRITING) and old:
            peek = self.memory.peek
            start = peek(address + L.S_EXTENT) & getattr(L, "EXTENT_MASK", (1 << 64) - 1)
            nbytes = peek(address + L.S_EXTENT_NBYTES)
            name = states.NAMES[states.state_of(new)]
            if nbytes:
                self._refuse_held(start, start + nbytes, number, f"is {name}")

    def _refuse_held(self, start: int, end: int, number: int, what: str) -> None:
        for process in self.processes:
            for first, last in process.held:
                if first < end and start < last and (process.number != number or what):
                    raise Counterexample(
                        f"the extent at {first}, which {process.name} looks at, {what}"
                    )

    def _check_held(self, process: Process, start: int) -> None:
        """What was just got is still there: its slot is not free."""
        for slot in range(self.memory.peek(L.W_SLOT_TOP)):
            base = self._geometry.slots + slot * L.SLOT_WORDS
            mask = getattr(L, "EXTENT_MASK", (1 << 64) - 1)
            extent = self.memory.peek(base + L.S_EXTENT) & mask
            nbytes = self.memory.peek(base + L.S_EXTENT_NBYTES)
            state = states.state_of(self.memory.peek(base + L.S_STATE))
            if extent <= start < extent + nbytes and state in (states.READY, states.DOOMED):
                return
        raise Counterexample(f"{process.name} got what has been freed")

    # --- the end -------------------------------------------------------------------------------

    def judge(self) -> None:
        """Recover, check all invariants, and what the scenario demands."""
        watch, self.memory.watch = self.memory.watch, lambda *_: None
        try:
            self.store.recover()
            findings = self.store.check()
            if findings:
                raise Counterexample(f"check() finds {findings}")
            for look in self.judges:
                look()
        finally:
            self.memory.watch = watch

    def name_of(self, address: int) -> str:
        """Return what lies at an address."""
        if address >= ALIVE:
            return f"life of {self.processes[address - ALIVE].name}"
        if address >= FILES:
            return f"file of seat {address - FILES}"
        if address >= SEGMENT:
            return f"data at {(address - SEGMENT) * GRANULE}"
        if address >= SEATS:
            who = [*self.processes, self._direct][address // SEATS - 1].name
            return f"cell {address % SEATS} of {who}"
        if address >= self._geometry.slots:
            slot, field = divmod(address - self._geometry.slots, L.SLOT_WORDS)
            return f"slot {slot}.{_NAMES.get(('S', field), field)}"
        if address >= self._geometry.nodes:
            return f"node word {address - self._geometry.nodes}"
        if address >= self._geometry.buckets:
            return f"bucket {address - self._geometry.buckets}"
        return f"{_NAMES.get(('W', address), address)}"


# Clocks stand still: what they show is seen by people only, or would make each run another.
_CLOCK = types.SimpleNamespace(
    **{**vars(time), "time_ns": lambda: NOW_NS, "clock_gettime_ns": lambda _: NOW_NS}
)
_STILL = {id(time): _CLOCK, id(time.monotonic): lambda: 0.0, id(time.time_ns): lambda: NOW_NS}


def _view(memory: Any) -> Any:
    """Do as memoryview does, also for what stands for memory."""
    return memory if isinstance(memory, Bytes) else memoryview(memory)


_NAMES = {
    (name[0], value): name[2:]
    for name, value in vars(L).items()
    if name.startswith(("S_", "W_")) and isinstance(value, int)
}


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return each container among attributes, which others may know too, with what is in it."""
    kinds = (dict, list, set)
    return [(value, value.copy()) for value in attributes.values() if isinstance(value, kinds)]


def _instrument(session: Any, process: Process) -> None:
    """Let all parts of a session reach memory through a simulated process."""
    index, pins = session.index, session.pins
    words, memory = Words(process, 0), Bytes(process)
    parts = (session, session.lock, session.slots, session.keys, session.allocator, session.clients)
    raw = index.words, index.memory
    for part in (*parts, index):
        for name, value in list(vars(part).items()):
            if value is raw[0]:
                setattr(part, name, words)
            elif value is raw[1] or (
                isinstance(value, memoryview) and value.obj is raw[1] and value.format == "B"
            ):
                setattr(part, name, memory)
    slots = session.slots
    first = index.geometry.slots
    flat = np.frombuffer(raw[1], np.uint64, index.geometry.max_objects * L.SLOT_WORDS, first * 8)

    def table() -> Table:
        rows = words[L.W_SLOT_TOP]
        return Table(process, flat[: rows * L.SLOT_WORDS].reshape(rows, L.SLOT_WORDS), first)

    slots.table = table
    session.segment._bytes = Frames(process)
    session.segment.readonly = _reading_map(process, session.segment)
    pins.seat = _seat_for(process, pins.seat, process.number)
    pins.stay()


def _seat_for(reader: Process, real: Any, number: int) -> Any:
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
