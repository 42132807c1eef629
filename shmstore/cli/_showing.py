"""What is one object: `show`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

import shmstore
from shmstore.cli import _loading, _preview, _stores, _words
from shmstore.cli._output import Column, Output, finite

ABOUT: Final = (
    Column("key", "key"),
    Column("id", "id"),
    Column("type", "type"),
    Column("serializer", "family"),
    Column("nbytes", "size", "size"),
    Column("stored_nbytes", "stored", "size"),
    Column("spilled", "in a file", "flag"),
    Column("created", "put", "moment"),
    Column("owner_pid", "by pid", "number"),
    Column("expires", "expires", "moment"),
    Column("pinned_by", "looked at by"),
    Column("queue", "queue"),
)
FRAMES: Final = (
    Column("number", "FRAME", "number"),
    Column("nbytes", "SIZE", "size"),
    Column("access", "ACCESS"),
    Column("begins", "BEGINS WITH"),
)
_MOST_FRAMES: Final = 20
_BEGINNING: Final = 16
_LONGEST_HEADER: Final = 4000


def show(arguments: argparse.Namespace, output: Output) -> int:
    """Show one object; 1 when it is damaged."""
    with _stores.viewed(arguments) as store:
        target = _stores.target_of(store, arguments.key)
        about = _about(store, target)
        found = store.get(target, mode="readonly", decode=False)
        header = {key: value for key, value in found.header.items() if key != "serializer"}
        frames = [_frame(number, frame) for number, frame in enumerate(found.frames)]
        preview = list(_lines(store, target, arguments))
        del found
    if output.as_json:
        output.json({**about, "header": _plain(header), "frames": frames, "preview": preview})
        return 0
    about["pinned_by"] = ", ".join(map(str, about["pinned_by"])) or None
    output.record(ABOUT, about)
    output.styled("\n[bold]header[/bold]", "\nheader")
    text = json.dumps(_plain(header), default=repr, ensure_ascii=False)
    output.lines([_words.clean(text[:_LONGEST_HEADER]), ""])
    output.table(FRAMES, frames[:_MOST_FRAMES])
    if len(frames) > _MOST_FRAMES:
        output.lines([f"... {len(frames) - _MOST_FRAMES:,} more"])
    output.styled("\n[bold]value[/bold]", "\nvalue")
    output.lines(preview)
    return 0


def _about(store: shmstore.Store, target: Any) -> dict[str, Any]:
    known = store.info(target)
    about = {
        field.name: getattr(known, field.name)
        for field in dataclasses.fields(known)
        if field.name != "ref"
    }
    about["expires"] = finite(known.expires)
    about["id"] = _stores.id_of(known.slot, known.generation)
    return about


def _frame(number: int, frame: Any) -> dict[str, Any]:
    data = np.frombuffer(frame, np.uint8)
    return {
        "number": number,
        "nbytes": data.nbytes,
        "access": "read-only" if memoryview(frame).readonly else "writeable",
        "begins": data[:_BEGINNING].tobytes().hex(" ", 4),
    }


def _lines(store: shmstore.Store, target: Any, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the preview, or why there is none."""
    try:
        value = _loading.load(store, target, unsafe=arguments.unsafe_pickle)
    except _loading.UnsafeError as error:
        yield f"not shown: {_words.clean(str(error))}"
        return
    except (shmstore.DeserializationError, ImportError) as error:
        yield f"cannot be rebuilt here: {_words.clean(str(error))}"
        return
    for line in _preview.lines(value, arguments.rows):
        yield _words.clean(line)


def _plain(value: Any) -> Any:
    """Return what JSON can write of a header."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        return data[:64].hex() + (f"... ({len(data)} bytes)" if len(data) > 64 else "")
    if isinstance(value, float):
        return finite(value)
    return value if isinstance(value, (str, int, bool, type(None))) else repr(value)
