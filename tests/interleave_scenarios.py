"""Which situations are explored? A table of them, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from interleave_actors import (
    KINDS,
    NEW,
    NEWER,
    OLD,
    OTHER,
    Actor,
    Scenario,
    array,
    colliding_keys,
    expect,
    expect_kept,
    expect_promise,
    expect_put,
    fill,
    fill_and_look,
    numbers_in,
    parting_keys,
    plain,
)
from interleave_memory import Counterexample, Process
from interleave_world import World

from shmstore import _writing
from shmstore._catalog import keys as keys_module
from shmstore._catalog.keys import digest_of

Make = Callable[[World], None]

SCENARIOS: Final[dict[str, Scenario]] = {}

# A put copies its frames without the lock, as one of a large object does.
TWO_HOLDS: Final = ((_writing, "COPY_LOCKED_NBYTES", 0),)


# --- memory is used again -------------------------------------------------------------------------


def reused(kind: str, *, remembered: bool, mode: str = "shared", readers: int = 1) -> Make:
    """Readers get by reference what another deletes; its memory is used for a new object."""

    def make(world: World) -> None:
        writer = Actor(world, readers)
        ref = writer.store.put(KINDS[kind](OLD))
        fill(world, 0)
        plans = [world.refer(ref) for _ in range(readers)]
        for store, plan in zip(world.stores, plans, strict=False):
            store.get(plan)

        def reading(number: int) -> Callable[[Process], None]:
            reader = Actor(world, number)
            plan = plans[number]._plan

            def read(_: Process) -> None:
                own = world.refer(ref)
                own._plan = plan if remembered else None
                reader.get(own, OLD, None, mode=mode)

            return read

        def write(_: Process) -> None:
            writer.delete(world.refer(ref))
            writer.put(KINDS[kind](OTHER))

        world.scripts = [*map(reading, range(readers)), write]

    return make


for _kind in KINDS:
    SCENARIOS[f"memory used again, first get: {_kind}"] = Scenario(
        reused(_kind, remembered=False), deep=_kind not in ("dict of arrays", "plain")
    )
    SCENARIOS[f"memory used again, later get: {_kind}"] = Scenario(reused(_kind, remembered=True))
for _mode in ("readonly", "private", "copy"):
    SCENARIOS[f"memory used again, mode {_mode}: dict of arrays"] = Scenario(
        reused("dict of arrays", remembered=True, mode=_mode)
    )
SCENARIOS["memory used again, two readers: array"] = Scenario(
    reused("array", remembered=True, readers=2), ("reader", "second", "writer"), deep=True
)
SCENARIOS["memory used again, under the lock: array"] = Scenario(
    reused("array", remembered=True), options=(("locked_reads", True),)
)
SCENARIOS["memory used again, the seat grows: array"] = Scenario(
    reused("array", remembered=True), empty_seats=True
)


# --- a key is overwritten -------------------------------------------------------------------------


def overwritten(kind: str, *, times: int = 1, looks: int = 1, writers: int = 1) -> Make:
    """A reader gets by key what others overwrite: always something, and never back."""

    def make(world: World) -> None:
        first = Actor(world, 1)
        first.store.put(KINDS[kind](OLD), key="k")
        fill(world, writers * world.store.stats().used)
        reader = Actor(world, 0)
        versions = (OLD, NEW, NEWER)[: times + 1]

        def read(_: Process) -> None:
            seen = [reader.get("k", *versions) for _ in range(looks)]
            if seen != sorted(seen) and writers == 1:
                raise Counterexample(f"the reader sees {seen}, one after the other")

        def writing(number: int) -> Callable[[Process], None]:
            writer = Actor(world, number)

            def write(_: Process) -> None:
                for value in versions[number : number + times // writers]:
                    writer.put(KINDS[kind](value), key="k")

            return write

        world.scripts = [read, *map(writing, range(1, writers + 1))]
        expect(world, "k", *versions[1:])

    return make


for _kind in KINDS:
    SCENARIOS[f"overwritten: {_kind}"] = Scenario(overwritten(_kind, looks=2))
    SCENARIOS[f"overwritten twice: {_kind}"] = Scenario(
        overwritten(_kind, times=2, looks=2), deep=True
    )
SCENARIOS["overwritten by two: plain"] = Scenario(
    overwritten("plain", times=2, writers=2), ("reader", "writer", "second"), deep=True
)
SCENARIOS["overwritten, copied without the lock: wide array"] = Scenario(
    overwritten("wide array", looks=2), patches=TWO_HOLDS
)
SCENARIOS["overwritten under the lock: array"] = Scenario(
    overwritten("array", looks=2), options=(("locked_reads", True),)
)


# --- the key index changes ------------------------------------------------------------------------


def neighbours(world: World) -> None:
    """A reader looks for a key whose neighbours in the bucket are deleted, overwritten and put."""
    keys = colliding_keys(4)
    reader, writer = Actor(world, 0), Actor(world, 1)
    for key in keys[:3]:
        writer.store.put(plain(OLD), key=key)
    fill(world, 0)

    def read(_: Process) -> None:
        reader.get(keys[0], OLD)

    def write(_: Process) -> None:
        writer.delete(keys[1])
        writer.put(plain(NEW), keys[2])
        writer.put(plain(NEW), keys[3])

    world.scripts = [read, write]
    expect_kept(world, keys[0], OLD)
    expect(world, keys[1], None)


def growing(world: World) -> None:
    """A reader looks for a key that moves to another bucket."""
    keys = parting_keys(2)
    reader, writer = Actor(world, 0), Actor(world, 1)
    for key in (keys[0], keys[2]):
        writer.store.put(plain(OLD), key=key)

    def read(_: Process) -> None:
        reader.get(keys[0], OLD)
        reader.get(keys[2], OLD)

    def write(_: Process) -> None:
        writer.put(plain(NEW), keys[1])
        writer.put(plain(NEW), keys[3])

    world.scripts = [read, write]
    for key in (keys[0], keys[2]):
        expect_kept(world, key, OLD)


_SMALL_INDEX: Final = ((keys_module, "_FIRST_BUCKETS", 2),)
SCENARIOS["key index: neighbours change"] = Scenario(
    neighbours, options=(("max_objects", 8),), patches=_SMALL_INDEX
)
SCENARIOS["key index: buckets split"] = Scenario(
    growing, options=(("max_objects", 8),), patches=_SMALL_INDEX
)


# --- objects leave memory for others --------------------------------------------------------------


def evicted(*, remembered: bool, again: bool = True) -> Make:
    """A reader gets what is evicted at that moment for a new object.

    Without `again` it goes by what it remembers, and gives up where that does not count any more.
    """

    def make(world: World) -> None:
        reader, writer = Actor(world, 0), Actor(world, 1)
        ref = writer.store.put(array(OLD), key="k")
        fill_and_look(world, 0)
        plan_ref = world.refer(ref)
        reader.store.get(plan_ref)

        def read(_: Process) -> None:
            own = world.refer(ref)
            own._plan = plan_ref._plan if remembered else None
            reader.get(own if again else own._plan, OLD, None)

        world.scripts = [read, lambda _: writer.put(array(OTHER), "other")]
        expect(world, "k", OLD, None)
        expect_put(world, 1, "other", OTHER)

    return make


def spilled(*, writes: bool, again: bool = True, returns: bool = False) -> Make:
    """A reader gets, and perhaps writes into, what is moved to a file at that moment.

    Without `again` it goes by what it remembers, and gives up where that does not count any more.
    """

    def make(world: World) -> None:
        reader, writer = Actor(world, 0), Actor(world, 1)
        ref = writer.store.put(array(OLD), key="k")
        fill_and_look(world, 0)
        plan_ref = world.refer(ref)
        reader.store.get(plan_ref)
        plan = plan_ref._plan

        def read(_: Process) -> None:
            own = world.refer(ref)
            own._plan = plan
            if not again:
                reader.change(plan, NEW, OLD)
                return
            last = reader.change(own, NEW, OLD) if writes else OLD
            reader.get(world.refer(ref), last)

        def write(_: Process) -> None:
            writer.put(array(OTHER), "other")
            if returns:
                writer.delete("other")
                writer.get(world.refer(ref), OLD, NEW)

        world.scripts = [read, write]
        world.judges.append(lambda: _expect_last(world))

    return make


def _expect_last(world: World) -> None:
    """At the end there is what the reader has seen or written last."""
    last = world.processes[0].outcomes[-1] or OLD
    seen = numbers_in(world.store.get("k", None))
    if seen != {last}:
        raise Counterexample(f"at the end 'k' is {seen}, was {last}")


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


_EVICT: Final = (("on_full", "evict"),)
_SPILL: Final = (("on_full", "spill"),)
SCENARIOS["evicted: array"] = Scenario(evicted(remembered=True, again=False), options=_EVICT)
SCENARIOS["evicted, first get: array"] = Scenario(
    evicted(remembered=False), options=_EVICT, deep=True
)
SCENARIOS["evicted, later get: array"] = Scenario(
    evicted(remembered=True), options=_EVICT, deep=True
)
SCENARIOS["spilled while written: array"] = Scenario(
    spilled(writes=True, again=False), options=_SPILL
)
SCENARIOS["spilled, got again: array"] = Scenario(spilled(writes=False), options=_SPILL, deep=True)
SCENARIOS["spilled while written, got again: array"] = Scenario(
    spilled(writes=True), options=_SPILL, deep=True
)
SCENARIOS["spilled while written, brought back: array"] = Scenario(
    spilled(writes=True, returns=True), options=_SPILL, deep=True
)
SCENARIOS["death while evicting: array"] = Scenario(
    evicted(remembered=True, again=False), options=_EVICT, mortal=(1,), deep=True
)
SCENARIOS["death while spilling: array"] = Scenario(
    dying_spiller, ("victim", "other"), options=_SPILL, mortal=(0,), deep=True
)


# --- somebody waits -------------------------------------------------------------------------------


def waited_for(kind: str, *, putters: int = 1) -> Make:
    """A process sleeps until another has put an object."""

    def make(world: World) -> None:
        waiter = Actor(world, 0)
        fill(world, 512)
        values = (NEW, NEWER)[:putters]

        def putting(number: int) -> Callable[[Process], None]:
            putter = Actor(world, number)
            return lambda _: putter.put(KINDS[kind](values[number - 1]), "k")

        world.scripts = [
            lambda _: waiter.wait("k", *values),
            *map(putting, range(1, putters + 1)),
        ]
        world.waited_for = digest_of("k")

    return make


SCENARIOS["waited for: plain"] = Scenario(waited_for("plain"), ("waiter", "putter"))
SCENARIOS["waited for, death of the putter: plain"] = Scenario(
    waited_for("plain"), ("waiter", "putter"), mortal=(1,)
)
SCENARIOS["waited for, death of the waiter: plain"] = Scenario(
    waited_for("plain"), ("waiter", "putter"), mortal=(0,)
)
SCENARIOS["waited for, death of one of two: plain"] = Scenario(
    waited_for("plain", putters=2), ("waiter", "putter", "other"), mortal=(1,), deep=True
)


# --- processes die --------------------------------------------------------------------------------

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
    plan_ref = world.refer(ref)
    reader.store.get(plan_ref)
    plan = plan_ref._plan

    def read(_: Process) -> None:
        own = world.refer(ref)
        own._plan = plan
        reader.get(own, OLD, None)

    def go_on(_: Process) -> None:
        other.put(array(OTHER))
        other.put(array(OTHER))

    world.scripts = [lambda _: victim.delete("k"), go_on, read]
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
