"""Where do the bytes of objects lie, and through which mapping are they seen?

The segment is one sparse file as long as the store's capacity, mapped once per process: writeable,
and read-only so that a stray write through a read-only view faults. Its pages come into being when
the first object is written to them and stay warm from then on.

A page behind the data says which store it belongs to. A segment that is gone, or that is another's,
takes the objects in it along, and only these: see `Absent`.

Concurrency: a range is written only by the owner of its extent, between reserve and publish.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np

from shmstore._memory import folder, shortage
from shmstore._memory import layout as L
from shmstore._memory.descriptors import CLOSED, Descriptor
from shmstore._memory.layout import PAGE
from shmstore._memory.mapping import map_file, punch, reserve, write_all
from shmstore._memory.page_table import PageTable
from shmstore._memory.sharing_out import WORTH_NBYTES, Crew
from shmstore.errors import CorruptStoreError, NotAStoreError

SEGMENT_NAME: Final = "segment-00000"

_BLOCK_NBYTES: Final = 512  # of st_blocks, whatever the file system


# Pages that exist are copied to, others are written: each has its own best number of threads.
_copiers, _writers = Crew(), Crew()

# Above this size a copy goes through NumPy, which lets other threads run meanwhile.
_RELEASE_GIL_NBYTES = 1 << 18


class Segment:
    """The data file of one store, mapped into this process.

    Parameters
    ----------
    fd
        The open file; owned by this object once it is made. Kept open for writes into cold pages
        and for private mappings.
    path
        Named in errors.
    store
        The UUID of the store, as a number.
    nbytes
        The capacity of the store.
    readonly
        Map it for reading only; `writeable` is then the read-only mapping.

    Raises
    ------
    CorruptStoreError
        It has another length, or belongs to another store.
    """

    def __init__(
        self, fd: Descriptor, path: str, store: int, nbytes: int, *, readonly: bool
    ) -> None:
        found = os.fstat(fd).st_size
        if found != nbytes + PAGE:
            raise CorruptStoreError(
                f"{path} has {found:,} bytes instead of {nbytes + PAGE:,}: it was cut or extended. "
                f"{_WHAT_REMAINS}",
                path=path,
                offset=min(found, nbytes + PAGE),
            )
        if os.pread(fd, L.SEGMENT_LABEL_NBYTES, nbytes) != _label(store):
            raise CorruptStoreError(
                f"{path}: the page at {nbytes} does not name this store; the file belongs to "
                f"another one, or was overwritten. {_WHAT_REMAINS}",
                path=path,
                offset=nbytes,
            )
        self.fd = fd
        self.nbytes = nbytes
        self.readonly: mmap.mmap = map_file(fd, nbytes, writeable=False)
        self.writeable: mmap.mmap = (
            self.readonly if readonly else map_file(fd, nbytes, writeable=True)
        )
        self.bytes = memoryview(self.writeable)
        self._pages = PageTable(self.writeable)

    @classmethod
    def create(cls, fd: int, store: int, nbytes: int, *, prefault: bool) -> None:
        """Give an empty file its length and its label; with `prefault` also its pages."""
        os.ftruncate(fd, nbytes + PAGE)
        write_all(fd, memoryview(_label(store)), nbytes)
        if prefault:
            reserve(fd, 0, nbytes)

    def write(
        self, frames: Sequence[tuple[int, memoryview]], *, cold: bool, guard: object = None
    ) -> None:
        """Copy frames to their offsets.

        Parameters
        ----------
        frames
            Pairs of an offset in the segment and a contiguous buffer of bytes.
        cold
            The pages may not exist yet: write through the file, which reports a full file system
            where a store to memory would be killed.
        guard
            Lives until the last thread has written its part, whatever becomes of the caller.

        Raises
        ------
        OSError
            ENOSPC: the file system is full.
        """
        try:
            for offset, frame in frames:
                if not cold:
                    self._pages.meet(offset, frame.nbytes)
                if frame.nbytes >= WORTH_NBYTES:
                    crew = _writers if cold else _copiers
                    crew.share_out(
                        frame.nbytes, partial(self._write_part, offset, frame, cold, guard)
                    )
                elif cold:
                    write_all(self.fd, frame, offset)
                elif frame.nbytes < _RELEASE_GIL_NBYTES:
                    self.bytes[offset : offset + frame.nbytes] = frame
                else:
                    self._write_part(offset, frame, cold, guard, 0, frame.nbytes)
        finally:
            del guard  # an error keeps this frame, and would keep the memory with it

    def _write_part(
        self,
        offset: int,
        frame: memoryview,
        cold: bool,  # noqa: FBT001 - bound by a partial
        guard: object,
        begin: int,
        end: int,
    ) -> None:
        try:
            part = frame[begin:end]
            if cold:
                write_all(self.fd, part, offset + begin)
            else:
                target = np.frombuffer(self.writeable, np.uint8, end - begin, offset + begin)
                np.copyto(target, np.frombuffer(part, np.uint8))
        finally:
            del guard  # as in `write`

    def reserve(self, offset: int, nbytes: int) -> None:
        """Make sure that the pages of an extent exist; OSError (ENOSPC) if they cannot."""
        reserve(self.fd, offset, nbytes)

    def meet(self, offset: int, nbytes: int) -> None:
        """Prepare to write all of a range whose pages exist, through the mapping."""
        self._pages.meet(offset, nbytes)

    def checksum(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Return the crc32 of ranges (offset, bytes), one after the other."""
        crc = 0
        for offset, nbytes in ranges:
            crc = crc32(memoryview(self.readonly)[offset : offset + nbytes], crc)
        return crc

    def wipe(self, offset: int, nbytes: int, *, cold: bool) -> None:
        """Make a range zero; with `cold` its pages go back to the system."""
        if cold and sys.platform == "linux":
            punch(self.fd, offset, nbytes, partial=True)
        else:
            np.frombuffer(self.writeable, np.uint8, nbytes, offset)[:] = 0

    def resident_nbytes(self) -> int:
        """Return the bytes of the pages that exist."""
        try:
            return os.fstat(self.fd).st_blocks * _BLOCK_NBYTES
        except OSError as error:
            shortage.refuse(error, shortage.path_of(self.fd))

    def release_pages(self, offset: int, nbytes: int) -> None:
        """Give the pages of a range that nobody looks at back to the system."""
        self._pages.forget(offset, nbytes)
        punch(self.fd, offset, nbytes)

    def map_private(self, offset: int, nbytes: int) -> tuple[mmap.mmap, int]:
        """Map a range copy-on-write; return the mapping and the offset of the range in it."""
        start = offset // PAGE * PAGE
        skip = offset - start
        return map_file(self.fd, skip + nbytes, writeable=True, private=True, offset=start), skip

    def close(self) -> None:
        """Close the descriptor. The mappings end by themselves, with the last view over them."""
        self.bytes.release()
        self.fd.close()
        self.fd = CLOSED


