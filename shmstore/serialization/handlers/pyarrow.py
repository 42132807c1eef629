"""How does Arrow data become one frame, and Arrow data over that frame?

The frame is an Arrow IPC stream, which is written straight to its destination: it holds what a
slice shows and no more, and is read without a copy. Pickle would share whole parent buffers. What
contains an extension type that is written in Python declines: its class travels by pickle, which
knows where to import it.

Compressed streams are refused and bounds are checked whenever data is read (`validate`). Contents,
every offset, index and text, are checked only for readers that accept no pickles
(``validate(full=True)``): whoever accepts them trusts the writer with more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import Frame, Planned, ensure_memoryview
from shmstore.serialization.handlers.indices import is_trusted
from shmstore.serialization.handlers.streams import check_stream
from shmstore.serialization.reductions import out_of_band
from shmstore.serialization.registry import own_way, register_reducer, register_serialization

# What Arrow raises for streams that make no sense.
_DAMAGED: Final = (
    *(pa.ArrowException, OSError, ValueError, TypeError, LookupError),
    *(StopIteration, NotImplementedError),
)

# Ids of types whose elements lie anywhere in shared buffers, and for each a type that is compact.
_VIEWS: Final = {
    pa.string_view().id: pa.large_string(),
    pa.binary_view().id: pa.large_binary(),
}
_VIEW_NBYTES: Final = 16
_SHORT_NBYTES: Final = 12  # up to here text lies in the view itself
_MUCH_NBYTES: Final = 64 << 10
_LITTLE_NBYTES: Final = 4 << 10

Parts = tuple[dict[str, Any], list[Frame]]


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(pa.Table, serialize_table, deserialize_table)
    register_serialization(pa.RecordBatch, serialize_batch, deserialize_batch)
    register_serialization(pa.ChunkedArray, serialize_chunked, deserialize_chunked)
    for cls in vars(pa.lib).values():
        if isinstance(cls, type) and issubclass(cls, pa.Array):
            register_serialization(cls, serialize_array, deserialize_array)
    register_reducer(pa.Array, reduce_array, subclasses=True)
    register_reducer(pa.ChunkedArray, own_way)
    for cls in (pa.Buffer, pa.ResizableBuffer):
        register_serialization(cls, serialize_buffer, deserialize_buffer)
        register_reducer(cls, reduce_buffer)


# --- tables, batches, arrays --------------------------------------------------------------------


def serialize_table(x: pa.Table) -> Parts:
    """Return the stream of a table."""
    for number, kind in enumerate(x.schema.types):
        if kind.id in _VIEWS and any(map(_is_loose, x.column(number).chunks)):
            chunks = [_compact(chunk) for chunk in x.column(number).chunks]
            x = x.set_column(number, x.field(number), pa.chunked_array(chunks, kind))
    return _serialize(x.schema, lambda writer: writer.write_table(x))


def serialize_batch(x: pa.RecordBatch) -> Parts:
    """Return the stream of a record batch."""
    for number, column in enumerate(x.columns):
        if column.type.id in _VIEWS and _is_loose(column):
            x = x.set_column(number, x.field(number), _compact(column))
    return _serialize(x.schema, lambda writer: writer.write_batch(x))


def serialize_chunked(x: pa.ChunkedArray) -> Parts:
    """Return the stream of a table with one column."""
    return serialize_table(pa.table([x], names=[""]))


def serialize_array(x: pa.Array) -> Parts:
    """Return the stream of a batch with one column."""
    return serialize_batch(pa.record_batch([x], names=[""]))


def deserialize_table(_: dict[str, Any], frames: Sequence[Frame]) -> pa.Table:
    """Return a table over the frame."""
    return _deserialize(frames, lambda reader: reader.read_all())


def deserialize_batch(_: dict[str, Any], frames: Sequence[Frame]) -> pa.RecordBatch:
    """Return a record batch over the frame."""
    return _deserialize(frames, _read_batch)


def deserialize_chunked(_: dict[str, Any], frames: Sequence[Frame]) -> pa.ChunkedArray:
    """Return a chunked array over the frame."""
    return _deserialize(frames, lambda reader: _only_column(reader.read_all()))


def deserialize_array(_: dict[str, Any], frames: Sequence[Frame], cls: type) -> pa.Array:
    """Return an array over the frame; it is of the class that was announced."""
    x = _deserialize(frames, lambda reader: _only_column(_read_batch(reader)))
    if type(x) is not cls:
        raise _corrupt("type", type(x).__name__, cls.__name__)
    return x


# --- arrays inside of pickles -------------------------------------------------------------------


def reduce_array(x: pa.Array) -> Any:
    """Leave an array to its own way, which is the fastest one, unless it shows but a part."""
    if not _is_part(x):
        return NotImplemented
    try:
        _, frames = serialize_array(x)
    except NotImplementedError:
        return NotImplemented
    return _restore, (type(x), out_of_band(frames[0]))


def _restore(cls: type, frame: Any) -> pa.Array:
    """Return an array out of a pickle. This name lies in stored pickles."""
    return deserialize_array({}, [frame], cls)


def reduce_buffer(x: pa.Buffer) -> Any:
    """Let a buffer lie beside the pickle: immutable, whatever it was."""
    if not x.is_cpu:
        return NotImplemented
    return pa.py_buffer, (out_of_band(memoryview(x).toreadonly()),)


def _is_part(x: pa.Array) -> bool:
    """Return whether an array holds much that it does not show."""
    held = x.get_total_buffer_size()
    if held <= _LITTLE_NBYTES:
        return False
    nbytes = x.nbytes
    if held > nbytes + nbytes // 4 + _LITTLE_NBYTES:
        return True
    return x.type.id in _VIEWS and _is_loose(x)


def _is_loose(x: pa.Array) -> bool:
    """Return whether an array of views holds much text that it does not show.

    A stream has all the text that the views of a slice come from.
    """
    _, views, *texts = x.buffers()
    held = sum(text.size for text in texts)
    if held < _MUCH_NBYTES:
        return False
    lengths = np.frombuffer(views, np.int32)[:: _VIEW_NBYTES // 4]
    lengths = lengths[x.offset : x.offset + len(x)]
    return bool(held > 2 * lengths[lengths > _SHORT_NBYTES].sum(dtype=np.int64))


def _compact(x: pa.Array) -> pa.Array:
    """Return an array of views with only the text that it shows."""
    return x.cast(_VIEWS[x.type.id]).cast(x.type)


def _only_column(x: Any) -> Any:
    if x.num_columns != 1:
        raise _corrupt("frames", f"{x.num_columns} columns", 1)
    return x.column(0)


# --- streams ------------------------------------------------------------------------------------


def _serialize(schema: pa.Schema, write: Callable[[Any], None]) -> Parts:
    """Plan the stream with that schema that `write` writes the batches of."""
    if any(isinstance(part, pa.ExtensionType) for part in _all_types(schema.types)):
        raise NotImplementedError("an extension type that is written in Python")

    def write_to(sink: Any) -> None:
        with pa.ipc.new_stream(sink, schema) as writer:
            write(writer)

    def write_into(target: memoryview) -> None:
        with pa.FixedSizeBufferWriter(pa.py_buffer(target)) as sink:
            write_to(sink)

    with pa.MockOutputStream() as ruler:
        write_to(ruler)
        nbytes = ruler.size()
    return {}, [Planned(nbytes, write_into, writeable=False)]


def _all_types(types: Iterable[pa.DataType]) -> Iterator[pa.DataType]:
    """Return types and the types inside of them, whatever nests them."""
    for outer in types:
        yield outer
        if outer.num_fields:
            yield from _all_types(outer.field(i).type for i in range(outer.num_fields))
        if isinstance(outer, pa.DictionaryType):
            yield from _all_types([outer.value_type])
        elif isinstance(outer, pa.BaseExtensionType):
            yield from _all_types([outer.storage_type])


def has_dictionary(outer: pa.DataType) -> bool:
    """Return whether a type is that of a dictionary, or nests one."""
    return any(isinstance(part, pa.DictionaryType) for part in _all_types([outer]))


def _deserialize(frames: Sequence[Frame], read: Callable[[Any], Any]) -> Any:
    """Return what `read` makes of the stream in the frame, after a look at it."""
    thorough = not is_trusted()
    view = _only_view(frames)
    check_stream(view, thorough=thorough)
    try:
        x = read(pa.RecordBatchStreamReader(pa.py_buffer(view)))
        x.validate(full=thorough)
    except (CorruptHeaderError, MemoryError):
        raise
    except _DAMAGED as error:
        raise _corrupt("frames", f"a stream that is damaged: {error}", "a stream") from error
    return x


def has_note(fields: Iterable[pa.Field], key: bytes, value: bytes) -> bool:
    """Return whether one of some fields, or of those inside of them, has a note in its metadata."""
    return any(
        (field.metadata or {}).get(key) == value or has_note(_fields_in(field.type), key, value)
        for field in fields
    )


def _fields_in(outer: pa.DataType) -> list[pa.Field]:
    """Return the fields of a type, of the values of a dictionary too."""
    if isinstance(outer, pa.DictionaryType):
        outer = outer.value_type
    elif isinstance(outer, pa.BaseExtensionType):
        outer = outer.storage_type
    return [outer.field(number) for number in range(outer.num_fields)]


def check_hidden(x: pa.Array) -> None:
    """Raise if what is null in an array, or in one inside of it, lies outside of its buffers.

    Arrow does not look at it, nor does `validate`; polars takes it for sound.
    """
    if isinstance(x, pa.ExtensionArray):
        x = x.storage
    kind = x.type
    if kind.id in _VIEWS:
        _, views, *texts = x.buffers()
        _check_views(np.frombuffer(views, np.int32).reshape(-1, 4)[x.offset :][: len(x)], texts)
    elif isinstance(kind, pa.DictionaryType):
        check_hidden(x.dictionary)
    elif isinstance(x, pa.StructArray):
        for number in range(kind.num_fields):
            check_hidden(x.field(number))
    elif hasattr(x, "values"):
        check_hidden(x.values)


def _check_views(views: np.ndarray[Any, Any], texts: Sequence[pa.Buffer]) -> None:
    """Raise unless views, four numbers each, lead to texts."""
    if (views[:, 0] < 0).any():
        raise _corrupt("frames", "text of negative length", "a length")
    nbytes, _, number, start = views[views[:, 0] > _SHORT_NBYTES].T
    sizes = np.array([text.size for text in texts], np.int64)
    known = (number >= 0) & (number < len(sizes)) & (start >= 0)
    if not known.all() or (sizes[number] - start < nbytes).any():
        raise _corrupt("frames", "text outside of its buffers", "text")


def _read_batch(reader: Any) -> pa.RecordBatch:
    batch = reader.read_next_batch()
    for _ in reader:
        raise _corrupt("frames", "several batches", 1)
    return batch


# --- buffers ------------------------------------------------------------------------------------


def serialize_buffer(x: pa.Buffer) -> Parts:
    """Return the memory of a buffer."""
    if not x.is_cpu:
        raise NotImplementedError("memory of another device")
    return {}, [memoryview(x).toreadonly()]


def deserialize_buffer(_: dict[str, Any], frames: Sequence[Frame]) -> pa.Buffer:
    """Return a buffer over the frame."""
    return pa.py_buffer(_only_view(frames))


def _only_view(frames: Sequence[Frame]) -> memoryview:
    """Return the one frame, read-only."""
    if len(frames) != 1:
        raise _corrupt("frames", len(frames), 1)
    return ensure_memoryview(frames[0]).toreadonly()


def _corrupt(key: str, found: Any, expected: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"Arrow data is damaged at {key!r}: {str(found)[:200]} instead of {expected}.",
        key=key,
        found=str(found)[:200],
        expected=expected,
    )
