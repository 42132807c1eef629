"""What must be true of a store after a process was killed?

A process that never had to do with the store looks at it, then uses it. The lock is free; nothing
is broken; each object is as it was before the operation or as it is after it; used bytes are those
of the objects; no client, no half-made object, no file is left over; the store works, can be
emptied, and removed.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from kill_scenes import NAME, NEW, Scene

from shmstore import ObjectRef, Store, StoreNotFoundError, _claiming
from shmstore._catalog import states
from shmstore._memory import layout as L

QUEUE: Final = "shmstore.Queue"

# States that a slot may be in when nobody does anything.
_AT_REST: Final = {states.FREE, states.READY, states.SPILLED}
_WITHOUT_EXTENT: Final = {states.FREE, states.SPILLED}


class Holding(NamedTuple):
    """What a store holds; objects are known by a digest."""

    named: dict[str, str]
    anonymous: Counter[str]


def digest(value: Any) -> str:
    """Return a text that is the same for equal objects."""
    if isinstance(value, np.ndarray):
        raw = np.ascontiguousarray(value).tobytes()
        return f"{value.dtype}{value.shape}{hashlib.blake2b(raw, digest_size=8).hexdigest()}"
    if isinstance(value, dict):
        return str({key: digest(part) for key, part in value.items()})
    text = repr(value)
    if len(text) < 80:
        return text
    return f"{text[:20]}...{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def look(
    scene: Scene, others: bytes | None, *, damaged: bool = False
) -> tuple[Holding | None, list[str]]:
    """Return what a store holds after a death, and what is wrong with it.

    Parameters
    ----------
    scene
        Gets the store that was found.
    others
        The identity of the store that a bystander is attached to.
    damaged
        The index was overwritten: only `recover` makes it whole.
    """
    try:
        store = scene.attach()
    except StoreNotFoundError:
        scene.prune()
        return None, list(_left(scene))
    findings = [] if damaged else store.check()
    faults = [f"check before recovery: {finding}" for finding in findings]
    store.recover()
    held = _holding(store)
    faults += _count(store, int(store._session.uuid == others))
    faults += _leftover_bytes(store)
    scene.prune()
    faults += _files(scene, store)
    faults += _spilled_files(scene, store)
    return held, faults


def _refs(store: Store) -> Iterator[tuple[str | None, ObjectRef]]:
    uuid, path = store._session.uuid, str(store.path)
    for info in store.objects():
        yield info.key, ObjectRef(uuid, path, info.slot, info.generation, info.nbytes, info.key)


def _holding(store: Store) -> Holding:
    named: dict[str, str] = {}
    anonymous: Counter[str] = Counter()
    for key, ref in _refs(store):
        value = digest(store.get(ref))
        if key is None:
            anonymous[value] += 1
        else:
            assert key not in named, f"two objects are named {key!r}"
            named[key] = value
            assert store._ref_of(key) == ref, f"{key!r} leads to another object"
    return Holding(named, anonymous)


def _count(store: Store, others: int) -> Iterator[str]:
    """Yield what does not add up: bytes, states, clients."""
    gc.collect(0)
    session = store._session
    session.lock.run(_claiming.seize, session)
    stats = store.stats()
    pinned = session.clients.pinned()
    kept = pinned | _being_taken(session)
    used = 0
    for slot, row in enumerate(session.slots.table().tolist()):
        state = states.state_of(row[L.S_STATE])
        if state not in _AT_REST and slot not in kept:
            yield f"slot {slot} is {states.NAMES.get(state, state)}, and nobody looks at it"
        free = state in _WITHOUT_EXTENT or (state == states.SPARE and slot not in pinned)
        used += 0 if free else row[L.S_EXTENT_NBYTES]
    if stats.used != used:
        yield f"{stats.used} bytes are used, the objects have {used}"
    living = {client.serial for client in session.clients.rows()}
    if any(waiter.serial not in living for waiter in session.waiters.rows()):
        yield f"somebody dead waits: {session.waiters.rows()}, of clients {living}"
    if stats.clients != 1 + others:
        yield f"there are {stats.clients} clients, {1 + others} live"


def _being_taken(session: Any) -> set[int]:
    """Return the slots that clients fill or take back at this moment."""
    return {session.words[client.at + L.C_ENDING] - 1 for client in session.clients.rows()}


def _leftover_bytes(store: Store) -> Iterator[str]:
    """Yield free memory that is not zero, in a store that promises this."""
    session = store._session
    if not session.identity.flags & L.FLAG_ZERO_ON_FREE:
        return
    for block in session.allocator.blocks():
        start, end = block.offset, block.offset + block.nbytes
        if block.status == L.NODE_FREE and any(session.segment.readonly[start:end]):
            yield f"the free memory from {start} to {end} is not zero"


def _names(path: os.PathLike[str]) -> set[str]:
    return set(os.listdir(path))  # noqa: PTH208 - names, not paths


def _files(scene: Scene, store: Store) -> Iterator[str]:
    """Yield files and folders that should not be there."""
    if _names(scene.root) != {NAME}:
        yield f"the root holds {_names(scene.root)}"
    rest = _names(store.path) - {"index", "lock", "seats", "spill"}
    if any(not name.startswith("segment-") for name in rest):
        yield f"the folder holds {rest}"
    seats = {str(client.serial) for client in store._session.clients.rows()}
    names = {name for name in _names(store.path / "seats") if name.partition("-")[0] not in seats}
    if not seats <= _names(store.path / "seats") or names:
        yield f"there are seats {_names(store.path / 'seats')}, of clients {seats}"


def _spilled_files(scene: Scene, store: Store) -> Iterator[str]:
    """Yield files of objects that are not there, and objects without their files."""
    if not scene.spill_dir.exists():
        return
    wanted = {
        f"{slot}-{states.generation_of(row[L.S_STATE])}"
        for slot, row in enumerate(store._session.slots.table().tolist())
        if states.state_of(row[L.S_STATE]) == states.SPILLED
    }
    folders = list(scene.spill_dir.iterdir())
    found = [name for path in folders for name in _names(path)]
    if len(folders) > 1 or sorted(found) != sorted(wanted):
        yield f"objects in files are {wanted}, the files in {len(folders)} folders are {found}"


def _left(scene: Scene) -> Iterator[str]:
    """Yield what is there although there should be nothing."""
    for path in (scene.root, scene.spill_dir):
        if path.exists():
            yield from (f"left in {path.name}: {name}" for name in _names(path))


def use(scene: Scene) -> Iterator[str]:
    """Use the store, or a new one of its name, empty and remove it; yield what is wrong."""
    store = scene.store
    if store is None:
        store = scene.create()
    again = store.recover()
    if again.clients or again.puts or again.objects:
        yield f"recovering again finds {again}"
    yield from (f"check: {finding}" for finding in store.check())
    yield from _use_queues(store)
    store.delete_many([ref for _, ref in _refs(store)])
    for value in (NEW, [1], NEW[:2000], {"a": NEW}):
        store["used"] = value
        if digest(store["used"]) != digest(value):
            yield "what was put is not what one gets"
    ref = store.put(NEW)
    if not np.array_equal(store.get(ref), NEW):
        yield "what was put is not what one gets"
    store.delete_many(["used", ref])
    gc.collect(0)
    yield from (f"check after use: {finding}" for finding in store.check())
    stats = store.stats()
    if (stats.used, stats.objects, stats.largest_free) != (0, 0, stats.capacity):
        yield f"the emptied store is not empty: {stats}"
    store.destroy()
    yield from _left(scene)


def _use_queues(store: Store) -> Iterator[str]:
    """Use the queues, and take them away."""
    for name in [store.get(info.ref)[0] for info in store.objects() if info.type == QUEUE]:
        line = store.queue(name)
        if not line.full():
            line.put("used")
        for _ in range(line.qsize()):
            line.get(timeout=10)
        # With no slot left it is not known who took something: that does not end with the taker.
        line.task_done(store._session.words[line._line.base + L.S_OPEN])
        if not line.join(timeout=10):
            yield f"the queue {name!r} waits for what is done"
        line.destroy()


def amiss(before: Holding | None, after: Holding | None, held: Holding | None) -> Iterator[str]:
    """Yield how objects are neither as before an operation nor as after it."""
    nothing = Holding({}, Counter())
    old, new, now = before or nothing, after or nothing, held or nothing
    for key in {*old.named, *new.named, *now.named}:
        allowed = {old.named.get(key), new.named.get(key)}
        if now.named.get(key) not in allowed:
            yield f"{key[:20]!r} is {now.named.get(key)}, allowed are {allowed}"
    for value in {*old.anonymous, *new.anonymous, *now.anonymous}:
        counts = sorted((old.anonymous[value], new.anonymous[value]))
        if not counts[0] <= now.anonymous[value] <= counts[1]:
            yield f"there are {now.anonymous[value]} of {value}, allowed are {counts}"


def undone(deaths: Iterable[Holding | None]) -> Iterator[str]:
    """Yield what took effect and went back later: the deaths are in the order of the steps."""
    held = [one or Holding({}, Counter()) for one in deaths]
    for key in {key for one in held for key in one.named}:
        if _changes(one.named.get(key) for one in held) > 1:
            yield f"{key[:20]!r} goes back to what it was before a step"
    for value in {value for one in held for value in one.anonymous}:
        if _changes(one.anonymous[value] for one in held) > 1:
            yield f"{value} goes back to what it was before a step"


def _changes(values: Iterable[object]) -> int:
    return sum(one != other for one, other in itertools.pairwise(values))
