"""Under the store lock nothing stays half done, whatever stops its holder."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest
import rooms
from locking import COUNTER, COUNTING, HOLDING, LEFT, RIGHT, Place, place

from shmstore._memory import layout as L
from shmstore._memory.shortage import NoPagesError
from shmstore.errors import CorruptStoreError, LockTimeoutError, StoreFullError

__all__ = ["place"]  # a fixture


def test_holder_killed_in_the_middle_is_mended_by_the_next(place: Place) -> None:
    """The kernel gives the lock back; the mark tells that the change was not finished."""
    lock = place.lock(mark=1)
    with rooms.Peer(HOLDING, place.folder, 4) as peer:
        assert peer.hear() == "inside"
        os.kill(peer.pid, signal.SIGKILL)
        peer.wait()
    assert not place.is_whole()
    assert place.words[L.W_DIRTY] == 4
    assert lock.run(lambda: place.words[LEFT] == place.words[RIGHT] == 1)
    assert place.mended == 1
    assert place.is_whole()


def test_holder_killed_many_times_leaves_words_that_agree(place: Place) -> None:
    """Whatever the moment of its death, the next one finds or makes the words equal."""
    lock = place.lock()
    for turn in range(4):
        with rooms.Peer(COUNTING, place.folder, 9, 1_000_000) as peer:
            assert peer.hear() == "ready"
            peer.tell()
            before = place.words[COUNTER]
            while place.words[COUNTER] <= before + 20 * turn:
                time.sleep(0)
            os.kill(peer.pid, signal.SIGKILL)
            peer.wait()
        lock.run(lambda: None)
        assert place.is_whole()
    assert place.is_free()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_step_broken_by_an_exception_is_mended_at_once(
    place: Place, error: type[BaseException]
) -> None:
    """What was changed is made whole before anybody else gets the lock."""
    lock = place.lock()

    def step() -> None:
        place.begin_change()
        raise error

    with pytest.raises(error):
        lock.run(step)
    assert place.mended == 1
    assert place.is_whole()
    assert place.is_free()
    assert lock.run(lambda: "goes on") == "goes on"


@pytest.mark.parametrize("error", [IndexError("index out of bounds"), AssertionError("no")])
def test_step_that_leaves_the_tables_is_reported_as_damage(place: Place, error: Exception) -> None:
    """An offset from memory that leads nowhere is a damaged store, with the reason."""

    def step() -> None:
        place.begin_change()
        raise error

    with pytest.raises(CorruptStoreError, match=str(error)) as caught:
        place.lock().run(step)
    assert caught.value.__cause__ is error
    assert place.mended == 1
    assert place.is_free()


@pytest.mark.parametrize("error", [StoreFullError("full"), NoPagesError(errno.ENOSPC, "full")])
def test_step_that_refuses_before_it_changes_anything_needs_no_mending(
    place: Place, error: Exception
) -> None:
    """A full store is an answer, not an accident; mending would look at every object."""

    def step() -> None:
        raise error

    with pytest.raises(type(error)):
        place.lock().run(step)
    assert place.mended == 0
    assert place.is_whole()
    assert place.is_free()


@pytest.mark.parametrize(
    "raised",
    [TimeoutError("alarm"), InterruptedError(), OSError("something"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_step_broken_by_a_signal_handler_is_mended(place: Place, raised: BaseException) -> None:
    """A handler may raise what it likes, an OSError too, in the middle of a change."""
    lock = place.lock()

    def handle(*_: object) -> None:
        raise raised

    def step() -> None:
        place.begin_change()
        signal.raise_signal(signal.SIGUSR1)

    old = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(type(raised)):
            lock.run(step)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert place.mended == 1
    assert place.is_whole()
    assert place.is_free()


def test_step_broken_by_a_handler_that_calls_the_store_is_mended(place: Place) -> None:
    """The handler is refused, and its error travels through a change that is half done."""
    lock = place.lock()

    def step() -> None:
        place.begin_change()
        lock.run(lambda: None)

    with pytest.raises(LockTimeoutError, match="this very thread"):
        lock.run(step)
    assert place.mended == 1
    assert place.is_whole()


def test_mending_that_fails_leaves_the_mark_for_the_next(place: Place) -> None:
    """A store stays marked until somebody has made it whole."""
    lock = place.lock()
    place.begin_change()
    place.words[L.W_DIRTY] = 3
    mend, lock._mend = lock._mend, _fail
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="cannot be mended"):
            lock.run(lambda: None)
        assert place.words[L.W_DIRTY] != 0
        assert place.is_free()
    lock._mend = mend
    lock.run(lambda: None)
    assert place.is_whole()


def test_mending_that_comes_upon_new_damage_says_so(place: Place) -> None:
    """Whoever damages the index goes on while it is made anew: that is no error of the caller."""
    lock = place.lock()
    mend = lock._mend

    def stumble() -> None:
        lock.mending = True
        raise AssertionError("astray")

    lock._mend = stumble
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match=r"contradicts itself .astray.; Try again"):
            lock.run(lambda: 1 // 0)
        assert place.words[L.W_DIRTY] == 1
    lock._mend = mend
    lock.mending = False
    lock.run(lambda: None)
    assert place.words[L.W_DIRTY] == 0
    assert place.is_free()


def _fail() -> None:
    raise CorruptStoreError("cannot be mended")


def test_interrupts_at_any_moment_leave_the_lock_free_and_the_words_whole(place: Place) -> None:
    """Ctrl-C may come before, between and after all steps of taking and giving back."""
    lock = place.lock()
    armed = [False]

    def handle(*_: object) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    def step() -> None:
        place.words[LEFT] += 1
        place.words[RIGHT] += 1

    def run_until_interrupted(delay_s: float) -> None:
        armed[0] = True
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        while armed[0]:
            lock.run(step)

    broken = 0
    old = signal.signal(signal.SIGALRM, handle)
    try:
        for turn in range(1500):
            try:
                run_until_interrupted(1e-6 * (1 + turn % 120))
            except KeyboardInterrupt:
                broken += 1
            assert not lock._threads.locked()
            assert place.is_free()
            assert lock.run(lambda: place.words[LEFT] == place.words[RIGHT])
            assert place.is_whole()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert broken > 1000
