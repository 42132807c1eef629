"""Which folder is a store, and is it safe to trust?

`<root>/<name>/`. The root belongs to this user alone; everything in it is opened relative to a
descriptor of a folder that was checked, never through a symlink. What is foreign, linked or open
to others is refused, not repaired.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shmstore.errors import (
    NotAStoreError,
    ShmStoreError,
    StoreFullError,
    StoreNotFoundError,
    UnsafePathError,
)

ROOT_VARIABLE: Final = "SHMSTORE_ROOT"
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})
HOW_TO_ENLARGE: Final = (
    "Or enlarge it (`mount -o remount,size=4g /dev/shm`; docker: `--shm-size=4g`; kubernetes: a "
    f"volume `emptyDir: {{medium: Memory}}` on /dev/shm), or set {ROOT_VARIABLE} to a folder on a "
    "larger one."
)

# Folders under the root that begin so are being made or removed by the holder of the root lock.
_NEW: Final = ".new-"
_OLD: Final = ".old-"
_OTHERS: Final = 0o077
_ROOT_TRIES: Final = 1000
_FAULTS_OF_A_PATH: Final = frozenset(
    {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM}
)
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


def default_root() -> Path:
    """Return the folder of all stores of this user: $SHMSTORE_ROOT, or one in shared memory."""
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return Path(given).absolute()
    base = Path("/dev/shm") if sys.platform == "linux" else Path(tempfile.gettempdir())  # noqa: S108 - the place for it
    return base / f"shmstore-{os.getuid()}"


def check_name(name: object) -> str:
    """Return `name` if a store can have it.

    Raises
    ------
    TypeError, ValueError
        It is no string; it has characters or a length that names cannot have.
    """
    if not isinstance(name, str):
        message = f"the name of a store is a str, not {type(name).__name__}: {name!r}"
        raise TypeError(message)
    if not NAME_PATTERN.fullmatch(name) or name.startswith("."):
        message = (
            f"{name!r} cannot be the name of a store. Use 1 to 64 of the characters A-Z a-z 0-9 . "
            "_ - and no dot in front."
        )
        raise ValueError(message)
    return name


def random_name() -> str:
    """Return a name that no other store has."""
    return f"store-{secrets.token_hex(6)}"


def open_root(root: Path, *, create: bool) -> int:
    """Open the root folder after checking it; the caller closes the descriptor.

    Raises
    ------
    StoreNotFoundError
        There is no root and `create` is false.
    UnsafePathError
        The root is a symlink, belongs to somebody else, or is open to others.
    """
    missing = StoreNotFoundError(
        f"there is no store here: the folder {root} does not exist. Create a store first, or set "
        f"{ROOT_VARIABLE} in all processes alike.",
        path=str(root),
    )
    for _ in range(_ROOT_TRIES if create else 0):
        _make_root(root)
        with contextlib.suppress(StoreNotFoundError):  # removed, being empty, by another process
            return _open_own(str(root), _FOLDER_FLAGS, None, root, missing)
    return _open_own(str(root), _FOLDER_FLAGS, None, root, missing)


def open_store(root_fd: int, name: str, path: Path) -> int:
    """Open the folder of a store after checking it; the caller closes the descriptor."""
    missing = StoreNotFoundError(
        f"there is no store {name!r} in {path.parent}. Create it with Store.create({name!r}), or "
        f"look whether its processes use the same {ROOT_VARIABLE}.",
        name=name,
        path=str(path),
    )
    return _open_own(name, _FOLDER_FLAGS, root_fd, path, missing)


def open_seats(folder_fd: int, name: str, path: Path) -> int:
    """Open the folder of the seats after checking it; the caller closes the descriptor."""
    return _open_own(name, _FOLDER_FLAGS, folder_fd, path / name, _incomplete(path, name))


def open_file(folder_fd: int, name: str, path: Path, *, readonly: bool = False) -> int:
    """Open a file of a store after checking it; the caller closes the descriptor."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_NONBLOCK | _FILE_FLAGS
    missing = _incomplete(path, name)
    return _open_own(name, flags, folder_fd, path / name, missing, is_kind=stat.S_ISREG)


def _incomplete(path: Path, name: str) -> NotAStoreError:
    return NotAStoreError(
        f"{path} is not a store: it holds no {name!r}. Give the name or folder of a store.",
        path=str(path),
        missing=name,
    )


