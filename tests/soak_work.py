"""What the workers of the black box do until somebody kills them.

Each worker has keys that only it changes. It writes down what it is about to do with such a key and
that it was done, into mapped memory that survives it: so it, and whoever buries it, knows which
version must be there. The common keys belong to all; an object there must be whole, and its own.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import soak_objects as objects
from stores import forked

from shmstore import KeyExistsError, ObjectNotFoundError, Store, StoreFullError

OWN_KEYS: Final = 12
COMMON_KEYS: Final = 8
COMMON: Final = 1 << 16

# What is written down for a key instead of a version.
MISSING: Final = 0
NOTHING: Final = (1 << 64) - 1

COUNTED: Final = ("operations", "forks", "refused", "verified", "attached", "held", "missed")

_GONE: Any = object()

# Of common objects only: nobody can tell whether one of these is still there.
_TTLS: Final = (None, 0.01, 1000)
_MOST_HELD: Final = 6


class Journal:
    """What one worker after the other, under one number, has done with the keys of that number.

    `acknowledged` holds for each key the version that must be there, `intended` the one that a
    change under way may have put there already.
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        words = memoryview(self.memory).cast("Q")
        self.acknowledged = words[:OWN_KEYS]
        self.intended = words[OWN_KEYS : 2 * OWN_KEYS]
        self.counts = words[2 * OWN_KEYS : 2 * OWN_KEYS + len(COUNTED)]
        self.next_version = words[2 * OWN_KEYS + len(COUNTED) :]
        self.settle({})

    def settle(self, found: dict[int, int]) -> None:
        """Take over what was found of the keys after the death of a worker."""
        for key, version in found.items():
            self.acknowledged[key] = version
        for key in range(OWN_KEYS):
            self.intended[key] = NOTHING

    def allowed(self, key: int) -> set[int]:
        """Return the versions of which one must be there."""
        return {self.acknowledged[key], self.intended[key]} - {NOTHING}

    def version(self) -> int:
        """Return a version that no object has."""
        self.next_version[0] += 1
        return self.next_version[0]

    def count(self, what: str) -> None:
        """Count something."""
        self.counts[COUNTED.index(what)] += 1


def name_of(key: int) -> str:
    """Return the name of a key, given its number."""
    return f"common-{key}" if key >= COMMON else f"own-{key}"


def own_key(worker: int, key: int) -> int:
    """Return the number of the n-th key of a worker."""
    return worker * OWN_KEYS + key


