"""shmstore."""

import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import SMALL_NBYTES, Peer

SPARE = 64 << 20
MORE_OBJECTS = 100_000
PATIENCE_S = 60.0
TRIP, ANSWER = "trip-", "answer to "


class ByRef(Peer):
    """Anonymous objects, handed on as refs."""

    label = "shmstore, by ref"
    package = "filelock"
    batches = True
    numbered = True
    copies = 3.0
    largest = 1 << 30

    def __init__(self, store: Any) -> None:
        self._exit = ExitStack()
        self._store = self._exit.enter_context(store)
        self.address = store.name
        self.folder = store.path

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Create a store with room for several of the objects; `SHMSTORE_ROOT` says where."""
        from shmstore import Store

        del folder
        return cls(Store.create(capacity=4 * nbytes + SPARE))

    @classmethod
    def create_for(cls, folder: Path, count: int) -> Self:
        """Create a store for more objects than by default."""
        from shmstore import Store

        del folder
        room = count * SMALL_NBYTES + SPARE
        return cls(Store.create(capacity=room, max_objects=count + MORE_OBJECTS))

    @classmethod
    def create_bounded(cls, folder: Path, nbytes: int) -> Self:
        """Create a store of that capacity."""
        from shmstore import Store

        del folder
        return cls(Store.create(capacity=nbytes))

    @classmethod
    def attach(cls, address: str) -> Self:
        """Attach to the store of that name."""
        from shmstore import Store

        return cls(Store.attach(address))

    def close(self) -> None:
        """Leave the store; its creator destroys it thereby."""
        self._exit.close()

    def put(self, value: object, key: str) -> Any:
        """Put it; the ref is the handle."""
        del key
        return self._store.put(value)

    def get(self, handle: Any) -> object:
        """Get it."""
        return self._store.get(handle)

    def put_named(self, values: dict[str, object]) -> list[Any]:
        """Put them all at once, without their names."""
        return self._store.put_many(values.values())

    def putter(self, value: object, key: str = "sample") -> Callable[[], object]:
        """Return `Store.put` of the value."""
        del key
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

    def put(self, value: object, key: str) -> Any:
        """Put it under the key, which is the handle."""
        self._store.put(value, key=key)
        return key

    def put_named(self, values: dict[str, object]) -> list[Any]:
        """Put them all at once."""
        self._store.put_many(values)
        return list(values)

    def putter(self, value: object, key: str = "sample") -> Callable[[], object]:
        """Return `Store.put` under a key; the key is the handle."""
        put = self._store.put

        def put_under_key() -> str:
            put(value, key=key)
            return key

        return put_under_key

    def hand_over(self, value: object, key: str) -> str:
        """Put it under a key that the other process waits for."""
        self._store.put(value, key=key)
        return key

    def take(self, key: str) -> object:
        """Wait for the key."""
        return self._store.get(key, timeout=PATIENCE_S)

    def answer(self, key: str, read_at: int) -> None:
        """Put the moment under another key."""
        self._store.put(read_at, key=ANSWER + key)

    def answered(self, key: str) -> int:
        """Wait for that."""
        return self._store.get(ANSWER + key, timeout=PATIENCE_S)

    def delete(self, handle: str) -> None:
        """Delete it, and the answer if there is one."""
        self._store.delete(handle)
        if handle.startswith(TRIP):
            self._store.discard(ANSWER + handle)


class ByNewRef(ByRef):
    """A ref that has just come from another process: nothing about its object is known yet."""

    label = "shmstore, new ref"
    hands = numbered = crowds = False
    puts = False
    batches = False

    def getter(self, handle: Any) -> Callable[[], object]:
        """Return what unpickles the ref and gets its object."""
        get, loads, pickled = self._store.get, pickle.loads, pickle.dumps(handle)
        return lambda: get(loads(pickled))


PEERS = [ByRef, ByNewRef, ByKey]
