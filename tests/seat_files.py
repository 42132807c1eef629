"""What do tests of seats share: files of seats in shared memory, and who looks at them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rooms

from shmstore._memory.mapping import reserve
from shmstore._sharing.seats import Pins, Seat


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


def seen_by_others(folder: Path, serial: int = 1) -> list[int]:
    """Return the slots that another client sees pinned in the seat file."""
    fd = os.open(folder / str(serial), os.O_RDONLY)
    try:
        return sorted(pin - 1 for pin in Seat(fd, serial).pinned())
    finally:
        os.close(fd)


def pin_while_it_grows(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let something happen in this thread in the middle of the next growth."""
    left = [1]

    def interrupted(fd: int, offset: int, nbytes: int) -> None:
        reserve(fd, offset, nbytes)
        if left:
            left.clear()
            meanwhile()

    monkeypatch.setattr("shmstore._sharing.seats.reserve", interrupted)
