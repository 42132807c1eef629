"""The simulated machine itself: what two processors may see of each other's stores, and no more.

The small programs are the litmus tests of the literature on memory models; what x86-TSO allows
of each is known (P. Sewell et al., CACM 53, 2010).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from interleave import SCENARIOS
from interleave_actors import explorer_of
from interleave_explorer import Explorer
from interleave_memory import LOCK, PASS, UNLOCK, Knowledge, Memory, Process

Script = Callable[[Process], None]

X, Y = 0, 1


class Litmus:
    """A few words of memory, and programs on them."""

    def __init__(self, *scripts: Script, mortal: tuple[int, ...] = ()) -> None:
        self.memory = Memory(memoryview(bytearray(64)).cast("Q"), memoryview(b""), [])
        known = Knowledge()
        self.processes = [
            Process(number, f"p{number}", self.memory, known) for number in range(len(scripts))
        ]
        self.scripts = list(scripts)
        self.mortal = frozenset(mortal)
        self.deaths = len(mortal)
        self.seen: set[Any] = set()

    def reset(self) -> None:
        """Go back to the beginning."""
        self.memory.reset()

    def judge(self) -> None:
        """Note what came out."""
        outcomes = tuple(value for p in self.processes for value in p.outcomes)
        self.seen.add((outcomes, self.memory.peek(X), self.memory.peek(Y)))

    def may_sleep(self) -> bool:
        """Nobody sleeps here."""
        return False

    def name_of(self, address: int) -> str:
        """Return a name."""
        return "XY"[address]

    def outcomes(self) -> set[Any]:
        """Explore; return what the processes saw."""
        result = Explorer(self).explore()
        assert result.complete
        return {outcomes for outcomes, *_ in self.seen}


def stores_then_loads(mine: int, other: int, between: Script = lambda _: None) -> Script:
    """Store into one word, then load the other."""

    def script(process: Process) -> None:
        process.store(mine, 1)
        between(process)
        process.settle(process.load(other))

    return script


def lock_and_unlock(process: Process) -> None:
    """Fence."""
    process.wait(LOCK, 0)
    process.wait(UNLOCK, 0)


def barrier(process: Process) -> None:
    """Let the other process pass a barrier."""
    process.drain()
    process.wait(PASS, 1 - process.number)


def test_loads_may_overtake_own_stores() -> None:
    """SB: both may miss what the other has stored."""
    assert Litmus(stores_then_loads(X, Y), stores_then_loads(Y, X)).outcomes() == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }


def test_loads_behind_a_fence_do_not_overtake() -> None:
    """SB with fences: one of them sees the other."""
    fenced = [stores_then_loads(X, Y, lock_and_unlock), stores_then_loads(Y, X, lock_and_unlock)]
    assert (0, 0) not in Litmus(*fenced).outcomes()


def test_fence_on_one_side_is_not_enough() -> None:
    """SB with one fence: both may still miss each other."""
    fenced = stores_then_loads(X, Y, lock_and_unlock)
    assert (0, 0) in Litmus(fenced, stores_then_loads(Y, X)).outcomes()


def test_barrier_on_one_side_is_enough() -> None:
    """SB with membarrier on one side: the pin race is won."""
    found = Litmus(stores_then_loads(X, Y, barrier), stores_then_loads(Y, X)).outcomes()
    assert found == {(0, 1), (1, 0), (1, 1)}


def test_own_stores_are_seen_before_others_see_them() -> None:
    """A load looks into the own buffer first, while memory has the old value."""

    def own(process: Process) -> None:
        process.store(X, 1)
        process.settle((process.load(X), process.load(Y)))

    def other(process: Process) -> None:
        process.store(Y, 1)
        process.settle(process.load(X))

    found = Litmus(own, other).outcomes()
    assert ((1, 0), 0) in found
    assert all(own_load == 1 for (own_load, _), _ in found)


def test_stores_arrive_in_their_order() -> None:
    """MP: who sees the second store sees the first."""

    def writer(process: Process) -> None:
        process.store(X, 1)
        process.store(Y, 1)

    def reader(process: Process) -> None:
        process.settle((process.load(Y), process.load(X)))

    assert Litmus(writer, reader).outcomes() == {((0, 0),), ((0, 1),), ((1, 1),)}


def test_lock_is_held_by_one() -> None:
    """Two read-modify-writes under the lock lose nothing."""

    def add(process: Process) -> None:
        process.wait(LOCK, 0)
        process.store(X, process.load(X) + 1)
        process.wait(UNLOCK, 0)

    litmus = Litmus(add, add)
    litmus.outcomes()
    assert {x for _, x, _ in litmus.seen} == {2}


def test_death_strikes_at_each_store() -> None:
    """What is in memory afterwards: none, the first, or both of two stores, never the second."""

    def victim(process: Process) -> None:
        process.store(X, 1)
        process.store(Y, 1)

    def witness(process: Process) -> None:
        process.settle((process.load(Y), process.load(X)))

    litmus = Litmus(victim, witness, mortal=(0,))
    litmus.outcomes()
    assert {(x, y) for _, x, y in litmus.seen} == {(0, 0), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    "name",
    [
        "memory used again, later get: array",
        "memory used again, under the lock: array",
        "death in put by reference: plain",
    ],
)
def test_reductions_reach_every_ending(name: str) -> None:
    """Orders that are left out lead to the same states at the end."""
    endings = []
    for thorough in (False, True):
        with explorer_of(SCENARIOS[name], thorough=thorough) as explorer:
            result = explorer.explore()
            assert result.complete
            endings.append((explorer.judged, result.steps))
    (some, few), (every, many) = endings
    assert some == every
    assert few < many
