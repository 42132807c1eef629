"""Objects that say whose they are, and whether a byte of them is wrong."""

from __future__ import annotations

import random
import zlib
from typing import Any, Final

import numpy as np

# The first bytes of an array: the checksum of all that follows, then key and version.
_HEAD: Final = np.dtype(
    [("checksum", "<u4"), ("padding", "<u4"), ("key", "<u8"), ("version", "<u8")]
)
_CHECKSUM_NBYTES: Final = 4
HEAD_NBYTES: Final = _HEAD.itemsize

_POOL: Final = np.random.default_rng(7).integers(0, 256, 1 << 20, np.uint8)

# Most objects are small, and all sizes occur: in the slot, in the extent, cold, in several pages.
_SIZES: Final = (30, 100, 900, 5_000, 70_000, 300_000)


class DamagedError(AssertionError):
    """An object is not what somebody has put."""


def fill(array: np.ndarray, key: int, version: int, random_: random.Random) -> None:
    """Make an object of ours of some memory."""
    start = random_.randrange(len(_POOL) - array.nbytes)
    array[:] = _POOL[start : start + array.nbytes]
    head = array[:HEAD_NBYTES].view(_HEAD)
    head["key"], head["version"] = key, version
    head["checksum"] = zlib.crc32(array[_CHECKSUM_NBYTES:].data)


def some_nbytes(random_: random.Random) -> int:
    """Return a size for an array."""
    return HEAD_NBYTES + random_.randrange(random_.choice(_SIZES))


def make(key: int, version: int, random_: random.Random) -> Any:
    """Return an object: an array, a dict with one, or something that fits into a slot."""
    kind = random_.random()
    if kind < 0.3:
        return (key, version, _checksum_of(key, version), "x" * random_.randrange(60))
    array = np.empty(some_nbytes(random_), np.uint8)
    fill(array, key, version, random_)
    if kind < 0.5:
        return {"array": array, "text": "y" * random_.randrange(3000)}
    return array


def read(obj: Any) -> tuple[int, int]:
    """Return (key, version) of an object, or raise DamagedError."""
    if isinstance(obj, tuple):
        key, version, checksum, text = obj
        if checksum != _checksum_of(key, version) or text.strip("x"):
            raise DamagedError(repr(obj))
        return key, version
    array = obj["array"] if isinstance(obj, dict) else obj
    head = array[:HEAD_NBYTES].view(_HEAD)
    if zlib.crc32(array[_CHECKSUM_NBYTES:].data) != int(head["checksum"][0]):
        message = f"{array.nbytes} bytes that claim to be {head}"
        raise DamagedError(message)
    return int(head["key"][0]), int(head["version"][0])


def _checksum_of(key: int, version: int) -> int:
    return zlib.crc32(f"{key}.{version}".encode())
