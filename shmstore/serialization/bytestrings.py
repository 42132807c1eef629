"""How does an object lie in one string of bytes: a file, a message, a value in a database?

======  ======  ====================================================================================
Offset  Bytes   Contents (numbers are little-endian and unsigned)
======  ======  ====================================================================================
0       8       ``b"shmbytes"``
8       4       version of all that follows
12      4       CRC-32 of bytes 0 to 11; so much is the same in every version
16      8       H, the bytes of the packed header
24      8       the bytes of the whole string
32      8       CRC-32 of bytes 0 to 31 and of all from 40 to the first frame
40      H       msgpack of ``[header, [[bytes, CRC-32] of each frame]]``
..      ..      the frames, each at the next multiple of 64; zeros in between
======  ======  ====================================================================================

The checksum of a frame covers the zeros behind it, so every byte is covered. It tells of accidents,
not of malice: who can write the string can also make its checksums fit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Sequence
from itertools import pairwise
from typing import Any, Final

from shmstore.errors import (
    CorruptHeaderError,
    FormatVersionError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import msgpacking
from shmstore.serialization.compression import compress_frames, decompress, entries_of
from shmstore.serialization.frames import ALIGNMENT, Frame, allocate, ensure_memoryview
from shmstore.serialization.markers import Serialized
from shmstore.serialization.packing import SPLIT_SIZE
from shmstore.serialization.splitting import (
    is_named,
    merge_and_deserialize,
    restore,
    serialize_and_split,
)
from shmstore.serialization.wording import shown

# Lie in files. They are permanent.
MAGIC: Final = b"shmbytes"
VERSION: Final = 1
_LEAD: Final = struct.Struct("<8sII")
_SIZES: Final = struct.Struct("<QQ")
_CHECKSUM: Final = struct.Struct("<Q")
_PRELUDE_NBYTES: Final = _LEAD.size + _SIZES.size + _CHECKSUM.size


# --- writing -----------------------------------------------------------------------------------


def serialize_bytelist(
    x: Any,
    serializers: Sequence[str] | None = None,
    on_error: str = "raise",
    context: dict[str, Any] | None = None,
    iterate_collection: bool | None = None,  # noqa: FBT001 - as in serialize
    *,
    compression: str | bool | None = None,
    frame_split_size: int | None = None,
) -> list[Frame]:
    """Serialize an object into buffers that joined are what `serialize_bytes` returns.

    Parameters
    ----------
    x, serializers, context, iterate_collection
        As for `serialize`.
    on_error
        "raise", or "message": the bytes of what cannot be serialized raise when they are read.
    compression
        Codec for the frames that it makes shorter by 30 %, see `maybe_compress`; default none.
    frame_split_size
        Bytes of the longest piece that a frame is cut into, rounded down to a multiple of 64;
        default 64 MiB.

    Returns
    -------
    list of buffers
        The prelude, the packed header, and the frames with zeros between them; frames may be the
        memory of `x` itself.

    Raises
    ------
    SerializationError
        The object cannot be serialized.
    CodecNotFoundError
        The codec is unknown or not installed.
    """
    size = frame_split_size or SPLIT_SIZE
    size = size // ALIGNMENT * ALIGNMENT or size  # uncompressed pieces then follow without a gap
    header, frames = serialize_and_split(
        x, serializers, on_error, context, size, iterate_collection
    )
    header, frames = compress_frames(header, frames, compression)
    views = [ensure_memoryview(frame) for frame in frames]
    gaps = [bytes(-view.nbytes % ALIGNMENT) for view in views[:-1]] + [b""] * bool(views)
    table = [
        [view.nbytes, zlib.crc32(gap, zlib.crc32(view))]
        for view, gap in zip(views, gaps, strict=True)
    ]
    pieces = _prelude_and_header(_pack_header(header, table), [view.nbytes for view in views])
    for view, gap in zip(views, gaps, strict=True):
        pieces += [view, gap] if gap else [view]
    return pieces


def serialize_bytes(x: Any, *args: Any, **kwargs: Any) -> bytes:
    """Serialize an object into one string of bytes.

    Parameters
    ----------
    x, *args, **kwargs
        As for `serialize_bytelist`.

    Examples
    --------
    >>> deserialize_bytes(serialize_bytes({"a": [1, 2]}))
    {'a': [1, 2]}
    """
    return b"".join(serialize_bytelist(x, *args, **kwargs))


def _pack_header(header: dict[str, Any], table: list[list[int]]) -> bytes:
    try:
        return msgpacking.packb([header, table])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SerializationError(
            f"the header made by family {header.get('serializer')!r} cannot be packed: {error}",
            type=header.get("type"),
        ) from error


def _layout(header_nbytes: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where each frame starts, and where the last one ends."""
    starts = []
    end = _PRELUDE_NBYTES + header_nbytes
    for size in sizes:
        starts.append(end + -end % ALIGNMENT)
        end = starts[-1] + size
    return starts, end


def _prelude_and_header(packed: bytes, sizes: Sequence[int]) -> list[Frame]:
    """Return the prelude, and the packed header with zeros up to the first frame."""
    starts, total = _layout(len(packed), sizes)
    filled = packed.ljust((starts[0] if starts else total) - _PRELUDE_NBYTES, b"\0")
    lead = _lead(MAGIC, VERSION) + _SIZES.pack(len(packed), total)
    return [lead + _CHECKSUM.pack(zlib.crc32(filled, zlib.crc32(lead))), filled]


