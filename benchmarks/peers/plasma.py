"""Plasma, the store of pyarrow until version 11: a server that hands out shared memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from benchmarks.peers.redis import wait_for

SPARE = 256 << 20


class Plasma(Peer):
    """Objects go through `pyarrow.serialize`."""

    label = "Plasma"
    package = "pyarrow.plasma"
    requires = ("pyarrow==11.*", "numpy<2", "pandas<2.3")
    fresh = False
    lacks = ("pyarrow",)  # `pyarrow.serialize` refuses columns of pandas that are Arrow's
    copies = 3.0

    def __init__(self, address: str, server: subprocess.Popen | None = None) -> None:
        from pyarrow import plasma

        self.address = address
        self._server = server
        self._client: Any = plasma.connect(address)

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start the server with room for several of the objects."""
        program = Path(sys.executable).with_name("plasma_store")
        socket = folder / "socket"
        server = subprocess.Popen([program, "-m", str(4 * nbytes + SPARE), "-s", socket])
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
        self._client.delete([handle])

    def dump(self, handle: Any) -> bytes:
        """Return the bytes of its number."""
        return handle.binary()

    def load(self, dumped: bytes) -> Any:
        """Return the number."""
        from pyarrow import plasma

        return plasma.ObjectID(dumped)

    def close(self) -> None:
        """Disconnect; end the server, if this process has started it."""
        self._client.disconnect()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


PEERS = [Plasma]
