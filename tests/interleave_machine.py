"""Which steps can simulated processes take, and what does each do? The machine under the search.

A step is that a process runs to its next label (see `interleave_memory.Process`), that its oldest
store is seen by the others, or that it dies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import greenlet
from interleave_memory import (
    ALIVE,
    DRAIN,
    LOAD,
    LOCK,
    PASS,
    SLEEP,
    START,
    UNLOCK,
    Counterexample,
    Memory,
    Process,
)

RUN: Final = 0
FLUSH: Final = 1
DIE: Final = 2
Step = tuple[int, int]  # process, and RUN, FLUSH or DIE


class Scenario(Protocol):
    """What is explored: processes, their scripts, and what must be true at the end."""

    memory: Memory
    processes: list[Process]
    scripts: list[Callable[[Process], None]]
    mortal: frozenset[int]
    deaths: int

    def reset(self) -> None:
        """Go back to the beginning."""

    def judge(self) -> None:
        """Look at the store after all have ended; raise Counterexample."""

    def may_sleep(self) -> bool:
        """Return whether there is nothing that somebody should have been woken for."""

    def name_of(self, address: int) -> str:
        """Return what lies at an address, for people."""


class Machine:
    """The processes of a scenario, the lock, and who may take which step."""

    def __init__(self, scenario: Scenario, *, thorough: bool = False) -> None:
        self.scenario = scenario
        self._thorough = thorough
        self.memory = scenario.memory
        self.processes = scenario.processes
        self.holder: Process | None = None
        self.trace: list[tuple[int, int, Any]] = []
        self._scheduler: Any = None

    def reset(self) -> None:
        """Begin anew: each process stands at its first label."""
        self.stop()
        self.scenario.reset()
        self.holder = None
        self.deaths_left = self.scenario.deaths
        self.trace = []
        self._scheduler = greenlet.getcurrent()
        for process, script in zip(self.processes, self.scenario.scripts, strict=True):
            process.clear()
            process.begin(script, self._scheduler)
            self._go_on(process)

    def stop(self) -> None:
        """End what is still running."""
        for process in self.processes:
            process.end()
            process.direct = True

    # --- which steps there are -----------------------------------------------------------------

    def steps(self) -> list[Step]:
        """Return the steps that can be taken now; deaths come first."""
        for process in self.processes:
            if self._is_alone(process):
                return [step for step in self._own_steps(process) if step[1] != RUN]
        return [step for process in self.processes for step in self._own_steps(process)]

    def _is_alone(self, process: Process) -> bool:
        """Return whether nothing that others could do now matters to the next steps of a process.

        It holds the store lock and its next store is seen by nobody without it; what it can do is
        flush or die, and those who could notice wait for the lock.
        """
        buffer = process.buffer
        held = bool(buffer) and self.holder is process and not self._thorough
        return held and process.is_quiet(buffer[0])

    def _own_steps(self, process: Process) -> list[Step]:
        found = []
        number = process.number
        if process.dead:
            return found
        may_die = self.deaths_left and number in self.scenario.mortal
        if may_die and not (process.finished and not process.buffer):
            found.append((number, DIE))
        if process.buffer:
            found.append((number, FLUSH))
        if not process.finished and self._can_run(process):
            found.append((number, RUN))
        return found

    def _can_run(self, process: Process) -> bool:
        kind, what = process.label
        if kind in (LOAD, START):
            return True
        if kind == PASS:
            other = self.processes[what]
            return other.dead or other.lets_pass()
        if kind == SLEEP and not self.memory.peek(what):
            return False
        return not process.buffer and (kind != LOCK or self.holder is None)

    # --- taking a step -------------------------------------------------------------------------

    def take(self, step: Step) -> None:
        """Take a step, and what follows from it unseen."""
        number, kind = step
        process = self.processes[number]
        if kind == RUN:
            self.trace.append((number, RUN, process.label))
            self._resume(process)
        elif kind == FLUSH:
            entry = process.buffer[0]
            self.trace.append((number, FLUSH, (entry.address, entry.value)))
            process.flush()
        else:
            self.trace.append((number, DIE, len(process.buffer)))
            self.deaths_left -= 1
            process.die()
            self.memory.change(number, ALIVE + number, 1, 0)
            if self.holder is process:
                self.holder = None
        self._go_on(process)

    def _resume(self, process: Process) -> None:
        kind = process.label[0]
        if kind == LOCK:
            self.holder = process
            process.locked = True
        elif kind == UNLOCK:
            self.holder = None
            process.locked = False
        process.fiber.switch()

    def _go_on(self, process: Process) -> None:
        """Take the steps of a process that nobody can notice."""
        mortal = process.number in self.scenario.mortal and self.deaths_left
        while not process.dead:
            buffer = process.buffer
            if buffer and process.is_quiet(buffer[0]):
                if mortal and not process.is_silent(buffer[0]):
                    break  # a point of death
                process.flush()
            elif not buffer and not process.finished and process.label[0] in (UNLOCK, DRAIN):
                self._resume(process)
            else:
                break
        if process.failure is not None:
            raise Counterexample(f"{process.name} fails: {process.failure!r}") from process.failure

    # --- what a state is, and which steps depend on each other ---------------------------------

    def key(self) -> int:
        """Return a hash of the state."""
        parts: list[Any] = [self.memory.digest, self.deaths_left]
        parts.append(self.holder.number if self.holder else -1)
        for process in self.processes:
            segment = process.segment
            old = sum(entry.segment < segment for entry in process.buffer)
            stores = tuple([(entry.address, entry.value) for entry in process.buffer])
            parts += (process.history, process.dead, process.finished, process.label, old, stores)
        return hash(tuple(parts))

    def footprint(self, step: Step) -> tuple[str, int]:
        """Return what a step is about."""
        number, kind = step
        process = self.processes[number]
        if kind == RUN:
            label, what = process.label
            return LOAD if label == SLEEP else label, what
        if kind == FLUSH:
            return "flush", process.buffer[0].address
        return "die", number
