"""UltraDict: a dict in each process, kept alike by a stream of changes in shared memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from benchmarks.scratch import unique_name

STREAM_NBYTES = 8 << 20


class UltraDict(Peer):
    """Each process holds a copy of every object."""

    label = "UltraDict"
    package = "UltraDict"
    requires = ("UltraDict", "atomics")
    keyed = True
    largest = 1 << 20
    fresh = crowds = False

    def __init__(self, address: str, *, create: bool) -> None:
        from UltraDict import UltraDict as Dict

        self.address = address
        self._dict: Any = Dict(
            name=address, create=create, shared_lock=True, buffer_size=STREAM_NBYTES
        )

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Create it under the folder's name."""
        del nbytes
        return cls(unique_name(folder), create=True)

    @classmethod
    def attach(cls, address: str) -> Self:
        """Attach to it."""
        return cls(address, create=False)

    def put(self, value: object, key: str) -> str:
        """Set an item."""
        self._dict[key] = value
        return key

    def get(self, handle: str) -> object:
        """Get an item."""
        return self._dict[handle]

    def delete(self, handle: str) -> None:
        """Delete an item."""
        del self._dict[handle]

    def close(self) -> None:
        """Let go of it."""
        self._dict.close()


PEERS = [UltraDict]
