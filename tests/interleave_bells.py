"""What do simulated processes take for the bells that they sleep on?

A bell is a word of its process that is 1 when it was rung. Writing into a FIFO and reading from one
are calls of the system: the own stores come before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from interleave_memory import BELLS, SLEEP, Process, running


class Bell:
    """The bell of a process."""

    closed = False
    number = 0

    def __init__(self, process: Process, serial: int) -> None:
        self.serial = serial
        self._process = process

    def drain(self) -> bytes:
        """Take out what was written into it: one step, since nothing runs after the load."""
        process, address = self._process, BELLS + self._process.number
        process.drain()
        rung = process.load(address)
        if rung:
            process.memory.change(process.number, address, rung, 0)
        return b"\0" * rung


class Bells:
    """In the place of `waking.Bells`; it numbers the tickets, too.

    Parameters
    ----------
    process
        Whose they are.
    serials
        The process of each seat.
    """

    def __init__(self, process: Process, serials: Mapping[int, int]) -> None:
        self._process = process
        self._processes = serials
        self._ticket = 0

    @property
    def tickets(self) -> Self:
        """Numbers that go back with each run."""
        return self

    def __next__(self) -> int:
        self._ticket += 1
        return self._ticket

    def borrow(self, serial: int) -> Bell:
        """Return the bell of this process, silent."""
        bell = Bell(self._process, serial)
        bell.drain()
        return bell

    def give_back(self, bell: Bell) -> None:
        """Do nothing: there is one for each process."""

    def ring(self, serial: int, _: int, message: bytes = b"") -> bool:
        """Wake a process."""
        self._process.store(BELLS + self._processes[serial], 1)
        if not self._process.direct:
            self._process.drain()
        return not message or True

    def ring_all(self) -> None:
        """Wake all processes."""
        for serial in self._processes:
            self.ring(serial, 0)

    def remove_files(self, serial: int) -> None:
        """Do nothing: there are no files."""

    def close(self) -> None:
        """Do nothing: there are no descriptors."""


def sleep(sleeper: Any, _: float | None) -> bool:
    """Sleep, in the place of `Sleeper.sleep`."""
    process = running()
    assert process is not None, "only simulated processes sleep"
    address = BELLS + process.number
    assert sleeper.bell.serial > 0
    process.drain()
    process.known.note(address, process.number, store=False, locked=False)
    process.wait(SLEEP, address)
    process.history = hash((process.history, SLEEP))
    return True
