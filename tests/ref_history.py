"""Processes put objects without a key and delete those of each other: is each object one object?

    python tests/ref_history.py --operations 1000000 --seed 7

Such objects come and go without the lock (see `shmstore._spares`). Workers note what they do, and
when; some are killed, or stopped for a moment. Afterwards it must hold of each object:

* who gets it sees what was put, as long as no delete of it has returned;
* it is there as long as no delete of it has begun, also for who only reads;
* of all who delete it exactly one is told that it did, and then it is gone.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import proofs
from stores import exit_code, forked

from shmstore import ObjectNotFoundError, ObjectRef, Store, StoreFullError

WORKERS: Final = 4
PUT, GET, DELETE = 1, 2, 3
MISSED, FOUND, CUT_SHORT = 0, 1, 2
_WORDS: Final = 8  # of a record: KIND GENERATION SLOT NBYTES BEGAN ENDED RESULT OWN
KIND, GENERATION, SLOT, NBYTES, BEGAN, ENDED, RESULT, OWN = range(_WORDS)
# Threads take turns so often that some of them do in the middle of every kind of step.
SWITCH_S: Final = 2e-6

_NEVER: Final = np.iinfo(np.int64).max
_RECENT: Final = 64


@dataclass(frozen=True)
class Scenario:
    """A kind of history.

    Attributes
    ----------
    sizes
        Of arrays; 0: something that lies in its slot.
    kept
        How many objects of its own a worker leaves before it deletes some.
    threads
        Of each process; each is a worker.
    kills, stops
        Whether processes are killed, or stopped for a moment.
    options
        Of the store.
    """

    sizes: tuple[int, ...] = (0,)
    kept: int = 12
    threads: int = 1
    kills: bool = False
    stops: bool = False
    options: dict[str, Any] = field(default_factory=dict)


SCENARIOS: Final[dict[str, Scenario]] = {
    "small": Scenario(),
    "small, kills": Scenario(kills=True, stops=True),
    "arrays": Scenario(sizes=(100, 1000)),
    "arrays, kills": Scenario(sizes=(1000,), kills=True, stops=True),
    "arrays, large": Scenario(sizes=(20_000,), kills=True),
    "arrays, little room": Scenario(
        sizes=(1000, 9000), kept=40, kills=True, options={"capacity": 1 << 20}
    ),
    "everything": Scenario(sizes=(0, 200, 1000), kills=True, stops=True),
    "threads": Scenario(sizes=(0, 0, 200), threads=2),
    "threads, kills": Scenario(sizes=(0, 0, 200), threads=2, kills=True, stops=True),
}


class Journal:
    """What one worker has done: records in memory that survives it."""

    def __init__(self, room: int) -> None:
        self._memory = mmap.mmap(-1, 8 * (1 + room * _WORDS))
        self._words = np.frombuffer(self._memory, np.int64)
        self.rows = self._words[1:].reshape(room, _WORDS)

    def __len__(self) -> int:
        return int(self._words[0])

    def left(self) -> int:
        """Return how many records there is room for."""
        return len(self.rows) - len(self)

    def begin(self, kind: int, ref: ObjectRef | None) -> Any:
        """Note that something begins; return its record."""
        row = self.rows[len(self)]
        row[:] = 0  # somebody may have been killed here
        if ref is not None:
            self.describe(row, ref)
        row[RESULT], row[BEGAN], row[KIND] = CUT_SHORT, time.monotonic_ns(), kind
        self._words[0] += 1
        return row

    @staticmethod
    def describe(row: Any, ref: ObjectRef) -> None:
        """Note which object it is."""
        row[SLOT], row[NBYTES] = ref._slot, ref._nbytes
        row[GENERATION] = ref._generation

    @staticmethod
    def end(row: Any, result: int) -> None:
        """Note what it came to."""
        row[ENDED] = time.monotonic_ns()
        row[RESULT] = result


class Worker:
    """One process that works, on objects of its own and of others."""

    def __init__(
        self, store: Store, scenario: Scenario, number: int, journals: list[Journal], seed: int
    ) -> None:
        self.store, self.scenario, self.number, self.journals = store, scenario, number, journals
        self.journal = journals[number]
        self.random = random.Random(seed)
        self.own: list[ObjectRef] = []

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until there is no room for more records, or until told to stop."""
        actions = (self.put, self.get, self.delete_own, self.delete_of_others)
        while self.journal.left() > 2 and not stop():
            for action in self.random.choices(actions, (6, 4, 4, 1), k=50):
                if self.journal.left() > 2:
                    action()

    def put(self) -> None:
        """Put an object that says by whom it is."""
        size = self.random.choice(self.scenario.sizes)
        stamp = self.number << 40 | len(self.journal) << 1
        row = self.journal.begin(PUT, None)
        session: Any = self.store._session
        following = session.spares.following
        try:
            ref = self.store.put(np.full(size, stamp) if size else (stamp, "x", stamp))
        except StoreFullError:
            self.journal.end(row, MISSED)
            for ref in self.own[: len(self.own) // 2]:
                if self.journal.left() > 2:
                    self._delete(ref)
            del self.own[: len(self.own) // 2]
            return
        row[OWN] = ref._generation == following
        self.journal.describe(row, ref)
        self.journal.end(row, FOUND)
        self.own.append(ref)

    def get(self) -> None:
        """Look at an object of anybody."""
        ref = self._of(self.random.choice(self.journals))
        if ref is None:
            return
        row = self.journal.begin(GET, ref)
        try:
            value = self.store.get(ref)
        except ObjectNotFoundError:
            self.journal.end(row, MISSED)
            return
        assert_whole(value)
        self.journal.end(row, FOUND)
        if isinstance(value, np.ndarray):  # a view: nobody may change it, whoever deletes it
            time.sleep(self.random.choice((0, 0, 1e-4)))
            assert_whole(value)

    def delete_own(self) -> None:
        """Delete what this worker has put, the last or the first."""
        if len(self.own) > self.scenario.kept:
            self._delete(self.own.pop(self.random.choice((0, -1))))

    def delete_of_others(self) -> None:
        """Delete what somebody has put, perhaps in the same moment as others do."""
        ref = self._of(self.random.choice(self.journals))
        if ref is not None:
            self._delete(ref)

    def _delete(self, ref: ObjectRef) -> None:
        row = self.journal.begin(DELETE, ref)
        before = self.store._session.spares.count  # type: ignore[union-attr]
        deleted = self.store.discard(ref)
        row[OWN] = self.store._session.spares.count > before  # type: ignore[union-attr]
        self.journal.end(row, FOUND if deleted else MISSED)

    def _of(self, journal: Journal) -> ObjectRef | None:
        """Return a reference to something that was put not long ago."""
        count = len(journal)
        rows = journal.rows[max(0, count - _RECENT) : count]
        rows = rows[(rows[:, KIND] == PUT) & (rows[:, RESULT] == FOUND)]
        if not len(rows):
            return None
        row = rows[self.random.randrange(len(rows))]
        session: Any = self.store._session
        place = int(row[SLOT]), int(row[GENERATION]), int(row[NBYTES])
        return ObjectRef(session.uuid, session.path_text, *place)


def assert_whole(value: Any) -> None:
    """Prove that an object is of one piece."""
    if isinstance(value, tuple):
        assert value[0] == value[2], f"two objects in one: {value}"
    else:
        assert (value == value[0]).all(), f"two objects in one: {set(value.tolist())}"


class Run:
    """One scenario."""

    def __init__(self, scenario: Scenario, store: Store, operations: int, seed: int) -> None:
        self.scenario, self.store = scenario, store
        self.random = random.Random(seed)
        workers = WORKERS * scenario.threads
        self.journals = [Journal(operations // workers) for _ in range(workers)]
        self.kills = self.stops = 0
        self._alive: dict[int, int] = {}

    def work(self) -> None:
        """Let all work, and disturb them."""
        for number in range(WORKERS):
            self._start(number)
        try:
            while self._alive:
                time.sleep(self.random.uniform(0.002, 0.02))
                self._disturb()
                for pid in list(self._alive):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        del self._alive[pid]
                        assert not status, f"a worker ended with {status}"
        finally:
            for pid in self._alive:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _start(self, number: int) -> None:
        parent = os.getpid()
        workers = [
            Worker(self.store, self.scenario, at, self.journals, self.random.getrandbits(32))
            for at in range(number, len(self.journals), WORKERS)
        ]

        def be_workers() -> None:
            sys.setswitchinterval(SWITCH_S)
            failed: list[BaseException] = []
            threads = [threading.Thread(target=work, args=(w, failed)) for w in workers[1:]]
            for thread in threads:
                thread.start()
            work(workers[0], failed)
            for thread in threads:
                thread.join()
            if failed:
                raise failed[0]

        def work(worker: Worker, failed: list[BaseException]) -> None:
            try:
                worker.run(lambda: bool(failed) or os.getppid() != parent)
            except BaseException as error:
                failed.append(error)

        self._alive[forked(be_workers)] = number

    def _disturb(self) -> None:
        pid = self.random.choice(sorted(self._alive))
        if self.scenario.stops and self.random.random() < 0.5:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.random.uniform(0.0005, 0.01))
            os.kill(pid, signal.SIGCONT)
            self.stops += 1
        if self.scenario.kills and self.random.random() < 0.3:
            os.kill(pid, signal.SIGKILL)
            number = self._alive.pop(pid)
            if exit_code(pid):
                self.kills += 1
                self.store.recover()
                self._start(number)

    # --- what must be true ---------------------------------------------------------------------

    def rows(self) -> Any:
        """Return all records."""
        return np.concatenate([journal.rows[: len(journal)] for journal in self.journals])

    def wrong(self) -> Iterator[str]:
        """Tell which objects are not one object."""
        session: Any = self.store._session
        present = {word >> 8 for word, _ in session.slots.present()}
        by_object: dict[int, list[Any]] = {}
        for row in self.rows().tolist():
            if row[GENERATION]:
                by_object.setdefault(row[GENERATION], []).append(row)
        for generation, rows in by_object.items():
            yield from judged(generation, rows, present)
        unknown = len(present - by_object.keys())
        if unknown > self.kills * self.scenario.threads:
            yield f"{unknown} objects that nobody knows, {self.kills} were killed"


def judged(generation: int, rows: list[Any], present: set[int]) -> Iterator[str]:
    """Tell what is wrong with the history of one object."""
    puts = [row for row in rows if row[KIND] == PUT]
    deletes = [row for row in rows if row[KIND] == DELETE]
    done = [row for row in deletes if row[RESULT] == FOUND]
    maybe = [row[BEGAN] for row in deletes if row[RESULT] != MISSED]
    if len(puts) != 1:
        yield f"object {generation} was put {len(puts)} times"
    if len(done) > 1:
        yield f"object {generation} was deleted {len(done)} times: {done}"
    if done and generation in present:
        yield f"object {generation} was deleted and is there"
    if not maybe and generation not in present:
        yield f"object {generation} is gone, and nobody has deleted it"
    gone = done[0][ENDED] if done else _NEVER
    first = min(maybe, default=_NEVER)
    for row in rows:
        if row[KIND] == PUT or row[RESULT] == CUT_SHORT:
            continue
        if row[RESULT] == FOUND and row[KIND] == GET and row[BEGAN] > gone:
            yield f"object {generation} was got after it was deleted: {row}"
        if row[RESULT] == MISSED and row[ENDED] < first:
            yield f"object {generation} was missed before anybody deleted it: {row}"


def run(scenario: Scenario, operations: int, seed: int) -> dict[str, int]:
    """Let a scenario run and judge it; return what was counted."""
    options = {"capacity": 256 << 20, "max_objects": 1 << 16, **scenario.options}
    with Store.create(**options) as store:
        under_way = Run(scenario, store, operations, seed)
        under_way.work()
        assert store.check() == []
        wrong = list(under_way.wrong())
        assert not wrong, wrong[:5]
        rows = under_way.rows()
    ended = rows[rows[:, RESULT] == FOUND]
    own = ended[ended[:, OWN] != 0]
    return {
        "operations": len(rows),
        "puts": int((ended[:, KIND] == PUT).sum()),
        "without the lock": int((own[:, KIND] == PUT).sum()),
        "deletes": int((ended[:, KIND] == DELETE).sum()),
        "taken back": int((own[:, KIND] == DELETE).sum()),
        "kills": under_way.kills,
        "stops": under_way.stops,
    }


def tell(name: str, counts: dict[str, int]) -> None:
    """Print what was counted, and note it."""
    print(f"{name:<24}", *(f"{what} {count:,};" for what, count in counts.items()), flush=True)
    noted = {what.replace(" ", "_"): count for what, count in counts.items()}
    proofs.note(f"references: {name}", **noted)


def main() -> int:
    """Run the scenarios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=1_000_000, help="in all scenarios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario")
    chosen = parser.parse_args()
    names = [chosen.only] if chosen.only else list(SCENARIOS)
    with tempfile.TemporaryDirectory(prefix="shmstore-history-", dir="/dev/shm") as root:
        os.environ["SHMSTORE_ROOT"] = root
        for name in names:
            tell(name, run(SCENARIOS[name], chosen.operations // len(names), chosen.seed))
        assert not list(Path(root).iterdir())
    return 0


if __name__ == "__main__":
    sys.exit(main())
