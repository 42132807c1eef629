"""How does an object enter the slot table?

What is copied while the lock is held enters in one step (`insert`): nobody can see its slot before
it is READY. Who dies in it leaves a slot that is FREE, and an extent that is nobody's. What takes
longer has its slot for itself meanwhile (`reserve`: WRITING) and becomes visible later (`publish`).
Slots may also be set aside for one client, which then fills them by itself (see `_spares`).

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.runs import Runs
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._memory.index import Index
from shmstore._tuples import NamedTuple

# Words that are written together: EXTENT to EXTENT_NBYTES, EXTENT to KIND, and OWNER to EXPIRES_NS.
# Only the state word tells whether they count, so these stores need not be single ones.
_PLACE: Final = struct.Struct("=8Q")
_BEFORE: Final = struct.Struct("=6Q")
DESCRIPTION: Final = struct.Struct("=9Q")
_PLACE_AT: Final = L.S_EXTENT * L.WORD
DESCRIPTION_AT: Final = L.S_OWNER * L.WORD
assert _PLACE.size // L.WORD == L.S_EXTENT_NBYTES + 1 - L.S_EXTENT
assert _PLACE_AT + _BEFORE.size == DESCRIPTION_AT
assert DESCRIPTION_AT + DESCRIPTION.size == L.INLINE_OFFSET


class Content(NamedTuple):
    """What publishing writes into a slot."""

    kind: int
    header: bytes
    inline: bytes
    data_nbytes: int
    digest: tuple[int, int]
    ttl_ns: int = 0


class Inserts(Runs):
    """The part of a slot table that fills slots.

    Parameters
    ----------
    index
        The index that holds the table.

    Attributes
    ----------
    store
        What checksums begin with.
    following
        The next generation, as far as this process knows: NEXT_GENERATION is never below it.
    """

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self._bytes = memoryview(index.memory)
        self.store = index.identity.uuid & L.CRC_MASK
        self.following = 0

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

    def reserve(self, slot: int, owner: int, extent: Extent | None, link: int = 0) -> int:
        """Give a slot to a put, as `insert` gets one; return its generation.

        `owner` is the serial of the client's seat: unlike a row it is never given to another.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        generation = states.generation_of(self._occupy(slot, base, states.WRITING))
        where = nbytes = node = 0
        if extent is not None:
            node, where, nbytes, _ = extent
            where |= L.extent_check(where, slot) << L.EXTENT_SHIFT
            node += 1
        # EXTENT, NODE, CHAIN, LINK, LAST_USED, KIND, OWNER, EXTENT_NBYTES
        place = where, node, 0, link, generation, 0, owner, nbytes
        _PLACE.pack_into(self._bytes, base * L.WORD + _PLACE_AT, *place)
        words[base + L.S_STATE] = states.first_word(generation)
        return generation

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
        expires_ns = self._expiry(slot, ttl_ns) if ttl_ns else 0
        origin = time.time_ns(), pid, expires_ns
        body = (
            DESCRIPTION.pack(owner, nbytes, sizes, data_nbytes, *digest, *origin) + header + inline
        )
        crc = crc32(body, L.first_crc(self.store, slot, word, kind))
        if kind & L.KIND_HEADER_IN_EXTENT:
            body = body[: DESCRIPTION.size]
        start += DESCRIPTION_AT
        self._bytes[start : start + len(body)] = body
        words[base + L.S_KIND] = kind | crc << L.CRC_SHIFT
        words[base] = states.move(word, state)
        words[L.W_OBJECTS] += 1
        if state == states.SPILLED:
            words[L.W_SPILLED] += 1
            words[L.W_SPILLED_BYTES] += nbytes
        if kind & L.KIND_NAMED:
            words[L.W_NAMED] += 1

    def note_data_crc(self, slot: int, crc: int) -> None:
        """Keep the checksum of the frames of a put. Requires: it has its slot to itself."""
        self._words[self._start + slot * L.SLOT_WORDS + L.S_HEADER_NBYTES] = crc << L.CRC_SHIFT

    def is_writing(self, slot: int, generation: int) -> bool:
        """Return whether a put still has its slot to itself."""
        word = self._words[self._start + slot * L.SLOT_WORDS]
        return bool(word == states.first_word(generation))

    def insert(
        self,
        slot: int,
        content: Content,
        owner: int,
        pid: int,
        extent: Extent | None,
        link: int = 0,
    ) -> None:
        """Fill a slot and make its object visible.

        Flat: the workload "put" of the benchmarks pays for it.

        Parameters
        ----------
        slot
            From `take`, or from `pop_doomed` with its extent; `next_generation` tells its
            generation.
        content
            What is to be stored, but for the frames.
        owner, pid
            The serial of the seat of this client, and its process.
        extent
            Where the frames lie; `note_data_crc` has been called if the kind says so.
        link
            LINK_OWN if this client may take the object back without the lock, or 0.
        """
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        word = self._occupy(slot, base, states.READY)
        generation = states.generation_of(word)
        kind, header, inline, data_nbytes, digest, ttl_ns = content
        where = node = nbytes = 0
        if extent is not None:
            node, where, nbytes, _ = extent
            where |= L.extent_check(where, slot) << L.EXTENT_SHIFT
            node += 1
        expires_ns = self._expiry(slot, ttl_ns) if ttl_ns else 0
        sizes = len(header)
        if kind & L.KIND_DATA_CRC:
            sizes |= words[base + L.S_HEADER_NBYTES] & ~L.CRC_MASK
        now = time.time_ns()
        body = DESCRIPTION.pack(owner, nbytes, sizes, data_nbytes, *digest, now, pid, expires_ns)
        crc = crc32(body + header + inline, L.first_crc(self.store, slot, word, kind))
        if not kind & L.KIND_HEADER_IN_EXTENT:
            body += header + inline
        kinds = kind | crc << L.CRC_SHIFT
        body = _BEFORE.pack(where, node, 0, link, generation, kinds) + body
        start = base * L.WORD + _PLACE_AT
        self._bytes[start : start + len(body)] = body
        words[base] = word
        words[L.W_OBJECTS] += 1
        if kind & L.KIND_NAMED:
            words[L.W_NAMED] += 1

    def insert_many(
        self, slots: Sequence[int], contents: Sequence[Content], owner: int, pid: int
    ) -> None:
        """Fill slots from `take_many` with objects that have no extents.

        Their generations follow each other, from `next_generation` on.
        """
        words, now, pack, store = self._words, time.time_ns(), DESCRIPTION.pack, self.store
        last = max([words[self._start + slot * L.SLOT_WORDS] for slot in slots], default=0)
        generation = self.occupy_many(slots, states.generation_of(last))
        rows, ready, named = [], [], 0
        for slot, content in zip(slots, contents, strict=True):
            kind, header, inline, data_nbytes, digest, ttl_ns = content
            ends = self._expiry(slot, ttl_ns) if ttl_ns else 0
            body = (
                pack(owner, 0, len(header), data_nbytes, *digest, now, pid, ends) + header + inline
            )
            word = states.begin(words[self._start + slot * L.SLOT_WORDS], generation, states.READY)
            crc = crc32(body, L.first_crc(store, slot, word, kind))
            rows.append(_BEFORE.pack(0, 0, 0, 0, generation, kind | crc << L.CRC_SHIFT) + body)
            ready.append(word)
            named += kind & L.KIND_NAMED
            generation += 1
        memory, first = self._bytes, self._start * L.WORD + _PLACE_AT
        for slot, row in zip(slots, rows, strict=True):
            start = first + slot * L.SLOT_NBYTES
            memory[start : start + len(row)] = row
        for slot, word in zip(slots, ready, strict=True):
            words[self._start + slot * L.SLOT_WORDS] = word
        words[L.W_OBJECTS] += len(slots)
        words[L.W_NAMED] += named // L.KIND_NAMED

    def occupy_many(self, slots: Sequence[int], had: int) -> int:
        """Give a put slots from `take_many`; return the first of its generations.

        `had` is the last of the generations that they had.
        """
        generation = self.take_generations(len(slots), had)
        self._unlist(slots)
        return generation

    def count_inserted(self, count: int) -> None:
        """Count objects without keys that have become visible."""
        self._words[L.W_OBJECTS] += count

    def take_generations(self, count: int, had: int = 0) -> int:
        """Return the first of some generations that nobody else gets; the last that slots `had`."""
        generation: int = self._words[L.W_NEXT_GENERATION]
        self._check_next(generation, had, count)
        self._words[L.W_NEXT_GENERATION] = self.following = generation + count
        return generation

    def set_aside(self, slots: Sequence[int], owner: int) -> None:
        """Give slots from `take_many` to the client with this seat, until they are doomed."""
        words = self._words
        self._unlist(slots)
        for slot in slots:
            base = self._start + slot * L.SLOT_WORDS
            # EXTENT, NODE, CHAIN, LINK, LAST_USED, KIND, OWNER, EXTENT_NBYTES
            place = 0, 0, 0, L.LINK_OWN, 0, 0, owner, 0
            _PLACE.pack_into(self._bytes, base * L.WORD + _PLACE_AT, *place)
            words[base + L.S_STATE] = states.move(words[base + L.S_STATE], states.SPARE)
        words[L.W_OBJECTS] += len(slots)

    def _list_free(self, slot: int) -> None:
        """Put a FREE slot at the head of the list of these."""
        words = self._words
        base = self._start + slot * L.SLOT_WORDS
        words[base + L.S_KIND] = 0  # the checksum too: nothing can make an object of it again
        words[base + L.S_LINK] = words[L.W_FREE_SLOT]
        words[L.W_FREE_SLOT] = slot + 1

    def _occupy(self, slot: int, base: int, state: int) -> int:
        """Give a put a slot from `take`, or one that was doomed; return its first word."""
        words = self._words
        generation: int = words[L.W_NEXT_GENERATION]
        had = words[base + L.S_STATE]
        self._check_next(generation, states.generation_of(had), 1)
        word = states.begin(had, generation, state)
        words[L.W_NEXT_GENERATION] = self.following = generation + 1
        if slot == words[L.W_SLOT_TOP]:
            words[L.W_SLOT_TOP] = slot + 1
        elif words[L.W_FREE_SLOT] == slot + 1:
            words[L.W_FREE_SLOT] = words[base + L.S_LINK]
        return word

    def _check_next(self, generation: int, had: int, count: int) -> None:
        """Raise unless generations may be given to slots that had others, up to `had`."""
        most = states.MOST_GENERATIONS - count
        if not had < generation <= most or generation < self.following:
            raise self._astray(L.W_NEXT_GENERATION, f"is {generation}, which was given before")

    def _expiry(self, slot: int, ttl_ns: int) -> int:
        """Return when an object expires that is published now; keep the earliest in mind."""
        expires_ns = boottime_ns() + ttl_ns
        words = self._words
        for at in (L.W_EXPIRIES + slot // self._index.geometry.expiry_group, L.W_NEXT_EXPIRY_NS):
            earliest = words[at]
            if not earliest or expires_ns < earliest:
                words[at] = expires_ns
        return expires_ns
