"""What is on the file system under a store?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmstore._info import FileSystemUse
from shmstore._memory import folder
from shmstore._memory.segment import SEGMENT_NAME

if TYPE_CHECKING:
    from shmstore._session import Session

# How many files are looked at to find out who else fills a file system, and how many are named.
_MOST_ENTRIES: Final = 5000
_MOST_NAMED: Final = 3

# The unit of st_blocks, whatever the file system.
_BLOCK_NBYTES: Final = 512


def file_system_of(session: Session) -> FileSystemUse:
    """Return what the file system under a store has, and who has it. Takes no lock."""
    status = os.fstatvfs(session.folder_fd)
    size = status.f_blocks * status.f_frsize
    free = folder.free_bytes(session.folder_fd)
    own = nbytes_below(session.path, [_MOST_ENTRIES])
    backed = nbytes_below(session.path / SEGMENT_NAME, [1])
    unbacked = max(0, session.identity.capacity - backed)
    top = mount_point(session.path.parent)
    return FileSystemUse(
        path=str(top),
        size=size,
        free=free,
        own=own,
        others=max(0, size - status.f_bfree * status.f_frsize - own),
        unbacked=unbacked,
        largest=_largest_others(top, session.path) if free < unbacked else (),
    )


def mount_point(path: Path) -> Path:
    """Return the folder on which the file system of a path is mounted."""
    device = path.stat().st_dev
    while path != path.parent and path.parent.stat().st_dev == device:
        path = path.parent
    return path


def _largest_others(top: Path, own: Path) -> tuple[tuple[str, int], ...]:
    """Return path and size of the largest things beside a store: files and folders of the top."""
    budget = [_MOST_ENTRIES]
    sizes: list[tuple[str, int]] = []
    for above in (own, *own.parents):
        if above == top:
            break
        with contextlib.suppress(OSError):
            beside = [path for path in above.parent.iterdir() if path != above]
            sizes += [(str(path), nbytes_below(path, budget)) for path in beside]
    sizes.sort(key=lambda item: -item[1])
    return tuple(item for item in sizes[:_MOST_NAMED] if item[1])


def nbytes_below(path: Path, budget: list[int]) -> int:
    """Return the bytes of the pages of a file, or of all below a folder, as far as one may look.

    `budget` counts down how many files may still be looked at.
    """
    total, waiting = 0, [path]
    while waiting and budget[0] > 0:
        budget[0] -= 1
        path = waiting.pop()
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * _BLOCK_NBYTES
            if path.is_dir() and not path.is_symlink():
                waiting += path.iterdir()
    return total
