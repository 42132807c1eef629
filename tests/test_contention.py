"""Many processes want the lock at once: each gets it, none spins for ever, none sleeps for long."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, exit_code, forked, wait_until

from shmstore import LockTimeoutError, Store
from shmstore._sharing import lock

PROCESSES = 64

# What a sleep takes at least, and an attempt at the lock.
SLEEP_S, ATTEMPT_S = 55e-6, 1e-6


class Clock:
    """A clock that goes on when somebody sleeps or tries, and a lock that is free at some time."""

    def __init__(self, free_at: float) -> None:
        self.now, self.free_at, self.attempts = 0.0, free_at, 0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time go on."""
        self.now += seconds + SLEEP_S

    def lock_descriptor(self, _: int) -> bool:
        """Try to take the lock."""
        self.attempts += 1
        self.now += ATTEMPT_S
        return self.now >= self.free_at


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that waits for a lock which is free after some seconds."""

    def wait(free_at: float, timeout_s: float = 30.0) -> tuple[bool, Clock]:
        clock = Clock(free_at)
        monkeypatch.setattr(lock, "time", clock)
        monkeypatch.setattr(lock, "lock_descriptor", clock.lock_descriptor)
        return lock.hold(0, timeout_s), clock

    return wait


@pytest.mark.parametrize("free_at", [5e-6, 20e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 20.0])
def test_lock_that_comes_free_is_had_soon_after_few_looks(waited: Any, free_at: float) -> None:
    """Not much later than it is free, in comparison, and without asking all the time."""
    held, clock = waited(free_at)
    assert held
    assert clock.now - free_at <= free_at / 4 + 2 * SLEEP_S
    assert clock.attempts <= 30 + free_at / 1e-3


def test_lock_that_stays_taken_is_given_up_in_time(waited: Any) -> None:
    """After the timeout, not much later, and at once where nobody wants to wait."""
    held, clock = waited(1e9, timeout_s=2.0)
    assert not held
    assert 2.0 <= clock.now <= 2.1
    held, clock = waited(1e9, timeout_s=0.0)
    assert not held
    assert clock.now <= SLEEP_S


def test_put_while_the_holder_is_stopped_says_so_after_the_timeout(make_store: MakeStore) -> None:
    """A stopped process keeps its lock; the others are told, and go on when it is gone."""
    store = make_store(lock_timeout=0.2)
    session: Any = store._session

    def stop() -> None:
        with Store.attach(store.path) as own:
            held: Any = own._session
            held.lock.run(os.kill, os.getpid(), signal.SIGSTOP)

    pid = forked(stop)
    os.waitpid(pid, os.WUNTRACED)
    with pytest.raises(LockTimeoutError, match=f"pid {pid}"):
        store.put(1)
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)
    assert store.put(1).get() == 1
    assert session.lock.run(lambda: True)


def test_64_processes_on_one_store_get_what_the_others_put(make_store: MakeStore) -> None:
    """All are attached at the same time; each puts, overwrites, reads its neighbour, and leaves."""
    store = make_store(capacity="16MiB")

    def work(number: int) -> None:
        with Store.attach(store.path) as own:
            own[f"array-{number}"] = np.full(1000, number)
            wait_until(lambda: len(own) >= PROCESSES)
            neighbour = own[f"array-{(number + 1) % PROCESSES}"]
            for turn in range(5):
                own[f"count-{number % 4}"] = turn
            assert (neighbour == (number + 1) % PROCESSES).all()
            own[f"done-{number}"] = True
            wait_until(lambda: f"done-{(number + 1) % PROCESSES}" in own)

    pids = [forked(lambda number=number: work(number)) for number in range(PROCESSES)]
    assert [exit_code(pid) for pid in pids] == [0] * PROCESSES
    assert len(store) == 2 * PROCESSES + 4
    assert store.recover().clients == PROCESSES  # a forked child that just ends does not leave


def test_processes_that_put_all_the_time_get_their_turn(make_store: MakeStore) -> None:
    """In a time in which all together put thousands of objects each of eight puts some of them."""
    store = make_store(capacity="16MiB")

    def work(number: int) -> None:
        with Store.attach(store.path) as own:
            done, end = 0, time.monotonic() + 0.5
            while time.monotonic() < end:
                own["shared"] = number
                done += 1
            own[f"done-{number}"] = done

    pids = [forked(lambda number=number: work(number)) for number in range(8)]
    assert [exit_code(pid) for pid in pids] == [0] * 8
    done = [store[f"done-{number}"] for number in range(8)]
    assert min(done) >= max(done) / 20
