"""What can be done with a store? The journeys, in the words of the parts below.

::

    put                                          get
     |  pack: header and frames    (no lock)      |  plan: kept, or made from the slot  (no lock)
     |  reserve: slot and extent   (lock)         |  secure: copy out, or pin           (no lock)
     |  copy the frames            (no lock)      |     ... and look at the slot again
     |  publish: slot word last    (lock)         |  build: views over the mapping
     v                                            v
    ObjectRef                                    object; its last view drops the pin

    delete: the slot is DOOMED, new readers miss it at once     (lock)
    reclaim: whoever needs room frees doomed slots without pins (lock, barrier)

`_writing` and `_reading` hold the steps, `_session` what a process has of a store, `_lifecycle`
how stores begin and end.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from shmstore import _check, _inspection, _lifecycle, _reading, _ref, _writing
from shmstore._catalog import states
from shmstore._catalog.keys import digest_of
from shmstore._info import ClientInfo, Finding, ObjectInfo, Recovered, StoreStats
from shmstore._mapping import NamedObjects
from shmstore._memory import layout as L
from shmstore._options import Options
from shmstore._ref import ObjectRef
from shmstore._session import Session
from shmstore.errors import ObjectNotFoundError, StoreClosedError

_RAISE: Any = object()
_GONE = _reading.GONE


class Store(NamedObjects):
    """A handle on a store of objects in shared memory.

    Handles are made by `create`, `attach` and `open`. A handle is a context manager, a mutable
    mapping over the named objects, may be used by many threads, survives a fork, and can be
    pickled: it attaches on arrival.

    Examples
    --------
    >>> import numpy as np, shmstore
    >>> with shmstore.Store.create(capacity="16MiB") as store:
    ...     ref = store.put(np.arange(3))
    ...     store["greeting"] = "hello"
    ...     ref.get().sum(), store["greeting"]
    (np.int64(3), 'hello')
    """

    __slots__ = ("_owner", "_plans", "_session")

    _session: Session | None
    _plans: dict[str, Any]
    _owner: bool

    def __init__(self) -> None:
        message = "use Store.create, Store.attach or Store.open"
        raise TypeError(message)

    # --- making and leaving --------------------------------------------------------------------

    @classmethod
    def create(
        cls, name: str | None = None, *, capacity: int | str | None = None, **options: Any
    ) -> Self:
        """Make a store and own it: it is destroyed when this handle is closed or this process ends.

        Parameters
        ----------
        name
            1 to 64 of ``A-Z a-z 0-9 . _ -``; None: a random one.
        capacity
            Bytes for objects, as an int or as "8GiB"; the default follows from what the
            shared-memory file system and the RAM can give.
        **options
            See `Options`: ``persist, prefault, max_objects, max_clients, root, lock_timeout,
            locked_reads``.

        Raises
        ------
        StoreExistsError
            A live store has this name. The name of a dead one is taken over.
        StoreFullError
            The shared-memory file system cannot give the capacity; the message says how to enlarge
            it.
        UnsafePathError
            The folder of the stores is a symlink, foreign, or open to others.
        """
        chosen = Options(capacity=capacity, **options)
        return cls._of(_lifecycle.create(name, chosen), owner=True)

    @classmethod
    def attach(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        root: str | os.PathLike[str] | None = None,
        lock_timeout: float = 30.0,
    ) -> Self:
        """Join a store that exists.

        Parameters
        ----------
        name_or_path
            Its name, or the path of its folder.
        readonly
            Map everything read-only except the seat of this process.
        root, lock_timeout
            See `Options`.

        Raises
        ------
        StoreNotFoundError
            There is no such store.
        NotAStoreError, FormatVersionError, CorruptStoreError, UnsafePathError
            There is something, but it cannot be used; the message says why.
        """
        options = Options(root=root, lock_timeout=lock_timeout)
        return cls._of(_lifecycle.attach(name_or_path, options, readonly=readonly))

    @classmethod
    def open(cls, name: str, *, capacity: int | str | None = None, **options: Any) -> Self:
        """Join a store, or make it when there is none; it goes when its last client leaves.

        Processes that call this at once get one store. `capacity` and the options count only for
        the one that makes it; see `create`.
        """
        return cls._of(_lifecycle.open_or_create(name, Options(capacity=capacity, **options)))

    @classmethod
    def _of(cls, session: Session, *, owner: bool = False) -> Self:
        store = cls.__new__(cls)
        store._session = session
        store._plans = session.plans
        store._owner = owner
        return store

    def close(self) -> None:
        """Give the handle back; an owner's store goes unless it persists. Views stay valid."""
        session, self._session = self._session, None
        if session is not None:
            _lifecycle.leave(session, owner=self._owner)

    def destroy(self) -> None:
        """Remove the store for everyone. Views stay valid in all processes until they die."""
        _lifecycle.destroy(self._live())
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

    # --- putting -------------------------------------------------------------------------------

    def put(
        self,
        obj: Any,
        *,
        key: str | None = None,
        overwrite: bool = True,
        readonly: bool | None = None,
        serializers: Sequence[str] | None = None,
    ) -> ObjectRef:
        """Store an object: its data is copied once into shared memory and published as a whole.

        Parameters
        ----------
        obj
            Anything that NumPy, pickle or cloudpickle can take.
        key
            A name for it, up to 1,024 bytes of UTF-8; None: it is reached by the reference alone.
        overwrite
            Whether an object of this name may be replaced; its readers keep their views.
        readonly
            True: readers get read-only views, whatever the flags of the object's buffers are.
        serializers
            Families to ask, in this order; default ``("custom", "pickle")``.

        Returns
        -------
        ObjectRef

        Raises
        ------
        StoreFullError, ObjectTooLargeError
            There is no room now, or could never be.
        KeyExistsError
            The key is taken and `overwrite` is false.
        SerializationError
            The object cannot be serialized.
        """
        session = self._live()
        if key is not None:
            _check_key(key)
        package = _writing.pack(obj, key, readonly=readonly, serializers=serializers)
        return _refer(session, package, _writing.put(session, package, overwrite=overwrite))

    @overload
    def put_many(
        self,
        objects: Mapping[str, Any],
        *,
        overwrite: bool = ...,
        readonly: bool | None = ...,
        serializers: Sequence[str] | None = ...,
    ) -> dict[str, ObjectRef]: ...
    @overload
    def put_many(
        self,
        objects: Iterable[Any],
        *,
        overwrite: bool = ...,
        readonly: bool | None = ...,
        serializers: Sequence[str] | None = ...,
    ) -> list[ObjectRef]: ...
    def put_many(
        self,
        objects: Mapping[str, Any] | Iterable[Any],
        *,
        overwrite: bool = True,
        readonly: bool | None = None,
        serializers: Sequence[str] | None = None,
    ) -> dict[str, ObjectRef] | list[ObjectRef]:
        """Store a batch under one lock hold: all objects, or none if one of them finds no room.

        Parameters
        ----------
        objects
            A mapping of keys to objects, or any objects without keys.
        overwrite, readonly, serializers
            As in `put`.

        Returns
        -------
        dict or list of ObjectRef
            By key, or in the order of the objects.
        """
        session = self._live()
        named = isinstance(objects, Mapping)
        pairs = (
            list(objects.items()) if isinstance(objects, Mapping) else [(None, x) for x in objects]
        )
        for key, _ in pairs:
            if named:
                _check_key(key)
        packages = [
            _writing.pack(x, key, readonly=readonly, serializers=serializers) for key, x in pairs
        ]
        places = _writing.put_many(session, packages, overwrite=overwrite)
        refs = [_refer(session, *both) for both in zip(packages, places, strict=True)]
        return {key: ref for (key, _), ref in zip(pairs, refs, strict=True)} if named else refs

    def allocate(
        self,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = float,
        *,
        key: str | None = None,
        overwrite: bool = True,
        readonly: bool = False,
    ) -> Allocated:
        """Build an array in place: it is published when the ``with`` block ends, without any copy.

        Parameters
        ----------
        shape
            Of the array, C-ordered.
        dtype
            Of its elements; anything but objects of Python.
        key, overwrite
            As in `put`.
        readonly
            Readers get read-only views.

        Returns
        -------
        Allocated
            A context manager that gives the array. An exception in the block discards it.
            Afterwards its ``ref`` is the reference to the object.

        Examples
        --------
        >>> with Store.create(capacity="1MiB") as store:
        ...     with store.allocate(4, "u1", key="four") as array:
        ...         array[:] = 4
        ...     store["four"].tolist()
        [4, 4, 4, 4]
        """
        if key is not None:
            _check_key(key)
        return Allocated(self._live(), shape, dtype, key, overwrite=overwrite, readonly=readonly)

    # --- getting -------------------------------------------------------------------------------

    def get(
        self,
        target: ObjectRef | str,
        default: Any = _RAISE,
        *,
        mode: str = "shared",
        deserializers: Container[str] | None = None,
    ) -> Any:
        """Return an object without copying its data.

        Parameters
        ----------
        target
            A reference or a key.
        default
            What to return when there is no such object; without it ObjectNotFoundError is raised.
        mode
            What buffers become. "shared": views on the shared memory, writeable where they were at
            put; "readonly": read-only views; "private": writeable, and writes stay with this
            reader; "copy": copies on the heap.
        deserializers
            Families that may be used; default all.

        Raises
        ------
        ObjectNotFoundError
            The key is not there; the object of the reference has been deleted.
        DeserializationError
            The object could not be rebuilt here, or its family is not accepted.

        Notes
        -----
        Concurrency: takes no lock and makes no system call, except where the store was created for
        locked reads. A key that is missing is looked up once more under the lock.
        """
        if mode == "shared" and deserializers is None:
            kind = type(target)
            if kind is ObjectRef:
                plan = target._plan  # type: ignore[union-attr]
            else:
                plan = self._plans.get(target) if kind is str else None  # type: ignore[arg-type]
            if plan is not None and plan.session is self._session:
                obj = plan.fetch()
                if obj is not _GONE:
                    return obj
        return self._get(target, default, mode, deserializers)

    def _get(
        self,
        target: ObjectRef | str,
        default: Any,
        mode: str,
        deserializers: Container[str] | None,
    ) -> Any:
        session = self._live()
        if mode not in _reading.MODES:
            message = f"mode={mode!r}: give one of {', '.join(_reading.MODES)}"
            raise ValueError(message)
        if isinstance(target, ObjectRef):
            _check_ref(session, target)
            try:
                return _ref.get(session, target, mode, deserializers)
            except ObjectNotFoundError:
                if default is _RAISE:
                    raise
                return default
        _check_key(target)
        obj = _reading.get_by_key(session, target, mode, deserializers)
        if obj is not _GONE:
            return obj
        if default is _RAISE:
            raise _reading.missing_key(session, target)
        return default

    def get_many(
        self,
        targets: Iterable[ObjectRef | str],
        default: Any = _RAISE,
        *,
        mode: str = "shared",
        deserializers: Container[str] | None = None,
    ) -> list[Any]:
        """Return several objects, in the order of `targets`; see `get`."""
        return [
            self.get(target, default, mode=mode, deserializers=deserializers) for target in targets
        ]

    # --- deleting ------------------------------------------------------------------------------

    def delete(self, target: ObjectRef | str) -> None:
        """Delete an object: new readers miss it at once; memory is reused after its last view.

        Raises
        ------
        ObjectNotFoundError
            There is no such object (any more).
        """
        if not self.delete_many([target]):
            if isinstance(target, ObjectRef):
                raise _ref.missing(target)
            raise _reading.missing_key(self._live(), target)

    def discard(self, target: ObjectRef | str) -> bool:
        """Delete an object if it is there; return whether it was."""
        return self.delete_many([target]) == 1

    def delete_many(self, targets: Iterable[ObjectRef | str]) -> int:
        """Delete those of the objects that are there, under one lock hold; return how many."""
        session = self._live()
        return _writing.delete(session, [_finder(session, target) for target in targets])

    # --- the mapping of named objects ----------------------------------------------------------

    def __contains__(self, target: object) -> bool:
        session = self._live()
        if isinstance(target, ObjectRef):
            _check_ref(session, target)
            return session.slots.word(target._slot) == states.ready_word(target._generation)
        return isinstance(target, str) and _reading.find_key(session, target) is not None

    def __len__(self) -> int:
        return int(self._live().words[L.W_NAMED])

    def __iter__(self) -> Iterator[str]:
        return _inspection.keys(self._live())

    def _ref_of(self, key: str) -> ObjectRef:
        session = self._live()
        _check_key(key)
        plan = _reading.plan_of_key(session, key)
        if plan is None:
            raise _reading.missing_key(session, key)
        generation = states.generation_of(plan.word)
        return _make_ref(session, plan.slot, generation, plan.record.data_nbytes, key)

    # --- looking -------------------------------------------------------------------------------

    def info(self, target: ObjectRef | str) -> ObjectInfo:
        """Return size, type, age and owner of an object, and who looks at it."""
        session = self._live()
        if isinstance(target, ObjectRef):
            _check_ref(session, target)
            return target.info()
        _check_key(target)
        plan = _reading.plan_of_key(session, target)
        if plan is None:
            raise _reading.missing_key(session, target)
        return _inspection.describe(plan, _inspection.pins_by_slot(session))

    def stats(self) -> StoreStats:
        """Return how much is used, free, pinned and waiting, in bytes."""
        return _inspection.stats(self._live())

    def objects(self) -> list[ObjectInfo]:
        """Return what is known of each object, named or not, oldest first."""
        return _inspection.objects(self._live())

    def clients(self) -> list[ClientInfo]:
        """Return what is known of each attached process."""
        return _inspection.clients(self._live())

    def check(self) -> list[Finding]:
        """Prove every invariant of the format; return what is broken (nothing: all is well)."""
        return _check.check(self._live())

    def recover(self) -> Recovered:
        """Undo what dead processes left: their pins, half-made puts and seats."""
        session = self._live()
        session.check_writeable()
        with session.lock:
            session.check_alive()
            return session.bury()

    # --- the handle itself ---------------------------------------------------------------------

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
        return isinstance(other, Store) and other._session is self._session

    def __hash__(self) -> int:
        return hash(id(self._session))

    def __reduce__(self) -> tuple[Any, ...]:
        session = self._live()
        return _arrive, (str(session.path), session.readonly)

    def __repr__(self) -> str:
        if self.closed:
            return "<Store closed>"
        session = self._live()
        used, capacity = session.words[L.W_USED], session.identity.capacity
        return (
            f"<Store {session.path.name!r} {session.words[L.W_OBJECTS]:,} objects, {used:,} of "
            f"{capacity:,} bytes>"
        )


