"""What the workers of a history do: every call that reads or changes a key, on few keys."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns, sleep
from typing import Any, Final

import history_records as R
import numpy as np
from history_records import Recorder

from shmstore import KeyExistsError, ObjectNotFoundError, ObjectRef, Store, StoreFullError

VALUE_BITS: Final = 40

_GONE: Any = object()


# --- objects that carry a value -------------------------------------------------------------------


def as_number(value: int, _: random.Random) -> Any:
    """Return something that lies in the slot."""
    return value


def as_dict(value: int, random_: random.Random) -> Any:
    """Return something small that is pickled; it says its value twice."""
    return {"value": value, "padding": "x" * random_.choice((1, 40, 400)), "again": value}


def as_array(value: int, random_: random.Random) -> Any:
    """Return an array that says nothing but its value."""
    return np.full(random_.choice((1, 8, 100, 1000, 9000)), value, np.uint64)


def as_nested(value: int, random_: random.Random) -> Any:
    """Return a dict with an array."""
    return {"value": value, "array": as_array(value, random_)}


SHAPES: Final[dict[str, Callable[[int, random.Random], Any]]] = {
    "number": as_number,
    "dict": as_dict,
    "array": as_array,
    "nested": as_nested,
}


def value_of(obj: Any) -> int:
    """Return the value that an object carries; fail when it is not of one piece."""
    if isinstance(obj, np.ndarray):
        assert (obj == obj[0]).all(), "an array of two values"
        return int(obj[0])
    if isinstance(obj, dict):
        value = int(obj["value"])
        if "array" in obj:
            assert value_of(obj["array"]) == value, "an array of another object"
        else:
            assert obj["again"] == value, "a dict of two values"
        return value
    return int(obj)


# --- the worker -----------------------------------------------------------------------------------


class Worker:
    """One thread that works on a store and records what it does.

    Parameters
    ----------
    store
        A handle of this process.
    recorder
        Where it records; a number of its own makes its values unique.
    number
        Unlike that of all other workers.
    keys
        How many keys there are.
    shapes
        Names of `SHAPES`.
    pause_s
        How long to wait at most between two changes, so that everybody knows the last one.
    """

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        number: int,
        keys: int,
        shapes: tuple[str, ...],
        pause_s: float = 0.0,
    ) -> None:
        self.store = store
        self.recorder = recorder
        self.random = random.Random(number)
        self.names = [f"key-{key}" for key in range(keys)]
        self._next = (number + 1) << VALUE_BITS
        self._pause_s = pause_s
        self._shapes = [SHAPES[shape] for shape in shapes]
        self._held: deque[tuple[int, Any]] = deque(maxlen=3)
        self._refs: deque[tuple[int, int, ObjectRef]] = deque(maxlen=12)

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until there is no room for more records, or until told to stop."""
        actions = self.readings() if self.store.readonly else self.writings() + self.readings()
        names, weights = zip(*actions, strict=True)
        while self.recorder.left() > len(self.names) and not stop():
            for action in self.random.choices(names, weights, k=50):
                if self.recorder.left() <= len(self.names):
                    break
                action(self.random.randrange(len(self.names)))

    def writings(self) -> list[tuple[Callable[[int], None], int]]:
        """Return what changes keys, with how often it is done."""
        return [
            (self.put, 22),
            (self.put_if_absent, 8),
            (self.put_many, 3),
            (self.allocate, 4),
            (self.discard, 8),
            (self.pop, 5),
            (self.setdefault, 5),
            (self.ref_delete, 2),
            (self.share_ref, 2),
            (self.trim, 1),
        ]

    def readings(self) -> list[tuple[Callable[[int], None], int]]:
        """Return what only reads, with how often it is done."""
        return [
            (self.get, 30),
            (self.get_copy, 4),
            (self.get_many, 2),
            (self.contains, 4),
            (self.ref_get, 7),
            (self.ref_in, 2),
            (self.take_ref, 2),
        ]

    def _new(self) -> tuple[int, Any]:
        if self._pause_s:
            sleep(self.random.uniform(0, self._pause_s))
        value = self._next
        self._next += 1
        return value, self.random.choice(self._shapes)(value, self.random)

    def _keep(self, key: int, value: int, ref: ObjectRef) -> None:
        if self.random.random() < 0.1:
            self._refs.append((key, value, ref))

    # --- changes -------------------------------------------------------------------------------

    def put(self, key: int) -> None:
        """Overwrite."""
        value, obj = self._new()
        at = self.recorder.begin(R.PUT, key, value)
        try:
            ref = self.store.put(obj, key=self.names[key])
        except StoreFullError:
            self._is_full([at])
            return
        self._put([at], monotonic_ns())
        self._keep(key, value, ref)

    def put_if_absent(self, key: int) -> None:
        """Put where nothing is."""
        value, obj = self._new()
        at = self.recorder.begin(R.PUT_IF_ABSENT, key, value)
        try:
            ref = self.store.put(obj, key=self.names[key], overwrite=False)
        except KeyExistsError:
            self.recorder.end(at, 0, monotonic_ns())
            return
        except StoreFullError:
            self._is_full([at])
            return
        self._put([at], monotonic_ns())
        self._keep(key, value, ref)

    def put_many(self, _: int) -> None:
        """Overwrite two keys, or all."""
        count = self.random.choice((2, len(self.names)))
        keys = self.random.sample(range(len(self.names)), min(count, len(self.names)))
        new = [self._new() for _ in keys]
        batch = {self.names[key]: obj for key, (_, obj) in zip(keys, new, strict=True)}
        begin = self.recorder.begin
        places = [begin(R.PUT, key, value) for key, (value, _) in zip(keys, new, strict=True)]
        try:
            self.store.put_many(batch)
        except StoreFullError:
            self._is_full(places)
            return
        self._put(places, monotonic_ns())

    def allocate(self, key: int) -> None:
        """Overwrite by an array that is built in place."""
        value, _ = self._new()
        at = self.recorder.begin(R.PUT, key, value)
        try:
            with self.store.allocate(
                self.random.choice((1, 700, 3000)), np.uint64, key=self.names[key]
            ) as array:
                array[:] = value
        except StoreFullError:
            self._is_full([at])
            return
        self._put([at], monotonic_ns())
        self._held.append((value, array))

    def discard(self, key: int) -> None:
        """Delete what is there."""
        at = self.recorder.begin(R.DISCARD, key)
        found = self.store.discard(self.names[key])
        self.recorder.end(at, int(found), monotonic_ns())

    def pop(self, key: int) -> None:
        """Take what is there."""
        at = self.recorder.begin(R.POP, key)
        got = self.store.pop(self.names[key], _GONE)
        self._got([at], [got], monotonic_ns())

    def setdefault(self, key: int) -> None:
        """Get what is there, or put something."""
        value, obj = self._new()
        at = self.recorder.begin(R.SETDEFAULT, key, value)
        try:
            got = self.store.setdefault(self.names[key], obj)
        except StoreFullError:
            self._is_full([at])
            return
        self._got([at], [got], monotonic_ns())

    def ref_delete(self, _: int) -> None:
        """Delete one object, and no other that has its key."""
        if self._refs:
            key, value, ref = self._refs.popleft()
            at = self.recorder.begin(R.REF_DELETE, key, value)
            found = self.store.discard(ref)
            self.recorder.end(at, int(found), monotonic_ns())

    def share_ref(self, _: int) -> None:
        """Let others have a reference."""
        if self._refs:
            with suppress(StoreFullError):
                self.store["a reference"] = self._refs[-1]

    def trim(self, _: int) -> None:
        """Give free memory back, which says nothing of any key."""
        self.store.trim()

    # --- looks ---------------------------------------------------------------------------------

    def get(self, key: int) -> None:
        """Get, and look again later whether that still stands there."""
        at = self.recorder.begin(R.GET, key)
        got = self.store.get(self.names[key], _GONE)
        self._got([at], [got], monotonic_ns())

    def get_copy(self, key: int) -> None:
        """Get in another mode."""
        mode = self.random.choice(("copy", "private", "readonly"))
        at = self.recorder.begin(R.GET, key)
        got = self.store.get(self.names[key], _GONE, mode=mode)
        self._got([at], [got], monotonic_ns())

    def get_many(self, _: int) -> None:
        """Get all keys: each at some instant of the call."""
        keys = range(len(self.names))
        places = [self.recorder.begin(R.GET, key) for key in keys]
        got = self.store.get_many(self.names, _GONE)
        self._got(places, got, monotonic_ns())

    def contains(self, key: int) -> None:
        """Ask whether there is something."""
        at = self.recorder.begin(R.CONTAINS, key)
        found = self.names[key] in self.store
        self.recorder.end(at, int(found), monotonic_ns())

    def ref_get(self, _: int) -> None:
        """Ask a reference for its object."""
        if self._refs:
            key, value, ref = self.random.choice(self._refs)
            at = self.recorder.begin(R.REF_GET, key, value)
            try:
                got = self.store.get(ref)
            except ObjectNotFoundError:
                self.recorder.end(at, 0, monotonic_ns())
                return
            self.recorder.end(at, 1, monotonic_ns())
            assert value_of(got) == value, "a reference that leads to another object"

    def ref_in(self, _: int) -> None:
        """Ask whether the object of a reference is there."""
        if self._refs:
            key, value, ref = self.random.choice(self._refs)
            at = self.recorder.begin(R.REF_GET, key, value)
            found = ref in self.store
            self.recorder.end(at, int(found), monotonic_ns())

    def take_ref(self, _: int) -> None:
        """Take the reference that somebody shares."""
        shared = self.store.get("a reference", None)
        if shared is not None:
            self._refs.append(shared)

    # --- records -------------------------------------------------------------------------------

    def _put(self, places: list[int], now: int) -> None:
        for at in places:
            self.recorder.end(at, 1, now)

    def _is_full(self, places: list[int]) -> None:
        for at in places:
            self.recorder.end(at, R.FULL, monotonic_ns())
        self._held.clear()

    def _got(self, places: list[int], objects: list[Any], now: int) -> None:
        for at, obj in zip(places, objects, strict=True):
            self.recorder.end(at, self._look(obj), now)

    def _look(self, got: Any) -> int:
        """Return the value of what was got, and let go of something that was held till now."""
        if got is _GONE:
            return R.MISSING
        value = value_of(got)
        if len(self._held) == self._held.maxlen:
            old, obj = self._held[0]
            assert value_of(obj) == old, "an object changed while it was held"
        self._held.append((value, got))
        return value
