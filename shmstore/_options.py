"""What can be chosen when a store is created, within which limits, and why those?"""

from __future__ import annotations

import dataclasses
import decimal
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from shmstore._memory import layout as L
from shmstore._memory.folder import default_root

_UNITS: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")

DEFAULT_SHARE_OF_FREE: Final = 0.8
DEFAULT_SHARE_OF_RAM: Final = 0.5
SMALLEST_DEFAULT: Final = 1 << 20


def parse_size(size: int | str) -> int:
    """Return a number of bytes from an int or from text such as "8GiB", "1.5 GB" or "4096".

    Examples
    --------
    >>> parse_size("64 KiB")
    65536
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        message = f"a size is an int or text like '8GiB', not {type(size).__name__}: {size!r}"
        raise TypeError(message)
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size)
    if match is None or match[2].upper() not in _UNITS:
        message = f"{size!r} is not a size. Give an int, or text like '64 MiB' or '8GB'."
        raise ValueError(message)
    return int(decimal.Decimal(match[1]) * _UNITS[match[2].upper()])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The choices made at creation; they hold for the life of the store.

    Parameters
    ----------
    capacity
        Bytes for objects, an int or "8GiB"; rounded up to whole pages. From one page to 128 TiB
        (the addresses that a process has). None: 80 % of what the file system has free, at most
        half of the RAM.
    persist
        Whether the store stays when its owner and all its clients have gone.
    prefault
        Reserve all of the memory at creation, so that no put ever meets a page for the first time.
    max_objects
        How many objects the store may hold; from 1 to 2**31, which makes an index of 1 TiB of
        addresses. It takes memory only for objects that are there.
    max_clients
        How many processes may be attached at once; from 1 to 65,536, since each is looked at when
        memory is reclaimed.
    root
        The folder of all stores; None: $SHMSTORE_ROOT or one in shared memory.
    lock_timeout
        Seconds to wait for the store lock before `LockTimeoutError`.
    locked_reads
        Let every get take the store lock. Slower; for systems where membarrier(2) is missing or
        forbidden. None: only where this process cannot do without.
    allowed_modules
        Top-level packages that reading an object without pickle may import (enum members name
        theirs), looked at anew on each use; for all handles of this process. None:
        ``shmstore.serialization.allowed_modules``.
    """

    capacity: int | str | None = None
    persist: bool = False
    prefault: bool = False
    max_objects: int = 1_000_000
    max_clients: int = 1024
    root: str | os.PathLike[str] | None = None
    lock_timeout: float = 30.0
    locked_reads: bool | None = None
    allowed_modules: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None:
            _check_range("capacity", parse_size(self.capacity), 1, L.MAX_CAPACITY)
        _check_range("max_objects", self.max_objects, 1, L.MAX_OBJECTS)
        _check_range("max_clients", self.max_clients, 1, L.MAX_CLIENTS)
        if isinstance(self.allowed_modules, str):
            message = f"allowed_modules={self.allowed_modules!r}: give a collection of names"
            raise TypeError(message)
        if not 0 < self.lock_timeout < float("inf"):
            message = f"lock_timeout={self.lock_timeout!r}: give a number of seconds above 0"
            raise ValueError(message)

    @property
    def root_path(self) -> Path:
        """The folder of all stores."""
        return default_root() if self.root is None else Path(self.root).absolute()

    def capacity_within(self, free: int) -> int:
        """Return the capacity in bytes, given what the file system has free."""
        if self.capacity is not None:
            return L.align(parse_size(self.capacity), L.PAGE)
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        share = min(int(free * DEFAULT_SHARE_OF_FREE), int(ram * DEFAULT_SHARE_OF_RAM))
        return L.align(max(share - L.PAGE, SMALLEST_DEFAULT), L.PAGE)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{name} is an int, not {type(value).__name__}: {value!r}"
        raise TypeError(message)
    if not low <= value <= high:
        message = f"{name}={value!r}: give a number from {low:,} to {high:,}"
        raise ValueError(message)