class Allocated:
    """The array under construction that `Store.allocate` gives, as a context manager.

    Attributes
    ----------
    ref : ObjectRef or None
        The reference to the object, once the block has ended well.
    """

    def __init__(
        self,
        session: Session,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike,
        key: str | None,
        *,
        overwrite: bool,
        readonly: bool,
    ) -> None:
        self.ref: ObjectRef | None = None
        self._session = session
        self._shape = _check_shape(shape)
        self._dtype = np.dtype(dtype)
        self._package = _writing.pack_array(self._shape, self._dtype, key, readonly=readonly)
        self._allocation = _writing.Allocation(session, self._package, overwrite=overwrite)

    def __enter__(self) -> npt.NDArray[Any]:
        return self._allocation.enter(self._shape, self._dtype)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._allocation.discard(error)
            return
        self.ref = _refer(self._session, self._package, self._allocation.publish())


def _refer(session: Session, package: _writing.Package, place: _writing.Place) -> ObjectRef:
    nbytes = package.content.data_nbytes
    return _make_ref(session, place.slot, place.generation, nbytes, package.key)


def _make_ref(
    session: Session, slot: int, generation: int, nbytes: int, key: str | None
) -> ObjectRef:
    return ObjectRef(session.uuid, session.path_text, slot, generation, nbytes, key)


