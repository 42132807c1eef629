"""How do files become objects, and objects files: `put`, `get`, `rm`."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import shmstore
from shmstore.cli import _files, _loading, _stores
from shmstore.cli._errors import CommandError, UsageError
from shmstore.cli._output import Column, Output, is_terminal

PUT: Final = (
    Column("key", "key"),
    Column("id", "id"),
    Column("type", "type"),
    Column("nbytes", "size", "size"),
)
GOT: Final = (
    Column("file", "file"),
    Column("format", "format"),
    Column("nbytes", "size", "size"),
)
DELETED: Final = (Column("key", "KEY"),)


# --- put -----------------------------------------------------------------------------------------


def put(arguments: argparse.Namespace, output: Output) -> int:
    """Put a file."""
    form = _format_of(arguments, Path(arguments.file))
    _files.check_reading(form, unsafe=arguments.unsafe_pickle)
    with _stores.changed(arguments) as store:
        try:
            value = _read(arguments.file, form)
            ref = store.put(
                value,
                key=arguments.key,
                overwrite=not arguments.no_overwrite,
                readonly=arguments.readonly or None,
                ttl=arguments.ttl,
                compression=arguments.compression,
            )
        except shmstore.ShmStoreError:
            raise
        except (ValueError, TypeError) as error:
            raise UsageError(f"{arguments.file}: {error}") from error
        found = store.info(ref)
        row = {"key": arguments.key, "type": found.type, "nbytes": found.nbytes}
        output.record(PUT, {**row, "id": _stores.id_of(found.slot, found.generation)})
        del value
    return 0


def _read(file: str, form: str) -> Any:
    try:
        if file == "-":
            return _files.read(sys.stdin.buffer, form)
        return _files.read(Path(file), form)
    except CommandError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    except Exception as error:  # a file that is cut off, or no such file, raises anything
        why = str(error) or type(error).__name__
        raise UsageError(f"cannot read {file} as {form}: {why}") from error


# --- get -----------------------------------------------------------------------------------------


def get(arguments: argparse.Namespace, output: Output) -> int:
    """Write an object to a file."""
    to_stdout = arguments.file == "-"
    form = arguments.format or (None if to_stdout else _format_of(arguments, Path(arguments.file)))
    with _stores.viewed(arguments) as store:
        target = _stores.target_of(store, arguments.key)
        value = _value(store, target, form, arguments)
        if to_stdout:
            _write_out(value, form)
        else:
            _write_file(Path(arguments.file), value, str(form), force=arguments.force)
            nbytes = Path(arguments.file).stat().st_size
            output.record(GOT, {"file": arguments.file, "format": form, "nbytes": nbytes})
        del value
    return 0


def _value(
    store: shmstore.Store, target: Any, form: str | None, arguments: argparse.Namespace
) -> Any:
    """Return what is to be written; of a pickle its stream as it is, which is not read."""
    if form in ("pickle", "raw"):
        found = store.get(target, mode="readonly", decode=False)
        family, frames = found.header.get("serializer"), found.frames
        if len(frames) == 1 and family == ("pickle" if form == "pickle" else "custom"):
            return _files.Stream(frames[0])
    return _loading.load(store, target, unsafe=arguments.unsafe_pickle)


def _write_out(value: Any, form: str | None) -> None:
    form = form or _files.natural_format(value)
    binary = form not in _files.TEXTS
    if binary and is_terminal(sys.stdout):
        raise UsageError(f"the terminal is no place for {form}: give a FILE, or pipe the output")
    sys.stdout.flush()
    _write(sys.stdout.buffer, value, form)
    if not binary and is_terminal(sys.stdout):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _write_file(path: Path, value: Any, form: str, *, force: bool) -> None:
    """Write a file as a whole, or not at all."""
    if path.exists() and not force:
        raise UsageError(f"{path} is there already; --force replaces it")
    with _replaced(path) as stream:
        _write(stream, value, form)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of a file, when all of it is there.

    Raises
    ------
    OSError
        It cannot be written; the error names the file, not the one beside it that is unfinished.
    """
    unfinished = path.parent / f".{path.name}.{os.getpid()}"
    try:
        with unfinished.open("xb") as stream:
            yield stream
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)
        raise


def _write(stream: BinaryIO, value: Any, form: str) -> None:
    try:
        _files.write(stream, value, form)
    except (ValueError, TypeError, NotImplementedError) as error:
        what = f"an object of type {type(value).__name__} cannot be written as {form}: {error}"
        raise CommandError(what) from error


# --- rm ------------------------------------------------------------------------------------------


def rm(arguments: argparse.Namespace, output: Output) -> int:
    """Delete objects; 1 when one was not there."""
    if not arguments.key and arguments.match is None:
        raise UsageError("give a KEY, or --match PATTERN")
    gone: list[str] = []
    missing: list[str] = []
    with _stores.changed(arguments) as store:
        for key in [*arguments.key, *_matching(store, arguments.match)]:
            try:
                target = _stores.target_of(store, key)
            except CommandError:
                missing.append(key)
                continue
            there = target in store if arguments.dry_run else store.discard(target)
            (gone if there else missing).append(key)
    if gone or output.as_json:
        output.table(DELETED, [{"key": key} for key in gone])
    if missing and not arguments.force:
        raise CommandError(f"no object has the key {', '.join(map(repr, missing))}")
    return 0


def _matching(store: shmstore.Store, pattern: str | None) -> list[str]:
    if pattern is None:
        return []
    return [key for key in store if fnmatch.fnmatch(key, pattern)]


def _format_of(arguments: argparse.Namespace, path: Path) -> str:
    form: str | None = arguments.format or _files.format_of(path)
    if form is None:
        suffixes = ", ".join(_files.SUFFIXES)
        raise UsageError(f"{arguments.file!r} tells no format: give --as, or one of {suffixes}")
    return form
