"""What lies beside a pickle: whose memory it is, who may write it, and by whom it was made."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers, travel
from roundtrips import address

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
from shmstore.serialization import (
    deserialize,
    deserialize_parts,
    register_reducer,
    register_serialization,
    serialize,
    serialize_parts,
)
from shmstore.serialization.frames import Planned, conform
from shmstore.serialization.pickling import out_of_band

MODES = ("shared", "readonly", "private", "copy")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Forget which types were registered."""
    with own_handlers():
        yield


def readonly(x: Any) -> Any:
    """Return an array after forbidding to write it."""
    x.flags.writeable = False
    return x


# --- flags and copies ---------------------------------------------------------------------------


@pytest.mark.row("S43")
def test_arrays_inside_of_objects_are_frames_of_their_own() -> None:
    """Their memory lies beside the stream, in the order of the stream, each with its flag."""
    arrays = [np.zeros(1000), readonly(np.arange(5)), np.asfortranarray(np.ones((2, 3)))]
    header, frames = serialize({"a": arrays[0], "b": arrays[1:]})
    assert header["serializer"] == "pickle"
    assert header["writeable"] == (True, False, True)
    assert len(frames) == 4
    assert len(frames[0]) < 1000
    for frame, array in zip(frames[1:], arrays, strict=True):
        view = memoryview(frame)
        assert (view.ndim, view.contiguous) == (1, True)
        assert np.shares_memory(np.frombuffer(view, np.uint8), array)
    back = travel({"a": arrays[0], "b": arrays[1:]})
    assert (back["a"].flags.writeable, back["b"][0].flags.writeable) == (True, False)
    assert back["b"][0].tolist() == [0, 1, 2, 3, 4]
    assert back["b"][1].flags.f_contiguous


FRAMES = {
    "bytes": lambda: bytes(range(64)),
    "bytearray": lambda: bytearray(range(64)),
    "read-only view": lambda: memoryview(bytearray(range(64))).toreadonly(),
    "writeable view": lambda: memoryview(bytearray(range(64))),
}


@pytest.mark.row("S44", "S43", "F30")
@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("in_list", [True, False], ids=["pickle", "custom"])
def test_frame_is_copied_only_where_it_must_become_writeable(
    kind: str, *, flag: bool | None, in_list: bool
) -> None:
    """The flag wins over the frame; making it read-only costs a view."""
    x = np.zeros(8)
    header, frames = serialize([x] if in_list else x)
    frame = FRAMES[kind]()
    back = deserialize({**header, "writeable": (flag,)}, [*frames[:-1], frame])
    back = back[0] if in_list else back
    was_readonly = memoryview(frame).readonly
    assert back.flags.writeable is (not was_readonly if flag is None else flag)
    copied = bool(flag) and was_readonly
    assert (back.ctypes.data != address(frame)) is copied
    assert back.tobytes() == bytes(range(64))


@pytest.mark.row("S44", "F30")
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("nested", [True, False], ids=["pickle", "custom"])
def test_array_in_a_store_is_never_copied_to_satisfy_its_flag(
    store: Store, *, flag: bool, nested: bool
) -> None:
    """The mapping is chosen to fit: two gets of one mode look at one memory."""
    x = np.arange(100_000)
    x.flags.writeable = flag
    ref = store.put([x] if nested else x)

    def get(mode: str) -> Any:
        found = ref.get(mode=mode)
        return found[0] if nested else found

    for mode in ("shared", "readonly"):
        one, other = get(mode), get(mode)
        assert one.ctypes.data == other.ctypes.data
        assert one.flags.writeable is (flag and mode == "shared")
    private = get("private")
    assert private.flags.writeable
    private[:] = 7
    assert np.array_equal(get("shared"), x)
    shared = get("shared")
    if flag:
        shared[0] = 5
        assert get("readonly")[0] == 5
    del one, other, private, shared
    gc.collect()


@pytest.mark.row("S45")
def test_missing_flags_are_unknown() -> None:
    """Frames are then taken as they are."""
    header, frames = serialize([np.zeros(2), np.zeros(3)])
    rest = {key: value for key, value in header.items() if key != "writeable"}
    back = deserialize(rest, [frames[0], bytes(frames[1]), bytearray(frames[2])])
    assert [x.flags.writeable for x in back] == [False, True]


@pytest.mark.row("S45", "F21")
@pytest.mark.parametrize("flags", [(), (True,), (True, True, True), "ab", 3, {"a": 1, "b": 2}])
def test_flags_of_another_number_are_refused(flags: Any) -> None:
    """No buffer is dropped in silence."""
    header, frames = serialize([np.zeros(2), np.zeros(3)])
    with pytest.raises(CorruptHeaderError, match="writeable flags"):
        deserialize({**header, "writeable": flags}, frames)


