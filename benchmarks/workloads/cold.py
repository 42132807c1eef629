"""How long does the first put take, into pages that nobody has touched?

A new store, or file, for each put; making and removing it does not count. The floor is `write()` of
the same bytes into a new file on tmpfs, which neither faults nor zeroes its pages first; "memcpy,
fresh pages" is the copy into a new mapping of such a file.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, interleave
from benchmarks.peers import FLOOR, MEMCPY
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import ARRAY_1M, ARRAY_64M, ARRAY_512M, Sample

MEASURE = "first put, fresh pages"
WRITE, FAULTS = "write()", "memcpy, fresh pages"


def run(arena: Arena) -> Iterator[Result]:
    """Put arrays, each into a peer that has just been set up."""
    found = arena.choose(lambda kind: kind.puts and kind.fresh)
    samples = (ARRAY_1M, ARRAY_64M) if arena.plan.quick else (ARRAY_1M, ARRAY_64M, ARRAY_512M)
    with arena.crew(found, readers=0) as crew:
        for sample in samples:
            progress(f"{MEASURE}: {sample.label}")
            times: dict[tuple[str, str], list[float]] = {}
            for flight in crew.flights(sample):
                with crew.set_up(sample.nbytes, flight) as teams:
                    timers = {
                        (MEASURE, name): team.owner.timer(name)
                        for label, team in teams.items()
                        for name in team.owner.call(prepare, sample)
                    }
                    for key, values in interleave(timers, arena.plan).items():
                        times.setdefault(key, []).extend(values)
            yield from collect("cold", sample.label, times)


def prepare(stand: Stand, sample: Sample) -> list[str]:
    """Prepare to set up a peer, put, and take it down again."""
    value = sample.make()
    if stand.kind.label == FLOOR:
        path = stand.folder / "cold"
        stand.operations = {
            WRITE: _writing(path, value, os.write),
            FAULTS: _writing(path, value, _copy_into_map),
        }
    elif stand.kind.label != MEMCPY:
        fresh = _Fresh(stand, value, sample.nbytes)
        stand.operations = {stand.kind.label: Operation(fresh.run, fresh.undo, fresh.before)}
    return list(stand.operations)


class _Fresh:
    """A peer that is set up anew for each put."""

    def __init__(self, stand: Stand, value: object, nbytes: int) -> None:
        self._kind, self._folder = stand.kind, stand.folder / "fresh"
        self._value, self._nbytes = value, nbytes

    def before(self) -> None:
        self._folder.mkdir()
        self._peer = self._kind.create(self._folder, self._nbytes)
        self._put = self._peer.putter(self._value)

    def run(self) -> object:
        return self._put()

    def undo(self, handle: object) -> None:
        self._peer.delete(handle)
        self._peer.close()
        shutil.rmtree(self._folder)


def _writing(path: Path, value: object, write: Callable[[int, Any], object]) -> Operation:
    """Return what writes into a file that is opened before and removed afterwards."""
    data = memoryview(value).cast("B")
    opened: list[int] = []

    def undo(_: object) -> None:
        path.unlink()
        os.close(opened.pop())

    def before() -> None:
        opened.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))

    return Operation(lambda: write(opened[0], data), undo, before)


def _copy_into_map(descriptor: int, data: memoryview) -> None:
    os.ftruncate(descriptor, len(data))
    with mmap.mmap(descriptor, len(data)) as mapped:
        mapped[:] = data
