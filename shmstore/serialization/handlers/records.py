"""How does one of many records come out of a few frames, without the others?

Written by `recording`. The layout says what the frames are; all numbers are little-endian:

=======  ==========================================================================================
text     ends, data: UTF-8 (lone surrogates pass), one record behind the other
bytes    ends, data
rows     arrays of one dtype and shape: one frame, a record every `pitch` bytes
ragged   arrays that differ in their first size only: places (start in bytes, first size), buffers
mixed    ends, kinds (a byte per record), data, buffers read-only, buffers writeable
=======  ==========================================================================================

`ends` are count + 1 offsets into the data, beginning with 0, of `word` bytes (4 or 8), as are
places. Buffers have the flag that they had when they were put, and a record of `mixed` says where
its own are:

=======  ==========================================================================================
TEXT     UTF-8
BYTES    the bytes
STREAM   a pickle without buffers
PICKLE   number of buffers (u4), of each 2 * start + writeable and size (u8 both), the stream
ARRAY    number of its dtype (u2), writeable (u1), axes (u1), start (u8), shape (u8 each); C order
ENCODED  a packed header, see `headers`; its frames lie where the table says, by their flags
INT      a signed number of any length
FLOAT    8 bytes
FIELDS   a container with arrays in it: number of its schema (u4), the end of each field (u4 each),
         the fields; the schema says container, keys and the kind of each field
=======  ==========================================================================================

Nothing is decoded, and no table looked through, before somebody asks for a record. Each number is
checked when it is used: a writer that is not trusted may change it after any other check.
"""

from __future__ import annotations

import functools
import math
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import numpy as np

from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptHeaderError, DeserializationError, ShmStoreError
from shmstore.serialization import headers, trust
from shmstore.serialization.family import decode
from shmstore.serialization.frames import Frame, ensure_memoryview
from shmstore.serialization.handlers.numpy import array_layout, unpack_dtype
from shmstore.serialization.pickling import loads
from shmstore.serialization.registry import register_serialization
from shmstore.serialization.wording import shown

# They lie in shared memory and are permanent.
TEXT, BYTES, STREAM, PICKLE, ARRAY, ENCODED, INT, FLOAT, FIELDS = range(9)
COUNT_HEAD: Final = struct.Struct("<I")
BUFFER_HEAD: Final = struct.Struct("<QQ")
ARRAY_HEAD: Final = struct.Struct("<HBBQ")
FLOAT_VALUE: Final = struct.Struct("<d")
WORDS: Final = {4: "I", 8: "Q"}

# Of an array of `rows`: they have an axis more, and NumPy 1 knows 32.
MOST_ROW_AXES: Final = 31
_MOST_AXES: Final = 32 if np.__version__.startswith("1.") else 64

# What reaches the reader as it is.
_TOLD: Final = (MemoryError, OSError, ShmStoreError)
_DEFAULT: Final = trust.Policy()

Read = Callable[[int], Any]
"""Returns the record of a number, which must be from 0 to count - 1."""


class Records(Sequence[Any]):
    """The records of one list, decoded one by one.

    Parameters
    ----------
    header, frames
        As `recording.record` made them.
    """

    __slots__ = ("nrecords", "read")

    def __init__(self, header: dict[str, Any], frames: Sequence[Frame]) -> None:
        layout, count = header["layout"], header["count"]
        if layout not in _LAYOUTS or type(count) is not int or not 0 <= count < 1 << 48:
            corrupt("layout", f"{shown(layout)} of {shown(count)} records", "one that is known")
        open_frames, expected = _LAYOUTS[layout]
        if len(frames) != expected:
            corrupt("frames", len(frames), expected)
        self.nrecords: int = count
        self.read: Read = open_frames(header, count, [ensure_memoryview(f) for f in frames])

    def __len__(self) -> int:
        return self.nrecords

    def __getitem__(self, index: Any) -> Any:
        at = range(self.nrecords)[index]
        return self.read(at) if isinstance(at, int) else [self.read(each) for each in at]

    def __iter__(self) -> Iterator[Any]:
        return map(self.read, range(self.nrecords))


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(Records, _decline, Records)


