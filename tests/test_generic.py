"""Objects that are nothing but their attributes: plain ones in the header, others in frames."""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers, travel
from roundtrips import SAFE, forge

from shmstore import Store
from shmstore.errors import DeserializationError, SerializationError
from shmstore.serialization import (
    Dispatch,
    deserialize,
    register_generic,
    register_serialization,
    serialize,
)
from shmstore.serialization.generic import is_simple


class Model:
    """Its constructor and its own state functions must not run when it comes back."""

    built = 0

    def __init__(self, **attributes: Any) -> None:
        Model.built += 1
        self.__dict__.update(attributes)

    def __getstate__(self) -> Any:
        """Fail if it is asked."""
        raise TypeError("the way of pickle")

    def __setstate__(self, _: Any) -> None:
        raise TypeError("the way of pickle")


class Special(Model):
    """A subclass."""


class Slotted:
    """Its attributes lie in slots."""

    __slots__ = ("a", "b", "unset")

    def __init__(self, a: Any, b: Any) -> None:
        self.a = a
        self.b = b


class Both(Slotted):
    """It has slots and a dict."""


class Frozen(Model):
    """Setting attributes is forbidden."""

    def __setattr__(self, *_: Any) -> None:
        raise AttributeError("frozen")


class Unwilling:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        """Fail."""
        raise ValueError("no")


