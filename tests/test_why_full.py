"""What holds the memory of a store, and does the advice do what it says?"""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import numpy as np
import pytest
import rooms
from spares import make_quick
from stores import (
    MIB,
    MakeStore,
    StartPython,
    exit_code,
    forked,
    kill,
    lock_free_only,
    make_old,
    remedy_of,
)

from shmstore import FullReport, Store, StoreFullError, _fullness
from shmstore._memory import layout as L

MOST_LINES = 40


def _text(report: FullReport) -> str:
    """Return the page, after checking what holds for every page."""
    text = str(report)
    assert len(text.splitlines()) <= MOST_LINES
    assert report.reason in text
    assert all(f". {remedy}" in text for remedy in report.remedies[:6])
    assert not re.search(r" $", text, re.MULTILINE)
    return text


# --- what is there --------------------------------------------------------------------------------


def test_new_store_is_not_full(store: Store) -> None:
    """No advice is needed, and all numbers are zero."""
    report = store.why_full()
    assert report.reason == "It is not full: an object of up to 4 MiB fits."
    assert report.remedies == ()
    assert (report.used, report.free, report.largest_free) == (0, 4 * MIB, 4 * MIB)
    assert (report.free_extents, report.fragmentation, report.slots_used) == (1, 0.0, 0)
    assert [(c.own, c.nbytes, c.views, c.oldest_view) for c in report.clients] == [
        (True, 0, 0, None)
    ]
    assert "what helps" not in _text(report)


def test_sums_are_those_of_the_store(store: Store) -> None:
    """Capacity, bytes, slots and objects agree with stats() and objects()."""
    for number in range(30):
        store[f"k{number}"] = np.zeros(100 * number)
    refs = [store.put(number) for number in range(10)]
    views = [store["k5"], store["k6"], store["k6"]]
    report, stats = store.why_full(), store.stats()
    for name in ("capacity", "used", "free", "largest_free", "objects", "named", "max_objects"):
        assert getattr(report, name) == getattr(stats, name)
    assert report.pinned_nbytes == stats.pinned
    assert report.slots_used == 40 + store._session.spares.small.top
    assert sum(group.objects for group in report.ages) == 40
    assert sum(group.nbytes for group in report.ages) == stats.used
    assert {t.name: t.objects for t in report.types} == {"numpy.ndarray": 30, "int": 10}
    assert sum(t.nbytes for t in report.types) == stats.used
    [client] = report.clients
    told = client.objects, client.nbytes, client.views, client.pinned_nbytes
    assert told == (40, stats.used, 3, stats.pinned)
    assert client.oldest_view == pytest.approx(time.time(), abs=10)
    views.clear()
    refs.clear()


def test_objects_are_told_by_age(store: Store) -> None:
    """Each group has its objects and bytes; what lies in the future is young."""
    for key, seconds in (("now", -500), ("s", 5), ("min", 100), ("h", 4000), ("d", 90_000)):
        store[key] = np.zeros(1000)
        make_old(store, key, seconds)
    ages = {group.name: (group.objects, group.nbytes) for group in store.why_full().ages}
    assert ages == dict.fromkeys(("< 1 s", "< 1 min", "< 1 h", "< 1 d", "older"), (1, 8000))


def test_types_beyond_the_first_are_told_together(store: Store) -> None:
    """Ten by name, in the order of their bytes, and the rest in one line."""
    few = (1, 1.5, "a", (), frozenset({1}), 1j, None, True, range(3), slice(3), [], {})
    for value in (np.zeros(500), bytearray(3000), [bytes(2000)], *few):
        store.put(value)
    report = store.why_full()
    assert len(report.types) == 11
    named = [(group.name, group.objects, group.nbytes) for group in report.types]
    assert named[0] == ("numpy.ndarray", 1, 4032)
    assert named[1][:2] == ("bytearray", 1)
    assert named[2][:2] == ("list", 2)
    assert named[-1] == ("others", 4, 0)


