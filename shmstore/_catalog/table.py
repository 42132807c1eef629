"""What do all slots of a store say together?

The slot table as one array, a row per slot: for those who look at many slots at once.

Concurrency: reading needs no lock where only the state words are read; what is said below of a
method holds for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore.errors import CorruptStoreError

Table = npt.NDArray[np.uint64]


def holds_extent(table: Table) -> npt.NDArray[np.bool_]:
    """Return which rows of a slot table have an extent in the segment."""
    state = states.states_of(table[:, L.S_STATE])
    in_memory = (state != states.FREE) & (state != states.SPILLED)
    holds: npt.NDArray[np.bool_] = in_memory & (table[:, L.S_NODE] != 0)
    return holds


def extents_of(table: Table) -> Table:
    """Return the offsets of the extents of rows of a slot table."""
    return table[:, L.S_EXTENT] & np.uint64(L.EXTENT_MASK)


def are_placed(table: Table) -> npt.NDArray[np.bool_]:
    """Return in which rows of a slot table the check of EXTENT agrees."""
    generations = states.generations_of(table[:, L.S_STATE])
    shift = np.uint64(L.EXTENT_SHIFT)
    checks = (extents_of(table) ^ generations) * np.uint64(L.FIBONACCI) >> shift
    placed: npt.NDArray[np.bool_] = checks == table[:, L.S_EXTENT] >> shift
    return placed


class SlotTable:
    """The slots of one store, looked at together.

    Parameters
    ----------
    index
        The index that holds the table.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._start = index.geometry.slots

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

    def present(self) -> list[tuple[int, int]]:
        """Return (slot word, slot) of all published objects, oldest first. Takes no lock."""
        words = self.table()[:, L.S_STATE].copy()
        slots = np.flatnonzero(states.are_present(words))
        words = words[slots]
        order = np.argsort(words)
        return list(zip(words[order].tolist(), slots[order].tolist(), strict=True))

    def count_named(self) -> int:
        """Return how many published objects have a key. Takes no lock."""
        named = int(self._words[L.W_NAMED])
        if named > self._index.geometry.max_objects:
            raise self._astray(L.W_NAMED, f"counts {named} objects with a key")
        return named

    def named(self) -> list[tuple[int, int, tuple[int, int]]]:
        """Return (slot word, slot, digest) of all objects with a key, oldest first.

        Requires: the store lock, so that no key is missed because its object moves meanwhile.
        """
        table = self.table()
        present = states.are_present(table[:, L.S_STATE])
        slots = np.flatnonzero(present & (table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0))
        slots = slots[np.argsort(table[slots, L.S_STATE])]
        words = table[slots, L.S_STATE].tolist()
        digests = map(tuple, table[slots, L.S_DIGEST : L.S_DIGEST + 2].tolist())
        return list(zip(words, slots.tolist(), digests, strict=True))

    def in_files(self) -> list[tuple[int, int]]:
        """Return (slot, generation) of the objects that lie in files. Requires: the store lock."""
        words = self.table()[:, L.S_STATE].copy()
        slots = np.flatnonzero(states.states_of(words) == states.SPILLED)
        return list(zip(slots.tolist(), states.generations_of(words[slots]).tolist(), strict=True))

    def scan(self, digest: tuple[int, int]) -> int:
        """Return the youngest published slot with a digest, or -1, without the key index."""
        found = [slot for _, slot, other in self.named() if other == digest]
        return found[-1] if found else -1

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
        path, offset = self._index.path, word * L.WORD
        return CorruptStoreError(
            f"{path}: the lists of slots are damaged: the word at offset {offset} {what} "
            "(invariant 10). Call recover() to make them anew from the slots.",
            path=path,
            offset=offset,
            invariant=10,
        )

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
