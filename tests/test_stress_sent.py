"""Views are sent, sent on and inherited while their owners delete and refill as fast as they can.

Anybody may be killed at any moment. Whoever holds a view verifies it again and again.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, lock_free_only, wait_until

from shmstore import ObjectNotFoundError, Store, StoreFullError, _refilling, _traveling, tickets
from shmstore._memory import layout as L
from shmstore._sharing.seats import _SLOT_BITS, Seat

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("process_helpers")]

SECONDS = float(os.environ.get("SHMSTORE_STRESS_SECONDS", "12"))

OWNERS, RECEIVERS = 2, 3
SIZES = (100, 1000, 8000, 20_000)  # elements; only the last is large enough for tickets
MOST_HELD = 12
CHILD_LIVES_S = 0.2
WORDS = 2
SENT, ARRIVED = range(WORDS)


class Member:
    """One process that takes part.

    Parameters
    ----------
    path
        Of the store.
    folder
        Where the sockets are, the counts, and the file that says that it is over.
    number
        Which one: owners come first, then receivers, of which the last only reads.
    """

    def __init__(self, path: str, folder: str, number: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.number = number
        self.folder = Path(folder)
        readonly = number == OWNERS + RECEIVERS - 1
        self.store = Store.attach(path, readonly=readonly)
        with (self.folder / "counts").open("r+b") as file:
            self.all_counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self.counts = self.all_counts[number * WORDS : (number + 1) * WORDS]
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(0)
        self.held: list[tuple[int, Any, Any]] = []

    def go_on(self) -> bool:
        """Return whether it is not over yet."""
        return not (self.folder / "over").exists()

    def send(self, number: int, view: np.ndarray, hold: Any = None) -> None:
        """Send a view to some receiver, by message or by ticket; who is not there gets nothing."""
        ticket = hold and hold.ticket()
        referred = _traveling.refer(view, keep=self.random.random() < 0.1)
        what: Any = ticket if ticket is not None else referred and referred[1]
        if what is None:
            return
        to = self.random.randrange(OWNERS, OWNERS + RECEIVERS)
        with contextlib.suppress(OSError):
            self.socket.sendto(pickle.dumps((number, what)), str(self.folder / f"socket-{to}"))
            self.counts[SENT] += 1

    def verify(self) -> None:
        """Look at all that is held."""
        for number, view, _ in self.held:
            if not (view == number).all():
                raise AssertionError(f"{number} was sent, there is {np.unique(view)}")


def look_slowly(random_: random.Random) -> None:
    """From now on let this process be interrupted while it looks for pins."""
    real = Seat.pinned

    def pinned(seat: Seat) -> list[int]:
        if random_.random() < 0.5:
            return real(seat)
        pins = []
        for cell in range(L.FIRST_CELL, L.FIRST_CELL + seat._count()):
            if random_.random() < 0.02:
                time.sleep(random_.uniform(0, 0.0005))
            pins.append(seat.pins[cell] & _SLOT_BITS)
        return [pin for pin in pins if pin]

    Seat.pinned = pinned  # type: ignore[method-assign]


def own(path: str, folder: str, number: int, seed: int) -> None:
    """Put, send, delete and put again."""
    member = Member(path, folder, number, seed)
    look_slowly(member.random)
    _refilling._SHARED_SLOTS = 2 if seed % 2 else 4  # to look for pins as often as can be
    store, random_ = member.store, member.random
    turn = 0
    while turn % 64 or member.go_on():
        if turn % 64 == 0:
            sizes = random_.choices(SIZES, k=2)
        turn += 1
        value = time.monotonic_ns()
        array = np.full(random_.choice(sizes), value)
        with contextlib.suppress(StoreFullError):
            if array.size == SIZES[-1] and random_.random() < 0.5:
                view, hold = tickets.deposit(store, array)
                ref = hold.ref
            else:
                ref, hold = store.put(array), None
                view = ref.get()
            before = random_.random() < 0.5
            if before:
                ref.delete()
            member.send(value, view, hold)
            if random_.random() < 0.8:
                member.held.append((value, view, hold))
            del view
            if not before:
                ref.delete()
        while len(member.held) > random_.randrange(1, 6):
            member.held.pop(0)
        for _ in range(random_.randrange(12)):
            with contextlib.suppress(StoreFullError):
                store.put(np.full(random_.choice(sizes), -1)).delete()
    member.verify()


def receive(path: str, folder: str, number: int, seed: int) -> None:
    """Receive, verify, send on, and beget children who hold the same."""
    member = Member(path, folder, number, seed)
    name, random_ = member.folder / f"socket-{number}", member.random
    name.unlink(missing_ok=True)
    member.socket.bind(str(name))
    member.socket.settimeout(0.002)
    turn = 0
    while turn % 64 or member.go_on():
        turn += 1
        try:
            value, what = pickle.loads(member.socket.recv(4096))
        except TimeoutError:
            member.verify()
            continue
        try:
            if isinstance(what, tickets.Ticket):
                view, hold = tickets.redeem(what)
            else:
                view, hold = _traveling.arrive(*what), None
        except ObjectNotFoundError:  # too late
            continue
        member.counts[ARRIVED] += 1
        member.held.append((value, view, hold))
        if random_.random() < 0.8:  # what is deleted is passed from hand to hand
            member.send(value, view, hold)
            time.sleep(random_.uniform(0, 0.001))
            member.verify()
            member.held.pop()
        del view, hold
        while len(member.held) > random_.randrange(MOST_HELD):
            member.held.pop(random_.randrange(len(member.held)))
        if random_.random() < 0.02:
            beget(member)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def beget(member: Member) -> None:
    """Fork a child that holds what its parent holds, and sends it."""
    if os.fork():
        member.held.clear()
        return
    code = 1
    try:
        end = time.monotonic() + CHILD_LIVES_S
        while time.monotonic() < end and member.held:
            member.verify()
            number, view, hold = member.random.choice(member.held)
            member.send(number, view, hold)
            del view, hold
            time.sleep(0.001)
            if member.random.random() < 0.1:
                member.held.pop(member.random.randrange(len(member.held)))
        code = 0
    except BaseException:
        traceback.print_exc()
        (member.folder / "wrong").touch()
    finally:
        os._exit(code)


class Crowd:
    """All processes that take part, each of which comes anew when it was killed.

    Parameters
    ----------
    path, folder
        See `Member`.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._place = path, str(folder)
        self._over = folder / "over"
        self._random = random.Random(os.getpid())
        self.killed = 0
        self.members = [self._start(number) for number in range(OWNERS + RECEIVERS)]

    def _start(self, number: int) -> Any:
        work = own if number < OWNERS else receive
        seed = self._random.randrange(1 << 30)
        process = self._context.Process(target=work, args=(*self._place, number, seed))
        process.start()
        return process

    def kill_one(self) -> None:
        """Kill somebody; another comes in its place."""
        number = self._random.randrange(len(self.members))
        member = self.members[number]
        assert member.is_alive(), "the reason stands on stderr"
        os.kill(member.pid, signal.SIGKILL)
        member.join()
        self.killed += 1
        self.members[number] = self._start(number)

    def end(self) -> None:
        """Let all come to an end."""
        self._over.touch()
        for member in self.members:
            member.join()


