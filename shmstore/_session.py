"""What does this process hold of one store? One session per store, shared by all its handles.

A session is the open files, the mapped tables, the lock and the seat of this process. It lives
from the first handle (or the first `ObjectRef.get`) to the last handle, and then as long as views
live.

Concurrency: threads share a session; what they share in it is read-only after construction,
guarded by the store lock, or safe by itself (`Pins`). A forked child gets seat and lock of its own
before it runs any user code: see `_lifecycle`.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from shmstore import _claiming, _recovery, _room, _spares
from shmstore._catalog.keys import KeyIndex
from shmstore._catalog.queues import Queues
from shmstore._catalog.slots import Slots
from shmstore._memory import folder
from shmstore._memory import layout as L
from shmstore._memory.allocator import Allocator
from shmstore._memory.descriptors import Descriptor
from shmstore._memory.index import INDEX_NAME, Index
from shmstore._memory.news import News
from shmstore._memory.owners import group_of
from shmstore._memory.segment import Segment, open_segment
from shmstore._options import ttl_ns
from shmstore._sharing.clients import Clients
from shmstore._sharing.lock import StoreLock
from shmstore._sharing.seats import SEATS_NAME, Pins, Seat
from shmstore._sharing.waking import Bells
from shmstore._space import Space
from shmstore.errors import (
    CorruptStoreError,
    ReadOnlyStoreError,
    StoreClosedError,
    StoreFullError,
    StoreNotFoundError,
)

if TYPE_CHECKING:
    from shmstore._packing import Package

LOCK_NAME = "lock"

# What `close_files` takes away.
_TABLES = ("words", "memory", "index", "slots", "keys", "queues", "allocator", "clients", "waiters")
_PARTS = (*_TABLES, "segment", "files")

# The dead are looked for when there may be this many of them.
_FEW_CLIENTS = 8

# Bytes of deleted objects from which on their memory is given back at once.
_MOST_DOOMED = 1 << 18

# What a process keeps of its own deleted objects for its next puts, at most, unless others need it.
_MOST_SPARE = 1 << 26

# Objects whose place a process remembers; a plan takes about 1 KiB.
_MOST_PLANS = 1 << 14


# Those that no handle has yet: a signal handler may fork meanwhile.
forming: Final[weakref.WeakSet[Session]] = weakref.WeakSet()


def open_index(folder_fd: int, path: Path) -> Index:
    """Open and map the index of the store in a folder; the caller closes it."""
    fd = folder.open_file(folder_fd, INDEX_NAME, path)
    try:
        return Index(fd, str(path / INDEX_NAME))
    except BaseException:
        fd.close()
        raise


class Session(Space):
    """The files and tables of one store, as one process uses them.

    Parameters
    ----------
    folder_fd
        The open folder of the store; owned by this object from now on.
    path
        The folder's (final) path.
    readonly
        Map the store read-only; only the seat of this process is written.
    lock_timeout
        Seconds to wait for the store lock.
    visit
        Leave what the dead have left as it is, unless there is no seat.
    seated
        False: only look, without a seat, and so without views.

    Attributes
    ----------
    found_dead
        Whether a visitor found nobody alive here: then the store does not go with this session.
    """

    def __init__(
        self,
        folder_fd: Descriptor,
        path: Path,
        lock_timeout: float,
        *,
        readonly: bool = False,
        visit: bool = False,
        seated: bool = True,
    ) -> None:
        self.folder_fd = folder_fd
        self.path = path
        self.readonly = readonly
        self.handles = self.owner_pid = 0
        self.closed = False
        self.row = -1
        self.pid = os.getpid()
        self._bury_at = 0
        self.found_dead = visit
        self.announced = 0
        self.abandoned: list[tuple[int, int]] = []
        self.plans: dict[str | int, Any] = {}
        self.verified: set[tuple[int, int | None]] = set()
        self.notice: Callable[[], None] = _nothing
        self.allowed_modules: Collection[str] | None = None
        with contextlib.ExitStack() as opened:
            self.seats_fd = folder.open_seats(folder_fd, SEATS_NAME, path)
            opened.callback(self.seats_fd.close)
            self.bells = Bells(self.seats_fd, path / SEATS_NAME)
            opened.callback(self.bells.close)
            self.index = open_index(self.folder_fd, self.path)
            opened.callback(self.index.close)
            self.identity = self.index.identity
            self.uuid = self.identity.uuid.to_bytes(16)
            self.path_text = str(path)
            self.gid = group_of(folder_fd)
            self._read_flags()
            self._map_tables()
            self._open_lock(lock_timeout)
            opened.callback(self.lock.close)
            self.segment: Segment = open_segment(
                folder_fd,
                path,
                self.identity.uuid,
                self.identity.capacity,
                readonly=readonly,
            )
            opened.callback(self.segment.close)
            if self.spills:
                from shmstore._memory.spill_files import SpillFiles  # noqa: PLC0415 - takes time that most processes can save

                self.files = SpillFiles(folder_fd, path, self.identity.uuid)
                opened.callback(self.files.close)
            (self._take_seat if seated else self._look_on)()
            opened.pop_all()

    def _open_lock(self, timeout_s: float) -> None:
        fd = folder.open_file(self.folder_fd, LOCK_NAME, self.path)
        self.lock = StoreLock(fd, self.words, timeout_s, self._mend, self._describe)
        self.lock.path = self.index.path
        self.news = self.lock.news = News(self.path_text)

    def _read_flags(self) -> None:
        """Say what the options of the store mean for this session.

        `clocked`: gets note when they were; `flat`: gets may take the shortest way; `quick`: what
        has no key may be put and deleted without the lock.
        """
        flags = self.identity.flags
        self.lock_free = not flags & L.FLAG_LOCKED_READS
        self.traced = bool(flags & L.FLAG_TRACE_PINS)
        self.spills = bool(flags & L.FLAG_SPILL)
        self.evicts = bool(flags & L.FLAG_EVICT)
        self.checksums = bool(flags & L.FLAG_CHECKSUM)
        self.optioned = bool(self.checksums or self.identity.ttl_ns)
        # What waits in deleted objects for the next put, at most, unless somebody looks at it.
        wipes = flags & L.FLAG_ZERO_ON_FREE
        self.most_doomed = 0 if wipes else min(_MOST_DOOMED, self.identity.capacity >> 6)
        self.clocked = (self.spills or self.evicts) and not self.readonly
        special = self.spills or self.evicts or wipes or self.identity.ttl_ns
        self.quick = self.lock_free and not (special or self.readonly)
        self.most_spare = min(_MOST_SPARE, self.identity.capacity >> 5) if self.quick else 0
        self.flat = self.lock_free and not self.traced and (self.clocked or not self.spills)

    def _map_tables(self) -> None:
        self.words: Any = self.index.words
        self.memory: Any = self.index.memory
        self.clients = Clients(self.index, self.seats_fd)
        self.waiters = self.clients.waiters
        self.slots = Slots(self.index)
        self.keys = KeyIndex(self.index)
        self.queues = Queues(self.index)
        self.allocator = Allocator(self.index)
        self.unpinned = set()
        self.spares = _spares.Spares()

    @property
    def persistent(self) -> bool:
        """Whether the store stays without clients."""
        return bool(self.identity.flags & L.FLAG_PERSIST)

    @property
    def stays(self) -> bool:
        """Whether the store stays when this session, the last one, ends."""
        return self.persistent or self.found_dead

    def check_alive(self) -> None:
        """Raise if the store has been destroyed; sure only under the store lock."""
        if self.words[L.W_DESTROYED]:
            raise StoreClosedError(
                f"the store {self.path.name!r} has been destroyed by its owner. Views that you "
                "hold stay valid; for anything else create it again.",
                path=str(self.path),
            )

    def check_writeable(self) -> None:
        """Raise if this session may only read."""
        if self.readonly:
            raise ReadOnlyStoreError(
                f"this handle of {self.path.name!r} was attached with readonly=True. Attach again "
                "without it to change the store.",
                path=str(self.path),
            )

    def with_options(self, package: Package, ttl: float | None) -> Package:
        """Return a package with the time to live and the checksum that the store wants."""
        live_ns = self.identity.ttl_ns if ttl is None else ttl_ns(ttl)
        if not live_ns and not self.checksums:
            return package
        return package.with_options(ttl_ns=live_ns, checksum=self.checksums)

    def remember(self, key: str | int, plan: Any) -> None:
        """Keep the plan of an object for the next get, by its key or by its slot word."""
        if len(self.plans) >= _MOST_PLANS:
            self.tell_gets()
            self.plans.clear()
        self.plans[key] = plan

    def tell_gets(self) -> None:
        """Let others see all that this process has counted (see `_gets`)."""
        for plan in list(self.plans.values()):
            plan.tell()

    def reclaim_all(self) -> None:
        """Free every deleted object that nobody looks at. Requires: the store lock."""
        self.sweep()
        if not self.readonly:
            _room.expire(self)
            self.reclaim(self.identity.max_objects)

    def bury(self) -> _recovery.Buried:
        """Undo what dead clients left: pins, half-made puts, seats. Requires: the store lock."""
        self.check_alive()
        self.sweep()
        return _recovery.bury(self)

    # --- the seat ------------------------------------------------------------------------------

    def _take_seat(self) -> None:
        """Enter this process into the client table; from then on a read-only session only reads."""
        forming.add(self)
        self.lock.mark = self.identity.max_clients + 1
        self.counts: Any = self.lock.counts
        # What may fail comes before the seat.
        unchangeable = self.index.map_readonly() if self.readonly else None
        self.row, seat = self.lock.run(self._enter)
        self.pins = _kind_of_pins(traced=self.traced)(seat)
        self.counts = self.lock.counts = seat.words
        self.clients.know(self.row, seat)
        self.pins.prepare()
        self.lock.mark = 0 if self.readonly else self.row + 1
        if unchangeable is not None:
            self.index.protect(unchangeable)
            self._map_tables()
            self.clients.know(self.row, seat)
            self.lock.words = self.words
        self.spares = _spares.begin(self)

    def _look_on(self) -> None:
        """Be nobody: without a seat nothing of the store is written, and no lock is needed."""
        if self.words[L.W_DESTROYED]:
            raise StoreNotFoundError(f"the store {self.path} is being removed", path=str(self.path))
        self.counts = self.lock.counts
        from shmstore._sharing.onlooking import NoPins  # noqa: PLC0415 - takes time that most processes can save

        self.pins = cast("Pins", NoPins())
        self.index.protect(self.index.map_readonly())
        self._map_tables()
        self.lock.words = self.words

    def _enter(self) -> tuple[int, Seat]:
        if self.words[L.W_DESTROYED]:
            raise StoreNotFoundError(f"the store {self.path} is being removed", path=str(self.path))
        if self.found_dead:
            self._bury_at = self.identity.max_clients
            self.found_dead = not any(map(self.clients.is_alive, self.clients.rows()))
        return self.new_seat(self.pid)

    def new_seat(self, pid: int) -> tuple[int, Seat]:
        """Make a row and a seat for a process. Requires: the store lock."""
        if sum(1 for _ in self.clients.rows()) >= self._bury_at:
            self._bury_dead()
            living = sum(1 for _ in self.clients.rows())
            self._bury_at = min(2 * living + _FEW_CLIENTS, self.identity.max_clients)
        try:
            with self.writeable_clients() as clients:
                place = clients.register(readonly=self.readonly, pid=pid)
        except OSError as error:
            raise folder.full_file_system(self.folder_fd, self.path, L.PAGE, error) from error
        if place is None:
            raise StoreFullError(
                f"{self.identity.max_clients} processes are attached to {self.path.name!r}, as "
                "many as it takes. Create it with a larger max_clients.",
                clients=self.identity.max_clients,
            )
        return place

    def _bury_dead(self) -> None:
        """Make rows free; a read-only session leaves what the dead were writing to others."""
        if self.readonly:
            with self.writeable_clients() as clients:
                clients.bury(self.row)
        else:
            try:
                _recovery.bury(self)
            except CorruptStoreError:  # the pins of somebody who lives cannot be read: who needs
                self.clients.bury(self.row)  # memory will say so, not who only comes

    def new_child_seat(self) -> tuple[int, Seat]:
        """Make a row and a seat, with all pins of this process, for a child. Requires: the lock."""
        row, seat = self.new_seat(0)
        try:
            self.pins.copy_to(seat)
            _claiming.tell_of_copied_pins(self)
        except BaseException:
            self.pins.stay()
            seat.close()
            with self.writeable_clients() as clients:
                clients.remove(row)
            raise
        return row, seat

    def leave_seat(self) -> bool:
        """Give the seat back, unless some view or put of this process still needs it.

        Another thread may be in the middle of a get with a handle that was closed: (1) its slot
        words are taken away, (2) the pins are counted. It pins before it looks at the word. So
        either it finds no word and gives up, or its pin is counted.
        """
        if self.row < 0:
            return True
        words, self.words = self.words, _Closed()
        if self.pins.in_use():
            self.words = words
            return False
        with self.writeable_clients() as clients:
            self.lock.run(_spares.leave, self, clients)
        self.bells.remove_files(self.pins.seat.serial)
        return True

    def adopt(self, row: int, seat: Seat, lock_fd: Descriptor) -> None:
        """Go on in a forked child, with the seat and the lock file that the parent made for it."""
        self.pins.move_to(seat)
        self.counts = self.lock.counts = seat.words
        self.bells.begin_anew()
        self.abandoned.clear()
        self.clients.know(row, seat)
        self.row = row
        self.pid = os.getpid()
        _spares.forsake(self.spares)  # a signal handler may have forked in the midst of a put
        self.spares = _spares.begin(self)
        self.lock.replace_descriptor(lock_fd)
        if self.lock.mark:
            self.lock.mark = row + 1
        with self.writeable_clients() as clients:
            clients.set_pid(row, self.pid)

    @contextlib.contextmanager
    def writeable_clients(self) -> Iterator[Clients]:
        """Yield the client table for writing; a read-only session maps it for the moment."""
        if not self.index.protected:
            yield self.clients
            return
        index = open_index(self.folder_fd, self.path)
        try:
            yield Clients(index, self.seats_fd)
        finally:
            index.close()

    def _mend(self) -> None:
        if not self.index.protected:
            _recovery.mend(self)

    def _describe(self, row: int) -> str:
        return self.clients.describe(row)

    def close_files(self, *, keep_seat: bool = False) -> None:
        """Close all descriptors and let go of the mappings; views keep what they need of them."""
        self.closed = True
        self.spares.close()
        self.plans.clear()
        if not keep_seat:
            self.pins.seat.close()
        self.bells.close()
        self.lock.close()
        self.index.close()
        self.segment.close()
        if self.spills:
            self.files.close()
        self.seats_fd.close()
        self.folder_fd.close()
        for name in _PARTS:
            setattr(self, name, _Closed())


def _kind_of_pins(*, traced: bool) -> type[Pins]:
    if not traced:
        return Pins
    from shmstore._sharing.tracing import TracedPins  # noqa: PLC0415 - takes time that most processes can save

    return TracedPins


def _nothing() -> None:
    """Nobody is to be told."""


class _Closed:
    """In the place of what a session had: whoever still uses it learns that it is closed."""

    def __getattr__(self, name: str) -> Any:
        raise self._error()

    def __getitem__(self, item: object) -> Any:
        raise self._error()

    def __setitem__(self, item: object, value: object) -> None:
        raise self._error()

    def _error(self) -> StoreClosedError:
        return StoreClosedError(
            "the store was closed, or destroyed, while it was in use. Views that you hold stay "
            "valid."
        )
