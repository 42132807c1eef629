"""Given the ranges in use, what must the tables of the allocator hold?

The tables are computed as a whole, with NumPy, so that a million objects take a fraction of a
second. The blocks lie in the order of their offsets, each range in use behind the gap below it, if
there is one; the free lists begin with the gap that lies highest.

Nothing here looks at shared memory or changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shmstore._memory import layout as L
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.intp]


def size_classes(sizes: Words) -> Numbers:
    """Return the numbers of the lists that blocks of these sizes hang in; see `size_class`."""
    numbers = (sizes // np.uint64(L.ALIGNMENT)).astype(np.intp)
    large = np.flatnonzero(sizes >= L.LINEAR_LIMIT)
    # frexp tells the length in bits: sizes are below 2**53, so that a double holds them exactly.
    levels = np.frexp(sizes[large].astype(np.float64))[1].astype(np.intp) - 1
    seconds = (sizes[large] >> (levels - L.SECOND_LEVEL_LOG2).astype(np.uint64)).astype(np.intp)
    numbers[large] = (levels - L.LINEAR_LIMIT_LOG2) * L.SECOND_LEVELS + seconds
    return numbers


def largest_of_class(number: int) -> int:
    """Return the size of the largest block that can hang in a list."""
    level, second = divmod(number + 1, L.SECOND_LEVELS)
    if not level:
        return number * L.ALIGNMENT
    return (L.SECOND_LEVELS + second << level + L.LINEAR_LIMIT_LOG2 - 1 - L.SECOND_LEVEL_LOG2) - (
        L.ALIGNMENT
    )


class Blocks(NamedTuple):
    """The columns of the node table, and where each range in use is in it.

    Parameters
    ----------
    columns
        OFFSET, NBYTES, STATUS, LOWER, UPPER, PREV_FREE or SLOT, NEXT_FREE, COLD: an entry per node.
    heads
        Node + 1 at the head of each free list.
    nodes
        The node of each range in use.
    top
        Where the last block ends.
    """

    columns: tuple[Words, ...]
    heads: Words
    nodes: Numbers
    top: int


def lay_out(offsets: Words, sizes: Words, slots: Numbers, backed: int) -> Blocks:
    """Return what the tables hold when these ranges are in use.

    Parameters
    ----------
    offsets, sizes, slots
        Of each range and of the object it belongs to, sorted by offset, checked not to overlap.
    backed
        Bytes of the segment whose pages were reserved at creation.
    """
    ends = offsets + sizes
    below = np.concatenate([np.zeros(1, np.uint64), ends])[:-1]
    gaps = np.flatnonzero(offsets > below)
    before = np.zeros(len(offsets), np.intp)
    before[gaps] = 1
    nodes = np.arange(len(offsets)) + np.cumsum(before)
    count = len(offsets) + len(gaps)
    free = nodes[gaps] - 1
    offset, nbytes, status, owner, following = (np.zeros(count, np.uint64) for _ in range(5))
    offset[nodes], offset[free] = offsets, below[gaps]
    nbytes[nodes], nbytes[free] = sizes, offsets[gaps] - below[gaps]
    status[nodes], status[free] = L.NODE_USED, L.NODE_FREE
    owner[nodes] = (slots + 1).astype(np.uint64)
    heads = _link(free, size_classes(nbytes[free]), owner, following)
    lower = np.arange(count, dtype=np.uint64)
    upper = lower + np.uint64(2)
    upper[count - 1 :] = 0
    cold = np.where(offset >= np.uint64(backed), np.uint64(L.COLD), np.uint64(L.PARTLY_COLD))
    cold[offset + nbytes <= np.uint64(backed)] = L.WARM
    columns = offset, nbytes, status, lower, upper, owner, following, cold
    return Blocks(columns, heads, nodes, int(ends[-1]) if count else 0)


def _link(free: Numbers, classes: Numbers, previous: Words, following: Words) -> Words:
    """Hang free blocks into lists, each in front of those below it; return the heads."""
    firsts = np.zeros(L.FIRST_LEVELS * L.SECOND_LEVELS, np.uint64)
    order = np.argsort(classes, kind="stable")
    blocks, classes = free[order], classes[order]
    numbers = (blocks + 1).astype(np.uint64)
    same = np.flatnonzero(classes[1:] == classes[:-1])
    following[blocks[same + 1]] = numbers[same]
    previous[blocks[same]] = numbers[same + 1]
    firsts[classes] = numbers  # of those in one list the last counts
    return firsts


def bitmaps(heads: Words) -> tuple[int, list[int]]:
    """Return the bitmap of size classes that have blocks, and the one of each class."""
    filled = (heads != 0).reshape(L.FIRST_LEVELS, L.SECOND_LEVELS)
    seconds: list[int] = (filled @ (1 << np.arange(L.SECOND_LEVELS))).tolist()
    return sum(1 << level for level, second in enumerate(seconds) if second), seconds
