"""How do the stores go that their processes had no time to remove?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from shmstore import _ending, _lifecycle
from shmstore._memory import folder, removal, shortage
from shmstore._options import Options
from shmstore.errors import (
    FormatVersionError,
    LockTimeoutError,
    NotAStoreError,
    StoreExistsError,
    StoreNotFoundError,
    UnsafePathError,
)

# A store whose lock is not free for so long has a client that lives.
_GLANCE_S: Final = 1.0

# What is said of a store that stays.
_STAYING: Final = (
    FormatVersionError,
    LockTimeoutError,
    NotAStoreError,
    StoreExistsError,
    UnsafePathError,
)

# What leaves open whether a store has clients.
_UNTOLD: Final = (FormatVersionError, LockTimeoutError, NotAStoreError)


def prune(
    root: str | os.PathLike[str] | None = None,
    *,
    group: str | int | None = None,
    lock_timeout: float = 30.0,
) -> list[str]:
    """Remove the stores whose processes have all died.

    A store goes with its owner or its last client. One whose processes were all killed stays until
    its name is used again, or until this is called. Stores that persist stay, and so does whatever
    is no store of this version and this user (or group).

    Parameters
    ----------
    root, group, lock_timeout
        See `Options`. With a group its stores are looked at instead of this user's.

    Returns
    -------
    list of str
        The names of the stores that were removed.

    Raises
    ------
    LockTimeoutError
        Somebody holds the root without going on.

    Examples
    --------
    >>> import shmstore
    >>> with shmstore.Store.create(capacity="1MiB") as store:
    ...     store.name in shmstore.prune()
    False
    """
    options = Options(root=root, group=group, lock_timeout=lock_timeout)
    path = options.root_path
    removed: list[str] = []
    with _lifecycle.registry, shortage.told(path), contextlib.suppress(StoreNotFoundError):
        _lifecycle.sweep()
        locked = _ending.root_locked(path, lock_timeout, create=False, gid=options.gid)
        with locked as root_fd:
            removal.remove_leftovers(root_fd)
            for name in sorted(os.listdir(root_fd)):
                try:
                    _ending.make_way(root_fd, name, path / name, _GLANCE_S)
                except _STAYING:
                    continue
                removed.append(name)
            folder.remove_root(path, options.gid)
    return removed


def remove(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    group: str | int | None = None,
    lock_timeout: float = 30.0,
    force: bool = False,
) -> None:
    """Remove a store by its name, also one that persists, is damaged, or of another version.

    `Store.destroy` is for who has a handle. This does not open the store, so nothing that is wrong
    with it matters.

    Parameters
    ----------
    name
        Of the store.
    root, group, lock_timeout
        See `Options`.
    force
        Remove it even if processes are attached: their views stay valid, and what they put from
        now on nobody else can find.

    Raises
    ------
    StoreExistsError
        Processes are attached, and `force` is false.
    LockTimeoutError, NotAStoreError, FormatVersionError
        Whether they are cannot be told, and `force` is false.
    StoreNotFoundError
        There is no such store.

    Examples
    --------
    >>> import shmstore
    >>> with shmstore.Store.create("kept", persist=True, capacity="1MiB"):
    ...     pass
    >>> shmstore.remove("kept")
    """
    options = Options(root=root, group=group, lock_timeout=lock_timeout)
    path = options.root_path / folder.check_name(name)
    with _lifecycle.registry, shortage.told(path):
        _lifecycle.sweep()
        locked = _ending.root_locked(path.parent, lock_timeout, create=False, gid=options.gid)
        with locked as root_fd:
            with folder.open_store(root_fd, name, path) as folder_fd:
                _end(folder_fd, path, force=force)
            removal.remove_store(root_fd, name)
            folder.remove_root(path.parent, options.gid)


def _end(folder_fd: int, path: Path, *, force: bool) -> None:
    """Let the processes of a store know that it goes, or raise because there are some."""
    try:
        gone = _ending.end(folder_fd, path, _GLANCE_S, living=force)
    except _UNTOLD:
        if not force:
            raise
    else:
        if not gone:
            raise StoreExistsError(
                f"processes are attached to the store {path.name!r}: end them, or remove it with "
                "force, which leaves them their views.",
                name=path.name,
                path=str(path),
            )
