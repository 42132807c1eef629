"""May an Arrow stream be decoded: does it end where its frame ends, and is nothing compressed?

A stream is a run of messages, all numbers little-endian:

=========  =======  ==========================================================================
offset     bytes    of a message
=========  =======  ==========================================================================
0          4        -1
4          4        size of the metadata, a multiple of 8; 0: the stream ends here
8          size     the metadata: a flatbuffer with the table `Message` of Arrow's Message.fbs
8 + size   body     as many bytes as the metadata tells, a multiple of 8
=========  =======  ==========================================================================

The first is a schema, the others are dictionaries and batches of rows. What is written here has
bodies as they are in memory. A compressed one may claim to be of any size when it is read, and
pieces of a dictionary are joined again at each batch: both let few bytes become many, so neither is
decoded. For readers that accept no pickles the rest is looked at too by which a small stream could
become large: names and texts of the schema that are told once and used often, buffers that overlap.

Flatbuffers: a table begins with the distance back to its *vtable*, which has a place per field (0:
not there). Their bounds are checked by Arrow; here they only must not lead out of the stream.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Final

from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptHeaderError

_SCHEMA: Final = 1
_DICTIONARY: Final = 2
_BATCH: Final = 3
_V5: Final = 4  # before it, compression was told in other places
_BIG_ENDIAN: Final = 1

_PREFIX_NBYTES: Final = 8
_MOST_DEPTH: Final = 64

# A field and a note take no fewer bytes, texts aside.
_FIELD_NBYTES: Final = 16
_NOTE_NBYTES: Final = 8

# Types that tell more than a few numbers, in their second field: timestamps, unions.
_LONG: Final = (10, 14)

_u16: Final = struct.Struct("<H").unpack_from
_i32: Final = struct.Struct("<i").unpack_from
_u32: Final = struct.Struct("<I").unpack_from
_i64: Final = struct.Struct("<q").unpack_from
_prefix: Final = struct.Struct("<iI").unpack_from

# How Arrow itself lays out a schema (without a body) and a batch, without or with text in views:
# distances between tables, and that the table of a batch has no fourth field, which would tell a
# compression. Found so, a message costs 0.2 us instead of 2 (`benchmarks` "types": small tables).
_plain_schema: Final = struct.Struct("<iII2xH2xHHHixBH").unpack_from
_PLAIN_SCHEMA: Final = (16, 10, 6, 5, 8, 10, _SCHEMA, _V5)
_plain: Final = struct.Struct("<iI32sq16si")  # start, size, head, length of the body, table, back
_head: Final = struct.Struct("<I4xHHHHHHixBHI").pack
_HEAD: Final = _head(20, 12, 22, 6, 5, 8, 12, 12, _BATCH, _V5, 24)
_HEAD_OF_VIEWS: Final = _head(20, 12, 22, 6, 5, 8, 12, 12, _BATCH, _V5, 28)
_TABLE: Final = struct.pack("<2xHHHHHi", 10, 24, 12, 4, 8, 10)
_TABLE_OF_VIEWS: Final = struct.pack("<2xHHHHHHH", 14, 28, 16, 4, 8, 0, 12)
_BACK_OF_VIEWS: Final = 14


class Message(NamedTuple):
    """Where in a stream the header table of a message lies, and its body; what it is."""

    kind: int
    header: int
    body: int
    body_nbytes: int


def check_stream(stream: memoryview, *, thorough: bool) -> None:
    """Raise CorruptHeaderError unless a stream is one that may be decoded.

    Parameters
    ----------
    stream
        Unsigned bytes.
    thorough
        Whether to look for all by which it could become larger than it is.
    """
    try:
        at = _check_schema(stream, thorough=thorough)
        while True:
            if not thorough:
                at = _skip_plain(stream, at)
            message = _message_at(stream, at)
            if message is None:
                break
            _check_batch(stream, message, thorough=thorough)
            at = message.body + message.body_nbytes
    except CorruptHeaderError:
        raise
    except (struct.error, IndexError, ValueError) as error:
        raise _damaged("metadata that leads out of it") from error
    if at + _PREFIX_NBYTES != len(stream):
        raise _damaged(f"{len(stream) - at} bytes at its end")


def _skip_plain(stream: memoryview, at: int) -> int:
    """Return where the first message lies that is not just as Arrow writes batches."""
    last = len(stream) - _plain.size
    unpack = _plain.unpack_from
    while at <= last:
        start, size, head, body, table, back = unpack(stream, at)
        plain = (head == _HEAD and table == _TABLE) or (
            head == _HEAD_OF_VIEWS and table == _TABLE_OF_VIEWS and back == _BACK_OF_VIEWS
        )
        if not plain or start != -1 or not size or (size | body) & 7 or body < 0:
            break
        at += _PREFIX_NBYTES + size + body
    return at


def _message_at(stream: memoryview, at: int) -> Message | None:
    """Return the message at an offset; None: the stream ends."""
    start, size = _prefix(stream, at)
    if start != -1:
        raise _damaged(f"no message at {at}")
    if not size:
        return None
    root = at + _PREFIX_NBYTES
    table = root + _u32(stream, root)[0]
    version, kind, header, body, notes = _fields(stream, table, 5)
    nbytes = _i64(stream, body)[0] if body else 0
    if not (version and kind and header) or _u16(stream, version)[0] != _V5 or notes:
        raise _damaged(f"a message of another version at {at}")
    if size % 8 or nbytes % 8 or nbytes < 0:
        raise _damaged(f"a message of odd size at {at}")
    return Message(stream[kind], _follow(stream, header), root + size, nbytes)


def _fields(stream: memoryview, table: int, count: int) -> list[int]:
    """Return where the first fields of a table lie, 0 for each that is not there."""
    vtable = table - _i32(stream, table)[0]
    if vtable < 0:
        raise _damaged("metadata that leads out of it")
    there = min(count, _u16(stream, vtable)[0] // 2 - 2)
    places = struct.unpack_from(f"<{there}H", stream, vtable + 4) if there > 0 else ()
    return [table + place if place else 0 for place in places] + [0] * (count - len(places))


def _follow(stream: memoryview, at: int) -> int:
    """Return where a field leads to that refers to a table, a vector or a text."""
    return at + int(_u32(stream, at)[0])


def _check_batch(stream: memoryview, message: Message, *, thorough: bool) -> None:
    """Raise unless a message is a batch or a whole dictionary, uncompressed."""
    batch = message.header
    if message.kind == _DICTIONARY:
        _, data, is_delta = _fields(stream, batch, 3)
        if not data or (is_delta and stream[is_delta]):
            raise _damaged("a piece of a dictionary")
        batch = _follow(stream, data)
    elif message.kind != _BATCH:
        raise _damaged(f"a message of kind {message.kind}")
    _, _, buffers, compression, variadic = _fields(stream, batch, 5)
    if compression:
        raise _damaged("compressed data")
    if thorough:
        _check_buffers(stream, message, buffers, variadic)


def _check_buffers(stream: memoryview, message: Message, buffers: int, variadic: int) -> None:
    """Raise unless buffers follow each other inside of the body, and counts of them are such."""
    numbers = _numbers(stream, buffers, 2)
    end = 0
    for start, nbytes in zip(numbers[::2], numbers[1::2], strict=True):
        if start < end or nbytes < 0:
            raise _damaged("buffers that overlap")
        end = start + nbytes
    if end > message.body_nbytes:
        raise _damaged("buffers outside of a message")
    if any(not 0 <= count <= len(numbers) for count in _numbers(stream, variadic, 1)):
        raise _damaged("more buffers than there are")


def _numbers(stream: memoryview, field: int, width: int) -> tuple[int, ...]:
    """Return a vector of pairs, or other tuples, of 64-bit integers."""
    if not field:
        return ()
    vector = _follow(stream, field)
    count = int(_u32(stream, vector)[0]) * width
    if count * 8 > len(stream):
        raise _damaged("metadata that leads out of it")
    return struct.unpack_from(f"<{count}q", stream, vector + 4)


# --- the schema ---------------------------------------------------------------------------------


def _check_schema(stream: memoryview, *, thorough: bool) -> int:
    """Raise unless a stream begins with a schema; return where that ends."""
    if not thorough:
        start, size, *layout = _plain_schema(stream, 0)
        if start == -1 and not size & 7 and tuple(layout) == _PLAIN_SCHEMA:
            return _PREFIX_NBYTES + int(size)
    message = _message_at(stream, 0)
    if message is None or message.kind != _SCHEMA:
        raise _damaged("no schema")
    order, fields, notes, _ = _fields(stream, message.header, 4)
    if (order and _u16(stream, order)[0] == _BIG_ENDIAN) != (sys.byteorder == "big"):
        raise _damaged("numbers of another byte order")
    if thorough:
        left = message.body
        for nbytes in _extents(stream, fields, notes):
            left -= nbytes
            if left < 0:
                raise _damaged("a schema that tells more than it holds")
    return message.body + message.body_nbytes


def _extents(stream: memoryview, fields: int, notes: int, depth: int = 0) -> Iterator[int]:
    """Yield about how many bytes each field, text and note of a schema takes, once per use."""
    if depth > _MOST_DEPTH:
        raise _damaged("a schema that is nested too deeply")
    for note in _tables(stream, notes):
        key, value = _fields(stream, note, 2)
        yield _NOTE_NBYTES + _text_nbytes(stream, key) + _text_nbytes(stream, value)
    for field in _tables(stream, fields):
        name, _, kind, details, _, children, more = _fields(stream, field, 7)
        yield _FIELD_NBYTES + _text_nbytes(stream, name)
        if kind and details and stream[kind] in _LONG:
            _, most = _fields(stream, _follow(stream, details), 2)
            yield _text_nbytes(stream, most)
        yield from _extents(stream, children, more, depth + 1)


def _tables(stream: memoryview, field: int) -> Iterator[int]:
    """Yield where the tables lie that a vector refers to."""
    if field:
        vector = _follow(stream, field)
        for number in range(_u32(stream, vector)[0]):
            yield _follow(stream, vector + 4 + 4 * number)


def _text_nbytes(stream: memoryview, field: int) -> int:
    return 4 + int(_u32(stream, _follow(stream, field))[0]) if field else 0


def _damaged(found: str) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"an Arrow stream is damaged: it has {found}.", key="frames", found=found
    )
