"""Where do objects lie that memory had no room for, and are their files whole?

A store that spills has a folder of its own under `spill_dir`, named in its file "spill"; it goes
with the store. A file is written under a name of its own and renamed when it is whole::

    bytes of the header page, then the extent as it lay in memory
    word  field       meaning
    0     MARK        b"shmsfile"
    1     VERSION     format version
    2, 3  UUID        of the store
    4     SLOT        of the object
    5     GENERATION  of the object
    6     NBYTES      of the extent
    7     CRC         crc32 of the extent
    8     HEADER_CRC  crc32 of words 0 to 7
    9     CHANGED     1: has been mapped for writing since, CRC does not count

Concurrency: names of temporary files begin with the number of the writer's seat, so that each
belongs to one client; the others are made and removed under the store lock.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Self
from zlib import crc32

from shmstore._memory import folder
from shmstore._memory import layout as L
from shmstore._memory.descriptors import CLOSED, Descriptor
from shmstore._memory.mapping import map_file, reserve, write_all
from shmstore._memory.owners import group_of
from shmstore._memory.shortage import told
from shmstore.errors import (
    CorruptStoreError,
    NotAStoreError,
    StoreNotFoundError,
    UnsafePathError,
)

_FOLDER_NAME: Final = r"[A-Za-z0-9._-]{1,64}-[0-9a-f]{32}"
_FILE_NAME: Final = r"\d+-\d+|new-\d+-\d+"
_NAME_LENGTH: Final = 64 - 33
_HEADER_WORDS: Final = 8
_CHANGED_AT: Final = (_HEADER_WORDS + 1) * L.WORD
_CHANGED: Final = (1).to_bytes(L.WORD, "little")
_LONGEST_PATH: Final = 4096
_CHUNK_NBYTES: Final = 64 << 20
_REMOVE_TRIES: Final = 3


def make_folder(store_fd: int, root: Path, name: str, store: int, gid: int | None) -> None:
    """Make the folder for the files of a new store, and write down in the store where it is."""
    path = root / f"{name[:_NAME_LENGTH]}-{store:032x}"
    with folder.create_file(store_fd, folder.SPILL_NAME) as fd:
        write_all(fd, memoryview(os.fsencode(path)), 0)
    with folder.open_root(root, create=True, gid=gid, option="spill_dir") as root_fd:
        folder.make_folder(root_fd, path.name, path, gid).close()


def remove_folder(store_fd: int, store_path: Path) -> None:
    """Remove the files of a store that goes, and their folder; nothing else in any case."""
    with contextlib.suppress(
        NotAStoreError, StoreNotFoundError, CorruptStoreError, UnsafePathError
    ):
        path = _read_path(store_fd, store_path)
        gid = group_of(store_fd)
        root = folder.open_root(path.parent, create=False, gid=gid)
        with root as root_fd, folder.open_store(root_fd, path.name, path) as fd:
            for _ in range(_REMOVE_TRIES):  # somebody may just have begun to write another one
                for name in os.listdir(fd):
                    if re.fullmatch(_FILE_NAME, name):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=fd)
                with contextlib.suppress(OSError):  # or something that is not ours is there
                    os.rmdir(path.name, dir_fd=root_fd)
                    break


def _read_path(store_fd: int, store_path: Path) -> Path:
    with folder.open_file(store_fd, folder.SPILL_NAME, store_path, readonly=True) as fd:
        path = Path(os.fsdecode(os.pread(fd, _LONGEST_PATH, 0)))
    plain = path.is_absolute() and ".." not in path.parts and "\0" not in str(path)
    if not plain or not re.fullmatch(_FOLDER_NAME, path.name):
        raise CorruptStoreError(
            f"{store_path / folder.SPILL_NAME} names no folder of a store: {str(path)!r:.200}. "
            "Objects in files are lost; destroy the store and create it again.",
            path=str(store_path / folder.SPILL_NAME),
            offset=0,
        )
    return path


class SpillFiles:
    """The files of one store.

    Parameters
    ----------
    store_fd, store_path
        The folder of the store, open, and its path.
    store
        The UUID of the store.
    """

    def __init__(self, store_fd: int, store_path: Path, store: int) -> None:
        self.path = _read_path(store_fd, store_path)
        self._store = store
        self._numbers = itertools.count(1)
        gid = group_of(store_fd)
        with folder.open_root(self.path.parent, create=False, gid=gid) as root_fd:
            self.fd = folder.open_store(root_fd, self.path.name, self.path)

    def close(self) -> None:
        """Close the folder."""
        fd, self.fd = self.fd, CLOSED
        fd.close()

    # --- writing ---------------------------------------------------------------------------------

    def new_name(self, serial: int) -> str:
        """Return a name for a temporary file of the client on a seat."""
        return f"new-{serial}-{next(self._numbers)}"

    def write(
        self, name: str, slot: int, generation: int, nbytes: int, fill: Callable[[int], int]
    ) -> None:
        """Write a new file; whatever is raised, the caller discards it.

        Parameters
        ----------
        name
            From `new_name`.
        slot, generation, nbytes
            The object, and the size of its extent.
        fill
            Gets the open file, writes the extent behind the header page, returns its crc32.

        Raises
        ------
        OSError
            ENOSPC: the file system is full.
        """
        with told(self.path / name), folder.create_file(self.fd, name) as fd:
            os.ftruncate(fd, L.PAGE + nbytes)
            write_all(fd, memoryview(self._header(slot, generation, nbytes, fill(fd))), 0)

    def build(
        self,
        name: str,
        slot: int,
        generation: int,
        nbytes: int,
        parts: Iterable[tuple[memoryview, int]],
    ) -> mmap.mmap:
        """Make a new file whose extent is written by whoever maps it; its checksum does not count.

        Parameters
        ----------
        name, slot, generation, nbytes
            As in `write`.
        parts
            What is known of the extent: bytes, and where they lie in the file.

        Returns
        -------
        mmap.mmap
            The whole file, all of it on disk or in memory: no touch finds the file system full.

        Raises
        ------
        OSError
            ENOSPC: the file system is full.
        """
        with told(self.path / name), folder.create_file(self.fd, name) as fd:
            reserve(fd, 0, L.PAGE + nbytes)
            header = self._header(slot, generation, nbytes, 0)
            write_all(fd, memoryview(header[: -L.WORD] + _CHANGED), 0)
            for part in parts:
                write_all(fd, *part)
            return map_file(fd, L.PAGE + nbytes, writeable=True)

    def _header(self, slot: int, generation: int, nbytes: int, crc: int) -> bytes:
        fixed = (
            L.FILE_MAGIC,
            L.FORMAT_VERSION,
            self._store & (2**64 - 1),
            self._store >> 64,
            slot,
            generation,
            nbytes,
            crc,
        )
        packed = b"".join(word.to_bytes(L.WORD, "little") for word in fixed)
        return packed + crc32(packed).to_bytes(L.WORD, "little") + bytes(L.WORD)

    def commit(self, name: str, slot: int, generation: int) -> None:
        """Give a file that is whole its final name. Requires: the store lock."""
        os.rename(name, _name(slot, generation), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def discard(self, name: str) -> None:
        """Remove a temporary file."""
        with told(self.path), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def remove(self, slot: int, generation: int) -> None:
        """Remove the file of an object; mappings of it stay. Requires: the store lock."""
        self.discard(_name(slot, generation))

    # --- what is there -----------------------------------------------------------------------

    def names(self) -> set[str]:
        """Return the names of all files of ours."""
        return {name for name in os.listdir(self.fd) if re.fullmatch(_FILE_NAME, name)}

    def missing(self, objects: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of the objects (slot, generation) that have no file."""
        there = self.names()
        return [place for place in objects if _name(*place) not in there]

    def strays(self, objects: Sequence[tuple[int, int]], serials: set[int]) -> list[str]:
        """Return files that belong neither to one of the objects nor to a living writer."""
        kept = {_name(*place) for place in objects}
        writing = tuple(f"new-{serial}-" for serial in serials)
        return sorted(n for n in self.names() - kept if not n.startswith(writing))

    # --- reading -----------------------------------------------------------------------------

    def open(self, slot: int, generation: int, nbytes: int, *, readonly: bool = False) -> SpillFile:
        """Open the file of an object after checking it.

        Raises
        ------
        FileNotFoundError
            It is gone: the object was deleted or read back, or somebody removed it.
        CorruptStoreError
            It is not the file of this object, or was cut or extended.
        """
        path = self.path / _name(slot, generation)
        try:
            with told(path):
                fd = folder.open_file(self.fd, path.name, self.path, readonly=readonly)
        except NotAStoreError:
            raise FileNotFoundError(str(path)) from None
        file = SpillFile(fd, path, nbytes)
        with told(path):
            header = os.pread(fd, (_HEADER_WORDS + 2) * L.WORD, 0)
            found, changed = os.fstat(fd).st_size, _is_changed(fd)
        wanted = self._header(slot, generation, nbytes, _word(header, 7))
        if header[: -L.WORD] != wanted[: -L.WORD] or found != L.PAGE + nbytes:
            file.close()
            raise _damaged(path, "its header or its length is not that of the object", 0)
        file.crc = None if changed else _word(header, 7)
        return file


