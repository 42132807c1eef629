"""A process of its own for each peer: what does it do?

It runs the functions that it is told to over a socket, each with its `Stand` as the first argument.
It may be another Python than the one that tells it, with other packages: what it imports must be
there. It ends when the other end of the socket is closed.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.clock import Operation, time_batch
from benchmarks.peers import Peer


class Stand:
    """What one process has: its end of a peer, and what it was told to prepare.

    Attributes
    ----------
    kind : type
        The class of the peer.
    folder : Path
        On tmpfs; the same for all processes of this peer.
    peer : Peer
        Its own end, when it has created it or attached to it.
    operations : dict
        What can be timed, by measure.
    kept : dict
        Whatever a workload needs again later.
    """

    def __init__(self, kind: type[Peer], folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.peer: Any = None
        self.operations: dict[str, Operation] = {}
        self.kept: dict[str, Any] = {}


def create(stand: Stand, nbytes: int) -> object:
    """Create the peer with room for some objects of that size; return its address."""
    stand.folder.mkdir(exist_ok=True)
    stand.peer = stand.kind.create(stand.folder, nbytes)
    return stand.peer.address


def attach(stand: Stand, address: object) -> None:
    """Attach to what another process has created."""
    stand.peer = stand.kind.attach(address)


def close(stand: Stand) -> None:
    """Drop everything and let go of the peer."""
    stand.operations.clear()
    stand.kept.clear()
    peer, stand.peer = stand.peer, None
    if peer is not None:
        peer.close()


def put(stand: Stand, make: Callable[[], object], key: str = "sample") -> bytes:
    """Put an object; return what the reader needs to get it."""
    return stand.peer.dump(stand.peer.put(make(), key))


def get(stand: Stand, dumped: bytes) -> object:
    """Get an object."""
    return stand.peer.get(stand.peer.load(dumped))


def time_operation(stand: Stand, measure: str, batch: int) -> float:
    """Time what was prepared; return nanoseconds."""
    return time_batch(stand.operations[measure], batch)


def _serve(pipe: Connection) -> None:
    stand: Stand | None = None
    while (order := pipe.recv_bytes()) and (message := pickle.loads(order)) is not None:
        try:
            if stand is None:
                stand = Stand(*message)
                sent = pickle.dumps((True, os.getpid()))
            else:
                function, args = message
                sent = pickle.dumps((True, function(stand, *args)))  # and keep nothing of it
        except BaseException:  # noqa: BLE001 - told to the conductor, whatever it is
            sent = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(sent)
    if stand is not None:
        close(stand)


def main() -> None:
    """Serve until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError), Connection(int(sys.argv[1])) as pipe:
        _serve(pipe)
    sys.stdout.flush()
