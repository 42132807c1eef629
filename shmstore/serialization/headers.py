"""How does the description of an object lie in the index?

A packed header is a msgpack array ``[version, header, frame table]``. The frame table has a row
``(offset in the extent, nbytes, writeable, codec)`` per frame; the header itself carries no
addresses. A plain pickle, one small frame beside the header, needs no table: its slot says where
it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from shmstore._tuples import NamedTuple
from shmstore.errors import (
    CorruptStoreError,
    FormatVersionError,
    ModuleRefusedError,
    SerializationError,
)
from shmstore.serialization import msgpacking
from shmstore.serialization.wording import shown

# Lies in shared memory. It is permanent.
HEADER_VERSION = 2

COUNTS: Final = "split-num-sub-frames"
"""The key of a header under which there is a number of pieces for each frame."""

COMPRESSION: Final = "compression"
"""The key of a header under which there is a codec, or none, for each frame."""


class FrameRow(NamedTuple):
    """One row of the frame table."""

    offset: int
    nbytes: int
    writeable: bool
    codec: list[Any] | None = None
    """Name of the codec and number of bytes before it; None: not compressed."""


def pack(header: dict[str, Any], table: Sequence[FrameRow | list[Any]]) -> bytes:
    """Pack a header and its frame table.

    Raises
    ------
    SerializationError
        The header holds something that msgpack cannot pack.
    """
    try:
        rows = [row if type(row) is list else list(row) for row in table]
        return msgpacking.packb([HEADER_VERSION, header, rows], scan=False)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SerializationError(
            f"the header made by family {header.get('serializer')!r} cannot be packed: {error}",
            type=header.get("type"),
        ) from error


def unpack(packed: bytes, room: int) -> tuple[dict[str, Any], list[FrameRow]]:
    """Unpack and check a header and its frame table.

    Parameters
    ----------
    packed
        The bytes from the index.
    room
        Bytes of the extent; every frame must lie inside.

    Raises
    ------
    FormatVersionError, CorruptStoreError
        Another version; not such a header, or a frame that lies outside.
    """
    # A short array that begins with a small number, whatever another version has behind it.
    if len(packed) > 1 and packed[0] & 0xF0 == 0x90 and packed[1] < 0x80:
        _check_version(packed[1])
    try:
        version, header, rows = msgpacking.unpackb(packed)
        table = [FrameRow(*row) for row in rows]
    except (MemoryError, OSError, ModuleRefusedError):
        raise
    except Exception as error:
        raise CorruptStoreError(
            f"a packed header of {len(packed)} bytes is damaged: {error}"
        ) from error
    _check_version(version)
    if not isinstance(header, dict):
        raise CorruptStoreError(f"a packed header holds {type(header).__name__} instead of a map")
    for number, row in enumerate(table):
        if not _fits(row, room):
            raise CorruptStoreError(
                f"frame {number} is told by {shown(row)}: it leaves its extent of {room} bytes, or "
                "is none"
            )
    return header, table


def _check_version(version: Any) -> None:
    if version != HEADER_VERSION:
        raise FormatVersionError(
            f"a header has version {shown(version)}, this process reads {HEADER_VERSION}",
            found=version,
            expected=HEADER_VERSION,
        )


def _fits(row: Any, room: int) -> bool:
    numbers = type(row.offset) is int and type(row.nbytes) is int
    inside = numbers and row.offset >= 0 and row.nbytes >= 0 and row.offset + row.nbytes <= room
    return inside and type(row.writeable) is bool and _is_codec(row.codec)


def _is_codec(codec: Any) -> bool:
    if codec is None:
        return True
    if type(codec) is not list or len(codec) != 2:
        return False
    name, raw = codec
    return type(name) is str and type(raw) is int and raw >= 0
