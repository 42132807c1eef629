"""Arrays of NumPy of every kind: what they are, whose memory they lie on, what is refused."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from family_helpers import travel
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from roundtrips import SAFE, frames_of

from shmstore import Store
from shmstore.errors import DeserializationError, SerializationError
from shmstore.serialization import DEFAULT_SERIALIZERS, deserialize, serialize
from shmstore.serialization.family import encode
from shmstore.serialization.frames import Planned, allocate
from shmstore.serialization.handlers import numpy as numpy_handler
from shmstore.serialization.handlers.numpy import pack_dtype, unpack_dtype

Array = np.ndarray[Any, Any]


class Tagged(np.ndarray[Any, Any]):
    """A subclass of arrays that the other side can import."""


def assert_same_array(back: Array, x: Array) -> None:
    """Compare everything that an array is."""
    assert type(back) is type(x)
    assert back.dtype == x.dtype
    assert back.dtype.str == x.dtype.str
    assert back.dtype.type is x.dtype.type
    assert back.shape == x.shape
    assert back.tobytes() == x.tobytes()
    assert back.flags.writeable == x.flags.writeable
    assert back.flags.aligned


# --- arrays --------------------------------------------------------------------------------------

plain_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(endianness="?", min_len=1),
    st.integers(1, 20).map(lambda n: np.dtype(f"V{n}")),
)
structured_dtypes = hnp.array_dtypes(plain_dtypes, max_size=4, allow_subarrays=True)
dtypes = st.one_of(plain_dtypes, structured_dtypes, hnp.nested_dtypes(plain_dtypes, max_leaves=6))


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Draw an array of any type, shape, order and strides."""
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    nbytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
    filling = np.frombuffer(bytes(range(256)) * (nbytes // 256 + 1), np.uint8)[:nbytes]
    x: Array = np.ndarray(shape, dtype, filling.copy())
    if dtype.kind == "b":
        x = np.ndarray(shape, dtype, (filling % 2).copy())
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    if x.ndim:
        x = x.transpose(draw(st.permutations(range(x.ndim))))
        x = x[tuple(slice(None, None, draw(st.sampled_from([1, 1, -1, 2, -2]))) for _ in x.shape)]
        if draw(st.booleans()):
            axis = draw(st.integers(0, x.ndim))
            length = draw(st.integers(0, 3))
            expanded = np.expand_dims(x, axis)
            target = (*x.shape[:axis], length, *x.shape[axis:])
            x = np.broadcast_to(expanded, target)
    if draw(st.booleans()) and x.flags.writeable:
        x.flags.writeable = False
    return x


@pytest.mark.row("S91", "S92", "S93", "S94", "S96", "F27")
@settings(deadline=None, max_examples=400)
@given(x=arrays())
def test_array_of_any_kind_comes_back_the_same(x: Array) -> None:
    """Type, byte order, shape, values and flag, whatever the strides were."""
    header, _ = serialize(x)
    assert header["serializer"] == "custom"
    assert_same_array(travel(x), x)


@pytest.mark.row("S91", "S92", "S93", "S94")
@pytest.mark.parametrize(
    "x",
    [
        np.float64(3.0) + np.zeros(()),
        np.zeros((0, 5)),
        np.zeros((3, 0, 2), order="F"),
        np.zeros(3, dtype=[]),
        np.zeros(3, dtype="S0"),
        np.zeros(3, dtype="V0"),
        np.zeros((2, 0), dtype="V0"),
        np.zeros((4, 3), dtype="V24")[::2],
        np.arange(24.0)[3:9].reshape(2, 3),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(24).reshape(2, 3, 4)[::-1, :, ::-2],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12).reshape(3, 4)[1:2].T,
        np.broadcast_to(np.arange(3), (1000, 3)),
        np.broadcast_to(np.float32(1), (5, 0, 5)),
        sliding_window_view(np.arange(10), 4),
        as_strided(np.arange(10), (5, 5), (8, 8)),
        np.array(["2024-02-29", "NaT"], "datetime64[25s]"),
        np.array([1, 2], ">M8[D]"),
        np.array([b"ab", b"c"], "S5"),
        np.array(["ä", "öü"], ">U2"),
        np.array([1 + 2j], ">c8"),
        np.array([1.5, -2], np.longdouble),
        np.zeros(4, dtype=np.dtype([("a", "u1"), ("b", ">f8")], align=True)),
        np.zeros(2, dtype=[("x", "f4", (2, 3)), ("y", [("z", "S3"), ("w", "M8[ns]")])]),
        np.zeros(2, dtype=[(("A title", "a"), "i4"), ("ü", "i2")]),
        np.zeros(
            2,
            dtype={"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2], "itemsize": 11},
        ),
    ],
    ids=lambda x: f"{x.dtype.str}{x.shape}",
)
def test_array_of_an_odd_kind_comes_back_the_same(x: Array) -> None:
    """The corners that have broken other libraries, each by name."""
    back = travel(x)
    assert_same_array(back, x)
    assert back.dtype.fields == x.dtype.fields
    assert back.dtype.isalignedstruct == x.dtype.isalignedstruct


@pytest.mark.row("S93")
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_keeps_its_order_without_a_copy(order: Any) -> None:
    """The frame is the array's own memory, and the order of the axes survives."""
    x: Array = np.asarray(np.arange(12.0).reshape(3, 4), order=order)
    _, [frame] = serialize(x)
    assert np.shares_memory(np.frombuffer(frame, np.uint8), x)
    back = travel(x)
    assert (back.flags.c_contiguous, back.flags.f_contiguous) == (order == "C", order == "F")


@pytest.mark.row("S92")
def test_array_broadcast_is_stored_once_and_stretched_again() -> None:
    """A terabyte of repetition costs what is distinct in it."""
    x = np.broadcast_to(np.arange(3.0), (1 << 36, 3))
    header, [frame] = serialize(x)
    assert memoryview(frame).nbytes == 24
    back = deserialize(header, [bytes(frame)])
    assert (back.shape, back.strides) == (x.shape, (0, 8))
    assert back[1 << 35].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.row("S92")
def test_array_with_the_warning_flag_of_broadcast_arrays_is_stored_without_it() -> None:
    """NumPy warns when such an array is written; storing one only reads."""
    x, _ = np.broadcast_arrays(np.arange(3), np.zeros((2, 1)))
    assert travel(x).tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.row("S95", "S96")
@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0)])
def test_array_is_as_writeable_as_it_was(shape: tuple[int, ...], *, writeable: bool) -> None:
    """Also when it is empty or has no dimensions."""
    x = np.zeros(shape)
    x.flags.writeable = writeable
    header, [frame] = serialize(x)
    assert memoryview(frame).readonly is not writeable
    assert header["writeable"] == (writeable,)
    assert travel(x).flags.writeable is writeable


