"""Which situations are explored in which processes die? A table of them, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from interleave_actors import (
    KINDS,
    NEW,
    OLD,
    OTHER,
    Actor,
    Scenario,
    array,
    expect,
    expect_kept,
    expect_promise,
    expect_put,
    fill,
    fill_and_look,
)
from interleave_memory import Counterexample, Process
from interleave_scenarios import EVICT, SPILL, TWO_HOLDS, Make, evicted, reused, waited_for
from interleave_world import World

SCENARIOS: Final[dict[str, Scenario]] = {}

# --- while they make room ------------------------------------------------------------------------


def dying_spiller(world: World) -> None:
    """A process dies while it moves an object to a file; another gets it, and makes room again."""
    victim, other = Actor(world, 0), Actor(world, 1)
    ref = victim.store.put(array(OLD), key="k")
    fill_and_look(world, 0)

    def go_on(_: Process) -> None:
        other.get(world.refer(ref), OLD)
        other.put(array(OTHER), "other")
        other.get(world.refer(ref), OLD)

    world.scripts = [lambda _: victim.put(array(NEW), "new"), go_on]
    expect_kept(world, "k", OLD)
    expect_put(world, 1, "other", OTHER)


SCENARIOS["death while evicting: array"] = Scenario(
    evicted(remembered=True, again=False), options=EVICT, mortal=(1,), deep=True
)
SCENARIOS["death while spilling: array"] = Scenario(
    dying_spiller, ("victim", "other"), options=SPILL, mortal=(0,), deep=True
)


# --- while somebody waits -------------------------------------------------------------------------

SCENARIOS["waited for, death of the putter: plain"] = Scenario(
    waited_for("plain"), ("waiter", "putter"), mortal=(1,)
)
SCENARIOS["waited for, death of the waiter: plain"] = Scenario(
    waited_for("plain"), ("waiter", "putter"), mortal=(0,)
)
SCENARIOS["waited for, death of one of two: plain"] = Scenario(
    waited_for("plain", putters=2), ("waiter", "putter", "other"), mortal=(1,), deep=True
)


# --- in a put or delete ---------------------------------------------------------------------------

Act = Callable[[Actor, Callable[[int], Any]], Any]

ACTS: Final[dict[str, Act]] = {
    "put": lambda actor, kind: actor.put(kind(NEW), "k"),
    "delete": lambda actor, _: actor.delete("k"),
    "delete, put": lambda actor, kind: (actor.delete("k"), actor.put(kind(OTHER))),
    "put by reference": lambda actor, kind: actor.put(kind(NEW)),
}


def dying(kind: str, act: str, *, exists: bool = True, looks: bool = True) -> Make:
    """A process dies at any store of what it does; another looks, and goes on with the store."""

    def make(world: World) -> None:
        victim, other = Actor(world, 0), Actor(world, 1)
        if exists:
            victim.store.put(KINDS[kind](OLD), key="k")
        kept = victim.store.put(KINDS[kind](OTHER), key="kept")
        fill(world, 512)
        before = OLD if exists else None
        after = {"put": NEW, "put by reference": before}.get(act)

        def go_on(_: Process) -> None:
            seen = [other.get("k", before, after)] if looks else []
            other.put(KINDS[kind](OTHER), "other")
            seen.append(other.get("k", before, after))
            if seen == [after, before] and after != before:
                raise Counterexample("what was changed comes back")
            other.get(world.refer(kept), OTHER)

        world.scripts = [lambda _: ACTS[act](victim, KINDS[kind]), go_on]
        expect_kept(world, "kept", OTHER)
        expect_kept(world, "other", OTHER)
        expect_promise(world, 0, "k", after, before)

    return make


def dying_under_a_view(world: World) -> None:
    """A writer dies at any store while a third process holds the object, or is about to."""
    victim, other, reader = (Actor(world, number) for number in range(3))
    ref = victim.store.put(array(OLD), key="k")
    fill(world, 64)
    plan = reader.plan_of(ref)

    def go_on(_: Process) -> None:
        other.put(array(OTHER))
        other.put(array(OTHER))

    world.scripts = [
        lambda _: victim.delete("k"),
        go_on,
        lambda _: reader.get(world.refer(ref, plan), OLD, None),
    ]
    expect(world, "k", OLD, None)


def dying_reader(*, remembered: bool) -> Make:
    """A reader dies with its pin, at any step; its seat is buried when the memory is needed."""

    def make(world: World) -> None:
        reused("array", remembered=remembered)(world)
        expect_kept(world, "filling", 0)

    return make


for _act in ACTS:
    for _kind in ("plain", "array"):
        SCENARIOS[f"death in {_act}: {_kind}"] = Scenario(
            dying(_kind, _act, looks=_kind == "plain"),
            ("victim", "other"),
            mortal=(0,),
            deep=_act == "delete, put",
        )
SCENARIOS["death in put, no such key: array"] = Scenario(
    dying("array", "put", exists=False, looks=False), ("victim", "other"), mortal=(0,)
)
SCENARIOS["death in put, copied without the lock: wide array"] = Scenario(
    dying("wide array", "put", looks=False),
    ("victim", "other"),
    patches=TWO_HOLDS,
    mortal=(0,),
    deep=True,
)
SCENARIOS["death under a view: array"] = Scenario(
    dying_under_a_view, ("victim", "other", "reader"), mortal=(0,)
)
SCENARIOS["death of a reader, first get: array"] = Scenario(
    dying_reader(remembered=False), mortal=(0,), deep=True
)
SCENARIOS["death of a reader, later get: array"] = Scenario(
    dying_reader(remembered=True), mortal=(0,)
)
for _act in ("put", "delete"):
    SCENARIOS[f"death in {_act}, death in mending: plain"] = Scenario(
        dying("plain", _act, looks=False), ("victim", "other"), mortal=(0, 1), deaths=2, deep=True
    )
