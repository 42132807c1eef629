"""Which stores are there?"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any, Final

from shmstore import _spares
from shmstore._disk import nbytes_below
from shmstore._memory import folder, shortage
from shmstore._memory import layout as L
from shmstore._memory.descriptors import Descriptor
from shmstore._memory.index import Index
from shmstore._options import Options
from shmstore._session import open_index
from shmstore._sharing.clients import Clients
from shmstore._sharing.seats import SEATS_NAME
from shmstore.errors import ShmStoreError, StoreNotFoundError

_MOST_FILES: Final = 5000


@dataclasses.dataclass(frozen=True)
class StoreSummary:
    """What can be told of a store without attaching it; sizes are bytes.

    Parameters
    ----------
    name, path
        Of its folder.
    problem
        Why nothing more can be told; "" when all is well.
    owner
        The number of the user whose it is.
    resident
        What its folder takes of the file system now.
    created, creator_pid
        When it was made, in seconds since 1970, and by which process.
    capacity, used, objects, named, max_objects, spilled
        As in `StoreStats`.
    clients, dead
        Attached processes that live, and those that have died without leaving.
    persist, group, on_full
        As in `Options`; the group is a number.
    """

    name: str
    path: str
    problem: str
    owner: int
    resident: int
    created: float = 0.0
    creator_pid: int = 0
    capacity: int = 0
    used: int = 0
    objects: int = 0
    named: int = 0
    max_objects: int = 0
    spilled: int = 0
    clients: int = 0
    dead: int = 0
    persist: bool = False
    group: int | None = None
    on_full: str = "raise"

    @property
    def state(self) -> str:
        """What it is: alive, kept (it persists without clients), dead or damaged."""
        if self.problem:
            return "damaged"
        if self.clients:
            return "alive"
        return "kept" if self.persist else "dead"


def stores(
    root: str | os.PathLike[str] | None = None, *, group: str | int | None = None
) -> list[StoreSummary]:
    """Return what can be told of each store without attaching it, by name.

    Parameters
    ----------
    root, group
        See `Options`. With a group its stores are told instead of this user's.

    Returns
    -------
    list of StoreSummary
        Empty when there is no root. A folder that is no store, or a damaged one, is among them and
        says so.

    Raises
    ------
    UnsafePathError
        The root is foreign, a symlink, or open to others.

    Notes
    -----
    Concurrency: takes no lock and changes nothing.

    Examples
    --------
    >>> import shmstore
    >>> with shmstore.Store.create(capacity="1MiB") as store:
    ...     [found] = [found for found in shmstore.stores() if found.name == store.name]
    >>> found.state, found.clients, found.objects
    ('alive', 1, 0)
    """
    options = Options(root=root, group=group)
    path = options.root_path
    found: list[StoreSummary] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(shortage.told(path))
        stack.enter_context(contextlib.suppress(StoreNotFoundError))
        root_fd = stack.enter_context(folder.open_root(path, create=False, gid=options.gid))
        for name in sorted(entry.name for entry in folder.entries(root_fd)):
            if folder.is_name(name):
                with contextlib.suppress(StoreNotFoundError, FileNotFoundError):
                    found.append(_summary(root_fd, name, path / name))
    return found


def _summary(root_fd: Descriptor, name: str, path: Path) -> StoreSummary:
    owner = os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_uid
    summary = StoreSummary(name, str(path), "", owner, nbytes_below(path, [_MOST_FILES]))
    try:
        with folder.open_store(root_fd, name, path) as folder_fd:
            return _read(folder_fd, path, summary)
    except StoreNotFoundError:
        raise
    except ShmStoreError as error:
        return dataclasses.replace(summary, problem=str(error))


def _read(folder_fd: Descriptor, path: Path, summary: StoreSummary) -> StoreSummary:
    """Return a summary with what the index says, and the locks of the seats."""
    with (
        contextlib.closing(open_index(folder_fd, path)) as index,
        folder.open_seats(folder_fd, SEATS_NAME, path) as seats_fd,
    ):
        clients = Clients(index, seats_fd)
        alive = [clients.is_alive(client) for client in clients.rows()]
        living = sum(alive)
        found = _words(index, clients)
        return dataclasses.replace(summary, clients=living, dead=len(alive) - living, **found)


def _words(index: Index, clients: Clients) -> dict[str, Any]:
    identity, words = index.identity, index.words
    used = words[L.W_USED] - _spares.kept_nbytes(clients)
    on_full = "evict" if identity.flags & L.FLAG_EVICT else "raise"
    return {
        "created": identity.created_ns / 1e9,
        "creator_pid": identity.creator_pid,
        "capacity": identity.capacity,
        "used": min(used, identity.capacity),
        "objects": _spares.count_objects(clients),
        "named": words[L.W_NAMED],
        "max_objects": identity.max_objects,
        "spilled": words[L.W_SPILLED],
        "persist": bool(identity.flags & L.FLAG_PERSIST),
        "group": identity.group - 1 if identity.group else None,
        "on_full": "spill" if identity.flags & L.FLAG_SPILL else on_full,
    }
