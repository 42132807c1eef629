"""Objects to header and frames and back: arrays of every kind, pickles, families, flags."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pickle
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import rooms
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from shmstore import Store
from shmstore.errors import DeserializationError, SerializationError, ShmStoreError
from shmstore.serialization import (
    DEFAULT_SERIALIZERS,
    Dispatch,
    deserialize,
    families,
    register_serialization,
    register_serialization_family,
    serialize,
    typename,
)
from shmstore.serialization.frames import conform, ensure_memoryview
from shmstore.serialization.handlers import numpy as numpy_handler
from shmstore.serialization.pickling import is_plain

Array = np.ndarray[Any, Any]


class Tagged(np.ndarray[Any, Any]):
    """A subclass of arrays that the other side can import."""


def travel(x: Any, serializers: Any = None, deserializers: Any = None) -> Any:
    """Serialize, take header and frames through bytes, and deserialize."""
    header, frames = serialize(x, serializers)
    flags = [memoryview(frame).readonly for frame in frames]
    header = msgpack.unpackb(msgpack.packb(header), strict_map_key=False)
    copies = [bytearray(ensure_memoryview(frame)) for frame in frames]
    views = [
        memoryview(copy).toreadonly() if readonly else memoryview(copy)
        for copy, readonly in zip(copies, flags, strict=True)
    ]
    return deserialize(header, views, deserializers)


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


@settings(deadline=None, max_examples=400)
@given(x=arrays())
def test_array_of_any_kind_comes_back_the_same(x: Array) -> None:
    """Type, byte order, shape, values and flag, whatever the strides were."""
    header, _ = serialize(x)
    assert header["serializer"] == "custom"
    assert_same_array(travel(x), x)


@pytest.mark.parametrize(
    "x",
    [
        np.float64(3.0) + np.zeros(()),
        np.zeros((0, 5)),
        np.zeros((3, 0, 2), order="F"),
        np.zeros(3, dtype=[]),
        np.zeros(3, dtype="S0"),
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


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_keeps_its_order_without_a_copy(order: Any) -> None:
    """The frame is the array's own memory, and the order of the axes survives."""
    x: Array = np.asarray(np.arange(12.0).reshape(3, 4), order=order)
    _, [frame] = serialize(x)
    assert np.shares_memory(np.frombuffer(frame, np.uint8), x)
    back = travel(x)
    assert (back.flags.c_contiguous, back.flags.f_contiguous) == (order == "C", order == "F")


def test_array_broadcast_is_stored_once_and_stretched_again() -> None:
    """A terabyte of repetition costs what is distinct in it."""
    x = np.broadcast_to(np.arange(3.0), (1 << 36, 3))
    header, [frame] = serialize(x)
    assert memoryview(frame).nbytes == 24
    back = deserialize(header, [bytes(frame)])
    assert (back.shape, back.strides) == (x.shape, (0, 8))
    assert back[1 << 35].tolist() == [0.0, 1.0, 2.0]


def test_array_with_the_warning_flag_of_broadcast_arrays_is_stored_without_it() -> None:
    """NumPy warns when such an array is written; storing one only reads."""
    x, _ = np.broadcast_arrays(np.arange(3), np.zeros((2, 1)))
    assert travel(x).tolist() == [[0, 1, 2], [0, 1, 2]]


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


def test_array_of_records_keeps_the_class_of_its_elements() -> None:
    """A field is an attribute of an np.record, and not of an np.void."""
    x = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]).view(np.ndarray)
    x = np.ndarray(x.shape, np.dtype((np.record, x.dtype)), x)
    assert x[0].a == 1
    assert travel(x)[0].a == 1
    assert_same_array(travel(x), x)


