"""Which slots of many do not say what was written into them?

For those who look at all objects: fields are read with NumPy, a column at a time; what is left per
object is the checksum over its bytes. `Slots.is_sound` tells the same of one object.

Concurrency: requires the store lock, or that nobody minds a slot that changes meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.table import are_placed, extents_of
from shmstore._memory import layout as L
from shmstore._memory.index import Index

if TYPE_CHECKING:
    import numpy.typing as npt

    from shmstore._catalog.table import Table

    Rows = npt.NDArray[np.intp]
    Numbers = npt.NDArray[np.int64]


# Slots that are looked at at a time: their fields as Python's numbers take about 300 bytes each.
_AT_ONCE: Final = 1 << 14

_DESCRIPTION_AT: Final = L.S_OWNER * L.WORD
_DESCRIPTION_NBYTES: Final = L.INLINE_OFFSET - _DESCRIPTION_AT


def unsound(index: Index, table: Table, slots: Rows, segment: memoryview | None) -> Rows:
    """Return those of the slots of objects in memory whose checksums do not agree.

    Parameters
    ----------
    index, table
        The index, and its slot table.
    slots
        Published objects that lie in memory.
    segment
        The data; None: it is gone, and headers that lay in it with it: of these objects nothing is
        said.
    """
    found = [
        _unsound(index, table, slots[at : at + _AT_ONCE], segment)
        for at in range(0, len(slots), _AT_ONCE)
    ]
    return np.concatenate([slots[:0], *found])


def _unsound(index: Index, table: Table, slots: Rows, segment: memoryview | None) -> Rows:
    rows = table[slots, : L.S_INLINE]
    kinds = (rows[:, L.S_KIND] & np.uint64(L.KINDS)).astype(np.int64)
    beside = kinds & L.KIND_HEADER_IN_EXTENT != 0
    headers = (rows[:, L.S_HEADER_NBYTES] & np.uint64(L.CRC_MASK)).astype(np.int64)
    frames = np.minimum(rows[:, L.S_DATA_NBYTES], np.uint64(L.SLOT_NBYTES)).astype(np.int64)
    inline = np.where(beside, 0, headers) + np.where(kinds & L.KIND_INLINE != 0, frames, 0)
    starts = extents_of(rows).astype(np.int64) + _header_offsets(rows, headers)
    right = inline <= L.INLINE_NBYTES
    placed = (rows[:, L.S_NODE] != 0) & are_placed(rows, slots)
    right &= (rows[:, L.S_EXTENT_NBYTES] == 0) | placed
    right &= ~beside | ((starts >= 0) & (starts + headers <= index.identity.capacity))
    told = ~beside if segment is None else np.ones(len(slots), np.bool_)
    looked = np.flatnonzero(right & told)
    first = index.geometry.slots * L.WORD + slots[looked] * L.SLOT_NBYTES + _DESCRIPTION_AT
    ends = first + _DESCRIPTION_NBYTES + inline[looked]
    seeds = _seeds(index, rows[looked], slots[looked], kinds[looked])
    memory = memoryview(index.memory)
    sums = _sums(memory, first, ends, seeds)
    long = np.flatnonzero(beside[looked])
    if segment is not None and len(long):
        at = looked[long]
        sums[long] = _sums_beside(
            (memory, segment), first[long], ends[long], seeds[long], starts[at], headers[at]
        )
    right[looked] = sums == rows[looked, L.S_KIND] >> np.uint64(L.CRC_SHIFT)
    return slots[told & ~right]


def _header_offsets(rows: Table, headers: Numbers) -> Numbers:
    """Return where headers lie in their extents, if they do."""
    sizes = np.minimum(rows[:, L.S_EXTENT_NBYTES], np.uint64(L.MAX_CAPACITY)).astype(np.int64)
    offsets: Numbers = sizes - (headers + L.ALIGNMENT - 1 & -L.ALIGNMENT)
    return offsets


def _seeds(index: Index, rows: Table, slots: Rows, kinds: Numbers) -> Table:
    """Return what the checksum over each slot begins with; see `layout.first_crc`."""
    numbers = slots.astype(np.uint64) * np.uint64(L.FIBONACCI_32)
    words = rows[:, L.S_STATE] - states.states_of(rows[:, L.S_STATE]) + kinds.astype(np.uint64)
    store = np.uint64(index.identity.uuid & L.CRC_MASK)
    seeds: Table = (words ^ numbers ^ store) & np.uint64(L.CRC_MASK)
    return seeds


def _sums(memory: memoryview, starts: Numbers, ends: Numbers, seeds: Table) -> Table:
    """Return the checksums of ranges of the index."""
    ranges = zip(starts.tolist(), ends.tolist(), seeds.tolist(), strict=True)
    return np.array([crc32(memory[start:end], seed) for start, end, seed in ranges], np.uint64)


def _sums_beside(
    memories: tuple[memoryview, memoryview],
    starts: Numbers,
    ends: Numbers,
    seeds: Table,
    headers_at: Numbers,
    headers: Numbers,
) -> Table:
    """Return the checksums of slots whose headers lie in the segment."""
    index, segment = memories
    columns = (starts, ends, seeds, headers_at, headers_at + headers)
    found = []
    for start, end, seed, begin, stop in zip(*(c.tolist() for c in columns), strict=True):
        described = start + _DESCRIPTION_NBYTES
        crc = crc32(segment[begin:stop], crc32(index[start:described], seed))
        found.append(crc32(index[described:end], crc))
    return np.array(found, np.uint64)
