"""LMDB on tmpfs, with pickled values: a database that both processes map."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import ClassVar, Self

from benchmarks.peers import Peer

SPARE = 64 << 20


class Lmdb(Peer):
    """Written with `pwrite`."""

    label = "LMDB"
    package = "lmdb"
    requires = ("lmdb",)
    numbered = True
    copies = 6.0
    keyed = True
    batches = True
    writemap: ClassVar[bool] = False

    def __init__(self, address: tuple[str, int]) -> None:
        import lmdb

        self.address = address
        path, size = address
        self.folder = Path(path)
        self._env = lmdb.open(path, map_size=size, writemap=self.writemap, sync=False)

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Leave room for the pages of the two transactions before, which cannot be reused yet."""
        rmtree(folder / cls.label, ignore_errors=True)  # with the objects of another size
        return cls((str(folder / cls.label), 6 * nbytes + SPARE))

    @classmethod
    def create_bounded(cls, folder: Path, nbytes: int) -> Self:
        """Let the map end there."""
        return cls((str(folder / cls.label), nbytes))

    @classmethod
    def attach(cls, address: tuple[str, int]) -> Self:
        """Open the same files."""
        return cls(address)

    def close(self) -> None:
        """Unmap."""
        self._env.close()

    def put(self, value: object, key: str) -> bytes:
        """Put it in a transaction of its own."""
        return self.putter(value, key)()

    def get(self, handle: bytes) -> object:
        """Get it in a transaction of its own."""
        return self.getter(handle)()

    def putter(self, value: object, key: str = "sample") -> Callable[[], bytes]:
        """Return one write transaction."""
        begin, dumps = self._env.begin, pickle.dumps
        name = key.encode()

        def put() -> bytes:
            with begin(write=True) as transaction:
                transaction.put(name, dumps(value, 5))
            return name

        return put

    def getter(self, handle: bytes) -> Callable[[], object]:
        """Return one read transaction; the value is unpickled from the map."""
        begin, loads = self._env.begin, pickle.loads

        def get() -> object:
            with begin(buffers=True) as transaction:
                return loads(transaction.get(handle, b""))

        return get

    def delete(self, handle: bytes) -> None:
        """Delete the key in a transaction of its own."""
        with self._env.begin(write=True) as transaction:
            transaction.delete(handle)

    def many_putter(self, values: Sequence[object]) -> Callable[[], object]:
        """Return one write transaction for all of them."""
        begin, dumps = self._env.begin, pickle.dumps
        keys = [b"%08d" % number for number in range(len(values))]

        def put_many() -> list[bytes]:
            with begin(write=True) as transaction:
                put = transaction.put
                for key, value in zip(keys, values, strict=True):
                    put(key, dumps(value, 5))
            return keys

        return put_many

    def many_getter(self, handle: list[bytes]) -> Callable[[], object]:
        """Return one read transaction for all of them."""
        begin, loads = self._env.begin, pickle.loads

        def get_many() -> list[object]:
            with begin(buffers=True) as transaction:
                get = transaction.get
                return [loads(get(key, b"")) for key in handle]

        return get_many

    def delete_many(self, handle: list[bytes]) -> None:
        """Delete all keys in one transaction."""
        with self._env.begin(write=True) as transaction:
            for key in handle:
                transaction.delete(key)


class LmdbWritemap(Lmdb):
    """Written through a writeable map."""

    label = "LMDB writemap"
    writemap = True


PEERS = [Lmdb, LmdbWritemap]
