"""Objects on their way between memory and file: what others do meanwhile, and what breaks off."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore, exit_code, forked, running

from shmstore import (
    Store,
    StoreClosedError,
    StoreFullError,
    _filing,
    _puts,
    _restoring,
    _spilling,
)
from shmstore._catalog.slots import Slots
from shmstore._memory.allocator import Allocator
from shmstore._memory.segment import Segment
from shmstore._memory.spill_files import SpillFiles

MakeSpilling = Callable[..., Store]


@pytest.fixture
def spilling(make_store: MakeStore) -> Iterator[MakeSpilling]:
    """Give a function that makes stores of 4 MiB which spill; prove that their files go."""
    made: list[Store] = []
    with tempfile.TemporaryDirectory(prefix="shmstore-test-") as name:
        path = Path(name) / "spilled"

        def make(**options: Any) -> Store:
            made.append(make_store(on_full="spill", spill_dir=path, **options))
            return made[-1]

        yield make
        for store in made:
            store.close()
        assert list(path.iterdir()) == []


def ones(mebibytes: int) -> np.ndarray:
    """Return an array of so many MiB."""
    return np.ones(mebibytes * MIB, np.uint8)


def put_into_file(store: Store, **options: Any) -> None:
    """Put an array of 2 MiB, "b", when memory is taken; then free the memory."""
    store["a"] = ones(3)
    held = store["a"]
    store.put(ones(2), key="b", **options)
    assert store.stats().spilled == 1
    del held, store["a"]


def in_child(do: Callable[[], None]) -> Callable[[], None]:
    """Return a function that lets another process do something."""

    def call() -> None:
        assert exit_code(forked(do)) == 0

    return call


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, do: Callable[..., Any]
) -> None:
    """Let something happen once, after the next call of a function."""
    real = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        result = real(*args, **options)
        do()
        return result

    monkeypatch.setattr(owner, name, call)


def test_view_of_the_file_writes_while_it_is_read_back_and_nothing_is_lost(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process wrote through a view that is gone by now is what comes back."""
    store = spilling()
    put_into_file(store)
    store["c"] = ones(1)
    held = store["c"]

    def write() -> None:
        assert store.stats().spilled == 1
        store["b"][0] = 77

    meanwhile(monkeypatch, _restoring, "_read", in_child(write))
    assert store["b"][0] == 77
    assert (store["b"] == ones(2)).sum() == 2 * MIB - 1
    assert held.all()


