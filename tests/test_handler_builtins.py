"""Bytes, bytearrays, arrays of the standard library and memoryviews: equal or refused."""

from __future__ import annotations

import array
import ctypes
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_helpers import travel
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrips import SAFE, address, forge, frames_of

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
from shmstore.serialization import deserialize, serialize

MODES = ("shared", "readonly", "private", "copy")
TYPECODES = sorted(set(array.typecodes) - {"u"})


def copied(x: Any) -> list[Any]:
    """Return an object as header and frames of bytes, bytearrays, and read-only views."""
    header, frames = frames_of(x)
    return [
        (header, [kind(frame) for frame in frames])
        for kind in (bytes, bytearray, lambda frame: memoryview(bytes(frame)))
    ]


# --- bytes and bytearrays -----------------------------------------------------------------------


@pytest.mark.row("S84", "S85")
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_in_process_are_the_very_object(kind: Any) -> None:
    """Nothing is copied between two functions of one process."""
    x = kind(b"abc")
    header, frames = serialize(x)
    assert header["serializer"] == "custom"
    assert frames[0] is x
    assert deserialize(header, frames) is x
    assert deserialize(header, [memoryview(x)], SAFE) is x
    assert deserialize({**header, "writeable": (None,)}, frames) is x
    assert deserialize({"serializer": "custom", "type": kind.__name__, "sub-header": {}}, [x]) is x


@pytest.mark.row("S84", "S85")
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)) * 100])
def test_bytes_from_elsewhere_are_a_copy_of_the_type(kind: Any, data: bytes) -> None:
    """From any buffer, also a part of one."""
    for header, frames in copied(kind(data)):
        back = deserialize(header, frames, SAFE)
        assert type(back) is kind
        assert back == data
    header, _ = serialize(kind(data))
    back = deserialize(header, [memoryview(b"<" + data + b">")[1:-1]])
    assert (type(back), back) == (kind, data)


@pytest.mark.row("S84", "S85")
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize(
    "pieces", [[], [b"", b"abc"], [b"a", b"", b"bc"], [bytearray(b"ab"), memoryview(b"c")]]
)
def test_bytes_in_several_frames_are_joined(kind: Any, pieces: list[Any]) -> None:
    """None at all is empty; those in front may be empty."""
    header = {"serializer": "custom", "type": kind.__name__, "sub-header": {}}
    back = deserialize(header, pieces)
    assert (type(back), back) == (kind, b"".join(map(bytes, pieces)))


@pytest.mark.row("S84", "S85")
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_a_store_are_seen_without_a_copy_by_get_view(store: Store, kind: Any) -> None:
    """`get` copies them, for they own their memory."""
    data = bytes(range(256)) * 4096
    ref = store.put(kind(data))
    back = ref.get()
    assert (type(back), back) == (kind, data)
    one, other = store.get_view(ref), store.get_view(ref)
    assert one == data
    assert address(one) == address(other) != address(back)
    assert one.readonly is (kind is bytes)
    if kind is bytearray:
        back[0] = 7
        assert one[0] == 0
    del one, other


# --- arrays of the standard library -------------------------------------------------------------


@pytest.mark.row("S86")
@pytest.mark.parametrize("typecode", TYPECODES)
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_array_comes_back_as_a_copy_that_can_grow(typecode: str, count: int) -> None:
    """Of each type of items."""
    items: Any = "x" * count if typecode in "uw" else [1] * count
    x: Any = array.array(typecode, items)
    for header, frames in copied(x):
        back = deserialize(header, frames, SAFE)
        assert type(back) is array.array
        assert (back.typecode, back) == (typecode, x)
        back.append(x[0] if count else ("y" if typecode in "uw" else 1))


@pytest.mark.row("S86")
def test_array_may_come_in_pieces_that_cut_items() -> None:
    """They are joined first."""
    x = array.array("i", [1, 2, 3])
    header, _ = serialize(x)
    header = {key: v for key, v in header.items() if key not in ("frame-nbytes", "writeable")}
    data = x.tobytes()
    for pieces in ([data[:3], data[3:7], data[7:]], [b"", data]):
        assert deserialize(header, pieces) == x
    assert deserialize(header, []) == array.array("i")
    with pytest.raises(DeserializationError):
        deserialize(header, [data[:-1]])


@pytest.mark.row("S86")
def test_array_can_grow_again_when_its_frames_are_gone() -> None:
    """Until then they are its own memory."""
    x = array.array("d", [1.0])
    _, frames = serialize(x)
    assert address(frames[0]) == x.buffer_info()[0]
    with pytest.raises(BufferError):
        x.append(2.0)
    frames[0].release()
    x.append(2.0)


@pytest.mark.row("S86", "F21")
@pytest.mark.parametrize("changes", [{"typecode": "?"}, {"typecode": 3}, {"itemsize": 3}])
def test_array_whose_header_is_forged_is_refused(changes: Any) -> None:
    """Items of another size elsewhere are told."""
    header, frames = serialize(array.array("i", [1]))
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **changes), frames)


# --- memoryviews --------------------------------------------------------------------------------