@lock_free_only
def test_report_of_100_000_objects_looks_at_few_of_them(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lock hold, and a plan for a bounded number of objects, however many there are."""
    store = make_store(capacity="64MiB")
    store.put(np.zeros(MIB))
    value = np.zeros(20)
    for _ in range(100):
        store.put_many([value] * 1000)
    looks, holds, lock = [], [], store._session.lock
    make_plan, run = _fullness.make_plan, lock.run

    def counted(*args: Any, **choices: Any) -> Any:
        looks.append(args)
        return make_plan(*args, **choices)

    monkeypatch.setattr(_fullness, "make_plan", counted)
    monkeypatch.setattr(lock, "run", lambda *args: (holds.append(args), run(*args))[1])
    report = store.why_full()
    assert (len(holds), len(looks) <= _fullness.MOST_TYPED) == (1, True)
    monkeypatch.undo()
    assert report.objects == sum(group.objects for group in report.types) == 100_001
    assert report.types[-1].name == "others, mostly numpy.ndarray"
    assert report.used == sum(group.nbytes for group in report.types)
    assert "100,001 of 1,000,000 slots" in _text(report)


def test_damaged_slots_do_not_hide_the_others(store: Store) -> None:
    """Sizes, times, pids and owners are numbers that somebody else wrote."""
    store["bad"], store["good"] = np.zeros(1000), np.ones(1000)
    session: Any = store._session
    slot = store.info("bad").slot
    fields = (L.S_CREATED_NS, L.S_PID, L.S_OWNER, L.S_EXTENT_NBYTES, L.S_EXPIRES_NS)
    places = [rooms.word_of(slot, field, session.index) for field in fields]
    before = [session.words[place] for place in places]
    for place in places:
        session.words[place] = (1 << 64) - 1
    report = store.why_full()
    _text(report)
    assert ("damaged", 1) in [(group.name, group.objects) for group in report.types]
    assert sum(group.nbytes for group in report.ages) <= 8000 + report.capacity
    for place, value in zip(places, before, strict=True):
        session.words[place] = value


# --- processes ------------------------------------------------------------------------------------


@lock_free_only
def test_processes_are_told_with_what_they_put_and_keep(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """A living one, a dead one, and one that has left."""
    store = make_store("busy")
    store["deleted"] = np.zeros(10_000)
    holder = """
        import shmstore, numpy
        store = shmstore.Store.attach(name)
        store.put_many([numpy.zeros(1000)] * puts)
        view = store["deleted"]
        print("holds", flush=True)
        input()
        del view
        store.close()
    """
    children = [start_python(holder, name="busy", puts=puts) for puts in (1, 2, 3)]
    assert [child.hear() for child in children] == ["holds"] * 3
    del store["deleted"]
    living, dead, left = children
    dead.kill()
    left.say()
    left.end()
    report = store.why_full()
    found = {client.pid: client for client in report.clients}
    assert found.keys() == {os.getpid(), *(child.pid for child in children)}
    told = {
        pid: (c.alive, c.attached, c.objects, c.nbytes, c.views, c.deleted_nbytes)
        for pid, c in found.items()
    }
    assert told[living.pid] == (True, True, 1, 8000, 1, 80_000)
    assert told[dead.pid] == (False, True, 2, 16_000, 1, 80_000)
    assert told[left.pid] == (False, False, 3, 24_000, 0, 0)
    assert told[os.getpid()] == (True, True, 0, 0, 0, 0)
    text = _text(report)
    assert f"pid {dead.pid} (dead)" in text
    assert (report.deleted, report.deleted_nbytes) == (1, 80_000)
    living.say()
    living.end()
    store.recover()
    assert store.why_full().deleted == 0


@lock_free_only
def test_processes_that_left_are_told_together_if_they_are_many(store: Store) -> None:
    """The largest by name, the rest in one line."""
    for number in range(13):
        child = forked(lambda: store.put_many([np.zeros(1000)] * 2))
        assert exit_code(child) == 0, number
    store.recover()
    departed = [client for client in store.why_full().clients if not client.attached]
    assert len(departed) == 11
    assert [client.objects for client in departed if client.pid] == [2] * 10
    [rest] = [client for client in departed if not client.pid]
    assert (rest.name, rest.objects, rest.nbytes) == ("3 processes that have left", 6, 48_000)
    assert re.search(r"^6 more +78.1 KiB in 10$", _text(store.why_full()), re.MULTILINE)


@lock_free_only
def test_half_made_puts_are_told_and_come_back_after_a_death(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """First one waits for the process; when it is dead, recover() gives exactly these bytes."""
    store = make_store("half")
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name)
        with store.allocate(1 << 20, "u1"), store.allocate(1 << 20, "u1"):
            print("builds", flush=True)
            input()
        """,
        name="half",
    )
    assert child.hear() == "builds"
    report = store.why_full(3 * MIB)
    assert (report.half_made, report.half_made_nbytes) == (2, 2 * MIB)
    [builder] = [client for client in report.clients if client.pid == child.pid]
    assert (builder.half_made, builder.half_made_nbytes, builder.views) == (2, 2 * MIB, 0)
    assert remedy_of(report, f"wait for pid {child.pid}").endswith(
        "2 MiB in 2 puts that it has begun"
    )
    assert report.reason == "Most of it, 2 MiB, is half-made puts."
    child.kill()
    report = store.why_full(3 * MIB)
    assert report.remedies[0] == "recover(): 2 MiB held by 1 dead process"
    assert "half-made" in _text(report)
    assert store.recover().nbytes == 2 * MIB
    assert store.why_full(3 * MIB).remedies == ()


