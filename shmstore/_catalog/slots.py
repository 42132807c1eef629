"""Given a slot, what is known of its object?

The slot table is the one source of truth of a store: everything else in the index can be made anew
from it. Each change therefore writes the slot's state word last when it gives the slot a meaning,
and first when it takes the meaning away.

Concurrency: methods that change something require the store lock. Reading needs none: read the
state word, read the rest, read the state word again; if it is the same, what was read belongs
together.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._memory.index import Index
from shmstore.errors import CorruptStoreError

# Words that are written together: OWNER to NODE, HEADER_NBYTES to DIGEST, and CREATED_NS to
# HEADER_OFFSET. Only the state word tells whether they count, so it does not matter that these
# stores are not single ones.
_PLACE = struct.Struct("=4Q")
_DESCRIPTION = struct.Struct("=5Q")
_ORIGIN = struct.Struct("=3Q")
assert _PLACE.size // L.WORD == L.S_NODE + 1 - L.S_OWNER
assert _DESCRIPTION.size // L.WORD == L.S_DIGEST + 2 - L.S_HEADER_NBYTES
assert _ORIGIN.size // L.WORD == L.S_HEADER_OFFSET + 1 - L.S_CREATED_NS


class Record(NamedTuple):
    """A consistent copy of the fields of one slot."""

    slot: int
    word: int
    owner: int
    extent: int
    extent_nbytes: int
    node: int
    header_nbytes: int
    kind: int
    data_nbytes: int
    digest: tuple[int, int]
    created_ns: int
    pid: int
    header_offset: int


class Content(NamedTuple):
    """What publishing writes into a slot."""

    kind: int
    header: bytes
    header_offset: int
    inline: bytes
    data_nbytes: int
    digest: tuple[int, int]


class Slots:
    """The slot table of one store.

    Parameters
    ----------
    index
        The index that holds the table.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._start = index.geometry.slots
        self._bytes = memoryview(index.memory)

    # --- the life of a slot --------------------------------------------------------------------

    def take(self) -> int | None:
        """Return a free slot, or None when the table is full. OSError (ENOSPC): no pages for it."""
        words = self._words
        head = words[L.W_FREE_SLOT]
        if head:
            return int(head) - 1
        top = words[L.W_SLOT_TOP]
        if top >= self._index.geometry.max_objects:
            return None
        if (top + 1) * L.SLOT_NBYTES > words[L.W_SLOTS_RESERVED]:
            self._index.grow_slots()
        return int(top)

    def next_generation(self) -> int:
        """Return the generation that the next `reserve` gives. Requires: the store lock."""
        return int(self._words[L.W_NEXT_GENERATION])

    def reserve(self, slot: int, owner: int, extent: Extent | None) -> int:
        """Give a slot from `take` to a put; return its generation. Requires: the store lock.

        `owner` is the serial of the client's seat: unlike a row it is never given to another.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        generation = words[L.W_NEXT_GENERATION]
        words[L.W_NEXT_GENERATION] = generation + 1
        if slot == words[L.W_SLOT_TOP]:
            words[L.W_SLOT_TOP] = slot + 1
        else:
            words[L.W_FREE_SLOT] = words[base + L.S_LINK]
        place = (0, 0, 0) if extent is None else (extent.offset, extent.nbytes, extent.node + 1)
        _PLACE.pack_into(self._bytes, (base + L.S_OWNER) * L.WORD, owner, *place)
        words[base + L.S_STATE] = states.first_word(generation)
        return int(generation)

    def publish(self, slot: int, content: Content, pid: int) -> None:
        """Make the object of a slot visible: everything else first, the state word last.

        Requires: the store lock; the frames lie in the extent.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        start = base * L.WORD
        kind, header, header_offset, inline, data_nbytes, digest = content
        if not kind & L.KIND_HEADER_IN_EXTENT:
            beside = header + inline
            inline_start = start + L.INLINE_OFFSET
            self._bytes[inline_start : inline_start + len(beside)] = beside
        _DESCRIPTION.pack_into(
            self._bytes, start + L.S_HEADER_NBYTES * L.WORD, len(header), kind, data_nbytes, *digest
        )
        _ORIGIN.pack_into(
            self._bytes, start + L.S_CREATED_NS * L.WORD, time.time_ns(), pid, header_offset
        )
        words[base] = states.move(words[base], states.READY)
        words[L.W_OBJECTS] += 1
        if kind & L.KIND_NAMED:
            words[L.W_NAMED] += 1

    def doom(self, slot: int) -> bool:
        """Take an object, or a half-made one, away from new readers. Requires: the store lock.

        Returns
        -------
        bool
            True when the slot was freed at once: it has no extent that a reader may look at.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        word = words[base + L.S_STATE]
        words[base + L.S_STATE] = states.move(word, states.DOOMED)
        if states.state_of(word) == states.READY:
            words[L.W_OBJECTS] -= 1
            words[L.W_NAMED] -= (words[base + L.S_KIND] & L.KIND_NAMED) // L.KIND_NAMED
        if not words[base + L.S_EXTENT_NBYTES]:
            self.free(slot)
            return True
        self._append_doomed(slot)
        return False

    def is_writing(self, slot: int, generation: int) -> bool:
        """Return whether a put still has its slot to itself."""
        return self.word(slot) == states.first_word(generation)

    def free(self, slot: int) -> None:
        """End the life of a doomed slot that no list holds any more. Requires: the store lock."""
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        words[base + L.S_STATE] = states.move(words[base + L.S_STATE], states.FREE)
        words[base + L.S_LINK] = words[L.W_FREE_SLOT]
        words[L.W_FREE_SLOT] = slot + 1

    # --- doomed slots wait in a queue for their last reader ---------------------------------------

    def _append_doomed(self, slot: int) -> None:
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        words[base + L.S_LINK] = 0
        words[L.W_DOOMED_BYTES] += words[base + L.S_EXTENT_NBYTES]
        tail = words[L.W_DOOMED_TAIL]
        if tail:
            words[self._start + (tail - 1) * L.SLOT_WORDS + L.S_LINK] = slot + 1
        else:
            words[L.W_DOOMED_HEAD] = slot + 1
        words[L.W_DOOMED_TAIL] = slot + 1

    def _pop_doomed(self) -> int:
        words = self._words
        slot = words[L.W_DOOMED_HEAD] - 1
        base = self._start + slot * L.SLOT_WORDS
        words[L.W_DOOMED_HEAD] = words[base + L.S_LINK]
        if not words[L.W_DOOMED_HEAD]:
            words[L.W_DOOMED_TAIL] = 0
        words[L.W_DOOMED_BYTES] -= words[base + L.S_EXTENT_NBYTES]
        return int(slot)

    def free_unpinned(self, pinned: set[int], limit: int) -> list[int]:
        """Free the doomed slots that nobody pins; the others go to the end of the queue.

        Requires: the store lock; `pinned` was read after the slots were doomed and a barrier.

        Parameters
        ----------
        pinned
            Slots that some client pins.
        limit
            How many doomed slots to look at.

        Returns
        -------
        list of int
            The allocator nodes whose extents are free now.
        """
        words = self._words
        nodes = []
        last = words[L.W_DOOMED_TAIL] - 1
        for _ in range(limit):
            if not words[L.W_DOOMED_HEAD]:
                break
            slot = self._pop_doomed()
            if slot in pinned:
                self._append_doomed(slot)
            else:
                nodes.append(words[self._start + slot * L.SLOT_WORDS + L.S_NODE] - 1)
                self.free(slot)
            if slot == last:
                break
        return nodes

    # --- reading -------------------------------------------------------------------------------

    def word(self, slot: int) -> int:
        """Return the state word of a slot."""
        return int(self._words[self._start + slot * L.SLOT_WORDS])

    def state_index(self, slot: int) -> int:
        """Return where the state word of a slot lies among the words of the index."""
        return self._start + slot * L.SLOT_WORDS

    def read(self, slot: int) -> Record:
        """Copy the fields of a slot out. Without the lock: look at the word again afterwards."""
        base = self._start + slot * L.SLOT_WORDS
        f = self._words[base : base + L.S_INLINE].tolist()
        return Record(
            slot,
            f[L.S_STATE],
            f[L.S_OWNER],
            f[L.S_EXTENT],
            f[L.S_EXTENT_NBYTES],
            f[L.S_NODE] - 1,
            f[L.S_HEADER_NBYTES],
            f[L.S_KIND],
            f[L.S_DATA_NBYTES],
            (f[L.S_DIGEST], f[L.S_DIGEST + 1]),
            f[L.S_CREATED_NS],
            f[L.S_PID],
            f[L.S_HEADER_OFFSET],
        )

    def inline_range(self, record: Record) -> tuple[int, int]:
        """Return where the inline bytes of a slot start and end in the index file."""
        used = 0 if record.kind & L.KIND_HEADER_IN_EXTENT else record.header_nbytes
        if record.kind & L.KIND_INLINE:
            used += record.data_nbytes
        if used > L.INLINE_NBYTES:
            raise self.damaged(record.slot, f"{used} inline bytes, room for {L.INLINE_NBYTES}")
        start = (self._start + record.slot * L.SLOT_WORDS) * L.WORD + L.INLINE_OFFSET
        return start, start + used

    def table(self) -> npt.NDArray[np.uint64]:
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

    def ready(self) -> list[tuple[int, int]]:
        """Return (generation, slot) of all published objects, oldest first. Takes no lock."""
        words = self.table()[:, L.S_STATE].copy()
        slots = np.flatnonzero(states.states_of(words) == states.READY)
        generations = states.generations_of(words[slots])
        order = np.argsort(generations)
        return list(zip(generations[order].tolist(), slots[order].tolist(), strict=True))

    def named(self) -> list[tuple[int, int, tuple[int, int]]]:
        """Return (generation, slot, digest) of all objects with a key, oldest first.

        Requires: the store lock, so that no key is missed because its object moves meanwhile.
        """
        table = self.table()
        ready = states.states_of(table[:, L.S_STATE]) == states.READY
        slots = np.flatnonzero(ready & (table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0))
        slots = slots[np.argsort(table[slots, L.S_STATE])]
        generations = states.generations_of(table[slots, L.S_STATE]).tolist()
        digests = map(tuple, table[slots, L.S_DIGEST : L.S_DIGEST + 2].tolist())
        return list(zip(generations, slots.tolist(), digests, strict=True))

    def scan(self, digest: tuple[int, int]) -> int:
        """Return the youngest READY slot with a digest, or -1, without the key index."""
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
