"""Which interleavings of simulated processes are there, and does a property hold in all of them?

A depth-first search over the steps of `interleave_machine.Machine`, complete up to what cannot
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
from typing import Final

from interleave_machine import DIE, FLUSH, RUN, Machine, Scenario, Step
from interleave_memory import ALIVE, CALL, LOAD, LOCK, PASS, SLEEP, UNLOCK, Counterexample

# Runs that go on after something was learned that makes the exploration begin anew.
_LEARNING_RUNS: Final = 50


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
                try:
                    self.result.complete = self._search()
                except Counterexample:
                    if not known.stale:
                        raise
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
        """Learn from runs in random order what processes share.

        As long as that is not known, loads that should be labels are none, and what comes of it
        proves nothing.
        """
        chance = random.Random(1)
        known = self._machine.processes[0].known
        for number in range(runs):
            if number % 10 == 0:
                known.refresh()
            try:
                self._run_at_random(chance)
            except Counterexample:
                if not known.stale:
                    raise

    def _run_at_random(self, chance: random.Random) -> None:
        machine = self._machine
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
        machine.stop()
        self._scenario.judge()
        self.judged.add(key)

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
