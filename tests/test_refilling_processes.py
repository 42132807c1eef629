"""Memory that a client keeps for itself, when others look at it, want it, or fork, or it dies."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import numpy as np
import pytest
from spares import (
    TOGETHER,
    N,
    check_empty,
    filled,
    have_extents,
    kept_slots,
    pile_of,
    ref_to,
    with_extents,
)
from stores import MIB, MakeStore, exit_code, forked, in_child, kill, lock_free_only, wait_until

from shmstore import ObjectNotFoundError, ObjectRef, Store, StoreFullError
from shmstore._memory import layout as L

pytestmark = lock_free_only  # under the lock nothing is kept


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Give a store in which this process keeps some extents of one size, which nobody looks at."""
    return with_extents(make_store)


def test_view_in_another_process_keeps_what_it_looks_at(store: Store) -> None:
    """Also what was deleted and put again many times since."""
    ref = store.put(filled(7))
    ready, go = os.pipe(), os.pipe()

    def child() -> None:
        view = ref.get()
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        assert (view == 7).all()

    pid = forked(child)
    assert os.read(ready[0], 1)
    ref.delete()
    for number in range(5 * TOGETHER):
        store.put(filled(number)).delete()
    os.write(go[1], b"x")
    assert exit_code(pid) == 0
    for fd in (*ready, *go):
        os.close(fd)


def test_readers_never_see_what_is_filled_meanwhile(store: Store) -> None:
    """A reference leads to its object, whole, or to an error; and what was got stays."""
    pipe = os.pipe()

    def child() -> None:
        os.close(pipe[1])
        seen = 0
        kept: list[tuple[int, Any]] = []
        noise = random.Random(5)
        with os.fdopen(pipe[0], "rb") as told:
            while len(record := told.read(24)) == 24:
                slot, generation, number = np.frombuffer(record, np.int64).tolist()
                try:
                    view = ObjectRef(uuid, path, slot, generation, N * 8).get()
                except ObjectNotFoundError:
                    continue
                assert (view == number).all()
                seen += 1
                kept.append((number, view))
                if len(kept) > 5:
                    old, view = kept.pop(noise.randrange(len(kept)))
                    assert (view == old).all()
                    del view
        assert seen > 100

    first = store.put(filled(0))
    uuid, path = first._uuid, first._path
    pid = forked(child)
    os.close(pipe[0])
    refs = []
    end = time.monotonic() + 3
    number = 0
    while time.monotonic() < end or number < 2000:
        number += 1
        refs.append(store.put(filled(number)))
        record = np.array([refs[-1]._slot, refs[-1]._generation, number], np.int64)
        os.write(pipe[1], record.tobytes())
        if len(refs) > 3:
            refs.pop(0).delete()
    os.close(pipe[1])
    assert exit_code(pid) == 0
    assert not store.check()


def test_what_one_keeps_is_there_for_who_needs_room(store: Store) -> None:
    """Another process fills the store to the last byte; the owner goes on, and counts right."""
    assert kept_slots(store) >= TOGETHER

    def child() -> None:
        refs, size = [], MIB
        while size >= L.ALIGNMENT:
            try:
                refs.append(store.put(np.zeros(size, np.uint8)))
            except StoreFullError:
                size //= 2
        assert kept_slots(store) == 0
        assert store.stats().free == 0
        assert len(store.objects()) == len(refs)
        for ref in refs:
            ref.delete()

    in_child(child)
    assert store.stats().objects == 0
    refs = [store.put(filled(number)) for number in range(3 * TOGETHER)]
    assert [int(ref.get()[9]) for ref in refs] == list(range(3 * TOGETHER))
    assert store.stats().objects == len(refs)
    assert not store.check()


def test_seizing_and_filling_at_once_lose_nothing(store: Store) -> None:
    """One process takes memory away again and again while another puts into it."""

    def child() -> None:
        seized = 0
        while seized < 200:
            seized += kept_slots(store) > 0
            store.trim()
            time.sleep(0.001)  # who asks without a pause leaves the other hardly a turn

    pid = forked(child)
    refs: list[tuple[int, ObjectRef]] = []
    ended = number = 0
    while not ended:
        number += 1
        refs.append((number, store.put(filled(number))))
        if len(refs) > 20:
            old, ref = refs.pop(0)
            assert (ref.get() == old).all()
            ref.delete()
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0
    assert all((ref.get() == number).all() for number, ref in refs)
    store.put(0)
    assert store.stats().objects == len(refs) + 1
    assert not store.check()


