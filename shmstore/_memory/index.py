"""Is this file an index of ours, and how are its words reached?

Everything that comes from the file's constant part is checked once, here, into three errors: not
ours, another version or machine, damaged. What changes is checked by whoever reads it.
"""

from __future__ import annotations

import mmap
import os
import time
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore._memory import layout as L
from shmstore._memory.descriptors import CLOSED, Descriptor
from shmstore._memory.mapping import data_end, map_file, reserve
from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptStoreError, FormatVersionError, NotAStoreError

if TYPE_CHECKING:
    import numpy.typing as npt

INDEX_NAME = "index"

# With so many bytes tables begin, and by so many they grow at a time, at least.
_FIRST_NBYTES = 16 << 10
_GROWTH_NBYTES = 64 << 10


class Identity(NamedTuple):
    """What a store is made of: the constant words of its index."""

    uuid: int
    capacity: int
    max_objects: int
    max_clients: int
    flags: int
    created_ns: int
    creator_pid: int
    ttl_ns: int = 0
    group: int = 0


def create_index(fd: int, identity: Identity, *, backed: int) -> None:
    """Write the superblock of a new store into an empty file.

    Raises
    ------
    OSError
        ENOSPC when the file system cannot give even these few pages.
    """
    geometry = L.Geometry(identity.max_objects, identity.max_clients)
    os.ftruncate(fd, geometry.nbytes)
    reserve(fd, 0, geometry.buckets * L.WORD)
    tables = _first_tables(geometry)
    for _, start, nbytes in tables:
        reserve(fd, start * L.WORD, nbytes)
    memory = map_file(fd, geometry.nbytes, writeable=True)
    words = memoryview(memory).cast("Q")
    words[L.W_VERSION] = L.FORMAT_VERSION
    words[L.W_BYTE_ORDER] = L.BYTE_ORDER_MARK
    words[L.W_UUID] = identity.uuid & (2**64 - 1)
    words[L.W_UUID + 1] = identity.uuid >> 64
    words[L.W_CAPACITY] = identity.capacity
    words[L.W_MAX_OBJECTS] = identity.max_objects
    words[L.W_MAX_CLIENTS] = identity.max_clients
    words[L.W_FLAGS] = identity.flags
    words[L.W_CREATED_NS] = identity.created_ns
    words[L.W_CREATOR_PID] = identity.creator_pid
    words[L.W_TTL_NS] = identity.ttl_ns
    words[L.W_GROUP] = identity.group
    words[L.W_NEXT_GENERATION] = words[L.W_NEXT_SERIAL] = 1
    words[L.W_BACKED] = backed
    for reserved, _, nbytes in tables:
        words[reserved] = nbytes
    words[L.W_MAGIC] = L.MAGIC
    words[L.W_GEOMETRY_CRC] = _geometry_crc(words)


def _first_tables(geometry: L.Geometry) -> list[tuple[int, int, int]]:
    """Return what the first put needs: the word that counts it, where it begins, its bytes."""
    rows = (
        (L.W_SLOTS_RESERVED, geometry.slots, L.SLOT_NBYTES * geometry.max_objects),
        (L.W_NODES_RESERVED, geometry.nodes, L.NODE_WORDS * L.WORD * geometry.max_nodes),
    )
    return [
        (word, start, min(_FIRST_NBYTES, L.align(nbytes, L.PAGE))) for word, start, nbytes in rows
    ]


def new_identity(
    capacity: int, max_objects: int, max_clients: int, flags: int, ttl_ns: int = 0, group: int = 0
) -> Identity:
    """Return the identity of a store that is made now, by this process."""
    born = time.time_ns(), os.getpid()
    sizes = capacity, max_objects, max_clients
    return Identity(random_uuid(), *sizes, flags, *born, ttl_ns, group)


def random_uuid() -> int:
    """Return a number as `uuid.uuid4` makes it, without the module, which few need."""
    number = int.from_bytes(os.urandom(16))
    return number & ~_UUID_MARKS | _UUID_4


# The bits of RFC 9562 for the version and the variant, and what they are in version 4.
_UUID_MARKS: Final = 0xF000 << 64 | 0xC000 << 48
_UUID_4: Final = 0x4000 << 64 | 0x8000 << 48


