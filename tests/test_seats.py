"""Seats and pins: what a process looks at, seen from itself and from the others."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rooms

from shmstore._memory import layout as L
from shmstore._memory.mapping import reserve
from shmstore._sharing.lock import is_locked
from shmstore._sharing.seats import _FIRST_CELLS, Anchor, Pins, Seat
from shmstore.errors import CorruptStoreError, StoreFullError


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give an empty folder in shared memory for seat files."""
    with rooms.memory_folder() as path:
        yield path


@pytest.fixture
def make_seat(folder: Path) -> Iterator[Callable[[int], Seat]]:
    """Give a function that makes seats, which are closed at the end."""
    folder_fd = os.open(folder, os.O_RDONLY)
    made = []

    def make(serial: int) -> Seat:
        made.append(Seat.create(folder_fd, serial))
        return made[-1]

    yield make
    for seat in made:
        if seat.fd >= 0:
            seat.close()
    os.close(folder_fd)


@pytest.fixture
def pins(make_seat: Callable[[int], Seat]) -> Pins:
    """Give the pins of a seat of its own."""
    return Pins(make_seat(1))


def _seen_by_others(folder: Path, serial: int = 1) -> list[int]:
    """Return the slots that another client sees pinned in the seat file."""
    fd = os.open(folder / str(serial), os.O_RDONLY)
    try:
        return sorted(pin - 1 for pin in Seat(fd, serial).pinned())
    finally:
        os.close(fd)


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
    assert _seen_by_others(folder) == [4]


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


def test_pin_is_seen_by_others_until_its_anchor_dies(folder: Path, pins: Pins) -> None:
    """The death of the anchor is all that it takes."""
    anchor = Anchor()
    pins.pin(anchor, 41)
    assert _seen_by_others(folder) == [41]
    assert pins.in_use() == 1
    del anchor
    assert _seen_by_others(folder) == []
    assert pins.in_use() == 0


def test_pins_on_one_slot_are_independent(folder: Path, pins: Pins) -> None:
    """Two views of an object have a cell each: the first to die does not take the other's."""
    first, second = Anchor(), Anchor()
    pins.pin(first, 9)
    pins.pin(second, 9)
    assert _seen_by_others(folder) == [9, 9]
    del first
    assert _seen_by_others(folder) == [9]
    del second
    assert _seen_by_others(folder) == []


def test_pin_on_slot_zero_is_a_pin(folder: Path, pins: Pins) -> None:
    """The first slot is told apart from "no pin"."""
    anchor = Anchor()
    pins.pin(anchor, 0)
    assert _seen_by_others(folder) == [0]


