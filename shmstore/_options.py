"""What can be chosen when a store is created, within which limits, and why those?"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NoReturn, dataclass_transform

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
_SIZE: Final = r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*"

DEFAULT_SHARE_OF_FREE: Final = 0.8
DEFAULT_SHARE_OF_RAM: Final = 0.5
SMALLEST_DEFAULT: Final = 1 << 20

ON_FULL: Final = ("raise", "evict", "spill")
LONGEST_TTL_S: Final = 100 * 365 * 24 * 3600


def parse_size(size: int | str, option: str = "") -> int:
    """Return a number of bytes from an int or from text such as "8GiB", "1.5 GB" or "4096".

    What is none is a TypeError or ValueError that names the option.

    Examples
    --------
    >>> parse_size("64 KiB")
    65536
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        given = f"{type(size).__name__}: {option}{size!r}"
        message = f"a size is an int or text like '8GiB', not {given}"
        raise TypeError(message)
    if isinstance(size, int):
        return size
    match = re.fullmatch(_SIZE, size)
    if match is None or match[2].upper() not in _UNITS:
        message = f"{option}{size!r} is not a size. Give an int, or text like '64 MiB' or '8GB'."
        raise ValueError(message)
    whole, _, fraction = match[1].partition(".")
    tenths: int = 10 ** len(fraction)
    return int(whole + fraction) * _UNITS[match[2].upper()] // tenths


