"""What all have done with a store is counted: once, and also when they leave or die."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, exit_code, forked, in_threads, lock_free_only, wait_until

from shmstore import Metrics, ObjectNotFoundError, Store, StoreClosedError, _gets
from shmstore._memory import layout as L
from shmstore._sharing import counts

ARRAY = np.arange(1000.0)

# Attach, do something, and tell when it is done.
HELPER = """
import shmstore, numpy as np
store = shmstore.Store.attach(name)
for line in iter(input, "end"):
    exec(line)
    print("done", flush=True)
"""


def since(store: Store, before: Metrics) -> dict[str, float]:
    """Return what was counted since, without what is 0."""
    now, then = vars(store.metrics()), vars(before)
    names = [name for name in now if name not in ("at", "clients")]
    return {name: now[name] - then[name] for name in names if now[name] != then[name]}


@pytest.fixture
def counted(store: Store) -> Callable[[], dict[str, float]]:
    """Give a function that tells what was counted since this fixture, or since it was called."""
    last = [store.metrics()]

    def tell() -> dict[str, float]:
        found = since(store, last[0])
        last[0] = store.metrics()
        return found

    return tell


# --- what is counted ------------------------------------------------------------------------------


def test_puts_of_all_kinds_are_counted_with_their_bytes(store, counted):
    """One object, a batch, one built in place, and into a queue."""
    store.put(ARRAY, key="a")
    assert counted() == {"puts": 1, "put_nbytes": 8000}
    store.put_many([ARRAY, ARRAY[:10]])
    store.put_many({"b": 1, "c": 2})
    with store.allocate(10, "u1"):
        pass
    assert counted()["puts"] == 5
    with store.queue("jobs") as jobs:
        jobs.put_many([ARRAY, 7])
        assert counted()["puts"] == 2
        jobs.destroy()


def test_put_that_fails_is_not_counted(store, counted):
    """What did not find room, or was discarded, was not put."""
    with pytest.raises(ValueError, match="needs"):
        store.put(np.zeros(1 << 20))
    with pytest.raises(ZeroDivisionError), store.allocate(10):
        raise ZeroDivisionError
    assert counted() == {}


@pytest.mark.parametrize("obj", [ARRAY, [1, 2], {"x": ARRAY[:50]}, ("a", ARRAY, b"c" * 5000)])
@pytest.mark.parametrize("times", [1, 2, 3, 300, 3000])
def test_gets_are_all_counted_in_the_own_process(obj, times, store, counted):
    """By key and by reference, of what lies in a slot, in an extent, or both."""
    ref = store.put(obj, key="a")
    counted()
    for _ in range(times):
        store.get(ref)
        ref.get()
        store["a"]
    assert counted() == {"gets": 3 * times, "got_nbytes": 3 * times * ref.nbytes}


@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
def test_gets_in_all_modes_are_counted(mode, store, counted):
    """Also with some deserializers, and undecoded."""
    ref = store.put(ARRAY)
    counted()
    store.get(ref, mode=mode)
    store.get(ref, mode=mode, deserializers=("custom",))
    store.get(ref, mode=mode, decode=False)
    assert counted() == {"gets": 3, "got_nbytes": 24000}


def test_gets_from_a_queue_are_counted(store, counted):
    """A small pickle, an array, something with a header of its own."""
    with store.queue("jobs") as jobs:
        for obj in (1, ARRAY, {"x": ARRAY}):
            jobs.put(obj)
        counted()
        for _ in range(3):
            jobs.get()
        assert counted()["gets"] == 3
        jobs.destroy()


def test_get_of_nothing_is_not_counted(store, counted):
    """Neither a key that is not there, nor an object that was deleted."""
    ref = store.put(ARRAY, key="a")
    for _ in range(9):
        ref.get()
    ref.delete()
    counted()
    assert store.get("a", None) is None
    for _ in range(3):
        with pytest.raises(ObjectNotFoundError):
            ref.get()
    assert counted() == {}


def test_get_of_an_overwritten_key_is_counted_once(store, counted):
    """What the process remembers is out of date each time."""
    for number in range(50):
        store["a"] = [number]
        assert store["a"] == [number]
    assert counted()["gets"] == 50


def test_looking_at_a_store_gets_nothing(store, counted):
    """Keys, sizes and owners are told without an object."""
    store["a"] = ARRAY
    counted()
    assert "a" in store
    assert store.info("a").key == "a"
    assert len(store.objects()) == len(list(store)) == 1
    store.stats()
    store.check(deep=True)
    assert counted() == {}


def test_deletes_are_counted(store, counted):
    """One, some of a batch; not what is not there, nor what is overwritten."""
    store.put_many({"a": 1, "b": 2, "c": 3})
    store["c"] = 4
    counted()
    store.delete("a")
    assert store.delete_many(["a", "b", "c"]) == 2
    assert counted() == {"deletes": 3}


def test_waits_are_counted(store, counted):
    """A wait in vain, a queue that stays empty; what is there is not waited for."""
    store["a"] = 1
    counted()
    assert store.get("b", None, timeout=0.01) is None
    with store.queue("jobs") as jobs, pytest.raises(queue.Empty):
        jobs.get(timeout=0.01)
    store.get("a", timeout=1)
    assert counted()["waits"] == 2


def test_evictions_and_expirations_are_counted_for_who_has_done_them(make_store):
    """The sums are those of the store, the row is of this process."""
    store = make_store(capacity="1MiB", on_full="evict")
    store.put(ARRAY, ttl=0.001)
    time.sleep(0.01)
    for _ in range(200):
        store.put(ARRAY)
    metrics, stats = store.metrics(), store.stats()
    [own] = metrics.clients
    assert metrics.expirations == own.expirations == stats.expirations
    assert metrics.evictions == own.evictions == stats.evictions > 0


@lock_free_only
def test_spills_and_restores_are_counted(make_store, tmp_path):
    """What went to a file and came back."""
    store = make_store(capacity="256KiB", on_full="spill", spill_dir=tmp_path)
    refs = [store.put(ARRAY) for _ in range(60)]
    [own] = store.metrics().clients
    assert own.spills == store.metrics().spills > 0
    store.delete_many(refs[30:])
    for ref in refs[:3]:
        assert ref.get()[-1] == 999
    metrics = store.metrics()
    assert metrics.restores == metrics.clients[0].restores > 0
    assert metrics.gets == 3


@lock_free_only
def test_waits_for_the_lock_are_counted_with_their_time(store, start_python, counted):
    """Another process holds it for a while; waiting for threads of this one does not count."""
    other = start_python(
        """
        import shmstore, time
        store = shmstore.Store.attach(name)
        def hold():
            print("held", flush=True)
            time.sleep(0.2)
        input()
        store._session.lock.run(hold)
        """,
        name=store.name,
    )
    assert other.ask() == "held"
    store.put(1)
    found = counted()
    assert found["lock_waits"] >= 1
    assert 0.05 < found["lock_wait_s"] < 60
    other.end()


# --- whose it is ----------------------------------------------------------------------------------


@lock_free_only
def test_other_process_has_a_row_of_its_own(store, start_python):
    """With its pid; the sums are those of all rows."""
    other = start_python(HELPER, name=store.name)
    other.ask("store['a'] = [1]; store['a']; store['a']; del store['a']")
    store.put(2)
    metrics = store.metrics()
    own, its = sorted(metrics.clients, key=lambda client: not client.own)
    assert (own.own, own.pid, own.puts, own.gets) == (True, os.getpid(), 1, 0)
    assert (its.own, its.alive, its.pid, its.puts, its.deletes) == (False, True, other.pid, 1, 1)
    assert (metrics.puts, metrics.gets) == (2, own.gets + its.gets)
    other.say("end")
    other.end()


@lock_free_only
def test_what_a_client_counted_stays_when_it_leaves(store, start_python):
    """All of it, also gets that it had not told before."""
    other = start_python(HELPER, name=store.name)
    other.ask("ref = store.put(np.arange(9)); [store.get(ref) for _ in range(777)]")
    other.say("end")
    other.end()
    metrics = store.metrics()
    assert len(metrics.clients) == 1
    assert (metrics.puts, metrics.gets, metrics.got_nbytes) == (1, 777, 777 * 72)


@lock_free_only
def test_what_a_client_had_told_stays_when_it_is_killed(store, start_python):
    """Its row goes when it is buried, the counts do not; and they are not counted again."""
    other = start_python(HELPER, name=store.name)
    other.ask("ref = store.put(np.arange(9)); [store.get(ref) for _ in range(777)]")
    other.kill()
    before = store.metrics()
    assert sorted(client.alive for client in before.clients) == [False, True]
    assert 777 - 256 <= before.gets <= 777
    for _ in range(2):
        store.recover()
        after = store.metrics()
        assert len(after.clients) == 1
        assert (after.puts, after.gets, after.put_nbytes) == (1, before.gets, before.put_nbytes)


@lock_free_only
def test_counts_of_a_seat_that_cannot_be_read_are_left_out(store, start_python):
    """Its file was cut off: the client is buried all the same."""
    other = start_python(HELPER, name=store.name)
    other.ask("store.put(1)")
    serial = max(int(path.name) for path in (store.path / "seats").iterdir())
    other.kill()
    os.truncate(store.path / "seats" / str(serial), 0)
    store.put(2)
    assert store.metrics().puts == 1
    store.recover()
    assert (store.metrics().puts, len(store.metrics().clients)) == (1, 1)


@lock_free_only
def test_killed_between_row_and_sums_counts_at_most_once(store, monkeypatch):
    """Whoever buries a client may die there: the row is gone, nobody adds the counts again."""
    session: Any = store._session
    child = forked(lambda: (store.put(1), os.kill(os.getpid(), 9)))
    exit_code(child)
    assert store.metrics().puts == 1

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(counts, "keep", die)
        with pytest.raises(KeyboardInterrupt):
            session.lock.run(session.bury)
    assert len(store.metrics().clients) == 1
    assert store.metrics().puts == 0


@lock_free_only
def test_child_of_a_fork_counts_for_itself(store):
    """It begins at nothing, and does not tell what its parent has not told yet."""
    store["a"] = ARRAY
    for _ in range(1000):
        store["a"]

    def work() -> None:
        for _ in range(100):
            store["a"]
        [own] = [client for client in store.metrics().clients if client.own]
        assert (own.puts, own.gets, own.pid) == (0, 100, os.getpid())

    assert exit_code(forked(work)) == 0
    wait_until(lambda: len(store.metrics().clients) == 1 or not store.recover())
    metrics = store.metrics()
    assert metrics.puts == 1
    assert metrics.gets == 1100
    assert metrics.clients[0].gets == 1000


def test_reader_writes_into_its_own_seat_only(store, run_python):
    """Also who may change nothing else is counted, and remembered when it leaves."""
    store["a"] = ARRAY
    run_python(
        """
        import shmstore
        with shmstore.Store.attach(name, readonly=True) as store:
            for _ in range(300):
                store["a"]
            [own] = [client for client in store.metrics().clients if client.own]
            assert (own.readonly, own.gets) == (True, 300)
        """,
        name=store.name,
    )
    assert store.metrics().gets == 300


# --- what others see, and when --------------------------------------------------------------------


@lock_free_only
def test_gets_of_another_process_are_seen_but_for_the_last(store, start_python):
    """Never more than 256 are missing, and never more than were told."""
    other = start_python(HELPER, name=store.name)
    other.ask("ref = store.put(np.arange(9))")
    for times in (1, 2, 7, 90, 900, 9000):
        before = store.metrics().gets
        other.ask(f"store._session.tell_gets(); [store.get(ref) for _ in range({times})]")
        seen = store.metrics().gets - before
        assert seen >= times - 256 - 9
        assert seen >= times // 2
    other.say("end")
    other.end()


@lock_free_only
@pytest.mark.parametrize("per_second", [0.5, 1, 3, 10, 100])
def test_gets_at_a_steady_pace_are_told_within_two_seconds(per_second, store, monkeypatch):
    """The slower they come, the fewer are told together."""
    now = [100.0]
    monkeypatch.setattr(_gets, "monotonic", lambda: now[0])
    session: Any = store._session
    ref = store.put(ARRAY)
    for number in range(1, 500):
        now[0] += 1 / per_second
        store.get(ref)
        assert session.counts[L.SEAT_GETS] >= number - 2 * max(1, per_second)


@lock_free_only
def test_gets_after_many_are_told_with_the_next_two_hundred(store, monkeypatch):
    """However slowly they come then."""
    now = [100.0]
    monkeypatch.setattr(_gets, "monotonic", lambda: now[0])
    session: Any = store._session
    ref = store.put(ARRAY)
    for number in range(1, 2000):
        now[0] += 1e-6 if number < 1000 else 5.0
        store.get(ref)
        assert session.counts[L.SEAT_GETS] >= number - min(256, number // 2)


@lock_free_only
def test_gets_of_many_threads_are_counted(store):
    """What two of them count in the same moment may be missing, nothing is counted twice."""
    ref = store.put(ARRAY)

    def work() -> None:
        for _ in range(5000):
            store.get(ref)

    in_threads(*[work] * 4)
    assert 20_000 - 100 <= store.metrics().gets <= 20_000


@lock_free_only
def test_plans_that_are_forgotten_are_told_before(store, monkeypatch):
    """A process remembers so many objects; what it counted for the others is not lost."""
    session: Any = store._session
    monkeypatch.setattr("shmstore._session._MOST_PLANS", 4)
    for key in "abcdefghij":
        store[key] = key
        for _ in range(10):
            store[key]
    assert len(session.plans) <= 4
    assert store.metrics().gets == 100


# --- what is damaged, or over ---------------------------------------------------------------------


@lock_free_only
def test_damaged_counts_hinder_nobody(store):
    """They are wrong, and all else is as it was."""
    session: Any = store._session
    for word in range(L.SEAT_PUTS, L.COUNTS_END):
        session.counts[word] = (1 << 64) - 1
    ref = store.put(ARRAY, key="a")
    for _ in range(600):
        assert store.get(ref)[3] == 3
    store.put_many([1, 2])
    store.delete("a")
    assert store.get("a", None, timeout=0.01) is None
    assert store.metrics().puts == (1 << 64) - 1
    assert store.check() == []


def test_metrics_of_a_closed_store_are_refused(make_store: MakeStore):
    """As every other question."""
    store = make_store()
    store.close()
    with pytest.raises(StoreClosedError):
        store.metrics()


def test_metrics_tell_when_they_were_taken(store):
    """Two of them give a rate."""
    begun = time.time()
    first, second = store.metrics(), store.metrics()
    assert begun <= first.at <= second.at <= time.time()
