"""Waiting for objects: nobody polls, nobody is left asleep, whoever dies."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
from stores import Flag, MakeStore, RunPython, StartPython, running, wait_until
from waits import activity_at_rest, activity_of, after, start_waiter, state_of, waiters

import shmstore
from shmstore import Store, WaitTimeoutError


@pytest.fixture
def locked_reads(request: pytest.FixtureRequest) -> bool:
    """Read without the lock, where a test does not choose."""
    return getattr(request, "param", False)


# --- one key -------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked_reads", [False, True], ids=["lock-free", "locked"], indirect=True)
@pytest.mark.parametrize("readonly", [False, True], ids=["writer", "reader"])
def test_get_of_a_missing_key_returns_what_another_process_puts(
    store: Store, start_python: StartPython, readonly: Flag
) -> None:
    """A waiter that sleeps in another process, read-only or not, has the object once it is put."""
    child = start_waiter(start_python, store, readonly=readonly)
    store["key"] = "came"
    assert child.hear() == "came"
    child.end()
    assert waiters(store) == 0


def test_get_with_a_timeout_of_what_is_there_returns_at_once(store: Store) -> None:
    """Nobody waits for an object that is there, by key or by reference."""
    ref = store.put([1], key="key")
    assert store.get("key", timeout=None) == [1]
    assert store.get(ref, timeout=None) == [1]
    assert list((store.path / "seats").glob("*-*")) == []


@pytest.mark.parametrize("timeout", [1e-9, 0.001, 0.02])
def test_get_after_its_timeout_raises_and_names_the_key(store: Store, timeout: float) -> None:
    """The error is a TimeoutError, with the key as a fact; a default is returned instead."""
    with pytest.raises(WaitTimeoutError, match="'missing'") as raised:
        store.get("missing", timeout=timeout)
    assert (raised.value.key, raised.value.timeout_s) == ("missing", timeout)
    assert store.get("missing", 7, timeout=timeout) == 7
    assert waiters(store) == 0


def test_get_of_a_deleted_reference_does_not_wait(store: Store) -> None:
    """A deleted object never comes back, however long somebody waits."""
    ref = store.put([1])
    ref.delete()
    with pytest.raises(shmstore.ObjectNotFoundError):
        store.get(ref, timeout=None)


def test_get_with_what_is_no_timeout_is_refused(store: Store) -> None:
    """Nan would be a wait without an end that nobody asked for."""
    with pytest.raises(ValueError, match="nan"):
        store.get("missing", timeout=float("nan"))
    with pytest.raises(ValueError, match="timeout='soon': give seconds, or None"):
        store.get("missing", timeout="soon")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"timeout=\[1\]: give seconds, or None"):
        store.wait(["missing"], timeout=[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("before", [False, True], ids=["first wait", "later wait"])
def test_wait_in_a_store_whose_folder_was_removed_says_so(
    make_store: MakeStore, *, before: bool
) -> None:
    """By whichever call, also where there is a bell already: nobody else finds it."""
    store = make_store()
    ref = store.put(1)
    jobs = store.queue("jobs")
    if before:
        assert store.wait(["z"], timeout=0.01).not_done
    shutil.rmtree(store.path)
    for call in (
        lambda: store.wait(["z"], timeout=0.1),
        lambda: store.get("z", timeout=0.1),
        lambda: next(store.as_completed(["z"], timeout=0.1)),
        lambda: ref.wait(timeout=0.1),
        lambda: jobs.get(timeout=0.1),
        store.watch,
    ):
        with pytest.raises(shmstore.StoreNotFoundError, match="has been removed") as caught:
            call()
        assert caught.value.facts["path"] == str(store.path)
    assert ref.get() == 1


def put_in_a_batch(store: Store) -> None:
    """Put several objects at once."""
    store.put_many({"other": 1, "key": np.arange(3)})


def build(store: Store) -> None:
    """Build an array in place."""
    with store.allocate(3, "i8", key="key") as array:
        array[:] = [0, 1, 2]


def put_large(store: Store) -> None:
    """Put what is copied without the lock: an array of half a mebibyte, with a look at three."""
    store.put(Sparse(), key="key")


class Sparse:
    """Something large that becomes three numbers."""

    def __init__(self) -> None:
        self.ballast = np.zeros(1 << 16)

    def tolist(self) -> list[int]:
        """Return the three numbers."""
        return [0, 1, 2][: len(self.ballast)]


@pytest.mark.parametrize("put", [put_in_a_batch, build, put_large])
def test_every_way_to_put_wakes_who_waits(store: Store, put: Any) -> None:
    """Batches, arrays that are built in place and what is copied without the lock."""
    with after(0.05, put, store):
        assert store.get("key", timeout=stores.WAIT_S).tolist() == [0, 1, 2]


def test_object_that_goes_to_a_file_wakes_who_waits(make_store: MakeStore, tmp_path: Path) -> None:
    """A put that finds no room in memory is a put all the same."""
    store = make_store(capacity="64KiB", on_full="spill", spill_dir=tmp_path)
    with after(0.05, lambda: store.put(np.arange(100_000), key="key")):
        assert store.get("key", timeout=stores.WAIT_S)[-1] == 99_999
    store.clear()


def test_many_waiters_for_one_key_all_get_it(store: Store, start_python: StartPython) -> None:
    """One put wakes all of them, threads and processes."""
    children = [start_waiter(start_python, store) for _ in range(3)]
    got: list[Any] = []
    with running(*[lambda: got.append(store.get("key", timeout=None))] * 3):
        wait_until(lambda: waiters(store) == 6)
        store["key"] = 5
    assert got == [5] * 3
    assert [child.hear() for child in children] == ["5"] * 3
    for child in children:
        child.end()


def test_waiter_for_another_key_is_not_woken(store: Store, start_python: StartPython) -> None:
    """Who waits uses no processor and is not scheduled, whatever others put meanwhile."""
    child = start_waiter(start_python, store)
    wait_until(lambda: state_of(child.process.pid) == "S")
    before = activity_at_rest(child.process.pid)
    for number in range(100):
        store[f"other {number}"] = number
        time.sleep(0.002)
    assert activity_of(child.process.pid) == before
    store["key"] = 1
    assert child.hear() == "1"
    child.end()


# --- several keys --------------------------------------------------------------------------------


def test_wait_tells_which_keys_are_there(store: Store) -> None:
    """As concurrent.futures.wait: when all are there, when one is, or when the time is over."""
    store["a"] = 1
    assert store.wait([], timeout=None) == (set(), set())
    assert store.wait(["a", "b"], timeout=0) == ({"a"}, {"b"})
    assert store.wait(["a", "b"], timeout=0.01) == ({"a"}, {"b"})
    assert store.wait(["a", "b"], return_when="FIRST") == ({"a"}, {"b"})
    with after(0.05, store.put, 1), after(0.05, lambda: store.put(2, key="b")):
        assert store.wait(["a", "b", "b"]) == ({"a", "b"}, set())
    with after(0.05, lambda: store.put(2, key="d")):
        assert store.wait(["c", "d"], return_when="FIRST") == ({"d"}, {"c"})
    assert waiters(store) == 0


def test_wait_with_another_return_when_is_refused(store: Store) -> None:
    """The two that there are are named."""
    with pytest.raises(ValueError, match="'ALL' or 'FIRST'"):
        store.wait(["a"], return_when="ANY")


def test_wait_for_more_keys_than_one_may_enter_is_woken_by_any(store: Store) -> None:
    """Beyond a part of the table the waiter listens to all keys; he misses none."""
    session: Any = store._session
    keys = [f"k{number}" for number in range(session.waiters.most_topics() + 10)]
    with after(0.05, lambda: [store.put(1, key=key) for key in keys]):
        done, not_done = store.wait(keys, timeout=stores.WAIT_S)
    assert (done, not_done) == (set(keys), set())
    assert waiters(store) == 0


def test_as_completed_gives_keys_in_the_order_in_which_they_come(
    store: Store, start_python: StartPython
) -> None:
    """Those that are there come first; the others as they are put by another process."""
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name)
        for key in "edc":
            input()
            store[key] = key
        """,
        name=store.name,
    )
    store["a"] = store["b"] = 0
    found = []
    for key in store.as_completed(["a", "c", "e", "d", "b"]):
        found.append(key)
        if len(found) in (2, 3, 4):
            child.say()
    assert (set(found[:2]), found[2:]) == ({"a", "b"}, ["e", "d", "c"])
    child.end()