def _decline(_: Records) -> NoReturn:
    """Let records travel as a list of them does: what they lie in is not known any more."""
    raise NotImplementedError("records are stored by put_list")


def corrupt(key: str, found: Any, expected: Any) -> NoReturn:
    """Raise for what no writer has written."""
    raise CorruptHeaderError(
        f"a list of records is damaged at {key!r}: {str(found)[:100]} instead of {expected}.",
        key=key,
        found=str(found)[:100],
        expected=expected,
    )


def _words(header: dict[str, Any], view: memoryview, count: int) -> Any:
    """Return a table of numbers; its elements are ints of Python."""
    word = header["word"]
    if type(word) is not int or word not in WORDS or view.nbytes != count * word:
        corrupt("word", f"{view.nbytes} bytes by {shown(word)}", f"a table of {count}")
    return view.toreadonly().cast(WORDS[word])  # type: ignore[call-overload]


# --- one kind of records --------------------------------------------------------------------------


def _open_cut(
    make: Callable[[memoryview], Any], header: dict[str, Any], count: int, frames: list[memoryview]
) -> Read:
    """Open records that lie one after the other; `make` builds one of its bytes."""
    ends, data = _words(header, frames[0], count + 1), frames[1]
    size = data.nbytes

    def read(at: int) -> Any:
        start, stop = ends[at], ends[at + 1]
        if not start <= stop <= size:
            corrupt("ends", f"{start} to {stop}", f"a place in {size} bytes")
        return make(data[start:stop])

    return read


