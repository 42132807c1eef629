"""Which handler takes an object in the family "custom": ours, yours, that of another package."""

from __future__ import annotations

import array
import collections
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms
from family_helpers import own_handlers, plain_header, travel

import shmstore.serialization
from shmstore.errors import (
    CorruptHeaderError,
    DeserializationError,
    FamilyRefusedError,
    SerializationError,
)
from shmstore.serialization import (
    custom_deserialize,
    custom_serialize,
    deserialize,
    has_custom_handler,
    register_serialization,
    serialize,
)

SAFE = ("custom", "msgpack")


class Base:
    """A type without a handler."""


class Image:
    """A type that tests register."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels


class Photo(Image):
    """It can be imported, so that its class can be pickled by name."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Forget which types were registered."""
    with own_handlers():
        yield


# --- subclasses ----------------------------------------------------------------------------------


class MyBytes(bytes):
    """A subclass that can be imported."""


class MyBytearray(bytearray):
    """As MyBytes."""


class MyArray(array.array):
    """As MyBytes."""


class MyNdarray(np.ndarray):
    """As MyBytes."""


class MyDict(dict):
    """As MyBytes."""


class MyList(list):
    """As MyBytes."""


class MyTuple(tuple):
    """As MyBytes."""

    __slots__ = ()


@pytest.mark.row("F05", "S30", "S84", "S85", "S86", "S97")
@pytest.mark.parametrize("iterate", [True, None])
@pytest.mark.parametrize(
    "x",
    [
        MyBytes(b"abc"),
        MyBytearray(b"abc"),
        MyArray("h", [1, 2]),
        np.arange(3).view(MyNdarray),
        MyDict(a=1),
        MyList([1]),
        MyTuple((1,)),
        collections.OrderedDict(a=1),
        collections.Counter("aab"),
        collections.defaultdict(list, a=[1]),
        True,
    ],
    ids=lambda x: type(x).__name__,
)
def test_subclass_of_a_type_with_a_handler_keeps_its_class(x: Any, *, iterate: Any) -> None:
    """Alone, in a container that is pickled, and in one that is taken apart."""
    backs = (travel(x, iterate_collection=iterate), travel([x], iterate_collection=iterate)[0])
    for back in backs:
        assert type(back) is type(x)
        assert np.array_equal(back, x) if isinstance(x, np.ndarray) else back == x


# --- the type registry ---------------------------------------------------------------------------


def register_image(*, subclasses: bool = False) -> None:
    """Register images by their pixels."""
    register_serialization(
        Image,
        lambda image: ({"kind": "grey"}, [image.pixels]),
        lambda header, frames, cls=Image: cls([header["kind"], bytes(frames[0])]),
        subclasses=subclasses,
    )


@pytest.mark.row("S23", "S24", "S26", "F35")
def test_type_registered_by_a_user_travels_by_its_handler() -> None:
    """The header has the readable name and what the handler said; no class is pickled into it."""
    register_image()
    header, frames = serialize(Image(b"abc"))
    assert header["serializer"] == "custom"
    assert header["type"] == f"{__name__}.Image"
    assert header["sub-header"] == {"kind": "grey"}
    assert b"cloudpickle" not in repr(header).encode()
    assert not any(isinstance(value, bytes) for value in header.values())
    back = deserialize(plain_header(header), frames, SAFE)
    assert type(back) is Image
    assert back.pixels == ["grey", b"abc"]
    assert custom_serialize.find(Image) is not None
    assert custom_deserialize.find(Image) is not None


@pytest.mark.row("S23", "S26", "S44")
def test_frames_of_a_handler_keep_their_flags() -> None:
    """A read-only frame is read-only for readers, whatever brought it to them."""
    register_serialization(
        Image,
        lambda image: ({}, [image.pixels, memoryview(b"fixed")]),
        lambda _, frames: Image(frames),
    )
    header, frames = serialize(Image(bytearray(b"abc")))
    assert header["writeable"] == (True, False)
    for kind in (bytes, bytearray):
        pixels, fixed = deserialize(header, [kind(frame) for frame in frames]).pixels
        assert (bytes(pixels), bytes(fixed)) == (b"abc", b"fixed")
        assert (pixels.readonly, fixed.readonly) == (False, True)


