"""How much of the capacity stays usable in a long run with objects of all sizes and ages?

Objects of 24 sizes, from 64 bytes to a sixty-fourth of the capacity, are put and deleted; some live
for one operation, some for half of all (microseconds to minutes). Whenever there is no room,
the share of the capacity is noted that living objects occupy, with the one that did not fit, and
those go that would have gone next; or the store evicts by itself. 1 would be without any loss.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.report import progress
from benchmarks.results import TIMES, Result, collect
from benchmarks.samples import MIB
from benchmarks.targets import BY_REF

CAPACITY, QUICK_CAPACITY = 32 * MIB, 4 * MIB
OPERATIONS, QUICK_OPERATIONS = 50_000, 20_000
CLASSES, SMALLEST = 24, 64
LONGEST_LIFE = 2  # operations are as many times more
LARGE_ARE_RARE = 0.25  # a class is chosen with its size to the power of minus this
MEASURE, SAMPLE = "usable share of the capacity", "24 sizes, long run"
EVICTING = "shmstore, evicting"
EVERY = 200


def run(arena: Arena) -> Iterator[Result]:
    """Let each peer that can be given a capacity go through the same operations."""
    found = [each for each in arena.found if each.kind.label in (BY_REF, "LMDB")]
    capacity = QUICK_CAPACITY if arena.plan.quick else CAPACITY
    operations = QUICK_OPERATIONS if arena.plan.quick else OPERATIONS
    values: dict[tuple[str, str], list[float]] = {}
    with arena.crew(found, readers=0) as crew:
        for label, team in list(crew.teams.items()):
            progress(f"usable: {label}")
            shares = crew.attempt(label, team.owner.call, fill_up, capacity, operations)
            values[MEASURE, label] = shares or []
        progress(f"usable: {EVICTING}")
        owner = crew.teams[BY_REF].owner
        values[MEASURE, EVICTING] = owner.call(let_evict, capacity, operations)
    yield from collect("usable", SAMPLE, values, TIMES)


def fill_up(stand: Stand, capacity: int, operations: int) -> list[float]:
    """Put and delete in a peer that says when it is full; return the shares of the second half."""
    stand.folder.mkdir(exist_ok=True)
    peer = stand.kind.create_bounded(stand.folder, capacity)
    try:
        return _Load(capacity, peer.put, peer.delete).run(operations)
    finally:
        peer.close()


def let_evict(stand: Stand, capacity: int, operations: int) -> list[float]:
    """Put in a store that evicts; look at it now and then."""
    from shmstore import Store

    del stand
    with Store.create(capacity=capacity, on_full="evict") as store:
        load = _Load(capacity, lambda value, _: store.put(value), store.discard)
        load.look = lambda: sum(each.nbytes for each in store.objects())
        return load.run(operations)


class _Load:
    """The objects that live, and what is noted of them."""

    def __init__(
        self, capacity: int, put: Callable[[object, str], Any], delete: Callable[[Any], object]
    ) -> None:
        self._capacity, self._put, self._delete = capacity, put, delete
        self._living: list[tuple[int, int, int, Any]] = []  # when it goes, number, size, handle
        self._nbytes = 0
        self._shares: list[float] = []
        self.look: Callable[[], int] | None = None

    def run(self, operations: int) -> list[float]:
        """Put an object in each operation; delete those whose time is over."""
        chance = random.Random(0)
        largest = self._capacity // 64
        step = (largest / SMALLEST) ** (1 / (CLASSES - 1))
        sizes = [int(SMALLEST * step**number) for number in range(CLASSES)]
        values = {size: np.ones(size, np.uint8) for size in sizes}
        weights = [size**-LARGE_ARE_RARE for size in sizes]
        for number, size in enumerate(chance.choices(sizes, weights, k=operations)):
            while self._living and self._living[0][0] <= number:
                self._drop_next()
            life = int(math.exp(chance.uniform(0, math.log(operations / LONGEST_LIFE))))
            handle = self._fit(values[size], f"object-{number}", size)
            heapq.heappush(self._living, (number + life, number, size, handle))
            self._nbytes += size
            if self.look is not None and number % EVERY == 0:
                self._shares.append(self.look() / self._capacity)
        return self._shares[len(self._shares) // 2 :]

    def _fit(self, value: np.ndarray, key: str, size: int) -> Any:
        """Put an object, and make room as long as it does not fit."""
        failed = False
        while True:
            try:
                return self._put(value, key)
            except Exception:
                if not self._living:
                    raise
                if not failed:
                    self._shares.append((self._nbytes + size) / self._capacity)
                failed = True
                self._drop_next()

    def _drop_next(self) -> None:
        _, _, size, handle = heapq.heappop(self._living)
        self._delete(handle)
        self._nbytes -= size
