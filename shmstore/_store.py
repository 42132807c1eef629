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

`_packing`, `_writing`, `_reading` and `_plans` hold the steps, `_session` what a process has of a
store, `_lifecycle` how stores begin and end, `_spares` which puts and deletes need no lock.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from shmstore import (
    _batches,
    _deleting,
    _inspection,
    _packing,
    _plans,
    _reading,
    _ref,
    _writing,
)
from shmstore._arguments import KEY_OR_REF, check_key, check_mode
from shmstore._awaiting import Awaiting
from shmstore._catalog.keys import Digest, digest_of
from shmstore._cooperating import Cooperating
from shmstore._explaining import Explained
from shmstore._handle import Handle
from shmstore._lists import Listing
from shmstore._maintenance import Maintained
from shmstore._mapping import NamedObjects
from shmstore._puts import put_plain
from shmstore._ref import ObjectRef
from shmstore._refilling import refill_array
from shmstore._session import Session
from shmstore._undecoded import Undecoded
from shmstore.errors import ObjectNotFoundError

if TYPE_CHECKING:
    import numpy.typing as npt

    from shmstore._building import Allocation

_RAISE: Any = object()
_GONE = _plans.GONE


class Store(Handle, NamedObjects, Listing, Undecoded, Awaiting, Cooperating, Maintained, Explained):
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

    __slots__ = ()

    # --- putting -------------------------------------------------------------------------------

    def put(
        self,
        obj: Any,
        *,
        key: str | None = None,
        overwrite: bool = True,
        readonly: bool | None = None,
        ttl: float | None = None,
        serializers: Sequence[str] | None = None,
        compression: str | None = None,
    ) -> ObjectRef:
        """Store an object: its data is copied once into shared memory and published as a whole.

        Parameters
        ----------
        obj
            Anything that a handler, pickle or cloudpickle can take; of a `Serialized` what it
            holds.
        key
            A name for it, up to 1,024 bytes of UTF-8; None: it is reached by the reference alone.
        overwrite
            Whether an object of this name may be replaced; its readers keep their views.
        readonly
            True: readers get read-only views, whatever the flags of the object's buffers are.
        ttl
            Seconds until it expires: it can no longer be got, and its memory is free for others who
            need it. None: as the store was created, by default never; `math.inf`: never.
        serializers
            Families to ask, in this order; default ``("custom", "pickle")``.
        compression
            "lz4", "zstd", "snappy", "zlib" or "auto" (lz4 or snappy): frames that it shortens by
            30 % are stored so, and every get decompresses them into memory of its own.

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
            The object cannot be serialized; the message names the part of it.
        CodecNotFoundError
            The codec is unknown or not installed.
        """
        package, session = None, self._session
        if session is None or session.closed:
            session = self._live()
        if key is not None:
            key = check_key(key)
        elif ttl is None and serializers is None and compression is None and not session.optioned:
            put_at_once = refill_array if type(obj) is np.ndarray else put_plain
            found = put_at_once(session, obj, readonly)
            if isinstance(found, ObjectRef):
                return found
            package = found
        if package is None:
            package = _packing.pack(
                obj, key, readonly=readonly, serializers=serializers, compression=compression
            )
        if ttl is not None or session.optioned:
            package = session.with_options(package, ttl)
        if session.spills:
            from shmstore import _filing  # noqa: PLC0415 - takes time that most processes can save

            return _filing.put(session, package, overwrite=overwrite)
        return _writing.put(session, package, overwrite=overwrite)

    @overload
    def put_many(
        self,
        objects: Mapping[str, Any],
        *,
        overwrite: bool = ...,
        readonly: bool | None = ...,
        ttl: float | None = ...,
        serializers: Sequence[str] | None = ...,
        compression: str | None = ...,
    ) -> dict[str, ObjectRef]: ...
    @overload
    def put_many(
        self,
        objects: Iterable[Any],
        *,
        overwrite: bool = ...,
        readonly: bool | None = ...,
        ttl: float | None = ...,
        serializers: Sequence[str] | None = ...,
        compression: str | None = ...,
    ) -> list[ObjectRef]: ...
    def put_many(
        self,
        objects: Mapping[str, Any] | Iterable[Any],
        *,
        overwrite: bool = True,
        readonly: bool | None = None,
        ttl: float | None = None,
        serializers: Sequence[str] | None = None,
        compression: str | None = None,
    ) -> dict[str, ObjectRef] | list[ObjectRef]:
        """Store a batch under one lock hold: all objects, or none if one finds no room.

        In a store with ``on_full="spill"`` there is room in files for what finds none in memory:
        the batch may be larger than the store, and is published under one lock hold all the same.

        Parameters
        ----------
        objects
            A mapping of keys to objects, or any objects without keys.
        overwrite, readonly, ttl, serializers, compression
            As in `put`. A SerializationError names the object by its key, or by its number.

        Returns
        -------
        dict or list of ObjectRef
            By key, or in the order of the objects.
        """
        session = self._live()
        named = isinstance(objects, Mapping)
        pairs: list[tuple[Any, Any]]
        if isinstance(objects, Mapping):
            pairs = [(check_key(key), x) for key, x in objects.items()]
        else:
            objects = list(objects)
            if ttl is None and serializers is None and compression is None:
                done = _batches.put(session, objects)
                if done is not None:
                    return done
            pairs = [(None, x) for x in objects]
        packages = _packing.pack_many(
            pairs, readonly=readonly, serializers=serializers, compression=compression
        )
        if ttl is not None or session.optioned:
            packages = [session.with_options(package, ttl) for package in packages]
        if session.spills:
            from shmstore import _filing  # noqa: PLC0415 - takes time that most processes can save

            refs = _filing.put_many(session, packages, overwrite=overwrite)
        else:
            refs = _writing.put_many(session, packages, overwrite=overwrite)
        return {key: ref for (key, _), ref in zip(pairs, refs, strict=True)} if named else refs

    def allocate(
        self,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = float,
        *,
        key: str | None = None,
        overwrite: bool = True,
        readonly: bool = False,
        ttl: float | None = None,
    ) -> Allocation:
        """Build an array in place: it is published when the ``with`` block ends, without any copy.

        Parameters
        ----------
        shape
            Of the array, C-ordered.
        dtype
            Of its elements; without objects of Python, metadata and classes such as `numpy.record`.
        key, overwrite, ttl
            As in `put`.
        readonly
            Readers get read-only views.

        Returns
        -------
        Allocation
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
            key = check_key(key)
        session = self._live()
        session.check_writeable()
        from shmstore._building import Allocation  # noqa: PLC0415 - takes time that most processes can save

        return Allocation(
            session, shape, dtype, key, overwrite=overwrite, readonly=readonly, ttl=ttl
        )

    # --- getting -------------------------------------------------------------------------------

    def get(
        self,
        target: ObjectRef | str,
        default: Any = _RAISE,
        *,
        timeout: float | None = 0,
        mode: str = "shared",
        deserializers: Container[str] | None = None,
        decode: bool = True,
    ) -> Any:
        """Return an object without copying its data.

        Parameters
        ----------
        target
            A reference or a key.
        default
            What to return when there is no such object; without it ObjectNotFoundError is raised.
        timeout
            Seconds to wait for the object of a key that is not there yet; None: for ever. When the
            time is over, `default` is returned or WaitTimeoutError raised.
        mode
            What buffers become. "shared": views on the shared memory, writeable where they were at
            put; "readonly": read-only views; "private": writeable, and writes stay with this
            reader; "copy": copies on the heap.
        deserializers
            Families that may be used; default all. ``("custom", "msgpack")`` runs no code that the
            object brings along: for what somebody put who is not trusted.
        decode
            False: return the `Serialized` header and frames instead of the object.

        Raises
        ------
        ObjectNotFoundError
            The key is not there; the object of the reference has been deleted.
        WaitTimeoutError
            No object was put under the key within `timeout`.
        DeserializationError
            The object could not be rebuilt here, or its family is not accepted.

        Notes
        -----
        Concurrency: takes no lock and makes no system call, except where the store was created for
        locked reads. A key that is missing is looked up once more under the lock.
        """
        if mode == "shared" and deserializers is None and decode:
            kind = type(target)
            if kind is ObjectRef:
                plan = target._plan  # type: ignore[union-attr]
                if (
                    plan is None
                    and (session := self._session) is not None
                    and target._uuid == session.uuid  # type: ignore[union-attr]
                ):
                    plan = _ref.first_plan(session, target)  # type: ignore[arg-type]
            else:
                plan = self._plans.get(target) if kind is str else None  # type: ignore[arg-type]
            if plan is not None and plan.session is self._session:
                obj = plan.fetch()
                if obj is not _GONE:
                    return obj
        secured = self._secure(target, default is _RAISE, mode, timeout)
        if secured is None:
            return default
        plan, held = secured
        plan.count()
        return plan.build(held, mode, deserializers) if decode else plan.serialized(held, mode)

    def _secure(
        self,
        target: ObjectRef | str,
        required: bool,  # noqa: FBT001 - whether no object is an error
        mode: str,
        timeout: float | None,
    ) -> tuple[_plans.Plan, Any] | None:
        session = self._live()
        check_mode(mode)
        if isinstance(target, ObjectRef):
            _ref.check_owner(session, target)
            try:
                return _ref.secure(session, target)
            except ObjectNotFoundError:
                if required:
                    raise
                return None
        key = check_key(target, KEY_OR_REF)
        if timeout is None or timeout != 0:
            from shmstore import _expecting  # noqa: PLC0415 - takes time that most processes can save

            return _expecting.secure_key(self._live, key, timeout, required=required)
        secured = _reading.secure_key(session, key)
        if secured is None and required:
            raise _reading.missing_key(session, key)
        return secured

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
        if not self.discard(target):
            if isinstance(target, ObjectRef):
                raise _ref.missing(target)
            raise _reading.missing_key(self._live(), target)

    def discard(self, target: ObjectRef | str) -> bool:
        """Delete an object if it is there; return whether it was."""
        session = self._live()
        return _ref.take_back(session, target) or self.delete_many([target]) == 1

    def delete_many(self, targets: Iterable[ObjectRef | str]) -> int:
        """Delete those of the objects that are there, under one lock hold; return how many."""
        session = self._live()
        found = [_nameable(session, target) for target in targets]
        return _deleting.delete(session, _ref.find, found)

    # --- the mapping of named objects ----------------------------------------------------------

    def __contains__(self, target: object) -> bool:
        session = self._live()
        if isinstance(target, ObjectRef):
            _ref.check_owner(session, target)
            return _ref.is_there(session, target)
        if not isinstance(target, str):
            return False
        plan = session.plans.get(target)
        if plan is not None and not plan.clocked and plan.is_there():
            return True
        return _reading.find_key(session, check_key(target)) is not None

    def __len__(self) -> int:
        session = self._live()
        session.check_alive()
        return session.slots.count_living()

    def __iter__(self) -> Iterator[str]:
        return _inspection.keys(self._live())

    def _ref_of(self, key: str) -> ObjectRef:
        session = self._live()
        key = check_key(key)
        plan = _reading.plan_of_key(session, key)
        if plan is None:
            raise _reading.missing_key(session, key)
        return _ref.refer(plan)


def _nameable(session: Session, target: ObjectRef | str) -> ObjectRef | Digest:
    """Return a reference of this store, or what a key is known by: what is found under the lock."""
    if isinstance(target, ObjectRef):
        _ref.check_owner(session, target)
        return target
    return digest_of(check_key(target, KEY_OR_REF))
