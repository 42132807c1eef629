"""What do a million objects do to put, get and attach, and how much memory does each of them take?

Stores of 1,000 to 1,000,000 small dicts lie side by side (10,000,000 with ``--objects``). Of each,
a thousand objects from all over it are got, over and over, in random order, and for the first time
after attaching; a new object is put and deleted. What an object occupies beyond its pickle is its
overhead.
"""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.actor import Stand
from benchmarks.arena import Arena
from benchmarks.clock import Operation, Timer, interleave
from benchmarks.crew import Team
from benchmarks.report import progress
from benchmarks.results import NBYTES, Result, collect
from benchmarks.samples import small_dict

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
QUICK_COUNTS = COUNTS[:3]
CHUNK = 1000
PICKED = 1000
BY_NUMBER = "{}, by number of objects"
GET, PUT, FIRST = (BY_NUMBER.format(verb) for verb in ("get", "put", "first get"))
ATTACH, OVERHEAD = "attach", "overhead per object"


def run(arena: Arena) -> Iterator[Result]:
    """Fill the stores; then measure in all of them by turns."""
    counts = QUICK_COUNTS if arena.plan.quick else COUNTS
    if more := arena.options.get("objects"):
        counts = (*counts, more)
    found = arena.choose(lambda kind: kind.numbered)
    with arena.crew(found, readers=2) as crew:
        timers: dict[tuple[str, str, int], Timer] = {}
        for label, team in list(crew.teams.items()):
            for count in counts:
                progress(f"objects: {label}, {count:,}")
                held = crew.attempt(label, _fill, team, count)
                if held is None:
                    break
                for key, timer in _timers(team, count).items():
                    timers[key, label, count] = timer
                yield from collect("objects", named(count), {(OVERHEAD, label): [held]}, NBYTES)
        progress("objects: measuring")
        times = interleave(timers, arena.plan)
    for count in counts:
        values = {(key, label): each for (key, label, n), each in times.items() if n == count}
        yield from collect("objects", named(count), values)


def named(count: int) -> str:
    """Return the label of so many objects."""
    return f"{count:,} objects"


def _fill(team: Team, count: int) -> float:
    address, handles, overhead = team.owner.call(fill, count)
    team.reader.call(attach, count, address, handles)
    team.readers[1].call(prepare_attach, count, address)
    return overhead


def _timers(team: Team, count: int) -> dict[str, Timer]:
    first = team.reader.timer(f"{FIRST} {count}")
    return {
        GET: team.reader.timer(f"{GET} {count}"),
        FIRST: partial(_per_one, first),
        PUT: team.owner.timer(f"{PUT} {count}"),
        ATTACH: team.readers[1].timer(f"{ATTACH} {count}"),
    }


def _per_one(timer: Timer, batch: int) -> float:
    """Return what so many take, told from `PICKED` of them."""
    return timer(1) / PICKED * batch


def fill(stand: Stand, count: int) -> tuple[object, list[bytes], float]:
    """Make one that holds so many; return its address, some handles and the overhead."""
    folder = stand.folder / str(count)
    folder.mkdir(parents=True)
    peer = stand.kept[str(count)] = stand.kind.create_for(folder, count)
    before = peer.held_nbytes()
    picked: list[bytes] = []
    payload = 0
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        values = {f"object-{number}": small_dict(number) for number in numbers}
        handles = peer.put_named(values)
        payload += sum(len(pickle.dumps(value, 5)) for value in values.values())
        picked += [peer.dump(each) for each in handles[:: max(count // PICKED, 1)]]
    overhead = (peer.held_nbytes() - before - payload) / count
    put = peer.putter(small_dict(), "one more")
    stand.operations[f"{PUT} {count}"] = Operation(put, undo=peer.delete)
    random.Random(0).shuffle(picked)
    return peer.address, picked, overhead


def attach(stand: Stand, count: int, address: Any, dumped: list[bytes]) -> None:
    """Prepare to get: those that were got before, and for the first time."""
    peer = stand.kept[str(count)] = stand.kind.attach(address)
    following = itertools.cycle([peer.load(each) for each in dumped]).__next__
    get = peer.get
    stand.operations[f"{GET} {count}"] = Operation(lambda: get(following()))
    first = _FirstGets(stand, count, address, dumped)
    stand.operations[f"{FIRST} {count}"] = Operation(first.run, before=first.before)


class _FirstGets:
    """Attach anew, and get each object once."""

    def __init__(self, stand: Stand, count: int, address: Any, dumped: list[bytes]) -> None:
        self._stand, self._key, self._address, self._dumped = stand, str(count), address, dumped

    def before(self) -> None:
        kept = self._stand.kept
        kept[self._key].close()
        kept[self._key] = peer = self._stand.kind.attach(self._address)
        handles = [peer.load(each) for each in self._dumped]
        self._get, self._handles = peer.get, handles * (PICKED // len(handles))
        following = itertools.cycle(handles).__next__
        self._stand.operations[f"{GET} {self._key}"] = Operation(lambda: peer.get(following()))

    def run(self) -> None:
        get = self._get
        for handle in self._handles:
            get(handle)


def prepare_attach(stand: Stand, count: int, address: Any) -> None:
    """Prepare to attach and detach."""
    stand.operations[f"{ATTACH} {count}"] = Operation(
        partial(stand.kind.attach, address), undo=_close
    )


def _close(peer: Any) -> None:
    peer.close()
