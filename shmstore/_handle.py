"""How does a program take hold of a store, and let go of it?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmstore import _lifecycle, _spares
from shmstore._memory import layout as L
from shmstore._options import Options
from shmstore._session import Session
from shmstore.errors import ShmStoreError, StoreClosedError, StoreNotFoundError


class Handle:
    """A handle on a store: everything but what is done with objects.

    Concurrency: threads may share a handle. A forked child may use the handles of its parent; each
    process has its own seat and lock.
    """

    __slots__ = ("_owner", "_plans", "_session")

    _session: Session | None
    _plans: dict[str | int, Any]
    _owner: bool

    def __init__(self) -> None:
        message = "use Store.create, Store.attach or Store.open"
        raise TypeError(message)

    @classmethod
    def create(
        cls, name: str | None = None, *, capacity: int | str | None = None, **options: Any
    ) -> Self:
        """Make a store and own it: it is destroyed when this handle is closed or this process ends.

        Parameters
        ----------
        name
            1 to 64 of ``A-Z a-z 0-9 . _ -``, no dot in front; None: a random one.
        capacity
            Bytes for objects, as an int or as "8GiB"; the default follows from what the
            shared-memory file system and the RAM can give.
        **options
            See `Options`: ``persist, prefault, max_objects, max_clients, root, lock_timeout,
            locked_reads, on_full, spill_dir, ttl, checksum, zero_on_free, group, mode, trace_pins,
            allowed_modules``.

        Raises
        ------
        StoreExistsError
            A live store has this name. The name of a dead one is taken over.
        StoreFullError
            The shared-memory file system cannot give the capacity; the message says how to enlarge
            it.
        UnsafePathError
            The folder of the stores is a symlink, foreign, open to others, or lies where others
            could exchange it; or this user is not in the group.

        Notes
        -----
        A store belongs to the user that makes it: nobody else can open it. With ``group=`` its
        files are shared with the members of a group, and trust is said on both sides: whoever
        attaches names the group too. Each member can read, change and destroy such a store, and
        since loading a pickle runs code, a reader trusts all of them (see SECURITY.md). Unless
        $SHMSTORE_ROOT or ``root`` says otherwise, all members find it by its name.
        """
        chosen = Options(capacity=capacity, **options)
        return cls._of(partial(_lifecycle.create, name, chosen), chosen, owner=True)

    @classmethod
    def attach(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        group: str | int | None = None,
        root: str | os.PathLike[str] | None = None,
        lock_timeout: float = 30.0,
        allowed_modules: Collection[str] | None = None,
        visit: bool = False,
    ) -> Self:
        """Join a store that exists.

        Parameters
        ----------
        name_or_path
            Its name, or the path of its folder.
        readonly
            Map everything read-only except the seat of this process.
        group
            The group that shares the store, by name or number. None: only a store of this user
            alone is opened.
        root, lock_timeout, allowed_modules
            See `Options`.
        visit
            Come as a guest: a store in which nobody lives stays as it is found, with what the dead
            have left there, instead of going with this handle.

        Raises
        ------
        StoreNotFoundError
            There is no such store.
        NotAStoreError, FormatVersionError, CorruptStoreError, UnsafePathError
            There is something, but it cannot be used; the message says why.
        """
        options = Options(
            root=root, group=group, lock_timeout=lock_timeout, allowed_modules=allowed_modules
        )
        enter = partial(_lifecycle.attach, name_or_path, options, readonly=readonly, visit=visit)
        return cls._of(enter, options)

    @classmethod
    def look(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        group: str | int | None = None,
        root: str | os.PathLike[str] | None = None,
        lock_timeout: float = 30.0,
    ) -> Self:
        """Look at a store from outside, without becoming a client of it.

        Nothing of the store is written, so this works when its file system is full, when it has as
        many clients as it takes, and while its lock is stuck (`survey` needs none; other calls
        raise `LockTimeoutError`). Objects with buffers cannot be got: nothing would keep their
        memory. Not for a child that is forked meanwhile.

        Parameters
        ----------
        name_or_path, group, root, lock_timeout
            As in `attach`.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, FormatVersionError, CorruptStoreError, UnsafePathError
            As in `attach`.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store, Store.look(store.path) as outside:
        ...     store["word"] = "kept"
        ...     outside.stats().objects, len(outside.clients())
        (1, 1)
        """
        options = Options(root=root, group=group, lock_timeout=lock_timeout)
        return cls._of(partial(_lifecycle.look, name_or_path, options), options)

    @classmethod
    def open(cls, name: str, *, capacity: int | str | None = None, **options: Any) -> Self:
        """Join a store, or make it when there is none; it goes when its last client leaves.

        Processes that call this at once get one store. `capacity` and the options count only for
        the one that makes it, except `root` and `group`, which all of them give; see `create`.
        """
        chosen = Options(capacity=capacity, **options)
        return cls._of(partial(_lifecycle.open_or_create, name, chosen), chosen)

    @classmethod
    def _of(
        cls, enter: Callable[[list[Session]], None], options: Options, *, owner: bool = False
    ) -> Self:
        """Make a handle of the session that `enter` appends to a list.

        A signal handler may raise at any moment, even when `enter` has done all it should. So the
        list has the session, or nothing has.
        """
        held: list[Session] = []
        store = cls.__new__(cls)
        store._session, store._owner = None, owner
        try:
            enter(held)
            [session] = held
            if options.allowed_modules is not None:
                session.allowed_modules = options.allowed_modules
            store._plans = session.plans
        except BaseException:
            if held:
                with contextlib.suppress(ShmStoreError):
                    _lifecycle.leave(held, owner=owner)
            raise
        store._session = session
        return store

    def close(self) -> None:
        """Give the handle back; an owner's store goes unless it persists. Views stay valid."""
        session, self._session = self._session, None
        self._plans = {}
        if session is not None:
            held = [session]
            try:
                _lifecycle.leave(held, owner=self._owner)
            finally:
                if held and not session.closed:
                    self._session = session  # so that it can be closed again
            if not session.closed:
                session.bells.ring_own()  # who waits by this handle waits no more

    def destroy(self) -> None:
        """Remove the store for everyone. Views stay valid in all processes until they die."""
        session = self._live()
        try:
            _lifecycle.destroy(session)
        finally:
            if session.closed:
                self._session = None

    def __enter__(self) -> Self:
        self._live()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The name of the store."""
        return self._live().path.name

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self._live().path

    @property
    def readonly(self) -> bool:
        """Whether this handle was attached read-only."""
        return self._live().readonly

    @property
    def closed(self) -> bool:
        """Whether this handle has been closed, or its store destroyed."""
        return self._session is None or self._session.closed

    def _live(self) -> Session:
        session = self._session
        if session is None or session.closed:
            raise StoreClosedError(
                "this handle is closed, or its store has been destroyed. Views that you hold stay "
                "valid; attach again for anything else."
            )
        return session

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other._session is self._session

    def __hash__(self) -> int:
        return hash(id(self._session))

    def __reduce__(self) -> tuple[Any, ...]:
        session = self._live()
        group = () if session.gid is None else (session.gid,)
        return _arrive, (type(self), str(session.path), session.uuid, session.readonly, *group)

    def __repr__(self) -> str:
        if self.closed:
            return "<Store closed>"
        session = self._live()
        used = session.words[L.W_USED] - _spares.kept_nbytes(session.clients)
        capacity = session.identity.capacity
        objects = _spares.count_objects(session.clients)
        return f"<Store {session.path.name!r} {objects:,} objects, {used:,} of {capacity:,} bytes>"


def _arrive(
    cls: type[Handle],
    path: str,
    store: bytes,
    readonly: bool,  # noqa: FBT001 - as pickle calls it
    gid: int | None = None,
) -> Handle:
    """Attach a handle that was pickled in another process."""
    handle = cls.attach(path, readonly=readonly, group=gid)
    if handle._live().uuid != store:
        handle.close()
        raise StoreNotFoundError(
            f"the store of this handle is gone; {path} is another store of that name.", path=path
        )
    return handle