def test_array_whose_dtype_has_metadata_keeps_it() -> None:
    """It is not part of the dtype's text, nor of equality."""
    dtype = np.dtype("f8", metadata={"unit": "m"})
    for x in (np.zeros(2, dtype), np.zeros(2, np.dtype([("a", dtype)]))):
        back = travel(x)
        inner = back.dtype if back.dtype.names is None else back.dtype["a"]
        assert inner.metadata == {"unit": "m"}


@pytest.mark.parametrize(
    "x",
    [
        np.array([None, {"a": 1}, "text"], dtype=object),
        np.array([(1, [2])], dtype=[("a", "i4"), ("b", "O")]),
        np.ma.masked_array([1, 2], [True, False]),
        np.zeros((2, 2)).view(Tagged),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["short", "a longer text than fits into the element"], "T"),
    ],
    ids=["objects", "field of objects", "masked", "subclass", "recarray", "text"],
)
def test_array_that_is_more_than_its_memory_goes_by_pickle(x: Array) -> None:
    """Objects of Python, and subclasses with their class and what belongs to it."""
    header, _ = serialize(x)
    assert header["serializer"] == ("custom" if type(x) is np.ma.MaskedArray else "pickle")
    back = travel(x)
    assert type(back) is type(x)
    assert back.dtype == x.dtype
    assert back.tolist() == x.tolist()
    if header["serializer"] == "pickle":
        with pytest.raises(SerializationError):
            serialize(x, ["custom"], on_error="raise")


def test_array_on_disk_goes_by_its_content(tmp_path: Path) -> None:
    """A memory map of a file is a subclass whose file may be gone on the other side."""
    x = np.memmap(tmp_path / "file", "i4", "w+", shape=(10,))
    x[:] = range(10)
    assert np.asarray(travel(x)).tolist() == list(range(10))


def test_arrays_inside_of_objects_are_frames_of_their_own() -> None:
    """Pickle puts their memory beside the stream, each with its flag."""
    readonly = np.arange(5)
    readonly.flags.writeable = False
    x = {"a": np.zeros(1000), "b": [readonly, np.asfortranarray(np.ones((2, 3)))]}
    header, frames = serialize(x)
    assert header["serializer"] == "pickle"
    assert header["writeable"] == (True, False, True)
    assert len(frames) == 4
    assert len(frames[0]) < 1000
    back = travel(x)
    assert_same_array(back["a"], x["a"])  # type: ignore[arg-type]
    assert_same_array(back["b"][0], readonly)
    assert back["b"][1].flags.f_contiguous


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


def test_array_headers_contain_no_pickle() -> None:
    """Who accepts only "custom" wants no code to run: not for any dtype either."""
    for dtype in ("f8", [("a", "i4"), ("b", "S3", (2,))], "M8[ns]", "V7"):
        header, _ = serialize(np.zeros(2, dtype))
        assert b"numpy" not in msgpack.packb(header["sub-header"])
    assert "pickle" not in vars(numpy_handler)


# --- pickles -------------------------------------------------------------------------------------


class Colour(enum.Enum):
    """An enum of a module that the other side can import."""

    RED = 1


@dataclasses.dataclass(frozen=True)
class Point:
    """A class of a module that the other side can import."""

    x: float
    y: Any = None


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.binary().map(bytearray),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.sampled_from(Colour),
    st.builds(range, st.integers(0, 9)),
)
hashable = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary())
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=20),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashable, inner, max_size=20),
        st.frozensets(hashable, max_size=4),
        st.builds(Point, st.floats(allow_nan=False), inner),
        st.lists(inner, max_size=3).map(collections.deque),
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(x=values)
def test_value_of_any_shape_comes_back_the_same(x: Any) -> None:
    """Nested containers of everything that the standard library can pickle."""
    back = travel(x)
    assert back == x
    assert type(back) is type(x)


@settings(deadline=None)
@given(x=values)
def test_plain_value_is_pickled_without_cloudpickle(x: Any) -> None:
    """What is called plain really needs nothing but the C pickler."""
    if is_plain(x) and not isinstance(x, (bytes, bytearray)):
        header, [stream] = serialize(x)
        assert header["writeable"] == ()
        assert pickle.loads(stream) == x