@pytest.mark.row("S91")
def test_array_of_records_keeps_the_class_of_its_elements() -> None:
    """A field is an attribute of an np.record, and not of an np.void."""
    x = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]).view(np.ndarray)
    x = np.ndarray(x.shape, np.dtype((np.record, x.dtype)), x)
    assert x[0].a == 1
    assert travel(x)[0].a == 1
    assert_same_array(travel(x), x)


@pytest.mark.row("S91")
def test_array_whose_dtype_has_metadata_keeps_it() -> None:
    """It is not part of the dtype's text, nor of equality."""
    dtype = np.dtype("f8", metadata={"unit": "m"})
    for x in (np.zeros(2, dtype), np.zeros(2, np.dtype([("a", dtype)]))):
        back = travel(x)
        inner = back.dtype if back.dtype.names is None else back.dtype["a"]
        assert inner.metadata == {"unit": "m"}


@pytest.mark.row("S90", "S97", "F05")
@pytest.mark.parametrize(
    "x",
    [
        np.array([None, {"a": 1}, "text"], dtype=object),
        np.array([(1, [2])], dtype=[("a", "i4"), ("b", "O")]),
        np.arange(4).reshape(2, 2).view(np.matrix),
        np.zeros((2, 2)).view(Tagged),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["short", "a longer text than fits into the element"], "T"),
    ],
    ids=["objects", "field of objects", "matrix", "subclass", "recarray", "text"],
)
def test_array_that_is_more_than_its_memory_goes_by_pickle(x: Array) -> None:
    """Objects of Python, and subclasses with their class and what belongs to it."""
    header, _ = serialize(x)
    assert header["serializer"] == "pickle"
    back = travel(x)
    assert type(back) is type(x)
    assert back.dtype == x.dtype
    assert back.tolist() == x.tolist()
    with pytest.raises(SerializationError):
        serialize(x, ["custom"], on_error="raise")


@pytest.mark.row("S97")
def test_array_on_disk_goes_by_its_content(tmp_path: Path) -> None:
    """A memory map of a file is a subclass whose file may be gone on the other side."""
    x = np.memmap(tmp_path / "file", "i4", "w+", shape=(10,))
    x[:] = range(10)
    assert np.asarray(travel(x)).tolist() == list(range(10))


