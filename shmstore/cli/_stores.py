"""How does a command come to its store, and leave it as it was?"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import shmstore
from shmstore.cli._errors import CommandError, UsageError

_ID = "@"


@contextlib.contextmanager
def looked_at(arguments: argparse.Namespace) -> Iterator[shmstore.Store]:
    """Give the store of a command, to look at it from outside."""
    with _opened(arguments, shmstore.Store.look) as store:
        yield store


@contextlib.contextmanager
def viewed(arguments: argparse.Namespace) -> Iterator[shmstore.Store]:
    """Give the store of a command, to get objects from it."""
    attach = partial(shmstore.Store.attach, readonly=True, visit=True)
    with _opened(arguments, attach) as store:
        yield store


@contextlib.contextmanager
def changed(arguments: argparse.Namespace) -> Iterator[shmstore.Store]:
    """Give the store of a command, to change what is in it."""
    attach = partial(shmstore.Store.attach, visit=True)
    with _opened(arguments, attach) as store:
        yield store


def _opened(
    arguments: argparse.Namespace, opening: Callable[..., shmstore.Store]
) -> shmstore.Store:
    try:
        return opening(
            arguments.store,
            root=arguments.root,
            group=arguments.group,
            lock_timeout=arguments.timeout,
        )
    except shmstore.StoreNotFoundError as error:
        raise CommandError(_not_there(arguments, error)) from error
    except (ValueError, TypeError) as error:
        if isinstance(error, shmstore.ShmStoreError):
            raise
        raise UsageError(str(error)) from error


def _not_there(arguments: argparse.Namespace, error: Exception) -> str:
    if os.sep in arguments.store:
        return str(error)
    try:
        names = [found.name for found in summaries(arguments)]
    except shmstore.ShmStoreError:
        return str(error)
    there = f"There are: {', '.join(names[:10])}." if names else "There is none at all."
    where = f"in {arguments.root}" if arguments.root else "here (see --root)"
    return f"there is no store {arguments.store!r} {where}. {there}"


def summaries(arguments: argparse.Namespace) -> list[shmstore.StoreSummary]:
    """Return what can be told of all stores without attaching them."""
    return shmstore.stores(arguments.root, group=arguments.group)


def summary_of(arguments: argparse.Namespace) -> shmstore.StoreSummary | None:
    """Return what can be told of the store of a command without attaching it."""
    root, name = arguments.root, arguments.store
    if os.sep in name:
        path = Path(name).absolute()
        root, name = path.parent, path.name
    found = shmstore.stores(root, group=arguments.group)
    return next((summary for summary in found if summary.name == name), None)


def id_of(slot: int, generation: int) -> str:
    """Return the name that this command line gives an object, whether it has a key or not."""
    return f"{_ID}{slot}.{generation}"


def target_of(store: shmstore.Store, text: str) -> Any:
    """Return the reference of an id such as "@3.17", or the key that was given.

    Raises
    ------
    CommandError
        No object has this id.
    """
    slot, _, generation = text.removeprefix(_ID).partition(".")
    if not (text.startswith(_ID) and slot.isdecimal() and generation.isdecimal()):
        return text
    if text in store:
        return text
    survey = store.survey()
    rows = ((survey.slot == int(slot)) & (survey.generation == int(generation))).nonzero()[0]
    found = survey.infos(rows.tolist())
    if not found or found[0].type == "damaged":
        what = "it is damaged" if found else "it has been deleted, or never was"
        raise CommandError(f"no object {text} can be got: {what}. `shmstore objects` lists them.")
    return found[0].ref
