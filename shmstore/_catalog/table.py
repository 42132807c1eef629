"""What do all slots of a store say together?

The slot table as one array, a row per slot: for those who look at many slots at once.

Concurrency: reading needs no lock where only the state words are read; what is said below of a
method holds for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory.blocks import all_end
from shmstore._memory.index import Index
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError

if TYPE_CHECKING:
    import numpy.typing as npt

    Table = npt.NDArray[np.uint64]


# Objects are told in portions of so many: as Python's numbers they take several times the memory.
_AT_ONCE: Final = 1 << 12


def holds_extent(table: Table) -> npt.NDArray[np.bool_]:
    """Return which rows of a slot table have an extent in the segment."""
    state = states.states_of(table[:, L.S_STATE])
    in_memory = (state != states.FREE) & (state != states.SPILLED)
    holds: npt.NDArray[np.bool_] = in_memory & (table[:, L.S_NODE] != 0)
    return holds


def extents_of(table: Table) -> Table:
    """Return the offsets of the extents of rows of a slot table."""
    return table[:, L.S_EXTENT] & np.uint64(L.EXTENT_MASK)


def are_placed(table: Table, slots: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return in which rows of a slot table, those of some slots, the check of EXTENT agrees."""
    numbers = (slots + 1).astype(np.uint64) * np.uint64(L.FIBONACCI_32)
    shift = np.uint64(L.EXTENT_SHIFT)
    checks = (extents_of(table) ^ numbers) * np.uint64(L.FIBONACCI) >> shift
    placed: npt.NDArray[np.bool_] = checks == table[:, L.S_EXTENT] >> shift
    return placed


def first_end(rows: Table) -> int:
    """Return when the first published object of some slots expires; 0: none does."""
    ends = rows[states.are_present(rows[:, L.S_STATE]), L.S_EXPIRES_NS]
    ends = ends[ends != 0]
    return int(ends.min()) if len(ends) else 0


class Named(NamedTuple):
    """The slot words, slots and digests of objects with a key, as they were at one moment."""

    words: npt.NDArray[np.uint64]
    slots: npt.NDArray[np.intp]
    digests: npt.NDArray[np.uint64]

    def oldest_first(self) -> Iterator[tuple[int, int, tuple[int, int]]]:
        """Yield slot word, slot and digest of each."""
        order = np.argsort(self.words)
        for at in range(0, len(order), _AT_ONCE):
            some = order[at : at + _AT_ONCE]
            digests = map(tuple, self.digests[some].tolist())
            yield from zip(
                self.words[some].tolist(), self.slots[some].tolist(), digests, strict=True
            )


