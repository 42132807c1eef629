"""How do the stores go that their processes had no time to remove?"""

from __future__ import annotations

import contextlib
import os
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
