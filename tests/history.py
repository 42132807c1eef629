"""Processes work on a few keys at once: is the history of each key that of a register?

    python tests/history.py --operations 1000000 --seed 7

Each scenario is a store with some workers; some are killed or stopped at random moments. What they
did is recorded (`history_records`) and checked key by key (`history_checker`).
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import history_records as R
import proofs
from history_checker import Operation, Violation, violation
from history_records import Recorder
from history_work import Worker
from stores import exit_code, forked

from shmstore import Store

# How often somebody is killed when the processes are disturbed.
KILLED_SHARE: Final = 0.7

# Threads take turns so often that some of them do in the middle of every kind of step.
SWITCH_S: Final = 2e-6

ALL_SHAPES: Final = ("number", "dict", "array", "nested")

# Objects that have an extent, in stores that have no room for all of them.
FRAMED: Final = ("array", "nested")
EVICTING: Final = {"capacity": "192KiB", "on_full": "evict"}
SPILLING: Final = {"capacity": "192KiB", "on_full": "spill"}


@dataclass(frozen=True)
class Scenario:
    """A kind of history.

    Attributes
    ----------
    shapes
        What the objects are: names of `history_work.SHAPES`.
    writers, readers
        Processes that do everything, and processes that attach read-only.
    threads
        Threads of each process.
    keys
        How few they fight for.
    pause_s
        See `Worker`.
    kills, stops
        Whether processes are killed, or stopped for a moment, as they work.
    may_vanish
        Whether objects may go by themselves.
    options
        Of the store.
    """

    shapes: tuple[str, ...] = ALL_SHAPES
    writers: int = 4
    readers: int = 0
    threads: int = 1
    keys: int = 4
    pause_s: float = 0.0
    kills: bool = False
    stops: bool = False
    may_vanish: bool = False
    options: dict[str, Any] = field(default_factory=dict)


SCENARIOS: Final[dict[str, Scenario]] = {
    "numbers": Scenario(shapes=("number",)),
    "small dicts": Scenario(shapes=("dict",)),
    "arrays": Scenario(shapes=("array",)),
    "everything": Scenario(writers=3, readers=1, threads=2),
    "locked reads": Scenario(options={"locked_reads": True}),
    "little room": Scenario(FRAMED, options={"capacity": "192KiB"}),
    "one key": Scenario(writers=2, readers=4, keys=1, pause_s=5e-4),
    "stops": Scenario(stops=True, readers=2),
    "kills": Scenario(kills=True, stops=True, readers=1),
    "kills, locked reads": Scenario(kills=True, options={"locked_reads": True}),
    "evict": Scenario(FRAMED, may_vanish=True, readers=1, options=EVICTING),
    "evict, kills": Scenario(FRAMED, may_vanish=True, kills=True, options=EVICTING),
    "spill": Scenario(FRAMED, keys=12, readers=1, options=SPILLING),
    "spill, kills": Scenario(FRAMED, keys=12, kills=True, stops=True, options=SPILLING),
    "time is over": Scenario(may_vanish=True, readers=1, options={"ttl": 0.004}),
    "kills, threads": Scenario(kills=True, writers=2, threads=2),
}


@dataclass
class Outcome:
    """What came of one scenario; `made_room` counts objects that left memory by themselves."""

    operations: int
    cut_short: int
    kills: int
    stops: int
    seconds: float
    kinds: set[str]
    made_room: int
    violations: dict[str, Violation]


# --- a run ----------------------------------------------------------------------------------------


class Run:
    """One scenario under way.

    Parameters
    ----------
    scenario
        What is done.
    store
        A store that this process owns.
    folder
        For the files of the recorders.
    seed
        Of what is random here. The workers have seeds of their own, and the rest is up to the
        scheduler.
    """

    def __init__(self, scenario: Scenario, store: Store, folder: Path, seed: int) -> None:
        self.scenario = scenario
        self.store = store
        self.folder = folder
        self.random = random.Random(seed)
        self.kills = self.stops = 0
        self._stop = mmap.mmap(-1, mmap.PAGESIZE)
        self._pid = os.getpid()
        self._numbers = iter(range(seed % 1000 * 1000, 1 << 22))
        self._alive: dict[int, tuple[list[Path], bool]] = {}
        self.files: list[Path] = []
        self._over: dict[Path, int] = {}

    def work(self, operations: int) -> None:
        """Let the workers do so many operations in all."""
        scenario = self.scenario
        processes = scenario.writers + scenario.readers
        share = operations // (processes * scenario.threads) + 2 * scenario.keys
        for number in range(processes):
            self._start([share] * scenario.threads, readonly=number >= scenario.writers)
        try:
            while self._alive:
                self._disturb()
                self._gather(os.WNOHANG)
        finally:
            self._end_all()
        self._look_once_more()

    def operations(self) -> dict[int, list[Operation]]:
        """Return what was recorded, by key."""
        by_key: dict[int, list[Operation]] = defaultdict(list)
        now = time.monotonic_ns()
        for path in self.files:
            for key, operation in R.read(path, self._over.get(path, now)):
                by_key[key].append(operation)
        return by_key

    def _start(self, shares: list[int], *, readonly: bool) -> None:
        numbers = [next(self._numbers) for _ in shares]
        paths = [self.folder / f"{number}" for number in numbers]
        recorders = [Recorder(path, share) for path, share in zip(paths, shares, strict=True)]
        pid = forked(lambda: self._be_workers(numbers, recorders, readonly=readonly))
        self._alive[pid] = paths, readonly
        self.files += paths

    def _be_workers(self, numbers: list[int], recorders: list[Recorder], *, readonly: bool) -> None:
        store = Store.attach(self.store.path, readonly=readonly) if readonly else self.store
        scenario = self.scenario
        if scenario.threads > 1:
            sys.setswitchinterval(SWITCH_S)
        workers = [
            Worker(store, recorder, number, scenario.keys, scenario.shapes, scenario.pause_s)
            for number, recorder in zip(numbers, recorders, strict=True)
        ]
        failed: list[BaseException] = []

        def run(worker: Worker) -> None:
            try:
                worker.run(lambda: bool(self._stop[0]) or os.getppid() != self._pid)
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=run, args=[worker]) for worker in workers[1:]]
        for thread in threads:
            thread.start()
        run(workers[0])
        for thread in threads:
            thread.join()
        assert not failed

    def _disturb(self) -> None:
        """Wait a little; kill or stop somebody meanwhile, where that belongs to the scenario."""
        time.sleep(self.random.uniform(0.002, 0.03))
        if self.scenario.stops:
            self._stop_for_a_moment(set(self.random.choices(sorted(self._alive), k=2)))
        if self.scenario.kills and self.random.random() < KILLED_SHARE:
            self._kill(self.random.choice(sorted(self._alive)))

    def _stop_for_a_moment(self, pids: set[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(0.0005, 0.02))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        self.stops += len(pids)

    def _kill(self, pid: int) -> None:
        """Kill one. When the dead have been buried nothing that it had begun can happen."""
        os.kill(pid, signal.SIGKILL)
        if exit_code(pid) == 0:
            del self._alive[pid]
            return
        self.kills += 1
        paths, readonly = self._alive.pop(pid)
        self.store.recover()
        over = time.monotonic_ns()
        self._over.update(dict.fromkeys(paths, over))
        room = [R.room_in(path) for path in paths]
        if min(room) > 2 * self.scenario.keys:
            self._start(room, readonly=readonly)

    def _gather(self, how: int) -> None:
        for pid in list(self._alive):
            ended, status = os.waitpid(pid, how)
            if ended:
                del self._alive[pid]
                code = os.waitstatus_to_exitcode(status)
                assert code == 0, f"a worker ended with {code}: the reason stands on stderr"

    def _end_all(self) -> None:
        self._stop[0] = 1
        while self._alive:
            self._gather(0)

    def _look_once_more(self) -> None:
        """Read each key in peace: what was put last must be there."""
        number = next(self._numbers)
        path = self.folder / f"{number}"
        self.files.append(path)
        keys = self.scenario.keys
        last = Worker(self.store, Recorder(path, keys), number, keys, self.scenario.shapes)
        for key in range(keys):
            last.get(key)


def run(scenario: Scenario, operations: int, folder: Path, seed: int) -> Outcome:
    """Let a scenario run and check its history; the store must be sound afterwards."""
    began = time.monotonic()
    options = {"capacity": "16MiB", **scenario.options}
    files = folder / "spilled"
    if options.get("on_full") == "spill":
        options["spill_dir"] = files
    with Store.create(**options) as store:
        under_way = Run(scenario, store, folder, seed)
        under_way.work(operations)
        assert store.check() == []
        stats = store.stats()
        store.clear()
        store.recover()
        assert store.check() == []
        assert store.stats().used == 0, "memory is lost"
        assert store.stats().clients == 1
    assert not files.exists() or list(files.iterdir()) == [], "files of objects are left"
    by_key = under_way.operations()
    violations: dict[str, Violation] = {}
    for key, history in sorted(by_key.items()):
        found = violation(history, may_vanish=scenario.may_vanish)
        if found is not None:
            violations[f"key-{key}"] = found
    return Outcome(
        sum(map(len, by_key.values())),
        sum(operation.optional for history in by_key.values() for operation in history),
        under_way.kills,
        under_way.stops,
        time.monotonic() - began,
        set().union(*map(R.kinds_in, under_way.files)),
        stats.evictions + stats.expirations + stats.spills,
        violations,
    )


# --- from the command line ------------------------------------------------------------------------


@contextmanager
def own_root() -> Iterator[Path]:
    """Give all stores a root of their own, which must be empty at the end."""
    shared_memory = Path("/dev/shm")
    where = shared_memory if shared_memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="shmstore-history-", dir=where) as name:
        os.environ["SHMSTORE_ROOT"] = name
        yield Path(name)
        left = [str(path) for path in Path(name).rglob("*")]
        assert left == [], f"files of stores are left in the root: {left}"


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios; return 1 when a history cannot be explained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=1_000_000, help="in all scenarios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario")
    chosen = parser.parse_args(arguments)
    names = [chosen.only] if chosen.only else list(SCENARIOS)
    bad = False
    with own_root():
        for name in names:
            with tempfile.TemporaryDirectory(prefix="shmstore-history-") as folder:
                outcome = run(
                    SCENARIOS[name], chosen.operations // len(names), Path(folder), chosen.seed
                )
            tell(name, outcome)
            bad = bad or bool(outcome.violations)
    return int(bad)


def tell(name: str, outcome: Outcome) -> None:
    """Print what came of a scenario, and note it."""
    print(
        f"{name:20} {outcome.operations:9,} operations, {outcome.cut_short:4} cut short,"
        f" {outcome.made_room:5} objects gave way,"
        f" {outcome.kills:4} kills, {outcome.stops:5} stops, {outcome.seconds:6.1f} s",
        flush=True,
    )
    for key, found in outcome.violations.items():
        print(f"{key}: {found}")
    proofs.note(
        f"history: {name}",
        operations=outcome.operations,
        cut_short=outcome.cut_short,
        made_room=outcome.made_room,
        kills=outcome.kills,
        stops=outcome.stops,
        not_linearizable=len(outcome.violations),
    )


if __name__ == "__main__":
    sys.exit(main())
