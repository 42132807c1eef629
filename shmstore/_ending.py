"""When does the folder of a store go, and who may remove it?

The root lock is the lock of the root folder itself. Only who makes or removes a store takes it, so
that the folders in a root change by one process at a time. A store goes when it has been destroyed,
or when no client of it lives and it does not persist; whether a client lives is told by the lock of
its seat, under the lock of the store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from shmstore._memory import folder, removal
from shmstore._memory import layout as L
from shmstore._memory.owners import group_of
from shmstore._session import LOCK_NAME, Session, open_index
from shmstore._sharing.lock import hold
from shmstore._sharing.seats import SEATS_NAME, is_taken
from shmstore._sharing.waking import serial_in
from shmstore._tuples import NamedTuple
from shmstore.errors import (
    CorruptStoreError,
    LockTimeoutError,
    StoreExistsError,
    StoreNotFoundError,
)


def make_way(root_fd: int, name: str, path: Path, lock_timeout: float) -> None:
    """Remove a dead store of this name, or raise because it lives. Requires: the root lock."""
    try:
        folder_fd = folder.open_store(root_fd, name, path)
    except StoreNotFoundError:
        return
    with folder_fd:
        if not _end_if_dead(folder_fd, path, lock_timeout).gone:
            raise name_is_taken(path)
    removal.remove_store(root_fd, name)


def name_is_taken(path: Path) -> StoreExistsError:
    """Return the error for the name of a store that lives."""
    return StoreExistsError(
        f"there is a live store {path.name!r} in {path.parent}. Use Store.attach or Store.open to "
        "join it, or another name.",
        name=path.name,
        path=str(path),
    )


class _Fate(NamedTuple):
    """Whether a store is to be removed, and whether some client still sits there."""

    gone: bool
    taken: bool


def end(folder_fd: int, path: Path, lock_timeout: float, *, living: bool) -> bool:
    """Mark a store as destroyed, also one that persists; return whether it is.

    With `living` even if clients of it live. Requires: the root lock.
    """
    return _end_if_dead(folder_fd, path, lock_timeout, kept=True, living=living).gone


def _end_if_dead(
    folder_fd: int, path: Path, lock_timeout: float, *, kept: bool = False, living: bool = False
) -> _Fate:
    """Mark a store as destroyed if it does not persist and no client of it lives; see `end`."""
    with contextlib.ExitStack() as stack:
        lock_fd = stack.enter_context(folder.open_file(folder_fd, LOCK_NAME, path))
        seats_fd = stack.enter_context(folder.open_seats(folder_fd, SEATS_NAME, path))
        if not hold(lock_fd, lock_timeout):
            raise _lock_is_busy(path, lock_timeout)
        seats = [name for name in os.listdir(seats_fd) if not serial_in(name)]
        taken = any(is_taken(seats_fd, seat, path / SEATS_NAME) for seat in seats)
        try:
            index = stack.enter_context(contextlib.closing(open_index(folder_fd, path)))
        except CorruptStoreError:
            return _Fate(living or not taken, taken)
        stays = taken or (index.identity.flags & L.FLAG_PERSIST and not kept)
        if living or not stays:
            index.words[L.W_DESTROYED] = 1
        return _Fate(bool(index.words[L.W_DESTROYED]), taken)


def remove_folder(session: Session, *, if_dead: bool = False) -> bool:
    """Remove the folder of a store, with `if_dead` only if no client lives.

    Returns
    -------
    bool
        True when it was removed because nobody was there any more.
    """
    root, timeout_s = session.path.parent, session.lock.timeout_s
    fate = _Fate(gone=not if_dead, taken=True)
    gid = group_of(session.folder_fd)
    locked = root_locked(root, timeout_s, create=False, gid=gid)
    with contextlib.suppress(StoreNotFoundError), locked as root_fd:
        if folder.is_linked(session.folder_fd, session.path):
            if if_dead:
                fate = _end_if_dead(session.folder_fd, session.path, timeout_s)
            if fate.gone:
                removal.remove_store(root_fd, session.path.name)
        folder.remove_root(root, gid)
    return fate.gone and not fate.taken


@contextlib.contextmanager
def root_locked(root: Path, timeout_s: float, *, create: bool, gid: int | None) -> Iterator[int]:
    """Hold the root lock; yield the descriptor of the root folder.

    Without `create` a root that is not there is a StoreNotFoundError: who comes to remove
    something must not leave a folder.
    """
    while True:
        root_fd = folder.open_root(root, create=create, gid=gid)
        try:
            with root_fd:
                if not hold(root_fd, timeout_s):
                    raise _lock_is_busy(root, timeout_s)
                if folder.is_linked(root_fd, root):
                    yield root_fd
                    return
        finally:
            # A signal handler that raised as the block ended has kept it open, and so locked.
            root_fd.close()


def _lock_is_busy(path: Path, timeout_s: float) -> LockTimeoutError:
    return LockTimeoutError(
        f"the lock of {path} was not free within {timeout_s:g} s. Is a process that creates, "
        "attaches or destroys a store there stopped? Continue or end it.",
        holder="unknown",
        timeout_s=timeout_s,
    )
