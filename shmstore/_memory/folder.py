"""Which folder is a store, and is it safe to trust?

`<root>/<name>/`. The root belongs to this user alone, or to a group that was named; everything in
it is opened relative to a descriptor of a folder that was checked, never through a symlink, and is
for whom that folder is for. What is foreign, linked or open to others is refused, not repaired
(`owners` says what that means).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from shmstore._memory import owners, shortage
from shmstore._memory.descriptors import CLOSED, Descriptor, open_descriptor
from shmstore._memory.owners import FILE_FLAGS, FOLDER_FLAGS, ROOT_VARIABLE
from shmstore.errors import NotAStoreError, ShmStoreError, StoreFullError, StoreNotFoundError

_LONGEST_NAME: Final = 64
# No regular expression: compiling one takes a fifth of an attach.
_NAME_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
)

SPILL_NAME: Final = "spill"
"""The file of a store that says where the files of its objects are (see `spill_files`)."""

_Error = Callable[[], ShmStoreError]

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})
HOW_TO_ENLARGE: Final = (
    "Or enlarge it (`mount -o remount,size=4g /dev/shm`; docker: `--shm-size=4g`; kubernetes: a "
    f"volume `emptyDir: {{medium: Memory}}` on /dev/shm), or set {ROOT_VARIABLE} to a folder on a "
    "larger one."
)

# Folders under the root that begin so are being made or removed by the holder of the root lock.
NEW: Final = ".new-"
OLD: Final = ".old-"
UNFINISHED: Final = r"\.(new|old)-[0-9a-f]{16}"
_UNFINISHED_ROOT: Final = r"\.shmstore-group-\d+-[0-9a-f]{16}"
_ROOT_TRIES: Final = 1000
_MAY_NOT_MAKE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

_NOREPLACE: Final = 1
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def default_root(gid: int | None = None) -> Path:
    """Return the folder of all stores of this user, or of a group.

    $SHMSTORE_ROOT, or one in shared memory.
    """
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return Path(given).absolute()
    if sys.platform == "linux":
        base = Path("/dev/shm")  # noqa: S108 - the place for it
    else:
        import tempfile  # noqa: PLC0415 - takes time that most processes can save

        base = Path(tempfile.gettempdir())
    return base / (f"shmstore-{os.geteuid()}" if gid is None else f"shmstore-group-{gid}")


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
    if not is_name(name):
        message = (
            f"{name!r} cannot be the name of a store. Use 1 to 64 of the characters A-Z a-z 0-9 . "
            "_ - and no dot in front."
        )
        raise ValueError(message)
    return name


def is_name(text: str) -> bool:
    """Return whether a store can have this name."""
    fits = 0 < len(text) <= _LONGEST_NAME and not text.startswith(".")
    return fits and _NAME_CHARACTERS.issuperset(text)


def random_name() -> str:
    """Return a name that no other store has."""
    return f"store-{os.urandom(6).hex()}"


def open_root(
    root: Path, *, create: bool, gid: int | None = None, option: str = "root"
) -> Descriptor:
    """Open the root folder after checking it; the caller closes the descriptor.

    Parameters
    ----------
    root
        The folder of all stores.
    create
        Whether to make it if it is not there.
    gid
        The group whose members are trusted; None: the root must be this user's alone.
    option
        What names another one.

    Raises
    ------
    StoreNotFoundError
        There is no root and `create` is false, or there is no folder for it.
    UnsafePathError
        The root is a symlink, belongs to somebody else, is open to others, or lies where somebody
        else could put another one in its place.
    """
    missing = partial(
        StoreNotFoundError,
        f"there is no store here: the folder {root} does not exist. Create a store first, or set "
        f"{ROOT_VARIABLE} in all processes alike.",
        path=str(root),
    )
    try:
        above_fd = owners.open_above(root.parent, gid)
    except FileNotFoundError:
        raise _no_folder_above(root, gid, option) if create else missing() from None
    with above_fd:
        for _ in range(_ROOT_TRIES if create else 0):
            _make_root(above_fd, root, gid)
            with contextlib.suppress(StoreNotFoundError):  # removed, being empty, by others
                return _open_root(above_fd, root, gid, missing)
        return _open_root(above_fd, root, gid, missing)


def _no_folder_above(root: Path, gid: int | None, option: str) -> StoreNotFoundError:
    if option == "root" and root == default_root(gid):
        option = ROOT_VARIABLE
    return StoreNotFoundError(
        f"the folder above {option}={root} does not exist: make it, or change {option}.",
        path=str(root),
    )


def _make_root(above_fd: int, root: Path, gid: int | None) -> None:
    """Make the root if there is nothing of its name."""
    name = root.name or "."
    try:
        if gid is None:
            make_folder(above_fd, name, root, None).close()
        else:
            _make_shared_root(above_fd, name, root, gid)
    except (FileExistsError, FileNotFoundError):
        return
    except OSError as error:
        if isinstance(error, ShmStoreError) or error.errno not in _MAY_NOT_MAKE:
            raise
        raise owners.unsafe(root, f"it cannot be made ({error.strerror})") from error


def _make_shared_root(above_fd: int, name: str, root: Path, gid: int) -> None:
    """Make a root that is whole when the other members see it, under the name that they know."""
    if _exists(above_fd, name):
        return
    with contextlib.suppress(OSError):
        _remove_unfinished_roots(above_fd)
    unfinished = f".shmstore-group-{gid}-{os.urandom(8).hex()}"
    make_folder(above_fd, unfinished, root, gid).close()
    try:
        rename(above_fd, unfinished, name)
    except BaseException:
        os.rmdir(unfinished, dir_fd=above_fd)
        raise


def _remove_unfinished_roots(above_fd: int) -> None:
    """Remove what a killed process left; who is just making one notices, and makes another."""
    fd = open_descriptor(".", FOLDER_FLAGS, dir_fd=above_fd)
    try:
        for entry in entries(fd):
            if re.fullmatch(_UNFINISHED_ROOT, entry.name):
                with contextlib.suppress(OSError):
                    os.rmdir(entry.name, dir_fd=fd)
    finally:
        fd.close()


def _exists(folder_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open_root(above_fd: int, root: Path, gid: int | None, missing: _Error) -> Descriptor:
    above = os.fstat(above_fd)
    fd = _open(root.name or ".", FOLDER_FLAGS, above_fd, root, gid, missing)
    owner = os.fstat(fd).st_uid
    if owners.is_open_to_planting(above, gid) and not owners.belongs_to_us(owner):
        fd.close()
        raise owners.unsafe(
            root,
            f"it belongs to user {owner}, and strangers can make folders of group {gid} there",
        )
    return fd


def open_store(root_fd: int, name: str, path: Path) -> Descriptor:
    """Open the folder of a store after checking it; the caller closes the descriptor."""
    missing = partial(
        StoreNotFoundError,
        f"there is no store {name!r} in {path.parent}. Create it with Store.create({name!r}), or "
        f"look whether its processes use the same {ROOT_VARIABLE}.",
        name=name,
        path=str(path),
    )
    return _open(name, FOLDER_FLAGS, root_fd, path, owners.group_of(root_fd), missing)


def open_seats(folder_fd: int, name: str, path: Path) -> Descriptor:
    """Open the folder of the seats after checking it; the caller closes the descriptor."""
    gid, missing = owners.group_of(folder_fd), partial(_incomplete, path, name)
    return _open(name, FOLDER_FLAGS, folder_fd, path / name, gid, missing)


def open_file(folder_fd: int, name: str, path: Path, *, readonly: bool = False) -> Descriptor:
    """Open a file of a store after checking it; the caller closes the descriptor."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | FILE_FLAGS
    gid, missing = owners.group_of(folder_fd), partial(_incomplete, path, name)
    return _open(name, flags, folder_fd, path / name, gid, missing)


