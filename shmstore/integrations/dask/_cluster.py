"""How is sharing switched on: for one worker, for a cluster that runs, for a new one?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import distributed
from dask.utils import parse_bytes
from distributed import Client, Nanny, Scheduler, WorkerPlugin

from shmstore import Options, prune
from shmstore.errors import ShmStoreError
from shmstore.integrations.dask import _exchange, _joining
from shmstore.integrations.dask._exchange import DEFAULT_THRESHOLD, LOCK_TIMEOUT_S, Settings
from shmstore.integrations.dask._family import HANDSHAKE
from shmstore.integrations.dask._page import add_to
from shmstore.integrations.dask._resident import WHEN
from shmstore.tickets import SMALLEST_NBYTES


class Plugin(WorkerPlugin):  # type: ignore[misc]
    """Lets the workers of each host share large results; for ``Client.register_plugin``.

    Parameters
    ----------
    capacity
        Bytes of the store of each host, as an int or as "8GiB"; the default follows from the host.
    threshold
        Bytes from which on an array is shared, as an int or as "256KiB"; other data from
        sixteen times as many. At least 128 KiB: copying what is smaller is faster than mapping it.
    when
        Results of tasks go into the store: "stored": at once; "sent": when another worker first
        asks for them; "auto": when first asked for, and at once when those of tasks of the same
        name are (one of four).
    root, group
        As in `Store.create`. The name of a group must be known here, too; a number need not.

    Raises
    ------
    TypeError, ValueError
        One of these cannot be meant; the message names it.

    Notes
    -----
    Where a worker cannot share it says so in its log, and works as it would without.

    Examples
    --------
    >>> Plugin(capacity="2GiB")
    <Plugin Settings(capacity='2GiB', threshold=262144, when='auto', root=None, group=None)>
    """

    name = "shmstore"
    idempotent = True

    def __init__(
        self,
        *,
        capacity: int | str | None = None,
        threshold: int | str = DEFAULT_THRESHOLD,
        when: str = "auto",
        root: str | None = None,
        group: str | int | None = None,
    ) -> None:
        if when not in WHEN:
            message = f"when={when!r}: give one of {', '.join(WHEN)}"
            raise ValueError(message)
        Options(capacity=capacity, root=root, group=group)
        self.settings = Settings(capacity, _nbytes_of(threshold), when, root, group)

    async def setup(self, worker: distributed.Worker) -> None:
        """Begin."""
        await _joining.join(worker, self.settings)

    def teardown(self, worker: distributed.Worker) -> None:
        """End."""
        _joining.leave(worker)

    def __repr__(self) -> str:
        return f"<Plugin {self.settings}>"


def _nbytes_of(threshold: int | str) -> int:
    try:
        nbytes = int(parse_bytes(threshold))
    except (AttributeError, TypeError, ValueError):
        nbytes = -1
    if nbytes < 0:
        message = f"threshold={threshold!r}: give bytes, an int from 0 on or text like '256KiB'"
        raise ValueError(message)
    return max(nbytes, SMALLEST_NBYTES)


class Worker(distributed.Worker):  # type: ignore[misc]
    """A worker that shares; for ``dask worker --worker-class``.

    Parameters
    ----------
    plugins
        As there; without a `Plugin` among them there will be one with its defaults.
    """

    def __init__(self, *args: Any, plugins: Any = (), **kwargs: Any) -> None:
        if not any(isinstance(each, Plugin) for each in plugins):
            plugins = (*plugins, Plugin())
        super().__init__(*args, plugins=plugins, **kwargs)


class SharingNanny(Nanny):  # type: ignore[misc]
    """A nanny for workers that share: their shared memory is not counted once for each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _joining.watch_own_memory(self)


class LocalCluster(distributed.LocalCluster):  # type: ignore[misc]
    """The cluster of `distributed`, whose workers hold one copy of each large result.

    Parameters
    ----------
    *args, **kwargs
        As there.
    capacity, threshold, when, root, group
        As in `Plugin`.

    Examples
    --------
    >>> from shmstore.integrations.dask import LocalCluster  # doctest: +SKIP
    >>> with LocalCluster(n_workers=4) as cluster, cluster.get_client() as client:
    ...     client.submit(sum, [1, 2]).result()  # doctest: +SKIP
    3
    """

    def __init__(
        self,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        given = Settings._fields & kwargs.keys()
        plugin = Plugin(**{name: kwargs.pop(name) for name in given})
        kwargs["plugins"] = (*kwargs.get("plugins", ()), plugin)
        if kwargs.get("worker_class") is None and kwargs.get("processes", True) is not False:
            kwargs["worker_class"] = SharingNanny
        self._settings = plugin.settings
        super().__init__(*args, **kwargs)

    async def _close(self) -> None:
        await super()._close()
        # Workers that had to be killed could not remove what was theirs.
        with contextlib.suppress(ShmStoreError, OSError):
            settings = self._settings
            prune(settings.root, group=settings.group, lock_timeout=LOCK_TIMEOUT_S)


def install(client: Client, **options: Any) -> None:
    """Let the workers of a running cluster share, also those that come later.

    Parameters
    ----------
    client
        Of the cluster; it waits until the workers have been told.
    **options
        As for `Plugin`.
    """
    client.register_plugin(Plugin(**options))


@contextlib.contextmanager
def joining(client: Client, **options: Any) -> Iterator[None]:
    """Let a client take part that runs on the host of workers, as long as the block lasts.

    What it gathers or scatters with ``direct=True`` then goes without its data, if it was made with
    ``serializers=FAMILIES, deserializers=FAMILIES``; all workers it talks to must share.

    Parameters
    ----------
    client
        Of a cluster whose workers share.
    **options
        As for `Plugin`.
    """
    name = _joining.store_name(client.scheduler_info(n_workers=0)["id"])
    exchange = _exchange.join(name, Plugin(**options).settings, client.id)
    given = client.rpc.connection_args
    overrides = {**given.get("handshake_overrides", {}), HANDSHAKE: exchange.domain}
    client.rpc.connection_args = {**given, "handshake_overrides": overrides}
    try:
        yield
    finally:
        client.rpc.connection_args = given
        exchange.leave(client.id)


async def dask_setup(server: Any) -> None:
    """Begin in whatever process of a cluster was started with ``--preload`` of this package."""
    if isinstance(server, distributed.Worker):
        await _joining.join(server, Settings())
    elif isinstance(server, Nanny):
        _joining.watch_own_memory(server)
    elif isinstance(server, Scheduler):
        add_to(server)


def dask_teardown(server: Any) -> None:
    """End what `dask_setup` began."""
    if isinstance(server, distributed.Worker):
        _joining.leave(server)
