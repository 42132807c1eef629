"""The store lock: one at a time, whoever they are."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import rooms
from locking import COUNTER, COUNTING, HOLDING, LEFT, RIGHT, Place, place
from stores import in_threads

from shmstore._memory import layout as L
from shmstore._memory.descriptors import open_descriptor
from shmstore._sharing.lock import hold, let_noted
from shmstore.errors import LockTimeoutError

__all__ = ["place"]  # a fixture

# --- one at a time -------------------------------------------------------------------------------


def test_step_runs_under_the_lock_and_returns_its_result(place: Place) -> None:
    """Inside, the file is locked and the index marked; afterwards neither."""
    lock = place.lock(mark=5)

    def step(a: int, b: int) -> tuple[int, bool, int]:
        return a + b, place.is_free(), place.words[L.W_DIRTY]

    assert lock.run(step, 1, 2) == (3, False, 5)
    assert place.is_free()
    assert place.is_whole()
    assert place.mended == 0


def test_lock_without_a_mark_leaves_the_index_unmarked(place: Place) -> None:
    """A read-only client locks without writing anything."""
    assert place.lock(mark=0).run(lambda: place.words[L.W_DIRTY]) == 0


def test_threads_of_one_lock_take_turns(place: Place) -> None:
    """No count is lost between threads that share a session."""
    lock = place.lock()

    def step() -> None:
        value = place.words[COUNTER]
        time.sleep(0)
        place.words[COUNTER] = value + 1

    def work() -> None:
        for _ in range(100):
            lock.run(step)

    in_threads(*[work] * 6)
    assert place.words[COUNTER] == 600


def test_processes_take_turns(place: Place) -> None:
    """No count is lost between processes, and each sees whole changes only."""
    place.lock()
    with (
        rooms.Peer(COUNTING, place.folder, 1, 400) as first,
        rooms.Peer(COUNTING, place.folder, 2, 400) as second,
    ):
        for peer in (first, second):
            assert peer.hear() == "ready"
        for peer in (first, second):
            peer.tell()
        assert [first.wait(), second.wait()] == [0, 0]
    assert place.words[COUNTER] == 800
    assert place.is_whole()


def test_lock_can_be_held_through_one_descriptor_only(place: Place) -> None:
    """Two locks of one process exclude each other as two processes do."""
    first, second = place.lock(), place.lock(timeout_s=0.01)

    def try_second() -> None:
        with pytest.raises(LockTimeoutError):
            second.run(lambda: None)

    first.run(try_second)
    assert second.run(lambda: "free again") == "free again"


# --- waiting -------------------------------------------------------------------------------------


def test_lock_that_stays_taken_is_a_timeout_that_names_the_holder(place: Place) -> None:
    """The message says who holds it and what to do about it."""
    lock = place.lock(timeout_s=0.05)
    with rooms.Peer(HOLDING, place.folder, 7) as peer:
        assert peer.hear() == "inside"
        with pytest.raises(LockTimeoutError, match=r"0\.05 s.*client 6.*continue it") as caught:
            lock.run(lambda: None)
        assert (caught.value.facts["holder"], caught.value.facts["timeout_s"]) == ("client 6", 0.05)
        assert place.mended == 0
        peer.tell()
        assert peer.hear() == "outside"
    assert lock.run(lambda: "mine") == "mine"


def test_lock_waited_for_is_taken_as_soon_as_it_is_free(place: Place) -> None:
    """Who waits gets it when the holder goes, without an error."""
    lock = place.lock()
    with rooms.Peer(HOLDING, place.folder, 7) as peer:
        assert peer.hear() == "inside"
        got: list[bool] = []
        waiter = threading.Thread(target=lambda: got.append(lock.run(place.is_whole)))
        waiter.start()
        assert not got
        peer.tell()
        assert peer.hear() == "outside"
        waiter.join(timeout=60)
    assert got == [False]  # inside, the waiter's own mark is set
    assert (place.words[LEFT], place.words[RIGHT]) == (1, 1)
    assert place.mended == 0


def test_holder_stopped_makes_others_time_out_and_continued_goes_on(place: Place) -> None:
    """A stopped process keeps its lock: it is named, and nothing is taken away from it."""
    lock = place.lock(timeout_s=0.1)
    with rooms.Peer(HOLDING, place.folder, 3) as peer:
        assert peer.hear() == "inside"
        os.kill(peer.pid, signal.SIGSTOP)
        with pytest.raises(LockTimeoutError, match="client 2"):
            lock.run(lambda: None)
        assert place.words[LEFT] == 1
        assert place.words[RIGHT] == 0
        os.kill(peer.pid, signal.SIGCONT)
        peer.tell()
        assert peer.hear() == "outside"
        assert peer.wait() == 0
    assert lock.run(lambda: place.words[RIGHT]) == 1
    assert place.mended == 0


def test_hold_gives_up_after_its_timeout_only(place: Place) -> None:
    """A short wait ends with False, a lock that comes free in time with True."""
    place.lock()
    fds = [os.open(place.folder / "lock", os.O_RDWR) for _ in range(2)]
    assert hold(fds[0], 0.0)
    started = time.monotonic()
    assert not hold(fds[1], 0.05)
    assert time.monotonic() - started >= 0.05
    os.close(fds[0])
    assert hold(fds[1], 0.0)
    os.close(fds[1])


# --- re-entry ------------------------------------------------------------------------------------


def test_lock_taken_again_by_its_own_thread_is_an_error_at_once(place: Place) -> None:
    """A finalizer or handler that calls the store under the lock would wait for itself for ever."""
    lock = place.lock(timeout_s=1e6)

    def step() -> str:
        with pytest.raises(LockTimeoutError, match="this very thread") as caught:
            lock.run(lambda: None)
        return str(caught.value.facts["holder"])

    assert str(threading.get_ident()) in lock.run(step)
    assert place.mended == 0
    assert lock.run(lambda: "mine") == "mine"


def test_lock_held_by_one_thread_makes_another_wait(place: Place) -> None:
    """Only the holder itself is refused; other threads wait for their turn."""
    lock = place.lock()
    order: list[str] = []

    def other() -> None:
        lock.run(order.append, "other")

    def step() -> threading.Thread:
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.02)
        order.append("first")
        return thread

    lock.run(step).join(timeout=60)
    assert order == ["first", "other"]


# --- fork ----------------------------------------------------------------------------------------


def test_lock_of_a_forked_child_is_its_own(place: Place) -> None:
    """After the fork the child holds the file through a descriptor that its parent has not."""
    lock, childs = place.lock(), place.lock(timeout_s=0.01)
    held: list[Any] = []
    lock.hold_threads(held)
    childs.replace_descriptor(open_descriptor(place.folder / "lock", os.O_RDWR))
    let_noted(held)
    lock.let_threads()

    def step() -> None:
        with pytest.raises(LockTimeoutError):
            childs.run(lambda: None)

    lock.run(step)
    assert childs.run(lambda: "mine") == "mine"


def test_threads_held_across_a_fork_wait(place: Place) -> None:
    """No thread of the parent is in the middle of a change when the child is born."""
    lock = place.lock()
    held: list[Any] = []
    lock.hold_threads(held)
    done: list[int] = []
    thread = threading.Thread(target=lambda: lock.run(done.append, 1))
    thread.start()
    time.sleep(0.02)
    assert done == []
    assert place.is_free()
    with pytest.raises(LockTimeoutError, match="hook of a fork"):
        lock.run(done.append, 2)
    let_noted(held)
    lock.let_threads()
    thread.join(timeout=60)
    lock.run(done.append, 3)
    assert done == [1, 3]