def _text(record: memoryview) -> str:
    try:
        return str(record, "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        corrupt("data", f"text with {error.reason}", "UTF-8")


def _open_rows(header: dict[str, Any], count: int, frames: list[memoryview]) -> Read:
    shape, dtype, _ = array_layout({"dtype": header["dtype"], "shape": header["shape"]})
    pitch, row = header["pitch"], math.prod(shape) * dtype.itemsize
    if type(pitch) is not int or not row <= pitch < 1 << 48:
        corrupt("pitch", shown(pitch), f"at least {row}")
    needed = (count - 1) * pitch + row if count else 0
    if frames[0].nbytes != needed:
        corrupt("frames", f"{frames[0].nbytes} bytes", needed)
    steps = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
    layout = {"dtype": header["dtype"], "shape": [count, *shape], "strides": [pitch, *steps]}
    sizes, dtype, strides = array_layout(layout)
    rows = np.ndarray(sizes, dtype, frames[0] if needed else None, 0, strides)
    if not needed:
        rows.flags.writeable = not frames[0].readonly
    if shape:
        return rows.__getitem__
    return lambda at: rows[at, ...]


def _open_ragged(header: dict[str, Any], count: int, frames: list[memoryview]) -> Read:
    tail, dtype, _ = array_layout({"dtype": header["dtype"], "shape": header["tail"]})
    _check_axes(len(tail) + 1)
    places, buffers = _words(header, frames[0], 2 * count), frames[1]
    size, step = buffers.nbytes, math.prod(tail) * dtype.itemsize
    new = np.ndarray

    def read(at: int) -> np.ndarray[Any, Any]:
        start, length = places[2 * at], places[2 * at + 1]
        if start + length * step > size:
            corrupt("places", f"{length} from {start}", f"a place in {size} bytes")
        if length and step:
            return new((length, *tail), dtype, buffers, start)
        return _empty((length, *tail), dtype, buffers)

    return read


def _check_axes(axes: int) -> None:
    if axes > _MOST_AXES:
        corrupt("arrays", f"{axes} axes", f"at most {_MOST_AXES}, as NumPy {np.__version__} knows")


def _empty(
    shape: tuple[int, ...], dtype: np.dtype[Any], buffers: memoryview
) -> np.ndarray[Any, Any]:
    """Return an array without elements, as writeable as those that have some."""
    if math.prod(shape) * dtype.itemsize:
        corrupt("shape", shape, "one without elements")
    try:
        x: np.ndarray[Any, Any] = np.ndarray(shape, dtype)
    except ValueError as error:
        corrupt("shape", error, "one that an array can have")
    x.flags.writeable = not buffers.readonly
    return x


# --- records of many kinds ------------------------------------------------------------------------


def _open_mixed(header: dict[str, Any], count: int, frames: list[memoryview]) -> Read:
    kinds, data = frames[1], frames[2]
    ends, size = _words(header, frames[0], count + 1), data.nbytes
    if kinds.nbytes != count:
        corrupt("kinds", f"{kinds.nbytes} bytes", count)
    readers = _Mixed(header, frames).readers

    def read(at: int) -> Any:
        start, stop, kind = ends[at], ends[at + 1], kinds[at]
        if not start <= stop <= size or kind > FIELDS:
            corrupt("ends", f"{start} to {stop}, kind {kind}", f"a place in {size} bytes")
        return readers[kind](data[start:stop])

    return read


class _Mixed:
    """Decodes single records; keeps by which rules the list was opened."""

    __slots__ = ("_accepts", "_buffers", "_dtypes", "_rules", "_schemas", "readers")

    def __init__(self, header: dict[str, Any], frames: list[memoryview]) -> None:
        dtypes = header["dtypes"]
        if not isinstance(dtypes, (list, tuple)):
            corrupt("dtypes", shown(dtypes), "a list")
        self._buffers = frames[3], frames[4]
        self._dtypes = [unpack_dtype(dtype) for dtype in dtypes]
        self._rules = trust.policy.get()
        self._accepts = self._rules == _DEFAULT
        self.readers: tuple[Callable[[memoryview], Any], ...] = (
            _text,
            bytes,
            self._stream,
            self._pickle,
            self._array,
            self._encoded,
            _int,
            _float,
            self._fields,
        )
        self._schemas = [self._schema(*schema) for schema in header["schemas"]]

    def _schema(self, kind: str, keys: Sequence[str], codes: Sequence[int]) -> _Schema:
        """Return how records of one schema are made; fields have no fields of their own."""
        fields = [type(code) is int and 0 <= code < FIELDS for code in codes]
        named = len(keys) == (len(codes) if kind == "dict" else 0)
        named = named and all(type(key) is str for key in keys)
        if kind not in _MAKERS or not all(fields) or not named:
            corrupt("schemas", shown([kind, keys, codes]), "container, keys and kinds")
        readers = [self.readers[code] for code in codes]
        return _Schema(_MAKERS[kind], list(keys), readers, fields_head(len(codes)))

    def _stream(self, record: memoryview) -> Any:
        try:
            if self._accepts:
                return pickle.loads(record)
            return self._by_rules(lambda: pickle.loads(record))
        except _TOLD:
            raise
        except Exception as error:
            raise _failed(error) from error

    def _pickle(self, record: memoryview) -> Any:
        try:
            (count,) = COUNT_HEAD.unpack_from(record)
            start = COUNT_HEAD.size + count * BUFFER_HEAD.size
            if start > record.nbytes:
                corrupt("buffers", count, f"as many as {record.nbytes} bytes can tell")
            heads = BUFFER_HEAD.iter_unpack(record[COUNT_HEAD.size : start])
            buffers = [self._buffer(at >> 1, size, at & 1) for at, size in heads]
            if self._accepts:
                return pickle.loads(record[start:], buffers=buffers)
            return self._by_rules(lambda: loads(record[start:], buffers=buffers))
        except _TOLD:
            raise
        except Exception as error:
            raise _failed(error) from error

    def _array(self, record: memoryview) -> np.ndarray[Any, Any]:
        try:
            number, writeable, axes, start = ARRAY_HEAD.unpack_from(record)
            shape = struct.unpack_from(f"<{axes}Q", record, ARRAY_HEAD.size)
            dtype, view = self._dtypes[number], self._buffers[writeable]
        except (IndexError, struct.error) as error:
            corrupt("arrays", error, "the head of an array")
        size = math.prod(shape) * dtype.itemsize
        _check_axes(axes)
        if start + size > view.nbytes or max(shape, default=0) >= 1 << 62:
            corrupt("arrays", f"{size} bytes from {start}", f"a place in {view.nbytes} bytes")
        return np.ndarray(shape, dtype, view, start) if size else _empty(shape, dtype, view)

    def _fields(self, record: memoryview) -> Any:
        try:
            (number,) = COUNT_HEAD.unpack_from(record)
            make, keys, readers, head = self._schemas[number]
            _, *ends = head.unpack_from(record)
        except (IndexError, struct.error) as error:
            corrupt("fields", error, "the head of a record with fields")
        body = record[head.size :]
        start, values, size = 0, [], body.nbytes
        for read, stop in zip(readers, ends, strict=True):
            if not start <= stop <= size:
                corrupt("fields", f"{start} to {stop}", f"a place in {size} bytes")
            values.append(read(body[start:stop]))
            start = stop
        return make(keys, values)

    def _encoded(self, record: memoryview) -> Any:
        room = max(view.nbytes for view in self._buffers)
        with trust.reading(self._rules):
            header, table = headers.unpack(bytes(record), room)
            frames = [self._buffer(row.offset, row.nbytes, row.writeable) for row in table]
            return decode(header, frames)

    def _buffer(self, start: int, size: int, writeable: int) -> memoryview:
        view = self._buffers[writeable]
        if start + size > view.nbytes:
            corrupt("buffers", f"{size} bytes from {start}", f"a place in {view.nbytes} bytes")
        return view[start : start + size]

    def _by_rules(self, load: Callable[[], Any]) -> Any:
        with trust.reading(self._rules):
            trust.accept("pickle", "a record of a list")
            return load()


class _Schema(NamedTuple):
    """What records with fields have in common."""

    make: Callable[[list[str], list[Any]], Any]
    keys: list[str]
    readers: list[Callable[[memoryview], Any]]
    head: struct.Struct


_MAKERS: Final[dict[str, Callable[[list[str], list[Any]], Any]]] = {
    "tuple": lambda _, values: tuple(values),
    "list": lambda _, values: values,
    "dict": lambda keys, values: dict(zip(keys, values, strict=True)),
}


@functools.cache
def fields_head(count: int) -> struct.Struct:
    """Return the head of a record with fields: number of its schema, ends of the fields."""
    return struct.Struct(f"<{count + 1}I")


def _int(record: memoryview) -> int:
    return int.from_bytes(record, "little", signed=True)


def _float(record: memoryview) -> float:
    if record.nbytes != FLOAT_VALUE.size:
        corrupt("ends", f"a float of {record.nbytes} bytes", FLOAT_VALUE.size)
    number: float = FLOAT_VALUE.unpack(record)[0]
    return number


def _failed(error: Exception) -> DeserializationError:
    """Return what a reader is told when a record cannot be unpickled."""
    return DeserializationError(
        f"a record of a list could not be rebuilt by 'pickle': {type(error).__name__}: "
        f"{str(error)[:1000]}",
        family="pickle",
    )


_LAYOUTS: Final[dict[str, tuple[Callable[..., Read], int]]] = {
    "text": (functools.partial(_open_cut, _text), 2),
    "bytes": (functools.partial(_open_cut, bytes), 2),
    "rows": (_open_rows, 1),
    "ragged": (_open_ragged, 2),
    "mixed": (_open_mixed, 5),
}