def test_statistics_know_nothing_of_what_is_kept(store: Store) -> None:
    """Deleted memory is free, for whoever asks, and still there for who keeps it."""
    store.put(filled(1)).delete()
    kept = kept_slots(store)
    assert kept >= TOGETHER
    in_child(lambda: check_empty(store))
    assert kept_slots(store) == kept
    assert " 0 objects, 0 of " in repr(store)
    in_child(store.trim)
    assert kept_slots(store) == 0
    assert store.stats().largest_free == store.stats().capacity


def test_looked_at_and_deleted_is_told_as_such(store: Store) -> None:
    """In the survey and in the statistics, before and after it was taken from its owner."""
    ref = store.put(filled(1))
    view = ref.get()
    ref.delete()
    survey = store.survey()
    assert survey.state[survey.slot == ref._slot].tolist() == ["deleted"]
    in_child(lambda: check_looked_at(store, L.align(view.nbytes)))
    check_looked_at(store, L.align(view.nbytes))
    assert (view == 1).all()


def check_looked_at(store: Store, nbytes: int) -> None:
    """Fail unless a store says that all it has is a deleted object that somebody looks at."""
    stats = store.stats()
    assert (stats.used, stats.pinned, stats.reclaimable) == (nbytes, nbytes, nbytes)


@pytest.mark.parametrize("turn", range(4))
def test_processes_killed_while_they_fill_lose_nothing(store: Store, turn: int) -> None:
    """At whatever moment: what was put is whole, all other memory comes back."""
    pipe = os.pipe()
    for again in range(6):

        def child() -> None:
            have_extents(store)
            kept: list[ObjectRef] = []
            number = 0
            while True:
                number += 1
                kept.append(store.put(filled(number)))
                if len(kept) > 10:
                    kept.pop(0).delete()
                if number == 1:
                    os.write(pipe[1], b"x")

        pid = forked(child)
        assert os.read(pipe[0], 1)
        time.sleep(0.002 + again * 0.003 + turn * 0.001)
        kill(pid)
        store.recover()
        assert not store.check()
    for fd in pipe:
        os.close(fd)
    survey = store.survey()
    refs = [ref_to(store, slot) for slot in survey.slot[survey.state == "object"].tolist()]
    arrays = [ref.get() for ref in refs]
    assert 6 <= len(arrays) <= 6 * 11
    assert all((array == array[0]).all() for array in arrays)
    assert store.stats().used == sum(L.align(array.nbytes) for array in arrays)


def test_child_that_inherits_a_view_keeps_it(store: Store) -> None:
    """Although its parent lets go at once, and puts into all memory that nobody looks at."""
    for turn in range(40):
        ref = store.put(filled(-turn))
        view = ref.get()
        ref.delete()
        pid = forked(lambda turn=turn, view=view: check_for_a_while(view, -turn))
        del view
        for number in range(2 * TOGETHER):
            store.put(filled(number)).delete()
        assert exit_code(pid) == 0
    assert not store.check()


def check_for_a_while(view: Any, number: int) -> None:
    """Fail if a view changes."""
    for _ in range(20):
        assert (view == number).all()


def test_owner_stopped_while_it_begins_to_fill_keeps_that_alone(store: Store) -> None:
    """Who needs room does not wait for it, and finds all the rest."""
    told = os.pipe()

    def child() -> None:
        have_extents(store)
        session: Any = store._session
        pile = pile_of(store)
        session.words[session.spares.row + L.C_ENDING] = pile.slots[0][0] + 1
        os.write(told[1], b"x")
        os.kill(os.getpid(), signal.SIGSTOP)
        session.words[session.spares.row + L.C_ENDING] = 0
        for number in range(3 * TOGETHER):
            with store.put(filled(number)) as ref:
                assert (ref.get() == number).all()

    pid = forked(child)
    assert os.read(told[0], 1)
    os.waitpid(pid, os.WUNTRACED)
    store.trim()
    assert kept_slots(store) == 1
    os.kill(pid, signal.SIGCONT)
    assert exit_code(pid) == 0
    wait_until(lambda: store.stats().used == 0)
    assert not store.check()
    for fd in told:
        os.close(fd)
