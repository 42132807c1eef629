"""What may happen to objects that their owner puts and deletes without the lock?

Scenarios as those of `interleave_scenarios`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from interleave_actors import NEW, NEWER, OLD, OTHER, Actor, Scenario, plain
from interleave_memory import Counterexample, Process
from interleave_world import World

from shmstore import ObjectRef, StoreClosedError, _lifecycle, _ref, _spares
from shmstore._memory import layout as L

SCENARIOS: Final[dict[str, Scenario]] = {}

# Slots are set aside in a store of a few.
FEW: Final = (
    (_spares, "_FIRST", 1),
    (_spares, "MOST", 2),
    (_spares, "ROOM", 3),
    (_spares, "_PART_LOG2", 0),
)
_GENERATIONS: Final = 4
_DELETED: Final = "deleted True"


class Owner(Actor):
    """A process that has slots for itself."""

    kind: Callable[[int], Any] = staticmethod(plain)

    def begin(self, spares: int) -> None:
        """Have so many slots, and enough generations."""
        session: Any = self.store._session
        session.spares.portion = spares
        self.store.delete(self.store.put(plain(OTHER)))  # under the lock, and then as an own one
        while session.spares.count > spares:
            session.lock.run(_spares.give_back_slots, session, 1)
        assert session.spares.count == spares
        first = session.lock.run(session.slots.take_generations, _GENERATIONS)
        session.spares.following, session.spares.end = first, first + _GENERATIONS

    def next_of(self, ref: ObjectRef) -> ObjectRef:
        """Return the reference that the next put will give if it goes where this object lay."""
        spares: Any = self.store._session.spares  # type: ignore[union-attr]
        return ObjectRef(ref._uuid, ref._path, ref._slot, spares.following, ref._nbytes)

    def put_own(self, value: int) -> ObjectRef | None:
        """Put an object; None: the store has ended."""
        try:
            ref = self.store.put(self.kind(value))
        except StoreClosedError:
            return self._ended()
        self._done(("put", ref._slot, ref._generation, value))
        return ref

    def delete(self, target: ObjectRef | str) -> Any:
        """Delete an object, if the store has not ended."""
        try:
            return super().delete(target)
        except StoreClosedError:
            return self._ended()

    def _ended(self) -> None:
        self._done("ended")


def going_on(
    world: World, owner: Owner, ref: ObjectRef, act: str = "delete, put"
) -> Callable[[Process], None]:
    """Return what an owner does: it deletes its object, puts another, or both."""

    def go_on(_: Process) -> None:
        if act != "put":
            owner.delete(world.refer(ref))
        if act != "delete":
            owner.put_own(NEW)

    return go_on


def expect_deleted(world: World, times: int = 1) -> None:
    """Of all who delete an object so many are told that they did."""

    def look() -> None:
        told = sum(process.outcomes.count(_DELETED) for process in world.processes)
        if told != times and not any(process.died for process in world.processes):
            raise Counterexample(f"deleted {told} times, not {times}")

    world.judges.append(look)


def puts_of(world: World) -> Iterator[tuple[Process, ObjectRef, int, bool]]:
    """Walk the puts that have returned: who, where, which value, and whether that is there."""
    session = world.judge_session
    present = {(slot, word >> 8) for word, slot in session.slots.present()}
    for process in world.processes:
        for outcome in process.outcomes:
            if type(outcome) is tuple and outcome[0] == "put":
                _, slot, generation, value = outcome
                ref = ObjectRef(session.uuid, session.path_text, slot, generation, 0)
                yield process, ref, value, (slot, generation) in present


def expect_own(
    world: World, kind: Callable[[int], Any] = plain, *, all_deleted: bool = False
) -> None:
    """At the end there is, whole, what was put and that nobody has deleted."""

    def look() -> None:
        for process, ref, value, there in puts_of(world):
            if there:
                got = world.store.get(ref)
                if not np.array_equal(got, kind(value)):
                    raise Counterexample(f"at the end there is {got}, was put as {value}")
            elif not (all_deleted or process.died):
                raise Counterexample(f"what {process.name} put into slot {ref._slot} is gone")

    world.judges.append(look)


# --- two delete, or one waits ---------------------------------------------------------------------


def deleted_by_both(*, goes_on: bool = False, owns: bool = False) -> Callable[[World], None]:
    """The owner takes back what another deletes; both put again, perhaps."""

    def make(world: World) -> None:
        owner, other = Owner(world, 0), Owner(world, 1)
        owner.begin(2)
        if owns:
            other.begin(1)
        ref = owner.store.put(plain(OLD))

        def delete(_: Process) -> None:
            other.delete(world.refer(ref))
            if goes_on:
                other.put_own(NEWER)

        act = "delete, put" if goes_on else "delete"
        world.scripts = [going_on(world, owner, ref, act), delete]
        expect_deleted(world)
        expect_own(world)

    return make


def end_waited_for(world: World) -> None:
    """A process sleeps until the owner has deleted the object."""
    owner, waiter = Owner(world, 0), Owner(world, 1)
    owner.begin(2)
    ref = owner.store.put(plain(OLD))

    def wait(_: Process) -> None:
        own = world.refer(ref)
        gone = _ref._wait_for_end(world.sessions[1], own, None)
        waiter._done(f"gone: {gone}")

    world.scripts = [going_on(world, owner, ref, "delete"), wait]
    world.may_sleep = lambda: _ref.is_there(world.judge_session, ref)  # type: ignore[method-assign]
    expect_deleted(world)


# --- a slot has a life after the other ------------------------------------------------------------


def filled_again(world: World) -> None:
    """A reader gets what its owner deletes, and then fills the slot with something else."""
    owner, reader = Owner(world, 0), Actor(world, 1)
    owner.begin(1)
    ref = owner.store.put(plain(OLD))
    new = owner.next_of(ref)

    def read(_: Process) -> None:
        reader.get(world.refer(ref), OLD, None)
        reader.get(world.refer(new), NEW, None)

    world.scripts = [going_on(world, owner, ref), read]
    expect_own(world)


def deleted_when_just_put(world: World) -> None:
    """Another process deletes an object that comes at that moment, and goes again."""
    owner, other = Owner(world, 0), Owner(world, 1)
    owner.begin(1)
    ref = owner.store.put(plain(OLD))
    new = owner.next_of(ref)

    def put_and_delete(_: Process) -> None:
        owner.delete(world.refer(ref))
        own = owner.put_own(NEW)
        assert own is not None
        owner.delete(own)

    world.scripts = [put_and_delete, lambda _: other.delete(world.refer(new))]
    expect_deleted(world, 2)
    expect_own(world, all_deleted=True)


# --- the store ends -------------------------------------------------------------------------------


def destroyed(act: str) -> Callable[[World], None]:
    """The store is destroyed while its owner puts or deletes without the lock."""

    def make(world: World) -> None:
        owner, destroyer = Owner(world, 0), Owner(world, 1)
        owner.begin(1)
        ref = owner.store.put(plain(OLD))
        if act == "put":
            owner.store.delete(ref)
        destroying: Any = destroyer.store._session

        def end(_: Process) -> None:
            destroying.lock.run(_lifecycle._doom_store, destroying)
            destroyer._done("destroyed")

        world.scripts = [going_on(world, owner, ref, act), end]
        world.judges.append(lambda: expect_nothing(world))

    return make


def expect_nothing(world: World) -> None:
    """Nothing that a put has returned can be got from a store that has ended."""
    for _, ref, _, there in puts_of(world):
        if there:
            raise Counterexample(f"slot {ref._slot} is there although the store has ended")


# --- tables are made anew -------------------------------------------------------------------------


def mended(act: str, *, owns: bool = False) -> Callable[[World], None]:
    """What is derived is wrong after a death, and made anew while an owner goes on."""

    def make(world: World) -> None:
        owner, other = Owner(world, 0), Owner(world, 1)
        owner.begin(2)
        if owns:
            other.begin(1)
        ref = owner.store.put(plain(OLD))
        session: Any = owner.store._session
        words = world.judge_session.index.words
        words[L.W_DIRTY] = session.row + 1
        for at in (L.W_OBJECTS, L.W_NAMED, L.W_FREE_SLOT):
            words[at] = 0

        mend = (lambda _: other.put(plain(OTHER), "k")) if owns else lambda _: other.put_own(OTHER)
        world.scripts = [going_on(world, owner, ref, act), mend]
        expect_own(world)

    return make


def dying_owner(act: str) -> Callable[[World], None]:
    """The owner dies at any store; another goes on, and gets its slots when it buries it."""

    def make(world: World) -> None:
        owner, other = Owner(world, 0), Owner(world, 1)
        owner.begin(1)
        ref = owner.store.put(plain(OLD))

        def bury(_: Process) -> None:
            other.delete(world.refer(ref))
            theirs: Any = other.store._session
            theirs.lock.run(theirs.bury)
            other.put_own(OTHER)

        world.scripts = [going_on(world, owner, ref, act), bury]
        expect_own(world)

    return make


def dying_beside(world: World) -> None:
    """A third dies in a change under the lock; another mends while the owner goes on."""
    owner, other, victim = Owner(world, 0), Owner(world, 1), Owner(world, 2)
    owner.begin(1)
    ref = owner.store.put(plain(OLD))

    world.scripts = [
        going_on(world, owner, ref),
        lambda _: other.put_own(OTHER),
        lambda _: victim.put(plain(NEWER), "k"),
    ]
    expect_own(world)


def dying_with_new_slots(world: World) -> None:
    """Who dies while slots are set aside for it leaves none; another puts meanwhile."""
    victim, owner = Owner(world, 0), Owner(world, 1)
    owner.begin(1)
    session: Any = victim.store._session
    session.spares.portion = 2

    def go_on(_: Process) -> None:
        owner.put_own(NEW)
        owner.put_own(NEWER)

    world.scripts = [lambda _: victim.put_own(OLD), go_on]
    expect_own(world)


def beside_the_dead(world: World) -> None:
    """Slots of one who has died are given back while another owner puts and deletes."""
    owner, other, dead = Owner(world, 0), Owner(world, 1), Owner(world, 2)
    owner.begin(1)
    dead.begin(1)
    ref = owner.store.put(plain(OLD))
    session: Any = other.store._session

    def bury(_: Process) -> None:
        session.lock.run(session.bury)
        other.put_own(OTHER)

    def die(_: Process) -> None:
        dead.delete("nothing")

    world.scripts = [going_on(world, owner, ref), bury, die]
    expect_own(world)


def _one(make: Callable[[World], None], *names: str, **more: Any) -> Scenario:
    more["options"] = (*more.get("options", ()),)
    return Scenario(make, names or ("owner", "other"), patches=FEW, **more)


SCENARIOS["own object deleted by both"] = _one(deleted_by_both())
SCENARIOS["own object deleted by both, who go on"] = _one(deleted_by_both(goes_on=True))
SCENARIOS["own object deleted by both, who have slots"] = _one(
    deleted_by_both(goes_on=True, owns=True)
)
SCENARIOS["own object whose end is waited for"] = _one(end_waited_for, "owner", "waiter")
SCENARIOS["own slot filled again"] = _one(filled_again, "owner", "reader")
SCENARIOS["own object deleted when just put"] = _one(deleted_when_just_put)
for _act in ("put", "delete", "delete, put"):
    SCENARIOS[f"own slots, destroyed in {_act}"] = _one(destroyed(_act), "owner", "destroyer")
    SCENARIOS[f"own slots, mended in {_act}"] = _one(mended(_act), deep=_act != "delete")
    SCENARIOS[f"own slots, death in {_act}"] = _one(
        dying_owner(_act), mortal=(0,), deep=_act == "delete, put"
    )
SCENARIOS["own slots, mended by one who has some"] = _one(mended("put", owns=True))
SCENARIOS["own slots, death while they are set aside"] = _one(
    dying_with_new_slots, "victim", "owner", mortal=(0,)
)
SCENARIOS["own slots beside those of the dead"] = _one(
    beside_the_dead, "owner", "other", "dead", mortal=(2,), deep=True
)
SCENARIOS["own slots, a third dies in a change"] = _one(
    dying_beside, "owner", "other", "victim", mortal=(2,), deep=True
)
SCENARIOS["own object whose end is waited for, death"] = _one(
    end_waited_for, "owner", "waiter", mortal=(0,)
)
