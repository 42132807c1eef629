"""How does a pool of processes work on large data without sending it?

`ProcessPoolExecutor` is the one of `concurrent.futures`, workers, queues, threads and all. What it
is given to send are parcels (see `_parcels`): large arguments and results lie in a store.

::

    submit            a call with its arguments waits in this process, as it is
    feeding thread    packs it: large arguments into the store, or found there (see `_ledger`)
    worker            opens the parcel, calls, packs the result, large parts into the store
    managing thread   takes the result out: it is deleted, and goes with its last view
    ... and closes the ticket of the call: copies of arguments go that no other call needs

What a worker that was killed had put and not sent is found by its key, and goes with the executor.
When the parent was killed the workers end, and the store is one that nobody uses (see `_pruning`).
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import select
import threading
import uuid
import weakref
from collections.abc import Callable
from concurrent import futures
from multiprocessing.context import BaseContext
from typing import Any, Final

from shmstore._ledger import Ledger, Ticket
from shmstore._options import parse_size
from shmstore._parcels import Parcel, placeable
from shmstore._ref import ObjectRef
from shmstore._store import Store
from shmstore.errors import ShmStoreError

_MODES: Final = ("private", "readonly")
_DEFAULT_THRESHOLD: Final = 64 << 10


class ProcessPoolExecutor(futures.ProcessPoolExecutor):
    """The pool of `concurrent.futures`, whose large arguments and results go through a store.

    Parameters
    ----------
    max_workers, mp_context, initializer, initargs, max_tasks_per_child
        As in `concurrent.futures.ProcessPoolExecutor`.
    store
        Where arguments and results lie. None: a store of its own, which ends with the executor.
    capacity
        Bytes of the own store, as an int or as "8GiB"; the default follows from the machine.
    threshold
        Bytes from which on something goes through the store, as an int or as "64KiB".
    mode
        What arrays among the arguments are for the workers: "private": writeable where they were,
        and writes stay with the call; "readonly": read-only views, quicker for large arguments.

    Notes
    -----
    An argument that occurs in many calls is stored once, and must not be changed before these have
    finished. Views of stored objects travel as references: workers see the object itself. Results
    are views; their memory goes back when the last of them dies. What finds no room in the store
    travels through the pipe.

    Concurrency: as the executor of the standard library.

    Examples
    --------
    >>> import numpy as np, shmstore
    >>> with shmstore.ProcessPoolExecutor(1, capacity="16MiB") as pool:
    ...     pool.submit(np.sort, np.arange(100_000)[::-1]).result()[:3].tolist()
    [0, 1, 2]
    """

    def __init__(  # noqa: PLR0913 - those of the standard library, and ours by keyword
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        store: Store | None = None,
        capacity: int | str | None = None,
        threshold: int | str = _DEFAULT_THRESHOLD,
        mode: str = "private",
    ) -> None:
        if mode not in _MODES:
            message = f"mode={mode!r}: give one of {', '.join(_MODES)}"
            raise ValueError(message)
        if store is not None and capacity is not None:
            message = "capacity= is that of a store of its own: give it or store=, not both"
            raise ValueError(message)
        super().__init__(
            max_workers, mp_context, initializer, initargs, max_tasks_per_child=max_tasks_per_child
        )
        self._home = home = _Home(store, capacity, parse_size(threshold), mode)
        self._retire = weakref.finalize(self, home.ledger.end, home.end)
        call = None
        if initializer is not None:
            call = _Call(home, home.starting, home.start, initializer, initargs, {})
        self._initializer: Any = _initialize
        self._initargs: Any = (call,)

    @property
    def store(self) -> Store:
        """The store that arguments and results go through."""
        return self._home.store

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Call a function in a worker; return the future of its result."""
        home = self._home
        ticket = home.ledger.open()
        try:
            call: Any = _Call(home, home.ledger, ticket, fn, args, kwargs)
            ticket.future = future = super().submit(_work, call)
        except BaseException:
            home.ledger.close(ticket)
            raise
        future.add_done_callback(lambda _: home.ledger.close(ticket))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is there
        """Let no more calls in; the own store ends with the last of those that are."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._retire()


class _Home:
    """What the parent of a pool has of its store."""

    def __init__(
        self, store: Store | None, capacity: int | str | None, threshold: int, mode: str
    ) -> None:
        self.own = store is None
        self.store = Store.create(capacity=capacity) if store is None else store
        self.prefix = f"pool-{uuid.uuid4().hex}-"
        self.where = _Where(str(self.store.path), self.prefix, threshold)
        self.threshold = threshold
        self.mode = mode
        self.pid = os.getpid()
        self.ledger = Ledger()
        # Workers may start at any time, all with the same arguments.
        self.starting = Ledger()
        self.start = self.starting.open()

    def end(self) -> None:
        """Take everything away that is the pool's, once. A worker that was forked does not."""
        if self.pid != os.getpid():
            return
        with contextlib.suppress(ShmStoreError):
            if self.own:
                self.store.close()
            elif not self.store.closed:
                self.starting.close(self.start)
                self.store.delete_many([k for k in self.store if k.startswith(self.prefix)])