def test_value_that_contains_itself_comes_back_so() -> None:
    """A list in itself is neither plain nor endless."""
    x: list[Any] = [1]
    x.append(x)
    back = travel(x)
    assert back[1] is back
    shared = [1]
    left, right = travel((shared, shared))
    assert left is right


def test_value_keeps_the_class_of_builtin_subclasses() -> None:
    """A named tuple, an ordered dict or a bool is not made plainer."""
    pair = collections.namedtuple("pair", "a b")  # noqa: PYI024 - the one of collections is meant
    globals()["pair"] = pair
    pair.__module__ = __name__
    for x in (pair(1, 2), collections.OrderedDict(a=1), collections.Counter("aab"), True, 1):
        assert type(travel(x)) is type(x)
        assert travel(x) == x


def test_large_integers_dates_and_others_come_back() -> None:
    """A few that other formats lose."""
    for x in (
        1 << 1000,
        -0.0,
        dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=7),
        Ellipsis,
        slice(1, None, 2),
        complex(0, -1),
        memoryview,
    ):
        assert repr(travel(x)) == repr(x)


SENDING = """
import pathlib, sys, msgpack
from shmstore.serialization import serialize

OFFSET = 40

class Adder:
    def __init__(self, n): self.n = n
    def __call__(self, x): return x + self.n + OFFSET

def make():
    seen = [1, 2]
    return lambda x: x + len(seen)

header, frames = serialize({"lambda": make(), "instance": Adder(2), "class": Adder})
packed = msgpack.packb([header, [bytes(frame) for frame in frames]])
pathlib.Path(sys.argv[1]).write_bytes(packed)
"""

RECEIVING = """
import pathlib, sys, msgpack
from shmstore.serialization import deserialize

header, frames = msgpack.unpackb(pathlib.Path(sys.argv[1]).read_bytes())
got = deserialize(header, frames)
print(got["lambda"](1), got["instance"](0), got["class"](1)(1), type(got["instance"]).__module__)
"""


def test_functions_and_classes_of_a_script_travel_by_value(tmp_path: Path) -> None:
    """Lambdas, closures and classes of __main__ arrive where that script was never imported."""
    rooms.run_python(SENDING, tmp_path / "packed")
    assert rooms.run_python(RECEIVING, tmp_path / "packed") == "3 42 42 __main__\n"


def test_classes_of_a_module_travel_by_name() -> None:
    """Their code is not sent along."""
    _, [stream] = serialize(Point(1.0))
    assert b"test_serialization" in stream
    assert len(stream) < 200