class Level(enum.IntEnum):
    """Its members are ints."""

    LOW = 1


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Register the classes; forget them afterwards."""
    with own_handlers():
        register_generic(Model)
        register_generic(Slotted)
        yield


def attributes() -> dict[str, Any]:
    """Return attributes of all kinds."""
    return {
        "weights": np.arange(5.0),
        "name": "m",
        "size": 3,
        "data": b"raw",
        "empty": None,
        "tags": ["a", ("b", 1.5)],
        "config": {"deep": {"flag": True}},
        "mixed": {"w": np.ones(2), 7: {"x": np.zeros(1)}, "n": 1},
        "set": {1, 2},
    }


def assert_same(back: Model, x: Model) -> None:
    """Compare class and attributes."""
    assert type(back) is type(x)
    assert list(vars(back)) == list(vars(x))
    assert repr(vars(back)) == repr(vars(x))


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.row("S79", "S80", "S82", "S83", "F12")
@pytest.mark.parametrize("cls", [Model, Special, Frozen])
@pytest.mark.parametrize("nested", [False, True])
def test_object_of_attributes_comes_back_without_being_initialized(
    cls: type[Model], *, nested: bool
) -> None:
    """With its class and the order of its attributes; arrays keep their flags."""
    x = cls(**attributes())
    x.weights.flags.writeable = False  # type: ignore[attr-defined]
    built = Model.built
    back = travel([x])[0] if nested else travel(x)
    assert Model.built == built
    assert_same(back, x)
    assert not back.weights.flags.writeable
    assert back.mixed["w"].flags.writeable


@pytest.mark.row("S80", "S81", "F15")
def test_plain_attributes_lie_in_the_header_and_others_in_frames() -> None:
    """Also those of dicts that are not empty, and bytes."""
    header, frames = serialize(Model(**attributes()))
    sub = header["sub-header"]
    assert set(sub["simple"]) == {"name", "size", "data", "empty", "tags", "config"}
    assert set(sub["complex"]) == {"weights", "mixed", "set"}
    for part in sub["complex"].values():
        assert 0 <= part["start"] <= part["stop"] <= len(frames)
    assert_same(deserialize(header, frames), Model(**attributes()))


@pytest.mark.row("S80", "S83", "F43")
def test_object_of_arrays_and_plain_values_needs_no_pickle() -> None:
    """At any depth of its dicts; a set does, and is then refused."""
    x = Model(**{key: value for key, value in attributes().items() if key != "set"})
    x.other = Special(deep={"w": np.zeros(3)})  # type: ignore[attr-defined]
    x.numbers = {"a": np.zeros(1), "b": 2.5, "c": "t"}  # type: ignore[attr-defined]
    header, frames = serialize(x, on_error="raise")
    del x.mixed, x.numbers, x.other  # type: ignore[attr-defined]
    header, frames = serialize(x, on_error="raise")
    assert_same(deserialize(header, frames, SAFE), x)
    header, frames = serialize(Model(s={1}), on_error="raise")
    with pytest.raises(DeserializationError, match="'pickle'"):
        deserialize(header, frames, SAFE)


@pytest.mark.row("S81", "F13", "F16")
@pytest.mark.parametrize(
    ("value", "simple"),
    [
        (None, True),
        ("text", True),
        (b"bytes", True),
        (1 << 100, True),
        (-1, True),
        (float("inf"), True),
        ("\ud800", True),
        (True, True),
        ([], True),
        ([1, ["a"]], True),
        ((1, (2,)), True),
        ({"k": {"k": 1}}, True),
        ({}, True),
        ({1: 2}, False),
        ({"k": {1}}, False),
        (bytearray(b"x"), False),
        ({1}, False),
        (collections.OrderedDict(a=1), False),
        (collections.namedtuple("P", "a")(1), False),  # noqa: PYI024 - the one of collections
        (np.float64(1), False),
        (np.str_("x"), False),
        (Level.LOW, False),
        (type("MyList", (list,), {})([1]), False),
        (1j, False),
    ],
    ids=repr,
)
def test_attribute_keeps_its_type_wherever_it_lies(value: Any, *, simple: bool) -> None:
    """Exact types are plain: lists stay lists, large ints and odd text come back."""
    assert is_simple(value) is simple
    for back in (travel(Model(x=value)).x, travel([Model(x=[value])])[0].x[0]):
        assert type(back) is type(value)
        assert back == value


@pytest.mark.row("S80", "S82")
@pytest.mark.parametrize("cls", [Slotted, Both])
def test_object_with_slots_keeps_them(cls: Any) -> None:
    """With or without a dict beside them; a slot that is not set stays so."""
    x = cls(np.arange(3), "b")
    if cls is Both:
        x.more = [1]
    back = travel(x)
    assert type(back) is cls
    assert (back.a.tolist(), back.b, hasattr(back, "unset")) == ([0, 1, 2], "b", False)
    assert getattr(back, "more", None) == getattr(x, "more", None)


@pytest.mark.row("S79")
@pytest.mark.parametrize("cls", [list, dict, np.ndarray, type("MyList", (list,), {}), int])
def test_class_of_more_than_attributes_is_refused(cls: type) -> None:
    """Its content would be lost."""
    with pytest.raises(TypeError, match="more than attributes"):
        register_generic(cls)


@pytest.mark.row("S82", "F05")
def test_subclass_of_more_than_attributes_keeps_its_content() -> None:
    """The base class could not know."""

    class Base:
        pass

    class Content(Base, dict):  # type: ignore[type-arg]
        pass

    register_generic(Base)
    x = Content(a=1)
    x.note = "n"
    back = travel(x)
    assert (dict(back), back.note, type(back)) == ({"a": 1}, "n", Content)


@pytest.mark.row("S79")
def test_class_can_be_registered_in_dispatches_of_others() -> None:
    """The functions are those that the registry calls."""
    out, into = Dispatch("out"), Dispatch("into")
    register_generic(Unwilling, "custom", out, into)
    x = Unwilling()
    x.w = np.arange(2)  # type: ignore[attr-defined]
    header, frames = out(x)
    back = into.dispatch(Unwilling)(header, frames, cls=Unwilling)
    assert back.w.tolist() == [0, 1]
    with pytest.raises(SerializationError):
        serialize(Unwilling(), on_error="raise")


# --- shared, cyclic, failing --------------------------------------------------------------------


@pytest.mark.row("S80", "F06")
@pytest.mark.parametrize(
    ("way", "nested"),
    [
        *itertools.product(["direct", "list", "dict", "other"], [True]),
        *itertools.product(["direct", "dict", "other"], [False]),
        ("list", False),
    ],
)
def test_object_that_refers_to_itself_comes_back_so(way: str, *, nested: bool) -> None:
    """Directly, through containers and through another object."""
    x: Any = Model(weights=np.arange(3))
    x.me = {"direct": x, "list": [x], "dict": {"k": x}, "other": Special(back=x)}[way]
    back = travel([x])[0] if nested else travel(x)
    found = {
        "direct": lambda: back.me,
        "list": lambda: back.me[0],
        "dict": lambda: back.me["k"],
        "other": lambda: back.me.back,
    }[way]()
    assert found is back
    assert back.weights.tolist() == [0, 1, 2]


@pytest.mark.row("F06")
def test_object_in_two_places_of_another_is_one() -> None:
    """Pickle's memo counts inside of containers."""
    x = Model(w=np.arange(2))
    back = travel({"a": x, "b": [x]})
    assert back["a"] is back["b"][0]