def open_seat(seats_fd: int, name: str, path: Path, *, readonly: bool = True) -> Descriptor:
    """Open a seat file after checking it; FileNotFoundError: there is none."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | FILE_FLAGS
    return _open(name, flags, seats_fd, path / name, owners.group_of(seats_fd), None)


def is_unmade(seats_fd: int, name: str) -> bool:
    """Return whether a seat file has no length yet: who made it died before it was a seat."""
    try:
        status = os.stat(name, dir_fd=seats_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and not status.st_size


def _incomplete(path: Path, name: str) -> NotAStoreError:
    return NotAStoreError(
        f"{path} is not a store: it holds no {name!r}. Give the name or folder of a store.",
        path=str(path),
        missing=name,
    )


def _open(
    name: str,
    flags: int,
    parent_fd: int,
    path: Path,
    gid: int | None,
    missing: _Error | None,
) -> Descriptor:
    """Open what belongs to this user or the group alone; raise `missing()` if it is not there."""
    try:
        fd = open_descriptor(name, flags, dir_fd=parent_fd)
    except FileNotFoundError:
        if missing is None:
            raise
        # Made only now: an error that a frame keeps keeps that frame, and all that called it.
        raise missing() from None
    except OSError as error:
        owners.refuse(path, error)
    try:
        owners.check(fd, path, gid, is_folder=bool(flags & os.O_DIRECTORY))
    except BaseException:
        fd.close()
        raise
    return fd


def create_file(folder_fd: int, name: str) -> Descriptor:
    """Make a new file for whom its folder is for; the caller closes the descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | FILE_FLAGS
    try:
        fd = open_descriptor(name, flags, 0o600, dir_fd=folder_fd)
    except OSError as error:
        shortage.refuse(error, Path(shortage.path_of(folder_fd), name))
    try:
        owners.entrust(fd, name, owners.group_of(folder_fd))
    except BaseException:
        fd.close()
        os.unlink(name, dir_fd=folder_fd)
        raise
    return fd


