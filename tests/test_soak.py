"""Whoever is killed or stopped, and whenever: nothing acknowledged is lost, nothing left over."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soak_objects as objects
from soak import KINDS, Soak, run, tell
from soak_work import Journal, Worker, name_of, own_key
from stores import MIB, MakeStore, exit_code, forked, forks, lock_free_only, signal_at

from shmstore import LockTimeoutError, Store

pytestmark = forks

SECONDS = 30

# For the random parts of a test.
RANDOM = random.Random(5)


# --- the black box --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_processes_killed_and_stopped_for_half_a_minute_lose_nothing(name: str) -> None:
    """The half minute is shared by all kinds of stores; `make soak` takes longer."""
    counts = run(KINDS[name], SECONDS / len(KINDS), seed=3)
    tell(name, counts)
    assert counts["kills"] > SECONDS / len(KINDS)
    assert counts["stops"] > SECONDS / len(KINDS)
    assert counts["verified"] > counts["kills"]


def test_processes_killed_and_stopped_for_a_moment_lose_nothing() -> None:
    """The same for the impatient."""
    counts = run(KINDS["little room"], 1.5, seed=4)
    assert counts["kills"] > 0
    assert counts["verified"] > 0


# --- what the black box would notice --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_object_with_a_wrong_byte_is_damaged(seed: int) -> None:
    """Wherever the byte is: in the head, in the content, in a number."""
    random_ = random.Random(seed)
    obj = objects.make(7, 9, random_)
    assert objects.read(obj) == (7, 9)
    if isinstance(obj, tuple):
        wrong: Any = (*obj[:1], obj[1] + 1, *obj[2:])
    else:
        wrong = obj
        array = obj["array"] if isinstance(obj, dict) else obj
        array[random_.choice([0, 9, 17, objects.HEAD_NBYTES, array.nbytes - 1])] ^= 1
    with pytest.raises(objects.DamagedError):
        objects.read(wrong)


@pytest.fixture
def soak(make_store: MakeStore) -> Soak:
    """Give a soak whose workers have not begun: of key 0 version 5 is acknowledged."""
    store = make_store()
    soak = Soak(store, KINDS["little room"], seed=0)
    journal = soak._journals[2]
    journal.acknowledged[0] = 5
    store.put(objects.make(own_key(2, 0), 5, RANDOM), key=name_of(own_key(2, 0)))
    os.close(soak._breath)
    os.close(soak._last_words)
    return soak


def put_version(soak: Soak, version: int, *, key: int = 0) -> None:
    """Put a version of a key of worker 2."""
    soak.store.put(objects.make(own_key(2, key), version, RANDOM), key=name_of(own_key(2, 0)))


@lock_free_only
def test_version_that_was_acknowledged_must_be_there(soak: Soak) -> None:
    """Neither an older one, nor none, nor an object of another key."""
    assert soak._look_at(2)[0] == 5
    put_version(soak, 4)
    with pytest.raises(AssertionError, match="version 4"):
        soak._look_at(2)
    put_version(soak, 5, key=1)
    with pytest.raises(AssertionError, match="leads to an object"):
        soak._look_at(2)
    soak.store.clear()
    with pytest.raises(AssertionError, match="version 0"):
        soak._look_at(2)


@lock_free_only
def test_version_that_was_under_way_may_be_there(soak: Soak) -> None:
    """Either the one or the other, until it is known which."""
    journal: Journal = soak._journals[2]
    journal.intended[0] = 6
    assert soak._look_at(2)[0] == 5
    put_version(soak, 6)
    assert soak._look_at(2)[0] == 6
    journal.settle(soak._look_at(2))
    put_version(soak, 5)
    with pytest.raises(AssertionError, match="version 5"):
        soak._look_at(2)


@lock_free_only
def test_key_that_was_deleted_must_be_gone(soak: Soak) -> None:
    """What comes back from the dead is noticed."""
    soak._journals[2].acknowledged[0] = 0
    with pytest.raises(AssertionError, match="version 5"):
        soak._look_at(2)


WORKS: list[Callable[[Any], Any]] = [lambda _: 1 / 0, lambda _: os._exit(1)]


@lock_free_only
@pytest.mark.parametrize("work", WORKS, ids=["error", "exit"])
def test_worker_that_fails_is_noticed_with_what_it_said(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, work: Callable[[Any], Any]
) -> None:
    """Whether it is killed, ends in time, or is asked to end: its number, its code, its error."""
    monkeypatch.setattr(Worker, "put", work)
    soak = Soak(make_store(), KINDS["little room"], seed=0)
    words = "ZeroDivisionError" if work is WORKS[0] else ""
    with pytest.raises(AssertionError, match=rf"(?s)worker \d ended with 1:\n.*{words}"):
        soak.work(5)


# --- what the black box has found -----------------------------------------------------------------


@lock_free_only
def test_readonly_client_can_come_while_deleted_memory_waits_to_be_wiped(
    make_store: MakeStore,
) -> None:
    """Who may not write leaves the wiping to others."""
    store = make_store(zero_on_free=True)
    store["k"] = np.arange(1000)
    del store["k"]
    with Store.attach(store.path, readonly=True) as looking:
        assert list(looking) == []
    store.recover()
    assert store.stats().used == 0


# --- stopped with the lock ------------------------------------------------------------------------


def stop_with_the_lock(store: Store, number: int) -> int:
    """Return the pid of a process that has stopped at the n-th store of a put."""

    def overwrite() -> None:
        with signal_at(store, number, signal.SIGSTOP):
            store["k"] = np.full(5000, 2, np.uint8)

    pid = forked(overwrite)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return pid


OTHERS: dict[str, Any] = {
    "put": lambda store: store.put(1, key="other"),
    "delete": lambda store: store.delete("k"),
    "check": lambda store: store.check(),
    "recover": lambda store: store.recover(),
    "get what is missing": lambda store: store.get("missing", None),
}


@pytest.fixture
def half_way(make_store: MakeStore) -> Store:
    """Give a store of two objects whose lock is waited for during a moment only."""
    store = make_store(capacity=MIB, lock_timeout=0.1)
    store.update({"k": np.full(5000, 1, np.uint8), "l": np.full(5000, 1, np.uint8)})
    return store


@pytest.mark.parametrize("number", [1, 3, 9])
@lock_free_only
def test_process_stopped_with_the_lock_is_named_and_goes_on(half_way: Store, number: int) -> None:
    """Others wait for as long as they said, then say for whom; nothing is taken from it."""
    pid = stop_with_the_lock(half_way, number)
    try:
        for other in OTHERS.values():
            with pytest.raises(LockTimeoutError, match=str(pid)) as caught:
                other(half_way)
            assert str(pid) in caught.value.holder
        assert half_way["l"].tolist() == [1] * 5000
    finally:
        os.kill(pid, signal.SIGCONT)
        code = exit_code(pid)
    assert code == 0
    assert half_way["k"].tolist() == [2] * 5000
    half_way["other"] = 1
    assert half_way.check() == []


@pytest.mark.parametrize("number", [1, 3, 9])
@lock_free_only
def test_process_stopped_with_the_lock_and_killed_leaves_a_whole_store(
    half_way: Store, number: int
) -> None:
    """A death ends the wait at once, whether the dead had been stopped or not."""
    pid = stop_with_the_lock(half_way, number)
    try:
        with pytest.raises(LockTimeoutError):
            half_way.delete("k")
    finally:
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
    assert half_way["k"].tolist() in ([1] * 5000, [2] * 5000)
    assert half_way.check() == []
    half_way.recover()
    assert [client.pid for client in half_way.clients()] == [os.getpid()]