@dataclass_transform(frozen_default=True, kw_only_default=True)
class _Frozen:
    """What a frozen dataclass is whose fields have defaults, and are given by name.

    `dataclasses` writes and compiles methods for each class, which took as long as importing ten
    modules.
    """

    def __init__(self, *unnamed: Any, **given: Any) -> None:
        if unnamed:
            message = f"{type(self).__name__}() takes its fields by name, not {unnamed!r:.100}"
            raise TypeError(message)
        for name in given.keys() - self.__annotations__.keys():
            message = f"{type(self).__name__}() got an unexpected keyword argument {name!r}"
            raise TypeError(message)
        self.__dict__.update(given)
        self._check()

    def _check(self) -> None:
        """Raise unless the values make sense."""

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self.__annotations__])

    def __repr__(self) -> str:
        given = zip(self.__annotations__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        message = f"cannot assign to {name!r}: make another {type(self).__name__}"
        raise AttributeError(message)

    def __delattr__(self, name: str) -> NoReturn:
        message = f"cannot delete {name!r}"
        raise AttributeError(message)


class Options(_Frozen):
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
        The folder of all stores; None: $SHMSTORE_ROOT or one in shared memory, which is named
        after the user or the group.
    lock_timeout
        Seconds to wait for the store lock before `LockTimeoutError`.
    locked_reads
        Let every get take the store lock. Slower; for systems where membarrier(2) is missing or
        forbidden. None: only where this process cannot do without.
    on_full
        What a put does that finds no room: "raise" `StoreFullError`; "evict": delete the least
        recently used objects that nobody looks at; "spill": move these to `spill_dir`, from where
        get brings them back; what is larger than the whole store goes there at once. A get through
        a read-only handle does not count as use.
    spill_dir
        The folder for the files of objects that were spilled. None: one of this user under the
        folder for temporary files.
    ttl
        Seconds that objects can be got which are put without a `ttl` of their own; None: until they
        are deleted. Later they count in `len` and `stats` until somebody needs room.
    checksum
        Keep a checksum of the frames that readers cannot write, looked at when a process first gets
        the object and by ``check(deep=True)``; of others there is none. Costs a pass over the data
        at both.
    zero_on_free
        Overwrite what an object occupied in memory with zeros when it is given back. The files of
        spilled objects are removed, not overwritten.
    group, mode
        Share the store with the members of a group (its name or number): files have mode 0o660
        instead of 0o600. Whoever attaches says the same group.
    trace_pins
        Note for each view where in the program it was got; for `Store.who_pins`. Makes get slower.
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
    on_full: str = "raise"
    spill_dir: str | os.PathLike[str] | None = None
    ttl: float | None = None
    checksum: bool = False
    zero_on_free: bool = False
    group: str | int | None = None
    mode: int | None = None
    trace_pins: bool = False
    allowed_modules: Collection[str] | None = None

    def _check(self) -> None:
        if self.capacity is not None:
            _check_range("capacity", parse_size(self.capacity, "capacity="), 1, L.MAX_CAPACITY)
        _check_range("max_objects", self.max_objects, 1, L.MAX_OBJECTS)
        _check_range("max_clients", self.max_clients, 1, L.MAX_CLIENTS)
        _check_modules(self.allowed_modules)
        _check_lock_timeout(self.lock_timeout)
        if self.on_full not in ON_FULL:
            message = f"on_full={self.on_full!r}: give one of {', '.join(ON_FULL)}"
            raise ValueError(message)
        if self.spill_dir is not None and self.on_full != "spill":
            message = f"spill_dir={self.spill_dir!r} is used only with on_full='spill'"
            raise ValueError(message)
        if self.ttl is not None:
            ttl_ns(self.ttl)
        self._check_sharing()

    def _check_sharing(self) -> None:
        """Raise unless group and mode agree and exist."""
        wanted = (None, 0o600) if self.group is None else (None, 0o660)
        if self.mode not in wanted:
            message = (
                f"mode={self.mode and oct(self.mode)} with "
                f"group={self.group!r}: a store is private (mode 0o600, no group) or shared in a "
                "group (group=..., mode 0o660)"
            )
            raise ValueError(message)
        if self.group is not None:
            gid_of(self.group)

    @property
    def gid(self) -> int | None:
        """The number of the group that the store is shared in, or None."""
        return None if self.group is None else gid_of(self.group)

    @property
    def root_path(self) -> Path:
        """The folder of all stores."""
        return default_root(self.gid) if self.root is None else Path(self.root).absolute()

    @property
    def spill_path(self) -> Path:
        """The folder of the files of objects that find no room in memory."""
        if self.spill_dir is not None:
            return Path(self.spill_dir).absolute()
        import tempfile  # noqa: PLC0415 - takes time that most processes can save

        whose = f"-{os.geteuid()}" if self.gid is None else f"-group-{self.gid}"
        return Path(tempfile.gettempdir()) / f"shmstore-spill{whose}"

    def capacity_within(self, free: int) -> int:
        """Return the capacity in bytes, given what the file system has free."""
        if self.capacity is not None:
            return L.align(parse_size(self.capacity), L.PAGE)
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        share = min(int(free * DEFAULT_SHARE_OF_FREE), int(ram * DEFAULT_SHARE_OF_RAM))
        return L.align(max(share - L.PAGE, SMALLEST_DEFAULT), L.PAGE)


def ttl_ns(ttl: float) -> int:
    """Return a time to live in nanoseconds, 0 for ever; TypeError or ValueError if it is none.

    Examples
    --------
    >>> ttl_ns(1.5)
    1500000000
    """
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        message = f"ttl={ttl!r}: give a number of seconds, not {type(ttl).__name__}"
        raise TypeError(message)
    if ttl == math.inf:
        return 0
    if not 0 < ttl <= LONGEST_TTL_S:
        message = f"ttl={ttl!r}: give a number of seconds above 0, up to {LONGEST_TTL_S:,}"
        raise ValueError(message)
    return max(1, int(ttl * 1e9))


def gid_of(group: str | int) -> int:
    """Return the number of a group; ValueError if there is no such group.

    Examples
    --------
    >>> gid_of("root"), gid_of(0)
    (0, 0)
    """
    if isinstance(group, bool) or not isinstance(group, (str, int)):
        message = f"group={group!r}: give the name or the number of a group"
        raise TypeError(message)
    if isinstance(group, int):  # in a container it may have no name
        _check_range("group", group, 0, 2**32 - 2)
        return group
    import grp  # noqa: PLC0415 - takes time that most processes can save

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        message = f"group={group!r}: there is no group of this name on this machine"
        raise ValueError(message) from None


def _check_modules(modules: object) -> None:
    if modules is None:
        return
    names = isinstance(modules, Collection) and not isinstance(modules, str)
    if not names or not all(isinstance(name, str) for name in modules):  # type: ignore[attr-defined]
        message = f"allowed_modules={modules!r:.100}: give a collection of names (str) of packages"
        raise TypeError(message)


def _check_lock_timeout(seconds: Any) -> None:
    message = f"lock_timeout={seconds!r}: give a number of seconds above 0"
    try:
        fits = 0 < seconds < math.inf
    except TypeError:
        raise TypeError(message) from None
    if not fits:
        raise ValueError(message)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{name} is an int, not {type(value).__name__}: {value!r}"
        raise TypeError(message)
    if not low <= value <= high:
        message = f"{name}={value!r}: give a number from {low:,} to {high:,}"
        raise ValueError(message)
