"""What looks after stores: `check`, `recover`, `prune`, `create`, `rm-store`."""

from __future__ import annotations

import argparse
from typing import Any, Final

import shmstore
from shmstore.cli import _stores, _words
from shmstore.cli._errors import CommandError, UsageError
from shmstore.cli._output import Column, Output, note

FINDINGS: Final = (
    Column("store", "STORE"),
    Column("invariant", "INVARIANT", "number"),
    Column("offset", "OFFSET", "number"),
    Column("message", "FINDING"),
)
RECOVERED: Final = (
    Column("clients", "dead clients", "count"),
    Column("puts", "half-made puts", "count"),
    Column("nbytes", "given back", "size"),
    Column("objects", "objects given up", "count"),
)
NAMES: Final = (Column("name", "NAME"), Column("done", "DONE"))


def check(arguments: argparse.Namespace, output: Output) -> int:
    """Check some stores, or all; 1 when anything is found."""
    names = arguments.stores or [summary.name for summary in _stores.summaries(arguments)]
    rows: list[dict[str, Any]] = []
    sound = []
    for name in names:
        found = _findings(argparse.Namespace(**{**vars(arguments), "store": name}))
        rows += found
        sound += [] if found else [name]
    if rows or output.as_json:
        output.table(FINDINGS, rows)
    if not output.as_json:
        for name in sound:
            output.styled(f"[green]ok[/green]  {name}", f"ok  {name}")
    if rows:
        note("`shmstore recover STORE` repairs what can be repaired, and gives up the rest")
    return int(bool(rows))


def _findings(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        opened = _stores.viewed if arguments.deep else _stores.looked_at
        with opened(arguments) as store:
            found = store.check(deep=arguments.deep)
    except (shmstore.CorruptStoreError, shmstore.NotAStoreError) as error:
        offset, path = error.facts.get("offset"), error.facts.get("path", "")
        row = {"store": arguments.store, "invariant": None, "message": str(error)}
        return [{**row, "offset": offset, "path": path}]
    return [
        {
            "store": store_name(arguments.store),
            "invariant": finding.invariant,
            "offset": finding.offset,
            "path": finding.path,
            "message": finding.message,
        }
        for finding in found
    ]


def store_name(text: str) -> str:
    """Return the name in a name or a path."""
    return text.rstrip("/").rpartition("/")[2]


def recover(arguments: argparse.Namespace, output: Output) -> int:
    """Recover a store."""
    with _stores.changed(arguments) as store:
        done = store.recover()
        left = store.check()
    row = {name: getattr(done, name) for name in ("clients", "puts", "nbytes", "objects")}
    output.record(RECOVERED, row)
    for finding in left:
        note(f"shmstore: still there: {_words.clean(finding.message)}")
    return int(bool(left))


def prune(arguments: argparse.Namespace, output: Output) -> int:
    """Remove the stores of the dead, or only list them."""
    if arguments.dry_run:
        names = [found.name for found in _stores.summaries(arguments) if found.state == "dead"]
    else:
        names = shmstore.prune(
            arguments.root, group=arguments.group, lock_timeout=arguments.timeout
        )
    _tell(names, "would go" if arguments.dry_run else "removed", output)
    if not (names or output.as_json):
        note("no store has only dead processes")
    return 0


def create(arguments: argparse.Namespace, output: Output) -> int:
    """Make a store that persists."""
    options: dict[str, Any] = {"on_full": arguments.on_full, "root": arguments.root}
    for name in ("spill_dir", "max_objects", "ttl", "group", "capacity"):
        value = getattr(arguments, name)
        if value is not None:
            options[name] = value
    try:
        store = shmstore.Store.create(arguments.store, persist=True, **options)
    except (ValueError, TypeError) as error:
        if isinstance(error, shmstore.ShmStoreError):
            raise
        raise UsageError(str(error)) from error
    with store:
        capacity = store.stats().capacity
        row = {"name": store.name, "path": str(store.path), "capacity": capacity}
    columns = Column("name", "name"), Column("path", "path"), Column("capacity", "capacity", "size")
    output.record(columns, row)
    return 0


def rm_store(arguments: argparse.Namespace, output: Output) -> int:
    """Remove stores; 1 when one of them stays."""
    removed, failed = [], []
    for name in arguments.stores:
        try:
            shmstore.remove(
                name,
                root=arguments.root,
                group=arguments.group,
                lock_timeout=arguments.timeout,
                force=arguments.force,
            )
            removed.append(name)
        except shmstore.ShmStoreError as error:
            failed.append(_with_remedy(error))
        except ValueError as error:
            raise UsageError(str(error)) from error
    _tell(removed, "removed", output)
    if failed:
        raise CommandError(" ".join(failed))
    return 0


def _with_remedy(error: shmstore.ShmStoreError) -> str:
    if isinstance(error, shmstore.StoreNotFoundError):
        return str(error)
    return f"{error} (here: --force)"


def _tell(names: list[str], done: str, output: Output) -> None:
    if names or output.as_json:
        output.table(NAMES, [{"name": name, "done": done} for name in names])
