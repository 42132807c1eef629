"""The pin race, step by step: whatever happens between two steps of a get, its object is whole.

The stress tests leave the order of events to chance. Here an attack strikes at each load of the
index that a get makes, before and after it: the object is overwritten, and the store is filled to
the brim with other bytes and emptied again, so that its memory is used anew if nothing keeps it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import (
    MIB,
    MakeStore,
    StartPython,
    fill_up,
    lock_free_only,
    reclaim_at_once,
    replaced_words,
)

import shmstore._space
from shmstore import LockTimeoutError, ObjectRef, Store
from shmstore._sharing.clients import Clients


class Attack:
    """Strikes once, at the n-th point of a get.

    Parameters
    ----------
    number
        Which point; there are two at each load.
    action
        What is done then.
    """

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._left = number
        self._action = action
        self.struck = False

    def point(self, lock: Any) -> None:
        """Strike if it is time, and if somebody else could: not while this thread has the lock."""
        if self.struck or lock._thread == threading.get_ident():
            return
        self._left -= 1
        if self._left <= 0:
            self.struck = True
            self._action()


class AttackedWords:
    """The words of an index, with a point before and after each load."""

    def __init__(self, words: Any, attack: Attack, lock: Any) -> None:
        self._words, self._attack, self._lock = words, attack, lock

    def __getitem__(self, at: Any) -> Any:
        self._attack.point(self._lock)
        value = self._words[at]
        self._attack.point(self._lock)
        return value

    def __setitem__(self, at: Any, value: Any) -> None:
        self._words[at] = value


def long_dtype(value: int) -> np.ndarray:
    """Return an array whose header is too long to lie beside its slot."""
    fields = [(f"a field with a long name, number {number}", "u1") for number in range(30)]
    return np.full(30 * 40, value, np.uint8).view(np.dtype(fields))


KINDS: dict[str, Callable[[int], Any]] = {
    "array": lambda value: np.full(1000, value, np.uint8),
    "large array": lambda value: np.full(200_000, value, np.uint8),
    "array with a long header": long_dtype,
    "dict of arrays": lambda value: {
        "a": np.full(500, value, np.uint8),
        "b": np.full(3000, value, np.uint8),
    },
    "plain": lambda value: [value] * 3,
    "long plain": lambda value: [value] * 1000,
}


def numbers_in(got: Any) -> set[int]:
    """Return the numbers that an object consists of: one, if it is whole."""
    if isinstance(got, dict):
        return numbers_in(got["a"]) | numbers_in(got["b"])
    return set(got.view(np.uint8).tolist()) if isinstance(got, np.ndarray) else set(got)


OLD, NEW, OTHER = 1, 2, 255


@lock_free_only
@pytest.mark.parametrize("mode", ["shared", "private", "copy"])
@pytest.mark.parametrize("by", ["key", "reference", "remembered key", "remembered reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_get_attacked_at_any_load_shows_one_whole_object(
    make_store: MakeStore, kind: str, by: str, mode: str
) -> None:
    """The old one or the new one, and the same one for as long as it is looked at."""
    make = KINDS[kind]
    store = make_store(capacity=MIB if kind.startswith("large") else 20_000, max_objects=12)

    def overwrite_and_refill() -> None:
        for _ in range(3):
            store.put(make(NEW), key="k")
        store.delete_many(fill_up(store, make(OTHER)))
        store.delete_many(fill_up(store, np.full(2000, OTHER, np.uint8)))

    for number in range(1, 500):
        ref = store.put(make(OLD), key="k")
        target: Any = "k" if by.endswith("key") else ref
        if by.startswith("remembered"):
            store.get(target)
        attack = Attack(number, overwrite_and_refill)
        with replaced_words(store, lambda w, a=attack: AttackedWords(w, a, store._session.lock)):
            got = store.get(target, None, mode=mode)
        if not attack.struck:
            break
        assert got is not None or by.endswith("reference"), f"point {number}"
        if got is not None:
            seen = numbers_in(got)
            assert seen in ({OLD}, {NEW}), f"point {number}: torn"
            overwrite_and_refill()
            assert numbers_in(got) == seen, f"point {number}: not pinned"
    assert number > 2
    del got


class WatchedWords(AttackedWords):
    """The words of an index, with a look at the store after each of its stores."""

    def __init__(self, words: Any, look: Callable[[], None]) -> None:
        self._words, self._look = words, look

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._words[at] = value
        self._look()


def seen_during(store: Store, change: Callable[[], Any], ref: ObjectRef) -> list[Any]:
    """Make a change; return what a reader sees after each store, by key and by reference."""
    seen: list[Any] = []
    looking = False

    def look() -> None:
        nonlocal looking
        if looking:
            return
        looking = True
        store._session.plans.clear()
        for target in ("k", ref):
            try:
                got = store.get(target, None)
                seen.append(None if got is None else numbers_in(got))
            except LockTimeoutError:
                seen.append("waits")  # for the lock, which in this test it cannot get
        looking = False

    with replaced_words(store, lambda words: WatchedWords(words, look)):
        change()
    return seen


@lock_free_only
@pytest.mark.parametrize("kind", KINDS)
def test_put_looked_at_after_each_store_shows_the_old_object_and_then_the_new(
    make_store: MakeStore, kind: str
) -> None:
    """Never a mixture, never neither, never back."""
    make = KINDS[kind]
    store = make_store(capacity=MIB, max_objects=12)
    for _ in range(2):
        ref = store.put(make(OLD), key="k")
        store["l"] = make(OLD)
        seen = seen_during(store, lambda: store.put_many({"k": make(NEW), "l": make(NEW)}), ref)
        by_key, by_reference = seen[::2], seen[1::2]
        assert len(by_key) > 5
        assert by_key[0] == {OLD}
        assert by_key[-1] == {NEW}
        assert [got for got in by_key if got not in ({OLD}, {NEW})] == []
        assert by_key == sorted(by_key, key=lambda got: got == {NEW})
        assert [got for got in by_reference if got not in ({OLD}, None)] == []


@lock_free_only
@pytest.mark.parametrize("kind", KINDS)
def test_delete_looked_at_after_each_store_shows_the_object_and_then_none(
    make_store: MakeStore, kind: str
) -> None:
    """A reader that finds no object waits for the lock to be sure."""
    store = make_store(capacity=MIB, max_objects=12)
    ref = store.put(KINDS[kind](OLD), key="k")
    seen = seen_during(store, lambda: store.delete("k"), ref)
    assert [got for got in seen if got not in ({OLD}, None, "waits")] == []
    assert {OLD} not in seen[-2:]


@lock_free_only
def test_reclaim_looks_at_the_pins_after_the_barrier(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that wins the race: doomed, barrier, pins."""
    events: list[str] = []
    session: Any = store._session
    reclaim_at_once(store)
    ref = store.put(np.zeros(1000))
    slot = ref._slot

    def note_barrier(real: Callable[[], None] = shmstore._space.membarrier) -> None:
        events.append("barrier" if session.slots.word(slot) != word else "too early")
        real()

    def note_pins(self: Clients, real: Callable[..., Any] = Clients.pinned) -> Any:
        events.append("pins")
        return real(self)

    word = session.slots.word(slot)
    monkeypatch.setattr(shmstore._space, "membarrier", note_barrier)
    monkeypatch.setattr(Clients, "pinned", note_pins)
    ref.delete()
    store.put(np.zeros(2000))
    assert events[:2] == ["barrier", "pins"]


