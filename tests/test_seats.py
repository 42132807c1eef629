"""Seats and pins: what a process looks at, seen from itself and from the others."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import rooms
from seat_files import folder, make_seat, pins, seen_by_others
from stores import in_threads

from shmstore._memory import layout as L
from shmstore._sharing.lock import is_locked
from shmstore._sharing.seats import _FIRST_CELLS, Anchor, Pins, Seat
from shmstore.errors import CorruptStoreError, StoreFullError

__all__ = ["folder", "make_seat", "pins"]  # fixtures, asked for by their names


# --- the file ------------------------------------------------------------------------------------


def test_seat_is_a_locked_sparse_file(folder: Path) -> None:
    """It lives for as long as its descriptor, whoever keeps the mapping, and costs one page."""
    folder_fd = os.open(folder, os.O_RDONLY)
    seat = Seat.create(folder_fd, 7)
    status = (folder / "7").stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 == 4096
    fd = os.open(folder / "7", os.O_RDONLY)
    assert is_locked(fd)
    words = seat.words
    seat.close()
    assert not is_locked(fd)
    assert words[L.SEAT_SERIAL] == 7
    os.close(fd)
    os.close(folder_fd)


def test_seat_that_exists_is_not_made_again(make_seat: Callable[[int], Seat]) -> None:
    """A serial number is used once."""
    make_seat(3)
    before = rooms.descriptors()
    with pytest.raises(FileExistsError):
        make_seat(3)
    assert rooms.descriptors() == before


@pytest.mark.parametrize("damage", ["cut", "foreign", "serial"])
def test_seat_file_that_is_no_seat_is_damage(
    folder: Path, make_seat: Callable[[int], Seat], damage: str
) -> None:
    """Length, mark and serial are looked at before the pins are believed."""
    seat = make_seat(2)
    if damage == "cut":
        os.truncate(folder / "2", 4096)
    else:
        os.pwrite(seat.fd, b"somethin", 0 if damage == "foreign" else 8)
    fd = os.open(folder / "2", os.O_RDONLY)
    with pytest.raises(CorruptStoreError, match="seat") as caught:
        Seat(fd, 2)
    assert caught.value.facts["serial"] == 2
    os.close(fd)


def test_seat_with_an_absurd_count_of_cells_is_read_to_its_end_only(
    folder: Path, make_seat: Callable[[int], Seat]
) -> None:
    """A count from memory never reaches beyond the file."""
    seat = make_seat(1)
    seat.pins[L.FIRST_CELL] = 5
    seat.words[L.SEAT_CELLS] = (1 << 64) - 1
    assert seen_by_others(folder) == [4]


def test_seat_cannot_be_made_on_a_full_file_system() -> None:
    """The error comes before the file is used, and no file is left."""
    with rooms.small_file_system(8192) as folder:
        ballast = rooms.fill_up(folder)
        folder_fd = os.open(folder, os.O_RDONLY)
        before = rooms.descriptors()
        with pytest.raises(OSError, match="No space"):
            Seat.create(folder_fd, 1)
        assert rooms.descriptors() == before
        assert list(folder.iterdir()) == [ballast]
        os.close(folder_fd)


# --- pins ----------------------------------------------------------------------------------------


def test_pin_isseen_by_others_until_its_anchor_dies(folder: Path, pins: Pins) -> None:
    """The death of the anchor is all that it takes."""
    anchor = Anchor()
    pins.pin(anchor, 41)
    assert seen_by_others(folder) == [41]
    assert pins.in_use() == 1
    del anchor
    assert seen_by_others(folder) == []
    assert pins.in_use() == 0


def test_pins_on_one_slot_are_independent(folder: Path, pins: Pins) -> None:
    """Two views of an object have a cell each: the first to die does not take the other's."""
    first, second = Anchor(), Anchor()
    pins.pin(first, 9)
    pins.pin(second, 9)
    assert seen_by_others(folder) == [9, 9]
    del first
    assert seen_by_others(folder) == [9]
    del second
    assert seen_by_others(folder) == []


def test_pin_on_slot_zero_is_a_pin(folder: Path, pins: Pins) -> None:
    """The first slot is told apart from "no pin"."""
    anchor = Anchor()
    pins.pin(anchor, 0)
    assert seen_by_others(folder) == [0]


