"""How does a worker that runs begin to share, and end?

It joins the store of its cluster on its host, named after the scheduler. From then on its results
lie in a `SharedData`; it says in the handshakes of connections that it opens which store it has
open; it asks those for tickets that have the same store open, and nobody else: dask drops the
connection, and comes again for ever, when a family is asked for that the other side does not know.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from distributed import Nanny, Worker
from distributed.core import ConnectionPool, Status
from distributed.worker_memory import NannyMemoryManager
from tornado.ioloop import PeriodicCallback

from shmstore.errors import ShmStoreError
from shmstore.integrations.dask import _exchange
from shmstore.integrations.dask._exchange import Exchange, Settings, logger
from shmstore.integrations.dask._family import FAMILIES, HANDSHAKE
from shmstore.integrations.dask._page import ask_for_page
from shmstore.integrations.dask._resident import SharedData

_PERIODIC: Final = "shmstore"
_STATUS: Final = "/proc/{}/status"
_SHARED_PAGES: Final = re.compile(rb"^RssShmem:\s+(\d+) kB", re.MULTILINE)

# From whom a worker is gathering results, in the context of the task that does it.
_asked: Final[ContextVar[str | None]] = ContextVar("asked", default=None)


class Asking(ConnectionPool):  # type: ignore[misc]
    """The connections of a worker: which families it asks for depends on whom it asks."""

    exchange: Exchange | None = None

    @property
    def serializers(self) -> Any:
        return self._families()

    @serializers.setter
    def serializers(self, value: Any) -> None:
        self.__dict__["families"] = value

    @property
    def deserializers(self) -> Any:
        return self._families()

    @deserializers.setter
    def deserializers(self, value: Any) -> None:
        self.__dict__["families"] = value

    def _families(self) -> Any:
        given, address, exchange = self.__dict__["families"], _asked.get(), self.exchange
        if given is None and address is not None and exchange is not None:
            return FAMILIES if exchange.is_listening() and exchange.is_peer(address) else None
        return given


class Joined:
    """What was changed in a worker, to be taken back.

    Parameters
    ----------
    worker
        A worker that listens.
    exchange
        What it shares.
    """

    def __init__(self, worker: Worker, exchange: Exchange) -> None:
        self.exchange = exchange
        self.address = worker.address
        self._gather_dep: Any = worker.gather_dep
        self._measure: Callable[[], int] = worker.monitor.get_process_memory
        self._args = worker.rpc.connection_args
        self._share_results(worker)
        self._ask_for_tickets(worker)
        self._count_shared_once(worker)

    def _share_results(self, worker: Worker) -> None:
        data = worker.data
        if not isinstance(data, SharedData):
            data = SharedData(data)
            worker.memory_manager.data = worker.state.data = data
        data.exchange = self.exchange
        data.later = worker.loop.add_callback
        self.data = data

    def _ask_for_tickets(self, worker: Worker) -> None:
        pool: Any = worker.rpc
        given = pool.serializers
        if type(pool) is ConnectionPool:
            pool.__class__ = Asking
        pool.serializers = given
        pool.exchange = self.exchange
        overrides = {**self._args.get("handshake_overrides", {}), HANDSHAKE: self.exchange.domain}
        pool.connection_args = {**self._args, "handshake_overrides": overrides}
        pool.collect()  # connections that were opened without saying so
        gather_dep = self._gather_dep

        async def asking(address: str, *args: Any, **kwargs: Any) -> Any:
            token = _asked.set(address)
            try:
                return await gather_dep(address, *args, **kwargs)
            finally:
                _asked.reset(token)

        worker.gather_dep = asking

    def _count_shared_once(self, worker: Worker) -> None:
        measure, exchange = self._measure, self.exchange

        def process_memory() -> int:
            own = max(0, measure() - shared_nbytes_of("self"))
            return own + exchange.share_nbytes()

        worker.monitor.get_process_memory = process_memory
        worker.metrics["shmstore"] = lambda _: exchange.figures()
        callback = PeriodicCallback(exchange.tidy, _exchange.TIDY_S * 1000)
        worker.periodic_callbacks[_PERIODIC] = callback
        callback.start()

    def undo(self, worker: Worker) -> None:
        """Let the worker go on as if it had never joined."""
        worker.periodic_callbacks.pop(_PERIODIC).stop()
        worker.metrics.pop("shmstore", None)
        worker.monitor.get_process_memory = self._measure
        worker.gather_dep = self._gather_dep
        pool: Any = worker.rpc
        pool.exchange = None
        pool.connection_args = self._args
        if worker.status in (Status.running, Status.paused):
            self.data.unshare()
        else:
            self.data.clear()
            self.data.exchange = None
        self.exchange.leave(self.address)


joined: Final[weakref.WeakKeyDictionary[Worker, Joined]] = weakref.WeakKeyDictionary()


async def join(worker: Worker, settings: Settings) -> None:
    """Let a worker share. Where it cannot it works on as it is, and says why."""
    if worker in joined:
        return
    identity = await worker.scheduler.identity()
    name = store_name(identity["id"])
    try:
        exchange = _exchange.join(name, settings, worker.address)
    except (ShmStoreError, OSError) as error:
        logger.warning("%s shares nothing: %s", worker.address, str(error))
        return
    if worker not in joined:
        joined[worker] = Joined(worker, exchange)
        await ask_for_page(worker)


def leave(worker: Worker) -> None:
    """End what `join` began."""
    found = joined.pop(worker, None)
    if found is not None:
        with suppress(ShmStoreError, OSError):
            found.undo(worker)


def store_name(scheduler_id: str) -> str:
    """Return the name of the store of a cluster, the same on all its hosts."""
    return "dask-" + re.sub(r"[^A-Za-z0-9-]", "-", scheduler_id)[-50:]


# --- memory ------------------------------------------------------------------------------------


def shared_nbytes_of(pid: int | str) -> int:
    """Return the bytes of shared memory that a process has touched."""
    try:
        found = _SHARED_PAGES.search(Path(_STATUS.format(pid)).read_bytes())
    except OSError:
        return 0
    return 0 if found is None else int(found[1]) << 10


class NannyMemory(NannyMemoryManager):  # type: ignore[misc]
    """Watches the memory of a worker; what it shares with others is not its own."""

    def memory_monitor(self, nanny: Nanny) -> None:
        """Restart a worker that takes too much."""
        process = None if nanny.process is None else nanny.process.process
        pid = None if process is None else process.pid
        if pid is not None and self.memory_limit and self.memory_terminate_fraction:
            limit = self.memory_limit * self.memory_terminate_fraction
            if own_nbytes_of(pid) <= limit:
                return
        super().memory_monitor(nanny)


def own_nbytes_of(pid: int) -> int:
    """Return the bytes of memory that a process has for itself, about."""
    try:
        text = Path(_STATUS.format(pid)).read_bytes()
    except OSError:
        return 0
    sizes = dict(re.findall(rb"^(VmRSS|RssShmem):\s+(\d+) kB", text, re.MULTILINE))
    return (int(sizes.get(b"VmRSS", 0)) - int(sizes.get(b"RssShmem", 0))) << 10


def watch_own_memory(nanny: Nanny) -> None:
    """Let a nanny count what its worker has for itself."""
    limit = nanny.memory_manager.memory_limit
    running = nanny.periodic_callbacks.pop("memory_monitor", None)
    nanny.memory_manager = NannyMemory(nanny, memory_limit=limit or 0)
    if running is not None and running.is_running():
        running.stop()
        nanny.periodic_callbacks["memory_monitor"].start()
