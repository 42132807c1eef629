"""Which pages of a mapping has this process met?

A page that exists in shared memory is still foreign to a process that has not touched it: the first
touch is a fault, and for a large copy the faults take five times as long as the copy. Asked in one
call the system enters all pages of a range at once, for a fraction of that. So it is noted here of
which stretches that was done; see `PageTable.meet`.

What is noted may be wrong: another process may have given the pages back since, or there are pages
that were never met where a stretch ends. Then they fault one by one, as if nothing had been done.

Concurrency: any thread; two may do the same work twice. A forked child has met nothing.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from shmstore._memory.layout import PAGE
from shmstore._memory.mapping import populate

# Below this size the faults cost less than keeping account of them.
WORTH_NBYTES: Final = 256 << 10

_STRETCH: Final = 64 << 10  # around a page that is read the system enters so many bytes anyway
_STEP: Final = 64 << 20  # a signal waits no longer than for this

_births = 0


def _be_born() -> None:
    global _births  # noqa: PLW0603 - one for all mappings
    _births += 1


os.register_at_fork(after_in_child=_be_born)


class PageTable:
    """What this process has met of one mapping.

    Parameters
    ----------
    memory
        The mapping; shared, and writeable.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._met = bytearray()
        self._born = -1

    def meet(self, offset: int, nbytes: int) -> None:
        """Enter the pages of a range, which must exist, before all of them are written."""
        if nbytes < WORTH_NBYTES:
            return
        if self._born != _births:
            self._born, self._met = _births, bytearray(-(-len(self._memory) // _STRETCH))
        end = -(-(offset + nbytes) // _STRETCH)
        first = self._met.find(0, offset // _STRETCH, end)
        if first < 0:
            return
        start = max(first * _STRETCH, offset // PAGE * PAGE)
        for at in range(start, offset + nbytes, _STEP):
            if not populate(self._memory, at, min(_STEP, offset + nbytes - at)):
                break  # the system cannot: it is not worth asking again
        self._met[first:end] = b"\1" * (end - first)

    def forget(self, offset: int, nbytes: int) -> None:
        """Note that the pages of a range went back to the system."""
        first, end = offset // _STRETCH, -(-(offset + nbytes) // _STRETCH)
        if self._met:
            self._met[first:end] = bytes(len(self._met[first:end]))
