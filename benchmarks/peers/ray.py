"""Ray, its object store alone: `ray.put` and `ray.get` of two drivers of one cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer

SPARE = 256 << 20


class Ray(Peer):
    """A cluster of this machine, started for the purpose; it stays as long as the process."""

    label = "Ray"
    package = "ray"
    requires = ("ray",)
    fresh = False
    copies = 3.0

    def __init__(self, address: Any) -> None:
        self.address = address

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Start a cluster with room for several of the objects."""
        import ray

        del folder
        ray.shutdown()
        context = ray.init(
            num_cpus=1,
            object_store_memory=3 * nbytes + SPARE,
            include_dashboard=False,
            log_to_driver=False,
        )
        return cls(context.address_info["gcs_address"])

    @classmethod
    def attach(cls, address: str) -> Self:
        """Connect to it."""
        import ray

        ray.init(address=address, log_to_driver=False)
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
        """Free an object."""
        from ray._private.internal_api import free

        free([handle])

    def dump(self, handle: Any) -> bytes:
        """Return the pickled reference."""
        from ray import cloudpickle

        return cloudpickle.dumps(handle)

    def load(self, dumped: bytes) -> Any:
        """Return the reference."""
        from ray import cloudpickle

        return cloudpickle.loads(dumped)

    def close(self) -> None:
        """Disconnect; end the cluster, if this process has started it."""
        import ray

        ray.shutdown()


PEERS = [Ray]