@pytest.mark.row("S96", "F21")
@pytest.mark.parametrize(
    ("header", "frames"),
    [
        ({"dtype": "<f8", "shape": [3]}, [bytes(16)]),
        ({"dtype": "<f8", "shape": [3], "strides": [16]}, [bytes(24)]),
        ({"dtype": "<f8", "shape": [3], "strides": [-8]}, [bytes(24)]),
        ({"dtype": "<f8", "shape": [-2]}, [bytes(24)]),
        ({"dtype": "<f8", "shape": [1 << 62, 8]}, [bytes(24)]),
        ({"dtype": "|O", "shape": [1]}, [bytes(8)]),
        ({"dtype": {"names": ["a"], "formats": ["O"], "offsets": [0]}, "shape": [1]}, [bytes(8)]),
        ({"dtype": "nonsense", "shape": [1]}, [bytes(8)]),
        ({"dtype": ["<f8"], "shape": [1]}, [bytes(8)]),
        ({"dtype": "<f8"}, [bytes(8)]),
        ({}, [bytes(8)]),
        ({"dtype": "<f8", "shape": [1]}, []),
        ({"dtype": "<f8", "shape": [1]}, [bytes(8), bytes(8)]),
    ],
)
def test_array_whose_header_does_not_fit_its_frame_is_refused(
    header: dict[str, Any], frames: list[bytes]
) -> None:
    """No header makes an array that looks beyond its frame, or takes bytes for pointers."""
    with pytest.raises(DeserializationError):
        deserialize({"serializer": "custom", "type": "numpy.ndarray", "sub-header": header}, frames)


@pytest.mark.row("S96", "F21")
def test_texts_of_dtypes_are_remembered_only_if_short_and_sound() -> None:
    """No header fills the memory of a reader, or changes what another one means."""
    cache = numpy_handler._plain_dtype_of
    assert numpy_handler.unpack_dtype("<f8") == np.dtype("<f8")
    before = cache.cache_info().currsize
    assert numpy_handler.unpack_dtype("|S" + "0" * 100 + "7") == np.dtype("S7")
    for text in ("i4,i4", "(2,)i4", "nonsense"):
        with pytest.raises((DeserializationError, TypeError)):
            numpy_handler.unpack_dtype(text)
    assert cache.cache_info().currsize == before


@pytest.mark.row("S91", "F35", "F43")
def test_array_headers_contain_no_pickle() -> None:
    """Who accepts only "custom" wants no code to run: not for any dtype either."""
    for dtype in ("f8", [("a", "i4"), ("b", "S3", (2,))], "M8[ns]", "V7"):
        header, _ = serialize(np.zeros(2, dtype))
        assert b"numpy" not in msgpack.packb(header["sub-header"])
    assert "pickle" not in vars(numpy_handler)


@pytest.mark.row("S92", "S93", "F27")
@pytest.mark.parametrize("writeable", [True, False])
def test_array_stretched_and_strided_is_cut_to_what_is_distinct(*, writeable: bool) -> None:
    """In neither order: written in C order, stretched again, with its flag."""
    base = np.arange(24).reshape(4, 6)[::2, ::-3]
    x = as_strided(base, (2, 5, 2), (base.strides[0], 0, base.strides[1]), writeable=writeable)
    header, [frame] = serialize(x)
    assert memoryview(frame).nbytes == 4 * 8
    back = deserialize(header, [bytes(frame)])
    assert back.tolist() == x.tolist()
    assert back.strides[1] == 0
    assert back.flags.writeable is writeable


@pytest.mark.row("S93", "F27")
@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x[::-1],
        lambda x: x[:, 1:3],
        lambda x: x.transpose(1, 0, 2),
        lambda x: sliding_window_view(x.reshape(-1), 4),
    ],
    ids=["negative", "window", "transposed", "overlapping"],
)
def test_array_in_neither_order_is_a_promise_to_write_it_once(cut: Any, *, writeable: bool) -> None:
    """Straight to where it will lie, in C order, as writeable as it was."""
    x = cut(np.arange(60.0).reshape(3, 4, 5))
    x.flags.writeable = writeable and x.flags.writeable
    for value in (x, [x]):
        _, frames = encode(value, DEFAULT_SERIALIZERS)
        planned = frames[-1]
        assert type(planned) is Planned
        assert planned.readonly is not x.flags.writeable
        target = allocate(planned.nbytes)
        planned.write_into(target)
        assert bytes(target) == x.tobytes()


@pytest.mark.row("S95")
def test_array_header_tells_dtype_shape_and_strides() -> None:
    """Strides only where it is not in C order; its flag lies beside it."""
    header, _ = serialize(np.zeros((2, 3), ">f4"))
    assert header["sub-header"] == {"dtype": ">f4", "shape": [2, 3]}
    assert header["writeable"] == (True,)
    header, _ = serialize(np.zeros((2, 3), "i2", order="F"))
    assert header["sub-header"] == {"dtype": "<i2", "shape": [2, 3], "strides": [2, 4]}
    fixed = np.zeros(2)
    fixed.flags.writeable = False
    assert serialize(fixed)[0]["writeable"] == (False,)