@pytest.mark.row("S46")
@pytest.mark.parametrize("flag", [True, False])
def test_empty_buffer_holds_nothing_of_the_original_and_keeps_its_flag(*, flag: bool) -> None:
    """Whatever it was a part of may go."""
    base = bytearray(b"abc")
    view = memoryview(base)[1:1]
    [conformed] = conform([view], [flag])
    view.release()
    base.extend(b"def")  # a BufferError if somebody still looked at it
    assert conformed.readonly is not flag
    x = np.zeros(0)
    x.flags.writeable = flag
    for back in (travel(x), travel([x])[0], travel(np.zeros((0, 3)))[:, 0] if flag else travel(x)):
        assert back.flags.writeable is flag


@pytest.mark.row("S46")
def test_empty_array_needs_no_room_in_a_store(store: Store) -> None:
    """Its header says all."""
    ref = store.put([np.zeros((0, 3))])
    assert ref.get()[0].shape == (0, 3)
    assert store.info(ref).nbytes < 1000


@pytest.mark.row("F26", "S90")
def test_arrays_inside_of_an_object_array_keep_their_flags() -> None:
    """At any depth."""
    inner = np.empty(2, object)
    inner[:] = [readonly(np.arange(2)), np.arange(3)]
    x = np.array([readonly(np.arange(4)), np.arange(5), inner, None], object)
    for back in (travel(x), travel({"k": x})["k"]):
        assert [back[n].flags.writeable for n in range(2)] == [False, True]
        assert [part.flags.writeable for part in back[2]] == [False, True]
        assert back[0].tolist() == [0, 1, 2, 3]


@pytest.mark.row("S43", "F27")
def test_array_in_neither_order_is_written_once_beside_the_stream(store: Store) -> None:
    """Also inside of objects, with its flag."""
    x = np.arange(100_000).reshape(1000, 100)[:, ::2]
    fixed = readonly(x[::2])
    back = store.put({"a": x, "b": fixed}).get()
    assert np.array_equal(back["a"], x)
    assert np.array_equal(back["b"], fixed)
    assert [back[k].flags.writeable for k in "ab"] == [True, False]
    header, frames = serialize([x, fixed, readonly(np.arange(3))])
    assert (len(frames), header["writeable"]) == (4, (True, False, False))
    assert len(frames[0]) < 1000
    del back
    gc.collect()


@pytest.mark.row("S43", "S48")
@pytest.mark.parametrize("mode", MODES)
def test_pickle_with_buffers_is_read_in_each_mode(store: Store, mode: str) -> None:
    """Equal in all of them."""
    x = {"a": np.arange(1000), "b": pickle.PickleBuffer(b"x" * 100)}
    found = store.put(x).get(mode=mode)
    assert np.array_equal(found["a"], x["a"])
    assert bytes(found["b"]) == b"x" * 100
    del found
    gc.collect()


# --- handlers inside of pickles -----------------------------------------------------------------


class Reader:
    """Refuses pickle, has a handler in these tests."""

    def __init__(self, data: Any, other: Any = None) -> None:
        self.data = data
        self.other = other
        self.asked = 0

    def __reduce__(self) -> Any:
        self.asked += 1
        raise TypeError("not by pickle")


def register_reader() -> None:
    """Register readers by their data."""
    register_serialization(
        Reader,
        lambda x: ({"kind": "r"}, [memoryview(x.data), b"fixed"]),
        lambda header, frames: Reader((header["kind"], *frames)),
    )


@pytest.mark.row("F42", "F22", "S47")
def test_object_that_refuses_pickle_but_has_a_handler_travels_inside_of_others() -> None:
    """Its frames lie beside the stream, with their flags; it is not even asked for a pickle."""
    with pytest.raises(SerializationError, match="not by pickle"):
        serialize({"k": Reader(b"")}, on_error="raise")
    register_reader()
    reader = Reader(bytearray(b"abc"))
    x = {"k": [reader, np.zeros(2)], "again": reader}
    header, frames = serialize(x, on_error="raise")
    assert header["writeable"] == (True, False, True)
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), np.frombuffer(reader.data, "u1"))
    back = travel(x)
    kind, data, fixed = back["k"][0].data
    assert (kind, bytes(data), bytes(fixed)) == ("r", b"abc", b"fixed")
    assert (data.readonly, fixed.readonly) == (False, True)
    assert back["again"] is back["k"][0]
    assert reader.asked == 0


