"""Where do the bytes of objects lie, and through which mapping are they seen?

The segment is one sparse file as long as the store's capacity, mapped once per process: writeable,
and read-only so that a stray write through a read-only view faults. Its pages come into being when
the first object is written to them and stay warm from then on.

Concurrency: a range is written only by the owner of its extent, between reserve and publish.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np

from shmstore._memory.layout import PAGE
from shmstore._memory.mapping import map_file, punch, reserve, write_all
from shmstore.errors import CorruptStoreError

SEGMENT_NAME = "segment-00000"

# Above this size a copy goes through NumPy, which lets other threads run meanwhile.
_RELEASE_GIL_NBYTES = 1 << 18


class Segment:
    """The data file of one store, mapped into this process.

    Parameters
    ----------
    fd
        The open file; owned by this object once it is made. Kept open for writes into cold pages
        and for private mappings.
    nbytes
        The capacity of the store.
    readonly
        Map it for reading only; `writeable` is then the read-only mapping.
    """

    def __init__(self, fd: int, nbytes: int, *, readonly: bool) -> None:
        found = os.fstat(fd).st_size
        if found != nbytes:
            raise CorruptStoreError(
                f"{SEGMENT_NAME} has {found} bytes, the index says {nbytes}: it was cut or "
                "extended. Destroy the store and create it again.",
                found=found,
                expected=nbytes,
            )
        self.fd = fd
        self.nbytes = nbytes
        self.readonly: mmap.mmap = map_file(fd, nbytes, writeable=False)
        self.writeable: mmap.mmap = (
            self.readonly if readonly else map_file(fd, nbytes, writeable=True)
        )
        self._bytes = memoryview(self.writeable)

    @classmethod
    def create(cls, fd: int, nbytes: int, *, prefault: bool) -> None:
        """Give an empty file its length; with `prefault` also its pages."""
        os.ftruncate(fd, nbytes)
        if prefault:
            reserve(fd, 0, nbytes)

    def write(self, frames: Sequence[tuple[int, memoryview]], *, cold: bool) -> None:
        """Copy frames to their offsets.

        Parameters
        ----------
        frames
            Pairs of an offset in the segment and a contiguous buffer of bytes.
        cold
            The pages may not exist yet: write through the file, which reports a full file system
            where a store to memory would be killed.

        Raises
        ------
        OSError
            ENOSPC: the file system is full.
        """
        for offset, frame in frames:
            if cold:
                write_all(self.fd, frame, offset)
            elif frame.nbytes < _RELEASE_GIL_NBYTES:
                self._bytes[offset : offset + frame.nbytes] = frame
            else:
                target = np.frombuffer(self.writeable, np.uint8, frame.nbytes, offset)
                np.copyto(target, np.frombuffer(frame, np.uint8))

    def reserve(self, offset: int, nbytes: int) -> None:
        """Make sure that the pages of an extent exist; OSError (ENOSPC) if they cannot."""
        reserve(self.fd, offset, nbytes)

    def release_pages(self, offset: int, nbytes: int) -> None:
        """Give the pages of a range that nobody looks at back to the system."""
        punch(self.fd, offset, nbytes)

    def map_private(self, offset: int, nbytes: int) -> tuple[mmap.mmap, int]:
        """Map a range copy-on-write; return the mapping and the offset of the range in it."""
        start = offset // PAGE * PAGE
        skip = offset - start
        return map_file(self.fd, skip + nbytes, writeable=True, private=True, offset=start), skip

    def close(self) -> None:
        """Close the descriptor. The mappings end by themselves, with the last view over them."""
        self._bytes.release()
        os.close(self.fd)
        self.fd = -1
