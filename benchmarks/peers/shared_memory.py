"""One `SharedMemory` for each object, pickled with protocol 5."""

import itertools
import pickle
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from benchmarks.scratch import TMPFS

ALIGNMENT = 64

# The name of the block, and where in it stream and buffers lie.
Handle = tuple[str, list[slice]]


class OneBlockEach(Peer):
    """Each put creates a block; the reader attaches to it by name."""

    label = "SharedMemory each"

    def __init__(self, prefix: str) -> None:
        self.address = prefix
        self._created: dict[str, SharedMemory | None] = {}  # None: may be there, may be not
        self._got: SharedMemory | None = None

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Take the folder's name for a prefix that nobody else has."""
        del nbytes
        return cls("-".join(folder.parts[-2:]))

    @classmethod
    def attach(cls, address: str) -> Self:
        """Prepare to attach to blocks as they come."""
        return cls(address)

    def putter(self, value: object) -> Callable[[], object]:
        """Return what creates a block and copies stream and buffers into it."""
        number = itertools.count()

        def put() -> Handle:
            buffers: list[pickle.PickleBuffer] = []
            frames: list[Any] = [pickle.dumps(value, 5, buffer_callback=buffers.append)]
            frames += [buffer.raw() for buffer in buffers]
            where, nbytes = _layout(frames)
            name = f"{self.address}-{next(number)}"
            self._created[name] = None
            self._created[name] = block = SharedMemory(name, create=True, size=nbytes)
            for place, frame in zip(where, frames, strict=True):
                _bytes_of(block)[place] = frame
            return name, where

        return put

    def getter(self, handle: Handle) -> Callable[[], object]:
        """Return what attaches and unpickles; it also closes the block of the call before.

        A block cannot be closed while an array lies on it, and must not be dropped open.
        """
        name, where = handle

        def get() -> object:
            self._close_got()
            self._got = SharedMemory(name)
            stream, *buffers = [_bytes_of(self._got)[each] for each in where]
            return pickle.loads(stream, buffers=buffers)

        return get

    def delete(self, handle: Handle) -> None:
        """Unmap and unlink the block."""
        name, _ = handle
        if block := self._created[name]:
            block.close()
            block.unlink()
        del self._created[name]

    def close(self) -> None:
        """Remove what is left, quietly even where an interrupt hit between two steps of a call.

        The resource tracker prints a warning for a name that it knows at exit, and for one that it
        does not know when it is unregistered: hence registered (again), removed, unregistered.
        """
        self._close_got()
        for name, block in self._created.items():
            if block:
                block.close()
            resource_tracker.register(f"/{name}", "shared_memory")
            (TMPFS / name).unlink(missing_ok=True)
            resource_tracker.unregister(f"/{name}", "shared_memory")

    def _close_got(self) -> None:
        if self._got:
            self._got.close()
            self._got = None


def _bytes_of(block: SharedMemory) -> memoryview:
    assert block.buf is not None, "it is open"
    return block.buf


def _layout(frames: list[Any]) -> tuple[list[slice], int]:
    """Return where each frame goes, aligned, and the size of the whole."""
    where = []
    stop = 0
    for frame in frames:
        start = stop + -stop % ALIGNMENT
        stop = start + len(frame)
        where.append(slice(start, stop))
    return where, stop


PEERS = [OneBlockEach]