def _lead(magic: bytes, version: int) -> bytes:
    return _LEAD.pack(magic, version, zlib.crc32(_LEAD.pack(magic, version, 0)[:12]))


# --- reading -----------------------------------------------------------------------------------


def deserialize_bytes(
    b: Frame,
    deserializers: Container[str] | None = None,
    *,
    copy: bool = False,
    verify: bool = True,
) -> Any:
    """Rebuild an object from a string of bytes.

    Parameters
    ----------
    b
        What `serialize_bytes` returned, or any other buffer of the same bytes, e.g. a mapped file.
    deserializers
        Names of the accepted families; default all. Only without "pickle" is it safe to read what
        somebody wrote who is not trusted.
    copy
        Give the object memory of its own. By default its frames are slices of `b`: any array of it
        keeps all of `b` alive, and where `b` can be written to, two calls share their memory.
    verify
        Hold the frames against their checksums. False reads no frame before the object does, which
        suits mapped files; and it reads a string whose arrays were written to since. The header
        and all sizes are checked anyway.

    Raises
    ------
    CorruptHeaderError
        The bytes were cut, extended or changed; or they are no such string at all.
    FormatVersionError
        They were written by another version of this format.
    DeserializationError
        As raised by `deserialize`.
    """
    view = ensure_memoryview(b)
    header, frames = _unpack(view, verify=verify)
    if copy:
        entries = entries_of(header, frames)
        frames = [
            frame if is_named(entry) else _copy(frame)
            for entry, frame in zip(entries, frames, strict=True)
        ]
    return merge_and_deserialize(header, decompress(header, frames), deserializers)


def unpack_bytes(b: Frame) -> Serialized:
    """Return header and frames of a string of bytes, checked but not decoded.

    Raises
    ------
    CorruptHeaderError, FormatVersionError
        As `deserialize_bytes`.
    """
    return Serialized(*restore(*_unpack(ensure_memoryview(b), verify=True)))


def _unpack(view: memoryview, *, verify: bool) -> tuple[dict[str, Any], list[Frame]]:
    """Return header and frames; with `verify` after a look at every byte."""
    header_nbytes = _check_prelude(view)
    end = _PRELUDE_NBYTES + header_nbytes
    header, table = _unpack_header(view[_PRELUDE_NBYTES:end])
    starts, total = _layout(header_nbytes, [size for size, _ in table])
    if total != view.nbytes:
        raise _corrupt("nbytes", view.nbytes, total)
    frames: list[Frame] = []
    for (start, following), (size, checksum) in zip(pairwise([*starts, total]), table, strict=True):
        if verify:
            _check_sum(f"frame {len(frames)}", zlib.crc32(view[start:following]), checksum)
        frames.append(view[start : start + size])
    return header, frames


def _check_prelude(view: memoryview) -> int:
    """Return the bytes of the packed header, whose checksum is right."""
    if view.nbytes < _PRELUDE_NBYTES:
        raise _corrupt("nbytes", view.nbytes, _PRELUDE_NBYTES)
    magic, version, checksum = _LEAD.unpack_from(view)
    if _lead(MAGIC, version) != view[: _LEAD.size]:
        raise _corrupt("magic", (magic, checksum), MAGIC)
    if version != VERSION:
        raise FormatVersionError(
            f"the bytes were written in version {version} of their format, shmstore reads version "
            f"{VERSION} here. Read them by the shmstore that wrote them.",
            found=version,
            expected=VERSION,
        )
    header_nbytes, total = _SIZES.unpack_from(view, _LEAD.size)
    end = _PRELUDE_NBYTES + header_nbytes
    if total != view.nbytes or end > total:
        raise _corrupt("nbytes", view.nbytes, max(total, end))
    first = min(end + -end % ALIGNMENT, total)
    (checksum,) = _CHECKSUM.unpack_from(view, _LEAD.size + _SIZES.size)
    found = zlib.crc32(view[: _LEAD.size + _SIZES.size])
    _check_sum("the header", zlib.crc32(view[_PRELUDE_NBYTES:first], found), checksum)
    return int(header_nbytes)


def _unpack_header(packed: memoryview) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    try:
        header, rows = msgpacking.unpackb(packed)
        table = [(size, checksum) for size, checksum in rows]
    except (MemoryError, OSError, ShmStoreError):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise _corrupt("header", found, "header and frame table") from error
    if not isinstance(header, dict):
        raise _corrupt("header", type(header).__name__, "dict")
    if not all(type(size) is int and size >= 0 for size, _ in table):
        raise _corrupt("nbytes", table, "numbers of bytes")
    return header, table


def _check_sum(key: str, found: int, expected: int) -> None:
    if found != expected:
        raise _corrupt(f"the checksum of {key}", found, expected)


def _corrupt(key: str, found: Any, expected: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        "the bytes are no object written by serialize_bytes, or they were cut, extended or "
        f"damaged: {key} is {shown(found, 200)}, expected {shown(expected, 200)}.",
        key=key,
        found=found,
        expected=expected,
    )


def _copy(frame: Frame) -> memoryview:
    target = allocate(frame.nbytes)
    target[:] = frame
    return target