class _Where:
    """What workers must know of the store."""

    __slots__ = ("path", "prefix", "threshold")

    def __init__(self, path: str, prefix: str, threshold: int) -> None:
        self.path = path
        self.prefix = prefix
        self.threshold = threshold

    def __reduce__(self) -> Any:
        return _Where, (self.path, self.prefix, self.threshold)


# --- in the parent -------------------------------------------------------------------------------


class _Call:
    """A call that waits in the parent; pickled, it is a parcel."""

    __slots__ = ("_args", "_fn", "_home", "_kwargs", "_ledger", "_ticket", "taking", "threshold")

    leaves = False

    def __init__(
        self,
        home: _Home,
        ledger: Ledger,
        ticket: Ticket,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._ticket = ticket
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self.threshold = home.threshold
        self.taking = home.mode

    def place(self, obj: Any) -> ObjectRef | None:
        """Put an argument, or find it; None: it must travel otherwise."""
        ledger, ticket = self._ledger, self._ticket
        ref = ledger.find(obj, ticket)
        if ref is None:
            try:
                ref = self._home.store.put(obj)
            except ShmStoreError as error:
                if not placeable(error):
                    raise
                return None
            ledger.add(obj, ref, ticket)
        return ref

    def place_once(self, obj: Any) -> ObjectRef:
        """Put what is left of the arguments."""
        ref = self._home.store.put(obj)
        self._ledger.keep(ref, self._ticket)
        return ref

    def call(self) -> Any:
        """Do it: this is a worker that was forked."""
        return self._fn(*self._args, **self._kwargs)

    def __reduce__(self) -> Any:
        try:
            parcel = Parcel.pack((self._fn, self._args, self._kwargs), self)
        finally:
            self._ledger.pack(self._ticket)
        return _Task, (parcel, self._home.where)


# --- in a worker ---------------------------------------------------------------------------------


class _Task:
    """A call that has arrived."""

    __slots__ = ("_parcel", "where")

    def __init__(self, parcel: Parcel, where: _Where) -> None:
        self._parcel = parcel
        self.where = where

    def call(self) -> Any:
        """Do it."""
        fn, args, kwargs = self._parcel.open()
        return fn(*args, **kwargs)


def _initialize(task: _Call | _Task | None) -> None:
    """Prepare a worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()
    if task is not None:
        task.call()


def _end_with(pid: int | None) -> None:
    """End with a parent that was killed: nobody needs the results, and the store waits for us.

    The sentinels of `multiprocessing` do not tell, as forked workers hold those of each other.
    """
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid or os.getppid())
        select.select([process], [], [])
    os._exit(1)


def _work(task: _Task) -> Any:
    """Do what was asked for; this is what the pool knows as the function of all its calls."""
    return _Result(task.call(), task.where)


class _Result:
    """A result in a worker; pickled, it is what the parent gets."""

    __slots__ = ("_obj", "_where", "threshold")

    leaves = True
    taking = "move"

    def __init__(self, obj: Any, where: _Where) -> None:
        self._obj = obj
        self._where = where
        self.threshold = where.threshold

    def place(self, obj: Any) -> ObjectRef | None:
        """Put a part of the result; None: it must travel otherwise."""
        try:
            return self.place_once(obj)
        except ShmStoreError as error:
            if not placeable(error):
                raise
            return None

    def place_once(self, obj: Any) -> ObjectRef:
        """Put a part of the result under a key that tells whose it is."""
        key = f"{self._where.prefix}{os.getpid()}-{next(_numbers)}"
        return _store_at(self._where.path).put(obj, key=key)

    def __reduce__(self) -> Any:
        return Parcel.open, (Parcel.pack(self._obj, self),)


_numbers = itertools.count()
_stores: dict[str, Store] = {}


def _store_at(path: str) -> Store:
    """Return the store of the pool that this worker belongs to."""
    store = _stores.get(path)
    if store is None or store.closed:
        store = _stores[path] = Store.attach(path)
    return store
