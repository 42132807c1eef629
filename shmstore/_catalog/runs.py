"""Which slots does a batch get?

Those that begin the list of free ones, then those that were never used. What was deleted together
lies in the list in the order of the table, or against it: such runs are found by NumPy, and given
as a range, so that their rows are a slice of the table.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.moves import Moves
from shmstore._memory import layout as L

if TYPE_CHECKING:
    import numpy.typing as npt

# So few slots are looked at one by one, and of more so many at first, then this times as many.
_FEW: Final = 32
_GROWTH: Final = 4

# After so many slots it is looked again whether what follows lies behind each other.
_PAUSE: Final = 8


def rows_of(slots: Sequence[int]) -> slice | npt.NDArray[np.intp]:
    """Return what picks the rows of slots out of a table of all."""
    if not isinstance(slots, range):
        return np.array(slots, np.intp)
    return slice(slots.start, slots.stop if slots.stop >= 0 else None, slots.step)


def numbers_of(slots: Sequence[int]) -> npt.NDArray[np.intp]:
    """Return the numbers of slots."""
    if not isinstance(slots, range):
        return np.array(slots, np.intp)
    return np.arange(slots.start, slots.stop, slots.step)


class Runs(Moves):
    """The part of a slot table that finds slots for batches."""

    def take_many(self, count: int) -> Sequence[int] | None:
        """Return free slots, or None if there are too few. OSError (ENOSPC): no pages for them.

        Slots that lie behind each other, in either direction, come as a range.
        """
        words = self._words
        listed = self._listed_free(count)
        top = int(words[L.W_SLOT_TOP])
        end = top + count - len(listed)
        if end > self._index.geometry.max_objects:
            return None
        while end * L.SLOT_NBYTES > words[L.W_SLOTS_RESERVED]:
            self._index.grow_slots()
        fresh = range(top, end)
        self._check_free(fresh, listed=False)
        return [*listed, *fresh] if listed and fresh else listed or fresh

    def _listed_free(self, count: int) -> Sequence[int]:
        """Return the first slots of the list of free ones, up to so many."""
        words, start, most = self._words, self._start, self._index.geometry.max_objects
        slots: list[int] = []
        at, again = L.W_FREE_SLOT, 0
        while len(slots) < count and (head := int(words[at])):
            if head > most:
                self._spare(head - 1, at)
            if len(slots) < again or count < _FEW:
                slots.append(head - 1)
            else:
                run = self._listed_run(head - 1, count - len(slots))
                if len(run) == count:
                    self._check_free(run, listed=True)
                    return run
                slots += run
                again = len(slots) + (0 if len(run) >= _FEW else _PAUSE)
            at = start + slots[-1] * L.SLOT_WORDS + L.S_LINK
        if len(set(slots)) < len(slots):
            raise self._astray(L.W_FREE_SLOT, "begins a list that has a loop")
        self._check_free(slots, listed=True)
        return slots

    def _listed_run(self, first: int, most: int) -> range:
        """Return slots of a list that lie behind each other in the table, from one on."""
        words = self._words
        step = int(words[self._start + first * L.SLOT_WORDS + L.S_LINK]) - 1 - first
        if step not in (1, -1):
            return range(first, first + 1)
        top = min(words[L.W_SLOT_TOP], words[L.W_SLOTS_RESERVED] // L.SLOT_NBYTES)
        end = min(first + most, max(top, first + 1)) if step > 0 else max(first - most, -1)
        run = range(first, int(end), step)
        links = self.all_rows()[:, L.S_LINK]
        begin, portion = 0, _FEW
        while begin < len(run) - 1:
            part = run[begin : begin + portion]
            lead = links[rows_of(part)] == numbers_of(part).astype(np.uint64) + np.uint64(1 + step)
            if not lead.all():
                return run[: begin + int(lead.argmin()) + 1]
            begin, portion = begin + portion, _GROWTH * portion
        return run

    def _check_free(self, slots: Sequence[int], *, listed: bool) -> None:
        """Raise unless all slots are free that begin the list of these, or lie from the top on."""
        suspects: Sequence[int] = range(len(slots))
        if len(slots) >= _FEW:
            found = states.states_of(self.all_rows()[rows_of(slots), L.S_STATE])
            suspects = np.flatnonzero(found != states.FREE)[:1].tolist()
        for at in suspects:
            told_by = L.W_FREE_SLOT if listed else L.W_SLOT_TOP
            if listed and at:
                told_by = self._start + slots[at - 1] * L.SLOT_WORDS + L.S_LINK
            self._spare(slots[at], told_by)

    def _unlist(self, slots: Sequence[int]) -> None:
        """Let the list of free slots, and the top, pass by slots from `take_many`."""
        words = self._words
        top = words[L.W_SLOT_TOP]
        fresh = min(max(0, slots[-1] + 1 - top), len(slots)) if slots else 0
        if len(slots) > fresh:
            last = slots[len(slots) - fresh - 1]
            words[L.W_FREE_SLOT] = words[self._start + last * L.SLOT_WORDS + L.S_LINK]
        words[L.W_SLOT_TOP] = top + fresh

    def all_rows(self) -> npt.NDArray[np.uint64]:
        """Return the whole table, a row per slot. What is not reserved must not be touched."""
        index = self._index
        return index.rows(self._start, index.geometry.max_objects, L.SLOT_WORDS)
