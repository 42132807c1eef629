"""How does a file become memory, and how is a page reserved before it is touched?

tmpfs answers a touch of a page that it cannot provide with SIGBUS. Everything here that hands out
memory for writing therefore stands behind `reserve` or a `write`, which report ENOSPC instead.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from typing import Final

import numpy as np

from shmstore._memory import shortage
from shmstore._memory.layout import PAGE, align

_FALLOC_PUNCH: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ, since Linux 5.14
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0x40

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def map_file(
    fd: int, nbytes: int, *, writeable: bool, private: bool = False, offset: int = 0
) -> mmap.mmap:
    """Map a file without keeping a descriptor for as long as the mapping lives.

    Parameters
    ----------
    fd
        An open file; it may be closed afterwards.
    nbytes, offset
        The range; `offset` is a multiple of the page size.
    writeable
        Whether the memory may be written; a mapping that may not refuses writeable buffers.
    private
        Copy-on-write: writes stay in this mapping.

    Returns
    -------
    mmap.mmap
        Unmaps itself when the last buffer over it has died.

    Raises
    ------
    ProcessLimitError
        The process has no addresses for it.
    """
    try:
        return _map(fd, nbytes, writeable=writeable, private=private, offset=offset)
    except OSError as error:
        shortage.refuse_mapping(error, fd, nbytes, private=private)


def _map(fd: int, nbytes: int, *, writeable: bool, private: bool, offset: int) -> mmap.mmap:
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writeable else 0)
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE if private else mmap.MAP_SHARED
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, nbytes, flags=flags, prot=prot, offset=offset, trackfd=False)
    # Before 3.13 a mapping of a file holds a duplicate of the descriptor. An anonymous one holds
    # none, and the file takes its place at the same address.
    memory = mmap.mmap(
        -1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=prot
    )
    _map_over(memory, prot, flags, fd, offset)
    return memory


def _map_over(
    memory: mmap.mmap | memoryview, prot: int, flags: int, fd: int, offset: int = 0
) -> None:
    """Put a mapping of a file in the place of another."""
    address, nbytes = address_of(memory), memoryview(memory).nbytes
    if _libc.mmap(address, nbytes, prot, flags | _MAP_FIXED, fd, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def detach(memory: mmap.mmap | memoryview, fd: int) -> None:
    """Let what is written to a shared mapping from now on stay in this process.

    Where the system allows no private memory of that size, who writes is killed by it.

    Parameters
    ----------
    memory
        All of the mapping; it may be in use.
    fd
        Its file.
    """
    prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_NORESERVE
    try:
        _map_over(memory, prot, flags, fd)
    except OSError:
        _map_over(memory, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_NORESERVE, fd)


def address_of(memory: mmap.mmap | memoryview) -> int:
    """Return the address of the first byte of a mapping."""
    return int(np.frombuffer(memory, dtype=np.uint8).__array_interface__["data"][0])


def populate(memory: mmap.mmap, offset: int, nbytes: int) -> bool:
    """Enter pages that exist in the page table of this process; False: the system cannot.

    Parameters
    ----------
    memory
        A shared mapping; if it is writeable they are entered for writing, too.
    offset, nbytes
        The range; `offset` is a multiple of the page size.
    """
    if sys.platform != "linux":
        return False
    return int(_libc.madvise(address_of(memory) + offset, nbytes, _POPULATE_READ)) == 0


def reserve(fd: int, offset: int, nbytes: int) -> None:
    """Make sure that the pages of a range exist, or raise NoPagesError (ENOSPC)."""
    if nbytes <= 0:
        return
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, nbytes)
            return
        zeros = bytes(min(nbytes, 1 << 20))
        for start in range(offset, offset + nbytes, len(zeros)):
            os.pwrite(fd, zeros[: offset + nbytes - start], start)
    except OSError as error:
        path = shortage.path_of(fd)
        raise shortage.NoPagesError(error.errno, error.strerror, path) from error


def data_end(fd: int, offset: int) -> int:
    """Return where the pages that were touched from a page on end, or the end of the file."""
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError:
        return os.fstat(fd).st_size


def punch(fd: int, offset: int, nbytes: int, *, partial: bool = False) -> None:
    """Give the whole pages inside a range back to the system; elsewhere than Linux do nothing.

    With `partial` what the range has of other pages becomes zero.
    """
    start = offset if partial else align(offset, PAGE)
    nbytes = nbytes if partial else (offset + nbytes) // PAGE * PAGE - start
    if nbytes > 0 and sys.platform == "linux":
        _libc.fallocate(fd, _FALLOC_PUNCH, ctypes.c_int64(start), ctypes.c_int64(nbytes))


def write_all(fd: int, buffer: memoryview, offset: int) -> None:
    """Write a buffer at an offset; a write into pages never touched reserves them as it goes."""
    while buffer.nbytes:
        try:
            written = os.pwrite(fd, buffer, offset)
        except OSError as error:
            shortage.refuse(error, shortage.path_of(fd))
        if written <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        buffer, offset = buffer[written:], offset + written
