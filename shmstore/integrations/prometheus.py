"""How does Prometheus see what happens in stores?

>>> import shmstore
>>> from prometheus_client import CollectorRegistry
>>> from shmstore.integrations.prometheus import StoreCollector
>>> registry = CollectorRegistry()
>>> with shmstore.Store.create("shown", capacity="1MiB") as store:
...     store["word"] = "kept"
...     registry.register(StoreCollector(store))
...     registry.get_sample_value("shmstore_puts_total", {"store": "shown"})
1.0

Concurrency: a collector may be asked by several threads at once. It reads what the processes have
told (see `Store.metrics`), under the store lock for some microseconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import shmstore

# Whoever asks may not wait for long.
_LOCK_TIMEOUT_S: Final = 5.0


class _Family(NamedTuple):
    """One family of samples: its name, where its value stands, and what it means."""

    name: str
    field: str
    text: str


_COUNTERS: Final = (
    _Family("shmstore_puts", "puts", "Objects that were put."),
    _Family("shmstore_put_bytes", "put_nbytes", "Bytes of the objects that were put."),
    _Family("shmstore_gets", "gets", "Objects that were got."),
    _Family("shmstore_got_bytes", "got_nbytes", "Bytes of the objects that were got."),
    _Family("shmstore_deletes", "deletes", "Objects that were deleted."),
    _Family("shmstore_waits", "waits", "How often a process slept to wait for others."),
    _Family("shmstore_lock_waits", "lock_waits", "How often the store lock was not free."),
    _Family("shmstore_lock_wait_seconds", "lock_wait_s", "Seconds waited for the store lock."),
    _Family("shmstore_evictions", "evictions", "Objects that were evicted."),
    _Family("shmstore_expirations", "expirations", "Objects that have expired."),
    _Family("shmstore_spills", "spills", "Objects that went to a file."),
    _Family("shmstore_restores", "restores", "Objects that came back from a file."),
)
_GAUGES: Final = (
    _Family("shmstore_capacity_bytes", "capacity", "Bytes for objects."),
    _Family("shmstore_used_bytes", "used", "Bytes in use."),
    _Family("shmstore_pinned_bytes", "pinned", "Bytes that some process looks at."),
    _Family("shmstore_reclaimable_bytes", "reclaimable", "Bytes of deleted objects."),
    _Family("shmstore_largest_free_bytes", "largest_free", "The largest object there is room for."),
    _Family("shmstore_objects", "objects", "Objects that can be got."),
    _Family("shmstore_named_objects", "named", "Objects that have a key."),
    _Family("shmstore_max_objects", "max_objects", "How many objects there may be."),
    _Family("shmstore_spilled_objects", "spilled", "Objects that lie in files."),
    _Family("shmstore_spilled_bytes", "spilled_nbytes", "Bytes of these files."),
    _Family("shmstore_clients", "clients", "Attached processes."),
)
_UP: Final = _Family("shmstore_up", "", "Whether the store can be read.")
_LABELS: Final = ("store",)


class StoreCollector(Collector):  # type: ignore[misc]
    """The metrics of stores, for a `prometheus_client.CollectorRegistry`.

    Parameters
    ----------
    *stores
        Handles, which stay the caller's, or names. None at all: each store of the root, whichever
        these are when they are asked for.
    root, group
        Where stores lie that are given by name; see `shmstore.Options`.

    Notes
    -----
    A store that is given by name is looked at from outside, each time (`Store.look`): the collector
    does not keep it alive, and is none of its clients. What cannot be read has ``shmstore_up`` 0
    and no other sample.
    """

    def __init__(
        self,
        *stores: shmstore.Store | str,
        root: str | os.PathLike[str] | None = None,
        group: str | int | None = None,
    ) -> None:
        self._stores = stores
        self._root = root
        self._group = group

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples: a registry wants to know their names."""
        return self._families(())

    def collect(self) -> Iterable[Metric]:
        """Ask every store; return the families with a sample for each."""
        return self._families(list(self._ask_all()))

    def _families(self, found: Iterable[tuple[str, dict[str, float] | None]]) -> list[Metric]:
        families: list[Metric] = []
        for kind, many in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, (*_GAUGES, _UP))):
            for name, field, text in many:
                family: Any = kind(name, text, labels=_LABELS)
                for store, values in found:
                    if not field:
                        family.add_metric([store], float(values is not None))
                    elif values is not None:
                        family.add_metric([store], float(values[field]))
                families.append(family)
        return families

    def _ask_all(self) -> Iterator[tuple[str, dict[str, float] | None]]:
        for store in self._stores or self._names():
            if isinstance(store, str):
                yield store, self._look(store)
            elif not store.closed:
                yield store.name, _ask(store)

    def _names(self) -> list[str]:
        return [found.name for found in shmstore.stores(self._root, group=self._group)]

    def _look(self, name: str) -> dict[str, float] | None:
        where: dict[str, Any] = {"root": self._root, "group": self._group}
        try:
            with shmstore.Store.look(name, **where, lock_timeout=_LOCK_TIMEOUT_S) as store:
                return _ask(store)
        except (shmstore.ShmStoreError, OSError):
            return None


def _ask(store: shmstore.Store) -> dict[str, float] | None:
    try:
        metrics = store.metrics()
        living = sum(client.alive for client in metrics.clients)
        return vars(store.stats()) | vars(metrics) | {"clients": living}
    except (shmstore.ShmStoreError, OSError):
        return None


class Exporter:
    """A server of metrics, as `start_http_server` returns it; a context manager that ends it.

    Attributes
    ----------
    port
        Where it listens.
    """

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = server.server_port

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def start_http_server(
    port: int = 0,
    addr: str = "127.0.0.1",
    *stores: shmstore.Store | str,
    root: str | os.PathLike[str] | None = None,
    group: str | int | None = None,
) -> Exporter:
    """Serve the metrics of stores from a thread of this process.

    Parameters
    ----------
    port
        0: any that is free.
    addr
        Where to listen; the default is this machine only.
    *stores, root, group
        As for `StoreCollector`.

    Returns
    -------
    Exporter
    """
    registry = prometheus_client.CollectorRegistry()
    registry.register(StoreCollector(*stores, root=root, group=group))
    server, thread = prometheus_client.start_http_server(port, addr, registry)
    return Exporter(server, thread)