class Absent(Segment):
    """In the place of a segment that cannot be used: the store goes on without its objects.

    Parameters
    ----------
    error
        Raised by every use, in a copy.
    """

    def __init__(self, error: CorruptStoreError) -> None:
        self._error = error

    def __getattribute__(self, name: str) -> Any:
        if name in {"_error", "close", "release_pages", "wipe"}:
            return object.__getattribute__(self, name)
        raise CorruptStoreError(self._error.message, **self._error.facts)

    def close(self) -> None:
        """There is nothing to close."""

    def release_pages(self, offset: int, nbytes: int) -> None:
        """There is nothing to give back."""

    def wipe(self, offset: int, nbytes: int, *, cold: bool) -> None:
        """There is nothing to make zero."""


_WHAT_REMAINS: Final = (
    "The objects in it are lost; small ones lie in the index and can still be got. Save them, then "
    "destroy the store and create it again."
)


def open_segment(folder_fd: int, path: Path, store: int, nbytes: int, *, readonly: bool) -> Segment:
    """Open the segment of a store, or what stands for one that is not there or not this store's."""
    try:
        fd = folder.open_file(folder_fd, SEGMENT_NAME, path, readonly=readonly)
    except NotAStoreError:
        file = str(path / SEGMENT_NAME)
        message = f"{file} is gone. {_WHAT_REMAINS}"
        return Absent(CorruptStoreError(message, path=file, offset=0))
    try:
        return Segment(fd, str(path / SEGMENT_NAME), store, nbytes, readonly=readonly)
    except CorruptStoreError as error:
        fd.close()
        return Absent(error)
    except BaseException:
        fd.close()
        raise


def _label(store: int) -> bytes:
    """Return what the last page of a segment begins with."""
    return (store << 8 * L.WORD | L.SEGMENT_MAGIC).to_bytes(L.SEGMENT_LABEL_NBYTES, "little")
