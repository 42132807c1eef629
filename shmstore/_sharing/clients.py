"""Which processes are attached, and which of them still live?

A client is a row in the client table and a seat file. It lives for as long as the lock of its seat
is held; pid and start time only tell people who it is.

Concurrency: everything here requires the store lock, except `describe`, which is for messages, and
`pinned_meanwhile`; without it `rows` and `seat` may miss who comes or goes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shmstore._memory import layout as L
from shmstore._memory.folder import open_seat
from shmstore._memory.index import Index
from shmstore._sharing import counts
from shmstore._sharing.seats import SEATS_NAME, Seat, is_taken
from shmstore._sharing.waiters import Waiters
from shmstore._sharing.waking import serial_in
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError, ShmStoreError

# A process of that pid which was started at another time is another one: the pid was used again,
# or it is that of another pid namespace. Times of a start differ by the ticks of two clocks.
_SAME_START_NS: Final = 2_000_000_000

# Of what stands in /proc/<pid>/stat behind the name, which field is the time of the start.
_STARTTIME: Final = 19
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


_MOST_SERIALS: Final = 1 << 62


class Client(NamedTuple):
    """One row of the client table, which begins at the word `at` of the index."""

    row: int
    at: int
    serial: int
    pid: int
    started_ns: int
    attached_ns: int
    readonly: bool


def process_start_ns(pid: int) -> int:
    """Return when a process was started, in ns since 1970, or 0 when it cannot be told."""
    with contextlib.suppress(OSError):
        return _start_in_proc(pid)
    import psutil  # noqa: PLC0415 - takes time that most processes can save

    try:
        return int(psutil.Process(pid).create_time() * 1e9)
    except psutil.Error:
        return 0


def _start_in_proc(pid: int) -> int:
    """Return the same as Linux tells it; see proc(5). Every attach asks, so psutil can wait."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    ticks = int(fields.rpartition(")")[2].split()[_STARTTIME])
    return _booted_ns() + ticks * 1_000_000_000 // _TICKS_PER_S


@functools.cache
def _booted_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def is_process(pid: int, started_ns: int) -> bool:
    """Return whether the process of that pid here is the one that was started then."""
    return abs(process_start_ns(pid) - started_ns) < _SAME_START_NS


def process_name(pid: int) -> str:
    """Return the name of a running process, or "gone"."""
    import psutil  # noqa: PLC0415 - takes time that most processes can save

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "gone"


