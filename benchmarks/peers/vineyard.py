"""Vineyard: a server that hands out shared memory, and builders and resolvers for types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from benchmarks.peers.redis import wait_for

SPARE = 256 << 20


class Vineyard(Peer):
    """The server without its metadata service."""

    label = "Vineyard"
    package = "vineyard"
    requires = ("vineyard",)
    fresh = crowds = False
    lacks = ("pyarrow",)  # its resolver of frames fails where a column is Arrow's
    copies = 3.0

    def __init__(self, address: str, server: subprocess.Popen | None = None) -> None:
        import vineyard

        self.address = address
        self._server = server
        self._client: Any = vineyard.connect(address)

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start the server with room for several of the objects."""
        socket = folder / "socket"
        size = f"--size={4 * nbytes + SPARE}"
        command = [sys.executable, "-m", "vineyard", f"--socket={socket}", size, "--meta=local"]
        server = subprocess.Popen(command)
        wait_for(socket)
        return cls(str(socket), server)

    @classmethod
    def attach(cls, address: str) -> Self:
        """Connect to it."""
        return cls(address)

    def put(self, value: object, key: str) -> Any:
        """Put an object; its number is the handle."""
        del key
        return self._client.put(value)

    def get(self, handle: Any) -> object:
        """Get an object."""
        return self._client.get(handle)

    def delete(self, handle: Any) -> None:
        """Delete an object."""
        self._client.delete(handle)

    def dump(self, handle: Any) -> bytes:
        """Return its number as text."""
        return repr(handle).encode()

    def load(self, dumped: bytes) -> Any:
        """Return the number."""
        import vineyard

        return vineyard.ObjectID(dumped.decode().strip("'\""))

    def close(self) -> None:
        """Disconnect; end the server, if this process has started it."""
        self._client.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


PEERS = [Vineyard]