@pytest.mark.row("S91", "S94")
@settings(deadline=None, max_examples=200)
@given(dtype=dtypes)
def test_dtype_comes_back_as_it_was(dtype: np.dtype[Any]) -> None:
    """With byte order, offsets, alignment and sub-arrays, by strings and numbers alone."""
    packed = msgpack.unpackb(msgpack.packb(pack_dtype(dtype)), use_list=True)
    back = unpack_dtype(packed)
    assert back == dtype
    assert (back.str, back.itemsize, back.isalignedstruct) == (
        dtype.str,
        dtype.itemsize,
        dtype.isalignedstruct,
    )
    assert repr(back) == repr(dtype)


@pytest.mark.row("S97", "F05")
def test_subclass_of_arrays_with_more_than_memory_keeps_all_of_it() -> None:
    """By its own pickle, over frames of its own."""
    x = np.arange(4).view(Tagged)
    x.note = "metres"  # type: ignore[attr-defined]
    _, frames = serialize({"k": x})
    assert len(frames) == 2
    assert type(travel({"k": x})["k"]) is Tagged
    record = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    assert travel([record])[0].a.tolist() == [1]


PAIRS = np.array([(n, n / 2) for n in range(300)], "i4,f8")
OF_RECORDS = PAIRS.astype(np.dtype((np.record, PAIRS.dtype)))
NOTED = np.arange(300, dtype=np.dtype("f8", metadata={"unit": "m"}))


@pytest.mark.parametrize("put", ["alone", "inside", "list"])
@pytest.mark.parametrize(
    "x",
    [PAIRS.view(np.recarray)[::2], OF_RECORDS[::-2], NOTED[::2]],
    ids=["recarray", "records", "metadata"],
)
def test_array_in_neither_order_of_any_dtype_is_shared(store: Store, x: Array, put: str) -> None:
    """Also where no header tells the dtype: it is written by one and read by all, if at all."""
    for readonly in (False, True):
        if put == "list":
            ref: Any = store.put_list([x], readonly=readonly)
        else:
            ref = store.put(x if put == "alone" else [x], readonly=readonly)
        one, other = (got if put == "alone" else got[0] for got in (ref.get(), ref.get()))
        assert (type(one), one.dtype, one.dtype.type) == (type(x), x.dtype, x.dtype.type)
        assert one.dtype.metadata == x.dtype.metadata
        assert one.tolist() == x.tolist()
        assert one.flags.writeable is not readonly
        if not readonly:
            one[0] = one[1]
            assert other.tolist()[0] == other.tolist()[1]


@pytest.mark.row("S97")
@pytest.mark.parametrize("nested", [False, True])
def test_memory_map_comes_back_as_a_plain_array(tmp_path: Path, *, nested: bool) -> None:
    """Its file may be gone; what was read-only stays so."""
    path = tmp_path / "file"
    np.arange(10, dtype="i4").tofile(path)
    x = np.memmap(path, "i4", "r")
    header, frames = frames_of([x] if nested else x)
    path.unlink()
    back = deserialize(header, frames)
    back = back[0] if nested else back
    assert type(back) is np.ndarray
    assert (back.tolist(), back.flags.writeable) == (list(range(10)), False)


@pytest.mark.row("S101")
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("f8", 8),
        ("u1", 1),
        ("S255", 255),
        ("S256", 8),
        ("M8[ns]", 8),
        ("c16", 16),
        ([("a", "i4"), ("b", "i2")], 6),
        (np.dtype(("f4", (3,))), 4),
        ([("a", "S1000")], 8),
    ],
    ids=str,
)
def test_itemsize_is_that_of_one_element_or_of_a_word(dtype: Any, size: int) -> None:
    """Codecs that shuffle bytes want a small one."""
    assert numpy_handler.itemsize(np.dtype(dtype)) == size


@pytest.mark.row("S96", "S93", "F08")
@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
@pytest.mark.parametrize(
    "x",
    [
        np.arange(7, dtype="i2"),
        np.zeros((3, 5), "c16", order="F"),
        np.arange(40).reshape(5, 8)[::2, ::3],
        np.zeros(3, [("a", "u1"), ("b", ">f8")]),
    ],
    ids=lambda x: f"{x.dtype.str}{x.shape}",
)
def test_array_of_a_store_is_the_same_in_each_mode_without_pickle(
    store: Store, x: Array, mode: str
) -> None:
    """And begins at a multiple of 64."""
    back = store.put(x).get(mode=mode, deserializers=SAFE)
    assert back.tobytes() == x.tobytes()
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert back.flags.writeable is (mode != "readonly")
    assert back.flags.f_contiguous is x.flags.f_contiguous
    if mode in ("shared", "readonly"):
        assert back.ctypes.data % 64 == 0
    with pytest.raises(DeserializationError):
        store.put(x).get(mode=mode, deserializers=("pickle",))
    del back
    gc.collect()