def _arrive(path: str, readonly: bool) -> Store:  # noqa: FBT001 - called by pickle
    """Attach a handle that was pickled in another process."""
    return Store.attach(path, readonly=readonly)


def _finder(session: Session, target: ObjectRef | str) -> Callable[[], int]:
    """Return a function that finds the slot of a target under the lock, or -1."""
    if isinstance(target, ObjectRef):
        _check_ref(session, target)
        return _ref.finder(session, target)
    _check_key(target)
    digest = digest_of(target)
    return lambda: session.keys.find(digest)


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        message = f"a key is a str, not {type(key).__name__}: {key!r:.100}"
        raise TypeError(message)
    try:
        nbytes = len(key.encode())
    except UnicodeEncodeError as error:
        message = f"the key {key!r:.100} cannot be encoded as UTF-8: {error.reason}"
        raise ValueError(message) from error
    if nbytes > _writing.MAX_KEY_NBYTES:
        message = (
            f"a key of {nbytes:,} bytes is too long (most: {_writing.MAX_KEY_NBYTES:,}); use a "
            f"digest of it: {key!r:.60}..."
        )
        raise ValueError(message)


def _check_ref(session: Session, ref: ObjectRef) -> None:
    if ref._uuid != session.uuid:
        message = (
            f"{ref!r} belongs to another store than {session.path}; use ref.get(), or that store"
        )
        raise ValueError(message)


def _check_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = (
            (operator.index(shape),)
            if not isinstance(shape, Sequence)
            else tuple(map(operator.index, shape))
        )
    except TypeError:
        message = f"shape={shape!r}: give an int or a sequence of ints"
        raise TypeError(message) from None
    if any(size < 0 for size in sizes):
        message = f"shape={shape!r}: sizes are not negative"
        raise ValueError(message)
    return sizes
