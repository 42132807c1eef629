"""Given a slot, what is known of its object?

The slot table is the one source of truth of a store: everything else in the index can be made anew
from it. Each change therefore writes the slot's state word last when it gives the slot a meaning,
and first when it takes the meaning away.

Concurrency: methods that change something require the store lock. Reading needs none: read the
state word, read the rest, read the state word again; if it is the same, what was read belongs
together.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.moves import Moves
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._memory.index import Index

# Words that are written together: EXTENT to EXTENT_NBYTES, and OWNER to EXPIRES_NS. Only the state
# word tells whether they count, so it does not matter that these stores are not single ones.
_PLACE: Final = struct.Struct("=8Q")
_DESCRIPTION: Final = struct.Struct("=9Q")
_PLACE_AT: Final = L.S_EXTENT * L.WORD
_DESCRIPTION_AT: Final = L.S_OWNER * L.WORD
assert _PLACE.size // L.WORD == L.S_EXTENT_NBYTES + 1 - L.S_EXTENT
assert _DESCRIPTION_AT + _DESCRIPTION.size == L.INLINE_OFFSET


def boottime_ns() -> int:
    """Return a clock of the whole machine that nobody can set, in nanoseconds."""
    return time.clock_gettime_ns(_CLOCK) - _ahead_ns[0]


_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _clock_ahead_ns() -> int:
    """Return by how much this clock is ahead of the machine's: a time namespace has its own."""
    try:
        lines = Path("/proc/self/timens_offsets").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    offsets = {name: int(s) * 10**9 + int(ns) for name, s, ns in map(str.split, lines)}
    return offsets.get("boottime", 0)


def _look_at_clock() -> None:
    _ahead_ns[0] = _clock_ahead_ns()


_ahead_ns: Final = [_clock_ahead_ns()]
os.register_at_fork(after_in_child=_look_at_clock)  # a child may be born into another namespace


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


class Content(NamedTuple):
    """What publishing writes into a slot."""

    kind: int
    header: bytes
    inline: bytes
    data_nbytes: int
    digest: tuple[int, int]
    ttl_ns: int = 0


