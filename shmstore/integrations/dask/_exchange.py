"""What does this process share with the workers of its host, and with whom?

One exchange per store and process. Its members are the workers here; each writes the address where
it listens into the store, so that whoever finds an address there knows without asking that behind
it somebody has the very same store open. All that goes wrong here only means that something
travels as it would without shmstore, and after what may last (a lock that is held by a stopped
process, a store that is gone) nothing is tried for a while.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from shmstore import ObjectRef, Store, prune
from shmstore.errors import LockTimeoutError, SerializationError, ShmStoreError, StoreFullError
from shmstore.integrations.dask._sizes import has_objects, is_large
from shmstore.tickets import (
    Hold,
    Ticket,
    delete_orphans,
    deposit,
    domain_of,
    is_sender_alive,
    redeem,
    use_of,
)

logger = logging.getLogger("shmstore.dask")

Found = TypeVar("Found")

DEFAULT_THRESHOLD: Final = 256 << 10
LOCK_TIMEOUT_S: Final = 1.0
TIDY_S: Final = 2.0

_PAUSE_S: Final = 5.0
_LONG_PAUSE_S: Final = 60.0
_PEERS_S: Final = 1.0
_PEER: Final = "peer/"

# A type whose objects had nothing in the store that they could lie on is not tried again.
_MISFITS: Final = 3


class Settings(NamedTuple):
    """How a worker shares; see `Plugin`."""

    capacity: int | str | None = None
    threshold: int = DEFAULT_THRESHOLD
    when: str = "auto"
    root: str | None = None
    group: str | int | None = None


class Lying(NamedTuple):
    """An object and what it lies on."""

    obj: Any
    hold: Hold


class Loan:
    """The twin of an object that was sent: it stays until the object dies here.

    Attributes
    ----------
    adopted
        Whether somebody else deletes it.
    """

    __slots__ = ("adopted", "lying")

    def __init__(self, lying: Lying) -> None:
        self.lying = lying
        self.adopted = False


class Resident(ABC):
    """A result of a worker here, as it is known to those who send it.

    Parameters
    ----------
    obj
        It is kept by whoever has it, not here.
    residents
        Where it is listed, by its `id`, until it dies.
    """

    __slots__ = ("__weakref__", "_obj")

    def __init__(self, obj: Any, residents: dict[int, Resident]) -> None:
        number = id(obj)
        residents[number] = self
        self._obj = weakref.ref(obj, _forgetter(residents, number, self))

    def is_for(self, obj: Any) -> bool:
        """Return whether an object is this one."""
        return self._obj() is obj

    @abstractmethod
    def hold(self) -> Hold | None:
        """Return what it lies on in the store; None: it cannot lie there. For whoever sends it."""


class Exchange:
    """The share of one process in the store of one cluster on one host.

    Concurrency: dask decodes and encodes in several threads; dictionaries are changed by single
    steps.

    Attributes
    ----------
    residents
        The results of workers here that may be sent as tickets, by the `id` of the object.
    sent, received
        How many objects went and came as tickets.
    held_nbytes
        What workers here hold in the store.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        with contextlib.suppress(ShmStoreError, OSError):
            prune(settings.root, group=settings.group, lock_timeout=LOCK_TIMEOUT_S)
        self.settings = settings
        self.store = Store.open(
            name,
            capacity=settings.capacity,
            root=settings.root,
            group=settings.group,
            lock_timeout=LOCK_TIMEOUT_S,
        )
        self.domain = domain_of(self.store)
        self.residents: dict[int, Resident] = {}
        self.sent = self.received = self.held_nbytes = 0
        self.members: list[str] = []
        self._ports: set[int | None] = set()
        self._arrived: dict[int, tuple[weakref.ref[Any], Hold]] = {}
        self._lent: dict[int, list[Loan]] = {}
        self._misfits: dict[type, int] = {}
        self._peers: frozenset[str] = frozenset()
        self._peers_until = 0.0
        self._paused_until = 0.0
        self._deaf_until = 0.0
        self._to_delete: deque[ObjectRef] = deque()

    # --- who is there ----------------------------------------------------------------------------

    def enter(self, address: str) -> None:
        """Let the others know that a worker here has the store open."""
        self.members.append(address)
        if "://" in address:  # a client does not listen
            self._ports.add(urlsplit(address).port)
            self.store.put(address, key=_PEER + address)
        self._peers_until = 0.0

    def leave(self, address: str) -> None:
        """Take a worker out again; with the last one the store is closed."""
        self.members.remove(address)
        with contextlib.suppress(ShmStoreError, OSError):
            self.store.discard(_PEER + address)
        if not self.members:
            exchanges.pop(self.domain, None)
            self.tidy()
            with contextlib.suppress(ShmStoreError, OSError):
                self.store.close()

    def is_peer(self, address: object) -> bool:
        """Return whether somebody who listens at an address has this store open."""
        if address not in self._peers and monotonic() >= self._peers_until:
            self._look_for_peers()
        return address in self._peers

    def _look_for_peers(self) -> None:
        self._peers_until = monotonic() + _PEERS_S
        keys: list[str] | None = self.attempt(list, self.store) if self.is_open() else None
        if keys is not None:
            found = (key.removeprefix(_PEER) for key in keys if key.startswith(_PEER))
            self._peers = frozenset(found)

    def is_listener(self, address: object) -> bool:
        """Return whether an address is where a worker here was reached: it answers."""
        return isinstance(address, str) and urlsplit(address).port in self._ports

    def share_nbytes(self) -> int:
        """Return the part of the store's memory that counts as this process's."""
        if self.store.closed:
            return 0
        used, _ = use_of(self.store)
        return used * max(1, len(self.members)) // max(1, len(self._peers), len(self.members))

    # --- what goes wrong -------------------------------------------------------------------------

    def attempt(self, step: Callable[..., Found], *args: Any) -> Found | None:
        """Return what a step returns; None: it failed, and after some failures comes a rest."""
        try:
            return step(*args)
        except (StoreFullError, SerializationError):
            return None  # the next object may fit
        except LockTimeoutError as error:
            self._rest(_PAUSE_S, error)
        except (ShmStoreError, OSError, MemoryError) as error:
            self._rest(_LONG_PAUSE_S, error)
        return None

    def _rest(self, seconds: float, error: BaseException) -> None:
        if monotonic() >= self._paused_until:
            logger.warning("nothing is shared for %g s: %s", seconds, str(error))
        self._paused_until = max(self._paused_until, monotonic() + seconds)

    def is_open(self) -> bool:
        """Return whether it is worth trying."""
        return monotonic() >= self._paused_until and not self.store.closed

    def is_listening(self) -> bool:
        """Return whether tickets may be asked for: they could be redeemed lately."""
        return self.is_open() and monotonic() >= self._deaf_until

    # --- objects ---------------------------------------------------------------------------------

    def is_shareable(self, obj: Any) -> bool:
        """Return whether an object is data, and large enough."""
        return is_large(obj, self.settings.threshold)

    def deposit(self, obj: Any) -> Lying | None:
        """Put an object that is large; return its twin in the store. None: it stays as it is."""
        kind = type(obj)
        if self._misfits.get(kind, 0) >= _MISFITS or not self.is_open() or has_objects(obj):
            return None
        found = self.attempt(deposit, self.store, obj)
        if found is None:
            return None
        twin, hold = found
        del found
        if type(twin) is not kind or not hold.is_used():
            self._misfits[kind] = self._misfits.get(kind, 0) + 1
            self.delete(hold)
            return None
        return Lying(twin, hold)

    def lend(self, obj: Any) -> Loan | None:
        """Put an object that is sent, and keep it there until the object dies here."""
        lying = self.deposit(obj)
        if lying is None:
            return None
        number, loan = id(obj), Loan(lying)
        if number not in self._lent:
            self._lent[number] = []
            weakref.finalize(obj, self._take_back, number).atexit = False
        self._lent[number].append(loan)
        return loan

    def _take_back(self, number: int) -> None:
        """Called in any thread, at any moment: what takes time comes later."""
        loans = self._lent.pop(number, ())
        self._to_delete.extend(loan.lying.hold.ref for loan in loans if not loan.adopted)

    def delete(self, hold: Hold) -> None:
        """Let nobody come to an object any more; who has it keeps it."""
        self._to_delete.append(hold.ref)
        self.delete_all()

    def delete_all(self) -> None:
        """Delete what waits for it, if the lock is free."""
        if not self._to_delete or not self.is_open():
            return
        refs = [self._to_delete.popleft() for _ in range(len(self._to_delete))]
        if self.attempt(self.store.delete_many, refs) is None:
            self._to_delete.extend(refs)

    def receive(self, ticket: Ticket) -> Any:
        """Return the object of a ticket."""
        try:
            obj, hold = redeem(ticket)
        except Exception:
            if is_sender_alive(ticket):
                self._deaf_until = monotonic() + _LONG_PAUSE_S
            raise
        self.received += 1
        with contextlib.suppress(TypeError):
            self._arrived[id(obj)] = weakref.ref(obj), hold
            weakref.finalize(obj, self._arrived.pop, id(obj), None).atexit = False
        return obj

    def arrived(self, obj: Any) -> Hold | None:
        """Return what an object lies on that has just arrived, once."""
        found = self._arrived.pop(id(obj), None)
        return None if found is None or found[0]() is not obj else found[1]

    def resident(self, obj: Any) -> Resident | None:
        """Return an object as a result of a worker here, if it is one."""
        found = self.residents.get(id(obj))
        return found if found is not None and found.is_for(obj) else None

    def tidy(self) -> None:
        """Delete what dead owners left, and what is to be deleted."""
        if self.is_open():
            self.attempt(self._delete_orphans)
            self._look_for_peers()
        self.delete_all()

    def _delete_orphans(self) -> None:
        with contextlib.suppress(LockTimeoutError):  # next time
            delete_orphans(self.store)

    def figures(self) -> dict[str, Any]:
        """Return what is to be seen of it from elsewhere."""
        used, capacity = (0, 0) if self.store.closed else use_of(self.store)
        return {
            "domain": self.domain,
            "used": used,
            "capacity": capacity,
            "held": self.held_nbytes,
            "sent": self.sent,
            "received": self.received,
        }


def _forgetter(
    residents: dict[int, Resident], number: int, resident: Resident
) -> Callable[[Any], Any]:
    """Return what takes an object off a list when it has died, unless that has another by then."""
    of = weakref.ref(resident)

    def forget(_: Any) -> None:
        if residents.get(number) is of():
            residents.pop(number, None)

    return forget


exchanges: Final[dict[str, Exchange]] = {}
"""Those of this process, by the domain."""


def join(name: str, settings: Settings, address: str) -> Exchange:
    """Return the exchange of a store of this host, with one member more."""
    for exchange in exchanges.values():
        same = exchange.settings.root == settings.root
        if same and not exchange.store.closed and exchange.store.name == name:
            break
    else:
        exchange = Exchange(name, settings)
        exchanges[exchange.domain] = exchange
    exchange.enter(address)
    return exchange


def at(path: str) -> Exchange | None:
    """Return the exchange of the store in a folder."""
    found = list(exchanges.values())
    return next((e for e in found if not e.store.closed and str(e.store.path) == path), None)