class SpillFile:
    """The file of one object, open.

    Parameters
    ----------
    fd
        The open file; owned by this object.
    path
        Named in errors.
    nbytes
        Of the extent.

    Attributes
    ----------
    crc
        Of the extent; None: it does not count any more.
    """

    def __init__(self, fd: Descriptor, path: Path, nbytes: int) -> None:
        self.fd = fd
        self.path = path
        self.nbytes = nbytes
        self.crc: int | None = None

    def close(self) -> None:
        """Close the file; mappings stay."""
        self.fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.fd.close()

    def read_into(self, target: memoryview) -> None:
        """Read the extent, and hold it against its checksum."""
        crc, offset = 0, 0
        while offset < self.nbytes:
            part = target[offset : offset + _CHUNK_NBYTES]
            count = os.preadv(self.fd, [part], L.PAGE + offset)
            if count <= 0:
                raise _damaged(self.path, "it ends early", L.PAGE + offset)
            crc = crc32(part[:count], crc)
            offset += count
        self._compare(crc)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return some bytes of the extent."""
        return os.pread(self.fd, nbytes, L.PAGE + offset)

    def verify(self) -> None:
        """Hold the extent against its checksum."""
        if self.crc is not None:
            self._compare(crc32(memoryview(self.map(writeable=False))[L.PAGE :]))

    def _compare(self, crc: int) -> None:
        # What differs may have been mapped for writing since it was opened.
        if self.crc is not None and crc != self.crc and not _is_changed(self.fd):
            raise _damaged(self.path, "the checksum of its data does not agree", L.PAGE)

    def map(self, *, writeable: bool, private: bool = False) -> mmap.mmap:
        """Map the whole file; the extent begins at the second page."""
        if writeable and not private:
            try:
                os.pwrite(self.fd, _CHANGED, _CHANGED_AT)
            except OSError as error:
                raise folder.full_file_system(self.fd, self.path, L.PAGE, error) from error
        size = L.PAGE + self.nbytes
        return map_file(self.fd, size, writeable=writeable, private=private)


def _name(slot: int, generation: int) -> str:
    return f"{slot}-{generation}"


def _word(header: bytes, number: int) -> int:
    return int.from_bytes(header[number * L.WORD : (number + 1) * L.WORD], "little")


def _is_changed(fd: int) -> bool:
    return any(os.pread(fd, L.WORD, _CHANGED_AT))


def _damaged(path: Path, what: str, offset: int) -> CorruptStoreError:
    return CorruptStoreError(
        f"{path}: {what} (offset {offset}). The object in it is lost; delete it.",
        path=str(path),
        offset=offset,
    )
