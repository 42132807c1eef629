"""What do simulated processes do, and with which objects? The words that scenarios are written in.

A scenario makes a store ready, says what each process does (ordinary calls of `Store`), and what
must be true at the end. What must never happen in between is in `interleave_guard`.
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
from interleave_memory import Counterexample
from interleave_world import World

from shmstore import ObjectRef, StoreFullError
from shmstore._catalog.keys import digest_of
from shmstore._plans import GONE, Plan

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
        known = tuple(session.pins.free), frozenset(session.unpinned)
        self.process.settle(outcome, (*known, self.world.remembered.get(self.process.number)))
        return outcome

    def plan_of(self, ref: ObjectRef) -> Plan | None:
        """Get an object before anything happens; return what is remembered of it."""
        own = self.world.refer(ref)
        self.store.get(own)
        return own._plan

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

    def get(self, target: Any, *allowed: int | None, mode: str = "shared") -> Any:
        """Get an object, look at it and let it go; None: it is not there.

        A plan instead of a reference or a key: None where it does not count any more.
        """
        got = (
            _fetched(target)
            if isinstance(target, Plan)
            else self.store.get(target, None, mode=mode)
        )
        value = None if got is None else self.value_of(got)
        del got
        if value not in allowed:
            raise Counterexample(f"{self.process.name} sees {value}, may see {allowed}")
        return self._done(value)

    def wait(self, key: str, *allowed: int) -> Any:
        """Wait for the object of a key, look at it and let it go."""
        value = self.value_of(self.store.get(key, timeout=None))
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

    def change(self, target: Any, value: int, *allowed: int | None) -> Any:
        """Get an array and write into it, if it is in memory; return what it holds then.

        A plan instead of a reference: None where it does not count any more.
        """
        world, process = self.world, self.process
        got = _fetched(target) if isinstance(target, Plan) else self.store.get(target)
        if got is None:
            return self._done(None)
        with world.holding(process, got):
            seen = world.look(process, got)[0]
            if world.offset_of(got) >= 0:
                world.write(process, got, value)
                seen = value
        if seen not in (value, *allowed):
            raise Counterexample(f"{process.name} sees {seen}, may see {allowed}")
        del got
        return self._done(seen)

    def delete(self, target: ObjectRef | str) -> Any:
        """Delete an object."""
        return self._done(f"deleted {self.store.discard(target)}")


def _fetched(plan: Plan) -> Any:
    got = plan.fetch()
    return None if got is GONE else got


def fill(world: World, nbytes: int) -> None:
    """Leave only `nbytes` bytes of a store free."""
    size = CAPACITY - world.store.stats().used - nbytes
    world.stores[-1].put(np.zeros(size, np.uint8), key="filling")
    for store in world.stores:  # cells for pins, and what code does once
        store.get("filling")


def fill_and_look(world: World, nbytes: int) -> None:
    """Leave only `nbytes` bytes of a store free; what fills it may not leave."""
    fill(world, nbytes)
    world.kept = world.store.get("filling")


def expect(world: World, key: str, *allowed: int | None) -> None:
    """At the end a key must have one of these values."""

    def look() -> None:
        seen = numbers_in(world.store.get(key, None))
        if len(seen) != 1 or not seen <= set(allowed):
            raise Counterexample(f"at the end {key!r} is {seen}, may be {allowed}")

    world.judges.append(look)


def numbers_in(got: Any) -> set[int | None]:
    """Return the numbers that an object consists of: one, if it is whole."""
    if got is None:
        return {None}
    parts = [leaf.view(np.uint8) for leaf in leaves(got)] or [np.array(got)]
    return set(np.concatenate(parts).tolist())


def expect_kept(world: World, target: ObjectRef | str, value: int) -> None:
    """What nobody changes must be there at the end."""

    def look() -> None:
        seen = numbers_in(world.store.get(target, None))
        if seen != {value}:
            raise Counterexample(f"at the end {target!r} is {seen}, was {value}")

    world.judges.append(look)


def expect_put(world: World, number: int, key: str, value: int) -> None:
    """At the end a key has the value of a put that returned."""

    def look() -> None:
        seen = numbers_in(world.store.get(key, None))
        if "put" in world.processes[number].outcomes and seen != {value}:
            raise Counterexample(f"at the end {key!r} is {seen}, was put as {value}")

    world.judges.append(look)


def expect_promise(
    world: World, number: int, key: str, value: int | None, *before: int | None
) -> None:
    """At the end a key has a value if its put returned; if its process died, or an older one."""

    def look() -> None:
        seen = numbers_in(world.store.get(key, None))
        done = world.processes[number].outcomes
        allowed = {value} if {"put", "deleted True"} & set(done) else {value, *before}
        if len(seen) != 1 or not seen <= allowed:
            raise Counterexample(f"at the end {key!r} is {seen}, may be {allowed}")

    world.judges.append(look)


def colliding_keys(count: int, bits: int = 3) -> list[str]:
    """Return keys that fall into the same bucket of up to 2**bits."""
    names = (f"k{number}" for number in range(10_000))
    same = [name for name in names if not digest_of(name)[0] & ((1 << bits) - 1)]
    return same[:count]


def parting_keys(bits: int) -> list[str]:
    """Return a key for each value of the lower bits of their digests."""
    found: dict[int, str] = {}
    for number in range(10_000):
        found.setdefault(digest_of(f"k{number}")[0] & ((1 << bits) - 1), f"k{number}")
    return [found[low] for low in range(1 << bits)]


# --- exploring ------------------------------------------------------------------------------------


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
    empty_seats
        Whether the first pin of each process must make its cells.
    mortal, deaths
        Which processes may die, and how many of them.
    deep
        Whether it takes too long for every test run.
    """

    make: Callable[[World], None]
    names: tuple[str, ...] = ("reader", "writer")
    options: tuple[tuple[str, Any], ...] = ()
    patches: tuple[tuple[Any, str, Any], ...] = ()
    empty_seats: bool = False
    mortal: tuple[int, ...] = ()
    deaths: int = 1
    deep: bool = False


def explore(
    scenario: Scenario,
    limit: int | None = None,
    weaken: Callable[[World], None] = lambda _: None,
) -> Result:
    """Explore a scenario, perhaps with weakened code."""
    with explorer_of(scenario, limit, weaken) as explorer:
        return explorer.explore()


@contextlib.contextmanager
def explorer_of(
    scenario: Scenario,
    limit: int | None = None,
    weaken: Callable[[World], None] = lambda _: None,
    *,
    thorough: bool = False,
) -> Iterator[Explorer]:
    """Give the explorer of a scenario, whose world goes afterwards."""
    with contextlib.ExitStack() as stack:
        for module, name, value in scenario.patches:
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(quiet_collector())
        world = stack.enter_context(World(*scenario.names, **dict(scenario.options)))
        scenario.make(world)
        world.mortal = frozenset(scenario.mortal)
        world.deaths = scenario.deaths if scenario.mortal else 0
        weaken(world)
        world.ready(empty_seats=scenario.empty_seats)
        yield Explorer(world, limit, thorough=thorough)


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the collector from running finalizers in whatever process runs just then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
