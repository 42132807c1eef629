"""The store lock: one at a time, whoever they are, and nothing stays half done."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rooms

from shmstore._memory import layout as L
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.index import Index
from shmstore._memory.shortage import NoPagesError
from shmstore._sharing.lock import StoreLock, hold, is_locked
from shmstore.errors import CorruptStoreError, LockTimeoutError, StoreFullError

# Two words of the superblock that serve as the thing that is changed: they must always be equal.
LEFT, RIGHT = 200, 201
COUNTER = 202

OTHER_PROCESS = """
import os, signal, sys, time
from shmstore._memory import layout as L
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.index import Index
from shmstore._sharing.lock import StoreLock

LEFT, RIGHT, COUNTER = 200, 201, 202
folder, mark = sys.argv[1], int(sys.argv[2])
index = Index(open_descriptor(folder + "/index", os.O_RDWR), folder)
words = index.words

def mend():
    words[RIGHT] = words[LEFT]

lock = StoreLock(open_descriptor(folder + "/lock", os.O_RDWR), words, 30.0, mend, str)
lock.mark = mark

def say(word):
    print(word, flush=True)
"""

HOLDING = f"""{OTHER_PROCESS}
def hold_it():
    words[LEFT] += 1
    say("inside")
    sys.stdin.readline()
    words[RIGHT] += 1
lock.run(hold_it)
say("outside")
"""

COUNTING = f"""{OTHER_PROCESS}
def count():
    assert words[LEFT] == words[RIGHT]
    words[LEFT] += 1
    value = words[COUNTER]
    time.sleep(0)
    words[COUNTER] = value + 1
    words[RIGHT] += 1
say("ready")
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    lock.run(count)
"""


class Place:
    """A lock file and an index in a folder, and what the lock called."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self.words = index.words
        self.mended = 0
        self.locks: list[StoreLock] = []

    def lock(self, *, mark: int = 1, timeout_s: float = 30.0) -> StoreLock:
        """Make a lock as a process of its own would have it."""
        fd = open_descriptor(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        lock = StoreLock(fd, self.words, timeout_s, self._mend, lambda row: f"client {row}")
        lock.mark = mark
        self.locks.append(lock)
        return lock

    def is_free(self) -> bool:
        """Return whether nobody holds the file."""
        fd = os.open(self.folder / "lock", os.O_RDWR)
        try:
            return not is_locked(fd)
        finally:
            os.close(fd)

    def begin_change(self) -> None:
        """Leave the two words different."""
        self.words[LEFT] = self.words[RIGHT] + 1

    def is_whole(self) -> bool:
        """Return whether no change is half done or marked as such."""
        return bool(self.words[LEFT] == self.words[RIGHT] and not self.words[L.W_DIRTY])

    def _mend(self) -> None:
        self.mended += 1
        self.words[RIGHT] = self.words[LEFT]


@pytest.fixture
def place() -> Iterator[Place]:
    """Give a place to lock."""
    with rooms.memory_folder() as folder, rooms.open_index(folder, rooms.identity()) as index:
        made = Place(folder, index)
        yield made
        for lock in made.locks:
            lock.close()


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

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


# --- what stops in the middle --------------------------------------------------------------------


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


# --- fork ----------------------------------------------------------------------------------------


def test_lock_of_a_forked_child_is_its_own(place: Place) -> None:
    """After the fork the child holds the file through a descriptor that its parent has not."""
    lock, childs = place.lock(), place.lock(timeout_s=0.01)
    lock.hold_threads()
    childs.replace_descriptor(open_descriptor(place.folder / "lock", os.O_RDWR))
    lock.let_threads()

    def step() -> None:
        with pytest.raises(LockTimeoutError):
            childs.run(lambda: None)

    lock.run(step)
    assert childs.run(lambda: "mine") == "mine"


def test_threads_held_across_a_fork_wait(place: Place) -> None:
    """No thread of the parent is in the middle of a change when the child is born."""
    lock = place.lock()
    lock.hold_threads()
    done: list[int] = []
    thread = threading.Thread(target=lambda: lock.run(done.append, 1))
    thread.start()
    time.sleep(0.02)
    assert done == []
    assert place.is_free()
    lock.let_threads()
    thread.join(timeout=60)
    assert done == [1]