@pytest.mark.row("S23", "S15")
def test_handler_with_a_parameter_context_gets_it() -> None:
    """Also when its object is inside of another one."""
    register_serialization(
        Image,
        lambda _, context: ({"context": context}, []),
        lambda header, _: Image(header["context"]),
    )
    assert travel(Image(0), context={"a": 1}).pixels == {"a": 1}
    assert travel([Image(0)], context={"a": 1})[0].pixels == {"a": 1}


@pytest.mark.row("S24")
@pytest.mark.parametrize("cls", ["Image", f"{__name__}.Image", 3, None, Image(1)])
def test_registering_something_else_than_a_class_is_a_type_error(cls: Any) -> None:
    """A name is answered with where names go."""
    with pytest.raises(TypeError, match=r"expected a class.*register_lazy"):
        register_serialization(cls, print, print)


@pytest.mark.row("S24")
def test_type_registered_again_is_served_by_the_last_one() -> None:
    """Also one that the library serves by itself."""
    register_serialization(
        bytearray, lambda x: ({"n": len(x)}, []), lambda header, _: bytearray(header["n"])
    )
    assert travel(bytearray(b"abc")) == bytearray(3)


@pytest.mark.row("S25")
def test_retired_way_to_register_is_not_there() -> None:
    """Lazy handlers have one way: `Dispatch.register_lazy`, or an entry point."""
    assert not [name for name in dir(shmstore.serialization) if "serialization_lazy" in name]
    assert not [name for name in dir(shmstore.serialization.registry) if name.endswith("ion_lazy")]


