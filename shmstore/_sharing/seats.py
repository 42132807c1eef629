"""Which objects does a process look at?

A seat is a file that one client writes and all read. Its lock tells that the client lives: the
kernel drops it at death, in every pid namespace. Its cells are pins: a cell that holds slot + 1
keeps the extent of that slot from being used again. Every view has a cell of its own, so that
pinning and unpinning are plain stores: no counter is shared, not even between the threads of the
client.

Concurrency: `take` and `drop` may run in any thread, in a finalizer, in a signal handler. The list
of free cells is a Python list, whose pop and append are atomic.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from filelock import lock_descriptor

from shmstore._memory import layout as L
from shmstore._memory.mapping import map_file, reserve
from shmstore.errors import CorruptStoreError

SEATS_NAME = "seats"

_SEAT_NBYTES = (L.MAX_CELLS + L.SEAT_FIRST_CELL) * L.WORD
_FIRST_CELLS = 24
_FEW_CELLS = 200


class Seat:
    """One seat file, mapped into this process.

    Parameters
    ----------
    fd
        The open file. The own seat keeps it, locked; of others only the mapping stays.
    serial
        The number of the seat, expected in the file.
    writeable
        Whether this is the own seat.
    """

    def __init__(self, fd: int, serial: int, *, writeable: bool) -> None:
        if os.fstat(fd).st_size != _SEAT_NBYTES:
            raise CorruptStoreError(
                f"seat {serial} has {os.fstat(fd).st_size} bytes instead of {_SEAT_NBYTES}",
                serial=serial,
            )
        self.fd = fd
        self.serial = serial
        self.words = memoryview(map_file(fd, _SEAT_NBYTES, writeable=writeable)).cast("Q")
        if self.words[0] != L.SEAT_MAGIC or self.words[L.SEAT_SERIAL] != serial:
            raise CorruptStoreError(f"the file of seat {serial} is not that seat", serial=serial)

    @classmethod
    def create(cls, seats_fd: int, serial: int) -> Seat:
        """Make the file of a new seat and hold its lock. OSError (ENOSPC): there are no pages."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(str(serial), flags, 0o600, dir_fd=seats_fd)
        try:
            os.ftruncate(fd, _SEAT_NBYTES)
            reserve(fd, 0, L.PAGE)
            words = L.SEAT_MAGIC.to_bytes(L.WORD, "little") + serial.to_bytes(L.WORD, "little")
            os.pwrite(fd, words, 0)
            lock_descriptor(fd)
            return cls(fd, serial, writeable=True)
        except BaseException:
            os.close(fd)
            os.unlink(str(serial), dir_fd=seats_fd)
            raise

    def pinned(self) -> list[int]:
        """Return slot + 1 of each pin, without order; the same slot may come more than once."""
        count = min(self.words[L.SEAT_CELLS], L.MAX_CELLS)
        cells = self.words[L.SEAT_FIRST_CELL : L.SEAT_FIRST_CELL + count]
        if count <= _FEW_CELLS:
            return [pin for pin in cells.tolist() if pin]
        array = np.frombuffer(cells, np.uint64)
        pins: list[int] = array[array != 0].tolist()
        return pins

    def close(self) -> None:
        """Give the file up, and its lock with it."""
        os.close(self.fd)
        self.fd = -1


class Pins:
    """The pins of this process on one store.

    Parameters
    ----------
    seat
        The own seat.

    Attributes
    ----------
    cells
        The words of the own seat; a forked child swaps them for those of its own.
    free
        Numbers of the cells that are not in use.
    holders
        Per cell: what keeps it in use (a weak reference with `droppers[cell]` as its callback).
    droppers
        Per cell: the callable that gives it back.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.cells = seat.words
        self.free: list[int] = []
        self.holders: list[Any] = [None] * L.SEAT_FIRST_CELL
        self.droppers: list[Callable[..., None]] = [_no_cell] * L.SEAT_FIRST_CELL
        self.when_empty: Callable[[], None] | None = None
        self._growing = threading.Lock()

    def take(self, slot: int) -> int:
        """Pin a slot; return the cell. OSError (ENOSPC): the seat cannot grow."""
        try:
            cell = self.free.pop()
        except IndexError:
            cell = self._grow()
        self.cells[cell] = slot + 1
        return cell

    def drop(self, cell: int, _reference: object = None) -> None:
        """Give a cell back. Never blocks, takes no lock: safe in a finalizer."""
        self.cells[cell] = 0
        self.holders[cell] = None
        self.free.append(cell)
        if self.when_empty is not None and not self.in_use():
            self.when_empty()

    def in_use(self) -> int:
        """Return the number of pins that are held."""
        return len(self.holders) - L.SEAT_FIRST_CELL - len(self.free)

    def _grow(self) -> int:
        """Make more cells; return one of them."""
        with self._growing:
            if self.free:
                return self.free.pop()
            first = len(self.holders)
            count = max(_FIRST_CELLS, first)
            if first + count > L.MAX_CELLS:
                message = f"this process holds {first} views of the store, more than it may"
                raise MemoryError(message)
            reserve(self.seat.fd, first * L.WORD, count * L.WORD)
            self.droppers.extend(partial(self.drop, cell) for cell in range(first, first + count))
            self.holders.extend([None] * count)
            self.cells[L.SEAT_CELLS] = first + count - L.SEAT_FIRST_CELL
            self.free.extend(range(first + count - 1, first, -1))
            return first

    def move_to(self, seat: Seat) -> None:
        """Go on with another seat that holds the same pins: this process is a forked child."""
        os.close(self.seat.fd)
        self.seat = seat
        self.cells = seat.words
        self._growing = threading.Lock()

    def copy_to(self, seat: Seat) -> None:
        """Write all pins of this process into the seat of a child that is about to be born."""
        end = len(self.holders)
        reserve(seat.fd, 0, end * L.WORD)
        seat.words[L.SEAT_CELLS] = end - L.SEAT_FIRST_CELL
        seat.words[L.SEAT_FIRST_CELL : end] = self.cells[L.SEAT_FIRST_CELL : end]


def _no_cell(*_: object) -> None:
    message = "the first words of a seat are no pin cells"
    raise AssertionError(message)
