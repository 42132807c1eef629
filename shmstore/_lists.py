"""What do users hold in their hands of a list of records that lies in a store?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from shmstore import _ref
from shmstore._arguments import check_key
from shmstore._ref import ObjectRef
from shmstore.serialization import Serialized, families

if TYPE_CHECKING:
    from shmstore._info import ObjectInfo
    from shmstore._plans import Plan
    from shmstore._session import Session
    from shmstore.serialization.handlers.records import Records

# The records of a list cannot be replaced.
T_co = TypeVar("T_co", covariant=True)


class SharedList(Sequence[T_co], Generic[T_co]):
    """The records of one object of a store: a sequence that decodes each record when it is asked.

    It is what `Store.get` returns for what `Store.put_list` has put. A slice is a `SharedList` of
    the same records, without a copy. Pickled, it is a reference, and attaches on arrival: a data
    set is held once for all processes.

    Arrays are views on the shared memory, and str, bytes and what was pickled are made anew with
    each access; two accesses give two objects. The object is kept while the list, a slice of it or
    a view of a record is alive.

    Notes
    -----
    Concurrency: threads may share a list, and a forked child may use that of its parent.

    Examples
    --------
    >>> from shmstore import Store
    >>> with Store.create(capacity="1MiB") as store:
    ...     words = store.get(store.put_list(["zero", "one", "two", "three"]))
    ...     words[1], len(words), list(words[::-2]), words.index("two")
    ('one', 4, ['three', 'one'], 2)
    """

    __slots__ = ("__weakref__", "_options", "_range", "_read", "_records", "_ref")

    _records: Records
    _ref: ObjectRef
    _options: tuple[str, Container[str] | None]
    _range: range
    _read: Callable[[int], Any]

    def __init__(self) -> None:
        message = "use Store.put_list, and Store.get for what it returns"
        raise TypeError(message)

    @classmethod
    def _of(
        cls,
        records: Records,
        ref: ObjectRef,
        options: tuple[str, Container[str] | None],
        where: range,
    ) -> SharedList[Any]:
        """Return those records of an object whose numbers are in a range."""
        self: SharedList[Any] = cls.__new__(cls)
        self._records, self._ref, self._options, self._range = records, ref, options, where
        self._read = records.read
        return self

    @property
    def ref(self) -> ObjectRef:
        """The reference to the object that holds all records, of which this may be a slice."""
        return self._ref

    def info(self) -> ObjectInfo:
        """Return size, type, age and owner of the object, and who looks at it."""
        return self._ref.info()

    # --- a sequence ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> SharedList[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | SharedList[T_co]:
        try:
            at = self._range[index]
        except IndexError:
            message = f"record {index} of a SharedList of {len(self._range):,}"
            raise IndexError(message) from None
        return self._read(at) if isinstance(at, int) else self._narrowed(at)

    def _narrowed(self, where: range) -> SharedList[T_co]:
        """Return those records of the object whose numbers are in a range."""
        count = self._records.nrecords
        if len(where) and not (0 <= where[0] < count and 0 <= where[-1] < count):
            message = f"{where} leaves a list of {count:,} records"
            raise IndexError(message)
        return self._of(self._records, self._ref, self._options, where)

    def __getitems__(self, indices: Iterable[int]) -> list[T_co]:
        """Return several records: what the loaders of torch ask a data set for."""
        where, read = self._range, self._read
        return [read(where[index]) for index in indices]

    def __iter__(self) -> Iterator[T_co]:
        return map(self._read, self._range)

    def __reversed__(self) -> Iterator[T_co]:
        return map(self._read, reversed(self._range))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (SharedList, list)):
            return NotImplemented
        if len(self) != len(other):
            return False
        if isinstance(other, SharedList) and (self._ref, self._range) == (other._ref, other._range):
            return True
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment] # like that of a list, to which it can be equal

    # --- on the way ----------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        whole = self._range == range(self._records.nrecords)
        bounds = () if whole else (self._range.start, self._range.stop, self._range.step)
        if self._options == _USUAL:
            return _arrive, ((self._ref, *bounds) if bounds else (self._ref,))
        return _arrive, (self._ref, *(bounds or (0, len(self), 1)), *self._options)

    def __repr__(self) -> str:
        return f"<SharedList of {len(self):,} records in {self._ref!r}>"


_USUAL = ("shared", None)


def of_plan(
    plan: Plan, records: Records, mode: str, deserializers: Container[str] | None
) -> SharedList[Any]:
    """Return the list of an object that has just been got."""
    accepted = deserializers
    if accepted is not None and not isinstance(accepted, (tuple, list, frozenset, set)):
        accepted = tuple([name for name in families if name in deserializers])  # type: ignore[operator]
    return SharedList._of(  # noqa: SLF001 - whoever holds lists cannot make them
        records, _ref.refer(plan), (mode, accepted), range(records.nrecords)
    )


def _arrive(
    ref: ObjectRef,
    start: int = 0,
    stop: int | None = None,
    step: int = 1,
    mode: str = "shared",
    deserializers: Container[str] | None = None,
) -> SharedList[Any]:
    """Return a list where its reference has arrived. Its name lies in pickles."""
    whole: SharedList[Any] = ref.get(mode=mode, deserializers=deserializers)
    return whole if stop is None else whole._narrowed(range(start, stop, step))  # noqa: SLF001 - as above


class Listing(ABC):
    """Calls of `Store` that put many records as one object."""

    __slots__ = ()

    @abstractmethod
    def _live(self) -> Session:
        """Return the session of an open handle."""

    @abstractmethod
    def put(
        self,
        obj: Any,
        *,
        key: str | None = None,
        overwrite: bool = True,
        readonly: bool | None = None,
        ttl: float | None = None,
    ) -> ObjectRef:
        """See `Store.put`."""

    def put_list(
        self,
        items: Iterable[Any],
        *,
        key: str | None = None,
        overwrite: bool = True,
        readonly: bool | None = None,
        ttl: float | None = None,
        serializers: Sequence[str] | None = None,
    ) -> ObjectRef:
        """Store many records as one object, which `get` returns as a `SharedList`.

        Parameters
        ----------
        items
            Any objects, from any iterable. str, bytes and arrays need no pickle; where all are of
            one kind, a record costs 4 bytes beside its own (arrays of one shape: nothing).
            Anything else is serialized record by record, so that each can be got without the
            others, and the same object in two records comes back as two.
        key, overwrite, readonly, ttl
            As in `put`.
        serializers
            Families to ask about what is neither str, bytes nor an array in C order; default
            ``("custom", "pickle")``.

        Returns
        -------
        ObjectRef

        Raises
        ------
        SerializationError
            A record cannot be serialized; the message says which.
        StoreFullError, ObjectTooLargeError, KeyExistsError
            As in `put`.

        Notes
        -----
        The records are taken from `items` once. What is small is encoded as it comes, large arrays
        are copied when all are there, straight into the store; so a generator must not change the
        arrays that it has given.

        Examples
        --------
        >>> import numpy as np
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...     store.put_list((np.arange(n) for n in range(4)), key="rows").key
        ...     store["rows"][-1]
        'rows'
        array([0, 1, 2])
        """
        from shmstore.serialization.recording import record  # noqa: PLC0415 - takes time that most processes can save

        if key is not None:
            key = check_key(key)
        session = self._live()
        session.check_writeable()
        # A store that spills may write an object twice: to memory, and to a file.
        header, frames = record(items, serializers, drain=not session.spills)
        return self.put(
            Serialized(header, frames), key=key, overwrite=overwrite, readonly=readonly, ttl=ttl
        )