def test_object_that_went_and_came_while_it_is_read_back_is_not_replaced(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was too slow reading a file does not put the old content in the place of the new."""
    store = spilling(capacity="8MiB")
    store["a"] = ones(7)
    held = store["a"]
    store["b"] = ones(2)
    del held, store["a"]

    def change() -> None:
        store["b"][0] = 77
        gc.collect()
        refs = [store.put(ones(2)) for _ in range(4)]
        assert store.stats().spilled
        store.delete_many(refs)

    meanwhile(monkeypatch, _restoring, "_read", in_child(change))
    assert store["b"][0] == 77


def test_view_of_the_file_writes_while_it_is_verified_and_it_is_no_damage(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody begins to write to after it was opened has no checksum any more."""
    store = spilling()
    store["a"] = ones(3)
    held = store["a"]
    store["b"] = ones(2)

    def write() -> None:
        store["b"][0] = 77

    meanwhile(monkeypatch, _restoring.FilePlan, "secure", in_child(write))
    assert store["b"][0] == 77
    assert held.all()


def test_object_put_into_a_file_has_its_checksum_when_it_comes_back(
    spilling: MakeSpilling,
) -> None:
    """A store that keeps checksums keeps them of what had no room in memory, too."""
    store = spilling(checksum=True)
    put_into_file(store, readonly=True)
    assert store["b"].all()
    assert store.stats().restores == 1
    assert store.check(deep=True) == []


def test_reference_brings_its_object_back_when_there_is_room(spilling: MakeSpilling) -> None:
    """A reference that has given a view of the file looks for room at the next get."""
    store = spilling()
    held = store.put(ones(3)).get()
    ref = store.put(ones(2))
    assert ref.get().all()
    assert store.stats().restores == 0
    del held
    store.delete_many(info.ref for info in store.objects() if info.ref != ref)
    assert ref.get().all()
    assert store.stats().restores == 1


def test_put_that_spills_keeps_no_hold_on_what_was_put(spilling: MakeSpilling) -> None:
    """The errors on the way to a file are gone with the call, not with the next collection."""
    store = spilling()
    store["a"] = ones(3)
    held = store["a"]
    gc.collect()
    gc.disable()
    try:
        array = ones(2)
        alive = weakref.ref(array)
        store["b"] = array
        del array
        assert alive() is None
    finally:
        gc.enable()
    assert held.all()


def test_file_that_cannot_get_its_name_leaves_its_object_in_memory(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without room for one name more is a full store, and nothing else."""
    store = spilling()
    store["a"], store["c"] = ones(1), ones(2)

    def commit(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SpillFiles, "commit", commit)
    with pytest.raises(StoreFullError, match="no room"):
        store["b"] = ones(4)
    assert store.check() == []
    assert store.stats().spilled == 0
    assert store["a"].all()
    assert store["c"].all()


@pytest.mark.parametrize(
    ("room", "write"), [(_spilling, "_write"), (_filing, "write")], ids=["others", "it"]
)
def test_error_that_is_kept_keeps_no_pins(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch, room: ModuleType, write: str
) -> None:
    """Whoever remembers why a put failed does not keep objects in memory by that."""
    store = spilling()
    store["a"] = ones(3)
    held = store["a"] if room is _filing else None

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(room, write, fail)
    with pytest.raises(StoreFullError) as caught:
        store["b"] = ones(2)
    del held
    assert store._session is not None
    assert store._session.pins.in_use() == 0
    assert store.check() == []
    assert caught.value.facts["asked"] == 2 * MIB


def test_put_into_a_file_interrupted_at_the_end_is_undone(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that nobody got a reference to does not stay, wherever it lies."""
    store = spilling()
    held = store.put(ones(3)).get()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_puts, "refer_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put(ones(2))
    assert store.stats().objects == 1
    assert store.check() == []
    assert held.all()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Allocator, "allocate"), (Slots, "reserve"), (_restoring, "_begin"), (_restoring, "_read")],
    ids=["extent", "slot", "begun", "read"],
)
def test_coming_back_interrupted_gives_everything_back(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Slot and extent that an object was to come back to are free again, the object is there."""
    store = spilling()
    put_into_file(store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    meanwhile(monkeypatch, owner, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.get("b")
    stats = store.stats()
    assert (stats.used, stats.reclaimable, stats.spilled) == (0, 0, 1)
    assert store["b"].all()
    assert store.stats().restores == 1


def test_killed_while_it_wipes_what_was_spilled_and_the_object_is_whole(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that is in its file does not come back to memory that is being wiped."""
    store = spilling(zero_on_free=True)
    store["a"] = np.full(3 * MIB, 5, np.uint8)

    def put() -> None:
        meanwhile(monkeypatch, Segment, "wipe", lambda: os.kill(os.getpid(), signal.SIGKILL))
        store["b"] = ones(2)

    assert exit_code(forked(put)) == -signal.SIGKILL
    assert (store["a"] == 5).all()
    assert store.check() == []


def test_killed_before_it_wipes_what_was_spilled_and_nothing_is_left(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever mends wipes the memory that a dead process had given back."""
    store = spilling(zero_on_free=True)
    store["a"] = np.full(3 * MIB, 5, np.uint8)

    def put() -> None:
        meanwhile(
            monkeypatch, Slots, "give_up_extent", lambda: os.kill(os.getpid(), signal.SIGKILL)
        )
        store["b"] = ones(2)

    assert exit_code(forked(put)) == -signal.SIGKILL
    assert store.stats().spilled == 1
    assert not any((store.path / "segment-00000").read_bytes()[: 4 * MIB])


@pytest.mark.parametrize("end", ["close", "destroy"])
def test_store_ended_by_another_thread_in_the_middle_is_closed(
    spilling: MakeSpilling, end: str
) -> None:
    """Threads that put and get while their store is closed learn that, and nothing else."""

    def work(store: Store, errors: list[BaseException]) -> None:
        try:
            for number in itertools.count():
                store[str(number % 6)] = ones(1)
                store.get(str((number + 3) % 6), None)
        except StoreClosedError:
            return
        except BaseException as error:
            errors.append(error)
            raise

    for round_ in range(15):
        store = spilling()
        errors: list[BaseException] = []
        with running(*[partial(work, store, errors)] * 3):
            time.sleep(0.002 * round_)
            getattr(store, end)()
        assert errors == []


@pytest.mark.parametrize(
    ("room", "write"), [(_spilling, "_write"), (_filing, "write")], ids=["others", "it"]
)
def test_store_destroyed_while_a_file_is_written_leaves_no_file(
    spilling: MakeSpilling, monkeypatch: pytest.MonkeyPatch, room: ModuleType, write: str
) -> None:
    """Whoever is moving objects to files learns that the store is gone, and its folder goes."""
    store = spilling()
    store["a"] = ones(3)
    held = store["a"] if room is _filing else None
    destroy = Store.attach(store.path).destroy
    meanwhile(monkeypatch, room, write, destroy)
    with pytest.raises(StoreClosedError):
        store["b"] = ones(2)
    assert held is None or held.all()
