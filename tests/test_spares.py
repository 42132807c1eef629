"""Small objects come and go without the lock, in slots that a client has for itself."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
from spares import have_slots, lock_holds, slot_states, spare_slots, with_slots
from stores import (
    MakeStore,
    exit_code,
    forked,
    in_child,
    in_threads,
    kill,
    lock_free_only,
    running,
    wait_until,
)

from shmstore import LockTimeoutError, ObjectNotFoundError, ObjectRef, Store, _spares
from shmstore._catalog import states
from shmstore._memory import layout as L

pytestmark = lock_free_only  # under the lock nothing is set aside


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Give a store of which this process has slots for itself."""
    return with_slots(make_store)


def test_small_puts_and_deletes_take_the_lock_once_in_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are set aside for up to 128 at once."""
    for number in range(1000):
        store.delete(store.put(number))
    holds = lock_holds(store, monkeypatch)
    for number in range(1280):
        ref = store.put({"number": number})
        assert ref.get() == {"number": number}
        store.delete(ref)
    assert 0 < len(holds) <= 1280 // 64
    assert not store.check()


def test_objects_are_counted_whatever_way_they_come_and_go(store: Store) -> None:
    """stats(), metrics() and check() agree after each kind of put and delete."""
    before = store.metrics()
    refs = [store.put(number) for number in range(500)]
    named = [store.put(number, key=f"k{number}") for number in range(10)]
    assert store.stats().objects == 510
    for ref in refs[::2]:
        ref.delete()
    assert store.delete_many(refs[1:100:2] + named) == 60
    assert store.stats().objects == 200
    assert [info.type for info in store.objects()] == ["int"] * 200
    after = store.metrics()
    assert after.puts - before.puts == 510
    assert after.deletes - before.deletes == 310
    assert not store.check()


def test_object_is_deleted_once(store: Store) -> None:
    """Its owner may delete it without the lock, but not twice; no other takes its place."""
    ref = store.put("once")
    assert store.discard(ref)
    other = store.put("another, in the same slot")
    assert other._slot == ref._slot
    assert not store.discard(ref)
    with pytest.raises(ObjectNotFoundError):
        ref.get()
    with pytest.raises(ObjectNotFoundError):
        ref.delete()
    assert other.get() == "another, in the same slot"


def test_taken_back_slots_do_not_grow_without_end(store: Store) -> None:
    """What is more than a client needs is free for the others."""
    refs = [store.put(number) for number in range(5000)]
    for ref in refs:
        store.delete(ref)
    assert spare_slots(store) == store._session.spares.small.top <= _spares.ROOM
    assert not store.check()


def test_another_process_deletes_what_its_owner_may_take_back(store: Store) -> None:
    """Exactly one of them does, also when both try at once."""
    refs = [store.put(number) for number in range(4000)]
    gate = os.pipe()

    def child() -> None:
        os.read(gate[0], 1)
        deleted = sum(store.discard(ref) for ref in refs)
        os.write(results[1], deleted.to_bytes(4, "little"))

    results = os.pipe()
    pid = forked(child)
    os.write(gate[1], b"x")
    own = sum(store.discard(ref) for ref in reversed(refs))
    assert exit_code(pid) == 0
    theirs = int.from_bytes(os.read(results[0], 4), "little")
    for fd in (*gate, *results):
        os.close(fd)
    assert own + theirs == len(refs)
    assert store.stats().objects == 0
    assert not store.check()


def test_killed_owner_leaves_its_objects_and_none_of_its_slots(store: Store) -> None:
    """What was put stays, what was set aside comes back."""
    told = os.pipe()

    def child() -> None:
        refs = [store.put(number) for number in range(300)]
        os.write(told[1], refs[-1]._slot.to_bytes(8, "little"))
        time.sleep(60)

    pid = forked(child)
    assert os.read(told[0], 8)
    kill(pid)
    for fd in told:
        os.close(fd)
    assert spare_slots(store) > store._session.spares.small.top
    assert store.recover().clients == 1
    assert spare_slots(store) == store._session.spares.small.top
    assert store.stats().objects == 300
    assert not store.check()


def test_processes_killed_while_they_put_and_delete_lose_nothing(store: Store) -> None:
    """At whatever moment: the store stays sound, and has no object that nobody put."""
    told = os.pipe()

    def child() -> None:
        kept = [store.put({"turn": 0})]
        os.write(told[1], b"x")
        while True:
            kept.append(store.put({"turn": len(kept)}))
            if len(kept) > 20:
                store.delete(kept.pop(0))

    for turn in range(12):
        pid = forked(child)
        assert os.read(told[0], 1)
        time.sleep(turn * 0.003)
        kill(pid)
        store.recover()
        assert not store.check()
        left = store.stats().objects
        assert turn < left <= 21 * (turn + 1)
        assert len([info for info in store.objects() if info.type == "dict"]) == left
    for fd in told:
        os.close(fd)
    assert spare_slots(store) == store._session.spares.small.top


def test_owner_that_stops_while_it_takes_back_is_named(store: Store) -> None:
    """Who wants to delete the object waits, and is told who keeps it; then it goes."""
    ref = store.put("of the child")
    pipe = os.pipe()

    def child() -> None:
        have_slots(store)
        own = store.put("of the child")
        os.write(pipe[1], own._slot.to_bytes(8, "little") + own._generation.to_bytes(8, "little"))
        words, spares = store._session.words, store._session.spares
        words[spares.row + L.C_ENDING] = own._slot + 1
        os.kill(os.getpid(), signal.SIGSTOP)
        words[spares.row + L.C_ENDING] = 0
        time.sleep(60)

    pid = forked(child)
    numbers = np.frombuffer(os.read(pipe[0], 16), np.uint64).tolist()
    os.waitpid(pid, os.WUNTRACED)
    other = ObjectRef(ref._uuid, ref._path, *numbers, 16)
    store._session.lock.timeout_s = 0.2
    with pytest.raises(LockTimeoutError, match=str(pid)):
        store.delete(other)
    assert other.get() == "of the child"
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: store.discard(other))
    kill(pid)
    for fd in pipe:
        os.close(fd)


def test_what_a_dead_client_was_taking_back_hides_no_living_one(store: Store) -> None:
    """It died in the midst of that; its slot is another's by now, who stops in the same step."""
    ref = store.put("whoever's")
    asked, told = os.pipe(), os.pipe()

    def stop_as_if_taking_back(slot: int, signal_number: int) -> None:
        words, spares = store._session.words, store._session.spares
        words[spares.row + L.C_ENDING] = slot + 1
        os.kill(os.getpid(), signal_number)

    def first() -> None:
        stop_as_if_taking_back(int.from_bytes(os.read(asked[0], 8), "little"), signal.SIGKILL)

    def second() -> None:
        have_slots(store)
        own = store.put("of the second")
        os.write(told[1], own._slot.to_bytes(8, "little") + own._generation.to_bytes(8, "little"))
        stop_as_if_taking_back(own._slot, signal.SIGSTOP)

    dead, stopped = forked(first), forked(second)
    try:
        numbers = np.frombuffer(os.read(told[0], 16), np.uint64).tolist()
        os.waitpid(stopped, os.WUNTRACED)
        os.write(asked[1], numbers[0].to_bytes(8, "little"))
        os.waitpid(dead, 0)
        store._session.lock.timeout_s = 0.2
        with pytest.raises(LockTimeoutError, match=str(stopped)):
            store.delete(ObjectRef(ref._uuid, ref._path, *numbers, 16))
    finally:
        kill(stopped)
    for fd in (*asked, *told):
        os.close(fd)
    store.recover()
    assert not store.check()


