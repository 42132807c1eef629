"""How does the description of an object lie in the index?

A packed header is a msgpack array ``[version, header, frame table]``. The frame table has a row
``(offset in the extent, nbytes, writeable, codec)`` per frame; the header itself carries no
addresses. A plain pickle, one small frame beside the header, needs no table: its slot says where
it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shmstore.errors import CorruptStoreError, FormatVersionError, SerializationError
from shmstore.serialization import msgpacking

# Lies in shared memory. It is permanent.
HEADER_VERSION = 2


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
    try:
        version, header, rows = msgpacking.unpackb(packed)
        table = [FrameRow(*row) for row in rows]
    except Exception as error:
        raise CorruptStoreError(
            f"a packed header of {len(packed)} bytes is damaged: {error}"
        ) from error
    if version != HEADER_VERSION:
        raise FormatVersionError(
            f"a header has version {version!r}, this process reads {HEADER_VERSION}",
            found=version,
            expected=HEADER_VERSION,
        )
    if not isinstance(header, dict):
        raise CorruptStoreError(f"a packed header holds {type(header).__name__} instead of a map")
    for number, row in enumerate(table):
        if not _fits(row, room):
            raise CorruptStoreError(
                f"frame {number} at {row[:2]!r} leaves its extent of {room} bytes"
            )
    return header, table


def _fits(row: FrameRow, room: int) -> bool:
    numbers = type(row.offset) is int and type(row.nbytes) is int
    return numbers and row.offset >= 0 and row.nbytes >= 0 and row.offset + row.nbytes <= room