@pytest.mark.row("S26")
def test_type_without_a_handler_is_declined_by_name() -> None:
    """What a handler raises is not declining, unless it is NotImplementedError."""
    with pytest.raises(NotImplementedError, match=f"{__name__}.Base"):
        shmstore.serialization.registry.custom_dumps(Base())
    register_serialization(Image, lambda _: 1 // 0, print)
    with pytest.raises(SerializationError, match="ZeroDivisionError"):
        serialize(Image(1), on_error="raise")

    def decline(_: Any) -> Any:
        raise NotImplementedError

    register_serialization(Image, decline, print)
    assert serialize(Image(1))[0]["serializer"] == "pickle"
    assert travel([Image(1)])[0].pixels == 1


@pytest.mark.row("S26", "S27", "F05", "F35")
def test_subclass_that_a_handler_answers_for_comes_back_as_itself() -> None:
    """By name where its module was imported; else as a pickled class, which some refuse."""
    register_image(subclasses=True)

    class Local(Image):
        pass

    for cls in (Photo, Local):
        header, frames = serialize(cls(b"abc"))
        assert header["serializer"] == "custom"
        assert type(travel([cls(b"abc")])[0]) is cls
        assert type(deserialize(header, frames)) is cls
    with pytest.raises(FamilyRefusedError, match="class"):
        deserialize(header, frames, SAFE)
    header, frames = serialize(Photo(b"abc"))
    assert type(deserialize(header, frames, SAFE)) is Photo


@pytest.mark.row("S27")
def test_class_of_a_header_must_be_the_one_it_names() -> None:
    """A name that is shown is not another than what is built."""
    register_image(subclasses=True)
    header, frames = serialize(Photo(b"abc"))
    with pytest.raises(CorruptHeaderError, match="holds the class"):
        deserialize({**header, "type": "elsewhere.Photo"}, frames)
    for forged in ({"type": 3}, {"type": None}, {"type": "elsewhere.Photo", "class": "x"}):
        with pytest.raises(DeserializationError):
            deserialize({**header, **forged}, frames)


@pytest.mark.row("S27")
def test_type_without_a_handler_on_the_reading_side_is_told() -> None:
    """With what to do; nothing is imported on the word of a header."""
    register_image()
    header, frames = serialize(Image(b"x"))
    assert "this_would_be_imported" not in sys.modules
    for name in ("elsewhere.Image", "this_would_be_imported.X", "json.JSONDecoder"):
        with pytest.raises(DeserializationError, match=f"no handler for objects of type '{name}"):
            deserialize({**header, "type": name}, frames)


@pytest.mark.row("S29", "F06", "F07")
def test_has_custom_handler_looks_at_every_part() -> None:
    """At any depth, through containers that contain themselves; empty ones have none."""
    x: list[Any] = [1]
    x.append(x)
    assert not has_custom_handler(x)
    x.append({"k": (np.zeros(1),)})
    assert has_custom_handler(x)
    assert has_custom_handler([1, np.zeros(1)])
    assert has_custom_handler([np.zeros(1), 1])
    assert not any(map(has_custom_handler, ([], {}, (), set(), 1, "a", [[]], {"a": {}})))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not has_custom_handler(deep)
    assert not has_custom_handler(MyList([np.zeros(1)]))


# --- other packages -----------------------------------------------------------------------------

LIBRARY = """
class Thing:
    def __init__(self, n): self.n = n
    def __reduce__(self): raise TypeError("not by pickle")
"""

HANDLERS = """
print("loaded")
def register():
    import thinglib
    from shmstore.serialization import register_serialization
    register_serialization(
        thinglib.Thing, lambda x: ({"n": x.n}, []), lambda header, _: thinglib.Thing(header["n"])
    )
"""

USER = """
import sys
sys.path.insert(0, sys.argv[1])
import thinglib, numpy
from shmstore.serialization import serialize, deserialize
serialize([numpy.zeros(1), {1}])
print("before")
header, frames = serialize({"k": thinglib.Thing(5)}, on_error="raise")
print(deserialize(header, frames)["k"].n)
header, frames = serialize(thinglib.Thing(6), on_error="raise")
print(deserialize(header, frames, ("custom",)).n)
"""

READER = """
import sys
sys.path.insert(0, sys.argv[1])
from shmstore.serialization import deserialize
header = {"serializer": "custom", "type": "thinglib.Thing", "sub-header": {"n": 7}}
print(deserialize(header, [], ("custom",)).n)
"""


@pytest.mark.row("S21", "S24")
def test_handlers_of_another_package_are_found_by_their_entry_point(tmp_path: Path) -> None:
    """They are loaded when the first object of the library appears, or the first header of one."""
    (tmp_path / "thinglib.py").write_text(LIBRARY)
    (tmp_path / "thinghandlers.py").write_text(HANDLERS)
    info = tmp_path / "things-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: things\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shmstore.handlers]\nthinglib=thinghandlers:register\n")
    assert rooms.run_python(USER, tmp_path).split() == ["before", "loaded", "5", "6"]
    assert rooms.run_python(READER, tmp_path).split() == ["loaded", "7"]


@pytest.mark.row("S102", "S109")
def test_libraries_with_handlers_of_ours_are_these() -> None:
    """Each has a module under `handlers`; keras and those for graphics cards are left out."""
    lazy = set(shmstore.serialization.registry._HANDLERS)
    assert {"numpy", "scipy", "h5py", "netCDF4", "sparse", "pyarrow", "torch"} <= lazy
    assert not {"keras", "tensorflow", "cupy", "rmm", "cudf", "cuml", "numba"} & lazy
    for module in shmstore.serialization.registry._HANDLERS.values():
        assert importlib.util.find_spec(f"shmstore.serialization.handlers.{module}") is not None


@pytest.mark.row("S102")
def test_libraries_are_imported_only_when_their_objects_appear() -> None:
    """A process without tables does not pay for those who have them."""
    found = rooms.run_python(
        """
import sys
from shmstore.serialization import serialize
import numpy
serialize([1, {2}, numpy.zeros(3), Ellipsis], on_error="raise")
names = ("scipy", "h5py", "netCDF4", "sparse", "pyarrow", "polars", "torch", "pandas")
print([name for name in names if name in sys.modules])
"""
    )
    assert found == "[]\n"
