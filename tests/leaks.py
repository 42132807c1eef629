"""Puts and deletes without end in a process that may open few files: does anything pile up?

``python tests/leaks.py`` runs 1,000,000; ``--count`` chooses. Small, large, named and overwritten
objects, views that are dropped, batches and private copies take turns; in between everything is
deleted, and bytes, descriptors, files, mappings and memory are what they were.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import proofs

from shmstore import ObjectRef, Store

FEW_DESCRIPTORS: Final = 64
MIB: Final = 1 << 20

# What the plans of 16,384 objects take, and what the allocators keep.
_SPARE_NBYTES: Final = 32 * MIB


class Level(NamedTuple):
    """What a store and this process hold while the store is empty."""

    used: int
    objects: int
    pins: int
    descriptors: int
    files: int
    mappings: int


class Turns:
    """One store, and what is done with it, in turns.

    Parameters
    ----------
    store
        An empty store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.puts = 0
        self._kept: list[ObjectRef] = []
        self._small = np.arange(50)
        self._large = np.arange(20_000)

    def turn(self, number: int) -> None:
        """Put, get and delete some objects; which, the number says."""
        actions = (self._inline, self._array, self._named, self._overwritten, self._batch)
        actions[number % len(actions)](number)
        if number % 97 == 0:
            self._big(number)
        if number % 1009 == 0:
            self._private()

    def _count(self, nputs: int) -> None:
        self.puts += nputs

    def _inline(self, number: int) -> None:
        ref = self.store.put({"n": number})
        assert ref.get() == {"n": number}
        ref.delete()
        self._count(1)

    def _array(self, number: int) -> None:
        ref = self.store.put(self._small)
        view = ref.get()
        part = view[number % 50 :]
        ref.delete()
        assert part[0] == number % 50
        self._count(1)

    def _named(self, number: int) -> None:
        key = f"k{number % 300}"
        self.store[key] = self._small
        assert self.store[key][3] == 3
        if number % 2:
            del self.store[key]
        self._count(1)

    def _overwritten(self, number: int) -> None:
        before = self.store.get("again", None)
        self.store["again"] = number if number % 3 else self._small[number % 50 :]
        del before
        self._count(1)

    def _batch(self, number: int) -> None:
        refs = self.store.put_many([number, self._small, str(number)])
        assert self.store.delete_many(refs) == 3
        self._count(3)

    def _big(self, number: int) -> None:
        self._kept.append(self.store.put(self._large[number % 100 :]))
        if len(self._kept) > 5:
            oldest = self._kept.pop(0)
            assert oldest.get()[-1] == 19_999
            oldest.delete()
        self._count(1)

    def _private(self) -> None:
        ref = self.store.put(self._large)
        private = ref.get(mode="private")
        private[0] = 7
        assert ref.get(mode="copy")[0] == 0
        ref.delete()
        self._count(1)

    def empty(self) -> Level:
        """Delete everything; return what is held then."""
        self._kept.clear()
        self.store.delete_many([info.ref for info in self.store.objects()])
        assert self.store.check() == []
        return level_of(self.store)


def level_of(store: Store) -> Level:
    """Return what a store and this process hold."""
    gc.collect()
    session: Any = store._session
    session.lock.run(session.reclaim_all)
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        mappings = sum(str(store.path) in line for line in maps)
    return Level(
        used=store.stats().used,
        objects=len(store.objects()),
        pins=sum(client.pins for client in store.clients()),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        files=len(list(store.path.rglob("*"))),
        mappings=mappings,
    )


def resident_nbytes() -> int:
    """Return the memory of this process that it shares with nobody."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize()


def run(count: int, root: str) -> dict[str, int]:
    """Make `count` puts; fail if anything piles up. Return the counts for the proof."""
    started = time.monotonic()
    options: dict[str, Any] = {"root": root, "capacity": 16 * MIB, "max_objects": 5000}
    with Store.create("leaks", **options) as store:
        turns = Turns(store)
        for number in range(5000):
            turns.turn(number)
        first, resident = turns.empty(), resident_nbytes()
        assert first._replace(descriptors=0, files=0, mappings=0) == Level(0, 0, 0, 0, 0, 0), first
        rounds = 0
        while turns.puts < count:
            for number in range(min(50_000, count)):
                turns.turn(number)
            rounds += 1
            now = turns.empty()
            assert now == first, f"{now} instead of {first} after {turns.puts:,} puts"
            grown = resident_nbytes() - resident
            assert grown < _SPARE_NBYTES, f"{grown:,} bytes more after {turns.puts:,} puts"
    assert list(Path(root).iterdir()) == []
    return {
        "puts": turns.puts,
        "times_emptied": rounds,
        "bytes_left": first.used,
        "descriptors_more": 0,
        "memory_grown_kib": max(0, grown) >> 10,
        "seconds": int(time.monotonic() - started),
    }


def main() -> None:
    """Run with few descriptors, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    count = parser.parse_args().count
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, FEW_DESCRIPTORS))
    with tempfile.TemporaryDirectory(prefix="shmstore-test-", dir="/dev/shm") as parent:
        root = Path(parent) / "root"
        root.mkdir(mode=0o700)
        counts = run(count, os.fspath(root))
    proofs.note("leaks: puts and deletes, ulimit -n 64", **counts)
    print(", ".join(f"{name} {number:,}" for name, number in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
