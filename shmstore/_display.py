"""How does a store look in a notebook?

Each function returns HTML and raises nothing: what cannot be told, since a store is closed or
damaged, is said in its place. No lock is taken, so that a store whose lock is stuck is shown too.

Concurrency: what is shown is from about one moment.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import numpy as np

from shmstore import _page
from shmstore.serialization.hypertext import FREE, Patch, Share, bar, box, table, text

if TYPE_CHECKING:
    from shmstore._info import FullReport, ObjectInfo, StoreStats
    from shmstore._metrics import Metrics
    from shmstore._ref import ObjectRef
    from shmstore._session import Session
    from shmstore._surveying import Survey

    # How a store is looked at: `_surveying.take`.
    Look = Callable[[Session], Survey]

Given = ParamSpec("Given")

_USED: Final = "#4c78a8"
_PINNED: Final = "#54a24b"
_DELETED: Final = "#e45756"
_HALF_MADE: Final = "#d9a400"

_CELLS: Final = 240
_FAINTEST: Final = 0.25
_MOST_ROWS: Final = 6


def never_raises(show: Callable[Given, str]) -> Callable[Given, str]:
    """Return a function that shows an exception instead of raising it."""

    def shown(*args: Given.args, **kwargs: Given.kwargs) -> str:
        try:
            return show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a notebook shows what it can
            return box(text(type(error).__name__), text(error, 400))

    return shown


# --- a store -------------------------------------------------------------------------------------


@never_raises
def of_store(live: Callable[[], Session], look: Look) -> str:
    """Return what lies where in a store, and its largest objects; `live` gives its session."""
    session = live()
    survey = look(session)
    there = np.isin(survey.state, ["object", "spilled"])
    used, capacity = int(survey.nbytes.sum()), survey.capacity
    objects = _page.plural(int(there.sum()), "object")
    clients = _page.plural(len(survey.clients), "process", "processes")
    share = f"{_page.nbytes(used)} of {_page.nbytes(capacity)}"
    rows = np.flatnonzero(there)
    rows = rows[np.argsort(-survey.data_nbytes[rows], kind="stable")][:_MOST_ROWS]
    more = int(there.sum()) - len(rows)
    return box(
        f"Store {text(session.path.name)}",
        f'<span style="opacity:.7">{text(session.path, 200)}</span>',
        f"{objects}, {share} used, {clients}",
        bar(list(_kinds(survey)), list(_patches(survey))),
        table(
            ("key", "type", "bytes", "views", "age"),
            [_object_row(info, survey, row) for info, row in _infos(survey, rows)],
            numbers=(2, 3, 4),
        ),
        f"and {more:,} more" if more and len(rows) else "",
        *[text(problem, 200) for problem in survey.problems[:3]],
    )


def _infos(survey: Survey, rows: Any) -> Iterator[tuple[ObjectInfo, int]]:
    for row in rows.tolist():
        for info in survey.infos([row]):
            yield info, row


def _object_row(info: ObjectInfo, survey: Survey, row: int) -> tuple[str, ...]:
    key = "" if info.key is None else info.key
    views = int(survey.views[row])
    size = _page.nbytes(info.nbytes) + (" in a file" if info.spilled else "")
    return key, info.type, size, str(views) if views else "", _page.span(info.age)


def _kind_masks(survey: Survey) -> list[tuple[str, str, Any]]:
    deleted, half_made = survey.state == "deleted", survey.state == "half-made"
    live = ~(deleted | half_made)
    return [
        ("used", _USED, live & (survey.views == 0)),
        ("looked at", _PINNED, live & (survey.views > 0)),
        ("deleted", _DELETED, deleted),
        ("half-made", _HALF_MADE, half_made),
    ]


def _kinds(survey: Survey) -> Iterator[Share]:
    used = 0
    for name, colour, mask in _kind_masks(survey):
        nbytes = int(survey.nbytes[mask].sum())
        used += nbytes
        if nbytes:
            yield Share(name, colour, nbytes / survey.capacity, _page.nbytes(nbytes))
    free = max(0, survey.capacity - used)
    yield Share("free", FREE, free / survey.capacity, _page.nbytes(free))


def _patches(survey: Survey) -> Iterator[Patch]:
    """Yield a patch for each part of the segment that holds something: the stronger, the more."""
    edges = np.linspace(0, survey.capacity, _CELLS + 1)
    for _, colour, mask in _kind_masks(survey):
        rows = np.flatnonzero(mask & (survey.nbytes > 0))
        rows = rows[np.argsort(survey.offset[rows], kind="stable")]
        shares = np.diff(_bytes_below(survey.offset[rows], survey.nbytes[rows], edges))
        shares = np.clip(shares * _CELLS / survey.capacity, 0, 1)
        for cell in np.flatnonzero(shares > 0).tolist():
            strength = _FAINTEST + (1 - _FAINTEST) * float(shares[cell])
            yield Patch(cell / _CELLS, (cell + 1) / _CELLS, colour, strength)


def _bytes_below(offset: Any, nbytes: Any, edges: Any) -> Any:
    """Return how many bytes of extents, lowest first, lie below each edge."""
    if not len(offset):
        return np.zeros(len(edges))
    before = np.concatenate([np.zeros(1), np.cumsum(nbytes)])
    at = np.searchsorted(offset, edges, side="right")
    last = np.maximum(at - 1, 0)
    inside = np.clip(edges - offset[last], 0, nbytes[last])
    return np.where(at > 0, before[last] + inside, 0.0)


# --- what is told of it --------------------------------------------------------------------------


@never_raises
def of_stats(stats: StoreStats) -> str:
    """Return the sums over a store."""
    deleted = min(stats.reclaimable, stats.used)
    parts = (
        ("used", _USED, stats.used - deleted),
        ("deleted", _DELETED, deleted),
        ("free", FREE, stats.free),
    )
    shares = [
        Share(name, colour, size / max(1, stats.capacity), _page.nbytes(size))
        for name, colour, size in parts
        if size or name != "deleted"
    ]
    sizes = ("capacity", "used", "free", "pinned", "reclaimable", "largest_free", "spilled_nbytes")
    rows = [
        (name, _page.nbytes(value) if name in sizes else f"{value:,}")
        for name, value in vars(stats).items()
        if value or name in ("used", "objects")
    ]
    return box("StoreStats", bar(shares), table(("", ""), rows, numbers=(1,)))


@never_raises
def of_report(report: FullReport) -> str:
    """Return why a store is full, and what helps."""
    live = max(0, report.used - report.deleted_nbytes - report.half_made_nbytes)
    parts = (
        ("used", _USED, live),
        ("deleted", _DELETED, report.deleted_nbytes),
        ("half-made", _HALF_MADE, report.half_made_nbytes),
        ("free", FREE, report.free),
    )
    shares = [
        Share(name, colour, size / max(1, report.capacity), _page.nbytes(size))
        for name, colour, size in parts
        if size
    ]
    helps = "".join([f"<li>{text(remedy, 300)}</li>" for remedy in report.remedies])
    clients = [
        (
            _page.process(client.pid, client.name, own=client.own, alive=client.alive),
            _page.nbytes(client.nbytes),
            _page.nbytes(client.pinned_nbytes),
            "" if client.oldest_view is None else _page.span(time.time() - client.oldest_view),
        )
        for client in report.clients[:_MOST_ROWS]
    ]
    return box(
        text(report.reason, 300),
        f'<span style="opacity:.7">{text(report.path, 200)}</span>',
        bar(shares),
        table(("process", "has put", "looks at", "oldest view"), clients, numbers=(1, 2, 3)),
        f'<ol style="margin:4px 0;padding-left:1.6em">{helps}</ol>' if helps else "",
    )


@never_raises
def of_metrics(metrics: Metrics) -> str:
    """Return what was done with a store, a column per process."""
    columns = [metrics, *metrics.clients[:_MOST_ROWS]]
    names = ["all", *[f"pid {client.pid}" for client in metrics.clients[:_MOST_ROWS]]]
    rows = []
    for field in dataclasses.fields(metrics):
        values = [getattr(column, field.name, None) for column in columns]
        if field.name not in ("at", "clients") and any(values):
            rows.append((field.name, *[_count(field.name, value or 0) for value in values]))
    numbers = range(1, len(columns) + 1)
    return box("Metrics", table(("", *names), rows, numbers) or "nothing was done yet")


def _count(name: str, value: float) -> str:
    if name.endswith("nbytes"):
        return _page.nbytes(int(value))
    return f"{value:.3g} s" if name.endswith("_s") else f"{value:,}"


# --- an object -----------------------------------------------------------------------------------


@never_raises
def of_ref(session: Session | None, ref: ObjectRef, place: tuple[int, int], look: Look) -> str:
    """Return what is known of the object of a reference, as far as its store is open here."""
    rows: list[tuple[str, str]] = [("key", "" if ref.key is None else repr(ref.key))]
    rows.append(("bytes", f"{_page.nbytes(ref.nbytes)} ({ref.nbytes:,})"))
    if session is None:
        rows.append(("state", "its store is not open in this process"))
    else:
        rows += _facts(look(session), *place)
    return box(text(repr(ref).partition(" key=")[0].lstrip("<"), 200), table(("", ""), rows))


def _facts(survey: Survey, slot: int, generation: int) -> list[tuple[str, str]]:
    there = (survey.slot == slot) & (survey.generation == generation)
    rows = np.flatnonzero(there & np.isin(survey.state, ["object", "spilled"]))
    for info in survey.infos(rows):
        looked_at = ", ".join([f"pid {pid}" for pid in info.pinned_by])
        return [
            ("type", info.type),
            ("by", f"{info.serializer}, {_page.plural(info.frames, 'frame')}"),
            ("lies", "in a file" if info.spilled else "in memory"),
            ("put", f"{_page.span(info.age)} ago, by pid {info.owner_pid}"),
            ("looked at by", looked_at or "nobody"),
        ]
    return [("state", "deleted or overwritten")]
