"""Given a slot, what is known of its object?

The slot table is the one source of truth of a store: everything else in the index can be made anew
from it. Each change therefore writes the slot's state word last when it gives the slot a meaning,
and first when it takes the meaning away.

Concurrency: methods that change something require the store lock. Reading needs none: read the
state word, read the rest, read the state word again; if it is the same, what was read belongs
together.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.inserts import DESCRIPTION, DESCRIPTION_AT, Inserts
from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore._tuples import NamedTuple


class Record(NamedTuple):
    """A consistent copy of the fields of one slot."""

    slot: int
    word: int
    place: int
    node: int
    kind: int
    crc: int
    owner: int
    extent_nbytes: int
    header_nbytes: int
    data_crc: int
    data_nbytes: int
    digest: tuple[int, int]
    created_ns: int
    pid: int
    expires_ns: int

    @property
    def extent(self) -> int:
        """Offset of the extent in the segment."""
        return self.place & L.EXTENT_MASK

    @property
    def header_offset(self) -> int:
        """Where the header lies in the extent, if it does."""
        return self.extent_nbytes - L.align(self.header_nbytes)


class Slots(Inserts):
    """The slot table of one store.

    Parameters
    ----------
    index
        The index that holds the table.
    """

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self.wipes = bool(index.identity.flags & L.FLAG_ZERO_ON_FREE)

    # --- the life of a slot --------------------------------------------------------------------

    def inline_header(self, record: Record) -> bytes:
        """Return the packed header that lies in a slot."""
        start, _ = self.inline_range(record)
        return bytes(self._bytes[start : start + record.header_nbytes])

    def is_sound(self, record: Record, packed: bytes) -> bool:
        """Return whether the checksums over a published slot, with its header, agree."""
        start = (self._start + record.slot * L.SLOT_WORDS) * L.WORD + DESCRIPTION_AT
        crc = L.first_crc(self.store, record.slot, record.word, record.kind)
        crc = crc32(packed, crc32(self._bytes[start : start + DESCRIPTION.size], crc))
        if record.kind & L.KIND_INLINE:
            first, end = self.inline_range(record)
            if not record.kind & L.KIND_HEADER_IN_EXTENT:
                first += record.header_nbytes
            crc = crc32(self._bytes[first:end], crc)
        return crc == record.crc and (not record.extent_nbytes or self.is_placed(record))

    def is_placed(self, record: Record) -> bool:
        """Return whether the extent of a published object is the one that it was given."""
        if not record.extent_nbytes or states.state_of(record.word) == states.SPILLED:
            return True
        check = L.extent_check(record.extent, record.slot)
        return record.node >= 0 and check == record.place >> L.EXTENT_SHIFT

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
        state = states.state_of(word)
        words[base + L.S_STATE] = states.move(word, states.DOOMED)
        if state != states.WRITING:
            words[L.W_OBJECTS] -= 1
        if states.is_present(word):  # damage may have set aside what has a key
            words[L.W_NAMED] -= (words[base + L.S_KIND] & L.KIND_NAMED) // L.KIND_NAMED
        if state == states.SPILLED:
            words[L.W_SPILLED] -= 1
            words[L.W_SPILLED_BYTES] -= words[base + L.S_EXTENT_NBYTES]
        elif not words[base + L.S_NODE]:
            self.free(slot)
            return True
        self._append_doomed(slot)
        return False

    def free(self, slot: int) -> None:
        """End the life of a doomed slot that no list holds any more. Requires: the store lock."""
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        if self.wipes:
            start = base * L.WORD + DESCRIPTION_AT
            nbytes = L.SLOT_NBYTES - DESCRIPTION_AT
            self._bytes[start : start + nbytes] = bytes(nbytes)
        words[base + L.S_STATE] = states.move(words[base + L.S_STATE], states.FREE)
        self._list_free(slot)

    # --- doomed slots wait in a queue for their last reader ---------------------------------------

    def _append_doomed(self, slot: int) -> None:
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        words[base + L.S_LINK] = 0
        words[L.W_DOOMED_BYTES] += self._extent_nbytes(base)
        tail = words[L.W_DOOMED_TAIL]
        if tail:
            last = self._doomed_at(L.W_DOOMED_TAIL)
            words[self._start + last * L.SLOT_WORDS + L.S_LINK] = slot + 1
        else:
            words[L.W_DOOMED_HEAD] = slot + 1
        words[L.W_DOOMED_TAIL] = slot + 1

    def oldest_doomed(self) -> int:
        """Return the slot that `pop_doomed` takes, or -1."""
        return self._doomed_at(L.W_DOOMED_HEAD) if self._words[L.W_DOOMED_HEAD] else -1

    def defer_doomed(self) -> None:
        """Let the oldest doomed slot wait at the end of the queue."""
        self._append_doomed(self.pop_doomed())

    def pop_doomed(self) -> int:
        """Take the oldest doomed slot out of the queue; the caller ends its life, or fills it."""
        words = self._words
        slot = self._doomed_at(L.W_DOOMED_HEAD)
        base = self._start + slot * L.SLOT_WORDS
        nbytes = self._extent_nbytes(base)
        if nbytes > words[L.W_DOOMED_BYTES]:
            raise self._astray(L.W_DOOMED_BYTES, f"is less than the {nbytes} of slot {slot}")
        words[L.W_DOOMED_HEAD] = words[base + L.S_LINK]
        if not words[L.W_DOOMED_HEAD]:
            words[L.W_DOOMED_TAIL] = 0
        words[L.W_DOOMED_BYTES] -= nbytes
        return slot

    def take_unpinned(self, pinned: set[int], limit: int) -> list[int]:
        """Take the doomed slots that nobody pins out of the queue; the others go to its end.

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
            The slots, still DOOMED; the caller frees their extents, then them.
        """
        words = self._words
        taken = []
        last = words[L.W_DOOMED_TAIL] - 1
        for _ in range(min(limit, self._index.geometry.max_objects)):
            if not words[L.W_DOOMED_HEAD]:
                break
            slot = self.pop_doomed()
            if slot in pinned:
                self._append_doomed(slot)
            else:
                taken.append(slot)
            if slot == last:
                break
        return taken

    def count_living(self) -> int:
        """Return how many objects have a key and are not over. Takes no lock."""
        first_end = self._words[L.W_NEXT_EXPIRY_NS]
        now = boottime_ns()
        if not first_end or now < first_end:
            return self.count_named()
        over = 0
        for _, rows in self.due(now):
            named = states.are_present(rows[:, L.S_STATE])
            named &= rows[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
            ends = rows[:, L.S_EXPIRES_NS]
            over += int((named & (ends != 0) & (ends <= np.uint64(now))).sum())
        return max(0, self.count_named() - over)

    # --- reading -------------------------------------------------------------------------------

    def word(self, slot: int) -> int:
        """Return the state word of a slot."""
        return int(self._words[self._start + slot * L.SLOT_WORDS])

    def node(self, slot: int) -> int:
        """Return the allocator's node of the extent of a slot, or -1."""
        return int(self._words[self._start + slot * L.SLOT_WORDS + L.S_NODE]) - 1

    def is_over(self, slot: int) -> bool:
        """Return whether the time of an object is over."""
        ends = self._words[self._start + slot * L.SLOT_WORDS + L.S_EXPIRES_NS]
        return bool(ends and ends <= boottime_ns())

    def is_same(self, record: Record) -> bool:
        """Return whether an object is still there, and still in the same place."""
        base = self._start + record.slot * L.SLOT_WORDS
        words = self._words
        return bool(words[base] == record.word and words[base + L.S_EXTENT] == record.place)

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
            f[L.S_EXTENT],
            f[L.S_NODE] - 1,
            f[L.S_KIND] & L.KINDS,
            f[L.S_KIND] >> L.CRC_SHIFT,
            f[L.S_OWNER],
            f[L.S_EXTENT_NBYTES],
            f[L.S_HEADER_NBYTES] & L.CRC_MASK,
            f[L.S_HEADER_NBYTES] >> L.CRC_SHIFT,
            f[L.S_DATA_NBYTES],
            (f[L.S_DIGEST], f[L.S_DIGEST + 1]),
            f[L.S_CREATED_NS],
            f[L.S_PID],
            f[L.S_EXPIRES_NS],
        )

    def inline_pickle(self, slot: int) -> bytes | None:
        """Return the pickle that lies in a slot, KIND_PLAIN and KIND_INLINE; None: it is damaged.

        Flat: the workload "queue" of the benchmarks pays for it. Requires: the store lock.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        kinds, header_nbytes = words[base + L.S_KIND], words[base + L.S_HEADER_NBYTES]
        end = DESCRIPTION.size + header_nbytes + words[base + L.S_DATA_NBYTES]
        if end > DESCRIPTION.size + L.INLINE_NBYTES:
            return None
        start = base * L.WORD + DESCRIPTION_AT
        body = bytes(self._bytes[start : start + end])
        first = L.first_crc(self.store, slot, words[base], kinds & L.KINDS)
        if crc32(body, first) != kinds >> L.CRC_SHIFT:
            return None
        return body[DESCRIPTION.size + header_nbytes :]

    def inline_range(self, record: Record) -> tuple[int, int]:
        """Return where the inline bytes of a slot start and end in the index file."""
        used = 0 if record.kind & L.KIND_HEADER_IN_EXTENT else record.header_nbytes
        if record.kind & L.KIND_INLINE:
            used += record.data_nbytes
        if used > L.INLINE_NBYTES:
            raise self.damaged(record.slot, f"{used} inline bytes, room for {L.INLINE_NBYTES}")
        start = (self._start + record.slot * L.SLOT_WORDS) * L.WORD + L.INLINE_OFFSET
        return start, start + used
