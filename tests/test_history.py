"""What processes see of a key is the history of one register, whatever happens to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import history_records as R
import numpy as np
import pytest
from history import SCENARIOS, run, tell
from history_checker import ANY, MISSING, OTHER, PRESENT, SAME, Operation, in_any_order, violation
from history_records import Recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Flag, MakeStore, exit_code, forked, forks, lock_free_only, signal_at

from shmstore import LockTimeoutError, ObjectNotFoundError, ObjectRef, Store

pytestmark = forks

OPERATIONS = 2000


# --- histories of the store -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_history_of_a_key_is_linearizable(name: str, tmp_path: Path) -> None:
    """An order of the operations explains what each of them saw, for every key."""
    outcome = run(SCENARIOS[name], OPERATIONS, tmp_path, seed=11)
    tell(name, outcome)
    assert outcome.violations == {}
    assert outcome.operations > OPERATIONS * 0.7
    assert outcome.kinds == set(R.NAMES.values())
    leaves_by_itself = SCENARIOS[name].options.keys() & {"on_full", "ttl"}
    assert bool(outcome.made_room) == bool(leaves_by_itself)


def overwritten_up_to(store: Store, number: int, signal_: int) -> tuple[int, bool]:
    """Let a child overwrite a key and get a signal at a store; return (pid, whether it did)."""

    def overwrite() -> None:
        with signal_at(store, number, signal_):
            store["k"] = NEW

    pid = forked(overwrite)
    _, status = os.waitpid(pid, os.WUNTRACED)
    return pid, not os.WIFEXITED(status)


OLD, NEW = 1, 2


@lock_free_only
@pytest.mark.parametrize("signal_", [signal.SIGSTOP, signal.SIGKILL])
def test_overwrite_that_stops_anywhere_shows_nobody_the_old_object_after_the_new(
    make_store: MakeStore, signal_: signal.Signals
) -> None:
    """Who remembers where the old object lies sees what others see who look the key up."""
    store = make_store(lock_timeout=0.05)
    seen = []
    with Store.attach(store.path, readonly=True, lock_timeout=0.05) as looking_up:

        def see(handle: Store) -> int | None:
            try:
                return int(handle["k"])
            except LockTimeoutError:
                return None

        for number in range(1, 200):
            store["k"] = OLD
            assert store["k"] == OLD
            looking_up._session.plans.clear()
            pid, in_time = overwritten_up_to(store, number, signal_)
            seen.append((see(looking_up), see(store)))
            if in_time and signal_ == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
                assert exit_code(pid) == 0
            if not in_time:
                break
    assert (NEW, OLD) not in seen
    assert {(OLD, OLD), (NEW, NEW)} <= set(seen)


@pytest.mark.parametrize("value", [1, np.arange(100)], ids=["in the slot", "in an extent"])
def test_overwritten_object_is_passed_by_although_its_slot_is_wiped(
    make_store: MakeStore, value: Any
) -> None:
    """What leads to the old object is found before nothing of it is left."""
    store = make_store(zero_on_free=True)
    for number in range(40):
        store[f"other {number}"] = number
        store["k"] = value
        store["k"] = number
        assert store["k"] == number
    assert store.check() == []


def test_setdefault_whose_object_is_deleted_at_once_does_not_put_it_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody has deleted does not come back by itself."""
    get = ObjectRef.get

    def delete_and_get(ref: ObjectRef, **choices: Any) -> Any:
        monkeypatch.setattr(ObjectRef, "get", get)
        assert store.discard("k")
        return get(ref, **choices)

    monkeypatch.setattr(ObjectRef, "get", delete_and_get)
    assert store.setdefault("k", "mine") == "mine"
    assert "k" not in store
    with pytest.raises(ObjectNotFoundError):
        store["k"]


# --- the checker ----------------------------------------------------------------------------------


def put(start: int, end: int, value: int) -> Operation:
    """Return an overwrite."""
    return Operation(start, end, ANY, value, label=f"put {value}")


def absent(start: int, end: int, value: int) -> Operation:
    """Return a put where nothing was."""
    return Operation(start, end, MISSING, value, label=f"put if absent {value}")


def get(start: int, end: int, value: int) -> Operation:
    """Return a get and what it got."""
    return Operation(start, end, value, SAME, label=f"get {value}")


