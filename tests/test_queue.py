"""Queues: the interface of the standard library, between processes, in order, once."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import re
import signal
import threading
import time
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from stores import MakeStore, StartPython, exit_code, forked, running, used, wait_until

import shmstore
from shmstore import SerializationError, Store, StoreClosedError, StoreFullError
from shmstore._memory import layout as L

MIB = 1 << 20


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: what is taken is taken under it anyway."""
    return False


def test_queue_same_name_gives_the_same_queue(store: Store) -> None:
    """Who names it has it, with what waits in it; objects and queues have names of their own."""
    store["jobs"] = "an object"
    store.queue("jobs").put(1)
    assert store.queue("jobs") == store.queue("jobs") != store.queue("others")
    assert (store.queue("jobs").get(), store["jobs"]) == (1, "an object")


def test_queue_maxsize_is_that_of_the_maker(store: Store) -> None:
    """0 says nothing about it; another one is refused, and nothing is broken by that."""
    store.queue("jobs", maxsize=2)
    assert store.queue("jobs").maxsize == 2
    with pytest.raises(ValueError, match="was made with maxsize=2, not 3"):
        store.queue("jobs", maxsize=3)


@pytest.mark.parametrize("name", ["", "n" * 65, "é" * 33])
def test_queue_name_of_wrong_length_is_refused(store: Store, name: str) -> None:
    """It lies in a slot."""
    with pytest.raises(ValueError, match="1 to 64 bytes"):
        store.queue(name)


@pytest.mark.parametrize(
    ("name", "error"),
    [(3, TypeError), (None, TypeError), (b"x", TypeError), ("\ud800", ValueError)],
)
def test_queue_name_that_is_no_text_is_refused(
    store: Store, name: Any, error: type[Exception]
) -> None:
    """The message shows what was given, and nothing is made."""
    with pytest.raises(error, match=re.escape(f"name={name!r}: ")):
        store.queue(name)
    assert store.survey().slot.size == 0


@pytest.mark.parametrize("maxsize", ["3", None, 2.5])
def test_queue_maxsize_that_is_no_int_is_refused(store: Store, maxsize: Any) -> None:
    """As above."""
    with pytest.raises(TypeError, match=re.escape(f"maxsize={maxsize!r}: give an int")):
        store.queue("jobs", maxsize=maxsize)


def test_queue_objects_of_all_kinds_come_out_in_order(store: Store) -> None:
    """Whatever a store takes: in slots, in extents, with large headers."""
    objects = [1, "s" * 500, {"a": (1, 2)}, b"\0" * 70_000, ["n" * 300], None]
    jobs = store.queue("jobs")
    assert jobs.put_many(objects) == len(objects)
    assert [jobs.get() for _ in objects] == objects
    with pytest.raises(queue.Empty):
        jobs.get_nowait()


def test_queue_array_comes_as_a_view_and_its_memory_goes_back(store: Store) -> None:
    """The object is deleted when it is taken, the memory stays for the view."""
    jobs = store.queue("jobs")
    jobs.put(np.arange(100_000))
    view = jobs.get()
    assert not view.flags.owndata
    assert view.flags.writeable
    store.put_many([np.zeros(100_000) for _ in range(3)])
    assert view[-1] == 99_999
    before = used(store)
    del view
    assert before - used(store) == 800_000


@pytest.mark.parametrize("mode", ["readonly", "private", "copy"])
def test_queue_get_in_another_mode(store: Store, mode: str) -> None:
    """As `Store.get`."""
    jobs = store.queue("jobs")
    jobs.put(np.arange(10))
    array = jobs.get(mode=mode)
    assert array.flags.writeable == (mode != "readonly")
    assert array.sum() == 45


def test_queue_full_raises_or_waits_for_room(store: Store) -> None:
    """`Full` at once, or after the time; else the put goes on when somebody takes."""
    jobs = store.queue("jobs", maxsize=2)
    jobs.put_many([1, 2])
    assert jobs.full()
    with pytest.raises(queue.Full):
        jobs.put_nowait(3)
    with pytest.raises(queue.Full):
        jobs.put(3, timeout=0.01)
    with pytest.raises(queue.Full):
        jobs.put_many([3], block=False)
    thread = threading.Thread(target=jobs.put, args=(np.zeros(100_000),))
    thread.start()
    time.sleep(0.02)
    assert (jobs.get(), jobs.get()) == (1, 2)
    thread.join()
    assert jobs.get().shape == (100_000,)