@pytest.mark.row("F42")
def test_handler_inside_of_handlers_and_attributes_is_found() -> None:
    """In attributes of objects, in parts of other handlers, in keys and sets."""
    register_reader()
    register_serialization(Box, serialize_box, deserialize_box)
    box = Box([Box(Reader(b"1")), {Reader(b"2"): Holder(Reader(b"3"))}])
    for x in (box, [box], {"k": Holder(box)}):
        back = travel(x)
        back = back[0] if isinstance(back, list) else back
        back = back["k"].part if isinstance(back, dict) else back
        inner, mapping = back.content
        [(key, held)] = mapping.items()
        found = [inner.content, key, held.part]
        assert [bytes(reader.data[1]) for reader in found] == [b"1", b"2", b"3"]


class Holder:
    """An ordinary object."""

    def __init__(self, part: Any) -> None:
        self.part = part


class Box:
    """Has a handler with parts in these tests."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        raise TypeError("not by pickle")


def serialize_box(x: Box, context: Any = None) -> Any:
    """Return the content as a part."""
    headers, frames = serialize_parts({"content": x.content}, context)
    return {"parts": headers}, frames


def deserialize_box(header: Any, frames: Any) -> Box:
    """Return a box of the part."""
    return Box(deserialize_parts(header["parts"], frames)["content"])


@pytest.mark.row("F06")
def test_handler_that_meets_itself_in_its_parts_is_an_error_of_ours() -> None:
    """No overflow of the stack."""
    register_serialization(Box, serialize_box, deserialize_box)
    box = Box(None)
    box.content = [box]
    with pytest.raises(SerializationError):
        serialize(box, on_error="raise")


@pytest.mark.row("F42")
def test_handler_that_declines_leaves_the_object_to_its_own_pickle() -> None:
    """Also when it is nested."""

    def decline(_: Any) -> Any:
        raise NotImplementedError

    register_serialization(Holder, decline, decline)
    assert travel([Holder(1)])[0].part == 1


@pytest.mark.row("F22", "F06")
def test_reducer_keeps_what_is_shared_and_cycles() -> None:
    """It has precedence over the handler inside of pickles; its buffers lie beside the stream."""
    register_serialization(Box, serialize_box, deserialize_box)

    def reduce(box: Box) -> Any:
        state = {"content": box.content}
        return object.__new__, (Box,), state

    register_reducer(Box, reduce)
    box = Box(None)
    box.content = [box, box]
    back = travel([box])[0]
    assert back.content[0] is back.content[1] is back


@pytest.mark.row("S43", "F22")
@pytest.mark.parametrize("protocol", [4, 5])
def test_reducer_may_promise_bytes(protocol: int) -> None:
    """They are made once, at their destination; below protocol 5 in the stream."""
    made = []

    def write_into(target: memoryview) -> None:
        made.append(len(target))
        target[:] = b"made"

    def reduce(_: Any) -> Any:
        frame = Planned(4, write_into, writeable=False)
        return make_box, (out_of_band(frame), out_of_band(bytearray(b"real")))

    register_reducer(Box, reduce)
    back = travel([Box(0)], context={"pickle-protocol": protocol})[0]
    assert bytes(back.content[0]) == b"made"
    assert bytes(back.content[1]) == b"real"
    assert memoryview(back.content[0]).readonly
    assert not memoryview(back.content[1]).readonly
    assert made == [4]
    with Store.create(capacity="1MiB") as store:
        assert bytes(store.put([Box(0)]).get(mode="copy")[0].content[0]) == b"made"
    assert made == [4, 4]


def make_box(*content: Any) -> Box:
    """Return a box; pickles of these tests name it."""
    return Box(content)


@pytest.mark.row("F22")
def test_object_is_asked_once_whatever_its_bytes_look_like() -> None:
    """One pass: text about __main__ does not start another."""
    asked = []

    class Asked:
        def __init__(self, text: Any) -> None:
            self.text = text

        def __reduce__(self) -> Any:
            asked.append(1)
            return str, (self.text,)

    back = travel([Asked("__main__"), Asked("x" * 2000), np.zeros(3)])
    assert back[:2] == ["__main__", "x" * 2000]
    assert asked == [1, 1]


@pytest.mark.row("S27", "F42")
def test_nested_object_without_a_handler_on_the_reading_side_is_told() -> None:
    """The pickle names a class that nobody serves any more."""
    with own_handlers():
        register_reader()
        header, frames = serialize([Reader(b"x")], on_error="raise")
    with pytest.raises(DeserializationError, match="no handler for objects of type"):
        deserialize(header, frames)