class SlotTable:
    """The slots of one store, looked at together.

    Parameters
    ----------
    index
        The index that holds the table.

    Attributes
    ----------
    start
        Where it begins, among the words of the index.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._start = self.start = index.geometry.slots

    def table(self) -> Table:
        """Return the used part of the table, a row per slot, as it lies in shared memory."""
        rows = self._words[L.W_SLOT_TOP]
        if rows > self._index.geometry.max_objects:
            raise CorruptStoreError(
                f"{self._index.path}: {rows} slots in use, the table has "
                f"{self._index.geometry.max_objects} (invariant 10). Call recover().",
                path=self._index.path,
                offset=L.W_SLOT_TOP * L.WORD,
                invariant=10,
            )
        first = self._start * L.WORD
        flat = np.frombuffer(self._index.memory, np.uint64, rows * L.SLOT_WORDS, first)
        return flat.reshape(rows, L.SLOT_WORDS)

    def recount(self) -> npt.NDArray[np.uint64]:
        """Find out anew which slots were ever used; return them as `table` does.

        Requires: the store lock. A state or generation that cannot be ends the life of its slot.
        """
        words = self._words
        rows = self._index.recount_slots()
        first = self._start * L.WORD
        flat = np.frombuffer(self._index.memory, np.uint64, rows * L.SLOT_WORDS, first)
        column = flat.reshape(rows, L.SLOT_WORDS)[:, L.S_STATE]
        used = np.flatnonzero(column)
        words[L.W_SLOT_TOP] = int(used[-1]) + 1 if len(used) else 0
        column[states.are_impossible(column)] = states.NEVER_USED
        return self.table()

    def present(self) -> Iterator[tuple[int, int]]:
        """Yield (slot word, slot) of the objects published by now, oldest first. Takes no lock."""
        words = self.table()[:, L.S_STATE].copy()
        slots = np.flatnonzero(states.are_present(words))
        slots = slots[np.argsort(words[slots])]
        for at in range(0, len(slots), _AT_ONCE):
            some = slots[at : at + _AT_ONCE]
            yield from zip(words[some].tolist(), some.tolist(), strict=True)

    def count_named(self) -> int:
        """Return how many published objects have a key. Takes no lock."""
        named = int(self._words[L.W_NAMED])
        if named > self._index.geometry.max_objects:
            raise self._astray(L.W_NAMED, f"counts {named} objects with a key")
        return named

    def named(self) -> Named:
        """Return all objects with a key.

        Requires: the store lock, so that no key is missed because its object moves meanwhile.
        """
        table = self.table()
        present = states.are_present(table[:, L.S_STATE])
        slots = np.flatnonzero(present & (table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0))
        return Named(table[slots, L.S_STATE], slots, table[slots, L.S_DIGEST : L.S_DIGEST + 2])

    def due(self, now: int) -> Iterator[tuple[int, Table]]:
        """Yield those groups of slots, with their rows, in which the time of an object may be over.

        A group is told by its number, see EXPIRIES.
        """
        table, size = self.table(), self._index.geometry.expiry_group
        ends = self._words[L.W_EXPIRIES : L.W_EXPIRIES + L.EXPIRY_GROUPS].tolist()
        for group, first_end in enumerate(ends):
            if 0 < first_end <= now:
                yield group, table[group * size : (group + 1) * size]

    def note_first_end(self) -> None:
        """Find out anew when the first object of all expires. Requires: the store lock."""
        ends = self._words[L.W_EXPIRIES : L.W_EXPIRIES + L.EXPIRY_GROUPS].tolist()
        self._words[L.W_NEXT_EXPIRY_NS] = min((end for end in ends if end), default=0)

    def in_files(self) -> list[tuple[int, int]]:
        """Return (slot, generation) of the objects that lie in files. Requires: the store lock."""
        words = self.table()[:, L.S_STATE].copy()
        slots = np.flatnonzero(states.states_of(words) == states.SPILLED)
        return list(zip(slots.tolist(), states.generations_of(words[slots]).tolist(), strict=True))

    def scan(self, digest: tuple[int, int]) -> int:
        """Return the youngest published slot with a digest, or -1, without the key index."""
        words, slots, digests = self.named()
        found = np.flatnonzero((digests == np.array(digest, np.uint64)).all(axis=1))
        return int(slots[found[words[found].argmax()]]) if len(found) else -1

    def is_in_file(self, name: str) -> bool:
        """Return whether a file named "<slot>-<generation>" is that of an object."""
        slot, _, generation = name.partition("-")
        if not (slot.isdecimal() and generation.isdecimal()):
            return False
        if int(slot) >= self._index.geometry.max_objects:
            return False
        word = self._words[self._start + int(slot) * L.SLOT_WORDS]
        return bool(word == states.spilled_word(int(generation)))

    def doomed(self) -> Iterator[int]:
        """Walk the doomed slots that still have an extent. Requires: the store lock."""
        yield from self._listed(L.W_DOOMED_HEAD)

    def free_are_listed(self) -> bool:
        """Return whether the list of free slots holds all of them. Requires: the store lock.

        They are looked at together. False may also mean that only a walk can tell what is wrong.
        """
        table = self.table()
        slots = np.flatnonzero(states.states_of(table[:, L.S_STATE]) == states.FREE)
        numbers = (slots + 1).astype(np.uint64)
        links = table[slots, L.S_LINK]
        head = np.array([self._words[L.W_FREE_SLOT]], np.uint64)
        reached = np.concatenate([head, links])
        if not np.array_equal(np.sort(reached[reached != 0]), numbers):
            return False
        return all_end(np.where(links == 0, -1, np.searchsorted(numbers, links)))

    def count_free(self) -> int:
        """Return the length of the list of free slots. Requires: the store lock."""
        return sum(1 for _ in self._listed(L.W_FREE_SLOT))

    def _listed(self, at: int) -> Iterator[int]:
        """Walk a list of slots from the word that leads to the first."""
        words, most = self._words, self._index.geometry.max_objects
        for _ in range(most + 1):
            if not words[at]:
                return
            slot = int(words[at]) - 1
            if slot >= most:
                raise self._astray(at, f"leads to slot {slot}, the table has {most}")
            yield slot
            at = self._start + slot * L.SLOT_WORDS + L.S_LINK
        raise self._astray(at, "lies in a list that has a loop")

    def _spare(self, slot: int, told_by: int) -> int:
        """Return a slot that a word says is free, if it is."""
        most = self._index.geometry.max_objects
        if slot >= most or self._state(slot) != states.FREE:
            raise self._astray(told_by, f"says that slot {slot} of {most} is free")
        return slot

    def _state(self, slot: int) -> int:
        return states.state_of(self._words[self._start + slot * L.SLOT_WORDS])

    def _doomed_at(self, told_by: int) -> int:
        """Return the slot that a word says is doomed, if it is."""
        slot, most = int(self._words[told_by]) - 1, self._index.geometry.max_objects
        if not 0 <= slot < most or self._state(slot) != states.DOOMED:
            raise self._astray(told_by, f"says that slot {slot} of {most} is doomed")
        return slot

    def extent_nbytes(self, slot: int) -> int:
        """Return the bytes of the extent of a slot that a pin names; 0: there is no such slot."""
        if not 0 <= slot < self._index.geometry.max_objects:
            return 0
        return self._extent_nbytes(self._start + slot * L.SLOT_WORDS)

    def _extent_nbytes(self, base: int) -> int:
        """Return the bytes that a slot occupies in the segment."""
        words = self._words
        return words[base + L.S_EXTENT_NBYTES] if words[base + L.S_NODE] else 0

    def _astray(self, word: int, what: str) -> CorruptStoreError:
        """Return the error for a word of a list, or a count, that cannot be right."""
        return self._index.damaged("a list of slots", word, what, 10)

    def damaged(self, slot: int, what: str) -> CorruptStoreError:
        """Return the error that says what is wrong with a slot."""
        offset = (self._start + slot * L.SLOT_WORDS) * L.WORD
        return CorruptStoreError(
            f"{self._index.path}: slot {slot} (offset {offset}): {what}. Call recover(), or "
            "destroy the store and create it again.",
            path=self._index.path,
            slot=slot,
            offset=offset,
        )
