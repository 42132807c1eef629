"""Which interleavings of simulated processes are there, and does a property hold in all of them?

A depth-first search over the schedules of `interleave_memory.Process`, complete up to what cannot
make a difference:

* only labels are steps, see `interleave_memory.Knowledge`;
* of steps that do not depend on each other one order is tried (sleep sets, P. Godefroid, "Partial-
  order methods for the verification of concurrent systems", LNCS 1032, 1996);
* a state that was seen before is not gone on from again, except with steps that slept then. A state
  is memory, buffers, and all that each process has seen (hashes of 64 bits).

Greenlets cannot be copied, so to go back the search runs the schedule again from its beginning.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import greenlet
from interleave_memory import (
    ALIVE,
    CALL,
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

RUN, FLUSH, DIE = 0, 1, 2

# Runs that go on after something was learned that makes the exploration begin anew.
_LEARNING_RUNS: Final = 50
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


@dataclasses.dataclass
class Result:
    """What an exploration came to."""

    states: int = 0
    steps: int = 0
    runs: int = 0
    endings: int = 0
    deaths: int = 0
    seconds: float = 0.0
    complete: bool = False
    failure: str = ""
    schedule: tuple[str, ...] = ()


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


def independent(one: Step, about: tuple[str, int], two: Step, other: tuple[str, int]) -> bool:
    """Return whether two steps that are both possible lead to the same state in either order."""
    kind, what = about
    other_kind, other_what = other
    if one[0] == two[0]:
        return {kind, other_kind} == {LOAD, "flush"} and what != other_what
    kinds = {kind, other_kind}
    if "die" in kinds:
        return _independent_of_death(one, about, two, other)
    if PASS in kinds:
        return not (
            (kind == PASS and what == two[0]) or (other_kind == PASS and other_what == one[0])
        )
    if kinds in ({LOCK}, {UNLOCK}, {LOCK, UNLOCK}, {CALL}):
        return False
    if kinds <= {LOAD, "flush"} and "flush" in kinds:
        return what != other_what
    return True


def _independent_of_death(
    one: Step, about: tuple[str, int], two: Step, other: tuple[str, int]
) -> bool:
    if about[0] != "die":
        one, about, other = two, other, about
    kind, what = other
    if kind in (LOCK, UNLOCK, CALL, "die"):
        return False
    if kind == LOAD:
        return what != ALIVE + one[0]
    return not (kind == PASS and what == one[0])


class _Node:
    """A state on the way of the search."""

    __slots__ = ("abouts", "done", "sleep", "step", "todo")

    def __init__(self, todo: list[Step], sleep: set[Step], machine: Machine) -> None:
        self.todo = todo
        self.sleep = sleep
        self.done: list[Step] = []
        self.step: Step = (-1, -1)
        steps = {*todo, *sleep}
        self.abouts = {step: machine.footprint(step) for step in steps}

    def next_step(self) -> set[Step]:
        """Choose the next step; return what sleeps after it."""
        step = self.step = self.todo.pop(0)
        about = self.abouts[step]
        asleep = {
            other
            for other in {*self.sleep, *self.done}
            if independent(step, about, other, self.abouts[other])
        }
        self.done.append(step)
        return asleep


class Explorer:
    """Explores one scenario.

    Parameters
    ----------
    scenario
        What to explore.
    limit
        The most runs; None: until there is nothing left.
    thorough
        Try all orders of steps, also of those that do not depend on each other.
    """

    def __init__(
        self, scenario: Scenario, limit: int | None = None, *, thorough: bool = False
    ) -> None:
        self._machine = Machine(scenario, thorough=thorough)
        self._thorough = thorough
        self._scenario = scenario
        self._limit = limit
        self.judged: set[int] = set()
        self._runs_stale = 0
        self.result = Result()

    @property
    def machine(self) -> Machine:
        """The machine, for whoever needs the process that runs now."""
        return self._machine

    def explore(self) -> Result:
        """Search all interleavings; stop at the first that breaks a property."""
        started = time.perf_counter()
        known = self._machine.processes[0].known
        try:
            self._warm_up()
            while True:
                known.refresh()
                self.result = Result()
                self.result.complete = self._search()
                if not known.stale:
                    break
        except Counterexample as found:
            self.result.failure = str(found)
            self.result.schedule = tuple(self._told())
        finally:
            self._machine.stop()
            self._scenario.reset()
        self.result.endings = len(self.judged)
        self.result.seconds = time.perf_counter() - started
        return self.result

    def _warm_up(self, runs: int = 100) -> None:
        """Learn from runs in random order what processes share."""
        chance = random.Random(1)
        machine = self._machine
        for number in range(runs):
            if number % 10 == 0:
                machine.processes[0].known.refresh()
            machine.reset()
            lazy = chance.random()
            while steps := machine.steps():
                eager = [step for step in steps if step[1] == RUN] or steps
                machine.take(chance.choice(eager if chance.random() < lazy else steps))
            self._end()

    def _search(self) -> bool:
        machine, result = self._machine, self.result
        visited: dict[int, frozenset[Step]] = {}
        way: list[_Node] = []
        asleep: set[Step] = set()
        machine.reset()
        result.runs = 1
        self._runs_stale = 0
        while True:
            node = self._arrive(visited, asleep)
            if node is None or not node.todo:
                if self._is_stale():
                    return False
                while way and not way[-1].todo:
                    way.pop()
                if not way:
                    result.states = len(visited)
                    return True
                if result.runs == self._limit:
                    result.states = len(visited)
                    return False
                result.runs += 1
                machine.reset()
                for passed in way[:-1]:
                    machine.take(passed.step)
                node = way[-1]
            else:
                way.append(node)
            asleep = node.next_step()
            if self._thorough:
                asleep = set()
            result.steps += 1
            result.deaths += node.step[1] == DIE
            machine.take(node.step)

    def _is_stale(self) -> bool:
        """Return whether to begin anew; what else there is to learn is learned first."""
        self._runs_stale += self._machine.processes[0].known.stale
        return self._runs_stale > _LEARNING_RUNS

    def _arrive(self, visited: dict[int, frozenset[Step]], asleep: set[Step]) -> _Node | None:
        """Return the state that was reached, with the steps to go on with."""
        machine = self._machine
        steps = machine.steps()
        if not steps:
            self._end()
            return None
        key = machine.key()
        slept = visited.get(key)
        if slept is None:
            visited[key] = frozenset(asleep)
            todo = [step for step in steps if step not in asleep]
        else:
            visited[key] = slept & asleep
            todo = [step for step in steps if step in slept and step not in asleep]
        return _Node(todo, asleep, machine)

    def _end(self) -> None:
        """All have ended, or nobody can go on."""
        machine = self._machine
        waiting = [p for p in machine.processes if not (p.finished or p.dead)]
        if self._scenario.may_sleep():
            waiting = [p for p in waiting if p.label[0] != SLEEP]
        hangs = [p.name for p in waiting]
        if hangs:
            raise Counterexample(f"{', '.join(hangs)} cannot go on")
        key = machine.key()
        if key in self.judged:
            return
        self.judged.add(key)
        machine.stop()
        self._scenario.judge()

    def _told(self) -> list[str]:
        """Return the schedule so far, for people."""
        told = []
        for number, kind, what in self._machine.trace:
            name = self._machine.processes[number].name
            if kind == RUN:
                label, address = what
                about = {LOAD: self._scenario.name_of(address), PASS: f"process {address}"}
                told.append(f"{name:>9}  {label} {about.get(label, '')}".rstrip())
            elif kind == FLUSH:
                address, value = what
                shown = f"{value:#x}" if isinstance(value, int) else repr(value[:4])
                told.append(f"{name:>9}  stored {self._scenario.name_of(address)} = {shown}")
            else:
                told.append(f"{name:>9}  dies, {what} stores before its time")
        return told
