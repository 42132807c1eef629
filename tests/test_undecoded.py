"""Objects as header and frames: not decoded, as one buffer, as a string of bytes."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from stores import address

from shmstore import CorruptHeaderError, ObjectNotFoundError, Store
from shmstore.serialization import Serialized, deserialize, serialize

OBJECTS: dict[str, Any] = {
    "small": {"a": 1},
    "array": np.arange(1000.0),
    "strided": np.arange(100).reshape(10, 10)[::2, ::3],
    "nested": {"x": np.arange(500), "y": [np.ones(3), b"text" * 2000]},
    "bytes": b"0123456789" * 1000,
    "masked": np.ma.masked_array([1, 2, 3], [False, True, False]),
    "nothing": None,
}


def same(x: Any, y: Any) -> bool:
    """Compare objects that may have arrays in them."""
    return repr(x) == repr(y) and type(x) is type(y)


@pytest.fixture(params=OBJECTS)
def obj(request: pytest.FixtureRequest) -> Any:
    """Give each of the objects."""
    return OBJECTS[request.param]


@pytest.mark.row("S11", "S04")
@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
def test_object_got_undecoded_is_decoded_later(store: Store, obj: Any, mode: str) -> None:
    """Header and frames are those of `serialize`, in every mode; a key is no part of them."""
    store["k"] = obj
    found = store.get("k", mode=mode, decode=False)
    assert type(found) is Serialized
    assert "key" not in found.header
    assert same(deserialize(found.header, found.frames), obj)
    assert same(deserialize(found.header, found.frames), obj)


@pytest.mark.row("S04")
def test_object_serialized_before_is_stored_as_it_is(store: Store, obj: Any) -> None:
    """From `serialize` and from a get alike, and the header that was given is not changed."""
    header, frames = serialize(obj, on_error="raise")
    before = dict(header)
    first = store.put(Serialized(header, frames))
    assert header == before
    assert same(first.get(), obj)
    second = store.put(store.get(first, decode=False), key="again")
    assert same(store["again"], obj)
    assert store.info(second).type == store.info(first).type


@pytest.mark.row("S44")
def test_serialized_frames_that_lost_their_flags_are_stored_with_them(store: Store) -> None:
    """Bytes are read-only, but the header remembers that the array was not."""
    for x in (np.arange(100), {"a": np.arange(100)}):
        header, frames = serialize(x)
        ref = store.put(Serialized(header, [bytes(memoryview(f).cast("B")) for f in frames]))
        found = ref.get()
        found = found["a"] if isinstance(found, dict) else found
        assert found.flags.writeable


def test_container_taken_apart_is_stored_and_built_in_every_mode(store: Store) -> None:
    """Also where no pickle is accepted, and with the flags of its elements."""
    locked = np.arange(10)
    locked.flags.writeable = False
    x = [np.arange(5), {"a": locked, "b": b"c"}]
    ref = store.put(x, serializers=("custom", "msgpack"))
    for mode, flags in {
        "shared": (True, False),
        "readonly": (False, False),
        "private": (True, True),
        "copy": (True, False),
    }.items():
        found = store.get(ref, mode=mode, deserializers=("custom", "msgpack"))
        assert same(found, x)
        assert (found[0].flags.writeable, found[1]["a"].flags.writeable) == flags


# --- one buffer ----------------------------------------------------------------------------------


@pytest.mark.row("S84", "S85")
@pytest.mark.parametrize(
    "x",
    [b"abc" * 5000, bytearray(b"abc" * 5000), array.array("d", range(3000)), np.arange(9000)],
    ids=lambda x: type(x).__name__,
)
def test_view_of_what_owns_its_bytes_copies_nothing(store: Store, x: Any) -> None:
    """It lies on the mapping, is as writeable as the object was, and pins it."""
    ref = store.put(x)
    view = store.get_view(ref)
    assert bytes(view) == bytes(memoryview(x).cast("B"))
    assert view.readonly is memoryview(x).readonly
    again = store.get_view(ref)
    if not view.readonly:
        view[0] ^= 255
    assert view == again
    assert address(np.frombuffer(view, np.uint8)) % 64 == 0
    ref.delete()
    store.put(bytes(len(view)))
    assert view == again


@pytest.mark.row("S84")
def test_view_of_small_bytes_is_there_too(store: Store) -> None:
    """They lie in the index, so that the view is one of a copy."""
    assert store.get_view(store.put(b"abc")) == b"abc"


class Named(bytearray):
    """A subclass of a user."""


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize(
    "x", [b"abc", bytearray(b"abc"), Named(9000)], ids=lambda x: type(x).__name__
)
def test_view_of_a_copy_loses_no_write(store: Store, x: Any, *, readonly: bool) -> None:
    """It cannot be written, but in the modes whose writes stay with their reader."""
    ref = store.put(x, readonly=readonly)
    for mode in ("shared", "readonly"):
        view = store.get_view(ref, mode=mode)
        assert view == x
        assert view.readonly
    view = store.get_view(ref, mode="private")
    view[0] ^= 255
    assert bytes(view[1:]) == x[1:]
    assert store.get_view(ref) == x
    view = store.get_view(ref, mode="copy")
    assert (view, view.readonly) == (x, type(x) is bytes)


def test_view_of_an_array_in_a_pickle_lies_on_the_mapping(store: Store) -> None:
    """Only who writes to it in mode private has a copy."""
    ref = store.put(np.zeros(1000), serializers=("pickle",))
    shared, readonly = store.get_view(ref), store.get_view(ref, mode="readonly")
    shared[0] = 7
    assert (readonly[0], readonly.readonly) == (7, True)
    frozen = store.put(np.zeros(1000), serializers=("pickle",), readonly=True)
    assert store.get_view(frozen).readonly
    private = store.get_view(frozen, mode="private")
    private[0] = 7
    assert store.get_view(frozen)[0] == 0


def test_view_of_what_is_no_buffer_is_a_type_error(store: Store) -> None:
    """The message names the type."""
    with pytest.raises(TypeError, match="dict is not one buffer"):
        store.get_view(store.put({"a": np.arange(1000)}))
    with pytest.raises(ObjectNotFoundError):
        store.get_view("nothing")


# --- strings of bytes ----------------------------------------------------------------------------


@pytest.mark.row("S74", "S75")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_object_dumped_is_loaded_into_another_store(
    make_store: Any, obj: Any, compression: str | None
) -> None:
    """Without being decoded on the way, compressed or not, with the flags of its buffers."""
    one, other = make_store(), make_store()
    data = one.dump_bytes(one.put(obj, compression=compression), compression=compression)
    assert same(other.load_bytes(data, key="k").get(), obj)
    writeable = getattr(getattr(obj, "flags", None), "writeable", None)
    assert getattr(getattr(other["k"], "flags", None), "writeable", None) == writeable


@pytest.mark.row("F21")
def test_bytes_that_were_damaged_are_not_loaded(store: Store) -> None:
    """Cut, extended or changed: one error, and the store stays empty."""
    data = store.dump_bytes(store.put(np.arange(1000), key="k"))
    store.clear()
    for damaged in (data[:-1], data + b"0", data[:500] + b"?" + data[501:], b"", b"nonsense"):
        with pytest.raises(CorruptHeaderError):
            store.load_bytes(damaged)
    assert store.stats().objects == 0