def pop(start: int, end: int, value: int) -> Operation:
    """Return a pop and what it got."""
    return Operation(start, end, value, MISSING, label=f"pop {value}")


def delete(start: int, end: int) -> Operation:
    """Return a delete of something that was there."""
    return Operation(start, end, PRESENT, MISSING, label="delete")


def killed(operation: Operation) -> Operation:
    """Return an operation that may have happened or not."""
    return operation._replace(optional=True)


LINEARIZABLE = {
    "one after the other": [put(0, 1, 1), get(2, 3, 1), delete(4, 5), get(6, 7, 0)],
    "seen before it returns": [put(0, 9, 1), get(1, 2, 0), get(3, 4, 1)],
    "puts at once in either order": [put(0, 9, 1), put(0, 9, 2), get(10, 11, 1)],
    "at the same instant": [put(0, 5, 1), get(5, 6, 0)],
    "deleted between two puts if absent": [absent(0, 1, 1), absent(2, 9, 2), delete(3, 4)],
    "killed and seen": [killed(put(0, 9, 1)), get(1, 2, 0), get(3, 4, 1)],
    "killed and never seen": [put(0, 1, 1), killed(put(2, 5, 2)), get(6, 7, 1)],
    "killed delete seen late": [put(0, 1, 1), killed(delete(2, 9)), get(3, 4, 1), get(5, 6, 0)],
    "a reference that is gone": [put(0, 1, 1), put(2, 3, 2), Operation(4, 5, OTHER, SAME, 1)],
}