class Worker:
    """One worker.

    Parameters
    ----------
    path
        Of the store.
    number
        Of the worker: its keys follow from it.
    workers
        How many there are.
    journal
        Of this number.
    seed
        Of what it does.
    may_vanish
        Whether an object may be gone that nobody has deleted.
    """

    def __init__(
        self,
        path: Path,
        number: int,
        workers: int,
        journal: Journal,
        seed: int,
        *,
        may_vanish: bool,
    ) -> None:
        self.path = path
        self.number = number
        self.workers = workers
        self.journal = journal
        self.random = random.Random(seed)
        self.may_vanish = may_vanish
        self.held: deque[tuple[int, int, Any]] = deque()
        self.store = Store.attach(path)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Work until told to stop."""
        actions: list[tuple[Callable[[], None], int]] = [
            (self.put, 60),
            (self.allocate, 20),
            (self.put_many, 15),
            (self.delete, 20),
            (self.delete_many, 6),
            (self.get_own, 40),
            (self.get_any, 80),
            (self.change_common, 40),
            (self.let_go, 6),
            (self.look_around, 2),
            (self.get_readonly, 2),
            (self.recover, 2),
            (self.trim, 2),
            (self.attach_again, 1),
            (self.fork, 1),
        ]
        functions, weights = zip(*actions, strict=True)
        while not stopped():
            for action in self.random.choices(functions, weights, k=20):
                self.journal.count("operations")
                action()
        while self.held:
            self.let_go()
        self.store.close()

    # --- keys of its own -----------------------------------------------------------------------

    def put(self) -> None:
        """Put or overwrite."""
        [(key, version)] = self._begin(1)
        obj = objects.make(own_key(self.number, key), version, self.random)
        try:
            self.store.put(obj, key=self._name(key))
        except StoreFullError:
            self._refused([key])
            return
        self._done([key])

    def put_many(self) -> None:
        """Put a batch."""
        begun = self._begin(self.random.randrange(2, 5))
        batch = {
            self._name(key): objects.make(own_key(self.number, key), version, self.random)
            for key, version in begun
        }
        keys = [key for key, _ in begun]
        try:
            self.store.put_many(batch)
        except StoreFullError:
            self._refused(keys)
            return
        self._done(keys)

    def allocate(self) -> None:
        """Build in place."""
        [(key, version)] = self._begin(1)
        nbytes = objects.some_nbytes(self.random)
        try:
            with self.store.allocate(nbytes, np.uint8, key=self._name(key)) as array:
                objects.fill(array, own_key(self.number, key), version, self.random)
        except StoreFullError:
            self._refused([key])
            return
        self._done([key])

    def delete(self) -> None:
        """Delete what must be there, or is known not to be."""
        key = self.random.randrange(OWN_KEYS)
        self.journal.intended[key] = MISSING
        found = self.store.discard(self._name(key))
        self._expect(found, key)
        self._done([key])

    def delete_many(self) -> None:
        """Delete a batch."""
        keys = self.random.sample(range(OWN_KEYS), 3)
        for key in keys:
            self.journal.intended[key] = MISSING
        count = self.store.delete_many([self._name(key) for key in keys])
        expected = sum(self.journal.acknowledged[key] != MISSING for key in keys)
        assert count == expected or (self.may_vanish and count < expected), (count, expected)
        self._done(keys)

    def get_own(self) -> None:
        """Get the version that it has put itself."""
        key = self.random.randrange(OWN_KEYS)
        mode = self.random.choice(("shared", "shared", "readonly", "private", "copy"))
        got = self.store.get(self._name(key), _GONE, mode=mode)
        self._expect(got is not _GONE, key)
        if got is not _GONE:
            version = self._verify(own_key(self.number, key), got)
            assert version == self.journal.acknowledged[key], (self._name(key), version)

    def _name(self, key: int) -> str:
        return name_of(own_key(self.number, key))

    def _begin(self, count: int) -> list[tuple[int, int]]:
        """Write down what is going to be put; return keys and versions."""
        begun = [
            (key, self.journal.version()) for key in self.random.sample(range(OWN_KEYS), count)
        ]
        for key, version in begun:
            self.journal.intended[key] = version
        return begun

    def _done(self, keys: list[int]) -> None:
        journal = self.journal
        for key in keys:
            journal.acknowledged[key] = journal.intended[key]
        for key in keys:
            journal.intended[key] = NOTHING

    def _refused(self, keys: list[int]) -> None:
        for key in keys:
            self.journal.intended[key] = NOTHING
        self.journal.count("refused")
        self.held.clear()

    def _expect(self, found: bool, key: int) -> None:  # noqa: FBT001 - what happened
        expected = self.journal.acknowledged[key] != MISSING
        if expected and not found and self.may_vanish:
            self.journal.count("missed")
            return
        assert found == expected, f"{self._name(key)}: there? {found}, expected: {expected}"

    # --- keys of others ------------------------------------------------------------------------

    def get_any(self) -> None:
        """Get what anybody has put, and keep a view for a while."""
        key = self._any_key()
        got = self.store.get(name_of(key), _GONE)
        if got is not _GONE:
            version = self._verify(key, got)
            if len(self.held) >= _MOST_HELD:
                self.let_go()
            self.held.append((key, version, got))
            self.journal.count("held")

    def let_go(self) -> None:
        """Look once more at something that was held."""
        if self.held:
            self.random.shuffle(self.held)
            key, version, got = self.held.popleft()
            assert self._verify(key, got) == version, "an object changed while it was held"

    def get_readonly(self) -> None:
        """Get with a handle that cannot change anything."""
        with Store.attach(self.path, readonly=True) as store:
            for _ in range(3):
                key = self._any_key()
                got = store.get(name_of(key), _GONE)
                if got is not _GONE:
                    self._verify(key, got)
                del got

    def change_common(self) -> None:
        """Change a key that all change."""
        key = COMMON + self.random.randrange(COMMON_KEYS)
        name, obj = name_of(key), objects.make(key, self.journal.version(), self.random)
        action = self.random.randrange(5)
        try:
            if action == 0:
                self.store.put(obj, key=name, ttl=self.random.choice(_TTLS))
            elif action == 1:
                with contextlib.suppress(KeyExistsError):
                    self.store.put(obj, key=name, overwrite=False)
            elif action == 2:
                self._verify(key, self.store.setdefault(name, obj))
            elif action == 3:
                got = self.store.pop(name, _GONE)
                if got is not _GONE:
                    self._verify(key, got)
            else:
                with self.store.put(obj) as ref, contextlib.suppress(ObjectNotFoundError):
                    self._verify(key, ref.get())  # or it has given way already
        except StoreFullError:
            self._refused([])

    def _any_key(self) -> int:
        if self.random.random() < 0.3:
            return COMMON + self.random.randrange(COMMON_KEYS)
        return self.random.randrange(self.workers * OWN_KEYS)

    def _verify(self, key: int, got: Any) -> int:
        found, version = objects.read(got)
        assert found == key, f"{name_of(key)} leads to an object of {name_of(found)}"
        self.journal.count("verified")
        return version

    # --- processes -----------------------------------------------------------------------------

    def fork(self) -> None:
        """Let a child look at what it inherits, and wait for it if nobody kills us meanwhile."""
        self.journal.count("forks")

        def be_a_child() -> None:
            self.journal = Journal()
            for key, version, got in self.held:
                assert objects.read(got) == (key, version), "a child inherited something else"
            for _ in range(3):
                self.get_any()
                self.change_common()

        pid = forked(be_a_child)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a forked child failed"

    def attach_again(self) -> None:
        """Leave the store and come back; views stay."""
        self.store.close()
        self.store = Store.attach(self.path)
        self.journal.count("attached")

    def recover(self) -> None:
        """Bury whoever is dead."""
        self.store.recover()

    def trim(self) -> None:
        """Give memory back that objects may lie in a moment later."""
        assert self.store.trim() >= 0

    def look_around(self) -> None:
        """Ask for all there is to know."""
        with contextlib.suppress(ObjectNotFoundError):
            self.store.info(name_of(self._any_key()))
        stats = self.store.stats()
        assert 0 <= stats.used <= stats.capacity
        assert len(self.store.clients()) > 0
        assert len(self.store.objects()) >= 0
        assert set(self.store) is not None
        gc.collect()
