"""How is a FIFO made and opened that two processes of a store share?

Both sides open it for reading and writing: so opening never waits for the other side, and the end
of one side is no end of file and no SIGPIPE for the other.
"""

from __future__ import annotations

import os
from pathlib import Path

from shmstore._memory import owners, shortage
from shmstore._memory.descriptors import Descriptor, open_descriptor
from shmstore._memory.owners import FILE_FLAGS


def make_fifo(folder_fd: int, name: str, path: Path) -> Descriptor:
    """Make a FIFO for whom its folder is for; the caller closes the descriptor.

    Raises
    ------
    FileExistsError
        There is something of this name.
    """
    try:
        os.mkfifo(name, 0o600, dir_fd=folder_fd)
    except OSError as error:
        shortage.refuse(error, path / name)
    try:
        fd = open_descriptor(name, os.O_RDWR | FILE_FLAGS, dir_fd=folder_fd)
        owners.entrust(fd, path / name, owners.group_of(folder_fd))
    except BaseException:
        os.unlink(name, dir_fd=folder_fd)
        raise
    return fd


def open_fifo(folder_fd: int, name: str, path: Path) -> Descriptor:
    """Open a FIFO after checking it; FileNotFoundError: there is none."""
    try:
        fd = open_descriptor(name, os.O_RDWR | FILE_FLAGS, dir_fd=folder_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        owners.refuse(path / name, error)
    try:
        owners.check_fifo(fd, path / name, owners.group_of(folder_fd))
    except BaseException:
        fd.close()
        raise
    return fd
