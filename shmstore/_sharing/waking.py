"""How is a process woken that sleeps?

By a *bell*: a FIFO in the folder of the seats, named by the serial of its client and a number. Its
client sleeps in poll() on it, or lets an event loop watch it; who rings it writes into it, which
never blocks. A client has as many bells as it has threads and event loops that sleep at once.

Both sides open it for reading and writing: so nobody's death is an end of file for the other side,
and no write can raise SIGPIPE.

Concurrency: `ring` and `ring_all` require the store lock. The others may be called by any thread; a
bell belongs to who has borrowed it. Another thread may be about to ring it, so nobody closes it: it
closes itself when nobody refers to it any more. A forked child begins without bells, which it may
close (`begin_anew`): it has one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Final

from shmstore._memory.descriptors import Descriptor
from shmstore._memory.fifos import make_fifo, open_fifo
from shmstore.errors import StoreNotFoundError, UnsafePathError

# Bells of others that are kept open: opening one takes longer than ringing it.
_MOST_KNOWN: Final = 8

_DRAINED_NBYTES: Final = 1 << 16

JUST_RING: Final = b"\0"


def name_of(serial: int, number: int) -> str:
    """Return the name of the file of a bell."""
    return f"{serial}-{number}"


def serial_in(name: str) -> int:
    """Return the serial of the client whose bell a file is, 0 if it is none."""
    serial, dash, number = name.partition("-")
    return int(serial) if dash and serial.isdecimal() and number.isdecimal() else 0


class Bell:
    """A FIFO that this process sleeps on.

    Attributes
    ----------
    fd
        To be polled for reading.
    serial, number
        How others find it.
    """

    __slots__ = ("fd", "number", "serial")

    def __init__(self, fd: Descriptor, serial: int, number: int) -> None:
        self.fd = fd
        self.serial = serial
        self.number = number

    @property
    def closed(self) -> bool:
        """Whether it belonged to a parent of this process."""
        return self.fd.closed

    def drain(self) -> bytes:
        """Take out what was written into it."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.fd, _DRAINED_NBYTES)
        return b""

    def ring(self) -> None:
        """Wake who sleeps on it, a thread of this process."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.fd, JUST_RING)


def _removed(path: Path) -> StoreNotFoundError:
    return StoreNotFoundError(
        f"the store {path} has been removed: nobody could wake who waits there. Close this handle; "
        "create or attach another store.",
        path=str(path),
    )


class Bells:
    """The bells of this process in one store, and those of others that it has rung.

    Parameters
    ----------
    seats_fd
        The open folder of the seats.
    path
        Its path, for messages.

    Attributes
    ----------
    tickets
        Numbers for the rows of this process in the table of waiters.
    """

    def __init__(self, seats_fd: int, path: Path) -> None:
        self._seats_fd = seats_fd
        self._path = path
        self._numbers = itertools.count()
        self.tickets = itertools.count(1)
        self._own: dict[int, Bell] = {}
        self._idle: list[Bell] = []
        self._known: dict[tuple[int, int], Descriptor] = {}
        self._closed = False

    # --- the own ones --------------------------------------------------------------------------

    def borrow(self, serial: int) -> Bell:
        """Return a silent bell that nobody else sleeps on.

        Raises
        ------
        OSError
            There is no room for another one.
        StoreNotFoundError
            The folder of the seats, or the file of the bell, has been removed.
        """
        try:
            bell = self._idle.pop()
        except IndexError:
            return self._make(serial)
        if not os.fstat(bell.fd).st_nlink:
            self.give_back(bell)
            raise _removed(self._path.parent)
        bell.drain()
        return bell

    def _make(self, serial: int) -> Bell:
        try:
            for number in self._numbers:
                with contextlib.suppress(FileExistsError):
                    fd = make_fifo(self._seats_fd, name_of(serial, number), self._path)
                    break
        except FileNotFoundError as error:
            raise _removed(self._path.parent) from error
        self._own[number] = bell = Bell(fd, serial, number)
        return bell

    def give_back(self, bell: Bell) -> None:
        """Keep a bell for the next one who sleeps. Requires: no row leads to it."""
        if not bell.closed:
            self._idle.append(bell)
        if self._closed:
            self._forget()

    def remove_files(self, serial: int) -> None:
        """Take the names of the own bells away: this client leaves."""
        for number in list(self._own):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name_of(serial, number), dir_fd=self._seats_fd)

    def close(self) -> None:
        """Wake who sleeps, and let go of all bells: of those that are borrowed who gives them back.

        The waking comes first: nobody is woken whose bell is forgotten already.
        """
        self.ring_own()
        self._closed = True
        self._close_known()
        self._forget()

    def ring_own(self) -> None:
        """Wake all who sleep in this process: a handle or a queue is closed here."""
        for bell in list(self._own.values()):
            if not bell.closed:
                bell.ring()

    def _forget(self) -> None:
        self._own.clear()
        self._idle.clear()

    def begin_anew(self) -> None:
        """Forget all bells: they are those of the parent of this forked child."""
        for bell in self._own.values():
            bell.fd.close()
        self._own, self._idle = {}, []
        self._numbers = itertools.count()
        self._close_known()

    # --- those of others -----------------------------------------------------------------------

    def ring(self, serial: int, number: int, message: bytes = JUST_RING) -> bool:
        """Wake whoever sleeps on a bell; return whether the message found room in it.

        Somebody who is gone misses nothing.

        Raises
        ------
        OSError
            It could not be opened, for want of descriptors.
        """
        key = serial, number
        fd = self._known.get(key)
        try:
            if fd is None:
                fd = self._open(key)
            os.write(fd, message)
        except BlockingIOError:
            return False
        except (FileNotFoundError, UnsafePathError):
            return True
        return True

    def ring_all(self) -> None:
        """Wake everybody who sleeps at this store."""
        for name in os.listdir(self._seats_fd):
            number = name.partition("-")[2]
            if serial_in(name):
                self.ring(serial_in(name), int(number))

    def _open(self, key: tuple[int, int]) -> Descriptor:
        if len(self._known) >= _MOST_KNOWN:
            self._known.pop(next(iter(self._known))).close()
        name = name_of(*key)
        try:
            fd = open_fifo(self._seats_fd, name, self._path)
        except OSError:
            if not self._known:
                raise
            self._close_known()  # there may be no descriptors left
            fd = open_fifo(self._seats_fd, name, self._path)
        self._known[key] = fd
        return fd

    def _close_known(self) -> None:
        for fd in self._known.values():
            fd.close()
        self._known.clear()