def test_queue_put_many_into_little_room_puts_the_first(store: Store) -> None:
    """It says how many."""
    jobs = store.queue("jobs", maxsize=3)
    assert jobs.put_many(range(5), timeout=0.01) == 3
    assert jobs.get_many(5) == [0, 1, 2]


@pytest.mark.parametrize("timeout", [-1, float("nan"), "a", []])
def test_queue_timeout_that_is_none_is_refused(store: Store, timeout: Any) -> None:
    """As in the standard library."""
    with pytest.raises((ValueError, TypeError), match="timeout="):
        store.queue("jobs").get(timeout=timeout)


def test_queue_task_done_and_join(store: Store) -> None:
    """`join` waits for what waits and for what is being done."""
    jobs = store.queue("jobs")
    assert jobs.join()
    jobs.put_many([1, 2])
    assert not jobs.join(timeout=0.01)
    jobs.get_many(2)
    assert not jobs.join(timeout=0.01)
    jobs.task_done()
    thread = threading.Timer(0.02, jobs.task_done)
    thread.start()
    assert jobs.join(timeout=60)
    thread.join()
    with pytest.raises(ValueError, match="more often"):
        jobs.task_done()
    assert store.check() == []


def test_queue_objects_are_seen_but_have_no_keys(store: Store) -> None:
    """They count as objects, they are not in the mapping, and cannot be deleted from behind."""
    jobs = store.queue("jobs")
    jobs.put([1])
    assert (len(store), list(store)) == (0, [])
    assert store.stats().objects == 2
    infos = store.objects()
    assert [(info.type, info.queue) for info in infos] == [
        ("shmstore.Queue", "jobs"),
        ("list", "jobs"),
    ]
    for info in infos:
        with pytest.raises(shmstore.ShmStoreError, match="part of a queue"):
            info.ref.delete()
    store.clear()
    assert jobs.get() == [1]


def test_queue_closed_here_works_for_others(store: Store) -> None:
    """`close` is for this handle."""
    with store.queue("jobs") as jobs:
        jobs.put(1)
    with pytest.raises(StoreClosedError):
        jobs.put(2)
    assert store.queue("jobs").get() == 1


def test_queue_destroyed_tells_who_waits(store: Store) -> None:
    """Those who wait for objects, for room, or for the end."""
    jobs = store.queue("jobs", maxsize=1)
    errors: list[BaseException] = []

    def expect(what: Any, *args: Any) -> None:
        try:
            what(*args)
        except StoreClosedError as error:
            errors.append(error)

    other = store.queue("other")
    jobs.put(np.zeros(100_000))
    calls = [partial(expect, jobs.put, 2), partial(expect, jobs.join), partial(expect, other.get)]
    with running(*calls):
        time.sleep(0.05)
        jobs.destroy()
        other.destroy()
    assert len(errors) == 3
    assert used(store) == 0
    assert store.queue("jobs").maxsize == 0
    with pytest.raises(StoreClosedError, match="was destroyed"):
        jobs.qsize()


def test_queue_in_a_full_store_raises(make_store: MakeStore) -> None:
    """What is in the queue stays there, and can be taken."""
    store = make_store(capacity="1MiB")
    jobs = store.queue("jobs")
    with pytest.raises(StoreFullError):
        jobs.put_many([np.full(40_000, number) for number in range(9)])
    count = jobs.qsize()
    assert count == 3
    assert [jobs.get()[0] for _ in range(count)] == [0, 1, 2]


def test_queue_objects_are_not_evicted(make_store: MakeStore) -> None:
    """Somebody is to take them."""
    store = make_store(capacity="1MiB", on_full="evict")
    jobs = store.queue("jobs")
    jobs.put_many([np.full(10_000, 7), 1])
    for number in range(40):
        store[str(number)] = np.zeros(10_000)
    assert store.stats().evictions > 0
    assert (jobs.get()[0], jobs.get()) == (7, 1)


def test_queue_objects_do_not_expire(make_store: MakeStore) -> None:
    """The time to live of a store is for what is looked up."""
    store = make_store(ttl=0.01)
    store.queue("jobs").put(1)
    store["key"] = 2
    wait_until(lambda: "key" not in store)
    assert store.queue("jobs").get() == 1


def test_queue_travels_by_pickle(store: Store, start_python: StartPython) -> None:
    """A process that has nothing to do with this one takes and puts."""
    jobs = store.queue("jobs", maxsize=5)
    child = start_python(
        """
        jobs = pickle.loads(message)
        print(jobs.get().sum(), jobs.maxsize, flush=True)
        jobs.put("back")
        """,
        message=pickle.dumps(jobs),
    )
    jobs.put(np.arange(10))
    assert child.hear() == "45 5"
    assert jobs.get(timeout=60) == "back"


