"""One `SharedMemory` for each object, pickled with protocol 5."""

import itertools
import os
import pickle
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from benchmarks.scratch import unique_name

ALIGNMENT = 64

# The name of the block, and where in it stream and buffers lie.
Handle = tuple[str, list[slice]]


class OneBlockEach(Peer):
    """Each put creates a block; the reader attaches to it by name."""

    label = "SharedMemory each"
    copies = 2.0

    def __init__(self, prefix: str) -> None:
        self.address = prefix
        self._created: dict[str, SharedMemory] = {}
        self._seen: set[str] = set()
        self._got: SharedMemory | None = None
        self._numbers = itertools.count()

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Take the folder's name for a prefix that nobody else has."""
        del nbytes
        return cls(unique_name(folder))

    @classmethod
    def attach(cls, address: str) -> Self:
        """Prepare to attach to blocks as they come."""
        return cls(address)

    def put(self, value: object, key: str) -> Handle:
        """Create a block and copy stream and buffers into it."""
        del key
        buffers: list[pickle.PickleBuffer] = []
        frames: list[Any] = [pickle.dumps(value, 5, buffer_callback=buffers.append)]
        frames += [buffer.raw() for buffer in buffers]
        where, nbytes = layout(frames)
        name = f"{self.address}-{os.getpid()}-{next(self._numbers)}"
        self._created[name] = block = SharedMemory(name, create=True, size=nbytes)
        for place, frame in zip(where, frames, strict=True):
            _bytes_of(block)[place] = frame
        return name, where

    def get(self, handle: Handle) -> object:
        """Attach and unpickle; also close the block of the call before.

        A block cannot be closed while an array lies on it, and must not be dropped open.
        """
        name, where = handle
        self._close_got()
        self._got = SharedMemory(name)
        self._seen.add(name)
        stream, *buffers = [_bytes_of(self._got)[each] for each in where]
        return pickle.loads(stream, buffers=buffers)

    def delete(self, handle: Handle) -> None:
        """Unmap and unlink the block."""
        block = self._created.pop(handle[0])
        block.close()
        block.unlink()

    def close(self) -> None:
        """Remove what is left; keep the reader's resource tracker from removing it as well."""
        self._close_got()
        for block in self._created.values():
            block.close()
            block.unlink()
        for name in self._seen - set(self._created):
            resource_tracker.unregister(f"/{name}", "shared_memory")

    def _close_got(self) -> None:
        if self._got:
            self._got.close()
            self._got = None


def _bytes_of(block: SharedMemory) -> memoryview:
    assert block.buf is not None, "it is open"
    return block.buf


def layout(frames: list[Any]) -> tuple[list[slice], int]:
    """Return where each frame goes, aligned, and the size of the whole."""
    where = []
    stop = 0
    for frame in frames:
        start = stop + -stop % ALIGNMENT
        stop = start + len(frame)
        where.append(slice(start, stop))
    return where, stop


PEERS = [OneBlockEach]