OVERWRITE = """
import numpy as np, shmstore
store = shmstore.Store.attach(path)
print("ready", flush=True)
input()
store["k"] = np.full(1000, 2, np.uint8)
print("done", flush=True)
"""


@pytest.mark.parametrize("locked_reads", [True], ids=["locked"])
def test_get_in_a_locked_store_keeps_writers_out_between_pin_and_look(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """Without barriers both are done under the store lock: nobody can doom the object meanwhile."""
    store = make_store(capacity=MIB)
    store["k"] = np.full(1000, 1, np.uint8)
    store.get("k")
    writer = start_python(OVERWRITE, path=store.path)
    writer.hear()
    session: Any = store._session
    plain, seen = session.words, []

    class SlowWords(AttackedWords):
        def __getitem__(self, at: Any) -> Any:
            if self._lock._thread == threading.get_ident() and not seen:
                seen.append(plain[at])
                writer.say()
                threading.Event().wait(0.3)
                seen.append(plain[at])
            return plain[at]

    session.words = SlowWords(plain, Attack(0, lambda: None), session.lock)
    try:
        got = store.get("k")
    finally:
        session.words = plain
    assert seen[0] == seen[1]
    assert len(seen) == 2
    assert set(got) == {1}
    assert writer.hear() == "done"
    assert set(got) == {1}
    assert set(store["k"]) == {2}
    del got
