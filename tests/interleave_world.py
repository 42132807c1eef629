"""A real store whose clients are simulated processes: the stage of every exploration.

The files are real, and so is all code of shmstore; each simulated process has a real `Session` of
its own in this one OS process. What is not real is what `interleave_memory` puts in the place of
mapped memory, and of the kernel: the store lock, ``membarrier``, the liveness of a seat, the names
in the folder of seats, the clock.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any, Self
from unittest import mock

import interleave_names
import interleave_spares
import numpy as np
from interleave_bells import Bells, sleep
from interleave_guard import Guard
from interleave_memory import (
    ALIVE,
    FILES,
    GRANULE,
    LOAD,
    LOCK,
    PASS,
    SEGMENT,
    UNLOCK,
    Counterexample,
    Knowledge,
    Memory,
    Process,
    running,
)
from interleave_time import LOOKED_AT, STILL
from interleave_wrappers import NumPy, Packing, instrument, parts_of, put_back, seat_for, view_of

from shmstore import ObjectRef, Store, _claiming, _reading, _ref, _space, _waiting
from shmstore._catalog import inserts as inserts_module
from shmstore._catalog import states
from shmstore._catalog import table as table_module
from shmstore._memory import blocks as blocks_module
from shmstore._memory import index as index_module
from shmstore._memory import layout as L
from shmstore._memory.descriptors import Descriptor
from shmstore._options import Options
from shmstore._plans import Plan
from shmstore._session import Session
from shmstore._sharing import clients as clients_module
from shmstore._sharing import lock as lock_module
from shmstore._sharing import seats as seats_module
from shmstore._sharing import waiters as waiters_module

_STORE = 1 << 76 | 1
_CELLS = 4  # per seat
_TRIES = 2  # before a get takes the lock


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
        self._spilled = contextlib.ExitStack()
        if options.get("on_full") == "spill":
            folder = tempfile.TemporaryDirectory(prefix="shmstore-test-")
            options["spill_dir"] = self._spilled.enter_context(folder)
        # Checksums begin with the UUID: with the same one, the same words mean the same state.
        with mock.patch.object(index_module, "random_uuid", return_value=_STORE):
            self.store = Store.create(max_clients=len(names) + 1, **options)
        self.judge_session: Any = self.store._session
        # What a weakened protocol keeps in mind from one call to the next, by process.
        self.remembered: dict[int, Any] = {}
        self.sessions = [self._new_session(number) for number in range(len(names))]
        everyone = [*self.sessions, self.judge_session]
        self._seats = [session.pins.seat for session in everyone]
        self.known = Knowledge()
        self.memory = Memory(
            self.judge_session.index.words,
            memoryview(self.judge_session.segment.writeable),
            [seat.words for seat in self._seats],
        )
        both = zip(range(len(everyone)), [*names, "judge"], strict=True)
        processes = [Process(number, name, self.memory, self.known) for number, name in both]
        self.processes = processes[:-1]
        self.mortal: frozenset[int] = frozenset()
        self.deaths = 0
        self.scripts: list[Callable[[Process], None]] = []
        self.judges: list[Callable[[], None]] = []
        self.waited_for: Any = None
        self.kept: Any = None  # what the judge looks at all the time
        self._by_fd = {session.lock.fd: p for session, p in zip(everyone, processes, strict=True)}
        self._serials = {
            session.pins.seat.serial: p.number
            for session, p in zip(everyone, processes, strict=True)
        }
        self._geometry = self.judge_session.index.geometry
        self._guard = Guard(self.memory, self.processes, self._geometry)
        self._patches = contextlib.ExitStack()
        for session, process in zip(everyone, processes, strict=True):
            process.lasting = functools.partial(interleave_spares.known_of, session)
            session.bells.close()
            session.bells = Bells(process, self._serials)
            self._patches.enter_context(put_back(session))
            self.memory.files[session.pins.seat.serial] = 1
            self.memory.alive[process.number] = 1
            instrument(session, process)
        for session, process in zip(everyone, processes, strict=True):
            session.clients._seen = {
                other.row: seat_for(process, seat, number)
                for number, (other, seat) in enumerate(zip(everyone, self._seats, strict=True))
            }
        self.stores = [_handle_of(session) for session in self.sessions]
        self._patch()
        self._kept: list[tuple[Any, dict[str, Any], list[Any]]] = []

    def _new_session(self, number: int) -> Any:
        folder_fd = Descriptor(os.dup(self.judge_session.folder_fd))
        session = Session(folder_fd, self.judge_session.path, readonly=False, lock_timeout=1.0)
        session.pid = 1000 + number
        session.most_doomed = 0  # what is deleted is wanted back by the next put
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.reset()
        self._patches.close()
        for session in self.sessions:
            session.plans.clear()
            session.close_files()
        self.kept = None
        self.store.close()
        self._spilled.close()

    # --- making ready --------------------------------------------------------------------------

    def ready(self, *, empty_seats: bool = False) -> None:
        """What was done until now is the beginning of every run."""
        for session in self.sessions if empty_seats else ():
            pins = session.pins
            pins.seat.words[L.SEAT_CELLS] = 0
            pins._end = L.FIRST_CELL
            for cells in (pins.holders, pins.droppers):
                del cells[L.FIRST_CELL :]
            pins.free.clear()
        self.memory._first.clear()
        self.memory.digest = 0
        self.memory.watch = self._guard.look
        self._kept = []
        self._spares = [interleave_spares.Kept(session) for session in self.sessions]
        for session in [*self.sessions, self.judge_session]:
            session.plans.clear()
            # The reclaimer loads the cells upward: each new pin lies where it has just been.
            session.pins.free.sort()
            for owner in parts_of(session):
                self._kept.append((owner, vars(owner).copy(), _contents(vars(owner))))

    def reset(self) -> None:
        """Go back to the beginning."""
        self.memory.reset()
        for spares in self._spares:
            spares.put_back()
        if self.judge_session.spills:
            for name in self.judge_session.files.names():
                (self.judge_session.files.path / name).unlink()
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
        enter(put(_space, "membarrier", self._membarrier))
        enter(put(clients_module.Clients, "is_alive", self._is_alive))
        enter(put(clients_module, "os", self._folder_of_seats()))
        enter(put(seats_module, "_FIRST_CELLS", _CELLS))
        enter(put(_claiming, "_LOOKS", _TRIES))
        enter(put(_waiting, "SPIN_S", 0.0))
        enter(put(_waiting.Sleeper, "sleep", sleep))
        enter(put(_reading, "_UNCERTAIN_TRIES", _TRIES))
        enter(put(_ref, "_TRIES", _TRIES))
        enter(put(inserts_module, "memoryview", view_of, create=True))
        for module in (table_module, blocks_module, index_module, waiters_module):
            enter(put(module, "np", NumPy()))
        enter(put(_reading, "_find", self.forgetful(_reading._find)))
        enter(put(_reading, "make_plan", self._made_anew(_reading.make_plan)))
        for module in [sys.modules[name] for name in sys.modules if name.startswith("shmstore._")]:
            for name, value in list(vars(module).items()):
                replacement = STILL.get(id(value))
                if replacement is not None:
                    enter(put(module, name, replacement))
        enter(put(_claiming, "time", LOOKED_AT))
        for name, value in list(vars(inserts_module).items()):
            if type(value).__name__ == "Struct":
                enter(put(inserts_module, name, Packing(value)))

    def patch(self, owner: Any, name: str, value: Any) -> None:
        """Replace something for as long as this world stands."""
        self._patches.enter_context(mock.patch.object(owner, name, value))

    def _lock(self, fd: int) -> bool:
        process = running()
        if process is not None:
            assert process is self._by_fd[fd]
            process.wait(LOCK, 0)
        return True

    def _unlock(self, fd: int) -> None:  # noqa: ARG002 - as the real one's
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

    def forgetful(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A get that begins anew with a key (see `_reading.secure_key`) only counts its tries."""

        def find(session: Any, digest: Any) -> Any:
            process = running()
            if process is not None and not process.locked:
                process.forget("find", tuple(session.pins.free))
            return real(session, digest)

        return find

    def _made_anew(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A get that could make no plan begins anew too."""

        def make_plan(session: Any, *place: Any, **named: Any) -> Any:
            plan = real(session, *place, **named)
            process = running()
            if plan is None and process is not None and not process.locked:
                process.forget("no plan", tuple(session.pins.free))
            return plan

        return make_plan

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
        return self._by_fd[self.judge_session.lock.fd]

    # --- for scripts ---------------------------------------------------------------------------

    def refer(self, ref: ObjectRef, plan: Plan | None = None) -> ObjectRef:
        """Return a reference as another process gets it; `plan` is what that remembers of it."""
        copy: ObjectRef = pickle.loads(pickle.dumps(ref))
        copy._plan = plan
        return copy

    def offset_of(self, array: np.ndarray) -> int:
        """Return where an array lies in the segment, or -1."""
        address = array.__array_interface__["data"][0]
        for session in [*self.sessions, self.judge_session]:
            for real in (session.segment.readonly, session.segment.writeable):
                start = np.frombuffer(real, np.uint8).__array_interface__["data"][0]
                if 0 <= address - start < self.judge_session.identity.capacity:
                    return int(address - start)
        return -1

    @contextlib.contextmanager
    def holding(self, process: Process, array: np.ndarray) -> Iterator[None]:
        """From now on nobody may use the memory of this array for anything else."""
        start = self.offset_of(array)
        span = (start, start + array.nbytes)
        if start >= 0:  # no copy
            process.held.append(span)
            self._guard.check_held(process, start)
        try:
            yield
        finally:
            if span in process.held:
                process.held.remove(span)

    def look(self, process: Process, array: np.ndarray) -> bytes:
        """Read the bytes of an array, a label for each granule."""
        start = self.offset_of(array)
        if start < 0:
            return array.tobytes()
        first, end = start // GRANULE, -(-(start + array.nbytes) // GRANULE)
        seen = b"".join(process.load(SEGMENT + granule) for granule in range(first, end))
        return seen[start - first * GRANULE :][: array.nbytes]

    def write(self, process: Process, array: np.ndarray, value: int) -> None:
        """Write into an array of whole granules, as one who shares it."""
        start = self.offset_of(array)
        for granule in range(start // GRANULE, (start + array.nbytes) // GRANULE):
            process.store(SEGMENT + granule, bytes([value]) * GRANULE)

    # --- the end -------------------------------------------------------------------------------

    def may_sleep(self) -> bool:
        """Return whether there is no object with the key that somebody waits for."""
        session = self.judge_session
        return self.waited_for is None or session.slots.scan(self.waited_for) < 0

    def judge(self) -> None:
        """Check all invariants, bury the dead, and look for what the scenario demands."""
        watch, self.memory.watch = self.memory.watch, lambda *_: None
        try:
            if not self.judge_session.words[L.W_DESTROYED]:
                self._check_store()
            for look in self.judges:
                look()
        finally:
            self.memory.watch = watch

    def _check_store(self) -> None:
        session = self.judge_session
        for own, process in zip(self.sessions, self.processes, strict=True):
            if not process.died:
                interleave_spares.check_spares(own, process)
        for step in (lambda: None, lambda: session.lock.run(session.bury)):
            step()
            findings = self.store.check()
            if findings:
                raise Counterexample(f"check() finds {findings}")
        self._check_leftovers()

    def _check_leftovers(self) -> None:
        """Nobody looks at anything: nothing may be half made or wait to be freed."""
        words = self.judge_session.words
        left = [
            (slot, states.NAMES[state])
            for slot in range(words[L.W_SLOT_TOP])
            if (state := states.state_of(self.judge_session.slots.word(slot)))
            in (states.WRITING, states.DOOMED)
        ]
        if left or words[L.W_DOOMED_BYTES]:
            raise Counterexample(f"left behind: {left}, {words[L.W_DOOMED_BYTES]} bytes")

    def name_of(self, address: int) -> str:
        """Return what lies at an address."""
        everyone = [process.name for process in (*self.processes, self._direct)]
        return interleave_names.name_of(address, everyone, self._geometry)


def _handle_of(session: Any) -> Store:
    """Return a handle of a session."""

    def enter(held: list[Any]) -> None:
        held.append(session)

    return Store._of(enter, Options())


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return each container among attributes, which others may know too, with what is in it."""
    kinds = (dict, list, set)
    return [(value, value.copy()) for value in attributes.values() if isinstance(value, kinds)]