class Index:
    """The index file of one store, mapped into this process.

    Parameters
    ----------
    fd
        The open file; owned by this object once it is made.
    path
        Named in errors.

    Raises
    ------
    NotAStoreError, FormatVersionError, CorruptStoreError
        The constant part says: not ours, not this version or machine, damaged.
    """

    def __init__(self, fd: Descriptor, path: str) -> None:
        self.fd = fd
        self.path = path
        self.protected = False
        nbytes = os.fstat(fd).st_size
        if nbytes < L.SUPERBLOCK_NBYTES:
            raise NotAStoreError(
                f"{path} is no index of a store: it has {nbytes} bytes, fewer than a superblock "
                f"({L.SUPERBLOCK_NBYTES}). Give the name or the folder of a store.",
                path=path,
            )
        self.identity = _read_identity(fd, path)
        self.geometry = L.Geometry(self.identity.max_objects, self.identity.max_clients)
        if nbytes != self.geometry.nbytes:
            raise CorruptStoreError(
                f"{path} has {nbytes} bytes, its geometry needs {self.geometry.nbytes}: the file "
                "was cut or extended. Destroy the store and create it again.",
                path=path,
                offset=min(nbytes, self.geometry.nbytes),
            )
        self.memory: mmap.mmap = map_file(fd, nbytes, writeable=True)
        self.words = memoryview(self.memory).cast("Q")

    def map_readonly(self) -> mmap.mmap:
        """Map the index once more, for reading only."""
        return map_file(self.fd, self.geometry.nbytes, writeable=False)

    def protect(self, memory: mmap.mmap) -> None:
        """From now on see the index through a mapping that is read-only."""
        self.memory = memory
        self.words = memoryview(self.memory).cast("Q")
        self.protected = True

    def recount_slots(self) -> int:
        """Find out anew how much of the tables has pages; return how many slots they can hold.

        Requires: the store lock. A number that could be right stays: it counts pages, too, that
        were reserved and never touched. OSError (ENOSPC): there is no page for the rest of a row.
        """
        geometry = self.geometry
        tables = (
            (L.W_SLOTS_RESERVED, geometry.slots, L.SLOT_NBYTES, geometry.max_objects),
            (L.W_BUCKETS_RESERVED, geometry.buckets, L.WORD, geometry.max_buckets),
            (L.W_NODES_RESERVED, geometry.nodes, L.NODE_WORDS * L.WORD, geometry.max_nodes),
            (L.W_WAITERS_RESERVED, geometry.waiters, L.WAITER_NBYTES, geometry.max_waiters),
        )
        for word, start, row_nbytes, max_rows in tables:
            most = L.align(max_rows * row_nbytes, L.PAGE)
            touched = min(data_end(self.fd, start * L.WORD) - start * L.WORD, most)
            reserved = self.words[word]
            if reserved % L.PAGE or not touched <= reserved <= most:
                # A row may end in a page that nobody has touched.
                rows = -(-touched // row_nbytes)
                self._reserve(word, start, touched, L.align(rows * row_nbytes, L.PAGE))
        return min(self.words[L.W_SLOTS_RESERVED] // L.SLOT_NBYTES, geometry.max_objects)

    def rows(self, start: int, count: int, row_words: int) -> npt.NDArray[np.uint64]:
        """Return a part of the index from a word on, a row each, as it lies in shared memory."""
        flat = np.frombuffer(self.memory, np.uint64, count * row_words, start * L.WORD)
        return flat.reshape(count, row_words)

    def wipe_nodes(self) -> None:
        """Make every allocator node that has ever been touched an unused one."""
        start = self.geometry.nodes * L.WORD
        nbytes = min(data_end(self.fd, start) - start, self.words[L.W_NODES_RESERVED])
        np.frombuffer(self.memory, np.uint8, nbytes, start)[:] = 0

    def grow_slots(self) -> None:
        """Reserve room for more slots. Requires: the store lock. OSError (ENOSPC): no pages."""
        self._grow(
            L.W_SLOTS_RESERVED, self.geometry.slots, L.SLOT_NBYTES, self.geometry.max_objects
        )

    def grow_buckets(self) -> None:
        """Reserve room for more key buckets. Requires: the store lock."""
        self._grow(L.W_BUCKETS_RESERVED, self.geometry.buckets, L.WORD, self.geometry.max_buckets)

    def grow_nodes(self) -> None:
        """Reserve room for more allocator nodes. Requires: the store lock."""
        self._grow(
            L.W_NODES_RESERVED,
            self.geometry.nodes,
            L.NODE_WORDS * L.WORD,
            self.geometry.max_nodes,
        )

    def grow_waiters(self) -> None:
        """Reserve room for more waiters. Requires: the store lock."""
        self._grow(
            L.W_WAITERS_RESERVED,
            self.geometry.waiters,
            L.WAITER_NBYTES,
            self.geometry.max_waiters,
            least=L.PAGE,
        )

    def _grow(
        self, word: int, start: int, row_nbytes: int, max_rows: int, least: int = _GROWTH_NBYTES
    ) -> None:
        reserved = self.words[word]
        step = max(least, min(reserved, 16 * _GROWTH_NBYTES))
        wanted = min(reserved + step, L.align(max_rows * row_nbytes, L.PAGE))
        self._reserve(word, start, reserved, wanted)

    def _reserve(self, word: int, start: int, first: int, end: int) -> None:
        """Have pages for a part of a table, and note that all up to there has them."""
        reserve(self.fd, start * L.WORD + first, end - first)
        self.words[word] = end

    def damaged(self, what: str, word: int, how: str, invariant: int) -> CorruptStoreError:
        """Return the error for a word of a structure that can be made anew from the slots."""
        offset = word * L.WORD
        return CorruptStoreError(
            f"{self.path}: {what} is damaged: the word at offset {offset} {how} (invariant "
            f"{invariant}). Call recover() to make it anew from the slots.",
            path=self.path,
            offset=offset,
            invariant=invariant,
        )

    def close(self) -> None:
        """Close the descriptor. The mapping ends with the last view over it."""
        self.fd.close()
        self.fd = CLOSED


def _is_sane(words: memoryview) -> bool:
    capacity = words[L.W_CAPACITY]
    return (
        L.PAGE <= capacity <= L.MAX_CAPACITY
        and capacity % L.PAGE == 0
        and 1 <= words[L.W_MAX_OBJECTS] <= L.MAX_OBJECTS
        and 1 <= words[L.W_MAX_CLIENTS] <= L.MAX_CLIENTS
    )


def _geometry_crc(words: memoryview) -> int:
    return zlib.crc32(words[: L.W_GEOMETRY_CRC].tobytes())


def _read_identity(fd: int, path: str) -> Identity:
    """Read and check the constant words: ours, this version and machine, undamaged, sane."""
    words = memoryview(os.pread(fd, L.WORD * (L.W_GEOMETRY_CRC + 1), 0)).cast("Q")
    if words[L.W_MAGIC] != L.MAGIC:
        raise NotAStoreError(
            f"{path} does not begin with the mark of a store. Give the name or folder of a store.",
            path=path,
        )
    if words[L.W_VERSION] != L.FORMAT_VERSION or words[L.W_BYTE_ORDER] != L.BYTE_ORDER_MARK:
        raise FormatVersionError(
            f"{path} has format version {words[L.W_VERSION]} and byte-order mark "
            f"{words[L.W_BYTE_ORDER]:#x}; this process reads version {L.FORMAT_VERSION} and "
            f"{L.BYTE_ORDER_MARK:#x}. Use the same version of shmstore in all processes.",
            path=path,
            found=words[L.W_VERSION],
            expected=L.FORMAT_VERSION,
        )
    if words[L.W_GEOMETRY_CRC] != _geometry_crc(words):
        raise CorruptStoreError(
            f"{path}: the checksum over words 0 to {L.W_GEOMETRY_CRC - 1} (its geometry) does not "
            "agree. Destroy the store and create it again.",
            path=path,
            offset=L.W_GEOMETRY_CRC * L.WORD,
        )
    if not _is_sane(words):
        raise CorruptStoreError(
            f"{path}: capacity {words[L.W_CAPACITY]}, max_objects {words[L.W_MAX_OBJECTS]} or "
            f"max_clients {words[L.W_MAX_CLIENTS]} is out of range. Destroy the store.",
            path=path,
            offset=L.W_CAPACITY * L.WORD,
        )
    low, high = words[L.W_UUID], words[L.W_UUID + 1]
    return Identity(high << 64 | low, *words[L.W_CAPACITY : L.W_GEOMETRY_CRC])
