"""What have dead processes left, and which stores are damaged?"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import shmstore
from shmstore.cli import _words
from shmstore.cli._diagnoses import Finding, existing, root_of

_UNFINISHED: Final = (".new-", ".old-")
_ROOTS: Final = "shmstore-*"


def stores(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Tell which stores are there, and whether they can be used."""
    try:
        found = shmstore.stores(arguments.root, group=arguments.group)
    except shmstore.ShmStoreError as error:
        yield Finding("problem", str(error), "make a root that is yours alone, mode 0700")
        return
    damaged = [store for store in found if store.problem]
    for store in damaged:
        remedy = f"`shmstore recover {store.name}`, or `shmstore rm-store --force {store.name}`"
        yield Finding("problem", f"{store.name}: {store.problem}", remedy)
    yield from _nearly_full([store for store in found if not store.problem])
    sound = len(found) - len(damaged)
    resident = _words.size(sum(store.resident for store in found))
    if sound:
        yield Finding("ok", f"{_words.plural(sound, 'store')} can be used; all take {resident}")
    elif not damaged:
        yield Finding("ok", "none yet")


def _nearly_full(found: list[shmstore.StoreSummary]) -> Iterator[Finding]:
    for store in found:
        if store.on_full == "raise" and store.used > 0.95 * store.capacity:
            share = f"{store.used / store.capacity:.0%} of {_words.size(store.capacity)}"
            remedy = f"`shmstore info {store.name} --why`"
            yield Finding("note", f"{store.name} is full: {share} used", remedy)


def leftovers(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Tell what nobody will ever use again."""
    with contextlib.suppress(shmstore.ShmStoreError):
        found = shmstore.stores(arguments.root, group=arguments.group)
        dead = [store for store in found if store.state == "dead"]
        if dead:
            size = _words.size(sum(store.resident for store in dead))
            names = ", ".join(store.name for store in dead[:5])
            text = f"{_words.plural(len(dead), 'store')} of dead processes, {size}: {names}"
            yield Finding("warning", text, "`shmstore prune`")
        for store in found:
            if store.dead and store.state in ("alive", "kept"):
                who = _words.plural(store.dead, "dead process", "dead processes")
                text = f"{store.name} still has the seats of {who}; the next put clears them"
                yield Finding("note", text, f"`shmstore recover {store.name}` does so now")
    yield from _unfinished(root_of(arguments))
    yield from _other_roots(root_of(arguments))


def _unfinished(root: Path) -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        names = [path.name for path in root.iterdir() if path.name.startswith(_UNFINISHED)]
        if names:
            text = f"{_words.plural(len(names), 'half-made or half-removed store')} in {root}"
            yield Finding("note", text, "`shmstore prune` removes what is nobody's")


def _other_roots(root: Path) -> Iterator[Finding]:
    """Tell of folders of stores beside this one: of groups, or of other users."""
    others = []
    with contextlib.suppress(OSError):
        others = sorted(path for path in existing(root.parent).glob(_ROOTS) if path != root)
    shown = [path.name for path in others if path.is_dir()]
    if shown:
        names = ", ".join(shown[:5]) + (" ..." if len(shown) > 5 else "")
        yield Finding("note", f"folders of other users, groups or tests: {names}")
    else:
        yield Finding("ok", "no other folders of stores")