def assert_same_view(back: memoryview, x: memoryview) -> None:
    """Compare everything that a view tells."""
    assert type(back) is memoryview
    assert back.shape == x.shape
    if x.format.startswith("T{"):  # NumPy spells it by where its memory happens to lie
        assert np.asarray(back).dtype == np.asarray(x).dtype
    else:
        assert back.format.removeprefix("@") == x.format.removeprefix("@")
    assert (back.itemsize, back.nbytes) == (x.itemsize, x.nbytes)
    assert back.tobytes() == x.tobytes()
    assert back.readonly == x.readonly


def number(dtype: Any, shape: Any = (2, 3)) -> Any:
    """Return an array of small numbers."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


VIEWS: dict[str, Any] = {
    "bytes": memoryview(b"abcdef"),
    "bytearray": memoryview(bytearray(b"abcdef")),
    "Fortran": np.asfortranarray(number("i4")).data,
    "Fortran of 3 axes": np.asfortranarray(number("f8", (2, 3, 4))).data,
    "negative stride": number("i4")[:, ::-1].data,
    "negative stride of bytes": memoryview(b"abcdef")[::-1],
    "strided": number("i2", (6, 6))[::2, 1::3].data,
    "no dimension": number("f8", ()).data,
    "empty": memoryview(b""),
    "empty of floats": number("f8", (0,)).data,
    "empty of two axes": number("i4", (0, 3)).data,
    "empty of two axes, Fortran": np.asfortranarray(number("i4", (3, 0))).data,
    "empty struct": np.zeros(0, [("a", "i4")]).data,
    "struct": np.zeros(3, [("a", "u1"), ("b", "<f8")]).data,
    "struct, aligned": np.zeros(3, np.dtype([("a", "u1"), ("b", "<f8")], align=True)).data,
    "struct in struct": np.zeros(2, [("a", [("b", "i2"), ("c", "f4", (2,))])]).data,
    "struct, Fortran": np.asfortranarray(np.ones((2, 3), [("a", "i4"), ("b", "i2")])).data,
    "big-endian": number(">i4").data,
    "big-endian floats": number(">f8").data,
    "big-endian in a struct": np.zeros(2, [("a", ">i4")]).data,
    "half": number("f2").data,
    "half, strided": number("f2")[:, ::2].data,
    "complex": number("c16").data,
    "complex of floats": number("c8").data,
    "long double": number("g").data,
    "bool": number("?").data,
    "text of NumPy": np.array(["ab", "c"]).data,
    "bytes of NumPy": np.array([b"ab", b"c"]).data,
    "void": np.zeros(2, "V5").data,
    "characters": memoryview(b"abc").cast("c"),
    "read-only": memoryview(bytearray(b"abc")).toreadonly(),
    "read-only, strided": memoryview(bytearray(b"abcdef")).toreadonly()[::2],
    "read-only, Fortran": np.asfortranarray(number("i4")).data.toreadonly(),
    "ctypes": memoryview((ctypes.c_int * 3)(1, 2, 3)),
    "ctypes, struct": memoryview((ctypes.c_double * 2 * 2)()),
    "array": memoryview(array.array("h", [1, 2])),
    "native sizes": memoryview(bytes(16)).cast("n"),
    "two axes": memoryview(bytes(24)).cast("i", (2, 3)),
    "broadcast": np.broadcast_to(number("i4", (3,)), (2, 3)).data,
}

# What cannot be rebuilt, and says so at put.
REFUSED = {"ctypes", "ctypes, struct", "struct, Fortran", "void"}


@pytest.mark.row("S87", "S88", "F04", "F23", "F27")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_view_of_any_kind_comes_back_equal_or_is_refused_at_once(
    name: str, *, nested: bool
) -> None:
    """Format, shape, elements in their order, and whether it may be written."""
    x = VIEWS[name]
    try:
        header, frames = serialize([x] if nested else x, on_error="raise")
    except SerializationError as error:
        assert name in REFUSED
        assert "cannot be rebuilt" in str(error)  # noqa: PT017 - raised by some of them only
        return
    assert name not in REFUSED
    back = deserialize(header, [bytes(memoryview(frame)) for frame in frames])
    assert_same_view(back[0] if nested else back, x)
    assert_same_view(travel(x), x)


@pytest.mark.row("S87", "S88", "F04", "F23")
@pytest.mark.parametrize("name", sorted(set(VIEWS) - REFUSED))
def test_view_of_any_kind_comes_back_equal_from_a_store(store: Store, name: str) -> None:
    """In each mode, to those who accept no pickle."""
    x = VIEWS[name]
    ref = store.put(x)
    for mode in MODES:
        back = ref.get(mode=mode, deserializers=SAFE)
        assert back.tobytes() == x.tobytes()
        assert back.shape == x.shape
        readonly = {"readonly": True, "private": False}.get(mode, x.readonly)
        assert back.readonly is readonly
        del back


formats = st.sampled_from("cbB?hHiIlLqQnNfdeFDgSUV")


@pytest.mark.row("S87", "S88", "F04", "F23", "F27")
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_view_of_any_shape_and_strides_comes_back_equal_or_is_refused(data: st.DataObject) -> None:
    """Never with its elements in another order."""
    kind = data.draw(formats)
    dtype = np.dtype(
        {"c": "S1", "S": "S3", "U": "U2", "V": "V3", "n": np.intp, "N": np.uintp}.get(kind, kind)
    )
    if kind != "g":  # no other format of a long double is known to buffers
        dtype = dtype.newbyteorder(data.draw(st.sampled_from("=<>")))
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    raw = np.frombuffer(bytes(n % 2 for n in range(4096)), np.uint8)
    x = np.ndarray(shape, dtype, raw.copy()[: max(1, int(np.prod(shape))) * dtype.itemsize].data)
    if data.draw(st.booleans()):
        x = np.asfortranarray(x)
    if x.ndim:
        x = x[tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2]))) for _ in shape)]
        x = x.transpose(data.draw(st.permutations(range(x.ndim))))
    view = x.data.toreadonly() if data.draw(st.booleans()) else x.data
    try:
        header, frames = serialize(view, on_error="raise")
    except SerializationError:
        assert not view.nbytes or view.format.removeprefix("@") not in "bBhHiIlLqQfd"
        return
    assert_same_view(deserialize(header, [bytes(memoryview(frame)) for frame in frames]), view)


@pytest.mark.row("S87")
@pytest.mark.parametrize("shape", [(2,), (0,), ()])
@pytest.mark.parametrize(
    "dtype",
    [object, [("a", "i4"), ("b", object)], [("a", [("b", "O")])], [("a", "O", (2,))]],
    ids=str,
)
def test_view_of_objects_is_refused_wherever_they_hide(dtype: Any, shape: Any) -> None:
    """Addresses of this process mean nothing elsewhere."""
    x = np.zeros(shape, dtype).data
    for value in (x, [x]):
        with pytest.raises(SerializationError, match=r"pointers|cannot be rebuilt"):
            serialize(value, on_error="raise")


@pytest.mark.row("S87")
def test_view_that_was_released_is_refused() -> None:
    """It has nothing to show."""
    x = memoryview(b"abc")
    x.release()
    with pytest.raises(SerializationError, match="released"):
        serialize(x, on_error="raise")


@pytest.mark.row("S87", "S88")
@pytest.mark.parametrize("order", ["C", "F"])
def test_view_in_c_order_is_not_copied(order: Any) -> None:
    """One in Fortran order is written once, in the order of its elements."""
    x = np.asarray(number("i4"), order=order)
    header, frames = serialize(x.data)
    assert np.shares_memory(np.frombuffer(frames[0], np.uint8), x) is (order == "C")
    assert deserialize(header, frames).tolist() == x.tolist()


@pytest.mark.row("S88")
def test_view_may_come_in_pieces() -> None:
    """They are joined."""
    x = number("i4").data
    header, [frame] = serialize(x)
    header = {key: v for key, v in header.items() if key not in ("frame-nbytes", "writeable")}
    data = bytes(frame)
    assert deserialize(header, [data[:5], b"", data[5:]]).tolist() == x.tolist()


@pytest.mark.row("S88", "F21")
@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [3, 3]},
        {"shape": [-2, -3]},
        {"shape": [2.0, 3.0]},
        {"shape": "ab"},
        {"shape": None},
        {"shape": [1 << 62, 1 << 62]},
        {"format": "q"},
        {"format": "O"},
        {"format": "P"},
        {"format": "T{i:a:}"},
        {"format": 3},
        {"dtype": "O"},
        {"dtype": "<f8"},
        {"dtype": {"names": ["a"], "formats": ["O"], "offsets": [0]}},
        {"dtype": "nonsense"},
    ],
)
def test_view_whose_header_does_not_fit_its_frame_is_refused(changes: Any) -> None:
    """No header makes a view that looks beyond its frame, or takes bytes for pointers."""
    header, frames = serialize(number("i4").data)
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **changes), frames)
    with pytest.raises(CorruptHeaderError):
        deserialize(header, [bytes(frames[0])[:-4]])


@pytest.mark.row("S88", "F23")
def test_view_without_dimensions_is_one_element() -> None:
    """On every version of Python."""
    back = travel(number("f8", ()).data)
    assert (back.shape, back.ndim, back[()]) == ((), 0, 0.0)
    assert struct.unpack("d", back) == (0.0,)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["r", "rb", "w+", "a"])
def test_open_file_is_refused_by_its_place(store: Store, tmp_path: Path, how: str) -> None:
    """Text files too, whose content cloudpickle would take for them."""
    path = tmp_path / "file"
    path.write_text("content")
    with path.open(how) as file:
        for put in (store.put, store.put_list):
            with pytest.raises(SerializationError, match=r"_io\.\w+"):
                put([file])
        with pytest.raises(SerializationError, match=r"the offending part is obj\['a'\]\[0\]"):
            store.put({"a": [file]})


def test_output_of_a_process_is_that_of_its_reader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Functions refer to it."""
    with (tmp_path / "file").open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert travel([stream]) == [stream]