@contextlib.contextmanager
def crowd(store: Store, folder: Path) -> Iterator[Crowd]:
    """Give processes that send views of a store to each other; all are gone afterwards."""
    with (folder / "counts").open("wb") as file:
        file.truncate((OWNERS + RECEIVERS) * WORDS * 8)
    everyone = Crowd(str(store.path), folder)
    try:
        yield everyone
    finally:
        everyone.end()
        # Children of the killed live a little longer.
        wait_until(lambda: store.recover() and len(store.clients()) == 1)


@lock_free_only
@pytest.mark.parametrize("traced", [False, True], ids=["plain", "traced"])
def test_views_that_are_sent_stay_the_same_whoever_dies(
    make_store: MakeStore, tmp_path: Path, *, traced: bool
) -> None:
    """Owners refill what is deleted; what arrives is what was sent, as long as it is held."""
    store = make_store(capacity="64MiB", max_objects=1 << 16, max_clients=64, trace_pins=traced)
    assert store._session.quick
    with crowd(store, tmp_path) as everyone:
        end = time.monotonic() + SECONDS / 2
        pause = random.Random(os.getpid())
        while time.monotonic() < end:
            time.sleep(pause.uniform(0.2, 1))
            everyone.kill_one()
            assert store.check() == []
            assert not (tmp_path / "wrong").exists(), "what was seen stands on stderr"
    assert [member.exitcode for member in everyone.members] == [0] * len(everyone.members)
    assert not (tmp_path / "wrong").exists()
    assert everyone.killed
    counts = np.fromfile(tmp_path / "counts", np.uint64).reshape(-1, WORDS).sum(0)
    assert counts.min() > 100
    assert store.check() == []
    store.recover()
    tickets.delete_orphans(store)  # of the killed
    assert store.check() == []
    store.recover()
    assert store.stats().used == 0