def _open_own(
    name: str,
    flags: int,
    parent_fd: int | None,
    path: Path,
    missing: ShmStoreError,
    is_kind: Callable[[int], bool] = stat.S_ISDIR,
) -> int:
    """Open what belongs to this user alone; raise `missing` if it is not there."""
    try:
        fd = os.open(name, flags, dir_fd=parent_fd)
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise _refused(path, error) from error
    try:
        _check_own(fd, path, is_kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_file(folder_fd: int, name: str) -> int:
    """Make a new file in a folder of ours; the caller closes the descriptor."""
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o600, dir_fd=folder_fd)


def make_store_folder(root_fd: int) -> tuple[str, int]:
    """Make a folder that no other process will find; return its name and descriptor."""
    name = _NEW + secrets.token_hex(8)
    os.mkdir(name, 0o700, dir_fd=root_fd)
    return name, os.open(name, _FOLDER_FLAGS, dir_fd=root_fd)


def rename(root_fd: int, old: str, new: str) -> None:
    """Give a folder its final name."""
    os.rename(old, new, src_dir_fd=root_fd, dst_dir_fd=root_fd)


def remove_store(root_fd: int, name: str) -> None:
    """Remove the folder of a store. Requires: the root lock. Views stay valid."""
    old = _OLD + secrets.token_hex(8)
    try:
        rename(root_fd, name, old)
    except FileNotFoundError:
        return
    _remove_tree(root_fd, old)


def remove_leftovers(root_fd: int) -> None:
    """Remove folders whose making or removal was cut short. Requires: the root lock."""
    for entry in _entries(root_fd):
        if entry.name.startswith((_NEW, _OLD)):
            _remove(root_fd, entry)


def remove_root(root: Path) -> None:
    """Remove the default root when it is empty; a root that the user named stays."""
    if not os.environ.get(ROOT_VARIABLE) and root == default_root():
        with contextlib.suppress(OSError):
            root.rmdir()


def is_linked(fd: int, path: Path) -> bool:
    """Return whether an open folder is still the one at `path`."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def free_bytes(fd: int) -> int:
    """Return how many bytes the file system of an open folder still has for us."""
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize


def full_file_system(fd: int, path: Path, asked: int, error: OSError) -> StoreFullError:
    """Return the error for a file system that has no pages left (or another OSError as it is)."""
    if error.errno not in NO_ROOM:
        raise error
    free = free_bytes(fd)
    return StoreFullError(
        f"the file system of {path} has no room: asked for {asked:,} bytes, {free:,} are free "
        f"({error.strerror}). Delete objects. {HOW_TO_ENLARGE}",
        path=str(path),
        asked=asked,
        free=free,
    )


def _make_root(root: Path) -> None:
    try:
        os.mkdir(root, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        message = (
            f"the folder above the root {root} does not exist; make it, or change {ROOT_VARIABLE}"
        )
        raise StoreNotFoundError(message, path=str(root)) from None


def _check_own(fd: int, path: Path, is_kind: Callable[[int], bool]) -> None:
    status = os.fstat(fd)
    if not is_kind(status.st_mode):
        kind = "regular file" if is_kind is stat.S_ISREG else "folder"
        raise _unsafe(path, f"it is no {kind}")
    if status.st_uid != os.geteuid():
        raise _unsafe(path, f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & _OTHERS:
        raise _unsafe(path, f"its mode {stat.S_IMODE(status.st_mode):#o} lets others in")
    if is_kind is stat.S_ISREG and status.st_nlink > 1:
        raise _unsafe(path, f"it has {status.st_nlink} hard links")


def _refused(path: Path, error: OSError) -> OSError:
    """Return the error for a path that cannot be opened: ours, if it is the path's fault."""
    if error.errno in _FAULTS_OF_A_PATH:
        return _unsafe(path, f"it cannot be opened ({error.strerror})")
    return error


def _unsafe(path: Path, reason: str) -> UnsafePathError:
    return UnsafePathError(
        f"{path} is not safe to use: {reason}. Stores live in folders of mode 0700 that belong to "
        "their "
        f"user. Remove it if it is yours, or set {ROOT_VARIABLE} to another folder.",
        path=str(path),
        reason=reason,
    )


def _remove_tree(root_fd: int, name: str) -> None:
    """Remove a folder of ours with its files and its one level of folders."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(name, _FOLDER_FLAGS, dir_fd=root_fd)
        try:
            for entry in _entries(fd):
                _remove(fd, entry)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=root_fd)


def _remove(folder_fd: int, entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        _remove_tree(folder_fd, entry.name)
    else:
        os.unlink(entry.name, dir_fd=folder_fd)


def _entries(fd: int) -> list[os.DirEntry[str]]:
    with os.scandir(fd) as entries:
        return list(entries)
