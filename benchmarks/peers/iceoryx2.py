"""iceoryx2: publish and subscribe over shared memory, without a store behind it.

What is published is a pickle with its buffers beside it; a put is a publication, and there is
nothing to get afterwards. A publication is told over the line, since a subscriber would have to
spin or to use an event of its own.
"""

from __future__ import annotations

import ctypes
import pickle
import struct
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from benchmarks.peers.shared_memory import layout
from benchmarks.scratch import unique_name

SPARE = 1 << 20
COUNT = struct.Struct("<Q")


class Iceoryx2(Peer):
    """One publisher, one subscriber, at most some samples under way."""

    label = "iceoryx2"
    package = "iceoryx2"
    requires = ("iceoryx2",)
    gets = shared = fresh = False
    copies = 4.0

    def __init__(self, address: tuple[str, int]) -> None:
        import iceoryx2

        self._package: Any = iceoryx2
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        self.address = address
        name, nbytes = address
        self._node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
        builder = self._node.service_builder(iceoryx2.ServiceName.new(name))
        kind = iceoryx2.Slice[ctypes.c_uint8]
        self._service = builder.publish_subscribe(kind).open_or_create()
        self._publisher = self._subscriber = None
        self._nbytes = nbytes

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Open the service, and publish in it."""
        peer = cls((unique_name(folder), nbytes + nbytes // 4 + SPARE))
        builder = peer._service.publisher_builder()
        peer._publisher = builder.initial_max_slice_len(peer._nbytes).create()
        return peer

    @classmethod
    def attach(cls, address: tuple[str, int]) -> Self:
        """Open the service, and subscribe to it."""
        peer = cls(address)
        peer._subscriber = peer._service.subscriber_builder().create()
        return peer

    def put(self, value: object, key: str) -> None:
        """Publish."""
        del key
        buffers: list[pickle.PickleBuffer] = []
        frames: list[Any] = [pickle.dumps(value, 5, buffer_callback=buffers.append)]
        frames += [buffer.raw() for buffer in buffers]
        where, nbytes = layout(frames)
        head = pickle.dumps(where)
        start = COUNT.size + len(head)
        start += -start % 64
        sample = self._publisher.loan_slice_uninit(start + nbytes)
        view = sample.payload().as_memory_view().cast("B")
        view[: COUNT.size] = COUNT.pack(len(head))
        view[COUNT.size : COUNT.size + len(head)] = head
        for place, frame in zip(where, frames, strict=True):
            view[start + place.start : start + place.stop] = frame
        sample.assume_init().send()

    def take(self, key: str) -> object:
        """Receive what was published last; the object lies in the sample."""
        del key
        self.line.receive()
        self._sample = None
        self._sample = self._subscriber.receive()
        view = self._sample.payload().as_memory_view().cast("B")
        (length,) = COUNT.unpack_from(view)
        start = COUNT.size + length
        where = pickle.loads(view[COUNT.size : start])
        start += -start % 64
        stream, *buffers = [view[start + each.start : start + each.stop] for each in where]
        return pickle.loads(stream, buffers=buffers)

    def delete(self, handle: None) -> None:
        """Nothing to do: a sample is free when the subscriber has dropped it."""

    def close(self) -> None:
        """Drop everything."""
        self._sample = self._publisher = self._subscriber = self._service = self._node = None


PEERS = [Iceoryx2]
