"""One pass to a pickle and buffers beside it: flags, copies, protocols, what travels by value."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import gc
import pickle
import sys
import types
import uuid
import weakref
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import rooms
from family_helpers import travel
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.pickling import dumps, is_plain, loads


class Colour(enum.Enum):
    """An enum of a module that the other side can import."""

    RED = 1


@dataclasses.dataclass(frozen=True)
class Point:
    """A class of a module that the other side can import."""

    x: float
    y: Any = None


# --- values -------------------------------------------------------------------------------------

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
    if is_plain(x):
        header, [stream] = serialize(x, ["pickle"])
        assert header["writeable"] == ()
        assert pickle.loads(stream) == x


@pytest.mark.row("F06")
def test_value_that_contains_itself_comes_back_so() -> None:
    """A list in itself is neither plain nor endless."""
    x: list[Any] = [1]
    x.append(x)
    back = travel(x)
    assert back[1] is back
    shared = [1]
    left, right = travel((shared, shared))
    assert left is right


@pytest.mark.row("F05")
def test_value_keeps_the_class_of_builtin_subclasses() -> None:
    """A named tuple, an ordered dict or a bool is not made plainer."""
    pair = collections.namedtuple("pair", "a b")  # noqa: PYI024 - the one of collections is meant
    globals()["pair"] = pair
    pair.__module__ = __name__
    for x in (pair(1, 2), collections.OrderedDict(a=1), collections.Counter("aab"), True, 1):
        assert type(travel(x)) is type(x)
        assert travel(x) == x


@pytest.mark.row("S89", "S100")
@pytest.mark.parametrize(
    "x",
    [
        1 << 1000,
        -0.0,
        "text",
        "\ud800",
        None,
        True,
        Ellipsis,
        NotImplemented,
        dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=7),
        slice(1, None, 2),
        complex(0, -1),
        memoryview,
        np.float32(1.5),
        np.datetime64("2024-02-29", "D"),
        np.void(b"abc"),
        np.str_("ä"),
        np.dtype([("a", ">i4"), ("b", "S3")]),
        np.dtype("M8[25s]"),
        np.array((1, 2.5), dtype=[("a", "i4"), ("b", "f8")])[()],
    ],
    ids=repr,
)
def test_value_without_a_handler_is_one_small_pickle(x: Any) -> None:
    """Numbers, text, dates, scalars and dtypes of NumPy: nothing lies beside the stream."""
    header, frames = serialize(x)
    assert header["serializer"] == "pickle"
    assert len(frames) == 1
    back = travel(x)
    assert repr(back) == repr(x)
    assert type(back) is type(x)


# --- protocols and helpers ----------------------------------------------------------------------


@pytest.mark.row("S47", "S48")
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_dumps_below_protocol_5_leaves_nothing_beside_the_stream(protocol: int) -> None:
    """Also where a handler would; what is read-only stays so."""
    fixed = np.arange(4)
    fixed.flags.writeable = False
    buffers: list[Any] = []
    x = {"a": np.arange(3), "b": bytearray(b"x"), "c": fixed[::2]}
    stream = dumps(x, buffer_callback=buffers.append, protocol=protocol)
    assert buffers == []
    back = loads(stream)
    assert (back["a"].tolist(), back["b"], back["c"].tolist()) == ([0, 1, 2], b"x", [0, 2])


@pytest.mark.row("S47", "S48")
@pytest.mark.parametrize("protocol", [None, 5])
def test_dumps_gives_each_buffer_to_the_callback(protocol: int | None) -> None:
    """In the order in which they are needed; None is the highest protocol."""
    arrays = [np.arange(n) for n in (5, 6, 7)]
    buffers: list[Any] = []
    stream = dumps(arrays, buffer_callback=buffers.append, protocol=protocol)
    assert [memoryview(buffer).nbytes for buffer in buffers] == [40, 48, 56]
    assert stream[1] == 5
    for sent in (stream, memoryview(stream), bytearray(stream)):
        back = loads(sent, buffers=buffers)
        assert all(np.shares_memory(one, other) for one, other in zip(back, arrays, strict=True))
    assert [x.tolist() for x in loads(dumps(arrays))] == [x.tolist() for x in arrays]


@pytest.mark.row("S47")
def test_dumps_that_fails_raises_the_error_of_the_object() -> None:
    """The first one, once; no second way is tried."""
    tries = []

    class Broken:
        def __reduce__(self) -> Any:
            tries.append(1)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        dumps({"k": Broken()})
    assert tries == [1]


@pytest.mark.row("S48")
def test_stream_that_cannot_be_read_is_an_error_without_its_bytes(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Data of users does not end up in logs."""
    secret = b"(secret" * 100
    with pytest.raises(DeserializationError, match="'pickle'") as caught:
        deserialize({"serializer": "pickle", "type": "dict"}, [secret])
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    assert "secret" not in str(caught.value)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    with pytest.raises(pickle.UnpicklingError):
        loads(secret)


@pytest.mark.row("S43", "F21")
def test_stream_without_its_buffers_is_refused() -> None:
    """Cut, or without any frame."""
    header, frames = serialize({"a": np.zeros(3)})
    with pytest.raises(DeserializationError, match="frames of"):
        deserialize(header, frames[:1])
    with pytest.raises(DeserializationError):
        deserialize(header, [])
    with pytest.raises(CorruptHeaderError, match="at least one frame"):
        deserialize({"serializer": "pickle"}, [])


