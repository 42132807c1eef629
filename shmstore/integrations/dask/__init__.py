"""How do the workers of a dask cluster share what lies on one host?

dask moves work and data between hosts; on each host shmstore holds one copy of every large result,
however many workers use it. One of these lines switches it on::

    cluster = shmstore.integrations.dask.LocalCluster(n_workers=4)
    shmstore.integrations.dask.install(client)  # on a cluster that runs

    $ dask worker tcp://... --preload shmstore.integrations.dask

See ``docs/howto/dask.md`` for what it does and where its limits are.
"""

from shmstore.integrations.dask._cluster import (
    LocalCluster,
    Plugin,
    Worker,
    dask_setup,
    dask_teardown,
    install,
    joining,
)
from shmstore.integrations.dask._family import FAMILIES, NotDeliveredError
from shmstore.integrations.dask._page import HostUse, shared_by_host
from shmstore.integrations.dask._references import Reference, WrongDomainError, refer
from shmstore.integrations.dask._resident import SharedData

__all__ = [
    "FAMILIES",
    "HostUse",
    "LocalCluster",
    "NotDeliveredError",
    "Plugin",
    "Reference",
    "SharedData",
    "Worker",
    "WrongDomainError",
    "dask_setup",
    "dask_teardown",
    "install",
    "joining",
    "refer",
    "shared_by_host",
]
