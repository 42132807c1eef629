"""The floors: pickle, and a copy into shared pages that were used before. No store behind it."""

import mmap
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import FLOOR, MEMCPY, Peer

ALIGNMENT = 64
SPARE = 1 << 20


class Floor(Peer):
    """A file on tmpfs, mapped by both processes; every put goes to its start."""

    label = FLOOR
    keyed = True
    batches = True
    shared = False
    copies = 2.0
    largest = 1 << 30

    def __init__(self, path: Path) -> None:
        self.address = path
        with path.open("r+b") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0))

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Write to every page: they are warm from now on."""
        path = folder / "floor"
        with path.open("wb") as file:
            for _ in range(0, nbytes + SPARE, SPARE):
                file.write(bytes(SPARE))
        return cls(path)

    @classmethod
    def attach(cls, address: Path) -> Self:
        """Map the file."""
        return cls(address)

    def put(self, value: object, key: str) -> list[slice]:
        """Pickle the value and copy stream and buffers into the file."""
        del key
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
        return _copy([stream, *(buffer.raw() for buffer in buffers)], self._view)

    def get(self, handle: list[slice]) -> object:
        """Unpickle; the buffers are there already."""
        return self.getter(handle)()

    def putter(self, value: object, key: str = "sample") -> Callable[[], object]:
        """Return what pickles the value and copies stream and buffers into the file."""
        view, dumps = self._view, pickle.dumps

        def put_stream() -> list[slice]:
            stream = dumps(value, 5)
            stop = len(stream)
            view[:stop] = stream
            return [slice(0, stop)]

        return partial(self.put, value, key) if len(_frames(value)) > 1 else put_stream

    def getter(self, handle: list[slice]) -> Callable[[], object]:
        """Return what unpickles a stream whose buffers are there already."""
        stream, *buffers = [self._view[each] for each in handle]
        if not buffers:
            return partial(pickle.loads, bytes(stream))
        return partial(pickle.loads, bytes(stream), buffers=buffers)

    def delete(self, handle: Any) -> None:
        """Do nothing: the next put goes to the same place."""

    def many_putter(self, values: Sequence[object]) -> Callable[[], object]:
        """Return what pickles each value and copies it behind the one before."""
        view, dumps = self._view, pickle.dumps

        def put_many() -> list[int]:
            lengths = []
            stop = 0
            for value in values:
                stream = dumps(value, 5)
                start, stop = stop, stop + len(stream)
                view[start:stop] = stream
                lengths.append(len(stream))
            return lengths

        return put_many

    def many_getter(self, handle: list[int]) -> Callable[[], object]:
        """Return what unpickles them all."""
        loads = pickle.loads
        streams = [
            bytes(self._view[stop - length : stop])
            for stop, length in zip(accumulate(handle), handle, strict=True)
        ]
        return lambda: [loads(stream) for stream in streams]

    def delete_many(self, handle: Any) -> None:
        """Do nothing, as for one."""


class Memcpy(Floor):
    """The copy alone, of what was pickled before; there is nothing to get."""

    label = MEMCPY
    hands = keyed = False
    gets = False
    batches = False

    def putter(self, value: object, key: str = "sample") -> Callable[[], object]:
        """Return what copies stream and buffers into the file."""
        del key
        return partial(_copy, _frames(value), self._view)


def _frames(value: object) -> list[Any]:
    """Return the pickle stream and the buffers behind it."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return [stream, *(buffer.raw() for buffer in buffers)]


def _copy(frames: list[Any], view: memoryview) -> list[slice]:
    """Copy the frames to the start of `view`, each aligned; return where they are."""
    where = []
    stop = 0
    for frame in frames:
        start = stop + -stop % ALIGNMENT
        stop = start + len(frame)
        view[start:stop] = frame
        where.append(slice(start, stop))
    return where


PEERS = [Floor, Memcpy]