def test_object_deleted_while_somebody_begins_to_wait_for_its_end_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot is in a list by then, which stays whole."""
    ref, *others = [store.put(number) for number in range(9)]
    run = store._session.lock.run

    def run_too_late(*step: Any) -> Any:
        monkeypatch.undo()
        in_child(partial(store.delete_many, [*others, ref]))
        return run(*step)

    monkeypatch.setattr(store._session.lock, "run", run_too_late)
    assert ref.wait()
    assert not store.check()


def test_waiter_hears_of_an_end_that_takes_no_lock(store: Store) -> None:
    """Who waits for the end of an object is woken, and by then its owner rings."""
    ref = store.put("for a moment")
    gone: list[bool] = []
    with running(lambda: gone.append(ref.wait())):
        wait_until(lambda: store._session.words[L.W_WAITERS])
        store.delete(ref)
    assert gone == [True]


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    def trace(*_: object) -> Any:
        return trace

    threading.settrace(trace)
    try:
        yield
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


@contextlib.contextmanager
def _monitored() -> Iterator[None]:
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is None:
        pytest.skip("this Python has no sys.monitoring")
    tool = next(tool for tool in range(6) if monitoring.get_tool(tool) is None)
    monitoring.use_tool_id(tool, "test")
    monitoring.register_callback(tool, monitoring.events.LINE, lambda *_: None)
    monitoring.set_events(tool, monitoring.events.LINE)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)


@pytest.mark.parametrize("length", [1, 3000], ids=["in slots", "with extents"])
@pytest.mark.parametrize("watched", [_traced, _monitored], ids=["traced", "monitored"])
def test_threads_whose_every_line_is_a_call_do_not_take_the_same_slot(
    store: Store, watched: Callable[[], AbstractContextManager[None]], length: int
) -> None:
    """A debugger is told of each line: then other threads may run between any two."""
    wrong: list[Any] = []

    def work(name: int) -> None:
        for number in range(400):
            ref = store.put([name, number] * length)
            if ref.get() != [name, number] * length:
                wrong.append((name, number))
            store.delete(ref)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with watched():
            in_threads(*(partial(work, name) for name in range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert store.stats().objects == 0
    assert not store.check()


def test_threads_of_which_one_is_traced_lose_no_slot(store: Store) -> None:
    """It keeps slots under the lock, line by line; the others take some back without it."""
    mine = [store.put(number) for number in range(4)]
    lines, first = inspect.getsourcelines(_spares._keep)
    line = next(at for at, text in enumerate(lines, first) if "pile.top += 1" in text)
    keeping, taken = threading.Event(), threading.Event()

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code is _spares._keep.__code__ and frame.f_lineno == line and event == "line":
            keeping.set()
            taken.wait(60)
        return trace

    def keep() -> None:
        sys.settrace(trace)
        session = store._session
        session.spares.portion = _spares.ROOM
        session.lock.run(_spares.set_aside, session)
        sys.settrace(None)

    def take() -> None:
        keeping.wait(60)
        mine[0].delete()
        taken.set()

    in_threads(keep, take)
    assert keeping.is_set()
    session = store._session
    session.lock.run(_spares.settle, session)
    pile = session.spares.small
    kept = sorted(slot for slot, *_ in pile.slots[: pile.top])
    assert kept == np.flatnonzero(slot_states(store) == states.SPARE).tolist()


def test_threads_do_not_take_the_same_slot(store: Store) -> None:
    """Each object is what its thread has put, however they come in between each other."""
    wrong: list[Any] = []

    def work(name: int) -> None:
        for number in range(2000):
            ref = store.put((name, number))
            if ref.get() != (name, number):
                wrong.append((name, number))
            store.delete(ref)

    in_threads(*(partial(work, name) for name in range(4)))
    assert not wrong
    assert store.stats().objects == 0
    assert not store.check()


def test_forked_child_has_slots_of_its_own(store: Store) -> None:
    """It never fills those of its parent."""
    assert store._session.spares.small.top

    def child() -> None:
        assert store._session.spares.small.top == 0
        refs = [store.put(number) for number in range(200)]
        assert [ref.get() for ref in refs] == list(range(200))

    pid = forked(child)
    refs = [store.put(-number) for number in range(200)]
    assert exit_code(pid) == 0
    assert [ref.get() for ref in refs] == [-number for number in range(200)]
    assert not store.check()


def test_check_finds_nothing_in_a_client_that_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deletes while its slots are counted, and has put as many again when that is done anew."""
    refs = [store.put(number) for number in range(4)]
    real, looks = states.are_set_aside, []

    def are_set_aside(words: Any) -> Any:
        refs.extend(store.put(number) for number in range(4 - len(refs)))
        found = real(words)
        while refs:
            refs.pop().delete()
        looks.append(store._session.spares.count)
        return found

    monkeypatch.setattr(states, "are_set_aside", are_set_aside)
    assert store.check() == []
    assert looks


def test_check_finds_slots_that_a_client_tells_of_and_has_not(store: Store) -> None:
    """Nobody knows where they are: as if somebody had taken them and not said so."""
    session = store._session
    at = session.spares.row + L.C_SPARES
    session.words[at] += 5
    assert "slots set aside, it has" in str(store.check()[0])
    session.words[at] -= 5
