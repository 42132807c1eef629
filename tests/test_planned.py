"""Frames that are made at their destination: written once, or not at all."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import rooms
from family_helpers import own_handlers

from shmstore import SerializationError, Store, StoreFullError
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned, ensure_memoryview

SIZES = {"small": 1000, "large": 300_000}


class Made:
    """An object of one planned frame."""

    def __init__(self, nbytes: int, write_into: Any, *, writeable: bool = True) -> None:
        self.nbytes = nbytes
        self.write_into = write_into
        self.writeable = writeable


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """Handle `Made` by a plan; what comes back is the frame."""
    with own_handlers():
        register_serialization(
            Made,
            lambda x: ({}, [Planned(x.nbytes, x.write_into, writeable=x.writeable)]),
            lambda _, frames: np.frombuffer(frames[0], np.uint8),
        )
        yield


def fill(view: memoryview) -> None:
    """Write 7 everywhere."""
    view[:] = bytes([7]) * view.nbytes


@pytest.mark.row("S93", "S105")
@pytest.mark.parametrize("nbytes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("nested", [False, True])
def test_plan_is_carried_out_once(store: Store, nbytes: int, *, nested: bool) -> None:
    """In pages never touched and in warm ones, alone and inside of a pickle."""
    calls = []

    def write_into(view: memoryview) -> None:
        calls.append((view.nbytes, view.readonly, np.frombuffer(view, np.uint8).ctypes.data % 64))
        fill(view)

    for number in range(3):
        x: Any = Made(nbytes, write_into)
        ref = store.put({"x": x} if nested else x)
        found = ref.get()
        found = found["x"] if nested else found
        assert (found == 7).all()
        assert found.flags.writeable
        assert calls == [(nbytes, False, 0)] * (number + 1)
        del found
        gc.collect()
        ref.delete()


@pytest.mark.parametrize("nbytes", [-1, 2.5, "9", None])
def test_plan_of_no_size_is_refused(store: Store, nbytes: Any) -> None:
    """Where it is put, alone, inside of a pickle and in a list; the store stays sound."""
    for put in (store.put, lambda x: store.put([x]), lambda x: store.put_list([x])):
        with pytest.raises(SerializationError, match="Made"):
            put(Made(nbytes, fill))
    store.check()
    assert len(store) == 0


@pytest.mark.parametrize("nbytes", SIZES.values(), ids=SIZES)
def test_plan_for_read_only_bytes_gives_read_only_views(store: Store, nbytes: int) -> None:
    """Its flag is chosen by the handler, not by the buffer that it is written into."""
    found = store.put(Made(nbytes, fill, writeable=False)).get()
    assert not found.flags.writeable
    assert ensure_memoryview(Planned(nbytes, fill, writeable=False)).readonly


@pytest.mark.row("F18")
@pytest.mark.parametrize("nbytes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"),
        MemoryError(),
        OSError(errno.ENOSPC, "disk"),
        StoreFullError("another store"),
        KeyboardInterrupt(),
    ],
)
def test_plan_that_fails_leaves_nothing_behind(
    store: Store, nbytes: int, error: BaseException
) -> None:
    """What it raised reaches the caller, and the memory is free again."""

    def fail(view: memoryview) -> None:
        view[0] = 1
        raise error

    with pytest.raises(type(error)) as caught:
        store.put(Made(nbytes, fail), key="k")
    assert caught.value is error
    del caught
    assert "k" not in store
    assert store.stats().objects == 0
    error.__traceback__ = None  # whose frames see the window
    assert store.put(np.zeros(store.stats().capacity, np.uint8)).get().nbytes


def test_plan_that_puts_something_itself_is_carried_out(store: Store) -> None:
    """No lock is held meanwhile."""

    def write_into(view: memoryview) -> None:
        store["inner"] = np.arange(100_000)
        fill(view)

    for nbytes in SIZES.values():
        assert (store.put(Made(nbytes, write_into)).get() == 7).all()
    assert store["inner"][-1] == 99_999


def test_plan_that_keeps_its_window_holds_a_pin(store: Store) -> None:
    """It sees the object, as a reader does, and nothing else, however long it keeps it."""
    kept: list[Any] = []

    def keep(view: memoryview) -> None:
        kept.append(np.frombuffer(view, np.uint8))
        fill(view)

    ref = store.put(Made(300_000, keep))
    ref.delete()
    for _ in range(20):
        store.put(np.zeros(300_000, np.uint8), key="k")
    assert (kept.pop() == 7).all()


def test_plan_in_a_full_file_system_is_a_full_store() -> None:
    """The pages are asked for before they are written: an error, not a signal."""
    with (
        rooms.small_file_system(8 << 20) as folder,
        Store.create("s", capacity="3MiB", root=folder, max_objects=1000) as store,
    ):
        ballast = rooms.fill_up(folder)
        strided = np.zeros((2, 2 << 20), np.uint8).T[:, ::2]
        for _ in range(2):
            with pytest.raises(StoreFullError):
                store.put(strided)
        assert store.stats().objects == 0
        ballast.unlink()
        assert store.put(strided).get().shape == strided.shape
        assert store.check() == []
