"""What is there: `ls`, `info`, `objects`, `clients`, `pins`."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import shmstore
from shmstore.cli import _stores, _words
from shmstore.cli._output import Column, Output, Row, note

_AT_ONCE: Final = 500
_PRESENT: Final = ("object", "spilled")

STORES: Final = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("capacity", "CAPACITY", "size"),
    Column("used", "USED", "size"),
    Column("share", "USE%", "share"),
    Column("objects", "OBJECTS", "count"),
    Column("clients", "CLIENTS", "count"),
    Column("created", "AGE", "age"),
    Column("owner", "OWNER"),
    Column("notes", "NOTES"),
)
OBJECTS: Final = (
    Column("id", "ID"),
    Column("nbytes", "SIZE", "size"),
    Column("stored_nbytes", "STORED", "size"),
    Column("created", "AGE", "age"),
    Column("pid", "PID", "number"),
    Column("views", "VIEWS", "count"),
    Column("state", "STATE"),
    Column("type", "TYPE"),
    Column("key", "KEY"),
)
CLIENTS: Final = (
    Column("pid", "PID", "number"),
    Column("state", "STATE"),
    Column("mode", "MODE"),
    Column("attached", "ATTACHED", "age"),
    Column("pins", "VIEWS", "count"),
    Column("pinned_nbytes", "PINNED", "size"),
    Column("oldest_pin", "OLDEST", "age"),
    Column("command", "PROCESS"),
)
PINS: Final = (
    Column("id", "ID"),
    Column("nbytes", "SIZE", "size"),
    Column("object", "OBJECT"),
    Column("type", "TYPE"),
    Column("pid", "PID", "number"),
    Column("process", "PROCESS"),
    Column("state", "STATE"),
    Column("views", "VIEWS", "count"),
    Column("since", "OLDEST", "age"),
    Column("sites", "WHERE"),
    Column("key", "KEY"),
)
INFO: Final = (
    Column("name", "name"),
    Column("path", "path"),
    Column("state", "state"),
    Column("problem", "problem"),
    Column("owner", "owner"),
    Column("created", "created", "moment"),
    Column("creator_pid", "created by pid", "number"),
    Column("options", "options"),
    Column("capacity", "capacity", "size"),
    Column("used", "used", "size"),
    Column("share", "used share", "share"),
    Column("free", "free", "size"),
    Column("largest_free", "largest free", "size"),
    Column("pinned", "looked at", "size"),
    Column("reclaimable", "deleted, kept", "size"),
    Column("resident", "resident", "size"),
    Column("objects", "objects", "count"),
    Column("named", "with a key", "count"),
    Column("max_objects", "room for", "count"),
    Column("spilled", "spilled", "count"),
    Column("spilled_nbytes", "spilled size", "size"),
    Column("clients", "clients", "count"),
    Column("dead", "dead clients", "count"),
    Column("evictions", "evictions", "count"),
    Column("expirations", "expirations", "count"),
    Column("spills", "spills", "count"),
    Column("restores", "restores", "count"),
)

# What is told only where it is not zero.
_RARE: Final = ("dead", "evictions", "expirations", "spills", "restores", "spilled")


# --- ls ------------------------------------------------------------------------------------------


def ls(arguments: argparse.Namespace, output: Output) -> int:
    """List the stores; 1 when one of them is damaged."""
    pattern = arguments.pattern or "*"
    found = [s for s in _stores.summaries(arguments) if fnmatch.fnmatch(s.name, pattern)]
    output.table(STORES, [_row_of_store(summary) for summary in found])
    if not (found or output.as_json):
        note(f"no stores {'like ' + pattern if arguments.pattern else 'yet'}")
    damaged = [summary for summary in found if summary.problem]
    for summary in damaged:
        note(f"shmstore: {summary.name}: {_words.clean(summary.problem)}")
    return int(bool(damaged))


def _row_of_store(summary: shmstore.StoreSummary) -> dict[str, Any]:
    row = dataclasses.asdict(summary)
    row["state"] = summary.state
    row["share"] = summary.used / summary.capacity if summary.capacity else None
    row["owner"] = _user(summary.owner)
    row["notes"] = ",".join(_notes(summary))
    if summary.problem:
        row |= dict.fromkeys(("capacity", "used", "objects", "clients", "created"))
    return row


def _notes(summary: shmstore.StoreSummary) -> Iterator[str]:
    if summary.persist:
        yield "persist"
    if summary.on_full != "raise":
        yield summary.on_full
    if summary.group is not None:
        yield f"group={summary.group}"
    if summary.dead:
        yield f"dead-clients={summary.dead}"


def _user(number: int) -> str:
    import pwd  # noqa: PLC0415 - of those who list stores only

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


# --- info ----------------------------------------------------------------------------------------


def info(arguments: argparse.Namespace, output: Output) -> int:
    """Tell what is known of a store; 1 when it is damaged or cannot be asked."""
    summary = _stores.summary_of(arguments)
    row = {} if summary is None else _row_of_store(summary)
    row["options"] = row.pop("notes", "") or "-"
    try:
        with _stores.looked_at(arguments) as store:
            if arguments.why is not None:
                return _why(store, arguments.why, output)
            stats = dataclasses.asdict(store.stats())
            problems = store.survey().problems
            row |= stats
            row["share"] = stats["used"] / stats["capacity"]
            row["state"] = "damaged" if problems else row["state"]
    except shmstore.ShmStoreError as error:
        if summary is None:
            raise
        problems = (str(error),)
        if isinstance(error, shmstore.CorruptStoreError):
            row["state"] = "damaged"
    row["problem"] = "; ".join(map(_words.clean, problems))
    for field in _RARE:
        if not output.as_json and not row.get(field):
            row.pop(field, None)
    output.record(INFO, row)
    return int(bool(problems))


def _why(store: shmstore.Store, asked: str, output: Output) -> int:
    report = store.why_full(asked or None)
    if output.as_json:
        output.json(report)
    else:
        output.lines([_words.clean(line) for line in str(report).splitlines()])
    return 0


# --- objects -------------------------------------------------------------------------------------


def objects(arguments: argparse.Namespace, output: Output) -> int:
    """List objects; 1 when one of those that were looked at is damaged."""
    with _stores.looked_at(arguments) as store:
        survey = store.survey()
        rows = _chosen(survey, arguments)
        total = len(rows)
        found = list(_found(survey, rows, arguments))
    output.table(OBJECTS, found)
    if len(found) == arguments.limit < total and not output.as_json:
        note(f"{len(found):,} of {total:,} shown; --limit 0 shows all")
    return int(any(row["type"] == "damaged" for row in found))


def _chosen(survey: shmstore.Survey, arguments: argparse.Namespace) -> npt.NDArray[np.intp]:
    """Return the rows that the columns of the survey let through, in the order asked for."""
    kept = np.ones(len(survey), bool)
    if not arguments.all:
        kept = np.isin(survey.state, _PRESENT) & ~survey.expired
    if arguments.min_size is not None:
        kept &= survey.data_nbytes >= arguments.min_size
    if arguments.older_than is not None:
        kept &= survey.created <= time.time() - arguments.older_than
    if arguments.pinned:
        kept &= survey.views > 0
    if arguments.pid is not None:
        kept &= survey.pid == arguments.pid
    rows = np.flatnonzero(kept)
    keys = _KEYS.get(arguments.sort)
    if keys is not None:
        rows = rows[np.argsort(keys(survey)[rows], kind="stable")]
        rows = rows[::-1] if arguments.reverse else rows
    return rows


_KEYS: Final[dict[str, Callable[[shmstore.Survey], npt.NDArray[Any]]]] = {
    "size": lambda survey: -survey.data_nbytes,
    "stored": lambda survey: -survey.nbytes,
    "age": lambda survey: survey.generation,
    "views": lambda survey: -survey.views,
    "pid": lambda survey: survey.pid,
}


def _found(
    survey: shmstore.Survey, rows: npt.NDArray[np.intp], arguments: argparse.Namespace
) -> Sequence[dict[str, Any]]:
    """Return the objects of some rows that pass by key and type, as many as are asked for."""
    limit = arguments.limit or len(rows)
    if arguments.sort in _KEYS:
        found: list[dict[str, Any]] = []
        for row in _passing(survey, rows, arguments):
            if len(found) == limit:
                break
            found.append(row)
        return found
    everything = sorted(
        _passing(survey, rows, arguments),
        key=lambda row: (row[arguments.sort] is None, row[arguments.sort] or ""),
        reverse=arguments.reverse,
    )
    return everything[:limit]


def _passing(
    survey: shmstore.Survey, rows: npt.NDArray[np.intp], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), _AT_ONCE):
        for row in described(survey, rows[start : start + _AT_ONCE]):
            fits = arguments.match is None or fnmatch.fnmatch(row["key"] or "", arguments.match)
            if fits and (arguments.type is None or arguments.type in row["type"]):
                yield row


def described(survey: shmstore.Survey, rows: npt.NDArray[np.intp]) -> list[dict[str, Any]]:
    """Return what the columns for objects show of some rows, and more for programs."""
    places = {(int(survey.slot[at]), int(survey.generation[at])): int(at) for at in rows}
    return [
        {
            "id": _stores.id_of(found.slot, found.generation),
            "key": found.key,
            "type": found.type,
            "state": _state(survey, places[found.slot, found.generation]),
            "nbytes": found.nbytes,
            "stored_nbytes": found.stored_nbytes,
            "created": found.created,
            "expires": found.expires,
            "pid": found.owner_pid,
            "views": int(survey.views[places[found.slot, found.generation]]),
            "pinned_by": found.pinned_by,
            "serializer": found.serializer,
            "frames": found.frames,
            "queue": found.queue,
        }
        for found in survey.infos(rows.tolist())
    ]


def _state(survey: shmstore.Survey, at: int) -> str:
    return "expired" if survey.expired[at] else str(survey.state[at])


# --- clients and pins ----------------------------------------------------------------------------


def clients(arguments: argparse.Namespace, output: Output) -> int:
    """List the attached processes; 1 when a seat cannot be read."""
    with _stores.looked_at(arguments) as store:
        survey = store.survey()
    rows = [_row_of_client(client) for client in survey.clients]
    output.table(CLIENTS, rows)
    return _tell(survey.problems)


def _row_of_client(client: shmstore.ClientInfo) -> Row:
    row = dataclasses.asdict(client)
    row["state"] = "alive" if client.alive else "dead"
    row["command"] = _words.command(client.pid, client.name)
    row["mode"] = "read-only" if client.readonly else "read-write"
    return row


def pins(arguments: argparse.Namespace, output: Output) -> int:
    """List who looks at what, the largest objects first; 1 when a seat cannot be read."""
    with _stores.looked_at(arguments) as store:
        survey = store.survey()
        rows = np.flatnonzero(survey.views)
        rows = rows[np.argsort(-survey.nbytes[rows], kind="stable")]
        if arguments.key is not None:
            rows = np.intersect1d(rows, _rows_of(store, survey, arguments.key))
        found = _rows_of_pins(survey, rows, arguments.limit)
    output.table(PINS, found)
    if not (found or output.as_json):
        note("nobody looks at anything")
    return _tell(survey.problems)


def _rows_of(store: shmstore.Store, survey: shmstore.Survey, key: str) -> npt.NDArray[np.intp]:
    known = store.info(_stores.target_of(store, key))
    return np.flatnonzero(survey.generation == known.generation)


def _rows_of_pins(
    survey: shmstore.Survey, rows: npt.NDArray[np.intp], limit: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at in rows:
        for row in described(survey, np.array([at])):
            found += [_row_of_pin(row, pin) for pin in survey.who_pins(int(at))]
        if limit and len(found) >= limit:
            note(f"{limit:,} shown of {len(rows):,} objects; --limit 0 shows all")
            return found[:limit]
    return found


def _row_of_pin(row: Row, pin: shmstore.PinInfo) -> dict[str, Any]:
    sites = sorted(pin.sites.items(), key=lambda item: -item[1])
    return {
        "id": row["id"],
        "key": row["key"],
        "type": row["type"],
        "object": row["state"],
        "nbytes": row["stored_nbytes"] or row["nbytes"],
        "pid": pin.pid,
        "process": _words.command(pin.pid, pin.name),
        "state": "alive" if pin.alive else "dead",
        "views": pin.views,
        "since": pin.since,
        "sites": "; ".join(f"{count}x {site}" for site, count in sites),
    }


def _tell(problems: Sequence[str]) -> int:
    for problem in problems:
        note(f"shmstore: {_words.clean(problem)}")
    return int(bool(problems))
