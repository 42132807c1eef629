"""What do users of `dict` expect of a store? Its named objects, as a mutable mapping."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from shmstore.errors import KeyExistsError, ObjectNotFoundError

_RAISE: Any = object()


class NamedObjects(MutableMapping[str, Any]):
    """Mapping methods over the calls of `Store`; keys come in the order of their last put."""

    __slots__ = ()

    @abstractmethod
    def put(self, obj: Any, *, key: str | None = None, overwrite: bool = True) -> Any:
        """See `Store.put`."""

    @abstractmethod
    def put_many(self, objects: Any, *, overwrite: bool = True) -> Any:
        """See `Store.put_many`."""

    @abstractmethod
    def get(self, target: Any, default: Any = _RAISE) -> Any:
        """See `Store.get`."""

    @abstractmethod
    def delete(self, target: Any) -> None:
        """See `Store.delete`."""

    @abstractmethod
    def delete_many(self, targets: Iterable[Any]) -> int:
        """See `Store.delete_many`."""

    def __getitem__(self, key: str) -> Any:
        return self.get(key)

    def __setitem__(self, key: str, obj: Any) -> None:
        self.put(obj, key=key)

    def __delitem__(self, key: str) -> None:
        self.delete(key)

    def pop(self, key: str, default: Any = _RAISE) -> Any:
        """Return the object of a key and delete it; of two processes that pop, one gets it."""
        while True:
            try:
                ref = self._ref_of(key)
                obj = ref.get()
                self.delete(ref)
            except ObjectNotFoundError:
                if key in self:
                    continue
                if default is _RAISE:
                    raise
                return default
            return obj

    def popitem(self) -> tuple[str, Any]:
        """Delete the object that was put last; return its key and the object."""
        for key in reversed(list(self)):
            obj = self.pop(key, _RAISE_NOT)
            if obj is not _RAISE_NOT:
                return key, obj
        message = "the store holds no named objects"
        raise KeyError(message)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the object of a key; put `default` there first if there is none. Atomic."""
        while True:
            with contextlib.suppress(ObjectNotFoundError):
                return self.get(key)
            try:
                ref = self.put(default, key=key, overwrite=False)
            except KeyExistsError:
                continue
            try:
                return ref.get()
            except ObjectNotFoundError:
                return default  # somebody has deleted it since: it must not come back

    def update(self, other: Any = (), /, **named: Any) -> None:
        """Put all items of a mapping, or of pairs, in one batch: all of them or none."""
        items = dict(other.items() if isinstance(other, Mapping) else other, **named)
        self.put_many(items)

    def clear(self) -> None:
        """Delete all named objects."""
        self.delete_many(list(self))

    def items(self) -> Any:
        """Return an iterable of (key, object) pairs; objects deleted meanwhile are left out."""
        return _Items(self)

    def values(self) -> Any:
        """Return an iterable of objects; those deleted meanwhile are left out."""
        return _Values(self)

    @abstractmethod
    def _ref_of(self, key: str) -> Any:
        """Return a reference to the object that has a key now."""


_RAISE_NOT: Any = object()


class _Items:
    """The (key, object) pairs of a store."""

    def __init__(self, named: NamedObjects) -> None:
        self._named = named

    def __len__(self) -> int:
        return len(self._named)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for key in self._named:
            obj = self._named.get(key, _RAISE_NOT)
            if obj is not _RAISE_NOT:
                yield key, obj


class _Values(_Items):
    """The objects of a store."""

    def __iter__(self) -> Iterator[Any]:
        for _, obj in super().__iter__():
            yield obj
