"""Arrow streams: what a few bytes could become much by is refused before it is decoded."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from roundtrips import SAFE

from shmstore.errors import CorruptHeaderError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.handlers import streams

pa = pytest.importorskip("pyarrow")

N = 5000
READERS = (None, SAFE)
TABLE = pa.table({"a": [0] * N, "b": ["text"] * N})
CODES = pa.array(["a" * 50, "b" * 50] * N).dictionary_encode()


def stream_of(x: Any, **options: Any) -> bytearray:
    """Return a table, or batches, as a stream that Arrow writes with these options."""
    batches = x.to_batches() if isinstance(x, pa.Table) else x
    sink = pa.BufferOutputStream()
    schema = batches[0].schema
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytearray(sink.getvalue())


def read(stream: Any, deserializers: Any = None) -> Any:
    """Return the table in a stream that was forged."""
    header, _ = serialize(TABLE, on_error="raise")
    header = {key: value for key, value in header.items() if key != "frame-nbytes"}
    return deserialize(header, [bytes(stream)], deserializers)


def messages(stream: bytearray) -> list[streams.Message]:
    """Return the messages of a stream."""
    found, at = [], 0
    while (message := streams._message_at(memoryview(stream), at)) is not None:
        found.append(message)
        at = message.body + message.body_nbytes
    return found


def put(stream: bytearray, at: int, form: str, *numbers: int) -> None:
    """Write numbers into a stream."""
    struct.pack_into(form, stream, at, *numbers)


# --- honest streams -------------------------------------------------------------------------------


@pytest.mark.row("S105")
@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: pa.table({}),
        lambda: TABLE.slice(0, 0),
        lambda: pa.table({"a": pa.chunked_array([[i] for i in range(50)])}),
        lambda: pa.table({"a": CODES, "v": pa.array(["x" * 20] * 2 * N, pa.string_view())}),
        lambda: pa.table({str(i): pa.array([[{"x": i}]]) for i in range(500)}),
        lambda: pa.table({"a": pa.array([0], pa.timestamp("ns", "Europe/Berlin"))}),
        lambda: pa.table({"a": [1]}, metadata={f"key {i}": "value" for i in range(100)}),
        lambda: pa.table({"": [1]}, metadata={"": ""}),
    ],
)
def test_what_arrow_writes_is_let_through(make: Callable[[], Any], *, thorough: bool) -> None:
    """By itself and as the handler has it written."""
    x = make()
    frames = serialize(x, on_error="raise")[1]
    streams.check_stream(ensure_memoryview(frames[0]), thorough=thorough)


# --- bombs, for any reader ------------------------------------------------------------------------


@pytest.mark.row("F21")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_stream_is_refused(codec: str, reader: Any) -> None:
    """It may claim to be of any size; nothing is allocated for it."""
    zeros = pa.table({"a": pa.nulls(1 << 20, pa.int64()).fill_null(0)})
    before = pa.total_allocated_bytes()
    for x in (zeros, TABLE, pa.table({"c": CODES})):
        with pytest.raises(CorruptHeaderError, match="compressed"):
            read(stream_of(x, compression=codec), reader)
    del x
    assert pa.total_allocated_bytes() <= before


@pytest.mark.row("F21")
@pytest.mark.parametrize("reader", READERS)
def test_compressed_dictionary_of_batches_that_are_not_is_refused(reader: Any) -> None:
    """The batch of a dictionary lies one table deeper."""
    x = pa.table({"c": CODES})
    compressed, plain = stream_of(x, compression="zstd"), stream_of(x)
    end = messages(compressed)[1]
    first, second = messages(plain)[1:]
    batch = plain[first.body + first.body_nbytes :]
    assert second.kind == 3
    with pytest.raises(CorruptHeaderError, match="compressed"):
        read(compressed[: end.body + end.body_nbytes] + batch, reader)
    dictionary = plain[messages(plain)[0].body : first.body + first.body_nbytes]
    assert read(plain[: messages(plain)[0].body] + dictionary + batch, reader).equals(x)


@pytest.mark.row("F21")
@pytest.mark.parametrize("reader", READERS)
def test_batch_that_is_said_to_be_compressed_is_refused(reader: Any) -> None:
    """Though all else lies where Arrow itself writes it."""
    stream = stream_of(pa.table({"v": pa.array(["x" * 20], pa.string_view())}))
    batch = messages(stream)[1].header
    vtable = batch - struct.unpack_from("<i", stream, batch)[0]
    assert struct.unpack_from("<HHHHHHH", stream, vtable) == (14, 28, 16, 4, 8, 0, 12)
    put(stream, vtable + 10, "<H", 4)
    with pytest.raises(CorruptHeaderError, match="compressed"):
        read(stream, reader)


@pytest.mark.row("F21")
@pytest.mark.parametrize("reader", READERS)
def test_dictionary_in_pieces_is_refused(reader: Any) -> None:
    """All pieces would be joined anew for each batch."""
    values = [[str(i) for i in range(count)] for count in (2, 4, 6)]
    batches = [
        pa.record_batch([pa.DictionaryArray.from_arrays([0, 1], part)], names=["a"])
        for part in values
    ]
    stream = stream_of(batches, emit_dictionary_deltas=True)
    assert pa.ipc.open_stream(stream).read_all().num_rows == 6
    with pytest.raises(CorruptHeaderError, match="piece of a dictionary"):
        read(stream, reader)
    assert read(stream_of(batches), reader).num_rows == 6


@pytest.mark.row("F21")
@pytest.mark.parametrize("reader", READERS)
def test_stream_of_another_version_is_refused(reader: Any) -> None:
    """Version 4 could tell a compression in a note."""
    plain = stream_of(TABLE)
    view = memoryview(plain)
    for start in [0, *(message.body + message.body_nbytes for message in messages(plain))][:-1]:
        version = streams._fields(view, streams._follow(view, start + 8), 1)[0]
        assert plain[version] == 4
        stream = bytearray(plain)
        stream[version] = 3
        with pytest.raises(CorruptHeaderError, match="version"):
            read(stream, reader)
    with pytest.raises(CorruptHeaderError, match="no message"):
        read(stream_of(TABLE, use_legacy_format=True), reader)


@pytest.mark.row("F21")
@pytest.mark.parametrize("reader", READERS)
def test_stream_that_does_not_end_with_its_frame_is_refused(reader: Any) -> None:
    """Whatever lies behind, and wherever it was cut."""
    plain = stream_of(TABLE.slice(0, 10))
    cuts = [plain[:n] for n in range(0, len(plain), 4)]
    for stream in (*cuts, plain + bytes(8), plain + plain, plain[8:], bytes(len(plain))):
        with pytest.raises(CorruptHeaderError):
            read(stream, reader)


@pytest.mark.row("F21")
@pytest.mark.parametrize("thorough", [False, True])
def test_damaged_metadata_raise_nothing_but_our_error(*, thorough: bool) -> None:
    """Offsets may lead anywhere."""
    rng = random.Random(0)
    pool = [
        stream_of(pa.table({"a": CODES.slice(0, 3), "v": pa.array(["x" * 20] * 3)})),
        stream_of(TABLE.slice(0, 3)),
        stream_of(pa.table({"a": pa.array(["x"], pa.string_view())}, metadata={"k": "v"})),
    ]
    refused = 0
    for _ in range(5000):
        stream = bytearray(rng.choice(pool))
        width = rng.choice("BHIQ")
        at = rng.randrange(len(stream) - 8)
        bits = 8 * struct.calcsize(width)
        value = rng.choice([0, 1, 1 << (bits - 1), (1 << bits) - 1, rng.randrange(1 << bits)])
        put(stream, at, f"<{width}", value)
        try:
            streams.check_stream(memoryview(stream), thorough=thorough)
        except CorruptHeaderError:
            refused += 1
    assert refused > 500


# --- bombs that only readers look for who accept no pickles ---------------------------------------


@pytest.mark.row("F21", "F43")
def test_names_that_are_told_once_and_used_often_are_refused() -> None:
    """Each use would be a copy."""
    names = ["n" * 10_000, *(str(i) for i in range(100))]
    stream = stream_of(pa.table({name: [1] for name in names}))
    view = memoryview(stream)
    schema = messages(stream)[0].header
    fields = list(streams._tables(view, streams._fields(view, schema, 2)[1]))
    places = [streams._fields(view, field, 1)[0] for field in fields]
    target = next(
        streams._follow(view, place)
        for place in places
        if struct.unpack_from("<I", view, streams._follow(view, place))[0] == 10_000
    )
    moved = 0
    for place in places:
        if target > place:
            put(stream, place, "<I", target - place)
            moved += 1
    assert moved > 20
    with pytest.raises(CorruptHeaderError, match="more than it holds"):
        read(stream, SAFE)


@pytest.mark.row("F21", "F43")
def test_fields_that_are_told_once_and_used_often_are_refused() -> None:
    """A struct of the same two structs, many levels deep, has more fields than memory."""
    kind = pa.int8()
    for _ in range(20):
        kind = pa.struct([("a", kind), ("b", pa.int8())])
    stream = stream_of([_empty(kind)])
    view = memoryview(stream)
    fields = streams._fields(view, messages(stream)[0].header, 2)[1]
    doubled = 0
    while pair := [*streams._tables(view, fields)]:
        vector = streams._follow(view, fields)
        if len(pair) == 2:
            put(stream, vector + 8, "<I", pair[0] - vector - 8)
            doubled += 1
        fields = streams._fields(view, pair[0], 6)[5]
    assert doubled == 20
    with pytest.raises(CorruptHeaderError, match="more than it holds"):
        read(stream, SAFE)


def _empty(kind: Any) -> Any:
    return pa.record_batch([pa.nulls(0, kind)], names=["x"])


@pytest.mark.row("F21", "F43")
def test_schema_that_is_nested_too_deeply_is_refused() -> None:
    """Before the stack is."""
    for depth, ours in ((60, None), (70, "nested too deeply")):
        kind = pa.int8()
        for _ in range(depth):
            kind = pa.list_(kind)
        sink = pa.BufferOutputStream()
        pa.ipc.new_stream(sink, pa.schema([("x", kind)])).close()
        if ours is None:
            assert read(sink.getvalue(), SAFE).num_columns == 1
            continue
        with pytest.raises(CorruptHeaderError, match=ours):
            read(sink.getvalue(), SAFE)


@pytest.mark.row("F21", "F43")
@pytest.mark.parametrize(
    ("pair", "numbers"),
    [(3, (0, 8)), (3, (1 << 40, 8)), (1, (0, -8)), (1, (-8, 8)), (1, (0, 1 << 62))],
)
def test_buffers_that_overlap_or_lead_out_are_refused(pair: int, numbers: tuple[int, int]) -> None:
    """The same bytes could be a million columns."""
    stream = stream_of(pa.table({"a": [1, 2], "b": [3, 4]}))
    batch = messages(stream)[1].header
    buffers = streams._fields(memoryview(stream), batch, 3)[2]
    put(stream, streams._follow(memoryview(stream), buffers) + 4 + 16 * pair, "<qq", *numbers)
    with pytest.raises(CorruptHeaderError, match="buffers"):
        read(stream, SAFE)


@pytest.mark.row("F21", "F43")
@pytest.mark.parametrize("count", [1 << 28, -1, 1 << 60])
def test_count_of_more_buffers_than_there_are_is_refused(count: int) -> None:
    """Room would be made for so many."""
    stream = stream_of(pa.table({"a": pa.array(["x" * 20], pa.string_view())}))
    batch = messages(stream)[1].header
    counts = streams._fields(memoryview(stream), batch, 5)[4]
    put(stream, streams._follow(memoryview(stream), counts) + 4, "<q", count)
    with pytest.raises(CorruptHeaderError, match="more buffers"):
        read(stream, SAFE)


@pytest.mark.row("F21", "F43")
def test_numbers_of_another_byte_order_are_refused() -> None:
    """They would be turned around in a copy."""
    numbers = pa.table({"a": pa.array([1, 2], pa.int16())})
    stream = stream_of(numbers)
    schema = messages(stream)[0].header
    vtable = schema - struct.unpack_from("<i", stream, schema)[0]
    assert struct.unpack_from("<H", stream, vtable + 4) == (0,)
    batch = messages(stream)[0].body
    put(stream, vtable + 4, "<H", batch - 2 - schema)  # to the last bytes of the metadata
    put(stream, batch - 2, "<H", 1)
    with pytest.raises(CorruptHeaderError, match="byte order"):
        read(stream, SAFE)
