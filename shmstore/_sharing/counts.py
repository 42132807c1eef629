"""What has each client done so far?

Its seat has a word for everything that is counted (`_memory.layout`). The client alone writes them,
so that counting takes no lock and nothing is read, changed and written by two processes. What a
client has counted when it leaves, or is found dead, is added to LEFT of the index (see `Clients`).
What it has counted and not told dies with it: nothing is ever counted twice.

Concurrency: `add` is one step for the threads of a process: there is no call between its load and
its store, and only there others run. Damage makes the numbers wrong; nothing depends on them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shmstore._memory import layout as L
from shmstore._memory.folder import open_seat
from shmstore.errors import ShmStoreError


def nowhere() -> Any:
    """Return words to count in for a process that has no seat yet."""
    return memoryview(bytearray(L.COUNTS_END * L.WORD)).cast("Q")


def add(counted: Any, field: int, count: int = 1) -> None:
    """Count something. A number that damage has made too large stays as it is."""
    try:  # noqa: SIM105 - a context manager costs more than the rest
        counted[field] += count
    except ValueError:
        pass


def read(counts: Any) -> list[int]:
    """Return the counts of a seat, from PUTS on."""
    return [int(count) for count in counts[L.SEAT_PUTS : L.COUNTS_END]]


def read_file(seats_fd: int, serial: int, path: Path) -> list[int]:
    """Return the counts of a seat that is not mapped; all 0 where they cannot be read."""
    words = b""
    with contextlib.suppress(OSError, ShmStoreError), open_seat(seats_fd, str(serial), path) as fd:
        words = os.pread(fd, L.COUNTS_END * L.WORD, 0)
    return read(memoryview(words.ljust(L.COUNTS_END * L.WORD, b"\0")).cast("Q"))


def keep(words: Any, left: Sequence[int]) -> None:
    """Add what a client has counted that is gone to the sums of all that are.

    Requires: the store lock; and its row is gone, so that nobody adds it again.
    """
    for field, count in enumerate(left[: L.LEFT_END - L.SEAT_PUTS], L.W_LEFT):
        if count:
            add(words, field, count)