@pytest.mark.row("S50")
@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("view", ["flat", "empty", "strided", "fortran"])
def test_object_that_wraps_a_view_in_a_pickle_buffer_round_trips(protocol: int, view: str) -> None:
    """Contiguous, empty or not contiguous; below protocol 5 in the stream."""
    data = np.arange(12, dtype="u1").reshape(3, 4)
    views = {
        "flat": data.data,
        "empty": data[:0].data,
        "fortran": np.asfortranarray(data).data,
        "strided": data[:, ::2].data,
    }
    x = Wrapping(views[view])
    if view == "strided":
        with pytest.raises(SerializationError, match="contiguous"):
            serialize(x, on_error="raise", context={"pickle-protocol": protocol})
        return
    header, frames = serialize(x, on_error="raise", context={"pickle-protocol": protocol})
    assert len(frames) == (2 if protocol == 5 else 1)
    back = deserialize(header, [bytearray(frame) for frame in frames])
    in_memory_order = views[view].tobytes("A")
    assert bytes(ensure_memoryview(back.view)) == in_memory_order


class Wrapping:
    """Its own reduction wraps a memoryview in a PickleBuffer."""

    def __init__(self, view: Any) -> None:
        self.view = view

    def __reduce_ex__(self, protocol: int) -> Any:
        """Return a buffer beside the stream, or the bytes in it."""
        if protocol >= 5:
            return Wrapping, (pickle.PickleBuffer(self.view),)
        if not self.view.contiguous:
            raise BufferError("not contiguous")
        return Wrapping, (self.view.tobytes("A"),)


# --- what travels by value ----------------------------------------------------------------------

SENDING = """
import pathlib, sys
from shmstore.serialization import serialize
from shmstore.serialization.msgpacking import packb

OFFSET = 40

class Adder:
    def __init__(self, n): self.n = n
    def __call__(self, x): return x + self.n + OFFSET

def make():
    seen = [1, 2]
    return lambda x: x + len(seen)

def recursive(n): return 1 if n == 0 else n * recursive(n - 1)

sent = {"lambda": make(), "instance": Adder(2), "class": Adder, "function": recursive}
header, frames = serialize(sent, on_error="raise")
packed = packb([header, [bytes(frame) for frame in frames]])
pathlib.Path(sys.argv[1]).write_bytes(packed)
"""

RECEIVING = """
import pathlib, sys
from shmstore.serialization import deserialize
from shmstore.serialization.msgpacking import unpackb

header, frames = unpackb(pathlib.Path(sys.argv[1]).read_bytes())
got = deserialize(header, frames)
print(got["lambda"](1), got["instance"](0), got["class"](1)(1), got["function"](5))
print(type(got["instance"]).__module__)
"""


@pytest.mark.row("S49", "F22")
def test_functions_and_classes_of_a_script_travel_by_value(tmp_path: Path) -> None:
    """Lambdas, closures and classes of __main__ arrive where that script was never imported."""
    rooms.run_python(SENDING, tmp_path / "packed")
    assert rooms.run_python(RECEIVING, tmp_path / "packed") == "3 42 42 120\n__main__\n"


@pytest.mark.row("S49")
def test_classes_of_a_module_travel_by_name() -> None:
    """Their code is not sent along."""
    _, [stream] = serialize(Point(1.0))
    assert b"test_pickling" in stream
    assert len(stream) < 200


@pytest.mark.row("S47", "S49")
def test_module_registered_by_value_is_sent_along() -> None:
    """As cloudpickle does it."""
    module = types.ModuleType("made_by_a_test")
    exec("def double(x): return 2 * x", module.__dict__)
    sys.modules["made_by_a_test"] = module
    try:
        cloudpickle.register_pickle_by_value(module)
        try:
            header, frames = serialize([module.double])
        finally:
            cloudpickle.unregister_pickle_by_value(module)
    finally:
        del sys.modules["made_by_a_test"]
    [back] = deserialize(header, frames)
    assert back(21) == 42


@pytest.mark.row("S49")
def test_functions_that_travelled_may_be_collected_on_both_sides() -> None:
    """Neither the original nor the copy is kept."""

    def make() -> Any:
        big = np.zeros(10)
        return lambda: big

    function = make()
    back = travel(function)
    watched = [weakref.ref(function), weakref.ref(back), weakref.ref(back())]
    del function, back
    gc.collect()
    assert [ref() for ref in watched] == [None, None, None]


@pytest.mark.row("S49", "F22")
def test_functions_of_a_script_come_out_of_a_store_in_another_one(store: Store) -> None:
    """Put by one process, got by an unrelated one."""
    put = """
import sys, shmstore
FACTOR = 3
class Scaled:
    def __init__(self, x): self.x = x
    def get(self): return self.x * FACTOR
store = shmstore.Store.attach(sys.argv[1])
store.put({"f": lambda y: y * FACTOR, "o": Scaled(5)}, key="k")
"""
    got = """
import sys, shmstore
store = shmstore.Store.attach(sys.argv[1])
print(store["k"]["f"](2), store["k"]["o"].get())
"""
    rooms.run_python(put, store.path)
    assert rooms.run_python(got, store.path) == "6 15\n"
