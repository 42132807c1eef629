"""What do the tables of the allocator say of the blocks of a segment, and can that be?

Nothing here changes anything. Each number is checked before it is followed; what cannot be is an
error that names the word.

Concurrency: every call requires the store lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore._memory.rebuilding import largest_of_class, size_classes
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError

if TYPE_CHECKING:
    import numpy.typing as npt


def all_end(following: npt.NDArray[np.intp]) -> bool:
    """Return whether all chains have an end (-1): each round looks twice as far ahead."""
    ahead = np.append(following, -1)
    for _ in range(len(ahead).bit_length()):
        ahead = ahead[ahead]
    return bool((ahead == -1).all())


class Block(NamedTuple):
    """A node of the allocator, free or used, as the checker sees it."""

    node: int
    offset: int
    nbytes: int
    status: int
    lower: int
    upper: int


class Blocks:
    """The blocks of one segment, free and used.

    Parameters
    ----------
    index
        The index that holds the tables.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._nodes = index.geometry.nodes
        self._capacity = index.identity.capacity

    def largest_free(self) -> int:
        """Return the size in bytes of the largest extent that could be had now."""
        words = self._words
        best = self._capacity - words[L.W_SEGMENT_TOP] + self._free_at_top()
        level = words[L.W_FIRST_LEVEL].bit_length() - 1
        if level >= L.FIRST_LEVELS:
            raise self._damaged(f"size class {level} is none", L.W_FIRST_LEVEL)
        if level >= 0:
            second = words[L.W_SECOND_LEVEL + level].bit_length() - 1
            number = level * L.SECOND_LEVELS + second
            most = largest_of_class(number)
            for node in self._free_list(number):
                best = max(best, words[self._base(node) + L.N_NBYTES])
                if best >= most:  # the others in the list are no larger; there may be many
                    break
        return best

    def is_cold(self, node: int) -> bool:
        """Return whether some pages of an extent may not exist."""
        return bool(self._words[self._base(node) + L.N_COLD] != L.WARM)

    def word_of(self, node: int) -> int:
        """Return where a node lies among the words of the index."""
        return self._base(node)

    def place(self, node: int) -> tuple[int, int]:
        """Return the offset and the size of a block."""
        base = self._base(self._checked(node))
        return int(self._words[base + L.N_OFFSET]), int(self._words[base + L.N_NBYTES])

    def nbytes(self, node: int) -> int:
        """Return the size of a block."""
        return int(self._words[self._base(self._checked(node)) + L.N_NBYTES])

    def owner(self, node: int) -> int:
        """Return the slot that a block belongs to; -1: it is free."""
        base = self._base(node)
        used = self._words[base + L.N_STATUS] == L.NODE_USED
        return int(self._words[base + L.N_SLOT]) - 1 if used else -1

    def count(self) -> int:
        """Return how many nodes were ever used."""
        return int(min(self._words[L.W_NODE_TOP], self._index.geometry.max_nodes))

    def block_table(self) -> npt.NDArray[np.uint64]:
        """Return the nodes that were ever used, a row each, as they lie in shared memory."""
        first, count = self._nodes * L.WORD, self.count() * L.NODE_WORDS
        flat = np.frombuffer(self._index.memory, np.uint64, count, first)
        return flat.reshape(-1, L.NODE_WORDS)

    def owners(self, nodes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return the slots that blocks belong to, without the free ones, for many at once."""
        rows = self.block_table()[nodes]
        used = (rows[:, L.N_STATUS] == L.NODE_USED) & (rows[:, L.N_SLOT] != 0)
        owners: npt.NDArray[np.intp] = (rows[used, L.N_SLOT] - np.uint64(1)).astype(np.intp)
        return owners

    def neighbour(self, node: int, *, up: bool) -> int | None:
        """Return the block above or below another one, or None."""
        following = self._words[self._base(node) + (L.N_UPPER if up else L.N_LOWER)]
        return self._checked(int(following) - 1) if following else None

    def room_above(self, node: int) -> int:
        """Return the bytes above the uppermost block that were never given out."""
        last = self._words[L.W_LAST_NODE] == node + 1
        return self._capacity - int(self._words[L.W_SEGMENT_TOP]) if last else 0

    def blocks(self) -> Iterator[Block]:
        """Walk all blocks from the top of the segment downward.

        Raises
        ------
        CorruptStoreError
            The chain of neighbours leaves the table or does not end.
        """
        words = self._words
        node = words[L.W_LAST_NODE] - 1
        for _ in range(self._index.geometry.max_nodes + 1):
            if node < 0:
                return
            base = self._base(self._checked(node))
            yield Block(node, *words[base + L.N_OFFSET : base + L.N_UPPER + 1])
            node = words[base + L.N_LOWER] - 1
        raise self._damaged("the chain of neighbours has a loop", self._nodes)

    def are_in_order(self) -> bool:
        """Return whether all blocks are where they should be, looked at together.

        They follow each other without gaps from 0 to the top, each names its neighbours, no two
        free ones lie side by side, the free ones hang in the lists of their size classes, and USED
        is right. False may also mean that only a walk can tell what is wrong.
        """
        words, table = self._words, self.block_table()
        nodes = np.flatnonzero(table[:, L.N_STATUS] != L.NODE_UNUSED)
        nodes = nodes[np.argsort(table[nodes, L.N_OFFSET], kind="stable")]
        rows = table[nodes, : L.N_COLD]
        used = rows[:, L.N_STATUS] == L.NODE_USED
        free = rows[:, L.N_STATUS] == L.NODE_FREE
        sizes = rows[:, L.N_NBYTES]
        if not bool((used | free).all()) or bool((sizes > self._capacity).any()):
            return False
        numbers = np.concatenate([[0], nodes + 1, [0]]).astype(np.uint64)
        edges = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
        return (
            numbers[-2] == words[L.W_LAST_NODE]
            and edges[-1] == words[L.W_SEGMENT_TOP]
            and int(sizes[used].sum()) == words[L.W_USED]
            and bool((rows[:, L.N_OFFSET] == edges[:-1]).all())
            and bool((rows[:, L.N_LOWER] == numbers[:-2]).all())
            and bool((rows[:, L.N_UPPER] == numbers[2:]).all())
            and not bool((free[1:] & free[:-1]).any())
            and self._are_listed(nodes[free], rows[free])
        )

    def _are_listed(self, nodes: npt.NDArray[np.intp], rows: npt.NDArray[np.uint64]) -> bool:
        """Return whether exactly these free blocks hang in the lists of their size classes."""
        classes = size_classes(rows[:, L.N_NBYTES])
        heads = self._index.rows(L.W_FREE_HEADS, L.FIRST_LEVELS * L.SECOND_LEVELS, 1)[:, 0]
        numbers = (nodes + 1).astype(np.uint64)
        place = np.full(self.count() + 1, -1, np.intp)  # of a node among those that are free
        place[nodes + 1] = np.arange(len(nodes))
        following, previous = rows[:, L.N_NEXT_FREE], rows[:, L.N_PREV_FREE]
        filled = np.flatnonzero(heads)
        links = np.concatenate([following, previous, heads[filled]])
        if bool((links >= len(place)).any()) or bool((place[links[links != 0]] < 0).any()):
            return False
        first, linked = np.flatnonzero(previous == 0), np.flatnonzero(following != 0)
        behind = place[following[linked]]
        return (
            bool((heads[classes[first]] == numbers[first]).all())
            and len(first) == len(filled)
            and len(first) + len(linked) == len(nodes)
            and bool((previous[behind] == numbers[linked]).all())
            and bool((classes[behind] == classes[linked]).all())
            and all_end(np.where(following == 0, -1, place[following]))
        )

    def listed(self) -> dict[int, int]:
        """Return for each block that hangs in a free list the number of that list."""
        found: dict[int, int] = {}
        for number in range(L.FIRST_LEVELS * L.SECOND_LEVELS):
            for node in self._free_list(number):
                if found.setdefault(node, number) != number:
                    raise self._damaged(f"block {node} hangs in two lists", self._base(node))
        return found

    def _free_at_top(self) -> int:
        last = self._words[L.W_LAST_NODE] - 1
        if last < 0:
            return 0
        base = self._base(last)
        free = self._words[base + L.N_STATUS] == L.NODE_FREE
        return int(self._words[base + L.N_NBYTES]) if free else 0

    def _free_list(self, number: int) -> Iterator[int]:
        words = self._words
        node = words[L.W_FREE_HEADS + number] - 1
        for _ in range(self._index.geometry.max_nodes + 1):
            if node < 0:
                return
            yield self._checked(node)
            node = words[self._base(node) + L.N_NEXT_FREE] - 1
        raise self._damaged(f"free list {number} has a loop", L.W_FREE_HEADS + number)

    def _checked(self, node: int) -> int:
        if node >= self._index.geometry.max_nodes:
            raise self._damaged(f"node {node} leaves the table", self._nodes)
        return node

    def _check_block(self, node: int, status: int) -> None:
        """Raise unless a block is what it should be and its neighbours agree on where it lies."""
        words = self._words
        base = self._base(self._checked(node))
        offset, nbytes, found, lower, upper = words[base : base + L.N_UPPER + 1]
        below, above = self._base(lower - 1), self._base(upper - 1)
        if not (
            found == status
            and (words[below] + words[below + 1] == offset if lower else not offset)
            and (words[above] if upper else words[L.W_SEGMENT_TOP]) == offset + nbytes
        ):
            raise self._damaged(f"block {node} ({offset}+{nbytes}) and its neighbours differ", base)

    def check_owner(self, node: int, slot: int) -> None:
        """Raise unless a block is the extent of a slot."""
        self._check_block(node, L.NODE_USED)
        base = self._base(node)
        owner = self._words[base + L.N_SLOT] - 1
        if owner != slot:
            raise self._damaged(f"block {node} belongs to slot {owner}, not {slot}", base)

    def _check_top(self) -> None:
        """Raise unless the top of the segment is where the last block ends."""
        words = self._words
        top, last = words[L.W_SEGMENT_TOP], words[L.W_LAST_NODE]
        if not last:
            end = 0
            if words[self._nodes + L.N_STATUS] != L.NODE_UNUSED:  # it is that of the lowest block
                raise self._damaged("there are blocks, and none is the last", L.W_LAST_NODE)
        else:
            base = self._base(self._checked(last - 1))
            end = words[base + L.N_OFFSET] + words[base + L.N_NBYTES]
            if words[base + L.N_UPPER]:
                raise self._damaged("there is a block above the last one", base)
        if top != end or top > self._capacity:
            raise self._damaged(f"the last block ends at {end}, the top is {top}", L.W_SEGMENT_TOP)

    def _base(self, node: int) -> int:
        return self._nodes + node * L.NODE_WORDS

    def _damaged(self, what: str, word: int) -> CorruptStoreError:
        return self._index.damaged("a table of the allocator", word, f"says that {what}", 2)
