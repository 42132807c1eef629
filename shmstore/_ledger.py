"""Which arguments of a pool lie in its store, and until when?

The same array in many calls is stored once. Its copy is good for a call if the array cannot have
changed since it was made: if some call with it was not finished when this one was submitted. So
whoever changes an array after the calls with it have finished is understood, as by any pool; and
the copy goes as soon as no call needs it that was submitted early enough.

A future is done a moment before its ticket is closed. So a copy is good for the calls that had been
submitted when it was last seen that a call with it is not done; never for later ones.

Concurrency: calls are submitted by any thread, packed by the one that feeds the workers, finished
by the one that hears from them.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from shmstore._ref import ObjectRef
from shmstore.errors import ShmStoreError


class Ticket:
    """One call, for as long as it is not finished. It knows no arguments, only their copies."""

    __slots__ = ("closed", "copies", "future", "number", "packed", "singles")

    def __init__(self, number: int) -> None:
        self.number = number
        self.future: Future[Any] | None = None
        self.packed = False
        self.closed = False
        self.copies: list[Copy] = []
        self.singles: list[ObjectRef] = []

    def is_pending(self) -> bool:
        """Return whether nobody can know yet that the call is finished."""
        return self.future is None or not self.future.done()


class Copy:
    """What the store has of one argument.

    Attributes
    ----------
    good_until
        The number of the last call that it is good for, as far as is known.
    users
        The calls that were packed with it and are not finished, oldest first.
    """

    __slots__ = ("good_until", "number", "of", "ref", "users")

    def __init__(self, obj: Any, ref: ObjectRef) -> None:
        self.of = weakref.ref(obj)
        self.number = id(obj)
        self.ref = ref
        self.users: list[Ticket] = []
        self.good_until = 0


class Ledger:
    """The copies of arguments in the store of one pool."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._copies: set[Copy] = set()
        self._latest: dict[int, Copy] = {}
        self._number = 0
        self._waiting = 0
        self._unfinished = 0
        self._when_done: Callable[[], None] | None = None

    def open(self) -> Ticket:
        """Return the ticket of a call that is being submitted."""
        with self._lock:
            self._number += 1
            self._waiting += 1
            self._unfinished += 1
            return Ticket(self._number)

    def find(self, obj: Any, ticket: Ticket) -> ObjectRef | None:
        """Return the copy of an argument if it is good for a call, and keep it for that."""
        with self._lock:
            copy = self._latest.get(id(obj))
            if copy is None or copy.of() is not obj:
                return None
            if any(user.is_pending() for user in reversed(copy.users)):
                copy.good_until = self._number
            if copy.good_until < ticket.number:
                return None
            copy.users.append(ticket)
            ticket.copies.append(copy)
            return copy.ref

    def add(self, obj: Any, ref: ObjectRef, ticket: Ticket) -> None:
        """Note the copy of an argument that was made for a call."""
        with self._lock:
            try:
                copy = Copy(obj, ref)
            except TypeError:  # it takes no weak references, and cannot be told from another
                ticket.singles.append(ref)
                return
            copy.good_until = self._number
            copy.users.append(ticket)
            ticket.copies.append(copy)
            self._copies.add(copy)
            self._latest[copy.number] = copy

    def keep(self, ref: ObjectRef, ticket: Ticket) -> None:
        """Note what was stored for one call alone."""
        with self._lock:
            ticket.singles.append(ref)

    def pack(self, ticket: Ticket) -> None:
        """Note that a call is on its way; those that wait were submitted later."""
        with self._lock:
            self._count_packed(ticket)
            if ticket.closed:  # the pool broke while it was packed
                self._release(ticket)
            self._sweep(ticket.number)

    def close(self, ticket: Ticket) -> None:
        """Note that a call is finished, one way or another."""
        with self._lock:
            ticket.closed = True
            self._count_packed(ticket)
            self._release(ticket)
            self._sweep(0)
            self._unfinished -= 1
            self._tell()

    def end(self, when_done: Callable[[], None]) -> None:
        """Call a function once, as soon as no call is unfinished."""
        with self._lock:
            self._when_done = when_done
            self._tell()

    def _tell(self) -> None:
        if not self._unfinished and self._when_done is not None:
            when_done, self._when_done = self._when_done, None
            when_done()

    def _release(self, ticket: Ticket) -> None:
        for copy in ticket.copies:
            copy.users.remove(ticket)
        _delete(ticket.singles)
        ticket.copies.clear()
        ticket.singles.clear()

    def _count_packed(self, ticket: Ticket) -> None:
        if not ticket.packed:
            ticket.packed = True
            self._waiting -= 1

    def _sweep(self, number: int) -> None:
        """Delete what is good for no call that waits; these were submitted after a number."""
        number = number if self._waiting else self._number
        idle = [copy for copy in self._copies if not copy.users and copy.good_until <= number]
        for copy in idle:
            self._copies.discard(copy)
            if self._latest.get(copy.number) is copy:
                del self._latest[copy.number]
        _delete(copy.ref for copy in idle)


def _delete(refs: Iterable[ObjectRef]) -> None:
    for ref in refs:
        with contextlib.suppress(ShmStoreError, OSError):
            ref.delete()
