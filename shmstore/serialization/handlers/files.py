"""Which file does a handle stand for, and may it be opened here?

Handles of h5py and netCDF4 travel as the name of their file and the path inside of it. The file
is opened again where the object is read, so both processes must see the same file system. Only
local, regular files are opened, and only for reading.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
from shmstore.serialization.wording import shown

Header = dict[str, Any]


def pack_file(name: str, handle: str) -> Header:
    """Return the header that names a file.

    Parameters
    ----------
    name
        As the library tells it; a relative one is taken from the current directory.
    handle
        What has the file open; begins the message.

    Raises
    ------
    SerializationError
        There is no such file: the data are in memory, behind a URL, or were moved.
    """
    path = Path(name).absolute()
    if not path.is_file():
        raise SerializationError(
            f"{handle} travels as the name of its file, and there is no file {str(path)!r}. Put "
            "the data that it holds, not the handle.",
            type=handle,
            path=str(path),
        )
    return {"file": os.fsencode(path)}


def unpack_file(header: Header, handle: str) -> str:
    """Return the name of a file that may be opened.

    Raises
    ------
    CorruptHeaderError
        The header does not name a file by its absolute path.
    DeserializationError
        This process sees no such file.
    """
    packed = header.get("file")
    if not isinstance(packed, bytes) or not packed.startswith(b"/") or b"\0" in packed:
        raise CorruptHeaderError(
            f"a header names the file {shown(packed, 200)}; expected the bytes of an absolute path",
            key="file",
            found=packed,
        )
    path = Path(os.fsdecode(packed))
    if not path.is_file():
        raise DeserializationError(
            f"{handle} was put as the name of its file {str(path)!r}, and this process sees no "
            "such file.",
            type=handle,
            path=str(path),
        )
    return str(path)


def unpack_text(header: Header, key: str) -> str:
    """Return a text of a header."""
    text = header.get(key)
    if not isinstance(text, str):
        raise CorruptHeaderError(f"a header has the {key} {shown(text, 200)}", key=key, found=text)
    return text


def expect(found: Any, cls: type, where: str) -> Any:
    """Return what was found in a file if it is of the class that was put."""
    if type(found) is not cls:
        raise DeserializationError(
            f"{where} is a {type(found).__name__} by now; a {cls.__name__} was put.",
            type=cls.__name__,
        )
    return found


def unreadable(error: Exception, path: str) -> DeserializationError:
    """Return the error that a library's own becomes, so that it names the file."""
    return DeserializationError(
        f"the file {path!r} of an object cannot be read: {type(error).__name__}: {error}", path=path
    )
