"""How much does each host of a cluster hold for all its workers?

A page of the scheduler, ``/shmstore`` beside its dashboard, as JSON ``/shmstore.json``; and the
same from a client. The figures come with the heartbeats of the workers, and the first worker that
shares asks the scheduler for the page.
"""

from __future__ import annotations

import html
import logging
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from distributed import Client, Scheduler, SchedulerPlugin, Worker
from distributed.core import Status
from distributed.protocol.pickle import dumps
from tornado.web import Application, RequestHandler

logger = logging.getLogger("shmstore.dask")


class HostUse(NamedTuple):
    """What the workers that share one store have there.

    Attributes
    ----------
    host
        Where they run.
    workers
        Their addresses.
    used, capacity
        Bytes of the store that objects occupy, and that there are.
    held
        Bytes of what the workers hold, each counted by itself: what it would be without sharing.
    sent, received
        How many objects went between them without their data.
    """

    host: str
    workers: tuple[str, ...]
    used: int
    capacity: int
    held: int
    sent: int
    received: int


def _gather(found: Iterable[tuple[str, str, dict[str, Any]]]) -> list[HostUse]:
    """Put together what (address, host, figures) say."""
    stores: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for worker in found:
        stores.setdefault(worker[2]["domain"], []).append(worker)
    return [
        HostUse(
            workers[0][1],
            tuple(sorted(address for address, _, _ in workers)),
            max(figures["used"] for _, _, figures in workers),
            max(figures["capacity"] for _, _, figures in workers),
            *(sum(figures[name] for _, _, figures in workers) for name in _ADDED),
        )
        for workers in stores.values()
    ]


_ADDED = ("held", "sent", "received")


def shared_by_host(client: Client) -> list[HostUse]:
    """Return what each host of a cluster holds for all its workers."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return _gather(
        (address, each["host"], each["metrics"]["shmstore"])
        for address, each in workers.items()
        if "shmstore" in each["metrics"]
    )


class PagePlugin(SchedulerPlugin):  # type: ignore[misc]
    """Adds the page to a scheduler."""

    name = "shmstore-page"
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Add it."""
        add_to(scheduler)


async def ask_for_page(worker: Worker) -> None:
    """Let the scheduler of a worker have the page. It may be one without shmstore, or refuse."""
    plugin = PagePlugin()
    try:
        await worker.scheduler.register_scheduler_plugin(
            plugin=dumps(plugin), name=plugin.name, idempotent=True
        )
    except Exception as error:  # noqa: BLE001 - whatever the scheduler has raised
        logger.info("the scheduler shows no page of shared memory: %s", str(error))


_with_page: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def add_to(scheduler: Scheduler) -> None:
    """Add the page to a scheduler, once."""
    if scheduler.status == Status.running and scheduler not in _with_page:
        _with_page.add(scheduler)
        routes = [(rf"/{name}", page, {"scheduler": scheduler}) for name, page in _PAGES.items()]
        scheduler.http_application.add_application(Application(routes))


class _Figures(RequestHandler):  # type: ignore[misc]
    """The figures as JSON."""

    def initialize(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def figures(self) -> list[HostUse]:
        workers = self.scheduler.workers.values()
        return _gather(
            (each.address, each.host, each.metrics["shmstore"])
            for each in workers
            if "shmstore" in each.metrics
        )

    def get(self) -> None:
        self.write({"hosts": [each._asdict() for each in self.figures()]})


class _Page(_Figures):
    """The figures as a table that renews itself."""

    def get(self) -> None:
        rows = "".join(_row(each) for each in self.figures())
        self.write(_PAGE.format(rows=rows or "<tr><td colspan=6>no worker shares</td></tr>"))


_PAGES: dict[str, type[_Figures]] = {"shmstore": _Page, "shmstore.json": _Figures}

_PAGE = """<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>shared memory</title>
<style>body{{font:14px sans-serif}}td,th{{padding:4px 12px;text-align:right}}</style>
<h1>Shared memory</h1><table><tr><th>host<th>workers<th>in the store<th>of
<th>held by the workers<th>sent without data</tr>{rows}</table>
"""


def _row(each: HostUse) -> str:
    cells = (
        html.escape(each.host),
        f"{len(each.workers)}",
        *(f"{nbytes / 2**20:,.1f} MiB" for nbytes in (each.used, each.capacity, each.held)),
        f"{each.received:,}",
    )
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"