class Clients:
    """The client table of one store.

    Parameters
    ----------
    index
        The index that holds the table.
    seats_fd
        The open folder of the seat files.

    Attributes
    ----------
    words
        Those of the index.
    """

    def __init__(self, index: Index, seats_fd: int) -> None:
        self._index = index
        self._words = self.words = index.words
        self._start = index.geometry.clients
        self._seats_fd = seats_fd
        self._path = Path(index.path).with_name(SEATS_NAME)
        self._seen: dict[int, Seat] = {}
        self.waiters = Waiters(index)

    def register(self, *, readonly: bool, pid: int) -> tuple[int, Seat] | None:
        """Make a seat and a row for a client; None when the table is full.

        Raises
        ------
        OSError
            ENOSPC: no pages for the seat; nothing was changed.
        """
        words = self._words
        row = self._free_row()
        if row is None:
            return None
        try:
            seat = self._make_seat(words[L.W_NEXT_SERIAL])
        except FileExistsError:
            seat = self._make_seat(self._unused_serial())
        base = self.at(row)
        words[base + L.C_STARTED_NS] = process_start_ns(pid) if pid else 0
        words[base + L.C_ATTACHED_NS] = time.time_ns()
        words[base + L.C_READONLY] = int(readonly)
        words[base + L.C_SPARES] = words[base + L.C_ENDING] = words[base + L.C_SEIZED] = 0
        words[base + L.C_PID] = pid
        words[base + L.C_SERIAL] = seat.serial
        words[L.W_CLIENT_TOP] = max(words[L.W_CLIENT_TOP], row + 1)
        return row, seat

    def _make_seat(self, serial: int) -> Seat:
        if not 0 < serial < _MOST_SERIALS:
            serial = self._unused_serial()
        self._words[L.W_NEXT_SERIAL] = serial + 1
        return Seat.create(self._seats_fd, serial)

    def _unused_serial(self) -> int:
        """Return a number that no seat has: NEXT_SERIAL was damaged."""
        names = [int(name) for name in os.listdir(self._seats_fd) if name.isdecimal()]
        serials = [*names, *(client.serial for client in self.rows())]
        return max((number for number in serials if number < _MOST_SERIALS - 1), default=0) + 1

    def set_pid(self, row: int, pid: int) -> None:
        """Say who sits on a seat that was made before its process."""
        base = self.at(row)
        self._words[base + L.C_PID] = pid
        self._words[base + L.C_STARTED_NS] = process_start_ns(pid)

    def remove(self, row: int) -> None:
        """Forget a client: first what it waits for, then its row, then its file.

        What it has counted is kept between the last two, so that it is kept once, or not at all.
        """
        base = self.at(row)
        serial = self._words[base + L.C_SERIAL]
        left = self.counted(row, serial)
        self.waiters.forget(serial)
        self._words[base + L.C_SERIAL] = 0
        counts.keep(self._words, left)
        self._seen.pop(row, None)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            os.unlink(str(serial), dir_fd=self._seats_fd)

    def counted(self, row: int, serial: int) -> list[int]:
        """Return what a client has counted, in the order of its seat. Requires: the store lock."""
        seat = self._seen.get(row)
        if seat is not None and seat.serial == serial:
            return counts.read(seat.words)
        return counts.read_file(self._seats_fd, serial, self._path)

    def leave(self, row: int, serial: int) -> None:
        """Forget the own client, once: its row may be another's when this is tried again."""
        if self._words[self.at(row) + L.C_SERIAL] == serial:
            self.remove(row)

    def at(self, row: int) -> int:
        """Return where a row begins, among the words of the index."""
        return self._start + row * L.CLIENT_WORDS

    def rows(self) -> Iterator[Client]:
        """Iterate over the rows in use."""
        words = self._words
        for row in range(min(words[L.W_CLIENT_TOP], self._index.geometry.max_clients)):
            if words[self.at(row) + L.C_SERIAL]:
                yield self._client(row)

    def _client(self, row: int) -> Client:
        base = self.at(row)
        serial, pid, started, attached, readonly = self._words[base : base + L.C_READONLY + 1]
        return Client(row, base, serial, pid, started, attached, bool(readonly))

    def is_alive(self, client: Client) -> bool:
        """Return whether the process of a client lives: whether its seat is locked."""
        return self.lives(client.serial)

    def lives(self, serial: int) -> bool:
        """Return whether the client with a seat of that number lives."""
        return is_taken(self._seats_fd, str(serial), self._path)

    def bury(self, own_row: int) -> list[Client]:
        """Remove the clients that have died; return them.

        Before the first of them goes ORPHANS is set: from then on only it tells that there may be
        half-made puts of theirs, which whoever may write looks for among all slots.
        """
        dead = [c for c in self.rows() if c.row != own_row and not self.is_alive(c)]
        if dead:
            self._words[L.W_ORPHANS] = 1
        for client in dead:
            self.remove(client.row)
        return dead

    def remove_strays(self) -> None:
        """Remove seat files that no row names: somebody died between the two.

        A client that lives has lost its row by damage. It gets another one, for the sake of its
        pins.
        """
        known = {str(client.serial) for client in self.rows()}
        for name in os.listdir(self._seats_fd):
            if name in known or str(serial_in(name)) in known:
                continue
            is_seat = name.isdecimal() and int(name) < _MOST_SERIALS
            lives = is_seat and is_taken(self._seats_fd, name, self._path)
            row = self._free_row() if lives else None
            if row is not None:
                self._write_row(row, int(name))
            else:
                with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                    os.unlink(name, dir_fd=self._seats_fd)

    def _write_row(self, row: int, serial: int) -> None:
        base = self.at(row)
        for word in range(base, base + L.CLIENT_WORDS):
            self._words[word] = 0
        self._words[base + L.C_SERIAL] = serial
        self._words[L.W_CLIENT_TOP] = max(self._words[L.W_CLIENT_TOP], row + 1)

    def recount(self, own_row: int, own: Seat | None) -> None:
        """Find CLIENT_TOP and NEXT_SERIAL anew, and the row of this process, if it has one.

        Requires: the store lock.
        """
        words, most = self._words, self._index.geometry.max_clients
        if own is not None and words[self.at(own_row) + L.C_SERIAL] != own.serial:
            self._write_row(own_row, own.serial)
        used = [row for row in range(most) if words[self.at(row) + L.C_SERIAL]]
        words[L.W_CLIENT_TOP] = max(used, default=-1) + 1
        if not 0 < words[L.W_NEXT_SERIAL] < _MOST_SERIALS:
            words[L.W_NEXT_SERIAL] = self._unused_serial()

    def know(self, row: int, seat: Seat) -> None:
        """Use a seat that this process has mapped already."""
        self._seen[row] = seat

    def seat(self, client: Client) -> Seat:
        """Return the seat of a client, mapped for reading."""
        seat = self._seen.get(client.row)
        if seat is None or seat.serial != client.serial:
            seat = self._open_seat(client)
            self._seen[client.row] = seat
        return seat

    def pinned(self) -> set[int]:
        """Return the slots that any client pins.

        Requires: the store lock, and a barrier since the slots in question were doomed.
        """
        words, seen = self._words, self._seen
        pins: set[int] = set()
        for row in range(min(words[L.W_CLIENT_TOP], self._index.geometry.max_clients)):
            base = self._start + row * L.CLIENT_WORDS
            serial = words[base + L.C_SERIAL]
            if not serial:
                continue
            seat = seen.get(row)
            if seat is None or seat.serial != serial:
                seat = self.seat(self._client(row))
            pins.update(seat.pinned())
        return {pin - 1 for pin in pins}

    def pinned_meanwhile(self) -> set[int] | None:
        """Return the slots that any client pins; None: that cannot be told. Takes no lock.

        Requires: a barrier since the slots in question were taken away from new readers. A pin may
        still be copied then, for a child of a client that pins: PINS_COPIED tells that.
        """
        copied = self._words[L.W_PINS_COPIED]
        try:
            pins = self.pinned()
        except (ShmStoreError, OSError):
            return None
        return pins if self._words[L.W_PINS_COPIED] == copied else None

    def has_pin(self, slot: int, row: int, serial: int, cell: int, since: float) -> bool:
        """Return whether a client has a certain pin still. Requires: the store lock."""
        if not 0 <= row < min(self._words[L.W_CLIENT_TOP], self._index.geometry.max_clients):
            return False
        client = self._client(row)
        if not serial or client.serial != serial:
            return False
        return self.seat(client).has_pin(cell, slot, since)

    def describe(self, row: int) -> str:
        """Return "pid 123 (python)" for a row, as far as it can be told. Takes no lock."""
        if row >= self._index.geometry.max_clients:
            return "a process that is attaching"
        base = self.at(row)
        pid, started_ns = self._words[base + L.C_PID], self._words[base + L.C_STARTED_NS]
        name = process_name(pid) if is_process(pid, started_ns) else "not seen from here"
        return f"pid {pid} ({name})"

    def _free_row(self) -> int | None:
        words = self._words
        for row in range(self._index.geometry.max_clients):
            if not words[self.at(row) + L.C_SERIAL]:
                return row
        return None

    def _open_seat(self, client: Client) -> Seat:
        try:
            fd = open_seat(self._seats_fd, str(client.serial), self._path)
        except FileNotFoundError:
            path = str(self._path / str(client.serial))
            raise CorruptStoreError(
                f"{path} is gone, the seat of pid {client.pid}, so its pins cannot be read "
                "(invariant 8). End that process, then call recover().",
                path=path,
                offset=0,
                invariant=8,
                serial=client.serial,
                pid=client.pid,
            ) from None
        with fd:
            return Seat(fd, client.serial)
