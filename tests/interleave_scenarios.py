"""Which situations are explored? A table of them, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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

        def reading(number: int) -> Callable[[Process], None]:
            reader = Actor(world, number)
            remembers = reader.plan_of(ref)
            plan = remembers if remembered else None
            return lambda _: reader.get(world.refer(ref, plan), OLD, None, mode=mode)

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
        plan = reader.plan_of(ref)

        def read(_: Process) -> None:
            own = world.refer(ref, plan if remembered else None)
            reader.get(own if again else plan, OLD, None)

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
        plan = reader.plan_of(ref)

        def read(_: Process) -> None:
            if not again:
                reader.change(plan, NEW, OLD)
                return
            last = reader.change(world.refer(ref, plan), NEW, OLD) if writes else OLD
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


EVICT: Final = (("on_full", "evict"),)
SPILL: Final = (("on_full", "spill"),)
SCENARIOS["evicted: array"] = Scenario(evicted(remembered=True, again=False), options=EVICT)
SCENARIOS["evicted, first get: array"] = Scenario(
    evicted(remembered=False), options=EVICT, deep=True
)
SCENARIOS["evicted, later get: array"] = Scenario(
    evicted(remembered=True), options=EVICT, deep=True
)
SCENARIOS["spilled while written: array"] = Scenario(
    spilled(writes=True, again=False), options=SPILL
)
SCENARIOS["spilled, got again: array"] = Scenario(spilled(writes=False), options=SPILL, deep=True)
SCENARIOS["spilled while written, got again: array"] = Scenario(
    spilled(writes=True), options=SPILL, deep=True
)
SCENARIOS["spilled while written, brought back: array"] = Scenario(
    spilled(writes=True, returns=True), options=SPILL, deep=True
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
