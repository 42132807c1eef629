"""How does a store come into being, how is it joined and left, and how does it end?

* create: under the root lock, in a folder nobody can find, with the creator's seat in it; then a
  rename makes it visible, whole and alive.
* attach: under the store lock a seat is taken. A store that is being removed says so in its index.
* leave: the seat goes. The owner's going, and the last client's, destroys the store unless it
  persists.
* destroy: DESTROYED is set and all objects doomed under the store lock, memory nobody looks at
  goes back to the system, the folder is renamed away and removed. Views stay valid.

Fork and exit are in `_process`; what a killed process leaves is undone by others, in `_recovery`.
When the folder of a store may go, and under which lock, is in `_ending`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from shmstore import _announcing, _reading
from shmstore._catalog import states
from shmstore._catalog.table import extents_of, holds_extent
from shmstore._ending import make_way, name_is_taken, remove_folder, root_locked
from shmstore._memory import folder, news, removal, shortage
from shmstore._memory import layout as L
from shmstore._memory.descriptors import Descriptor
from shmstore._memory.index import INDEX_NAME, create_index, new_identity
from shmstore._memory.segment import SEGMENT_NAME, Segment
from shmstore._options import Options, parse_size, ttl_ns
from shmstore._session import LOCK_NAME, Session, forming, open_index
from shmstore._sharing import barrier
from shmstore._sharing.seats import SEATS_NAME
from shmstore._trimming import Housekeeping
from shmstore.errors import (
    NotAStoreError,
    ShmStoreError,
    StoreClosedError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
)

sessions: dict[tuple[bytes, bool], Session] = {}
registry = threading.RLock()
_departing: list[Session] = []
housekeeping = Housekeeping(sessions.values, registry)
first_steps: list[Callable[[], None]] = []
"""What is done when this process enters its first store."""
last_steps: list[Callable[[Session], None]] = []
"""What is done before this process leaves a store."""


# --- create, attach, open ----------------------------------------------------------------------


def create(
    name: str | None, options: Options, held: list[Session], *, opened: bool = False
) -> None:
    """Make a store and append its session to `held`; this process owns it unless `opened`.

    Whatever is raised, and be it by a signal handler at the last moment: who calls leaves what it
    finds in `held`.

    Raises
    ------
    StoreExistsError
        The name is taken by a live store.
    StoreFullError
        The shared-memory file system cannot give the capacity.
    """
    name = folder.random_name() if name is None else folder.check_name(name)
    root = options.root_path
    with registry, _told(root / name, options):
        sweep()
        with root_locked(root, options.lock_timeout, create=True, gid=options.gid) as root_fd:
            try:
                removal.remove_leftovers(root_fd)
                make_way(root_fd, name, root / name, options.lock_timeout)
                _build(root_fd, root / name, options, held, 0 if opened else os.getpid())
            except BaseException:
                folder.remove_root(root, options.gid)
                raise
    news.tell(news.INFO, "%s: made, for %d bytes", held[0].path, held[0].identity.capacity)


def attach(
    name_or_path: str | os.PathLike[str],
    options: Options,
    held: list[Session],
    *,
    readonly: bool = False,
    visit: bool = False,
) -> None:
    """Join a store that exists, see `create`; sessions of this process are shared."""
    path = _path_of(name_or_path, options)
    with registry, shortage.told(path):
        sweep()
        with folder.open_root(path.parent, create=False, gid=options.gid) as root_fd:
            folder_fd = folder.open_store(root_fd, path.name, path)
        try:
            session = _shared(_identity_of(folder_fd, path), readonly=readonly)
            if session is None:
                session = _join(
                    folder_fd, path, options.lock_timeout, readonly=readonly, visit=visit
                )
            session.found_dead &= visit
            _enter(session, held)
            _reading.rehearse(session)
        except BaseException as error:
            if held:
                raise
            with folder_fd:
                if isinstance(error, NotAStoreError) and not folder.is_linked(folder_fd, path):
                    gone = f"{path} has just been removed"
                    raise StoreNotFoundError(gone, path=str(path)) from error
            raise
        if session.folder_fd is not folder_fd:
            folder_fd.close()


def look(name_or_path: str | os.PathLike[str], options: Options, held: list[Session]) -> None:
    """Open a store without a seat, see `create`; the session is of this one handle."""
    path = _path_of(name_or_path, options)
    with shortage.told(path):
        with folder.open_root(path.parent, create=False, gid=options.gid) as root_fd:
            folder_fd = folder.open_store(root_fd, path.name, path)
        try:
            session = Session(
                folder_fd, path, options.lock_timeout, readonly=True, visit=True, seated=False
            )
        except BaseException:
            folder_fd.close()
            raise
        session.handles = 1
        held.append(session)


def open_or_create(name: str, options: Options, held: list[Session]) -> None:
    """Join a store, or make it when there is none, see `create`; race-free between processes."""
    while not held:
        try:
            attach(name, options, held)
        except StoreNotFoundError:
            with contextlib.suppress(StoreExistsError):
                create(name, options, held, opened=True)


def session_of(identity: bytes, path: str, gid: int | None = None) -> Session:
    """Return a session for the store that a reference names; attach if there is none."""
    shared = _shared(identity, readonly=False) or _shared(identity, readonly=True)
    if shared is not None:
        return shared
    held: list[Session] = []
    attach(path, Options(group=gid), held)
    [session] = held
    if session.uuid != identity:
        leave(held)
        raise StoreNotFoundError(
            f"the store that this reference belongs to is gone; {path} is another store of that "
            f"name.",
            path=path,
        )
    return session


def _join(
    folder_fd: Descriptor,
    path: Path,
    lock_timeout: float,
    *,
    readonly: bool = False,
    visit: bool = False,
) -> Session:
    """Make a session on an open folder, which it owns if this succeeds."""
    session = Session(folder_fd, path, lock_timeout, readonly=readonly, visit=visit)
    _check_own(session)
    if session.lock_free and not barrier.register():
        session.leave_seat()
        session.close_files()
        raise ShmStoreError(
            f"the store {path.name!r} is read without a lock, which needs membarrier(2); this "
            "process may not call it (a seccomp filter?). Create the store with locked_reads=True.",
            path=str(path),
        )
    return session


def _build(root_fd: int, path: Path, options: Options, held: list[Session], owner_pid: int) -> None:
    """Make all files of a store and join it, then give the folder its name."""
    flags, pid = _flags_of(options), os.getpid()
    temporary, folder_fd = folder.make_store_folder(root_fd)
    session = None
    try:
        with _told(path, options):  # before the room is given back
            capacity = _affordable(folder_fd, path, options)
            _write_files(folder_fd, path.name, capacity, flags, options)
            session = _join(folder_fd, path, options.lock_timeout)
            session.owner_pid = owner_pid
            folder.rename(root_fd, temporary, path.name)
        _enter(session, held)
    except BaseException as error:
        if held:
            raise
        with contextlib.suppress(OSError):  # whoever makes the next store removes it
            made = path.name if folder.is_linked(folder_fd, path) else temporary
            if os.getpid() == pid:  # or a signal handler has forked, and the store is the parent's
                removal.remove_store(root_fd, made)
        folder_fd.close()
        if session is not None:
            session.close_files()
        if isinstance(error, FileExistsError):
            raise name_is_taken(path) from error
        raise


def _flags_of(options: Options) -> int:
    locked = options.locked_reads
    return sum(
        flag
        for flag, wanted in (
            (L.FLAG_PERSIST, options.persist),
            (L.FLAG_LOCKED_READS, not barrier.register() if locked is None else locked),
            (L.FLAG_CHECKSUM, options.checksum),
            (L.FLAG_ZERO_ON_FREE, options.zero_on_free),
            (L.FLAG_EVICT, options.on_full == "evict"),
            (L.FLAG_SPILL, options.on_full == "spill"),
            (L.FLAG_TRACE_PINS, options.trace_pins),
        )
        if wanted
    )


def _write_files(folder_fd: int, name: str, capacity: int, flags: int, options: Options) -> None:
    ttl = 0 if options.ttl is None else ttl_ns(options.ttl)
    group = 0 if options.gid is None else options.gid + 1
    sizes = capacity, options.max_objects, options.max_clients
    identity = new_identity(*sizes, flags, ttl, group)
    backed = capacity if options.prefault else 0
    folder.make_seats(folder_fd, SEATS_NAME)
    folder.create_file(folder_fd, LOCK_NAME).close()
    with folder.create_file(folder_fd, SEGMENT_NAME) as fd:
        Segment.create(fd, identity.uuid, capacity, prefault=options.prefault)
    with folder.create_file(folder_fd, INDEX_NAME) as fd:
        create_index(fd, identity, backed=backed)
    if options.on_full == "spill":
        from shmstore._memory import spill_files  # noqa: PLC0415 - takes time that most processes can save

        spill_files.make_folder(folder_fd, options.spill_path, name, identity.uuid, options.gid)


def _affordable(folder_fd: int, path: Path, options: Options) -> int:
    """Return the capacity, if the file system could give it now."""
    free = folder.free_bytes(folder_fd)
    capacity = options.capacity_within(free)
    if capacity > free:
        raise StoreFullError(
            f"a capacity of {capacity:,} bytes was asked for, but the file system of {path.parent} "
            f"has only {free:,} free. Ask for less. {folder.HOW_TO_ENLARGE}",
            asked=capacity,
            free=free,
        )
    return capacity


# --- leave and destroy -------------------------------------------------------------------------


def leave(held: list[Session], *, owner: bool = False) -> None:
    """Give back the one handle in a list. With the owner's or the last the seat goes, maybe more.

    The list is empty when that is done. If not, the session is closed, or it may be tried again.
    """
    [session] = held
    with registry, shortage.told(session.path):
        sweep()
        ends = owner and session.owner_pid == os.getpid() and not session.persistent
        if ends and not session.closed:
            destroy(session)
        if not session.closed and session.handles <= 1:
            for step in last_steps:
                step(session)
            session.pins.watch(lambda: _departing.append(session))
            if not session.pins.in_use():
                depart(session)
        # One step, as in `_enter`.
        session.handles -= 1
        held.clear()


def destroy(session: Session) -> None:
    """End a store. Views stay valid in every process; everything else of it is gone."""
    session.check_writeable()
    with shortage.told(session.path):
        try:
            session.lock.run(_doom_store, session)
        finally:
            if session.words[L.W_DESTROYED]:
                try:
                    remove_folder(session)
                finally:
                    forget(session)
                    news.tell(news.INFO, "%s: destroyed", session.path)


def _doom_store(session: Session) -> None:
    """Mark a store as destroyed. Requires: the store lock."""
    if session.words[L.W_DESTROYED]:
        return
    _announcing.wake_all(session)
    session.words[L.W_DESTROYED] = 1
    session.pass_barrier()  # who puts without the lock and has not seen that has published by now
    states.doom_all(session.slots.table()[:, L.S_STATE])
    session.pass_barrier()
    _release_memory(session)


def sweep() -> None:
    """Finish the sessions whose last view has died, and those whose store has been destroyed."""
    with registry:
        while _departing:
            session = _departing.pop()
            if session.handles <= 0 and not session.closed and not session.pins.in_use():
                depart(session)
        for session in list(sessions.values()):
            if session.index.words[L.W_DESTROYED]:
                forget(session)


def depart(session: Session) -> None:
    """Give the seat back; with the last client a store goes that does not persist.

    Whatever goes wrong, this process is done with the store: a seat that it could not give back
    is unlocked when its file is closed, and others see to the rest.
    """
    try:
        if not session.index.words[L.W_DESTROYED]:
            if not session.leave_seat():
                return
            alone = not session.stays and not has_others(session)
            if alone and remove_folder(session, if_dead=True):
                session.segment.release_pages(0, session.identity.capacity)
    except NotAStoreError:
        if folder.is_linked(session.folder_fd, session.path):
            forget(session)
            raise
    except BaseException:
        forget(session)
        raise
    forget(session)


def has_others(session: Session) -> bool:
    """Return whether another client of the store lives."""
    return session.lock.run(_find_others, session)


def _find_others(session: Session) -> bool:
    clients = session.clients
    return any(c.row != session.row and clients.is_alive(c) for c in clients.rows())


def _release_memory(session: Session) -> None:
    """Give the pages of all extents back that nobody pins or writes. Requires: the store lock."""
    table = session.slots.table()
    state = states.states_of(table[:, L.S_STATE])
    writing = (state == states.WRITING) | (state == states.FILLING)
    kept = session.clients.pinned() | set(writing.nonzero()[0].tolist())
    ending = [session.words[client.at + L.C_ENDING] - 1 for client in session.clients.rows()]
    kept.update(slot for slot in ending if 0 <= slot < len(table))
    rows = table[sorted(kept)]
    rows = rows[holds_extent(rows)]
    places = zip(extents_of(rows).tolist(), rows[:, L.S_EXTENT_NBYTES].tolist(), strict=True)
    start = 0
    for offset, nbytes in [*sorted(places), (session.identity.capacity, 0)]:
        session.segment.release_pages(start, offset - start)
        start = max(start, offset + nbytes)


def forget(session: Session, *, keep_seat: bool = False) -> None:
    """End a session: close its files. Views keep their mappings."""
    if sessions.get((session.uuid, session.readonly)) is session:
        del sessions[session.uuid, session.readonly]
    closed, session.closed = session.closed, True  # what is interrupted is not done again
    if not closed:
        session.close_files(keep_seat=keep_seat)


# --- the registry -----------------------------------------------------------------


@contextlib.contextmanager
def _told(path: Path, options: Options) -> Iterator[None]:
    """Let what keeps a store from being made be told: a full file system above all."""
    try:
        yield
    except OSError as error:
        place = next((above for above in path.parents if os.path.isdir(above)), path)
        asked = L.PAGE if options.capacity is None else parse_size(options.capacity)
        raise folder.full_file_system(place, path, asked, error) from error


def _path_of(name_or_path: str | os.PathLike[str], options: Options) -> Path:
    text = os.fsdecode(name_or_path)
    if os.sep in text:
        path = Path(text).absolute()
        folder.check_name(path.name)
        return path
    return options.root_path / folder.check_name(text)


def _identity_of(folder_fd: int, path: Path) -> bytes:
    with contextlib.closing(open_index(folder_fd, path)) as index:
        return index.identity.uuid.to_bytes(16)


def _shared(identity: bytes, *, readonly: bool) -> Session | None:
    session = sessions.get((identity, readonly))
    return None if session is None or session.closed or session.words[L.W_DESTROYED] else session


def _check_own(session: Session) -> None:
    """Raise in a child that was forked while its parent made this session."""
    if session.closed:
        raise StoreClosedError(
            f"a signal handler has forked while {session.path} was opened. In the child open it "
            "again.",
            path=str(session.path),
        )


def _enter(session: Session, held: list[Session]) -> None:
    """Count one handle more, and hand the session over. Requires: the registry."""
    while first_steps:
        first_steps.pop()()
    session.pins.watch(None)
    session.notice = housekeeping.start
    _check_own(session)
    # One step: no signal handler runs before the list has it.
    sessions[session.uuid, session.readonly] = session
    session.handles += 1
    held.append(session)
    forming.discard(session)
