"""Which situations are explored, and which weakened variants of the code must be found out?

Each scenario makes a store ready, says what each process does (ordinary calls of `Store`), and what
must be true at the end. What must never happen in between is in `interleave_world`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from interleave_explorer import Explorer, Result
from interleave_memory import Counterexample, Process
from interleave_world import World

from shmstore import ObjectRef, StoreFullError

CAPACITY = 4096
OLD, NEW, NEWER, OTHER = 1, 2, 3, 4


# --- objects --------------------------------------------------------------------------------------


def array(value: int) -> Any:
    """Return an array of one granule."""
    return np.full(64, value, np.uint8)


def wide(value: int) -> Any:
    """Return an array of two granules."""
    return np.full(128, value, np.uint8)


def arrays(value: int) -> Any:
    """Return an object of two buffers."""
    return {"a": np.full(64, value, np.uint8), "b": np.full(64, value, np.uint8)}


def named(value: int) -> Any:
    """Return an array whose header is too long to lie beside its slot."""
    dtype = np.dtype([(f"a field with a long name, number {n}", "u1") for n in range(8)])
    return np.full(8 * 8, value, np.uint8).view(dtype)


def plain(value: int) -> Any:
    """Return an object that lies in its slot."""
    return [value] * 3


def long_plain(value: int) -> Any:
    """Return an object whose one frame is copied out."""
    return [value] * 110


KINDS: dict[str, Callable[[int], Any]] = {
    "array": array,
    "wide array": wide,
    "array with a long header": named,
    "dict of arrays": arrays,
    "plain": plain,
    "long plain": long_plain,
}


def leaves(got: Any) -> list[np.ndarray]:
    """Return the arrays that an object consists of."""
    if isinstance(got, dict):
        return list(got.values())
    return [got] if isinstance(got, np.ndarray) else []


# --- what processes do ----------------------------------------------------------------------------


class Actor:
    """What one process does, by ordinary calls of its store.

    Parameters
    ----------
    world
        Where.
    number
        Which process.
    """

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.store = world.stores[number]
        self.process = world.processes[number]

    def _done(self, outcome: Any) -> Any:
        session: Any = self.store._session
        session.plans.clear()
        self.process.settle(outcome, tuple(session.pins.free))
        return outcome

    def value_of(self, got: Any) -> int:
        """Look at an object for a while; return the one number that it consists of."""
        world, process = self.world, self.process
        with contextlib.ExitStack() as stack:
            for leaf in leaves(got):
                stack.enter_context(world.holding(process, leaf))
            seen = [world.look(process, leaf) for leaf in leaves(got)] or [bytes(got)]
        numbers = set(b"".join(seen))
        if len(numbers) != 1:
            raise Counterexample(f"{process.name} sees a mixture of {numbers}")
        return numbers.pop()

    def get(self, target: ObjectRef | str, *allowed: int | None, mode: str = "shared") -> Any:
        """Get an object, look at it and let it go; None: it is not there."""
        got = self.store.get(target, None, mode=mode)
        value = None if got is None else self.value_of(got)
        del got
        if value not in allowed:
            raise Counterexample(f"{self.process.name} sees {value}, may see {allowed}")
        return self._done(value)

    def put(self, obj: Any, key: str | None = None) -> Any:
        """Put an object; None: there is no room."""
        try:
            self.store.put(obj, key=key)
        except StoreFullError:
            return self._done("full")
        return self._done("put")

    def delete(self, target: ObjectRef | str) -> Any:
        """Delete an object."""
        return self._done(f"deleted {self.store.discard(target)}")


def fill(world: World, nbytes: int) -> None:
    """Leave only `nbytes` bytes of a store free."""
    size = CAPACITY - world.store.stats().used - nbytes
    world.store.put(np.zeros(size, np.uint8), key="filling")
    for store in world.stores:  # cells for pins, and what code does once
        store.get("filling")


def expect(world: World, key: str, *allowed: int | None) -> None:
    """At the end a key must have one of these values."""

    def look() -> None:
        got = world.store.get(key, None)
        numbers = {None} if got is None else {int(x) for x in np.ravel(_flat(got))}
        if len(numbers) != 1 or not numbers <= set(allowed):
            raise Counterexample(f"at the end {key!r} is {numbers}, may be {allowed}")

    world.judges.append(look)


def _flat(got: Any) -> Any:
    parts = [leaf.view(np.uint8) for leaf in leaves(got)] or [np.array(got)]
    return np.concatenate(parts)


def expect_room(world: World, nbytes: int) -> None:
    """At the end this many bytes are used."""

    def look() -> None:
        used = world.store.stats().used
        if used != nbytes:
            raise Counterexample(f"at the end {used} bytes are used, expected {nbytes}")

    world.judges.append(look)


# --- scenarios ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One situation.

    Attributes
    ----------
    make
        Makes the store ready in a world and gives the scripts.
    names
        Of the processes.
    options
        Of the store.
    patches
        What else is another way, for small numbers: (module, name, value).
    deep
        Whether it takes too long for every test run.
    """

    make: Callable[[World], None]
    names: tuple[str, ...] = ("reader", "writer")
    options: tuple[tuple[str, Any], ...] = ()
    patches: tuple[tuple[Any, str, Any], ...] = ()
    deep: bool = False


