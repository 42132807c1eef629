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
                f"{self._index.geometry.max_objects}. Call recover().",
                path=self._index.path,
                offset=L.W_SLOT_TOP * L.WORD,
            )
        first = self._start * L.WORD
        flat = np.frombuffer(self._index.memory, np.uint64, rows * L.SLOT_WORDS, first)
        return flat.reshape(rows, L.SLOT_WORDS)

    def present(self) -> list[tuple[int, int]]:
        """Return (slot word, slot) of all published objects, oldest first. Takes no lock."""
        words = self.table()[:, L.S_STATE].copy()
        slots = np.flatnonzero(states.are_present(words))
        words = words[slots]
        order = np.argsort(words)
        return list(zip(words[order].tolist(), slots[order].tolist(), strict=True))

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

    def scan(self, digest: tuple[int, int]) -> int:
        """Return the youngest published slot with a digest, or -1, without the key index."""
        found = [slot for _, slot, other in self.named() if other == digest]
        return found[-1] if found else -1

    def doomed(self) -> Iterator[int]:
        """Walk the doomed slots that still have an extent. Requires: the store lock."""
        words = self._words
        slot = words[L.W_DOOMED_HEAD] - 1
        for _ in range(self._index.geometry.max_objects + 1):
            if slot < 0:
                return
            yield slot
            slot = words[self._start + slot * L.SLOT_WORDS + L.S_LINK] - 1
        raise self.damaged(slot, "the list of doomed slots has a loop")

    def count_free(self) -> int:
        """Return the length of the list of free slots. Requires: the store lock."""
        words = self._words
        slot, count = words[L.W_FREE_SLOT], 0
        while slot and count <= self._index.geometry.max_objects:
            slot = words[self._start + (slot - 1) * L.SLOT_WORDS + L.S_LINK]
            count += 1
        return count

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
