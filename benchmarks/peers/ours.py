"""shmstore."""

import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import Peer
from shmstore import Store

KEY = "sample"
SPARE = 64 << 20


class ByRef(Peer):
    """Anonymous objects, handed on as refs."""

    label = "shmstore, by ref"
    batches = True

    def __init__(self, store: Store) -> None:
        self._exit = ExitStack()
        self._store = self._exit.enter_context(store)
        self.address = store.name

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Create a store with room for several of the objects; `SHMSTORE_ROOT` says where."""
        del folder
        return cls(Store.create(capacity=4 * nbytes + SPARE))

    @classmethod
    def attach(cls, address: str) -> Self:
        """Attach to the store of that name."""
        return cls(Store.attach(address))

    def close(self) -> None:
        """Leave the store; its creator destroys it thereby."""
        self._exit.close()

    def putter(self, value: object) -> Callable[[], object]:
        """Return `Store.put` of the value."""
        return partial(self._store.put, value)

    def getter(self, handle: Any) -> Callable[[], object]:
        """Return `Store.get` of the ref, or of the key."""
        return partial(self._store.get, handle)

    def delete(self, handle: Any) -> None:
        """Delete the object."""
        self._store.delete(handle)

    def many_putter(self, values: Sequence[object]) -> Callable[[], object]:
        """Return `Store.put_many` of the values."""
        return partial(self._store.put_many, values)

    def many_getter(self, handle: Any) -> Callable[[], object]:
        """Return `Store.get_many` of the refs."""
        return partial(self._store.get_many, handle)

    def delete_many(self, handle: Any) -> None:
        """Delete them all."""
        self._store.delete_many(handle)


class ByKey(ByRef):
    """Named objects."""

    label = "shmstore, by key"
    keyed = True
    batches = False

    def putter(self, value: object) -> Callable[[], object]:
        """Return `Store.put` under a key; the key is the handle."""
        put = self._store.put

        def put_under_key() -> str:
            put(value, key=KEY)
            return KEY

        return put_under_key


class ByNewRef(ByRef):
    """A ref that has just come from another process: nothing about its object is known yet."""

    label = "shmstore, new ref"
    puts = False
    batches = False

    def getter(self, handle: Any) -> Callable[[], object]:
        """Return what unpickles the ref and gets its object."""
        get, loads, pickled = self._store.get, pickle.loads, pickle.dumps(handle)
        return lambda: get(loads(pickled))


PEERS = [ByRef, ByNewRef, ByKey]