SCENARIOS: dict[str, Scenario] = {}


def explore(scenario: Scenario, limit: int | None = None) -> Result:
    """Explore a scenario."""
    with contextlib.ExitStack() as stack:
        for module, name, value in scenario.patches:
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(quiet_collector())
        world = stack.enter_context(World(*scenario.names, **dict(scenario.options)))
        scenario.make(world)
        world.ready()
        return Explorer(world, limit).explore()


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the collector from running finalizers in whatever process runs just then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def deleted_and_used_again(
    kind: str, *, remembered: bool, mode: str = "shared"
) -> Callable[[World], None]:
    """A reader gets by reference what another deletes; its memory is then used for a new object."""

    def make(world: World) -> None:
        ref = world.store.put(KINDS[kind](OLD))
        fill(world, 0)
        reader, writer = Actor(world, 0), Actor(world, 1)

        def read(process: Process) -> None:
            own = world.refer(ref)
            if remembered:
                own._plan = plan
            reader.get(own, OLD, None, mode=mode)

        def write(process: Process) -> None:
            writer.delete(world.refer(ref))
            writer.put(KINDS[kind](OTHER))

        plan_ref = world.refer(ref)
        reader.store.get(plan_ref)
        plan = plan_ref._plan
        world.scripts = [read, write]

    return make


def overwritten(kind: str, *, times: int = 1, looks: int = 1) -> Callable[[World], None]:
    """A reader gets by key what another overwrites: always something, old before new."""

    def make(world: World) -> None:
        world.store.put(KINDS[kind](OLD), key="k")
        room = world.store.stats().used
        fill(world, room)
        reader, writer = Actor(world, 0), Actor(world, 1)
        versions = (OLD, NEW, NEWER)[: times + 1]

        def read(process: Process) -> None:
            seen = [reader.get("k", *versions) for _ in range(looks)]
            if seen != sorted(seen):
                raise Counterexample(f"the reader sees {seen}, one after the other")

        def write(process: Process) -> None:
            for value in versions[1:]:
                assert writer.put(KINDS[kind](value), key="k") == "put" or value == NEWER

        world.scripts = [read, write]
        expect(world, "k", *versions[1:])

    return make


for _kind in KINDS:
    for _remembered in (False, True):
        _how = "remembered" if _remembered else "first"
        SCENARIOS[f"delete, reuse; {_how} get: {_kind}"] = Scenario(
            deleted_and_used_again(_kind, remembered=_remembered)
        )
    SCENARIOS[f"overwrite: {_kind}"] = Scenario(overwritten(_kind))
    SCENARIOS[f"overwrite twice: {_kind}"] = Scenario(overwritten(_kind, times=2, looks=2))