@pytest.mark.parametrize("count", [_FIRST_CELLS, _FIRST_CELLS + 1, 200, 5000])
def test_pins_grow_with_the_number_of_views(folder: Path, pins: Pins, count: int) -> None:
    """All are seen, at every size of the seat, and all cells come back."""
    anchors = [Anchor() for _ in range(count)]
    for slot, anchor in enumerate(anchors):
        pins.pin(anchor, slot)
    assert seen_by_others(folder) == list(range(count))
    del anchors[::2], anchor
    assert seen_by_others(folder) == list(range(1, count, 2))
    anchors.clear()
    assert (pins.in_use(), seen_by_others(folder)) == (0, [])


def test_cells_are_used_again_before_the_seat_grows(folder: Path, pins: Pins) -> None:
    """A million gets one after the other need no more than the first cells."""
    for slot in range(10_000):
        pins.pin(Anchor(), slot)
    assert (folder / "1").stat().st_blocks * 512 == 4096
    assert pins.in_use() == 0


def test_last_pin_that_goes_calls_when_empty_once(pins: Pins) -> None:
    """A closed handle is told that its last view has died."""
    calls: list[int] = []
    anchors = [Anchor() for _ in range(3)]
    for anchor in anchors:
        pins.pin(anchor, 1)
    pins.when_empty = lambda: calls.append(pins.in_use())
    del anchor
    for _ in range(3):
        assert calls == []
        anchors.pop()
    assert calls == [0]


def test_pins_that_cannot_grow_leave_those_that_are_held(folder: Path) -> None:
    """On a full file system the next view is refused and the others stay pinned."""
    with rooms.small_file_system(16 << 10) as small:
        folder_fd = os.open(small, os.O_RDONLY)
        pins = Pins(Seat.create(folder_fd, 1))
        ballast = rooms.fill_up(small)
        anchors = []
        with pytest.raises(StoreFullError, match="pins"):  # noqa: PT012 - which one fails is open
            for slot in range(5000):
                anchors.append(Anchor())
                pins.pin(anchors[-1], slot)
        held = len(anchors) - 1
        assert held > 0
        assert seen_by_others(small) == list(range(held))
        ballast.unlink()
        pins.pin(anchors[-1], held)
        assert seen_by_others(small) == list(range(held + 1))
        anchors.clear()
        assert pins.in_use() == 0
        pins.seat.close()
        os.close(folder_fd)


# --- threads, finalizers, signals ----------------------------------------------------------------


def test_pins_of_many_threads_never_share_a_cell(folder: Path, pins: Pins) -> None:
    """Each thread finds all its pins in the seat while the others take and drop theirs."""
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            start.wait()
            for turn in range(60):
                anchors = [Anchor() for _ in range(1 + turn * number % 37)]
                for anchor in anchors:
                    pins.pin(anchor, number)
                mine = [p for p in pins.seat.pinned() if p == number + 1]
                assert len(mine) == len(anchors)
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        in_threads(*(partial(work, number) for number in range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert (pins.in_use(), seen_by_others(folder)) == (0, [])


def test_anchors_shared_by_threads_drop_each_pin_once(folder: Path, pins: Pins) -> None:
    """Views die in other threads than they were made in, and no cell is given back twice."""
    made: list[Anchor] = []

    def take() -> None:
        for slot in range(3000):
            anchor = Anchor()
            pins.pin(anchor, slot)
            made.append(anchor)

    def drop() -> None:
        dropped = 0
        while dropped < 6000:
            if made:
                made.pop()
                dropped += 1

    in_threads(take, take, drop)
    assert (pins.in_use(), seen_by_others(folder)) == (0, [])
    assert len(set(pins.free)) == len(pins.free)


class Linked(Anchor):
    """An anchor that may lead to another one."""

    other: Linked


def test_anchors_in_a_circle_drop_their_pins_when_they_are_collected(
    folder: Path, pins: Pins
) -> None:
    """The garbage collector calls the same callback."""
    first, second = Linked(), Linked()
    first.other, second.other = second, first
    pins.pin(first, 1)
    pins.pin(second, 2)
    del first, second
    gc.collect()
    assert seen_by_others(folder) == []


def test_anchor_whose_callback_was_cut_short_is_swept(folder: Path, pins: Pins) -> None:
    """A pin whose anchor has died is found without its callback."""
    anchor = Anchor()
    pins.pin(anchor, 8)
    cell = next(c for c, holder in enumerate(pins.holders) if holder is not None)
    pins.holders[cell] = weakref.ref(anchor)
    del anchor
    assert seen_by_others(folder) == [8]
    pins.sweep()
    assert (pins.in_use(), seen_by_others(folder)) == (0, [])
