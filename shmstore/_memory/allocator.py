"""Given a size, which range of the segment is free for it?

Two-level segregated fit (M. Masmano, I. Ripoll, A. Crespo, J. Real, "TLSF: a new dynamic memory
allocator for real-time systems", ECRTS 2004): free blocks hang in lists by size class, two bitmaps
find a list that surely fits, and a freed block merges with its free neighbours. Its tables lie in
the index, not between the data, so that a stray write through a view cannot reach them.

Above SEGMENT_TOP lies space that was never used. It is taken only when no used block fits: used
pages are warm.

Concurrency: every call requires the store lock. All tables are derived; `rebuild` makes them anew
from the extents of the slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmstore._memory import layout as L
from shmstore._memory.blocks import Blocks
from shmstore._memory.rebuilding import bitmaps, lay_out
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    from shmstore._memory.rebuilding import Numbers, Words


class Extent(NamedTuple):
    """A range of the segment that belongs to one object."""

    node: int
    offset: int
    nbytes: int
    cold: bool


def size_class(nbytes: int) -> int:
    """Return the number of the list that a block of this size hangs in.

    Sizes below 1 KiB have a list per 64 bytes, larger ones sixteen lists per power of two.
    """
    if nbytes < L.LINEAR_LIMIT:
        return nbytes // L.ALIGNMENT
    level = nbytes.bit_length() - 1
    second = (nbytes >> (level - L.SECOND_LEVEL_LOG2)) - L.SECOND_LEVELS
    return (level - L.LINEAR_LIMIT_LOG2 + 1) * L.SECOND_LEVELS + second


class Allocator(Blocks):
    """The extents of one segment.

    Parameters
    ----------
    index
        The index that holds the tables.
    """

    # --- the four calls ------------------------------------------------------------------------

    def allocate(self, nbytes: int, slot: int = -1) -> Extent | None:
        """Take an extent of at least `nbytes` bytes, or return None when nothing fits.

        Parameters
        ----------
        nbytes
            Rounded up to a multiple of 64.
        slot
            Of the object that it is for; for `owner`.

        Raises
        ------
        OSError
            ENOSPC: the tables themselves cannot grow.
        """
        nbytes = L.align(nbytes)
        words = self._words
        if words[L.W_FREE_NODE] == 0:
            self._ensure_spare_nodes()
        node = self._find(nbytes)
        if node >= 0:
            self._check_block(node, L.NODE_FREE)
            self._unlink(node)
            self._split(node, nbytes)
        else:
            node = self._extend(nbytes)
            if node < 0:
                return None
        base = self._base(node)
        words[base + L.N_STATUS] = L.NODE_USED
        words[base + L.N_SLOT] = slot + 1
        words[L.W_USED] += nbytes
        return Extent(node, words[base + L.N_OFFSET], nbytes, words[base + L.N_COLD] != L.WARM)

    def extent(self, node: int) -> Extent:
        """Return a used block as the extent that it is."""
        offset, nbytes = self.place(node)
        return Extent(node, offset, nbytes, self.is_cold(node))

    def is_warm(self, node: int, slot: int, offset: int, nbytes: int) -> bool:
        """Return whether a slot has this extent, and every page of it exists. Takes no lock."""
        if not 0 <= node < self._words[L.W_NODE_TOP]:
            return False
        base = self._base(node)
        row = self._words[base : base + L.NODE_WORDS].tolist()
        return (
            row[L.N_OFFSET] == offset
            and row[L.N_NBYTES] == nbytes
            and row[L.N_STATUS] == L.NODE_USED
            and row[L.N_SLOT] == slot + 1
            and row[L.N_COLD] == L.WARM
        )

    def release(self, node: int, slot: int = -1) -> None:
        """Free the extent of a slot and merge it with its free neighbours."""
        words = self._words
        self.check_owner(node, slot)
        base = self._base(node)
        words[L.W_USED] -= words[base + L.N_NBYTES]
        upper, lower = words[base + L.N_UPPER] - 1, words[base + L.N_LOWER] - 1
        if upper >= 0 and words[self._base(upper) + L.N_STATUS] == L.NODE_FREE:
            self._check_block(upper, L.NODE_FREE)
            self._unlink(upper)
            self._absorb(node, upper)
        if lower >= 0 and words[self._base(lower) + L.N_STATUS] == L.NODE_FREE:
            self._check_block(lower, L.NODE_FREE)
            self._unlink(lower)
            self._absorb(lower, node)
            node = lower
        self._link(node)

    def mark_warm(self, node: int) -> None:
        """Note that every page of an extent exists now."""
        self._words[self._base(node) + L.N_COLD] = L.WARM

    def give(self, node: int, slot: int) -> None:
        """Note that an extent belongs to another slot from now on."""
        self._words[self._base(node) + L.N_SLOT] = slot + 1

    def mark_cold(self, node: int) -> None:
        """Note that pages of an extent are about to go."""
        self._words[self._base(node) + L.N_COLD] = L.PARTLY_COLD

    def cool(self, most: int) -> list[tuple[int, int]]:
        """Note that the pages of free blocks are about to go, of the largest ones first.

        Parameters
        ----------
        most
            Bytes after which it is enough.

        Returns
        -------
        list of (int, int)
            Offset and size of each.
        """
        words = self._words
        self._check_top()
        ranges: list[tuple[int, int]] = []
        for number in range(L.FIRST_LEVELS * L.SECOND_LEVELS - 1, size_class(L.PAGE) - 1, -1):
            for node in list(self._free_list(number)):
                base = self._base(node)
                if most <= 0:
                    return ranges
                if words[base + L.N_COLD] != L.COLD:
                    self._check_block(node, L.NODE_FREE)
                    words[base + L.N_COLD] = L.COLD
                    ranges.append((int(words[base]), int(words[base + L.N_NBYTES])))
                    most -= ranges[-1][1]
        return ranges

    def rebuild(self, offsets: Words, sizes: Words, slots: Numbers) -> Numbers:
        """Make all tables anew from the used ranges.

        Parameters
        ----------
        offsets, sizes, slots
            Of each range and its object, sorted by offset, checked not to overlap.

        Returns
        -------
        array of int
            The node of each range.

        Raises
        ------
        OSError
            ENOSPC: the tables cannot grow.
        """
        words = self._words
        made = lay_out(offsets, sizes, slots, int(words[L.W_BACKED]))
        self._index.wipe_nodes()
        count = len(made.columns[0])
        words[L.W_NODE_TOP] = words[L.W_FREE_NODE] = 0
        self._reserve_nodes(count)
        nodes = self._index.rows(self._nodes, count, L.NODE_WORDS)
        for at, column in enumerate(made.columns):
            nodes[:, at] = column
        words[L.W_NODE_TOP] = words[L.W_LAST_NODE] = count
        words[L.W_SEGMENT_TOP], words[L.W_USED] = made.top, int(sizes.sum())
        heads = self._index.rows(L.W_FREE_HEADS, len(made.heads), 1)
        heads[:, 0] = made.heads
        words[L.W_FIRST_LEVEL], seconds = bitmaps(made.heads)
        for level, second in enumerate(seconds):
            words[L.W_SECOND_LEVEL + level] = second
        return made.nodes

    # --- steps ---------------------------------------------------------------------------------

    def _find(self, nbytes: int) -> int:
        """Return a free block of at least `nbytes` bytes, or -1."""
        words = self._words
        own = size_class(nbytes)
        head = words[L.W_FREE_HEADS + own] - 1
        if head >= 0 and words[self._base(head) + L.N_NBYTES] >= nbytes:
            return head
        found = self._first_class(own + 1)
        if found >= 0:
            head = words[L.W_FREE_HEADS + found] - 1
            if found >= L.FIRST_LEVELS * L.SECOND_LEVELS or head < 0:
                raise self._damaged(f"free list {found} is said to have blocks", L.W_FIRST_LEVEL)
            return int(head)
        for node in self._free_list(own):
            if words[self._base(node) + L.N_NBYTES] >= nbytes:
                return node
        return -1

    def _first_class(self, number: int) -> int:
        """Return the first non-empty size class from `number` on, or -1."""
        words = self._words
        level, second = divmod(number, L.SECOND_LEVELS)
        if level >= L.FIRST_LEVELS:
            return -1
        seconds = words[L.W_SECOND_LEVEL + level] >> second << second
        if not seconds:
            levels = words[L.W_FIRST_LEVEL] >> (level + 1) << (level + 1)
            if not levels:
                return -1
            level = (levels & -levels).bit_length() - 1
            seconds = words[L.W_SECOND_LEVEL + level]
        return level * L.SECOND_LEVELS + (seconds & -seconds).bit_length() - 1

    def _split(self, node: int, nbytes: int) -> None:
        """Cut a block to `nbytes` bytes; the rest becomes a free block above it."""
        words = self._words
        base = self._base(node)
        rest = words[base + L.N_NBYTES] - nbytes
        if not rest:
            return
        other = self._take_node()
        other_base = self._base(other)
        upper = words[base + L.N_UPPER]
        words[other_base + L.N_OFFSET] = words[base + L.N_OFFSET] + nbytes
        words[other_base + L.N_NBYTES] = rest
        words[other_base + L.N_LOWER] = node + 1
        words[other_base + L.N_UPPER] = upper
        words[other_base + L.N_COLD] = words[base + L.N_COLD]
        words[base + L.N_NBYTES] = nbytes
        words[base + L.N_UPPER] = other + 1
        if upper:
            words[self._base(upper - 1) + L.N_LOWER] = other + 1
        else:
            words[L.W_LAST_NODE] = other + 1
        self._link(other)

    def _extend(self, nbytes: int) -> int:
        """Take a block that ends above the top, or return -1 when the capacity is used up."""
        words = self._words
        self._check_top()
        below = self._free_at_top()
        if words[L.W_SEGMENT_TOP] - below + nbytes > self._capacity:
            return -1
        node = self._append(nbytes - below)
        if below:
            lower = words[self._base(node) + L.N_LOWER] - 1
            self._unlink(lower)
            self._absorb(lower, node)
            node = lower
        return node

    def _append(self, nbytes: int) -> int:
        """Make a block of `nbytes` bytes at the top, free but in no list."""
        words = self._words
        node = self._take_node()
        base = self._base(node)
        top, last = words[L.W_SEGMENT_TOP], words[L.W_LAST_NODE]
        words[base + L.N_OFFSET] = top
        words[base + L.N_NBYTES] = nbytes
        words[base + L.N_STATUS] = L.NODE_FREE
        words[base + L.N_LOWER] = last
        words[base + L.N_UPPER] = 0
        backed = words[L.W_BACKED]
        cold = L.COLD if top >= backed else L.PARTLY_COLD
        words[base + L.N_COLD] = cold if top + nbytes > backed else L.WARM
        if last:
            words[self._base(last - 1) + L.N_UPPER] = node + 1
        words[L.W_LAST_NODE] = node + 1
        words[L.W_SEGMENT_TOP] = top + nbytes
        return node

    def _absorb(self, lower: int, upper: int) -> None:
        """Merge a block into the one below it. Neither hangs in a list."""
        words = self._words
        low, high = self._base(lower), self._base(upper)
        above = words[high + L.N_UPPER]
        if above and words[self._base(self._checked(above - 1)) + L.N_LOWER] != upper + 1:
            raise self._damaged(f"block {upper} and the one above it differ", high)
        words[low + L.N_NBYTES] += words[high + L.N_NBYTES]
        if words[low + L.N_COLD] != words[high + L.N_COLD]:
            words[low + L.N_COLD] = L.PARTLY_COLD
        words[low + L.N_UPPER] = above
        if above:
            words[self._base(above - 1) + L.N_LOWER] = lower + 1
        else:
            words[L.W_LAST_NODE] = lower + 1
        words[high + L.N_STATUS] = L.NODE_UNUSED
        words[high + L.N_NEXT_FREE] = words[L.W_FREE_NODE]
        words[L.W_FREE_NODE] = upper + 1

    def _link(self, node: int) -> None:
        """Hang a block in front of its free list: last freed, first used."""
        words = self._words
        base = self._base(node)
        number = size_class(words[base + L.N_NBYTES])
        head = words[L.W_FREE_HEADS + number]
        words[base + L.N_STATUS] = L.NODE_FREE
        words[base + L.N_PREV_FREE] = 0
        words[base + L.N_NEXT_FREE] = head
        if head:
            words[self._base(head - 1) + L.N_PREV_FREE] = node + 1
        words[L.W_FREE_HEADS + number] = node + 1
        level, second = divmod(number, L.SECOND_LEVELS)
        words[L.W_SECOND_LEVEL + level] |= 1 << second
        words[L.W_FIRST_LEVEL] |= 1 << level

    def _unlink(self, node: int) -> None:
        """Take a block out of its free list."""
        words = self._words
        base = self._base(node)
        before, after = words[base + L.N_PREV_FREE], words[base + L.N_NEXT_FREE]
        number = size_class(words[base + L.N_NBYTES])
        own = self._base(before - 1) + L.N_NEXT_FREE if before else L.W_FREE_HEADS + number
        if words[own] != node + 1:
            raise self._damaged(f"free block {node} is not in its list", base)
        if after:
            back = self._base(after - 1) + L.N_PREV_FREE
            if words[back] != node + 1:
                raise self._damaged(f"the list of free block {node} is broken", back)
            words[back] = before
        words[own] = after
        if before:
            return
        if not after:
            level, second = divmod(number, L.SECOND_LEVELS)
            words[L.W_SECOND_LEVEL + level] &= ~(1 << second)
            if not words[L.W_SECOND_LEVEL + level]:
                words[L.W_FIRST_LEVEL] &= ~(1 << level)

    def _take_node(self) -> int:
        words = self._words
        head = words[L.W_FREE_NODE]
        node = int(head or words[L.W_NODE_TOP] + 1) - 1
        base = self._base(self._checked(node))
        if words[base + L.N_STATUS] != L.NODE_UNUSED:
            raise self._damaged(f"node {node} is in use and said to be spare", base)
        if head:
            words[L.W_FREE_NODE] = words[base + L.N_NEXT_FREE]
        else:
            words[L.W_NODE_TOP] = node + 1
        return node

    def _ensure_spare_nodes(self) -> None:
        """Reserve pages for the two nodes that one step may take, before anything is changed."""
        top, most = self._words[L.W_NODE_TOP], self._index.geometry.max_nodes
        if top > most:
            raise self._damaged(f"{top} nodes are in use, there are {most}", L.W_NODE_TOP)
        self._reserve_nodes(min(top + 2, most))

    def _reserve_nodes(self, count: int) -> None:
        """Reserve pages for so many nodes."""
        while self._words[L.W_NODES_RESERVED] < count * L.NODE_WORDS * L.WORD:
            self._index.grow_nodes()
