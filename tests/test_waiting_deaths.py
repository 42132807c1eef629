"""Waiting while processes die, stores end and signals come: nobody is left asleep."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import rooms
import stores
from stores import Flag, MakeStore, StartPython, forked, wait_until
from waits import after, start_waiter, waiters

import shmstore
from shmstore import Store, StoreClosedError, _waiting
from shmstore._memory import layout as L


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: how objects are read makes no difference here."""
    return False


# --- ends and deaths -----------------------------------------------------------------------------


def test_store_that_is_destroyed_wakes_who_waits(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """Nobody waits for what can never come."""
    store = make_store()
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name)
        print("ready", flush=True)
        try:
            store.get("key", timeout=None)
        except shmstore.StoreClosedError:
            print("closed", flush=True)
        store.close()
        """,
        name=store.name,
    )
    assert child.hear() == "ready"
    wait_until(lambda: waiters(store) == 1)
    store.destroy()
    assert child.hear() == "closed"
    child.end()


def test_handle_that_is_closed_by_another_thread_ends_a_wait(store: Store) -> None:
    """The waiting thread learns it, and its bell is closed."""
    other = Store.attach(store.path, readonly=True)
    with after(0.05, other.close), pytest.raises(StoreClosedError):
        other.get("key", timeout=stores.WAIT_S)


def test_interrupt_ends_a_wait_at_once(store: Store, start_python: StartPython) -> None:
    """KeyboardInterrupt comes out of the wait, and nothing of it is left."""
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name)
        print("ready", flush=True)
        try:
            store.get("key", timeout=None)
        except KeyboardInterrupt:
            print("interrupted", len(store._session.waiters.rows()), flush=True)
        store.close()
        """,
        name=store.name,
    )
    assert child.hear() == "ready"
    wait_until(lambda: waiters(store) == 1)
    os.kill(child.process.pid, signal.SIGINT)
    assert child.hear() == "interrupted 0"
    child.end()


def test_waiter_that_is_killed_is_forgotten(store: Store, start_python: StartPython) -> None:
    """Its row goes after some more puts, its bell and its seat when the dead are buried."""
    child = start_waiter(start_python, store)
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    for number in range(300):
        store["other"] = number
    assert waiters(store) == 0
    store["key"] = 1
    assert store.recover().clients == 1
    assert [path.name for path in (store.path / "seats").iterdir()] == ["1"]


KILL_WAKERS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import kill_wakers
kill_wakers.main()
"""


def test_putter_that_is_killed_at_any_step_leaves_nobody_asleep(root: Path) -> None:
    """Where the object is there the waiter gets it, although nobody else comes to the store."""
    there, not_there = map(int, rooms.run_python(KILL_WAKERS).split())
    assert there > 0
    assert not_there > 0


def test_change_that_is_broken_off_wakes_everybody(store: Store) -> None:
    """Nobody knows what had been changed, so all look again, and sleep on."""
    session: Any = store._session
    rung = []
    session.bells.ring_all = lambda: rung.append(1)

    def break_off() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        session.lock.run(break_off)
    assert rung == [1]


def test_forked_child_waits_by_itself_while_its_parent_waits(store: Store) -> None:
    """The two never share a bell: each is woken by its own key."""
    with after(0.02, lambda: store.put(1, key="warm")):
        store.get("warm", timeout=None)  # there is a bell that the child is born with
    child = forked(lambda: store.put(store.get("a", timeout=stores.WAIT_S) + 1, key="b"))
    with after(0.1, lambda: store.put(1, key="a")):
        assert store.get("b", timeout=stores.WAIT_S) == 2
    assert stores.exit_code(child) == 0


@pytest.mark.parametrize("row", [0, 1, 20])
def test_row_of_nobody_is_found_and_taken_away(store: Store, row: int) -> None:
    """Damage in the table of waiters is told with its place, and gone after recover."""
    session: Any = store._session
    with store.watch() as watch:
        at = session.index.geometry.waiters + row * L.WAITER_WORDS + L.WAIT_SERIAL
        session.words[at] = 77
        found = store.check()
        assert {finding.invariant for finding in found} == {12}
        assert found[0].offset == (at - L.WAIT_SERIAL) * L.WORD
        store["key"] = 1
        store.recover()
        assert store.check() == []
        with pytest.raises(shmstore.ChangesLostError):
            for _ in watch:
                pass


def test_store_without_room_for_waiters_says_so(make_store: MakeStore) -> None:
    """The table of waiters has an end; who finds no row is told what to do."""
    store = make_store(max_clients=1)
    session: Any = store._session
    with contextlib.ExitStack() as ending:
        most = session.waiters.most_topics()
        for first in range(0, L.FEWEST_WAITERS, most):
            sleeper = ending.enter_context(_waiting.Sleeper(store._live))
            session.lock.run(sleeper.settle, lambda: None, range(first + 1, first + 1 + most))
        with pytest.raises(shmstore.StoreFullError, match="larger max_clients"):
            store.get("key", timeout=1)
    assert waiters(store) == 0


# --- stress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spins", [False, True], ids=["asleep", "spinning"])
def test_ring_of_processes_loses_no_wake_up(store: Store, spins: Flag) -> None:
    """Each waits for the key of the one before and puts its own: one lost wake-up stops all."""
    count, rounds = 4, 100

    def turn(number: int) -> None:
        if not spins:
            _waiting.SPIN_S = 0.0
        for lap in itertools.count():
            if lap == rounds:
                return
            before = f"{lap - (number == 0)}/{(number - 1) % count}"
            if lap or number:
                store.get(before, timeout=stores.WAIT_S)
                store.discard(before)
            store[f"{lap}/{number}"] = lap

    children = [forked(lambda number=number: turn(number)) for number in range(count)]
    assert [stores.exit_code(child) for child in children] == [0] * count
    assert list(store) == [f"{rounds - 1}/{count - 1}"]
    assert waiters(store) == 0


def test_many_waiters_and_putters_all_meet(store: Store) -> None:
    """Six processes put and wait for each other's keys in all orders, and nobody stays behind."""
    count, keys = 6, 40

    def meet(number: int) -> None:
        _waiting.SPIN_S = 0.0
        mine = [f"{number}.{key}" for key in range(keys)]
        others = [f"{n}.{key}" for n in range(count) for key in range(keys) if n != number]
        for start in range(0, keys, 8):
            store.put_many(dict.fromkeys(mine[start : start + 4], number))
            for key in mine[start + 4 : start + 8]:
                store[key] = number
            store.wait(others[start :: keys // 2], timeout=stores.WAIT_S, return_when="FIRST")
        done = sorted(store.as_completed(others, timeout=stores.WAIT_S))
        assert done == sorted(others)

    children = [forked(lambda number=number: meet(number)) for number in range(count)]
    assert [stores.exit_code(child) for child in children] == [0] * count
    assert waiters(store) == 0
