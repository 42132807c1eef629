"""How does a handle of h5py find its file again?

It travels as the name of the file and the path inside of it, and is opened for reading where the
object is read. A file that is open for writing is refused: what this process has not flushed, and
what it will write, others would read or miss by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import h5py

from shmstore.errors import DeserializationError, SerializationError
from shmstore.serialization.frames import Frame
from shmstore.serialization.handlers.files import (
    Header,
    expect,
    pack_file,
    unpack_file,
    unpack_text,
    unreadable,
)
from shmstore.serialization.registry import register_serialization

# Drivers whose file any other process can open by its name alone.
_DRIVERS: Final = frozenset({"sec2", "stdio", "core", "direct"})


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(h5py.File, serialize_file, deserialize_file)
    for cls in (h5py.Group, h5py.Dataset):
        register_serialization(cls, serialize_member, deserialize_member)


def serialize_file(x: h5py.File) -> tuple[Header, list[Frame]]:
    """Return the name of a file that is open for reading."""
    if not x:
        raise SerializationError("the h5py.File is closed; put it while it is open", type="File")
    if x.mode != "r":
        raise SerializationError(
            f"the h5py.File {x.filename!r} is open for writing (mode {x.mode!r}); only files "
            "opened with mode 'r' travel.",
            type="File",
            mode=x.mode,
        )
    if x.driver not in _DRIVERS:
        raise SerializationError(
            f"the h5py.File {x.filename!r} was opened with driver {x.driver!r}; its name is not "
            "enough to open it elsewhere.",
            type="File",
            driver=x.driver,
        )
    header = pack_file(x.filename, "an h5py.File")
    if x.swmr_mode:
        header["swmr"] = True
    return header, []


def deserialize_file(header: Header, frames: Sequence[Frame]) -> h5py.File:  # noqa: ARG001
    """Open a file for reading."""
    path = unpack_file(header, "an h5py.File")
    try:
        return h5py.File(path, "r", swmr=header.get("swmr") is True)
    except OSError as error:
        raise unreadable(error, path) from error


def serialize_member(x: h5py.Group | h5py.Dataset) -> tuple[Header, list[Frame]]:
    """Return the name of the file of a group or dataset, and the path inside of it."""
    if not x or x.name is None:
        raise SerializationError(
            f"the h5py.{type(x).__name__} is closed, or has no name in its file", type="h5py"
        )
    header, frames = serialize_file(x.file)
    header["name"] = x.name
    return header, frames


def deserialize_member(header: Header, frames: Sequence[Frame], cls: type) -> Any:
    """Open a file for reading, and return the group or dataset at its path."""
    name = unpack_text(header, "name")
    file = deserialize_file(header, frames)
    path = file.filename
    try:
        return expect(file[name], cls, f"{name!r} in {path!r}")
    except (KeyError, OSError, RuntimeError) as error:
        file.close()
        raise unreadable(error, path) from error
    except DeserializationError:
        file.close()
        raise