class Unwilling:
    """An object that says why it cannot be pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [TypeError("no"), ValueError("no"), pickle.PicklingError("no")])
def test_object_that_cannot_be_pickled_is_an_error_with_its_type_and_reason(
    error: Exception,
) -> None:
    """The cause stays attached."""
    with pytest.raises(SerializationError, match=r"Unwilling.*'pickle'.*no") as caught:
        serialize(Unwilling(error), on_error="raise")
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is error
    assert caught.value.facts == {
        "path": "obj",
        "part_type": typename(Unwilling),
        "type": f"{__name__}.Unwilling",
        "family": "pickle",
    }


@pytest.mark.parametrize("error", [MemoryError(), OSError("disk"), KeyboardInterrupt()])
def test_want_of_resources_reaches_the_caller_as_it_is(error: BaseException) -> None:
    """It says nothing about the object."""
    with pytest.raises(type(error)) as caught:
        serialize(Unwilling(error), on_error="raise")
    assert caught.value is error


@pytest.mark.parametrize(
    "x", [sys.stdout, (n for n in range(3)), types.ModuleType("nowhere").__loader__.__class__]
)
def test_objects_of_the_process_itself_are_refused_or_travel_whole(x: Any) -> None:
    """A file or a generator cannot be sent; nothing in between happens."""
    try:
        back = travel(x)
    except ShmStoreError:
        return
    assert back is x


def test_stream_that_cannot_be_read_is_an_error_with_the_family() -> None:
    """The reason is in the message, the original error behind it."""
    with pytest.raises(DeserializationError, match="'pickle'") as caught:
        deserialize({"serializer": "pickle", "type": "dict"}, [b"no pickle"])
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    header, frames = serialize({"a": np.zeros(3)})
    with pytest.raises(DeserializationError, match="frames of"):
        deserialize(header, frames[:1])
    with pytest.raises(DeserializationError):
        deserialize(header, [])


# --- families ------------------------------------------------------------------------------------


@pytest.fixture
def family() -> Iterator[Callable[..., None]]:
    """Give `register_serialization_family`; what it adds is taken out at the end."""
    before = dict(families)
    yield register_serialization_family
    families.clear()
    families.update(before)


def test_family_added_is_asked_when_it_is_named(family: Callable[..., None]) -> None:
    """In the order of the names, and only then."""
    family("text", lambda x: ({}, [str(x).encode()]), lambda _, frames: bytes(frames[0]).decode())
    header, [frame] = serialize(12, ["text", "pickle"])
    assert (header["serializer"], frame) == ("text", b"12")
    assert deserialize(header, [frame]) == "12"
    assert serialize(12)[0]["serializer"] == "pickle"


def test_family_that_declines_leaves_the_object_to_the_next(family: Callable[..., None]) -> None:
    """By NotImplementedError, by its test of the type, or because it can only load."""
    asked = []

    def decline(x: Any) -> Any:
        asked.append(x)
        raise NotImplementedError

    family("declines", decline, lambda *_: None)
    family("loads", None, lambda *_: None)
    header, _ = serialize(1, ["declines", "pickle", "loads"])
    assert header["serializer"] == "pickle"
    assert asked == [1]
    with pytest.raises(SerializationError, match="no family of declines") as caught:
        serialize(1, ["declines"], on_error="raise")
    assert caught.value.facts["families"] == ("declines",)
    with pytest.raises(SerializationError, match="'loads' can only load"):
        serialize(1, ["loads", "pickle"], on_error="raise")


def test_family_that_fails_is_not_followed_by_another(family: Callable[..., None]) -> None:
    """An object that should be stored one way is not stored in another by accident."""
    family("broken", lambda _: 1 // 0, lambda *_: None)
    with pytest.raises(SerializationError, match=r"'broken'.*ZeroDivisionError"):
        serialize(1, ["broken", "pickle"], on_error="raise")


def test_family_that_wants_the_context_gets_it(family: Callable[..., None]) -> None:
    """Others are called without."""

    def dumps(x: Any, context: Any = None) -> Any:
        return {"context": context}, [bytes(x)]

    family("context", dumps, lambda header, _: header["context"])
    header, frames = serialize(b"", ["context"], context={"to": "there"})
    assert deserialize(header, frames) == {"to": "there"}


@pytest.mark.parametrize("names", [["pikcle"], ["custom", "nothing"], "pickle", [None]])
def test_serializers_that_are_unknown_are_a_value_error(names: Any) -> None:
    """The message shows what was given and what there is; a bare string is a slip."""
    with pytest.raises(ValueError, match=r"custom, pickle"):
        serialize(1, names)


@pytest.mark.parametrize("name", ["nothing", None, 3, ["pickle"], {"a": 1}])
def test_header_of_an_unknown_family_is_refused_with_its_name(name: Any) -> None:
    """Whatever stands there instead of a name."""
    words = "known here: custom, pickle" if name == "nothing" else "names the serializer"
    with pytest.raises(DeserializationError, match=words):
        deserialize({"serializer": name}, [])
    with pytest.raises(DeserializationError):
        deserialize({}, [])


def test_deserializers_that_do_not_accept_a_family_refuse_it_before_it_runs() -> None:
    """Pickle is code: who does not want it run says so."""
    header, frames = serialize(Colour.RED)
    with pytest.raises(DeserializationError, match=r"'pickle'.*not among") as caught:
        deserialize(header, frames, ("custom",))
    assert caught.value.facts["family"] == "pickle"
    assert deserialize(header, frames, DEFAULT_SERIALIZERS) is Colour.RED
    assert travel(np.arange(3), None, ("custom",)).tolist() == [0, 1, 2]


def test_deserialize_changes_neither_header_nor_frames() -> None:
    """Both may be kept and used again."""
    for x in (np.arange(3), {"a": np.zeros(5)}, "text"):
        header, frames = serialize(x)
        before = repr(header), [bytes(frame) for frame in frames]
        for _ in range(2):
            deserialize(header, frames)
        assert (repr(header), [bytes(frame) for frame in frames]) == before


# --- types ---------------------------------------------------------------------------------------


class Base:
    """A type with a handler."""


class Derived(Base):
    """A type without one."""


def test_type_name_is_qualified_but_for_builtins() -> None:
    """As the header of an object names its class."""
    assert typename(dict) == "dict"
    assert typename(np.ndarray) == "numpy.ndarray"
    assert typename(Base) == f"{__name__}.Base"
    assert typename(type("Odd", (), {"__module__": 3})) == "Odd"


def test_handler_serves_its_type_alone_unless_it_says_otherwise() -> None:
    """A subclass would lose what it adds."""
    dispatch = Dispatch("test", exact=True)
    dispatch.register(Base, print)
    assert dispatch.find(Base) is print
    assert dispatch.find(Derived) is None
    dispatch.register(Base, repr, subclasses=True)
    assert dispatch.find(Derived) is repr
    dispatch.register(Derived, str)
    assert dispatch.find(Derived) is str
    assert dispatch.find(Base) is repr
    assert dispatch.type_of(f"{__name__}.Derived") is Derived
    assert dispatch.type_of("nowhere.Thing") is None


def test_lazy_handlers_are_loaded_when_their_library_appears() -> None:
    """By type or by name, once, and not for other libraries."""
    dispatch = Dispatch("test")
    loaded = []

    def load() -> None:
        loaded.append(1)
        dispatch.register(decimal.Decimal, str)

    dispatch.register_lazy("decimal", load)
    assert dispatch.find(fractions.Fraction) is None
    assert dispatch.type_of("fractions.Fraction") is None
    assert loaded == []
    assert dispatch.type_of("decimal.Decimal") is decimal.Decimal
    assert dispatch.dispatch(decimal.Decimal) is str
    assert loaded == [1]


def test_lazy_handlers_that_fail_to_load_are_asked_again() -> None:
    """An import that failed once is not forgotten."""
    dispatch = Dispatch("test")
    tries = []

    def load() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ImportError("not yet")
        dispatch.register(decimal.Decimal, str)

    dispatch.register_lazy("decimal", load)
    with pytest.raises(ImportError):
        dispatch.dispatch(decimal.Decimal)
    assert dispatch.dispatch(decimal.Decimal) is str


def test_type_registered_by_a_user_travels_by_its_handler() -> None:
    """Its frames keep their flags; on a side without the handler the name is told."""

    class Image:
        def __init__(self, pixels: Any) -> None:
            self.pixels = pixels

    register_serialization(
        Image,
        lambda image: ({"kind": "grey"}, [image.pixels, memoryview(b"fixed")]),
        lambda header, frames: Image([header["kind"], *frames]),
    )
    header, frames = serialize(Image(bytearray(b"abc")))
    assert header["writeable"] == (True, False)
    back = deserialize(header, [bytes(frame) for frame in frames])
    kind, pixels, fixed = back.pixels
    assert (kind, bytes(pixels), bytes(fixed)) == ("grey", b"abc", b"fixed")
    assert (pixels.readonly, fixed.readonly) == (False, True)
    header["type"] = "elsewhere.Image"
    with pytest.raises(DeserializationError, match="no handler for objects of type 'elsewhere"):
        deserialize(header, frames)
    with pytest.raises(TypeError, match="expected a class"):
        register_serialization("Image", print, print)  # type: ignore[arg-type]


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"abc", b"abc"),
        (bytearray(b""), b""),
        (np.arange(3, dtype="<i2"), b"\0\0\1\0\2\0"),
        (np.arange(3, dtype=">i2"), b"\0\0\0\1\0\2"),
        (np.array([[1, 2], [3, 4]], "u1"), b"\1\2\3\4"),
        (np.asfortranarray(np.array([[1, 2], [3, 4]], "u1")), b"\1\3\2\4"),
        (np.arange(10, dtype="u1")[::3], b"\0\3\6\x09"),
        (np.arange(4, dtype="u1")[::-1], b"\3\2\1\0"),
        (np.array(7, "u1"), b"\7"),
        (np.array([(1, 2)], dtype=[("a", "u1"), ("b", "<u2")]), b"\1\2\0"),
        (np.array([1 + 2j], "c8"), np.array([1, 2], "f4").tobytes()),
        (np.zeros((0, 3)), b""),
        (memoryview(b"abcdef")[1:4], b"bcd"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_frame_is_seen_as_flat_bytes(frame: Any, expected: bytes, *, readonly: bool) -> None:
    """Whatever exports it, and with its flag."""
    view = memoryview(frame)
    readonly = readonly or view.readonly
    flat = ensure_memoryview(view.toreadonly() if readonly else frame)
    assert (flat.ndim, flat.format, flat.c_contiguous) == (1, "B", True)
    assert bytes(flat) == expected
    assert flat.readonly is readonly


def test_frame_that_is_contiguous_is_not_copied() -> None:
    """In C order or Fortran order."""
    for order in "CF":
        x = np.asarray(np.arange(6).reshape(2, 3), order=order)  # type: ignore[call-overload]
        assert np.shares_memory(np.frombuffer(ensure_memoryview(x), np.uint8), x)


def test_frames_conform_to_their_flags() -> None:
    """Read-only is undone by a copy, writeable by a view, and unknown is left alone."""
    frames = [b"a", bytearray(b"b"), bytearray(b"c"), b"d"]
    views = conform(frames, (True, False, None, None))
    assert [view.readonly for view in views] == [False, True, False, True]
    assert [bytes(view) for view in views] == [b"a", b"b", b"c", b"d"]
    assert conform(frames, None) == frames
    with pytest.raises(DeserializationError, match=r"writeable flags .* for 4 frames"):
        conform(frames, (True, True, True))


# --- in a store ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [np.arange(7, dtype="i2"), {"a": np.zeros(3), "b": np.ones((5, 5), order="F")}],
    ids=["array", "arrays in a dict"],
)
def test_frames_of_a_stored_object_begin_at_multiples_of_64(x: Any) -> None:
    """Vector instructions and other libraries find their data aligned."""
    with Store.create(capacity="1MiB") as store:
        for _ in range(3):
            back = store.put(x).get()
            arrays = [back] if isinstance(back, np.ndarray) else list(back.values())
            for array in arrays:
                assert array.ctypes.data % 64 == 0
            del array, arrays, back


@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
def test_structured_array_is_got_by_those_who_accept_no_pickle(mode: Any) -> None:
    """In every mode, and without running any."""
    x = np.array([(1, b"a")], dtype=[("n", ">i4"), ("s", "S3")])
    with Store.create(capacity="1MiB") as store:
        ref = store.put(x)
        assert ref.get(mode=mode, deserializers=("custom",)).tolist() == x.tolist()
        with pytest.raises(DeserializationError):
            ref.get(mode=mode, deserializers=("pickle",))
