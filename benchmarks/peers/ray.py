"""Ray, its object store alone: `ray.put` and `ray.get` of two drivers of one cluster."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, ClassVar, Self

from benchmarks.peers import Peer

SPARE = 512 << 20


class Ray(Peer):
    """A cluster of this machine, started for the purpose; it stays as long as the process."""

    label = "Ray"
    package = "ray"
    requires = ("ray",)
    fresh = crowds = False
    copies = 3.0
    _room: ClassVar[int] = 0
    _started: ClassVar[tuple[str, str]] = ("", "")

    def __init__(self, address: tuple[str, str]) -> None:
        self.address = address

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start a cluster with room for several of the objects, or a new one with more room."""
        del folder
        room = 3 * nbytes + SPARE
        if room > cls._room:
            ray, token = _imported(cls._started[1] or secrets.token_hex(32))
            ray.shutdown()
            context = ray.init(
                num_cpus=1,
                object_store_memory=room,
                include_dashboard=False,
                log_to_driver=False,
            )
            cls._room, cls._started = room, (context.address_info["gcs_address"], token)
        return cls(cls._started)

    @classmethod
    def attach(cls, address: tuple[str, str]) -> Self:
        """Connect to it, if that has not been done."""
        if cls._started != address:
            where, token = address
            ray, _ = _imported(token)
            ray.shutdown()
            ray.init(address=where, log_to_driver=False)
            cls._started = address
        return cls(address)

    def put(self, value: object, key: str) -> Any:
        """Put an object."""
        import ray

        del key
        return ray.put(value)

    def get(self, handle: Any) -> object:
        """Get an object."""
        import ray

        return ray.get(handle)

    def delete(self, handle: Any) -> None:
        """Nothing to do: an object goes with the last reference of its owner."""

    def dump(self, handle: Any) -> bytes:
        """Return the pickled reference."""
        from ray import cloudpickle

        return cloudpickle.dumps(handle)

    def load(self, dumped: bytes) -> Any:
        """Return the reference."""
        from ray import cloudpickle

        return cloudpickle.loads(dumped)


def _imported(token: str) -> tuple[Any, str]:
    """Import Ray in a process that talks to nobody but those with the same token."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    import ray

    return ray, token


PEERS = [Ray]
