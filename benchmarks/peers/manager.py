"""A dict in the server process of `multiprocessing.managers`."""

from __future__ import annotations

from multiprocessing.managers import BaseManager, DictProxy
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer

AUTHKEY = b"benchmarks"
_held: dict[str, object] = {}


class _Server(BaseManager):
    pass


def _whole() -> dict[str, object]:
    return _held


_Server.register("held", callable=_whole, proxytype=DictProxy)


class ManagerDict(Peer):
    """Every call goes through a socket; objects are pickled both ways."""

    label = "Manager().dict()"
    keyed = True
    largest = 64 << 20

    def __init__(self, address: str, server: Any) -> None:
        self.address = address
        self._server = server
        self._held = server.held()

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start the server."""
        del nbytes
        server = _Server(str(folder / "socket"), AUTHKEY)
        server.start()
        return cls(str(folder / "socket"), server)

    @classmethod
    def attach(cls, address: str) -> Self:
        """Connect to it."""
        server = _Server(address, AUTHKEY)
        server.connect()
        return cls(address, server)

    def put(self, value: object, key: str) -> str:
        """Set an item."""
        self._held[key] = value
        return key

    def get(self, handle: str) -> object:
        """Get an item."""
        return self._held[handle]

    def delete(self, handle: str) -> None:
        """Delete an item."""
        del self._held[handle]

    def close(self) -> None:
        """End the server, if this process has started it."""
        if hasattr(self._server, "shutdown"):
            self._server.shutdown()


PEERS = [ManagerDict]
