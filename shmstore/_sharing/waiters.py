"""Who sleeps until something happens, and which bell wakes him?

Each row of the table says: when something happens with this topic, ring that bell. A topic is a
number of 64 bits that stands for a key, a reference, or whatever two processes agree on; if two
things have the same, somebody wakes up in vain. A watcher's row has a prefix instead: its topic is
that of the first bytes of a key, and PREFIX says how many these are.

A row serves once, except a watcher's: who rings the bell takes it away. So nobody rings twice, and
who finds his rows gone need not take the lock to clear them.

Concurrency: everything here requires the store lock, except `is_waiting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    import numpy.typing as npt

# So many rows are looked at one by one: an array is quicker from there on.
_FEW: Final = 8

# One waiter has at most this part of the table.
_SHARE: Final = 8


class Waiter(NamedTuple):
    """One row: whose bell, and of a watcher the length of its prefix, else -1."""

    row: int
    topic: int
    serial: int
    bell: int
    prefix: int


class Waiters:
    """The table of waiters of one store.

    Parameters
    ----------
    index
        The index that holds the table.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._start = index.geometry.waiters
        self._most = index.geometry.max_waiters

    def most_topics(self) -> int:
        """Return how many rows one waiter may have."""
        return self._most // _SHARE

    def enter(
        self, topics: Sequence[int], bell: tuple[int, int], ticket: int, prefix: int = -1
    ) -> list[int] | None:
        """Let a bell be rung for some topics; return a row for each, None: there are not so many.

        The topic is written last, so that a row that is half made leads to nobody, and the serial
        after WAITERS: who only reads leaves no mark when he dies, and his rows are to be found.

        Parameters
        ----------
        topics
            Each gets a row.
        bell
            The serial of its client, and its number.
        ticket
            By which the client will know these rows; it gives each number once.
        prefix
            Of a watcher: its length in bytes.

        Raises
        ------
        OSError
            ENOSPC: no pages for the table; nothing was changed.
        """
        words = self._words
        rows = self._free_rows(len(topics))
        if rows is None:
            return None
        serial, number = bell
        for row, topic in zip(rows, topics, strict=True):
            base = self._start + row * L.WAITER_WORDS
            words[base + L.WAIT_BELL] = number
            words[base + L.WAIT_TICKET] = ticket
            words[base + L.WAIT_PREFIX] = prefix + 1
            words[base + L.WAIT_LOST] = 0
            if words[L.W_WAITERS] <= row:
                words[L.W_WAITERS] = row + 1
            words[base + L.WAIT_SERIAL] = serial
            words[base + L.WAIT_TOPIC] = topic
        return rows

    def is_waiting(self, row: int, serial: int, ticket: int) -> bool:
        """Return whether a row is still there: nobody has rung for it. Takes no lock."""
        base = self._start + row * L.WAITER_WORDS
        words = self._words
        return bool(words[base + L.WAIT_TICKET] == ticket and words[base + L.WAIT_SERIAL] == serial)

    def leave(self, rows: Iterable[tuple[int, int]], serial: int) -> None:
        """Take those of the rows away, given with their tickets, that are still there."""
        for row, ticket in rows:
            if self.is_waiting(row, serial, ticket):
                self.remove(row)

    def remove(self, row: int) -> None:
        """Take a row away, and what is empty from the end of the table."""
        words, start = self._words, self._start
        words[start + row * L.WAITER_WORDS + L.WAIT_TOPIC] = 0
        words[start + row * L.WAITER_WORDS + L.WAIT_SERIAL] = 0
        top = self.count()
        while top and not words[start + (top - 1) * L.WAITER_WORDS + L.WAIT_SERIAL]:
            top -= 1
        words[L.W_WAITERS] = top

    def forget(self, serial: int) -> None:
        """Take all rows of a client away."""
        for waiter in self._where(L.WAIT_SERIAL, serial):
            self.remove(waiter.row)

    def clear(self) -> None:
        """Take all rows away. Requires: everybody has been woken since."""
        rows = self._table(self.room())
        rows[:] = 0
        self._words[L.W_WAITERS] = 0

    def waiting_for(self, topic: int) -> list[Waiter]:
        """Return who waits for a topic, without the watchers."""
        return [waiter for waiter in self._where(L.WAIT_TOPIC, topic) if waiter.prefix < 0]

    def watchers(self) -> list[Waiter]:
        """Return who watches."""
        return self._where(L.WAIT_PREFIX)

    def rows(self, *, everywhere: bool = False) -> list[Waiter]:
        """Return all rows in use; with `everywhere` also where none should be."""
        return self._where(L.WAIT_SERIAL, count=self.room() if everywhere else None)

    def note_lost(self, row: int) -> None:
        """Say that a watcher has missed something."""
        self._words[self._start + row * L.WAITER_WORDS + L.WAIT_LOST] += 1

    def lost(self, row: int) -> int:
        """Return how much a watcher has missed so far. Takes no lock."""
        return int(self._words[self._start + row * L.WAITER_WORDS + L.WAIT_LOST])

    def count(self) -> int:
        """Return how many rows there are up to the last one in use."""
        return int(min(self._words[L.W_WAITERS], self.room()))

    def room(self) -> int:
        """Return how many rows there are pages for."""
        return int(min(self._words[L.W_WAITERS_RESERVED] // L.WAITER_NBYTES, self._most))

    def _table(self, count: int) -> npt.NDArray[np.uint64]:
        """Return the first rows, a row per waiter."""
        start = self._start * L.WORD
        flat = np.frombuffer(self._index.memory, np.uint64, count * L.WAITER_WORDS, start)
        return flat.reshape(-1, L.WAITER_WORDS)

    def _where(
        self, column: int, value: int | None = None, count: int | None = None
    ) -> list[Waiter]:
        """Return the rows in use of which a column has a value, or any but 0."""
        words = self._words
        if count is None:
            count = self.count()
        rows: Iterable[int] = range(count)
        if count > _FEW:
            words_there = self._table(count)[:, column]
            chosen = words_there if value is None else words_there == np.uint64(value)
            rows = np.flatnonzero(chosen).tolist()
        found = []
        for row in rows:
            base = self._start + row * L.WAITER_WORDS
            there = words[base + column]
            if words[base + L.WAIT_SERIAL] and (there if value is None else there == value):
                topic, serial, bell, prefix = words[base : base + L.WAIT_PREFIX + 1]
                found.append(Waiter(row, topic, serial, bell, prefix - 1))
        return found

    def _free_rows(self, count: int) -> list[int] | None:
        """Return the numbers of rows that are not in use; None: there are not so many."""
        words, top = self._words, self.count()
        bases = range(self._start, self._start + top * L.WAITER_WORDS, L.WAITER_WORDS)
        empty = [row for row, base in enumerate(bases) if not words[base + L.WAIT_SERIAL]]
        rows = (empty + list(range(top, top + count)))[:count]
        if not rows or rows[-1] >= self._most:
            return None if rows else []
        while (rows[-1] + 1) * L.WAITER_NBYTES > words[L.W_WAITERS_RESERVED]:
            self._index.grow_waiters()
        return rows