@pytest.mark.row("S80", "F17")
@pytest.mark.parametrize("nested", [False, True])
def test_attribute_that_cannot_be_serialized_is_an_error_of_the_writer(*, nested: bool) -> None:
    """With its path; nothing waits for the reader."""
    x = Model(good=1, bad={"k": [Unwilling()]})
    path = r"obj\[0\]" if nested else r"obj\.bad\['k'\]\[0\]"
    with pytest.raises(SerializationError, match=path) as caught:
        serialize([x] if nested else x, on_error="raise")
    assert caught.value.__cause__ is not None
    with pytest.raises(SerializationError, match="no"):
        deserialize(*serialize(x))


@pytest.mark.row("F18", "S80")
@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "full")])
def test_want_of_resources_in_an_attribute_reaches_the_caller(error: Exception) -> None:
    """As it is."""

    class Poor:
        def __reduce__(self) -> Any:
            raise error

    with pytest.raises(type(error)) as caught:
        serialize(Model(a=[Poor()]), on_error="message")
    assert caught.value is error


@pytest.mark.row("S15", "F17")
def test_context_reaches_the_handlers_of_attributes() -> None:
    """And theirs, in turn."""
    seen = []

    def dumps(_: Any, context: Any) -> Any:
        seen.append(context)
        return {}, []

    register_serialization(Unwilling, dumps, lambda *_: None)
    context = {"a": 1}
    serialize(Model(a=Unwilling(), b=Model(c=Unwilling())), context=context, on_error="raise")
    assert seen == [context, context]


@pytest.mark.row("S82", "F21")
@pytest.mark.parametrize(
    "changes",
    [
        {"simple": None},
        {"simple": {}},
        {"complex": None},
        {"complex": {"w": {"header": {}, "start": 0, "stop": 1}}},
        {"complex": {"w": {"header": {}, "start": 0, "stop": 9}}},
        {"complex": {"w": {"header": {}, "start": -1, "stop": 1}}},
        {"complex": {"w": {}}},
        {"complex": [1]},
        {"names": ["name"]},
        {"names": ["name", "w", "x"]},
        {"names": ["name", "name"]},
        {"names": None},
    ],
)
def test_header_that_does_not_fit_is_refused(changes: Any) -> None:
    """Whichever part was forged."""
    header, frames = serialize(Model(name="n", w=np.zeros(2)), on_error="raise")
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **changes), frames)


@pytest.mark.row("S79", "S80")
@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
def test_object_of_attributes_lies_in_a_store_without_copies(store: Store, mode: str) -> None:
    """Its arrays are views in each mode."""
    x = Model(**attributes())
    ref = store.put(x)
    back = ref.get(mode=mode)
    assert_same(back, x)
    assert back.weights.flags.writeable is (mode != "readonly")
    again = ref.get(mode=mode)
    same = back.weights.ctypes.data == again.weights.ctypes.data
    assert same is (mode in ("shared", "readonly"))
    del back, again
