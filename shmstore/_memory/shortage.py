"""What is missing when a call of the system fails, and what can be done about it?

A full file system is told by `folder.full_file_system`, whose callers know how much was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from shmstore.errors import ProcessLimitError, ShmStoreError

_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

_FOR_WHAT: Final = {
    "index": "An index takes addresses for max_objects: create the store with a smaller one",
    "segment-": "A segment is mapped for reading and for writing: create the store with a smaller "
    "capacity",
}
_PRIVATE: Final = 'Drop private views, or use mode="copy"'


class NoPagesError(OSError):
    """Pages could not be reserved; nothing has been changed but, perhaps, some of them were."""


@contextlib.contextmanager
def told(path: Path | str) -> Iterator[None]:
    """Let what the system refuses inside of the block be told with a path, and with a way out."""
    try:
        yield
    except OSError as error:
        refuse(error, path)


def refuse(error: OSError, path: Path | str) -> NoReturn:
    """Raise the error for a call of the system that has failed at a path.

    It is the very error where nothing better can be said, with the whole path in it.
    """
    try:
        if isinstance(error, ShmStoreError):
            raise error
        if error.errno in _NO_DESCRIPTORS:
            raise _no_descriptors(error, path) from error
        name = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else ""
        if not os.path.isabs(name):
            own = not name or os.path.basename(path) == name
            error.filename = str(path) if own else os.path.join(path, name)
        raise error
    finally:
        # The error holds this frame; if it held the error, views would live on in a circle.
        del error


def refuse_mapping(error: OSError, fd: int, nbytes: int, *, private: bool) -> NoReturn:
    """Raise the error for a file that could not be mapped."""
    path = path_of(fd)
    if error.errno != errno.ENOMEM:
        refuse(error, path)
    name = os.path.basename(path)
    found = [text for start, text in _FOR_WHAT.items() if name.startswith(start)]
    remedy = _PRIVATE if private else "".join(found)
    import resource  # noqa: PLC0415 - takes time that most processes can save

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    has = "no limit" if limit == resource.RLIM_INFINITY else f"a limit of {limit:,} bytes"
    raise ProcessLimitError(
        f"this process has no addresses left to map {nbytes:,} bytes of {path} "
        f"({error.strerror}). {remedy or 'Close what is not needed'}, or give it more addresses "
        f"(it has {has}: `ulimit -v`, RLIMIT_AS) or more mappings (sysctl vm.max_map_count).",
        errno=error.errno,
        path=path,
        asked=nbytes,
        limit=limit,
    ) from error


def path_of(fd: int) -> str:
    """Return the path of an open file, as far as the system tells it."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"


def _no_descriptors(error: OSError, path: Path | str) -> ProcessLimitError:
    if error.errno == errno.ENFILE:
        limit, whose = 0, "the system has as many files open as it may (sysctl fs.file-max)"
    else:
        import resource  # noqa: PLC0415 - takes time that most processes can save

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        whose = f"this process has as many files open as it may, {limit:,} (`ulimit -n`)"
    return ProcessLimitError(
        f"{path} could not be opened ({error.strerror}): {whose}. A store takes six in each "
        "process, and a few for a moment. Close what is not needed, or raise the limit.",
        errno=error.errno,
        path=str(path),
        limit=limit,
    )