@lock_free_only
def test_readonly_handle_may_ask(make_store: MakeStore, run_python: Any) -> None:
    """It changes nothing, and sees the same."""
    store = make_store("shared")
    store["a"] = np.zeros(1000)
    code = """
        import shmstore
        with shmstore.Store.attach(name, readonly=True) as store:
            report = store.why_full()
            print(report.used, len(report.clients), len(str(report).splitlines()) <= 40)
    """
    assert run_python(code, name="shared") == "8000 2 True"


# --- the page -------------------------------------------------------------------------------------


def test_expired_objects_are_told_until_somebody_takes_their_memory(store: Store) -> None:
    """A handle that may only read sees them; one that may write takes them away by looking."""
    store["new"] = np.zeros(1000)
    store.put(np.zeros(1000), key="old", ttl=1e-3)  # the last put: the next takes it away
    time.sleep(2e-3)
    with Store.attach(store.path, readonly=True) as reader:
        report = reader.why_full()
        assert (report.expired, report.expired_nbytes) == (1, 8000)
        assert remedy_of(report, "trim(), or the next put: 7.8 KiB of 1 object that expired")
        assert "expired" in _text(report)
        assert (store.why_full().used, reader.why_full().expired) == (8000, 0)


def test_page_with_everything_fits_a_screen(store: Store) -> None:
    """However much there is to tell."""
    values = (1, 1.5, "a", (), frozenset({1}), 1j, None, True, range(3), slice(3))
    for number, value in enumerate(values):
        store[f"k{number}"] = value
        make_old(store, f"k{number}", 4.0**number)
        assert exit_code(forked(lambda n=number: store.put(np.zeros(100 * n + 100)))) == 0
    store["seen"] = np.zeros(9)
    view = store["seen"]
    text = _text(store.why_full(4 * MIB))
    assert text.count(" more") >= 2
    del view


@pytest.mark.parametrize("asked", ["many", 1.5, -1])
def test_size_that_is_none_is_refused(store: Store, asked: Any) -> None:
    """What there is no room for is a size."""
    with pytest.raises((TypeError, ValueError)):
        store.why_full(asked)


def test_queue_that_fills_the_store_is_named(make_store: MakeStore) -> None:
    """What waits in it cannot be deleted, so that is no advice."""
    store = make_store(capacity=4 * MIB)
    jobs, few = store.queue("jobs"), store.queue("few")
    few.put(b"x" * 10_000)
    for _ in range(7):
        jobs.put(np.zeros(MIB // 16))
    text = remedy_of(store.why_full(2 * MIB), "get what waits in queue 'jobs'")
    assert "3.5 MiB of 7 objects" in text
    remedies = store.why_full(2 * MIB).remedies
    assert not any("delete objects" in remedy for remedy in remedies)
    assert [name in " ".join(remedies) for name in ("'jobs'", "'few'")] == [True, True]
    while jobs.qsize():
        jobs.get()
    assert "jobs" not in " ".join(store.why_full(2 * MIB).remedies)


@lock_free_only
def test_slots_set_aside_are_told_of_a_full_store(make_store: MakeStore) -> None:
    """Others keep some for their next small objects: the error and the page say how many."""
    store = make_quick(make_store, max_objects=1 << 14)
    store.delete(store.put(1))
    ready, told = os.pipe()

    def child() -> None:
        for number in range(10):
            store.put(number)
        os.write(told, b".")
        signal.pause()

    pid = forked(child)
    os.read(ready, 1)

    def fill(count: int) -> None:
        while True:
            store.put_many(range(count))

    with pytest.raises(StoreFullError):
        fill(64)
    with pytest.raises(StoreFullError, match="slots are set aside for the next ones") as caught:
        fill(1)
    report = store.why_full()
    assert 0 < report.set_aside <= caught.value.set_aside < 256
    assert report.slots_used == report.max_objects == report.objects + report.set_aside
    assert "slots set aside, as many as max_objects allows" in report.reason
    assert "set aside" in _text(report)
    assert not store.check()
    kill(pid)
    assert store.put("in its place").get() == "in its place"
    assert store.why_full().set_aside == store._session.spares.small.top
    for fd in (ready, told):
        os.close(fd)
