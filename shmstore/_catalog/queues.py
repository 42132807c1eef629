"""Given a queue, which object is its first, and which its last?

A queue is a slot, and so is each object that waits in it: these know their queue, by its
generation, and their number in it. The chain from the first to the last, and the counts, follow
from that and are made anew after a crash (`rebuild`).

Who takes an object has it to do: that is counted per client, in a slot of its own (a *tally*), so
that the count goes when the client dies.

Concurrency: changes require the store lock. Without it a look at a queue may be late by a moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.keys import Digest
from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore.errors import CorruptStoreError

if TYPE_CHECKING:
    import numpy.typing as npt

    Table = npt.NDArray[np.uint64]
    Rows = npt.NDArray[np.intp]


# No count, and no number of an object, comes near it.
_MOST: Final = 1 << 62

_SIDES: Final = ("left", "right")


def are_of(table: Table, kinds: int) -> npt.NDArray[np.bool_]:
    """Return which rows of a slot table are present and of one of these kinds."""
    found: npt.NDArray[np.bool_] = table[:, L.S_KIND] & np.uint64(kinds) != 0
    return found & states.are_present(table[:, L.S_STATE])


class Chains:
    """The chains in which the slots of queues hang.

    Parameters
    ----------
    index
        The index that holds the slots.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._slots = index.geometry.slots
        self._most = index.geometry.max_objects

    def base(self, slot: int) -> int:
        """Return where the words of a slot begin."""
        return self._slots + slot * L.SLOT_WORDS

    def generation(self, slot: int) -> int:
        """Return the generation of a slot, by which a queue is known."""
        return states.generation_of(self._words[self.base(slot)])

    def _linked(self, at: int, kind: int, owner: int = -1) -> Iterator[int]:
        """Walk a chain of slots from the word that leads to the first."""
        words = self._words
        for _ in range(self._most + 1):
            if not words[at]:
                return
            slot = self._checked(at, kind, owner)
            at = self.base(slot) + L.S_CHAIN
            yield slot
        raise self._damaged(at, "lies in a chain that has a loop")

    def _unlink(self, at: int, slot: int, kind: int, owner: int = -1) -> None:
        """Take a slot out of its chain."""
        words = self._words
        for found in self._linked(at, kind, owner):
            if found == slot:
                words[at] = words[self.base(slot) + L.S_CHAIN]
                return
            at = self.base(found) + L.S_CHAIN
        raise self._damaged(at, f"ends a chain in which slot {slot} is missing")

    def _checked(self, at: int, kind: int, owner: int = -1) -> int:
        """Return the slot that a word leads to, if it may."""
        words, slot = self._words, int(self._words[at]) - 1
        if 0 <= slot < self._most:
            base = self.base(slot)
            if (
                words[base + L.S_KIND] & kind
                and states.is_present(words[base])
                and (owner < 0 or words[base + L.S_DIGEST] == owner)
            ):
                return slot
        raise self._damaged(at, f"leads to slot {slot}, which is not of this queue")

    def _damaged(self, word: int, what: str) -> CorruptStoreError:
        return self._index.damaged("a queue", word, what, 13)