def make_folder(above_fd: int, name: str, path: Path | str, gid: int | None) -> Descriptor:
    """Make a new folder for this user or a group; the caller closes the descriptor.

    Raises
    ------
    FileExistsError
        There is something of this name.
    UnsafePathError
        This user may not give it to the group, or it came with an ACL from the folder above.
    """
    os.mkdir(name, 0o700, dir_fd=above_fd)
    fd = CLOSED
    try:
        fd = open_folder(above_fd, name, path)
        owners.entrust(fd, path, gid)
        owners.check(fd, path, gid, is_folder=True)
    except BaseException:
        fd.close()
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=above_fd)
        raise
    return fd


def open_folder(above_fd: int, name: str, path: Path | str) -> Descriptor:
    try:
        return open_descriptor(name, FOLDER_FLAGS, dir_fd=above_fd)
    except OSError as error:
        owners.refuse(path, error)


def make_seats(folder_fd: int, name: str) -> None:
    """Make the folder of the seats."""
    path = Path(shortage.path_of(folder_fd), name)
    make_folder(folder_fd, name, path, owners.group_of(folder_fd)).close()


def make_store_folder(root_fd: int) -> tuple[str, Descriptor]:
    """Make a folder that no other process will find; return its name and descriptor."""
    name = NEW + os.urandom(8).hex()
    try:
        path = Path(shortage.path_of(root_fd), name)
        return name, make_folder(root_fd, name, path, owners.group_of(root_fd))
    except FileNotFoundError as error:
        message = "somebody has removed the root while a store was made in it"
        raise StoreNotFoundError(message) from error


def rename(root_fd: int, old: str, new: str) -> None:
    """Give a folder its final name. FileExistsError: there is something of that name."""
    if _renameat2 is not None:
        if _renameat2(root_fd, old.encode(), root_fd, new.encode(), _NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in {errno.ENOSYS, errno.EINVAL}:
            raise OSError(number, os.strerror(number), new)
    if _exists(root_fd, new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=root_fd, dst_dir_fd=root_fd)


def remove_root(root: Path, gid: int | None = None) -> None:
    """Remove a default root when it is empty; a root that the user named stays."""
    if not os.environ.get(ROOT_VARIABLE) and root == default_root(gid):
        with contextlib.suppress(OSError):
            root.rmdir()


def is_linked(fd: int, path: Path) -> bool:
    """Return whether an open folder is still the one at `path`."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in owners.FAULTS_OF_A_PATH or isinstance(error, FileNotFoundError):
            return False  # somebody may have put anything in the place of the root
        raise
    return os.path.samestat(found, os.fstat(fd))


def free_bytes(place: int | Path) -> int:
    """Return how many bytes the file system of a folder, by path or open, still has for us."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def full_file_system(place: int | Path, path: Path, asked: int, error: OSError) -> StoreFullError:
    """Return the error for a file system that has no pages left; raise what is another's.

    `place` is a folder there, by path or open.
    """
    if error.errno not in NO_ROOM or isinstance(error, ShmStoreError):
        shortage.refuse(error, path)
    free, status = free_bytes(place), os.statvfs(place)
    if status.f_files and not status.f_favail:
        return StoreFullError(
            f"the file system of {path} has no room: it holds {status.f_files:,} files and "
            f"folders, as many as it may ({error.strerror}). A store takes six, and one more for "
            "each further client. Remove some, let it hold more (tmpfs: `mount -o "
            f"remount,nr_inodes=...`), or set {ROOT_VARIABLE} to a folder on another one.",
            path=str(path),
            asked=asked,
            free=free,
        )
    return StoreFullError(
        f"the file system of {path} has no room: asked for {asked:,} bytes, {free:,} are free "
        f"({error.strerror}). Delete objects. {HOW_TO_ENLARGE}",
        path=str(path),
        asked=asked,
        free=free,
    )


def entries(fd: int) -> list[os.DirEntry[str]]:
    """Return what lies in an open folder."""
    with os.scandir(fd) as found:
        return list(found)
