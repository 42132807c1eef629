"""Clusters of dask in one process or in many: what their tests share."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
from distributed import Client, Scheduler

from shmstore.integrations import dask as sharing
from shmstore.integrations.dask._exchange import Exchange, exchanges

LARGE = 1 << 18  # elements: 2 MiB of doubles
CAPACITY = 256 << 20


class Small:
    """A cluster whose workers are threads of this process; they talk over TCP all the same.

    Workers that are to be on different hosts get different roots: then they have different stores.
    """

    def __init__(self, scheduler: Scheduler, workers: list[Any], client: Client) -> None:
        self.scheduler = scheduler
        self.workers = workers
        self.client = client

    def address(self, number: int) -> str:
        """Return where a worker listens."""
        return str(self.workers[number].address)

    async def on(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        """Let a worker do something; return the future when it is done."""
        future = self.client.submit(function, *args, workers=[self.address(number)], pure=False)
        await distributed.wait(future)
        return future

    def exchange(self) -> Exchange:
        """Return the only exchange."""
        [exchange] = exchanges.values()
        return exchange


def plugin(root: Path, **options: Any) -> sharing.Plugin:
    """Return a plugin whose stores lie in a root of its own."""
    root.mkdir(mode=0o700, exist_ok=True)
    return sharing.Plugin(root=str(root), capacity=CAPACITY, **options)


@contextlib.asynccontextmanager
async def small(*plugins: sharing.Plugin | None, **options: Any) -> AsyncIterator[Small]:
    """Give a cluster with a worker for each plugin; None: it does not share."""
    async with Scheduler(
        host="127.0.0.1", port=0, dashboard=False, dashboard_address=":0"
    ) as scheduler:
        workers: list[Any] = []
        async with contextlib.AsyncExitStack() as stack:
            for each in plugins:
                worker = distributed.Worker(
                    scheduler.address,
                    nthreads=1,
                    host="127.0.0.1",
                    plugins=() if each is None else (each,),
                    memory_limit=0,
                )
                workers.append(await stack.enter_async_context(worker))
            client = Client(scheduler.address, asynchronous=True, **options)
            await stack.enter_async_context(client)
            yield Small(scheduler, workers, client)


def run(work: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    """Run a coroutine to its end, which must come."""

    async def limited() -> Any:
        return await asyncio.wait_for(asyncio.ensure_future(work()), seconds)

    return asyncio.run(limited())


@pytest.fixture
def host(root: Path) -> Iterator[Callable[[str], Path]]:
    """Give a function that makes the root of another host; it is left empty."""
    made: list[Path] = []

    def make_root(name: str) -> Path:
        path = root / name
        path.mkdir(mode=0o700)
        made.append(path)
        return path

    yield make_root
    gc.collect()
    for path in made:
        if path.exists():
            path.rmdir()


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """Let dask say nothing of what tests do to it on purpose; check that it could."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


# --- what workers are asked to do -----------------------------------------------------------------


def make(value: float = 1.0) -> np.ndarray:
    """Return a large array."""
    return np.full(LARGE, value)


def total(array: np.ndarray) -> float:
    """Add up."""
    return float(array.sum())


def spoil(array: np.ndarray) -> float:
    """Write to the argument, as tasks should not and do."""
    array += 1
    return float(array.sum())


def spoiled(array: np.ndarray) -> np.ndarray:
    """Write to the argument and return it, as tasks should not and do."""
    array += 1
    return array