@pytest.mark.parametrize("count", [_FIRST_CELLS, _FIRST_CELLS + 1, 200, 5000])
def test_pins_grow_with_the_number_of_views(folder: Path, pins: Pins, count: int) -> None:
    """All are seen, at every size of the seat, and all cells come back."""
    anchors = [Anchor() for _ in range(count)]
    for slot, anchor in enumerate(anchors):
        pins.pin(anchor, slot)
    assert _seen_by_others(folder) == list(range(count))
    del anchors[::2], anchor
    assert _seen_by_others(folder) == list(range(1, count, 2))
    anchors.clear()
    assert (pins.in_use(), _seen_by_others(folder)) == (0, [])


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
        assert _seen_by_others(small) == list(range(held))
        ballast.unlink()
        pins.pin(anchors[-1], held)
        assert _seen_by_others(small) == list(range(held + 1))
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
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert (pins.in_use(), _seen_by_others(folder)) == (0, [])


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

    threads = [threading.Thread(target=target) for target in (take, take, drop)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (pins.in_use(), _seen_by_others(folder)) == (0, [])
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
    assert _seen_by_others(folder) == []


def _pin_while_it_grows(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let something happen in this thread in the middle of the next growth."""
    left = [1]

    def interrupted(fd: int, offset: int, nbytes: int) -> None:
        reserve(fd, offset, nbytes)
        if left:
            left.clear()
            meanwhile()

    monkeypatch.setattr("shmstore._sharing.seats.reserve", interrupted)


@pytest.mark.parametrize("count", [1, 30])
def test_pins_made_by_a_signal_handler_while_the_seat_grows_are_kept(
    folder: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A get in a handler of the very thread that grows neither waits nor loses a pin."""
    anchors = [Anchor() for _ in range(count + 1)]

    def handle(*_: object) -> None:
        for slot, anchor in enumerate(anchors[1:], 100):
            pins.pin(anchor, slot)

    _pin_while_it_grows(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
    old = signal.signal(signal.SIGUSR1, handle)
    try:
        pins.pin(anchors[0], 1)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert _seen_by_others(folder) == [1, *range(100, 100 + count)]
    anchors.clear()
    assert (pins.in_use(), _seen_by_others(folder)) == (0, [])


def test_anchor_that_dies_while_the_seat_grows_drops_its_pin(
    folder: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer may run anywhere, also inside the call that makes room."""
    anchors = [Anchor() for _ in range(_FIRST_CELLS)]
    for anchor in anchors:
        pins.pin(anchor, 5)
    del anchor
    _pin_while_it_grows(monkeypatch, anchors.clear)
    last = Anchor()
    pins.pin(last, 6)
    assert _seen_by_others(folder) == [6]
    assert pins.in_use() == 1


def test_growth_broken_by_a_signal_handler_can_be_repeated(
    folder: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle leaves pins that work."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    _pin_while_it_grows(monkeypatch, interrupt)
    anchor = Anchor()
    with pytest.raises(KeyboardInterrupt):
        pins.pin(anchor, 3)
    assert _seen_by_others(folder) == []
    pins.pin(anchor, 3)
    assert _seen_by_others(folder) == [3]


# --- fork ----------------------------------------------------------------------------------------


def test_pins_copied_for_a_child_are_those_of_the_parent(
    folder: Path, pins: Pins, make_seat: Callable[[int], Seat]
) -> None:
    """Before the child exists, its seat holds everything that the parent looks at."""
    anchors = [Anchor() for _ in range(300)]
    for slot, anchor in enumerate(anchors):
        pins.pin(anchor, slot)
    del anchors[:100], anchor
    child = make_seat(2)
    pins.copy_to(child)
    assert _seen_by_others(folder, 2) == _seen_by_others(folder, 1) == list(range(100, 300))


def test_pins_made_and_dropped_between_copy_and_fork_reach_both_seats(
    folder: Path, pins: Pins, make_seat: Callable[[int], Seat]
) -> None:
    """Other threads go on until the very moment of the fork."""
    early, late = Anchor(), [Anchor() for _ in range(500)]
    pins.pin(early, 1)
    pins.copy_to(make_seat(2))
    for slot, anchor in enumerate(late, 1000):
        pins.pin(anchor, slot)
    del early, anchor, late[::2]
    assert _seen_by_others(folder, 2) == _seen_by_others(folder, 1) == list(range(1001, 1500, 2))
    pins.stay()
    late.clear()
    assert _seen_by_others(folder, 1) == []
    assert _seen_by_others(folder, 2) == list(range(1001, 1500, 2))


def test_pins_moved_to_the_seat_of_the_child_leave_the_parents_alone(
    folder: Path, pins: Pins, make_seat: Callable[[int], Seat]
) -> None:
    """After the move the child writes its own seat only."""
    anchors = [Anchor(), Anchor()]
    for slot, anchor in enumerate(anchors):
        pins.pin(anchor, slot)
    del anchor
    parent, child = pins.seat, make_seat(2)
    pins.copy_to(child)
    pins.move_to(child)
    assert parent.fd < 0
    anchors.pop()
    assert _seen_by_others(folder, 2) == [0]
    assert _seen_by_others(folder, 1) == [0, 1]
    more = Anchor()
    pins.pin(more, 77)
    assert _seen_by_others(folder, 2) == [0, 77]
    anchors.clear()
    del more
    assert (pins.in_use(), _seen_by_others(folder, 2)) == (0, [])


def test_pins_made_while_two_seats_grow_at_once_are_in_both(
    folder: Path,
    pins: Pins,
    make_seat: Callable[[int], Seat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may need more cells while this one makes some for parent and child."""
    mine, theirs = Anchor(), [Anchor() for _ in range(100)]

    def other_thread() -> None:
        for slot, anchor in enumerate(theirs, 100):
            pins.pin(anchor, slot)

    pins.copy_to(make_seat(2))
    _pin_while_it_grows(monkeypatch, other_thread)
    pins.pin(mine, 1)
    assert _seen_by_others(folder, 1) == [1, *range(100, 200)]
    assert _seen_by_others(folder, 2) == [1, *range(100, 200)]
    pins.stay()
    del mine
    theirs.clear()
    assert (pins.in_use(), _seen_by_others(folder, 1)) == (0, [])


def test_pins_copied_while_the_seat_grows_are_in_both(
    folder: Path,
    pins: Pins,
    make_seat: Callable[[int], Seat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fork that begins while another thread makes cells misses none of its pins."""
    anchors = [Anchor() for _ in range(200)]
    child = make_seat(2)
    _pin_while_it_grows(monkeypatch, lambda: pins.copy_to(child))
    for slot, anchor in enumerate(anchors):
        pins.pin(anchor, slot)
    assert _seen_by_others(folder, 1) == _seen_by_others(folder, 2) == list(range(200))


def test_anchor_whose_callback_was_cut_short_is_swept(folder: Path, pins: Pins) -> None:
    """A pin whose anchor has died is found without its callback."""
    anchor = Anchor()
    pins.pin(anchor, 8)
    cell = next(c for c, holder in enumerate(pins.holders) if holder is not None)
    pins.holders[cell] = weakref.ref(anchor)
    del anchor
    assert _seen_by_others(folder) == [8]
    pins.sweep()
    assert (pins.in_use(), _seen_by_others(folder)) == (0, [])