# --- threads --------------------------------------------------------------------------------------


def rob(path: str, folder: str, number: int, seed: int) -> None:
    """Take all the room there is, also what the others keep for their next puts."""
    member = Member(path, folder, number, seed)
    while member.go_on():
        refs = []
        with contextlib.suppress(StoreFullError):
            while True:
                refs.append(member.store.put(np.full(member.random.choice(SIZES), -1)))
        member.store.delete_many(refs)
        time.sleep(member.random.uniform(0, 0.02))


def work(store: Store, seed: int, seconds: float, sent: SimpleQueue[Any]) -> int:
    """Put, delete and put again, send to other threads and receive; return how often."""
    random_, held, turns = random.Random(seed), [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        turns += 1
        value = seed * 10**9 + turns
        try:
            ref = store.put(np.full(random_.choice(SIZES[1:3]), value))
        except StoreFullError:
            held.clear()
            continue
        view = ref.get()
        ref.delete()
        if random_.random() < 0.3:
            held.append((value, view))
        if random_.random() < 0.3:
            sent.put((value, _traveling.refer(view, keep=False)))
        del view
        with contextlib.suppress(Empty, ObjectNotFoundError):
            value, referred = sent.get_nowait()
            held.append((value, _traveling.arrive(*referred[1])))
        for value, kept in held:
            assert (kept == value).all(), f"{value} was put, there is {np.unique(kept)}"
        kept = None
        while len(held) > random_.randrange(1, 8):
            held.pop(random_.randrange(len(held)))
    return turns


@lock_free_only
def test_threads_refill_and_send_while_others_need_their_memory(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each has put stays the same as long as anybody holds it."""
    store = make_store(capacity="4MiB", max_objects=1 << 14)
    session: Any = store._session
    session.most_spare = 1 << 20
    monkeypatch.setattr(_refilling, "_SHARED_SLOTS", 4)
    (tmp_path / "counts").write_bytes(bytes(WORDS * 8))
    context = multiprocessing.get_context("forkserver")
    robber = context.Process(target=rob, args=(str(store.path), str(tmp_path), 0, 1))
    robber.start()
    interval, sent = sys.getswitchinterval(), SimpleQueue[Any]()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            working = [pool.submit(work, store, seed, SECONDS / 4, sent) for seed in range(4)]
            turns = [each.result() for each in working]
    finally:
        sys.setswitchinterval(interval)
        (tmp_path / "over").touch()
        robber.join()
    assert robber.exitcode == 0
    assert min(turns) > 20
    assert store.check() == []