class Queues(Chains):
    """The queues of one store.

    Parameters
    ----------
    index
        The index that holds their slots.
    """

    # --- finding -------------------------------------------------------------------------------

    def find(self, digest: Digest) -> int:
        """Return the slot of the queue with the digest of a name, or -1. Requires: the lock."""
        for slot in self._linked(L.W_QUEUES, L.KIND_QUEUE):
            at = self.base(slot) + L.S_DIGEST
            if (self._words[at], self._words[at + 1]) == digest:
                return slot
        return -1

    def all(self) -> Iterator[int]:
        """Walk the slots of all queues. Requires: the store lock."""
        return self._linked(L.W_QUEUES, L.KIND_QUEUE)

    def find_generation(self, generation: int) -> int:
        """Return the slot of the queue that is known by it, or -1. Requires: the store lock."""
        return next((slot for slot in self.all() if self.generation(slot) == generation), -1)

    def head(self, queue: int) -> int:
        """Return the slot of the first object of a queue, or -1. Requires: the store lock."""
        words, at = self._words, self.base(queue)
        if not words[at + L.S_HEAD]:
            return -1
        if not words[at + L.S_WAITING]:
            raise self._damaged(at + L.S_WAITING, "counts no objects, but there is one")
        return self._checked(at + L.S_HEAD, L.KIND_QUEUED, self.generation(queue))

    def next_number(self, queue: int) -> int:
        """Return the number of the next object of a queue. Requires: the store lock."""
        at = self.base(queue) + L.S_NUMBER
        number = int(self._words[at])
        if number >= _MOST:
            raise self._damaged(at, f"is {number}, as many objects no queue has had")
        return number

    def waiting(self, queue: int) -> Iterator[int]:
        """Walk the objects of a queue. Requires: the store lock."""
        return self._linked(self.base(queue) + L.S_HEAD, L.KIND_QUEUED, self.generation(queue))

    def tallies(self, queue: int) -> Iterator[int]:
        """Walk the tallies of a queue. Requires: the store lock."""
        return self._linked(self.base(queue) + L.S_TALLIES, L.KIND_TALLY, self.generation(queue))

    def owner(self, slot: int) -> int:
        """Return the serial of the client of a tally."""
        return int(self._words[self.base(slot) + L.S_OWNER])

    # --- changing ------------------------------------------------------------------------------

    def clear(self, slot: int) -> None:
        """Let the words of a free slot be 0 that are counted in, before it is filled."""
        words, base = self._words, self.base(slot)
        for at in range(base + L.S_TAKEN, base + L.S_TALLIES + 1):
            words[at] = 0

    def enter(self, queue: int) -> None:
        """Let a new queue be found."""
        words = self._words
        words[self.base(queue) + L.S_CHAIN] = words[L.W_QUEUES]
        words[L.W_QUEUES] = queue + 1

    def leave(self, queue: int) -> None:
        """Let a queue not be found any more."""
        self._unlink(L.W_QUEUES, queue, L.KIND_QUEUE)

    def append(self, queue: int, slots: Sequence[int]) -> None:
        """Put new objects behind the last one; their numbers go on from NUMBER."""
        words, at = self._words, self.base(queue)
        for slot, after in pairwise(slots):
            words[self.base(slot) + L.S_CHAIN] = after + 1
        if words[at + L.S_HEAD] and words[at + L.S_TAIL]:
            last = self._checked(at + L.S_TAIL, L.KIND_QUEUED, self.generation(queue))
            words[self.base(last) + L.S_CHAIN] = slots[0] + 1
        else:
            words[at + L.S_HEAD] = slots[0] + 1
        words[at + L.S_TAIL] = slots[-1] + 1
        words[at + L.S_WAITING] += len(slots)
        words[at + L.S_NUMBER] += len(slots)

    def pop(self, queue: int, slot: int) -> None:
        """Take the first object out of the chain; the caller ends its life."""
        words, at = self._words, self.base(queue)
        after = words[self.base(slot) + L.S_CHAIN]
        words[at + L.S_HEAD] = after
        if not after:
            words[at + L.S_TAIL] = 0
        words[at + L.S_WAITING] -= 1

    def enter_tally(self, queue: int, slot: int) -> None:
        """Let a new tally be found."""
        words, at = self._words, self.base(queue) + L.S_TALLIES
        words[self.base(slot) + L.S_CHAIN] = words[at]
        words[at] = slot + 1

    def leave_tally(self, queue: int, slot: int) -> None:
        """Forget a tally, and what it counts; the caller ends its life."""
        words, at = self._words, self.base(queue)
        self._unlink(at + L.S_TALLIES, slot, L.KIND_TALLY, self.generation(queue))
        words[at + L.S_OPEN] -= min(words[at + L.S_OPEN], words[self.base(slot) + L.S_TAKEN])

    def take(self, queue: int, tally: int) -> None:
        """Count an object as taken: in a tally, or (-1) in the queue itself."""
        words, at = self._words, self.base(queue)
        words[self.base(queue if tally < 0 else tally) + L.S_TAKEN] += 1
        words[at + L.S_OPEN] += 1

    def done(self, queue: int, counter: int, count: int) -> None:
        """Count objects as done that a tally, or the queue itself, has counted as taken."""
        words, at = self._words, self.base(queue)
        words[self.base(counter) + L.S_TAKEN] -= count
        words[at + L.S_OPEN] -= min(words[at + L.S_OPEN], count)

    # --- making anew ---------------------------------------------------------------------------

    def rebuild(self, table: Table, living: Collection[int]) -> list[int]:
        """Make all chains and counts anew from the slots. Requires: the store lock.

        Parameters
        ----------
        table
            The slot table.
        living
            The serials of the clients that there are.

        Returns
        -------
        list of int
            Slots that belong to no queue (any more), or count for a client that is gone; the
            caller ends their lives.
        """
        are_parts = are_of(table, L.KIND_QUEUED | L.KIND_TALLY)
        # What damage has made both is no queue: as a part of none its life ends.
        queues = np.flatnonzero(are_of(table, L.KIND_QUEUE) & ~are_parts)
        parts = np.flatnonzero(are_parts)
        owners, numbers = table[parts, L.S_DIGEST], table[parts, L.S_DIGEST + 1]
        order = np.lexsort((numbers, owners))
        parts, owners = parts[order], owners[order]
        _chain(table, queues)
        self._words[L.W_QUEUES] = int(queues[0]) + 1 if len(queues) else 0
        left: set[int] = set(parts.tolist())
        for queue in queues.tolist():
            generation = np.uint64(states.generation_of(int(table[queue, L.S_STATE])))
            first, end = (np.searchsorted(owners, generation, side) for side in _SIDES)
            left -= self._rebuild_queue(table, queue, parts[first:end], living)
        return sorted(left)

    def _rebuild_queue(
        self, table: Table, queue: int, parts: Rows, living: Collection[int]
    ) -> set[int]:
        """Make one queue anew of what belongs to it, in its order; return what it keeps."""
        words, at = self._words, self.base(queue)
        waits = table[parts, L.S_KIND] & np.uint64(L.KIND_QUEUED) != 0
        waiting, tallies = parts[waits], parts[~waits]
        owned = np.isin(table[tallies, L.S_OWNER], np.array([*living], np.uint64))
        tallies = tallies[owned]
        _chain(table, waiting)
        _chain(table, tallies)
        words[at + L.S_HEAD] = int(waiting[0]) + 1 if len(waiting) else 0
        words[at + L.S_TAIL] = int(waiting[-1]) + 1 if len(waiting) else 0
        words[at + L.S_WAITING] = len(waiting)
        last = int(table[waiting[-1], L.S_DIGEST + 1]) if len(waiting) else -1
        words[at + L.S_NUMBER] = max(int(words[at + L.S_NUMBER]), last + 1)
        words[at + L.S_TALLIES] = int(tallies[0]) + 1 if len(tallies) else 0
        taken = int(table[tallies, L.S_TAKEN].sum()) + int(words[at + L.S_TAKEN])
        words[at + L.S_OPEN] = taken % _MOST
        return {*waiting.tolist(), *tallies.tolist()}


def _chain(table: Table, slots: Rows) -> None:
    """Let each of these slots lead to the next one."""
    if len(slots):
        table[slots[:-1], L.S_CHAIN] = (slots[1:] + 1).astype(np.uint64)
        table[slots[-1], L.S_CHAIN] = 0
