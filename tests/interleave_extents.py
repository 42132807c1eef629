"""What may happen to extents that their owner fills anew without the lock?

Scenarios as those of `interleave_own`, and weakened variants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from interleave_actors import CAPACITY, NEW, OLD, OTHER, Actor, Scenario, array, fill
from interleave_memory import Process
from interleave_mutants import Mutant, no_barrier
from interleave_own import FEW, Owner, expect_deleted, expect_nothing, expect_own, going_on
from interleave_own_mutants import end_not_told, end_not_waited_for, end_told_late, right_left
from interleave_world import World

from shmstore import ObjectRef, StoreFullError, _claiming, _lifecycle, _refilling
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._sharing.clients import Clients

SCENARIOS: Final[dict[str, Scenario]] = {}
_FEW: Final = (*FEW, (_refilling, "_SHARED_SLOTS", 1))
_LONG: Final = (*_FEW, (_refilling, "_AT_ONCE_NBYTES", 0))  # each copy takes its time


class Filler(Owner):
    """A process that keeps extents for itself."""

    kind: Callable[[int], Any] = staticmethod(array)

    def begin(self, spares: int = 1) -> None:
        """Have generations, and room for extents."""
        session: Any = self.store._session
        session.most_spare = CAPACITY
        super().begin(spares)

    def put_own(self, value: int) -> ObjectRef | None:
        """Put an array; None: there is no room, or the store has ended."""
        try:
            return super().put_own(value)
        except StoreFullError:
            return self._done("full")


def kept_extent(world: World, *, full: bool = True) -> tuple[Filler, ObjectRef]:
    """Make a process that has an array which it may take back, in a store that is full."""
    owner = Filler(world, 0)
    session: Any = owner.store._session
    session.most_spare = CAPACITY
    ref = owner.store.put(array(OLD))
    owner.begin()
    if full:
        fill(world, 0)
    return owner, ref


def filled_again(*, remembered: bool, looks_on: bool = False) -> Callable[[World], None]:
    """A reader gets what its owner deletes, and then fills the extent with something else."""

    def make(world: World) -> None:
        owner, ref = kept_extent(world, full=False)
        reader = Actor(world, 1)
        remembers = reader.plan_of(ref)
        plan = remembers if remembered else None
        new = owner.next_of(ref)

        def read(_: Process) -> None:
            reader.get(world.refer(ref, plan), OLD, None)
            if looks_on:
                reader.get(world.refer(new), NEW, None)

        world.scripts = [going_on(world, owner, ref), read]
        expect_own(world, array)

    return make


def inherit(world: World, parent: Actor, got: np.ndarray) -> None:
    """Copy the pins of a parent for its child, the second process, who has a view from now on."""
    session: Any = parent.store._session
    begin, end = L.SEAT_FIRST_CELL, session.pins._end * L.CELL_WORDS

    def copy_pins() -> None:
        own = session.pins.seat.words
        theirs = session.clients._seen[world.sessions[1].row].words
        for at in range(begin, end):
            theirs[at] = own[at]
        _claiming.tell_of_copied_pins(session)

    session.lock.run(copy_pins)
    start = world.offset_of(got)
    world.processes[1].held.append((start, start + got.nbytes))


def let_child_go(world: World) -> None:
    """At the end the child lets go of what it has inherited."""
    judge, words = world.judge, world._seats[1].words

    def let_go() -> None:
        world.processes[1].held.clear()
        for at in range(L.SEAT_FIRST_CELL, world.sessions[1].pins._end * L.CELL_WORDS):
            words[at] = 0
        judge()

    world.judge = let_go  # type: ignore[method-assign]


def handed_down(world: World) -> None:
    """A parent copies its pins for a child and drops its own, as in a fork, while it is filled.

    The row of the child comes first: who reads one after the other might miss the pin in both.
    """
    owner, ref = kept_extent(world, full=False)
    parent = Actor(world, 2)
    for store in world.stores[1:]:
        store.get(world.refer(ref))
    plan = parent.plan_of(ref)

    def beget(_: Process) -> None:
        got = parent.store.get(world.refer(ref, plan), None)
        if got is not None:
            inherit(world, parent, got)
            del got
        parent._done("begotten")

    world.scripts = [going_on(world, owner, ref), lambda _: None, beget]
    expect_own(world, array)
    let_child_go(world)


def seized(*, deletes: bool) -> Callable[[World], None]:
    """Another has no room, and takes the extent that its owner fills, or takes back, just then."""

    def make(world: World) -> None:
        owner, ref = kept_extent(world)
        other = Filler(world, 1)
        if not deletes:
            owner.store.delete(ref)

        act = "delete, put" if deletes else "put"
        world.scripts = [going_on(world, owner, ref, act), lambda _: other.put_own(OTHER)]
        expect_own(world, array)

    return make


def deleted_by_both(world: World) -> None:
    """The owner takes back what another deletes."""
    owner, ref = kept_extent(world)
    other = Filler(world, 1)

    world.scripts = [
        going_on(world, owner, ref, "delete"),
        lambda _: (other.delete(world.refer(ref)), other.put_own(OTHER)),
    ]
    expect_deleted(world)
    expect_own(world, array)


def destroyed(world: World) -> None:
    """The store is destroyed while an extent is filled."""
    owner, ref = kept_extent(world)
    owner.store.delete(ref)
    destroyer = Owner(world, 1)
    destroying: Any = destroyer.store._session

    def end(_: Process) -> None:
        destroying.lock.run(_lifecycle._doom_store, destroying)
        destroyer._done("destroyed")

    world.scripts = [lambda _: owner.put_own(NEW), end]
    world.judges.append(lambda: expect_nothing(world))


def mended(world: World) -> None:
    """All tables are made anew while an extent is taken back and filled."""
    owner, ref = kept_extent(world)
    other = Filler(world, 1)
    words = world.judge_session.index.words
    words[L.W_DIRTY] = world.sessions[0].row + 1
    for at in (L.W_OBJECTS, L.W_NAMED, L.W_FREE_SLOT, L.W_USED):
        words[at] = 0

    world.scripts = [going_on(world, owner, ref), lambda _: other.delete("none")]
    expect_own(world, array)


def dying(*, full: bool) -> Callable[[World], None]:
    """The owner dies at any store; another goes on, and needs the room."""

    def make(world: World) -> None:
        owner, ref = kept_extent(world, full=full)
        other = Filler(world, 1)
        world.scripts = [going_on(world, owner, ref), lambda _: other.put_own(OTHER)]
        expect_own(world, array)

    return make


def _one(make: Callable[[World], None], *names: str, **more: Any) -> Scenario:
    return Scenario(make, names or ("owner", "other"), **{"patches": _FEW, **more})


SCENARIOS["own extent filled again, first get"] = _one(
    filled_again(remembered=False), "owner", "reader"
)
SCENARIOS["own extent filled again, later get"] = _one(
    filled_again(remembered=True), "owner", "reader"
)
SCENARIOS["own extent filled again, got again"] = _one(
    filled_again(remembered=True, looks_on=True), "owner", "reader", deep=True
)
SCENARIOS["own extent handed down"] = _one(handed_down, "owner", "child", "parent")
SCENARIOS["own extent seized in put"] = _one(seized(deletes=False))
SCENARIOS["own extent seized in delete, put"] = _one(seized(deletes=True), deep=True)
SCENARIOS["own extent deleted by both"] = _one(deleted_by_both)
SCENARIOS["own extent, destroyed in put"] = _one(destroyed, "owner", "destroyer")
SCENARIOS["own extent filled at length, later get"] = _one(
    filled_again(remembered=True), "owner", "reader", patches=_LONG
)
SCENARIOS["own extent seized in long put"] = _one(seized(deletes=False), patches=_LONG)
SCENARIOS["own extent, destroyed in long put"] = _one(
    destroyed, "owner", "destroyer", patches=_LONG
)
SCENARIOS["own extent, mended in delete, put"] = _one(mended, deep=True)
SCENARIOS["own extent, death in delete, put"] = _one(dying(full=False), mortal=(0,), deep=True)
SCENARIOS["own extent, death in a full store"] = _one(dying(full=True), mortal=(0,), deep=True)
SCENARIOS["own extent, death in delete, long put"] = _one(
    dying(full=False), mortal=(0,), deep=True, patches=_LONG
)
SCENARIOS["own extent, death of a reader"] = _one(
    filled_again(remembered=True), "owner", "reader", mortal=(1,), deep=True
)


# --- what must be found out -----------------------------------------------------------------------


def pins_not_looked_at(world: World) -> None:
    """Who fills an extent anew believes that nobody looks at it."""
    world.patch(Clients, "pinned_meanwhile", lambda _: set())


def filled_as_spare(world: World) -> None:
    """Who fills an extent does not say so in the state."""
    world.patch(states, "filling_word", states.spare_word)


def copies_not_noticed(world: World) -> None:
    """Who looks at the pins does not mind that some were copied meanwhile."""
    world.patch(Clients, "pinned_meanwhile", Clients.pinned)


_AGAIN: Final = "own extent filled again, later get"
MUTANTS: Final[dict[str, Mutant]] = {
    "own extent, no barrier": Mutant(no_barrier, _AGAIN),
    "own extent, pins not looked at": Mutant(pins_not_looked_at, _AGAIN),
    "own extent, copies of pins not noticed": Mutant(copies_not_noticed, "own extent handed down"),
    "own extent, filling is not told": Mutant(filled_as_spare, "own extent seized in long put"),
    "own extent, seized without a barrier": Mutant(no_barrier, "own extent seized in put"),
    "own extent, its end is not told": Mutant(end_not_told, "own extent seized in put"),
    "own extent, its end is told late": Mutant(end_told_late, "own extent seized in put"),
    "own extent, the right is left": Mutant(right_left, "own extent seized in put"),
    "own extent, deleted by both without a word": Mutant(
        end_not_waited_for, "own extent deleted by both"
    ),
}