class Slots(Moves):
    """The slot table of one store.

    Parameters
    ----------
    index
        The index that holds the table.

    Attributes
    ----------
    following
        The next generation, as far as this process knows: NEXT_GENERATION is never below it.
    """

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self.wipes = bool(index.identity.flags & L.FLAG_ZERO_ON_FREE)
        self._bytes = memoryview(index.memory)
        self._store = index.identity.uuid.int & L.CRC_MASK
        self.following = 0

    # --- the life of a slot --------------------------------------------------------------------

    def take(self) -> int | None:
        """Return a free slot, or None when the table is full. OSError (ENOSPC): no pages for it."""
        words = self._words
        head = words[L.W_FREE_SLOT]
        if head:
            return self._spare(int(head) - 1, L.W_FREE_SLOT)
        top = words[L.W_SLOT_TOP]
        if top == self._index.geometry.max_objects:
            return None
        if (top + 1) * L.SLOT_NBYTES > words[L.W_SLOTS_RESERVED]:
            self._index.grow_slots()
        return self._spare(int(top), L.W_SLOT_TOP)

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
        had = states.generation_of(words[base + L.S_STATE])
        if not had < generation < states.MOST_GENERATIONS or generation < self.following:
            raise self._astray(L.W_NEXT_GENERATION, f"is {generation}, which was given before")
        words[L.W_NEXT_GENERATION] = self.following = generation + 1
        if slot == words[L.W_SLOT_TOP]:
            words[L.W_SLOT_TOP] = slot + 1
        else:
            words[L.W_FREE_SLOT] = words[base + L.S_LINK]
        where = nbytes = node = 0
        if extent is not None:
            node, where, nbytes, _ = extent
            where |= L.extent_check(where, generation) << L.EXTENT_SHIFT
            node += 1
        # EXTENT, NODE, CHAIN, LINK, LAST_USED, KIND, OWNER, EXTENT_NBYTES
        place = where, node, 0, 0, generation, 0, owner, nbytes
        _PLACE.pack_into(self._bytes, base * L.WORD + _PLACE_AT, *place)
        words[base + L.S_STATE] = states.first_word(generation)
        return int(generation)

    def publish(
        self,
        slot: int,
        content: Content,
        pid: int,
        state: int = states.READY,
    ) -> None:
        """Make the object of a slot visible: everything else first, the state word last.

        Requires: the store lock; the frames lie in the extent, or in a file if `state` says so;
        `note_data_crc` has been called if the kind says that there is one.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        start = base * L.WORD
        word = words[base]
        kind, header, inline, data_nbytes, digest, ttl_ns = content
        sizes = len(header)
        if kind & L.KIND_DATA_CRC:
            sizes |= words[base + L.S_HEADER_NBYTES] & ~L.CRC_MASK
        owner, nbytes = words[base + L.S_OWNER], words[base + L.S_EXTENT_NBYTES]
        expires_ns = self._expiry(ttl_ns) if ttl_ns else 0
        origin = time.time_ns(), pid, expires_ns
        body = (
            _DESCRIPTION.pack(owner, nbytes, sizes, data_nbytes, *digest, *origin) + header + inline
        )
        crc = crc32(body, L.first_crc(self._store, slot, word, kind))
        if kind & L.KIND_HEADER_IN_EXTENT:
            body = body[: _DESCRIPTION.size]
        start += _DESCRIPTION_AT
        self._bytes[start : start + len(body)] = body
        words[base + L.S_KIND] = kind | crc << L.CRC_SHIFT
        words[base] = states.move(word, state)
        words[L.W_OBJECTS] += 1
        if state == states.SPILLED:
            words[L.W_SPILLED] += 1
            words[L.W_SPILLED_BYTES] += nbytes
        if kind & L.KIND_NAMED:
            words[L.W_NAMED] += 1

    def inline_header(self, record: Record) -> bytes:
        """Return the packed header that lies in a slot."""
        start, _ = self.inline_range(record)
        return bytes(self._bytes[start : start + record.header_nbytes])

    def note_data_crc(self, slot: int, crc: int) -> None:
        """Keep the checksum of the frames of a put. Requires: it has its slot to itself."""
        self._words[self._start + slot * L.SLOT_WORDS + L.S_HEADER_NBYTES] = crc << L.CRC_SHIFT

    def _expiry(self, ttl_ns: int) -> int:
        """Return when an object expires that is published now; keep the earliest in mind."""
        expires_ns = boottime_ns() + ttl_ns
        earliest = self._words[L.W_NEXT_EXPIRY_NS]
        if not earliest or expires_ns < earliest:
            self._words[L.W_NEXT_EXPIRY_NS] = expires_ns
        return expires_ns

    def is_sound(self, record: Record, packed: bytes) -> bool:
        """Return whether the checksums over a published slot, with its header, agree."""
        start = (self._start + record.slot * L.SLOT_WORDS) * L.WORD + _DESCRIPTION_AT
        crc = L.first_crc(self._store, record.slot, record.word, record.kind)
        crc = crc32(packed, crc32(self._bytes[start : start + _DESCRIPTION.size], crc))
        if record.kind & L.KIND_INLINE:
            first, end = self.inline_range(record)
            if not record.kind & L.KIND_HEADER_IN_EXTENT:
                first += record.header_nbytes
            crc = crc32(self._bytes[first:end], crc)
        return crc == record.crc and self._is_placed(record)

    def _is_placed(self, record: Record) -> bool:
        if not record.extent_nbytes or states.state_of(record.word) == states.SPILLED:
            return True
        generation = states.generation_of(record.word)
        check = L.extent_check(record.extent, generation)
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
            words[L.W_NAMED] -= (words[base + L.S_KIND] & L.KIND_NAMED) // L.KIND_NAMED
        if state == states.SPILLED:
            words[L.W_SPILLED] -= 1
            words[L.W_SPILLED_BYTES] -= words[base + L.S_EXTENT_NBYTES]
        elif not words[base + L.S_NODE]:
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
        if self.wipes:
            start = base * L.WORD + _DESCRIPTION_AT
            nbytes = L.SLOT_NBYTES - _DESCRIPTION_AT
            self._bytes[start : start + nbytes] = bytes(nbytes)
        words[base + L.S_STATE] = states.move(words[base + L.S_STATE], states.FREE)
        words[base + L.S_KIND] = 0  # the checksum too: nothing can make an object of it again
        words[base + L.S_LINK] = words[L.W_FREE_SLOT]
        words[L.W_FREE_SLOT] = slot + 1

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

    def _pop_doomed(self) -> int:
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
            slot = self._pop_doomed()
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
        table = self.table()
        named = states.are_present(table[:, L.S_STATE])
        named &= table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0
        ends = table[:, L.S_EXPIRES_NS]
        return int((named & ((ends == 0) | (ends > np.uint64(now)))).sum())

    # --- reading -------------------------------------------------------------------------------

    def word(self, slot: int) -> int:
        """Return the state word of a slot."""
        return int(self._words[self._start + slot * L.SLOT_WORDS])

    def node(self, slot: int) -> int:
        """Return the allocator's node of the extent of a slot, or -1."""
        return int(self._words[self._start + slot * L.SLOT_WORDS + L.S_NODE]) - 1

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

    def inline_range(self, record: Record) -> tuple[int, int]:
        """Return where the inline bytes of a slot start and end in the index file."""
        used = 0 if record.kind & L.KIND_HEADER_IN_EXTENT else record.header_nbytes
        if record.kind & L.KIND_INLINE:
            used += record.data_nbytes
        if used > L.INLINE_NBYTES:
            raise self.damaged(record.slot, f"{used} inline bytes, room for {L.INLINE_NBYTES}")
        start = (self._start + record.slot * L.SLOT_WORDS) * L.WORD + L.INLINE_OFFSET
        return start, start + used
