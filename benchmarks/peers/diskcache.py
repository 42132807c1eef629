"""diskcache on tmpfs: SQLite, and files for what is larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer

NO_LIMIT = 1 << 40


class DiskCache(Peer):
    """A cache that does not evict; objects are pickled."""

    label = "diskcache"
    package = "diskcache"
    requires = ("diskcache",)
    keyed = True
    largest = 64 << 20

    def __init__(self, address: str) -> None:
        import diskcache

        self.address = address
        self._cache: Any = diskcache.Cache(
            address, eviction_policy="none", size_limit=NO_LIMIT, disk_pickle_protocol=5
        )

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Make a cache in the folder."""
        del nbytes
        return cls(str(folder / "cache"))

    @classmethod
    def attach(cls, address: str) -> Self:
        """Open it."""
        return cls(address)

    def put(self, value: object, key: str) -> str:
        """Set an item."""
        self._cache.set(key, value)
        return key

    def get(self, handle: str) -> object:
        """Get an item."""
        return self._cache[handle]

    def delete(self, handle: str) -> None:
        """Delete an item."""
        self._cache.delete(handle)

    def close(self) -> None:
        """Close the database."""
        self._cache.close()


PEERS = [DiskCache]
