"""Which objects does a process look at?

A seat is a file that one client writes and all read. Its lock tells that the client lives: the
kernel drops it at death, in every pid namespace. Its cells are pins: a cell whose PIN is slot + 1
keeps the extent of that slot from being used again. Every view has a cell of its own, so that
pinning and unpinning are plain stores: no counter is shared, not even between the threads of the
client. SINCE, beside it, is for people only: when the view was made.

Concurrency: `pin` and the droppers may run in any thread, in a finalizer, in a signal handler. The
list of free cells is a Python list, whose pop and append are atomic.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from shmstore._memory import layout as L
from shmstore._memory.descriptors import CLOSED, Descriptor, open_descriptor
from shmstore._memory.folder import HOW_TO_ENLARGE, NO_ROOM, create_file, is_unmade, open_seat
from shmstore._memory.mapping import map_file, reserve
from shmstore._memory.owners import FILE_FLAGS
from shmstore._sharing.flock import lock_descriptor
from shmstore._sharing.forking import InFork
from shmstore._sharing.lock import is_locked
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError, StoreFullError, UnsafePathError

if TYPE_CHECKING:
    import numpy.typing as npt

SEATS_NAME = "seats"

_FIRST_CELLS = 16
_FEW_CELLS = 200
_SLOT_BITS = (1 << L.PIN_SITE_SHIFT) - 1


class Views(NamedTuple):
    """The cells in use of a seat: the slot of each, since when (monotonic clock), and its site."""

    slots: npt.NDArray[np.intp]
    since: npt.NDArray[np.float64]
    sites: npt.NDArray[np.intp]


class Seat:
    """One seat file, mapped into this process.

    Parameters
    ----------
    fd
        The open file, to be mapped; the caller closes it.
    serial
        The number of the seat, expected in the file.
    own_fd
        The own seat: the file once more, locked; owned by this object. It must have been opened
        apart: a mapping keeps the open file that it was made from, and a lock on that would live
        on in a forked child for as long as the child has the mapping.

    Attributes
    ----------
    words
        All words of the file.
    pins, times
        PIN (as a number) and SINCE (as a double) of each cell, by the number of the cell.
    """

    def __init__(self, fd: int, serial: int, own_fd: Descriptor = CLOSED) -> None:
        if os.fstat(fd).st_size != L.SEAT_NBYTES:
            found = os.fstat(fd).st_size
            raise _damaged(fd, serial, f"has {found} bytes instead of {L.SEAT_NBYTES}", found)
        self.fd = own_fd
        self.serial = serial
        self.bytes = memoryview(map_file(fd, L.SEAT_NBYTES, writeable=own_fd >= 0))
        self.words = self.bytes.cast("Q")
        cells = slice(0, L.SITES_OFFSET // L.WORD)
        self.pins = self.words[cells][:: L.CELL_WORDS]
        self.times: Any = self.bytes.cast("d")[cells][L.CELL_SINCE :: L.CELL_WORDS]
        if self.words[L.SEAT_MARK] != L.SEAT_MAGIC or self.words[L.SEAT_SERIAL] != serial:
            raise _damaged(fd, serial, "does not begin as that seat does", 0)

    @classmethod
    def create(cls, seats_fd: int, serial: int) -> Seat:
        """Make the file of a new seat and hold its lock. OSError (ENOSPC): there are no pages."""
        fd = create_file(seats_fd, str(serial))
        try:
            os.ftruncate(fd, L.SEAT_NBYTES)
            reserve(fd, 0, L.PAGE)
            words = L.SEAT_MAGIC.to_bytes(L.WORD, "little") + serial.to_bytes(L.WORD, "little")
            os.pwrite(fd, words, 0)
            lock_descriptor(fd)
            with open_descriptor(str(serial), os.O_RDWR | FILE_FLAGS, dir_fd=seats_fd) as mapped_fd:
                return cls(mapped_fd, serial, fd)
        except BaseException:
            fd.close()
            os.unlink(str(serial), dir_fd=seats_fd)
            raise

    def make_cells(self, end: int) -> None:
        """Make room for the cells before number `end`. Others may do so for more, meanwhile.

        Raises
        ------
        StoreFullError
            The file system has no page for them.
        """
        try:
            reserve(self.fd, 0, end * L.CELL_NBYTES)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StoreFullError(
                f"the file system has no room for the pins of this process: asked for {end:,} "
                f"cells. Drop views. {HOW_TO_ENLARGE}",
                asked=end * L.CELL_NBYTES,
            ) from error
        cells = end - L.FIRST_CELL
        if self.words[L.SEAT_CELLS] < cells:  # noqa: PLR1730 - max() is a call: others may run in it
            self.words[L.SEAT_CELLS] = cells

    def pinned(self) -> list[int]:
        """Return slot + 1 of each pin, without order; the same slot may come more than once."""
        cells = self.pins[L.FIRST_CELL : L.FIRST_CELL + self._count()]
        if len(cells) <= _FEW_CELLS:
            pins = [pin for pin in cells.tolist() if pin]
        else:
            array = np.asarray(cells)
            pins = array[array != 0].tolist()
        # Looked at last: whoever gives a pin a site has counted the site before.
        return [pin & _SLOT_BITS for pin in pins] if self.words[L.SEAT_SITES] else pins

    def views(self) -> Views:
        """Return what is told of each pin, without order."""
        cells = slice(L.FIRST_CELL, L.FIRST_CELL + self._count())
        pins = np.array(self.pins[cells], np.int64)
        used = np.flatnonzero(pins)
        pins = pins[used]
        since = np.asarray(self.times[cells])[used]
        return Views((pins & _SLOT_BITS) - 1, since, pins >> L.PIN_SITE_SHIFT)

    def has_pin(self, cell: int, slot: int, since: float) -> bool:
        """Return whether a cell pins a slot since a certain moment."""
        if not L.FIRST_CELL <= cell < L.FIRST_CELL + self._count():
            return False
        return self.pins[cell] & _SLOT_BITS == slot + 1 and self.times[cell] == since

    def write_site(self, number: int, text: bytes) -> None:
        """Give a site its text. OSError (ENOSPC): there is no page for it."""
        start = L.SITES_OFFSET + number * L.SITE_NBYTES
        reserve(self.fd, start, L.SITE_NBYTES)
        self.bytes[start : start + len(text)] = text
        if self.words[L.SEAT_SITES] <= number:
            self.words[L.SEAT_SITES] = number + 1

    def site(self, number: int) -> str:
        """Return the text of a site, "" if there is none."""
        if not 0 < number < min(self.words[L.SEAT_SITES], L.MAX_SITES):
            return ""
        start = L.SITES_OFFSET + number * L.SITE_NBYTES
        text = self.bytes[start : start + L.SITE_NBYTES].tobytes()
        return text.partition(b"\0")[0].decode(errors="replace")

    def copy_sites_to(self, seat: Seat) -> None:
        """Give another seat the same sites. OSError (ENOSPC): there are no pages for them."""
        count = min(self.words[L.SEAT_SITES], L.MAX_SITES)
        copied = slice(L.SITES_OFFSET, L.SITES_OFFSET + count * L.SITE_NBYTES)
        if count:
            reserve(seat.fd, copied.start, copied.stop - copied.start)
            seat.bytes[copied] = self.bytes[copied]
            seat.words[L.SEAT_SITES] = count

    def _count(self) -> int:
        return int(min(self.words[L.SEAT_CELLS], L.MAX_CELLS))

    def close(self) -> None:
        """Give the file up, and its lock with it."""
        self.fd.close()
        self.fd = CLOSED


class Anchor:
    """Holds a pin that no view holds: for a moment, or while work goes on without the lock."""

    __slots__ = ("__weakref__",)


class Pins:
    """The pins of this process on one store.

    A pin lives as long as its anchor, any object that takes weak references: the death of the
    anchor drops it. So a pin cannot be lost, wherever an exception strikes.

    Parameters
    ----------
    seat
        The own seat.

    Attributes
    ----------
    cells, times
        PIN and SINCE of each cell of the own seat, or during a fork of two seats.
    free
        Numbers of the cells that are not in use.
    holders
        Per cell: the weak reference to its anchor, or None.
    droppers
        Per cell: the callback of that reference.
    seats
        The own seat, during a fork also that of the child.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.cells: Any = seat.pins
        self.times: Any = seat.times
        self.free: list[int] = []
        self.holders: list[Any] = [None] * L.FIRST_CELL
        self.droppers: list[Callable[[Any], None]] = [_no_cell] * L.FIRST_CELL
        self.when_empty: Callable[[], None] | None = None
        self._drops_to_count = 0
        self._end = L.FIRST_CELL
        self.seats: tuple[Seat, ...] = (seat,)

    def prepare(self) -> None:
        """Make the first cells before a get needs them, if there is room; else it will be told."""
        with contextlib.suppress(StoreFullError, OSError):
            self.free.append(self.grow())

    def pin(self, anchor: object, slot: int) -> int:
        """Pin a slot for as long as `anchor` lives; return the cell. OSError: no room for it."""
        try:
            cell = self.free.pop()
        except IndexError:
            cell = self.grow()
        self.holders[cell] = weakref.ref(anchor, self.droppers[cell])
        self.times[cell] = monotonic()
        self.cells[cell] = slot + 1
        return cell

    def hold(self, slot: int) -> Anchor:
        """Pin a slot until what is returned dies. OSError: no room for the pin."""
        anchor = Anchor()
        self.pin(anchor, slot)
        return anchor

    def pass_on(self, cell: int, anchor: object) -> None:
        """Let a pin live as long as another anchor. What others see of it does not change."""
        if self.holders[cell] is not _FOR_EVER:
            self.holders[cell] = weakref.ref(anchor, self.droppers[cell])

    def pin_of(self, anchor: object) -> tuple[int, int, float] | None:
        """Return the pin that lives as long as an anchor: its slot, cell and SINCE."""
        for holder in weakref.getweakrefs(anchor):
            cell = _cell_of(holder.__callback__)
            if cell is not None and self.holders[cell] is holder:
                return (self.seat.pins[cell] & _SLOT_BITS) - 1, cell, self.seat.times[cell]
        return None

    def watch(self, when_empty: Callable[[], None] | None) -> None:
        """Call `when_empty` when the last pin has gone; None: do not."""
        self._drops_to_count = 0
        self.when_empty = when_empty

    def look_whether_empty(self, when_empty: Callable[[], None]) -> None:
        """Count the pins, not at each drop but when half of those that were left may be gone."""
        self._drops_to_count -= 1
        if self._drops_to_count <= 0:
            left = self.in_use()
            self._drops_to_count = max(1, left // 2)
            if not left:
                when_empty()

    def freeze(self) -> None:
        """Never drop the pins that are held now: a process without a seat of its own needs them.

        Nor does that process, before it has left the seat, drop those that are made until then.
        """
        if self.cells is self.seat.pins:
            self.cells = InFork(self.seat.pins)
        for cell, holder in enumerate(self.holders):
            if holder is not None:
                self.holders[cell] = _FOR_EVER

    def in_use(self) -> int:
        """Return the number of pins that are held."""
        return len(self.holders) - self.holders.count(None)

    def sweep(self) -> None:
        """Drop the pins of anchors that died while an exception cut their callback short."""
        for cell, holder in enumerate(self.holders):
            # A dead reference has no callback. Calling it would keep a living anchor for a moment.
            if holder is not None and holder.__callback__ is None:
                self.droppers[cell](holder)

    def grow(self) -> int:
        """Make more cells; return one of them.

        Others may grow at the same time, in threads or in a signal handler of this one. So all is
        prepared first, and the look at `_end` and the stores after it are one step: nothing in
        them is a call, and only calls let others run.
        """
        self.sweep()
        while not self.free:
            end, seats = self._end, self.seats
            count = max(_FIRST_CELLS, end)
            if end + count > L.MAX_CELLS:
                raise StoreFullError(
                    f"this process holds {end:,} views of the store, as many as it may. Drop some.",
                    asked=end + count,
                )
            for seat in seats:
                seat.make_cells(end + count)
            droppers = [_dropper(self, cell) for cell in range(end, end + count)]
            holders = [None] * count
            free = list(range(end + count - 1, end - 1, -1))
            if self._end == end and self.seats is seats:
                self._end = end + count
                self.droppers[end:] = droppers
                self.holders[end:] = holders
                self.free[:0] = free
        try:
            return self.free.pop()
        except IndexError:
            return self.grow()

    # --- fork ----------------------------------------------------------------------------------

    def copy_to(self, seat: Seat) -> None:
        """Hold all pins for a child too that is about to be born, also those that come until then.

        Other threads go on: (1) from now on what they write goes to both seats, (2) what was there
        before is copied in one step.
        """
        self.seats = (self.seat, seat)
        try:
            seat.make_cells(self._end)
        except BaseException:
            self.stay()
            raise
        self.times = InFork(self.seat.times, seat.times)
        self.cells = InFork(self.seat.pins, seat.pins)
        copied = slice(L.SEAT_FIRST_CELL, self._end * L.CELL_WORDS)
        seat.words[copied] = self.seat.words[copied]

    def stay(self) -> None:
        """Go on with the own seat alone: this process is the parent."""
        self.cells = self.seat.pins
        self.times = self.seat.times
        self.seats = (self.seat,)

    def move_to(self, seat: Seat) -> None:
        """Go on with the seat that was made for this process, a forked child.

        Pins that other threads of the parent were about to make have no anchor here.
        """
        if self.seat is not seat:  # or a signal handler had cut this short
            self.seat.close()
        self.seat = seat
        self.stay()
        for cell in range(L.FIRST_CELL, self._end):
            if self.holders[cell] is None:
                self.cells[cell] = 0
        self.sweep()


class _ForEver:
    """In the place of a weak reference: nothing that dies gives this pin back."""

    __callback__ = True


_FOR_EVER = _ForEver()


def _dropper(pins: Pins, cell: int) -> Callable[[Any], None]:
    """Return what the death of the anchor of a cell calls; the benchmark "get array" pays for it.

    A function of its own per cell: a partial of a method would be a third slower.
    """
    holders, give_back = pins.holders, pins.free.append

    def drop(holder: Any) -> None:
        """Give the cell of a dead anchor back, once. Never blocks, takes no lock."""
        if holders[cell] is holder:
            pins.cells[cell] = 0
            holders[cell] = None
            give_back(cell)
            if pins.when_empty is not None:
                pins.look_whether_empty(pins.when_empty)

    return drop


def _cell_of(dropper: Any) -> int | None:
    """Return the cell that a function of `_dropper` gives back; None: it is another function."""
    names = getattr(getattr(dropper, "__code__", None), "co_freevars", ())
    if getattr(dropper, "__module__", None) != __name__ or "cell" not in names:
        return None
    return int(dropper.__closure__[names.index("cell")].cell_contents)


def is_taken(seats_fd: int, seat: str, path: Path) -> bool:
    """Return whether the client of a seat lives: whether its file is locked.

    Requires: the store lock, so that nobody is about to make a seat.
    """
    try:
        fd = open_seat(seats_fd, seat, path)
    except FileNotFoundError:
        return False
    except UnsafePathError:
        if is_unmade(seats_fd, seat):
            return False
        raise
    with fd:
        return is_locked(fd)


def _damaged(fd: int, serial: int, what: str, offset: int) -> CorruptStoreError:
    """Return the error for a seat whose pins cannot be read."""
    path = f"seats/{serial}"
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{fd}")
    return CorruptStoreError(
        f"{path}: seat {serial} {what}, so the pins of its client cannot be read (invariant 8). "
        "End that process (clients() names it), then call recover().",
        path=path,
        offset=offset,
        invariant=8,
        serial=serial,
    )


def _no_cell(_: object) -> None:
    message = "the first words of a seat are no pin cells"
    raise AssertionError(message)
