"""Where do the bytes of records wait until there is a place for them?"""

from __future__ import annotations

from array import array
from typing import Any, Final

import numpy as np

from shmstore.serialization.frames import Planned

_CHUNK_NBYTES: Final = 1 << 20
# Buffers of this size stay where they are until they are written.
_LARGE_NBYTES: Final = 64 << 10

# Buffers from these sizes on begin at multiples of these, all others at multiples of 8.
_PAGE_LIKE, _GRAIN = 4096, 64
_SMALL, _SMALL_GRAIN = 64, 16

_ZEROS: Final = bytes(_GRAIN)


class Spool:
    """Collects buffers, one behind the other, until there is a place for them."""

    __slots__ = ("_drained", "_parts", "_small", "_start", "nbytes")

    def __init__(self) -> None:
        self._parts: list[tuple[int, Any]] = []
        self._small: list[Any] = []
        self._start = 0  # of what is small
        self._drained = False
        self.nbytes = 0

    def add(self, buffer: Any, size: int, grain: int = 1) -> int:
        """Take a buffer of flat bytes or a plan; return where it begins, a multiple of `grain`."""
        gap = -self.nbytes % grain
        start = self.nbytes + gap
        self.nbytes = start + size
        if size < _LARGE_NBYTES:
            if gap:
                self._small.append(_ZEROS[:gap])
            self._small.append(buffer.materialize() if type(buffer) is Planned else buffer)
            if self.nbytes - self._start >= _CHUNK_NBYTES:
                self._join()
        else:
            self._join()
            self._parts.append((start, buffer))
            self._start = self.nbytes
        return start

    def _join(self) -> None:
        if self._small:
            self._parts.append((self._start, b"".join(self._small)))
            self._small.clear()
        self._start = self.nbytes

    def frame(self, *, writeable: bool, drain: bool) -> Planned:
        """Return all of it as one frame."""
        self._join()
        parts = self._parts

        def write_into(target: memoryview) -> None:
            if drain and self._drained:
                raise RuntimeError("the records of a list were written twice")
            self._drained = drain
            if drain:
                parts.reverse()
            while drain and parts:
                _put(target, *parts.pop())
            for start, part in parts:
                _put(target, start, part)

        return Planned(self.nbytes, write_into, writeable=writeable)

    def join(self) -> bytes:
        """Return what was small, if nothing was large."""
        self._join()
        return b"".join([part for _, part in self._parts])


def _put(target: memoryview, start: int, part: Any) -> None:
    if type(part) is Planned:
        part.write_into(target[start : start + part.nbytes])
    else:
        target[start : start + len(part)] = part


def grain_of(size: int) -> int:
    """Return what the start of a buffer is a multiple of: pads cost little beside the buffer."""
    if size >= _PAGE_LIKE:
        return _GRAIN
    return _SMALL_GRAIN if size >= _SMALL else 8


def word_of(most: int) -> int:
    """Return the bytes of a number in a table of numbers up to `most`."""
    return 4 if most < 1 << 32 else 8


def table_of(numbers: Any, most: int) -> memoryview:
    """Return numbers as the bytes of a read-only table."""
    table: Any = np.asarray(numbers, np.uint64) if isinstance(numbers, array) else numbers
    return memoryview(table.astype(f"<u{word_of(most)}", copy=False)).cast("B").toreadonly()
