"""How does a handle of netCDF4 find its file again?

It travels as the name of the file and the path inside of it, and is opened for reading where the
object is read. The library does not tell whether a handle may write: of a file that is being
written, readers see what ``sync()`` has left on disk, if the file is not locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import netCDF4

from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
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
from shmstore.serialization.wording import shown

# What a variable converts when it is read: attribute and the method that sets it.
_SETTINGS: Final = {
    "mask": "set_auto_mask",
    "scale": "set_auto_scale",
    "always_mask": "set_always_mask",
    "chartostring": "set_auto_chartostring",
}


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(netCDF4.Dataset, serialize_dataset, deserialize_dataset)
    register_serialization(netCDF4.Group, serialize_group, deserialize_group)
    register_serialization(netCDF4.Variable, serialize_variable, deserialize_variable)


def serialize_dataset(x: netCDF4.Dataset) -> tuple[Header, list[Frame]]:
    """Return the name of a file."""
    root = x
    while root.parent is not None:  # a group does not know whether its file is open
        root = root.parent
    if not root.isopen():
        raise SerializationError("the netCDF4.Dataset is closed; put it while it is open")
    return pack_file(root.filepath(), "a netCDF4.Dataset"), []


def deserialize_dataset(
    header: Header,
    frames: Sequence[Frame],  # noqa: ARG001 - there are none
) -> netCDF4.Dataset:
    """Open a file for reading."""
    path = unpack_file(header, "a netCDF4.Dataset")
    try:
        return netCDF4.Dataset(path, "r")
    except OSError as error:
        raise unreadable(error, path) from error


def serialize_group(x: netCDF4.Group) -> tuple[Header, list[Frame]]:
    """Return the name of the file of a group, and its path inside of it."""
    header, frames = serialize_dataset(x)
    header["name"] = x.path
    return header, frames


def deserialize_group(header: Header, frames: Sequence[Frame]) -> Any:
    """Open a file for reading, and return a group of it."""
    return _member(header, frames, netCDF4.Group)


def serialize_variable(x: Any) -> tuple[Header, list[Frame]]:
    """Return the name of the file of a variable, its path inside of it, and how it converts."""
    group = x.group()
    header, frames = serialize_dataset(group)
    header["name"] = f"{group.path.rstrip('/')}/{x.name}"
    header["settings"] = {name: bool(getattr(x, name)) for name in _SETTINGS}
    return header, frames


def deserialize_variable(header: Header, frames: Sequence[Frame]) -> Any:
    """Open a file for reading, and return a variable of it."""
    x = _member(header, frames, netCDF4.Variable)
    for name, value in header["settings"].items():
        if name not in _SETTINGS or not isinstance(value, bool):
            raise CorruptHeaderError(f"a header has the setting {shown(name)}", key="settings")
        getattr(x, _SETTINGS[name])(value)
    return x


def _member(header: Header, frames: Sequence[Frame], cls: type) -> Any:
    name = unpack_text(header, "name")
    dataset = deserialize_dataset(header, frames)
    path = dataset.filepath()
    try:
        return expect(dataset[name], cls, f"{name!r} in {path!r}")
    except (IndexError, KeyError, OSError, RuntimeError) as error:
        dataset.close()
        raise unreadable(error, path) from error
    except DeserializationError:
        dataset.close()
        raise
