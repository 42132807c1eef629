"""What sends objects instead of keeping them: `multiprocessing.Pipe` and `Queue`."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Self

import numpy as np

from benchmarks.line import Line
from benchmarks.machine import pin
from benchmarks.peers import Peer

# A consumer that does not answer for so long has failed.
PATIENCE_S = 60.0


class Pipe(Peer):
    """A connection over a pipe: the object goes through it as a pickle."""

    label = "mp.Pipe"
    gets = puts = shared = False
    copies = 3.0
    largest = 64 << 20

    def __init__(self, folder: Path) -> None:
        self.address = folder
        self._line: Any = None

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Take the folder for the pipes."""
        del nbytes
        return cls(folder)

    attach = classmethod(lambda cls, address: cls(address))

    def hand_over(self, value: object, key: str) -> None:
        """Send the object."""
        del key
        self._writer.send(value)

    def take(self, key: str) -> object:
        """Receive it."""
        del key
        return self._reader.recv()

    def delete(self, handle: None) -> None:
        """Nothing is kept."""

    @property
    def line(self) -> Line:
        """Its pipes are the line's, too."""
        return self._line

    @line.setter
    def line(self, line: Line) -> None:
        self._line = line
        self._reader = Connection(line.into, writable=False)
        self._writer = Connection(line.out, readable=False)


class Queue(Peer):
    """A queue of `multiprocessing`, with a thread that feeds it and a lock around the pipe."""

    label = "mp.Queue"
    gets = puts = shared = False
    own_consumer = True
    copies = 3.0
    largest = 64 << 20

    def __init__(self) -> None:
        self.address = None

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start the process that takes what is handed over."""
        del folder, nbytes
        peer = cls()
        context = cls.context()
        peer._there, peer._back = context.Queue(), context.Queue()
        peer._consumer = context.Process(
            target=consume, args=(peer._there, peer._back), daemon=True
        )
        peer._consumer.start()
        return peer

    @classmethod
    def attach(cls, address: None) -> Self:
        """Nothing to attach to: the consumer is there already."""
        del address
        return cls()

    @classmethod
    def context(cls) -> Any:
        """Return what makes queues and processes."""
        return multiprocessing.get_context("spawn")

    def hand_over(self, value: object, key: str) -> None:
        """Put it into the queue."""
        del key
        self._there.put((self.sent(value),))

    def sent(self, value: object) -> object:
        """Return what goes into the queue."""
        return value

    def answered(self, key: str) -> int:
        """Wait for the answer."""
        del key
        return self._back.get(timeout=PATIENCE_S)

    def delete(self, handle: None) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """End the consumer."""
        if hasattr(self, "_consumer"):
            self._there.put(None)
            self._consumer.join()


def consume(there: Any, back: Any) -> None:
    """Take objects and say when they were read, until there are none."""
    pin(1)
    while (message := there.get()) is not None:
        [value] = message
        value["id"] if isinstance(value, dict) else value[0]  # to iterate takes a tensor apart
        back.put(perf_counter_ns())
        del message, value


class TorchQueue(Queue):
    """A queue of `torch.multiprocessing`: tensors go to shared memory of their own."""

    label = "torch.mp queue"
    package = "torch"
    requires = ("torch==2.13.0",)
    largest = 512 << 20

    @classmethod
    def context(cls) -> Any:
        """Return what makes queues and processes."""
        from torch import multiprocessing

        return multiprocessing.get_context("spawn")

    def sent(self, value: object) -> object:
        """Return a tensor over an array; a new one, since sending moves it."""
        import torch

        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


PEERS = [Pipe, Queue, TorchQueue]
