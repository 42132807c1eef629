"""How do many small objects enter the slot table in a few steps?

NumPy writes each field of the slots for all of them. What has to be done for each by itself is the
checksum, but all of them begin alike, and it is linear: for any `a`, `b` and `data`, and `zeros` of
the same length, ::

    crc32(data, a) ^ crc32(data, b) == crc32(zeros, a) ^ crc32(zeros, b)

So the beginning is summed up once, and what `layout.first_crc` adds to it is looked up in tables.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from shmstore._catalog import states
from shmstore._catalog.inserts import DESCRIPTION
from shmstore._catalog.keys import NO_KEY
from shmstore._catalog.runs import numbers_of, rows_of
from shmstore._memory import layout as L
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    import numpy.typing as npt

    from shmstore._catalog.inserts import Inserts

# So many rows are made at once: they stay in the caches of a processor until they are copied.
_PORTION: Final = 1024

# The columns of a slot behind its state word, which is stored by itself.
_AT_LAST_USED: Final = L.S_LAST_USED - 1
_AT_KIND: Final = L.S_KIND - 1
_AT_DATA_NBYTES: Final = L.S_DATA_NBYTES - 1
_AT_OWNER: Final = L.S_OWNER - 1

# Of so many streams of one size it is seen whether a few of them differ in one place of so many.
_ALIKE: Final = 128
_SAMPLE: Final = 16
_PART: Final = 32

# Bytes of a checksum, and bits of each.
_BYTES: Final = 4
_BITS: Final = 8


class Batch(NamedTuple):
    """Objects without keys that lie in slots, and have the same header.

    `sizes` are those of the `streams`, none is larger than 255.
    """

    kind: int
    header: bytes
    streams: Sequence[bytes]
    sizes: bytes


def insert(table: Inserts, slots: Sequence[int], batch: Batch, owner: int, pid: int) -> None:
    """Fill slots from `take_many`; their generations follow each other, from `next_generation` on.

    As in `Inserts.insert`, the state words are stored last.
    """
    rows, numbers, taken = table.all_rows(), numbers_of(slots), rows_of(slots)
    first = table.occupy_many(slots, states.generation_of(int(rows[taken, L.S_STATE].max())))
    generations = np.arange(first, first + len(slots), dtype=np.uint64)
    sizes = np.frombuffer(batch.sizes, np.uint8)
    start = DESCRIPTION.pack(owner, 0, len(batch.header), 0, *NO_KEY, time.time_ns(), pid, 0)
    start += batch.header
    for begin in range(0, len(slots), _PORTION):
        part = slice(begin, begin + _PORTION)
        block = _lay_out(start, batch.streams[part], sizes[part])
        firsts = _firsts(numbers[part], generations[part], table.store ^ batch.kind)
        crcs = _sum_up(start, batch.streams[part], sizes[part], block, firsts).astype(np.uint64)
        block[:, _AT_LAST_USED] = generations[part]
        block[:, _AT_KIND] = crcs << np.uint64(L.CRC_SHIFT) | np.uint64(batch.kind)
        block[:, _AT_DATA_NBYTES] = sizes[part]
        rows[rows_of(slots[part]), 1 : 1 + block.shape[1]] = block
    rows[taken, L.S_STATE] = states.ready_words(generations)
    table.count_inserted(len(slots))


def _lay_out(
    start: bytes, streams: Sequence[bytes], sizes: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint64]:
    """Return rows that all have the same from OWNER on, and then a stream each."""
    before = _AT_OWNER * L.WORD + len(start)
    room = L.align(before + int(sizes.max()), L.WORD) - before
    block = np.empty((len(streams), before + room), np.uint8)
    block[:, :before] = np.frombuffer(bytes(_AT_OWNER * L.WORD) + start, np.uint8)
    block[:, before:] = np.array(streams, f"S{room}").view(np.uint8).reshape(-1, room)
    return block.view(np.uint64)


def _firsts(
    numbers: npt.NDArray[np.intp], generations: npt.NDArray[np.uint64], common: int
) -> npt.NDArray[np.uint32]:
    """Return `layout.first_crc` of each slot; `common` is what kind and store add to it."""
    of_slots = numbers.astype(np.uint32) * np.uint32(L.FIBONACCI_32)
    of_words = generations.astype(np.uint32) << np.uint32(states.STATE_BITS)
    return of_words ^ of_slots ^ np.uint32(common)


# --- checksums -----------------------------------------------------------------------------------


def _sum_up(
    start: bytes,
    streams: Sequence[bytes],
    sizes: npt.NDArray[np.uint8],
    block: npt.NDArray[np.uint64],
    firsts: npt.NDArray[np.uint32],
) -> npt.NDArray[np.uint32]:
    """Return the checksums of what begins with `firsts` and goes on with `start` and a stream."""
    sums = np.empty(len(sizes), np.uint32)
    begins = np.zeros(L.INLINE_NBYTES + 1, np.uint32)
    left = np.ones(len(sizes), np.bool_)
    for size, count in enumerate(np.bincount(sizes).tolist()):
        if not count:
            continue
        begins[size] = crc32(_start_of(start, size))
        if count >= _ALIKE:
            alike = np.flatnonzero(sizes == size)
            differ = _differing(block, alike, _AT_OWNER * L.WORD + len(start), size)
            if differ is not None:
                begins[size] = crc32(streams[alike[0]], int(begins[size]))
                sums[alike] = begins[size] ^ _advance(firsts[alike], len(start) + size) ^ differ
                left[alike] = False
    rest = np.flatnonzero(left)
    if len(rest):
        of_rest = streams if len(rest) == len(sums) else [streams[at] for at in rest.tolist()]
        begun = begins[sizes[rest]] ^ _advance(firsts[rest], len(start))
        sums[rest] = np.fromiter(map(crc32, of_rest, begun.tolist()), np.uint32, len(rest))
    return sums


def _start_of(start: bytes, size: int) -> bytes:
    """Return what comes before a stream of this size."""
    at = (L.S_DATA_NBYTES - L.S_OWNER) * L.WORD
    return start[:at] + size.to_bytes(L.WORD, "little") + start[at + L.WORD :]


def _differing(
    block: npt.NDArray[np.uint64], alike: npt.NDArray[np.intp], before: int, size: int
) -> npt.NDArray[np.uint32] | None:
    """Return how the checksums of streams of one size differ from that of the first.

    None: they differ in too many places. `before` is where in the rows they begin.
    """
    most = len(alike) // _PART
    words = block[:, before // L.WORD :]
    first = words[alike[0]]
    for sample in (alike[:_SAMPLE], alike):
        others = words[sample] ^ first
        differ = np.bitwise_or.reduce(others, axis=0)
        places = np.flatnonzero(differ.view(np.uint8)).tolist()
        if len(places) > most:
            return None
    columns = others.view(np.uint8)
    differ = np.zeros(len(alike), np.uint32)
    for place in places:
        differ ^= _tables(before % L.WORD + size - place)[0][columns[:, place]]
    return differ


def _advance(firsts: npt.NDArray[np.uint32], nbytes: int) -> npt.NDArray[np.uint32]:
    """Return what a checksum that begins with `firsts` has more than one that begins with 0."""
    tables = _tables(nbytes)
    parts = firsts.astype("<u4").view(np.uint8).reshape(-1, _BYTES)
    more: npt.NDArray[np.uint32] = tables[0][parts[:, 0]]
    for at in range(1, _BYTES):
        more ^= tables[at][parts[:, at]]
    return more


@functools.lru_cache(maxsize=512)
def _tables(nbytes: int) -> npt.NDArray[np.uint32]:
    """Return what each byte of the beginning adds to the checksum over so many bytes."""
    zeros = bytes(nbytes)
    of_bits = [crc32(zeros, 1 << bit) ^ crc32(zeros) for bit in range(_BYTES * _BITS)]
    columns = np.array(of_bits, np.uint32).reshape(_BYTES, _BITS)
    tables = np.zeros((_BYTES, 1), np.uint32)
    for bit in range(_BITS):
        tables = np.concatenate([tables, tables ^ columns[:, bit : bit + 1]], axis=1)
    return tables
