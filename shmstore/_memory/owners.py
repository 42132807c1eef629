"""Whose is a path, and may it be trusted?

What lies at a path is trusted when nobody but this user, or, where the user has said so, the
members of one group could have put it there, can change it, and can put something else in its
place. The last depends on the folders above it. Nothing that fails is repaired: what others have
put there meanwhile cannot be undone.

What we make is given its owner and mode through its descriptor, whatever the umask says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final, NoReturn

from shmstore._memory import shortage
from shmstore._memory.descriptors import Descriptor, open_descriptor
from shmstore.errors import UnsafePathError

ROOT_VARIABLE: Final = "SHMSTORE_ROOT"

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO or device in the place of a file must not keep us waiting.
FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_PASSING_FLAGS: Final = (
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_PERMISSIONS: Final = stat.S_IRWXU | _OTHERS
_MOST_LINKS: Final = 40

_ACLS: Final = frozenset({"system.posix_acl_access", "system.posix_acl_default"})
_NO_ACLS_HERE: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODATA})
FAULTS_OF_A_PATH: Final = frozenset(
    {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM}
)

_ELSEWHERE: Final = f"name another folder by {ROOT_VARIABLE}, root= or spill_dir=."
_MOVE: Final = f"Let stores lie elsewhere: {_ELSEWHERE}"
_STICKY: Final = f"Set its sticky bit (`chmod +t`), or {_ELSEWHERE}"
_OURS: Final = (
    "A store is closed to all but its user (folders of mode 0700, files 0600), or shared by a "
    "group (0770, 0660) whose members all say group=... when they attach. Remove it if it is "
    f"yours, or {_ELSEWHERE}"
)


# --- what is there -------------------------------------------------------------------------------


def check(fd: int, path: Path | str, gid: int | None, *, is_folder: bool) -> None:
    """Raise `UnsafePathError` unless an open folder or file is this user's, or the group's.

    Parameters
    ----------
    fd, path
        What was opened, and its name for the message.
    gid
        The group whose members are trusted; None: nobody but this user is.
    is_folder
        Whether it must be a folder, or else a regular file.
    """
    status = os.fstat(fd)
    if not (stat.S_ISDIR if is_folder else stat.S_ISREG)(status.st_mode):
        raise unsafe(path, f"it is no {'folder' if is_folder else 'regular file'}")
    if gid is None:
        _check_private(status, path)
    else:
        _check_shared(status, path, gid)
    if has_acl(fd):
        raise unsafe(
            path,
            "it has a POSIX ACL, which may let others in",
            "Remove it (`setfacl --remove-all --remove-default`, from the folder above it too, "
            f"which may have handed it on), or {_ELSEWHERE}",
        )
    if not is_folder and status.st_nlink > 1:
        raise unsafe(path, f"it has {status.st_nlink} hard links")


def check_fifo(fd: int, path: Path | str, gid: int | None) -> None:
    """Raise `UnsafePathError` unless an open file is a FIFO of this user's, or of the group's."""
    status = os.fstat(fd)
    if not stat.S_ISFIFO(status.st_mode):
        raise unsafe(path, "it is no FIFO")
    if gid is None:
        _check_private(status, path)
    else:
        _check_shared(status, path, gid)


def _check_private(status: os.stat_result, path: Path | str) -> None:
    if status.st_uid != os.geteuid():
        raise unsafe(path, f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & _OTHERS:
        raise unsafe(path, f"its mode {stat.S_IMODE(status.st_mode):#o} lets others in")


def _check_shared(status: os.stat_result, path: Path | str, gid: int) -> None:
    if status.st_gid != gid:
        raise unsafe(path, f"it belongs to group {status.st_gid}, not to {gid}")
    wanted = 0o770 if stat.S_ISDIR(status.st_mode) else 0o660
    if status.st_mode & _PERMISSIONS != wanted:
        mode = stat.S_IMODE(status.st_mode)
        raise unsafe(path, f"its mode {mode:#o} is not that of a shared store, {wanted:#o}")


def has_acl(fd: int) -> bool:
    """Return whether an open file or folder has an access list beside its mode, or hands one on."""
    if not hasattr(os, "listxattr"):
        return False
    try:
        return not _ACLS.isdisjoint(os.listxattr(fd))
    except OSError as error:
        if error.errno in _NO_ACLS_HERE:
            return False
        shortage.refuse(error, shortage.path_of(fd))


def group_of(folder_fd: int) -> int | None:
    """Return for which group a folder is that was checked before, or None: for its user alone."""
    status = os.fstat(folder_fd)
    return status.st_gid if status.st_mode & stat.S_IRWXG else None


def entrust(fd: int, path: Path | str, gid: int | None) -> None:
    """Give what this process has just made its group and mode, whatever the umask has left."""
    status = os.fstat(fd)
    is_folder = stat.S_ISDIR(status.st_mode)
    mode = (0o700 if is_folder else 0o600) if gid is None else (0o2770 if is_folder else 0o660)
    if gid is not None and status.st_gid != gid:
        try:
            os.fchown(fd, -1, gid)
        except PermissionError as error:
            reason = f"user {os.geteuid()} is not a member of group {gid}"
            raise unsafe(path, reason, "Join the group, or name another one.") from error
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


# --- the way there -------------------------------------------------------------------------------


def open_above(folder: Path, gid: int | None) -> Descriptor:
    """Open the folder that a root lies in, unless strangers could put another root in its place.

    Each folder and link on the way there is opened relative to the one before, and looked at: it
    belongs to this user or the system, and only they (or the group's members) may change it. Where
    all may write, the sticky bit keeps them from what is not theirs.

    Returns
    -------
    Descriptor
        It serves as ``dir_fd``; the caller closes it.

    Raises
    ------
    FileNotFoundError
        Some folder does not exist.
    UnsafePathError
        Somebody else could exchange what is in some folder.
    """
    todo = list(reversed(folder.parts[1:]))
    way = _Way(gid)
    try:
        while todo:
            name = todo.pop()
            if not way.enter(name):
                target = way.follow(name)
                todo.extend(part for part in reversed(target.split("/")) if part)
    except BaseException:
        way.fd.close()
        raise
    return way.fd


def is_open_to_planting(status: os.stat_result, gid: int | None) -> bool:
    """Return whether strangers can make something in a folder that seems to be the group's."""
    return gid is not None and status.st_gid == gid and bool(status.st_mode & stat.S_IWOTH)


def belongs_to_us(uid: int) -> bool:
    """Return whether an owner is this user or the system."""
    return uid in {0, os.geteuid()} or _is_unmapped(uid)


class _Way:
    """The folders from "/" on, each opened relative to the one before.

    Parameters
    ----------
    gid
        The group whose members are trusted, or None.

    Attributes
    ----------
    fd
        The folder that was reached.
    """

    def __init__(self, gid: int | None) -> None:
        self._gid = gid
        self._links = 0
        self._path = Path("/")
        self.fd = open_descriptor("/", _PASSING_FLAGS)
        self._status = os.fstat(self.fd)

    def _go(self, fd: Descriptor, path: Path) -> None:
        self.fd.close()
        self.fd = fd
        self._path = path
        self._status = os.fstat(fd)

    def enter(self, name: str) -> bool:
        """Go on to a folder; False if it is a link instead."""
        path = self._path / name
        try:
            fd = open_descriptor(name, _PASSING_FLAGS, dir_fd=self.fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            if self._is_link(name):
                return False
            refuse(path, error)
        above = self._status
        self._go(fd, path)
        self._check(above)
        return True

    def _is_link(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISLNK(self._stat(name).st_mode)
        return False

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def follow(self, name: str) -> str:
        """Return where a link leads, seen from the folder that was reached (or from "/")."""
        path = self._path / name
        owner = self._stat(name).st_uid
        if not belongs_to_us(owner):
            raise unsafe(path, f"it is a link of user {owner}, who could turn it elsewhere", _MOVE)
        self._links += 1
        if self._links > _MOST_LINKS:
            raise unsafe(path, "there are too many links on the way there")
        target = os.readlink(name, dir_fd=self.fd)
        if target.startswith("/"):
            self._go(open_descriptor("/", _PASSING_FLAGS), Path("/"))
        return target

    def _check(self, above: os.stat_result) -> None:
        """Raise if somebody else could exchange what is in the folder that was reached."""
        status, gid = self._status, self._gid
        of_members = status.st_gid == gid and not is_open_to_planting(above, gid)
        if not belongs_to_us(status.st_uid) and not (of_members and not status.st_mode & 0o002):
            owner = f"it belongs to user {status.st_uid}"
            raise unsafe(self._path, f"{owner}, who could exchange what is in it", _MOVE)
        if status.st_mode & stat.S_ISVTX or _is_volume(status, above):
            return
        mode = f"its mode {stat.S_IMODE(status.st_mode):#o}"
        if status.st_mode & stat.S_IWOTH:
            raise unsafe(self._path, f"{mode} lets anyone exchange what is in it", _STICKY)
        if status.st_mode & stat.S_IWGRP and not self._is_group_trusted(status.st_gid):
            members = f"the members of group {status.st_gid}"
            raise unsafe(self._path, f"{mode} lets {members} exchange what is in it", _STICKY)

    def _is_group_trusted(self, gid: int) -> bool:
        """Return whether a group is the system's, the one that was named, or this user's own."""
        if gid in {0, self._gid}:
            return True
        import grp  # noqa: PLC0415 - takes time that most processes can save
        import pwd  # noqa: PLC0415 - takes time that most processes can save

        try:
            user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
        except KeyError:
            return False
        if group.gr_name != user or not set(group.gr_mem) <= {user}:
            return False
        try:
            with open_descriptor(".", FOLDER_FLAGS, dir_fd=self.fd) as fd:
                return not has_acl(fd)  # with one, the mode speaks of others than the group
        except OSError:
            return False


def _is_volume(status: os.stat_result, above: os.stat_result) -> bool:
    """Return whether a folder is a file system that the system has mounted for all.

    Containers get their volumes so, /dev/shm too, with a mode that they can neither choose nor
    change. Others in the container can take a root away there, but put only another folder of its
    user in its place, and that from the same volume.
    """
    return status.st_dev != above.st_dev and (status.st_uid == 0 or _is_unmapped(status.st_uid))


def _is_unmapped(uid: int) -> bool:
    """Return whether an owner is "nobody" because this user namespace does not know it."""
    with contextlib.suppress(OSError, ValueError):
        if uid == int(Path("/proc/sys/kernel/overflowuid").read_text()):
            rows = Path("/proc/self/uid_map").read_text().splitlines()
            return sum(int(row.split()[2]) for row in rows) < 2**32 - 1
    return False


# --- the answer ----------------------------------------------------------------------------------


def refuse(path: Path | str, error: OSError) -> NoReturn:
    """Raise what keeps a path from being opened: our error, if it is the path's fault."""
    if error.errno in FAULTS_OF_A_PATH:
        raise unsafe(path, f"it cannot be opened ({error.strerror})") from error
    shortage.refuse(error, path)


def unsafe(path: Path | str, reason: str, cure: str = _OURS) -> UnsafePathError:
    """Return the error for a path that is not to be trusted."""
    return UnsafePathError(
        f"{path} is not safe to use: {reason}. {cure}", path=str(path), reason=reason
    )