def test_queue_works_in_a_forked_child(store: Store) -> None:
    """What the child takes is counted for the child."""
    jobs = store.queue("jobs")
    jobs.put_many([1, 2, 3])
    jobs.get()
    child = forked(lambda: jobs.put(jobs.get() * 10))
    assert exit_code(child) == 0
    assert jobs.get_many(3) == [3, 20]
    jobs.task_done(3)
    assert jobs.join(timeout=60), "the child is gone, and with it what it had taken"


def test_queue_join_does_not_wait_for_the_dead(store: Store) -> None:
    """A consumer that is killed has done what it will do; what it did not take is still there."""
    jobs = store.queue("jobs")
    jobs.put_many(["lost with its consumer", "next"])

    def take() -> None:
        jobs.get()
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(forked(take)) == -signal.SIGKILL
    assert jobs.get() == "next"
    assert not jobs.join(timeout=0.01)
    jobs.task_done()
    assert jobs.join(timeout=60)
    assert store.check() == []


def test_queue_damaged_chain_is_told_and_mended(store: Store) -> None:
    """A word that leads elsewhere gives no wrong object and no endless walk."""
    jobs = store.queue("jobs")
    jobs.put_many([1, 2])
    session: Any = store._session
    base = jobs._line.base
    for word in (L.S_HEAD, L.S_TAIL, L.S_WAITING, L.S_TALLIES, L.S_NUMBER, L.S_OPEN):
        session.words[base + word] = 0 if word == L.S_NUMBER else 1 << 40
        assert {finding.invariant for finding in store.check()} == {13}
        store.recover()
        assert store.check() == []
        assert jobs.qsize() == 2
    assert jobs.get_many(3) == [1, 2]


class QueueMachine(RuleBasedStateMachine):
    """A queue, beside the list that it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store.create(capacity="1MiB", max_objects=256)
        self.jobs = self.store.queue("jobs", maxsize=6)
        self.model: deque[Any] = deque()
        self.open = 0

    @rule(value=st.one_of(st.integers(), st.binary(max_size=300)))
    def put(self, value: Any) -> None:
        """Put one."""
        if len(self.model) < 6:
            self.jobs.put_nowait(value)
            self.model.append(value)
        else:
            with pytest.raises(queue.Full):
                self.jobs.put_nowait(value)

    @rule(values=st.lists(st.integers(), min_size=1, max_size=4))
    @precondition(lambda self: len(self.model) < 6)
    def put_many(self, values: list[int]) -> None:
        """Put some."""
        count = self.jobs.put_many(values, block=False)
        assert count == min(len(values), 6 - len(self.model))
        self.model += values[:count]

    @rule(count=st.integers(1, 4))
    def get(self, count: int) -> None:
        """Take some."""
        if not self.model:
            with pytest.raises(queue.Empty):
                self.jobs.get_nowait()
            return
        expected = [self.model.popleft() for _ in range(min(count, len(self.model)))]
        assert self.jobs.get_many(count, block=False) == expected
        self.open += len(expected)

    @rule()
    @precondition(lambda self: self.open)
    def done(self) -> None:
        """Do one."""
        self.jobs.task_done()
        self.open -= 1

    @rule()
    def recover(self) -> None:
        """Make all anew."""
        self.store.recover()

    @rule()
    def look(self) -> None:
        """Look at it."""
        assert self.store.check() == []
        assert self.jobs.qsize() == len(self.model)
        assert self.jobs.join(timeout=0) == (not self.model and not self.open)

    def teardown(self) -> None:
        """Leave nothing."""
        self.store.close()
        gc.collect()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(deadline=None, max_examples=12, stateful_step_count=25)


def test_queue_names_what_of_a_batch_cannot_be_serialized(store: Store) -> None:
    """By where it stands, as `Store.put_many` does; nothing is put. One object has no number."""
    jobs = store.queue("jobs")
    with pytest.raises(SerializationError, match=r"^object 1 of the batch: ") as caught:
        jobs.put_many([1, {"a": threading.Lock()}])
    assert caught.value.facts["path"] == "objects[1]['a']"
    with pytest.raises(SerializationError, match=r"^could not serialize"):
        jobs.put(threading.Lock())
    assert jobs.empty()
