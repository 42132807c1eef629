"""The whole of a store against a dict: any sequence of calls, by two handles and two processes."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model_parts import CAPACITY, HELPER, Other, Value, View, keys, modes, numbers, values
from stores import Flag, StartPython

from shmstore import (
    KeyExistsError,
    ObjectNotFoundError,
    ObjectRef,
    ObjectTooLargeError,
    Store,
    StoreFullError,
    StoreStats,
)


class StoreMachine(RuleBasedStateMachine):
    """Two handles here, one elsewhere, and a dict that says what they must show."""

    child: Any
    locked_reads: bool

    def __init__(self) -> None:
        super().__init__()
        self.store = Store.create(capacity=CAPACITY, locked_reads=self.locked_reads or None)
        self.reader = Store.attach(self.store.path, readonly=True)
        self.other = Other(self.child)
        self.other.tell("attach", str(self.store.path))
        self.named: dict[str, Value] = {}
        self.anonymous: dict[ObjectRef, Value] = {}
        self.gone: list[ObjectRef] = []
        self.views: list[View] = []
        self.elsewhere: dict[int, View] = {}

    def teardown(self) -> None:
        """Let go of everything: nothing may be left."""
        self.views.clear()
        self.other.tell("close")
        gc.collect()
        self.store.clear()
        self.store.delete_many(self.anonymous)
        assert self.store.stats().used == 0
        assert self.store.stats().largest_free == CAPACITY
        assert self.store.check() == []
        assert [client.pins for client in self.store.clients()] == [0, 0]
        self.reader.close()
        self.store.close()

    # --- helpers

    def writer(self, number: int) -> Any:
        """Return one of the two that may write."""
        return self.other if number % 3 == 0 else self.store

    def holder(self, number: int) -> Any:
        """Return one of the three that may read."""
        return (self.store, self.reader, self.other)[number % 3]

    @contextlib.contextmanager
    def room(self) -> Any:
        """Let a call find the store full; then nothing may have changed."""
        before = self.store.stats()
        try:
            yield
        except (StoreFullError, ObjectTooLargeError) as error:
            self.check_refusal(error, before)

    def check_refusal(self, error: Any, before: StoreStats) -> None:
        """Fail unless there was no room indeed, and nothing has changed."""
        after = self.store.stats()
        assert after.objects == before.objects
        assert after.used <= before.used
        assert error.asked > getattr(error, "largest_free", CAPACITY)

    def enter(self, key: str, value: Value) -> None:
        """Note that a key has a new object, the youngest."""
        self.named.pop(key, None)
        self.named[key] = value

    # --- rules: put

    @initialize(value=values)
    def begin(self, value: Value) -> None:
        """Start with one object, if it fits."""
        with self.room():
            self.store["a"] = value.made()
            self.enter("a", value)

    @rule(key=keys, value=values, by=numbers)
    def put(self, key: str, value: Value, by: int) -> None:
        """Put or overwrite."""
        with self.room():
            ref = self.writer(by).put(value.made(), key=key)
            self.enter(key, value)
            assert ref.key == key

    @rule(value=values, by=numbers)
    def put_anonymous(self, value: Value, by: int) -> None:
        """Put without a key."""
        with self.room():
            self.anonymous[self.writer(by).put(value.made())] = value

    @rule(key=keys, value=values, by=numbers)
    def put_without_overwrite(self, key: str, value: Value, by: int) -> None:
        """Put only if the key is free."""
        with self.room():
            if key in self.named:
                with pytest.raises(KeyExistsError):
                    self.writer(by).put(value.made(), key=key, overwrite=False)
            else:
                self.writer(by).put(value.made(), key=key, overwrite=False)
                self.enter(key, value)

    @rule(batch=st.dictionaries(keys, values, max_size=4), by=numbers)
    def put_many(self, batch: dict[str, Value], by: int) -> None:
        """Put several, or none."""
        with self.room():
            self.writer(by).put_many({key: value.made() for key, value in batch.items()})
            for key, value in batch.items():
                self.enter(key, value)

    @rule(key=keys, nbytes=st.integers(0, CAPACITY // 2), seed=st.integers(0, 250))
    def build_in_place(self, key: str, nbytes: int, seed: int) -> None:
        """Build an array in shared memory."""
        value = Value("array", seed, nbytes)
        with self.room():
            with self.store.allocate(nbytes, "u1", key=key) as array:
                array[:] = value.data
            self.enter(key, value)

    @rule(key=keys, nbytes=st.integers(0, CAPACITY // 2))
    def give_up_building(self, key: str, nbytes: int) -> None:
        """Leave the block by an exception."""
        with (
            self.room(),
            contextlib.suppress(ZeroDivisionError),
            self.store.allocate(nbytes, "u1", key=key) as array,
        ):
            array[:] = 255
            raise ZeroDivisionError

    # --- rules: get

    @rule(key=keys, mode=modes, by=numbers)
    def get(self, key: str, mode: str, by: int) -> None:
        """Get a key that is there or not."""
        try:
            got = self.holder(by).get(key, mode=mode)
        except ObjectNotFoundError:
            assert key not in self.named
        else:
            self.named[key].check(got)

    @rule(key=keys, mode=modes, by=numbers)
    def hold(self, key: str, mode: str, by: int) -> None:
        """Get an object and keep it."""
        if key in self.named and by % 3 == 2:
            number = max(self.elsewhere, default=0) + 1
            self.elsewhere[number] = View(
                self.named[key], mode, self.other.tell("hold", number, key, mode)
            )
        elif key in self.named:
            got = self.holder(by).get(key, mode=mode)
            self.views.append(View(self.named[key], mode, got))

    @precondition(lambda self: self.views)
    @rule(number=numbers)
    def drop(self, number: int) -> None:
        """Let a view die."""
        self.views.pop(number % len(self.views))
        gc.collect()

    @precondition(lambda self: self.elsewhere)
    @rule(number=numbers)
    def look_and_drop_elsewhere(self, number: int) -> None:
        """Let a view of the other process die, after a last look."""
        number = list(self.elsewhere)[number % len(self.elsewhere)]
        view = self.elsewhere[number]
        view.value.check(self.other.tell("look", number), view.own)
        assert self.other.tell("drop", number)
        del self.elsewhere[number]

    @precondition(lambda self: any(view.writeable for view in self.views))
    @rule(number=numbers)
    def write(self, number: int) -> None:
        """Write through a view: seen by all, or by nobody else."""
        writeable = [view for view in self.views if view.writeable]
        writeable[number % len(writeable)].write(number % 256)

    @rule(by=numbers, mode=modes)
    def get_anonymous(self, by: int, mode: str) -> None:
        """Get by reference, of objects that live and that are gone."""
        for ref, value in self.anonymous.items():
            value.check(self.holder(by).get(ref, mode=mode))
        for ref in self.gone[-5:]:
            assert self.holder(by).get(ref, "gone", mode=mode) == "gone"
            assert ref not in self.store

    # --- rules: delete

    @rule(key=keys, by=numbers)
    def delete(self, key: str, by: int) -> None:
        """Delete a key that is there or not."""
        try:
            self.writer(by).delete(key)
        except ObjectNotFoundError:
            assert key not in self.named
        else:
            del self.named[key]

    @precondition(lambda self: self.anonymous)
    @rule(number=numbers, by=numbers)
    def delete_anonymous(self, number: int, by: int) -> None:
        """Delete by reference."""
        ref = list(self.anonymous)[number % len(self.anonymous)]
        assert self.writer(by).discard(ref)
        assert not self.writer(by).discard(ref)
        del self.anonymous[ref]
        self.gone.append(ref)

    @rule(some=st.lists(keys, max_size=4), by=numbers)
    def delete_many(self, some: list[str], by: int) -> None:
        """Delete several, of which some are there."""
        expected = len(self.named.keys() & set(some))
        assert self.writer(by).delete_many(some) == expected
        for key in some:
            self.named.pop(key, None)

    @rule(key=keys, by=numbers)
    def pop(self, key: str, by: int) -> None:
        """Take an object out; it stays valid."""
        got = self.writer(by).pop(key, None)
        if key in self.named:
            value = self.named.pop(key)
            value.check(got)
            if by % 3:
                self.views.append(View(value, "shared", got))
        else:
            assert got is None

    @rule()
    def clear(self) -> None:
        """Delete all that has a name."""
        self.store.clear()
        self.named.clear()

    # --- rules: everything else

    @rule(key=keys, value=values, by=numbers)
    def setdefault(self, key: str, value: Value, by: int) -> None:
        """Get what is there, or put."""
        with self.room():
            got = self.writer(by).setdefault(key, value.made())
            if key not in self.named:
                self.enter(key, value)
            self.named[key].check(got)

    @rule()
    def attach_again(self) -> None:
        """Leave with the second handle, and come back."""
        self.reader.close()
        self.reader = Store.attach(self.store.path, readonly=True)

    @rule()
    def recover(self) -> None:
        """Nobody is dead: nothing may change."""
        before = self.store.stats()
        recovered = self.store.recover()
        assert (recovered.clients, recovered.puts) == (0, 0)
        assert self.store.stats() == before

    # --- what is always true

    @invariant()
    def names_agree(self) -> None:
        """Keys in the order of their last put, seen alike by all."""
        expected = list(self.named)
        assert list(self.store) == list(self.reader) == expected
        assert len(self.store) == len(expected)
        assert self.store.stats().objects == len(expected) + len(self.anonymous)

    @invariant()
    def views_show_what_they_must(self) -> None:
        """Whatever has happened to their objects."""
        for view in self.views:
            view.check()

    @invariant()
    def store_is_sound(self) -> None:
        """Every invariant of the format holds, and every byte is accounted for."""
        assert self.store.check() == []
        stats = self.store.stats()
        living = sum(info.stored_nbytes for info in self.store.objects())
        assert stats.used == living + stats.reclaimable
        assert stats.used + stats.free == CAPACITY
        if not (self.views or self.elsewhere):
            assert stats.pinned == stats.reclaimable == 0


def test_any_sequence_of_calls_agrees_with_a_dict(
    root: Path, start_python: StartPython, locked_reads: Flag
) -> None:
    """Put, get, hold, write, build, delete and come back, here and in another process."""
    child = start_python(HELPER)
    machine = type("Machine", (StoreMachine,), {"child": child, "locked_reads": locked_reads})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    child.process.stdin.close()
    assert list(root.iterdir()) == []