def test_as_completed_raises_when_its_time_is_over(store: Store) -> None:
    """What came before is given; the error names what is missing."""
    store["a"] = 1
    keys = store.as_completed(["a", "b", "c"], timeout=0.01)
    assert next(keys) == "a"
    with pytest.raises(WaitTimeoutError, match="of 2 keys") as raised:
        next(keys)
    assert raised.value.keys == {"b", "c"}
    assert waiters(store) == 0


def test_as_completed_that_is_given_up_leaves_no_rows(store: Store) -> None:
    """Who breaks out of the loop waits no longer."""
    store["a"] = 1
    for key in store.as_completed(["a", "b"]):
        assert key == "a"
        break
    assert waiters(store) == 0


# --- the end of an object ------------------------------------------------------------------------


def expire(ref: shmstore.ObjectRef, store: Store) -> None:
    """Do nothing: its time is over by itself."""


@pytest.mark.parametrize(
    "end",
    [
        lambda ref, _: ref.delete(),
        lambda _, store: store.put(2, key="key"),
        lambda _, store: store.clear(),
        expire,
    ],
    ids=["delete", "overwrite", "clear", "expire"],
)
def test_reference_that_is_waited_for_tells_the_end_of_its_object(store: Store, end: Any) -> None:
    """Whatever takes the object away wakes who waits for that."""
    ref = store.put([1], key="key", ttl=0.2 if end is expire else None)
    assert not ref.wait(timeout=0.01)
    with after(0.05, end, ref, store):
        assert ref.wait(timeout=stores.WAIT_S)
    assert ref.wait()
    assert waiters(store) == 0


def test_reference_into_a_store_that_is_destroyed_has_come_to_its_end(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """A waiter in another process is told that there is nothing to wait for any more."""
    store = make_store()
    child = start_python(
        "print('ready', flush=True); print(ref.wait(), flush=True)", ref=store.put([1])
    )
    assert child.hear() == "ready"
    wait_until(lambda: waiters(store) == 1)
    store.destroy()
    assert child.hear() == "True"
    child.end()


def test_waiter_that_may_use_one_core_of_several_still_spins(run_python: RunPython) -> None:
    """It may be his alone; that others have it too is met by letting them go first."""
    code = """
    import os, shmstore
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from shmstore import _waiting
    looks = []
    assert _waiting.spin(lambda: looks.append(1), None) is None
    print(_waiting._has_one_core, len(looks) > 1 or os.cpu_count() == 1)
    """
    assert run_python(code) == "True True"
