"""Pins while their seat grows, and while their process forks: none is lost, none stays."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from seat_files import folder, make_seat, pin_while_it_grows, pins, seen_by_others

from shmstore._sharing.seats import _FIRST_CELLS, Anchor, Pins, Seat

__all__ = ["folder", "make_seat", "pins"]  # fixtures, asked for by their names

# --- growth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 30])
def test_pins_made_by_a_signal_handler_while_the_seat_grows_are_kept(
    folder: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A get in a handler of the very thread that grows neither waits nor loses a pin."""
    anchors = [Anchor() for _ in range(count + 1)]

    def handle(*_: object) -> None:
        for slot, anchor in enumerate(anchors[1:], 100):
            pins.pin(anchor, slot)

    pin_while_it_grows(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
    old = signal.signal(signal.SIGUSR1, handle)
    try:
        pins.pin(anchors[0], 1)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert seen_by_others(folder) == [1, *range(100, 100 + count)]
    anchors.clear()
    assert (pins.in_use(), seen_by_others(folder)) == (0, [])


def test_anchor_that_dies_while_the_seat_grows_drops_its_pin(
    folder: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer may run anywhere, also inside the call that makes room."""
    anchors = [Anchor() for _ in range(_FIRST_CELLS)]
    for anchor in anchors:
        pins.pin(anchor, 5)
    del anchor
    pin_while_it_grows(monkeypatch, anchors.clear)
    last = Anchor()
    pins.pin(last, 6)
    assert seen_by_others(folder) == [6]
    assert pins.in_use() == 1


def test_growth_broken_by_a_signal_handler_can_be_repeated(
    folder: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle leaves pins that work."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    pin_while_it_grows(monkeypatch, interrupt)
    anchor = Anchor()
    with pytest.raises(KeyboardInterrupt):
        pins.pin(anchor, 3)
    assert seen_by_others(folder) == []
    pins.pin(anchor, 3)
    assert seen_by_others(folder) == [3]


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
    assert seen_by_others(folder, 2) == seen_by_others(folder, 1) == list(range(100, 300))


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
    assert seen_by_others(folder, 2) == seen_by_others(folder, 1) == list(range(1001, 1500, 2))
    pins.stay()
    late.clear()
    assert seen_by_others(folder, 1) == []
    assert seen_by_others(folder, 2) == list(range(1001, 1500, 2))


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
    assert seen_by_others(folder, 2) == [0]
    assert seen_by_others(folder, 1) == [0, 1]
    more = Anchor()
    pins.pin(more, 77)
    assert seen_by_others(folder, 2) == [0, 77]
    anchors.clear()
    del more
    assert (pins.in_use(), seen_by_others(folder, 2)) == (0, [])


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
    pin_while_it_grows(monkeypatch, other_thread)
    pins.pin(mine, 1)
    assert seen_by_others(folder, 1) == [1, *range(100, 200)]
    assert seen_by_others(folder, 2) == [1, *range(100, 200)]
    pins.stay()
    del mine
    theirs.clear()
    assert (pins.in_use(), seen_by_others(folder, 1)) == (0, [])


def test_pins_copied_while_the_seat_grows_are_in_both(
    folder: Path,
    pins: Pins,
    make_seat: Callable[[int], Seat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fork that begins while another thread makes cells misses none of its pins."""
    anchors = [Anchor() for _ in range(200)]
    child = make_seat(2)
    pin_while_it_grows(monkeypatch, lambda: pins.copy_to(child))
    for slot, anchor in enumerate(anchors):
        pins.pin(anchor, slot)
    assert seen_by_others(folder, 1) == seen_by_others(folder, 2) == list(range(200))