NOT_LINEARIZABLE = {
    "stale read": [put(0, 1, 1), put(2, 3, 2), get(4, 5, 1)],
    "lost update": [put(0, 1, 1), put(2, 3, 2), delete(4, 5), delete(6, 7)],
    "update never seen": [put(0, 1, 1), get(2, 3, 0)],
    "two puts if absent": [absent(0, 9, 1), absent(0, 9, 2)],
    "resurrected": [put(0, 1, 1), delete(2, 3), get(4, 5, 1)],
    "new, then old": [put(0, 1, 1), put(2, 9, 2), get(3, 4, 2), get(5, 6, 1)],
    "popped twice": [put(0, 1, 1), pop(2, 9, 1), pop(2, 9, 1)],
    "deleted twice": [put(0, 1, 1), delete(2, 9), delete(2, 9)],
    "never put": [get(0, 1, 7)],
    "seen before it began": [get(0, 1, 1), put(2, 3, 1)],
    "put twice": [absent(0, 9, 1), get(1, 2, 1), delete(3, 4), get(5, 6, 1)],
    "happens after it was buried": [killed(put(0, 3, 1)), get(4, 5, 0), get(6, 7, 1)],
    "killed and torn": [killed(put(0, 9, 1)), get(1, 2, 1), get(3, 4, 0)],
    "a reference that comes back": [
        put(0, 1, 1),
        put(2, 3, 2),
        Operation(4, 5, OTHER, SAME, 1),
        get(6, 7, 1),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_history_that_an_order_explains_is_accepted(name: str) -> None:
    """Also where the order is not that of the calls."""
    assert violation(LINEARIZABLE[name]) is None
    assert in_any_order(LINEARIZABLE[name])


@pytest.mark.parametrize("name", NOT_LINEARIZABLE)
def test_history_that_no_order_explains_is_refused(name: str) -> None:
    """The message names the operation that has no place."""
    found = violation(NOT_LINEARIZABLE[name])
    assert found is not None
    assert found.operation.label in str(found)
    assert not in_any_order(NOT_LINEARIZABLE[name])


def test_history_of_objects_that_vanish_is_accepted_unless_they_come_back() -> None:
    """An object may be evicted at any time, but not be there again."""
    vanished = [put(0, 1, 1), get(2, 3, 1), get(4, 5, 0)]
    assert violation(vanished, may_vanish=True) is None
    assert violation(vanished) is not None
    assert violation([*vanished, get(6, 7, 1)], may_vanish=True) is not None


def instants() -> st.SearchStrategy[tuple[int, int]]:
    """Return starts and ends, of which many fall together."""
    return st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: (min(pair), max(pair)))


def operations() -> st.SearchStrategy[Operation]:
    """Return operations on a register of few states."""
    return st.builds(
        lambda when, *rest: Operation(*when, *rest),
        instants(),
        st.sampled_from([ANY, ANY, PRESENT, OTHER, MISSING, 1, 2]),
        st.sampled_from([SAME, SAME, MISSING, 1, 2, 3]),
        st.integers(1, 2),
        st.sampled_from([False, False, True]),
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(operations(), max_size=6), st.booleans())
def test_checker_says_what_trying_all_orders_says(
    history: list[Operation], may_vanish: Flag
) -> None:
    """The search and the plain definition agree on any short history."""
    found = violation(history, may_vanish=may_vanish)
    assert (found is None) == in_any_order(history, may_vanish=may_vanish)


# --- the records ----------------------------------------------------------------------------------

ENDED = {
    "put": ((R.PUT, 5, 1), put(0, 0, 5)),
    "put where nothing was": ((R.PUT_IF_ABSENT, 5, 1), absent(0, 0, 5)),
    "put where something was": ((R.PUT_IF_ABSENT, 5, 0), Operation(0, 0, PRESENT, SAME)),
    "get": ((R.GET, 0, 5), get(0, 0, 5)),
    "get nothing": ((R.GET, 0, 0), get(0, 0, 0)),
    "in": ((R.CONTAINS, 0, 1), Operation(0, 0, PRESENT, SAME)),
    "not in": ((R.CONTAINS, 0, 0), get(0, 0, 0)),
    "discard": ((R.DISCARD, 0, 1), delete(0, 0)),
    "discard nothing": ((R.DISCARD, 0, 0), get(0, 0, 0)),
    "pop": ((R.POP, 0, 5), pop(0, 0, 5)),
    "setdefault that puts": ((R.SETDEFAULT, 5, 5), absent(0, 0, 5)),
    "setdefault that gets": ((R.SETDEFAULT, 5, 6), get(0, 0, 6)),
    "ref.get": ((R.REF_GET, 5, 1), get(0, 0, 5)),
    "ref.get of what is gone": ((R.REF_GET, 5, 0), Operation(0, 0, OTHER, SAME, 5)),
    "ref.delete": ((R.REF_DELETE, 5, 1), pop(0, 0, 5)),
    "ref.delete of what is gone": ((R.REF_DELETE, 5, 0), Operation(0, 0, OTHER, SAME, 5)),
}


@pytest.mark.parametrize("name", ENDED)
def test_record_says_what_its_operation_needs_and_leaves(name: str, tmp_path: Path) -> None:
    """Key, times and meaning come back from the file."""
    (kind, value, result), expected = ENDED[name]
    recorder = Recorder(tmp_path / "1", 10)
    at = recorder.begin(kind, 3, value)
    recorder.end(at, result, 1 << 62)
    [(key, operation)] = R.read(tmp_path / "1", 0)
    assert key == 3
    assert 0 < operation.start < operation.end == 1 << 62
    assert operation[2:4] == expected[2:4]
    assert expected.needs != OTHER or operation.value == expected.value
    assert R.room_in(tmp_path / "1") == recorder.left() == 9


CUT_SHORT: dict[int, tuple[int, int]] = {
    R.PUT: (ANY, 5),
    R.PUT_IF_ABSENT: (MISSING, 5),
    R.DISCARD: (PRESENT, MISSING),
    R.POP: (PRESENT, MISSING),
    R.SETDEFAULT: (MISSING, 5),
    R.REF_DELETE: (5, MISSING),
}


def test_record_of_a_killed_process_is_an_operation_that_may_have_happened(tmp_path: Path) -> None:
    """Until the dead were buried. What was only read, or found no room, says nothing."""
    recorder = Recorder(tmp_path / "1", 20)
    for kind in R.NAMES:
        recorder.begin(kind, 0, 5)
    recorder.end(recorder.begin(R.PUT, 0, 6), R.FULL, 7)
    found = [operation for _, operation in R.read(tmp_path / "1", 1 << 62)]
    assert {operation.end for operation in found} == {1 << 62}
    assert all(operation.optional for operation in found)
    assert [operation[2:4] for operation in found] == list(CUT_SHORT.values())
