"""What keeps an extent as it is while an object is built on it?

The pin belongs to an *anchor*, the array that lies directly on a mapping: everything that is
derived from it keeps it alive, and its weak reference drops the pin when the last of them has died.
(NumPy shortens chains of bases, but never past an array whose base is no array, and the anchor's is
the mapping.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmstore.serialization import headers
from shmstore.serialization.frames import allocate, ensure_memoryview

if TYPE_CHECKING:
    import mmap

    from shmstore._plans import Plan

# Below this size private views are copies: a mapping of their own costs more.
PRIVATE_COPY_NBYTES: Final = 128 << 10


class Lease:
    """The hold of one get on its extent: it pins it, for each mapping that views are made on.

    These are two at most, read-only and that of the mode. Both pins are stored here, before the
    slot word is looked at, and passed on to the anchors: the reclaimer loads one cell after the
    other, so that a pin which came later, in a cell already passed, would be missed when the
    lease's own goes.

    Parameters
    ----------
    plan
        Of the object.
    cells
        Where it is pinned already, as often as that.
    """

    __slots__ = ("__weakref__", "_anchors", "_cells", "_plan")

    def __init__(self, plan: Plan, cells: list[int] | None = None) -> None:
        self._plan = plan
        self._anchors: dict[str, memoryview] = {}
        pins, slot = plan.session.pins, plan.slot
        if cells is None:
            cells = [pins.pin(self, slot), pins.pin(self, slot)]
        else:
            for cell in cells:
                pins.pass_on(cell, self)
        self._cells = cells

    def view(self, row: headers.FrameRow, mode: str) -> Any:
        """Return a frame as the mode and its flag want it."""
        writeable = mode == "private" or (row.writeable and mode != "readonly")
        if row.codec is not None:
            return self._decompress(row, writeable=writeable)
        if mode == "copy" or (mode == "private" and self._is_small()) or not row.nbytes:
            return self._copy(row, writeable=writeable)
        if not writeable:
            mode = "readonly"
        return self.anchor(mode)[row.offset : row.offset + row.nbytes]

    def _decompress(self, row: headers.FrameRow, *, writeable: bool) -> memoryview:
        from shmstore.serialization.compression import decompress_frame  # noqa: PLC0415 - takes time that most processes can save

        name, raw_nbytes = row.codec or (None, None)
        stored = self.anchor("readonly")[row.offset : row.offset + row.nbytes]
        raw: memoryview = ensure_memoryview(decompress_frame(name, stored, raw_nbytes))
        return raw if writeable else raw.toreadonly()

    def _is_small(self) -> bool:
        return self._plan.extent_nbytes < PRIVATE_COPY_NBYTES

    def _copy(self, row: headers.FrameRow, *, writeable: bool) -> memoryview:
        copy = allocate(row.nbytes)
        if row.nbytes:
            source = self.anchor("readonly")[row.offset : row.offset + row.nbytes]
            np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(source, np.uint8))
        return copy if writeable else copy.toreadonly()

    def anchor(self, mode: str) -> memoryview:
        """Return the whole extent through the mapping of a mode, under a pin of its own."""
        view = self._anchors.get(mode)
        if view is None:
            view = self._anchors[mode] = self._make_anchor(mode)
        return view

    def exporter(self, mode: str) -> tuple[mmap.mmap, int]:
        """Return the mapping for views of a mode, and where the extent begins in it."""
        return self._plan.exporter(mode)

    def _make_anchor(self, mode: str) -> memoryview:
        exporter, offset = self.exporter(mode)
        anchor = np.ndarray(self._plan.extent_nbytes, np.uint8, exporter, offset)
        self._plan.session.pins.pass_on(self._cells.pop(), anchor)
        return anchor.data
