"""How does the folder of a store go, with all that belongs to it?

It loses its name first, so that nobody finds half a store; then its files go, those that it has
elsewhere before the one that tells where. Who is cut short leaves a folder that others know by its
name and remove.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final

from shmstore._memory import folder
from shmstore.errors import UnsafePathError

# Who adds files to a folder more often than this does not do so by chance.
_MOST_TIMES: Final = 100


def remove_store(root_fd: int, name: str) -> None:
    """Remove the folder of a store. Requires: the root lock. Views stay valid."""
    old = folder.OLD + os.urandom(8).hex()
    try:
        folder.rename(root_fd, name, old)
    except FileNotFoundError:
        return
    _remove_tree(root_fd, old)


def remove_leftovers(root_fd: int) -> None:
    """Remove folders whose making or removal was cut short. Requires: the root lock."""
    for entry in folder.entries(root_fd):
        if re.fullmatch(folder.UNFINISHED, entry.name):
            with contextlib.suppress(OSError):  # next time, then; stores can be made all the same
                _remove_leftover(root_fd, entry)


def _remove_leftover(root_fd: int, entry: os.DirEntry[str]) -> None:
    try:
        _remove(root_fd, entry)
    except UnsafePathError:  # another member of the group died before it was the group's
        os.rmdir(entry.name, dir_fd=root_fd)


def _remove_tree(root_fd: int, name: str) -> None:
    """Remove a folder of ours with its files and its one level of folders.

    Clients that are just coming or leaving may add files to it, or remove theirs, meanwhile.
    """
    with contextlib.suppress(FileNotFoundError):
        fd = folder.open_folder(root_fd, name, name)
        try:
            for left in reversed(range(_MOST_TIMES)):
                _empty(fd, name)
                if _is_removed(root_fd, name, again=left > 0):
                    return
        finally:
            fd.close()


def _empty(folder_fd: int, name: str) -> None:
    """Remove what lies in a folder."""
    entries = sorted(folder.entries(folder_fd), key=_last_of_all)
    if any(map(_last_of_all, entries)):
        from shmstore._memory import spill_files  # noqa: PLC0415 - takes time that most processes can save

        spill_files.remove_folder(folder_fd, Path(name))
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            _remove(folder_fd, entry)


def _is_removed(root_fd: int, name: str, *, again: bool) -> bool:
    """Remove a folder; False: it is not empty, and there is another try."""
    try:
        os.rmdir(name, dir_fd=root_fd)
    except OSError as error:
        if not again or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _last_of_all(entry: os.DirEntry[str]) -> bool:
    """Tell the file that says where other files are: it goes when these have gone."""
    return entry.name == folder.SPILL_NAME


def _remove(folder_fd: int, entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        _remove_tree(folder_fd, entry.name)
    else:
        os.unlink(entry.name, dir_fd=folder_fd)
