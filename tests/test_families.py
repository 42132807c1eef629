"""Which family takes an object, what reaches it, and what happens when it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from family_helpers import AddFamily, fail, own_families, travel

from shmstore.errors import (
    CorruptHeaderError,
    DeserializationError,
    FamilyRefusedError,
    SerializationError,
)
from shmstore.serialization import (
    DEFAULT_SERIALIZERS,
    Serialize,
    Serialized,
    deserialize,
    families,
    has_keyword,
    serialize,
)


@pytest.fixture
def family() -> Iterator[AddFamily]:
    """Give `register_serialization_family`; what it adds is taken out at the end."""
    with own_families() as register:
        yield register


class Unhashable:
    """A callable that no cache can hold."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Any, context: Any) -> Any:
        """Return a header with the context."""
        return {"x": x, "context": context}, []


# --- who is asked -------------------------------------------------------------------------------


@pytest.mark.row("S01", "S16", "S18")
def test_family_added_is_asked_when_it_is_named(family: AddFamily) -> None:
    """In the order of the names, and only then."""
    family("text", lambda x: ({}, [str(x).encode()]), lambda _, frames: bytes(frames[0]).decode())
    header, [frame] = serialize(12, ["text", "pickle"])
    assert (header["serializer"], frame) == ("text", b"12")
    assert deserialize(header, [frame]) == "12"
    assert serialize(12)[0]["serializer"] == "pickle"


@pytest.mark.row("S01")
def test_family_that_won_stands_in_the_header_whatever_it_wrote_there(family: AddFamily) -> None:
    """A family cannot pass itself off as another."""
    family("honest", lambda _: ({"serializer": "pickle"}, [b"x"]), lambda header, _: header)
    header, _ = serialize(1, ["honest"])
    assert header["serializer"] == "honest"
    assert DEFAULT_SERIALIZERS == ("custom", "pickle")
    assert serialize(np.zeros(2))[0]["serializer"] == "custom"
    assert serialize({1})[0]["serializer"] == "pickle"


@pytest.mark.row("S01")
def test_frames_may_be_the_memory_of_the_object_itself() -> None:
    """Nothing is copied before somebody has to."""
    x = bytearray(b"abc")
    assert serialize(x)[1][0] is x
    array = np.arange(5)
    assert np.shares_memory(np.frombuffer(serialize(array)[1][0], np.uint8), array)


@pytest.mark.row("S01")
@pytest.mark.parametrize("iterate", [True, False, None])
def test_iterate_collection_changes_nothing_for_what_is_no_collection(*, iterate: Any) -> None:
    """An array or a number is one leaf in any case."""
    for x in (np.arange(3), 7, "text", frozenset({1})):
        header, _ = serialize(x, iterate_collection=iterate)
        assert header == serialize(x)[0]


@pytest.mark.row("S02")
def test_family_that_declines_leaves_the_object_to_the_next(family: AddFamily) -> None:
    """By NotImplementedError; those behind the winner are not asked."""
    asked = []

    def note(x: Any) -> Any:
        asked.append(x)
        raise NotImplementedError

    family("declines", note, lambda *_: None)
    family("last", fail, lambda *_: None)
    header, _ = serialize(1, ["declines", "pickle", "last"])
    assert header["serializer"] == "pickle"
    assert asked == [1]


@pytest.mark.row("S02", "S38")
def test_family_that_fails_is_not_followed_by_another(family: AddFamily) -> None:
    """An object that should be stored one way is not stored in another by accident."""
    family("broken", fail, lambda *_: None)
    with pytest.raises(SerializationError, match=r"'broken'.*ZeroDivisionError"):
        serialize(1, ["broken", "pickle"], on_error="raise")


@pytest.mark.row("S02", "S87")
def test_view_of_objects_is_refused_by_its_handler_and_not_pickled() -> None:
    """Its bytes are addresses, whoever writes them."""
    with pytest.raises(SerializationError, match=r"'custom'.*pointers"):
        serialize(np.array([{}], object).data, on_error="raise")


@pytest.mark.row("S03", "F20")
@pytest.mark.parametrize("names", [["pikcle"], ["pickle", "nothing"], "pickle", [None]])
@pytest.mark.parametrize("on_error", ["message", "raise"])
def test_serializers_that_are_unknown_are_a_value_error(names: Any, on_error: str) -> None:
    """At once, also when a family before it would take the object; a bare string is a slip."""
    with pytest.raises(ValueError, match=r"custom, pickle"):
        serialize(1, names, on_error)


@pytest.mark.row("S04")
@pytest.mark.parametrize("options", [{}, {"on_error": "raise"}, {"iterate_collection": True}])
def test_serialized_object_is_returned_as_its_header_and_frames(options: Any) -> None:
    """The same objects, whatever else is asked for, and unchanged."""
    header, frames = {"serializer": "nowhere", "a": 1}, [b"x"]
    found = serialize(Serialized(header, frames), ["msgpack"], **options)
    assert found[0] is header
    assert found[1] is frames
    assert header == {"serializer": "nowhere", "a": 1}


@pytest.mark.row("S05")
def test_serialize_marker_is_serialized_by_its_data_and_taken_apart() -> None:
    """Also a subclass of it; the other arguments are passed on."""

    class Special(Serialize):
        pass

    for marker in (Serialize, Special):
        header, frames = serialize(marker([1, np.arange(3)]))
        assert [sub["serializer"] for sub in header["sub-headers"]] == ["pickle", "custom"]
        assert deserialize(header, frames)[1].tolist() == [0, 1, 2]
        assert serialize(marker(np.zeros(1)))[0]["serializer"] == "custom"
        header, _ = serialize(marker([1]), ["msgpack"])
        assert header["sub-headers"][0]["serializer"] == "msgpack"
    with pytest.raises(SerializationError):
        serialize(Serialize([object()]), ["msgpack"], on_error="raise")


@pytest.mark.row("S05", "S32")
def test_serialize_marker_of_a_dict_with_keys_beyond_msgpack_goes_whole() -> None:
    """A key must fit into a header."""
    for key in (frozenset({1}), 1 << 70, object, 1j):
        header, frames = serialize(Serialize({key: 1}))
        assert header["serializer"] == "pickle"
        assert deserialize(header, frames) == {key: 1}


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.row("S06")
@pytest.mark.parametrize("kind", [tuple, list, set, frozenset, dict.fromkeys])
def test_deserializers_are_any_container_of_names(kind: Any) -> None:
    """Only membership is asked."""
    header, frames = serialize({1, 2})
    assert deserialize(header, tuple(frames), kind(["pickle"])) == {1, 2}
    with pytest.raises(FamilyRefusedError, match=r"'pickle'.*custom") as caught:
        deserialize(header, tuple(frames), kind(["custom"]))
    assert isinstance(caught.value, TypeError)
    assert caught.value.facts["family"] == "pickle"


@pytest.mark.row("S06")
def test_deserializers_that_are_one_string_are_a_type_error() -> None:
    """Membership would then look for a part of the text."""
    header, frames = serialize({1})
    with pytest.raises(TypeError, match="not one str"):
        deserialize(header, frames, "no-pickle-please")


@pytest.mark.parametrize("deserializers", [1, iter(["pickle"])])
def test_deserializers_that_are_no_collection_are_a_type_error(deserializers: Any) -> None:
    """It is not the object that is to blame."""
    header, frames = serialize({1})
    shown = re.escape(f"deserializers={deserializers!r:.100}: expected a collection of names")
    with pytest.raises(TypeError, match=shown):
        deserialize(header, frames, deserializers)


@pytest.mark.parametrize("serializers", [1, [["pickle"]]])
def test_serializers_that_are_no_names_are_a_type_error(serializers: Any) -> None:
    """The message says what there is."""
    shown = re.escape(f"serializers={serializers!r}: expected a sequence of names out of custom, ")
    with pytest.raises(TypeError, match=shown):
        serialize({1}, serializers)


@pytest.mark.parametrize(
    ("wrong", "arguments"),
    [
        ("name=3: ", (3, None, fail)),
        ("dumps=1: ", ("pickle", 1, fail)),
        ("loads=2: ", ("x", fail, 2)),
    ],
)
def test_family_that_cannot_be_called_is_refused(
    family: AddFamily, wrong: str, arguments: Any
) -> None:
    """What was there under the name goes on."""
    before = dict(families)
    with pytest.raises(TypeError, match=wrong):
        family(*arguments)
    assert families == before


@pytest.mark.row("S06")
def test_deserializers_are_asked_at_the_leaves() -> None:
    """A container of accepted elements passes; one element that is not is enough to refuse."""
    header, frames = serialize([np.zeros(2), b"x"], iterate_collection=True)
    array, text = deserialize(header, frames, ("custom",))
    assert (array.tolist(), text) == ([0, 0], b"x")
    header, frames = serialize([np.zeros(2), {1}], iterate_collection=True)
    with pytest.raises(FamilyRefusedError):
        deserialize(header, frames, ("custom", "msgpack"))


@pytest.mark.row("S06", "F01")
@pytest.mark.parametrize(
    "x", [np.arange(3), {"a": np.zeros(5)}, "text", [b"1", {"k": b"2"}], bytearray(b"x")]
)
@pytest.mark.parametrize("iterate", [True, None])
def test_deserialize_changes_neither_header_nor_frames(x: Any, *, iterate: Any) -> None:
    """Both may be kept and used again."""
    header, frames = serialize(x, iterate_collection=iterate)
    before = repr(header), [bytes(frame) for frame in frames]
    first, second = (deserialize(header, tuple(frames)) for _ in range(2))
    assert repr(first) == repr(second) == repr(x)
    assert (repr(header), [bytes(frame) for frame in frames]) == before


@pytest.mark.row("S06")
@pytest.mark.parametrize("name", ["nothing", None, 3, ["pickle"], {"a": 1}])
def test_header_of_an_unknown_family_is_refused_with_its_name(name: Any) -> None:
    """Whatever stands there instead of a name, or if nothing does."""
    words = "known here: custom, pickle" if name == "nothing" else "names the serializer"
    with pytest.raises(DeserializationError, match=words):
        deserialize({"serializer": name}, [])
    with pytest.raises(CorruptHeaderError, match="names the serializer None"):
        deserialize({}, [])
    with pytest.raises(CorruptHeaderError):
        deserialize(name, [])


@pytest.mark.row("S06", "S48")
def test_family_that_fails_to_load_is_an_error_with_its_name(family: AddFamily) -> None:
    """The reason is in the message, the original error behind it."""
    family("broken", lambda _: ({"type": "thing"}, []), lambda *_: 1 // 0)
    header, frames = serialize(1, ["broken"])
    with pytest.raises(DeserializationError, match=r"thing.*'broken'.*ZeroDivision") as caught:
        deserialize(header, frames)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# --- context ------------------------------------------------------------------------------------


@pytest.mark.row("S15")
def test_context_reaches_those_who_have_a_parameter_of_that_name(family: AddFamily) -> None:
    """Others are called without."""

    def dumps(x: Any, context: Any = None) -> Any:
        return {"context": context}, [bytes(x)]

    family("context", dumps, lambda header, _: header["context"])
    family("plain", lambda x: ({}, [x]), lambda _, frames: bytes(frames[0]))
    context = {"recipient": {"address": "there"}}
    assert travel(b"", ["context"], context=context) == context
    assert travel(b"", ["context"]) is None
    assert travel(b"x", ["plain"], context=context) == b"x"


@pytest.mark.row("S15", "S33")
def test_context_reaches_each_element_and_the_parts_of_an_object(family: AddFamily) -> None:
    """Inside of containers, and inside of masked arrays."""
    seen = []

    def dumps(_: Any, context: Any) -> Any:
        seen.append(context)
        return {}, []

    family("context", dumps, lambda *_: None)
    context = {"a": 1}
    serialize([1, [2], {"k": 3}], ["context"], context=context, iterate_collection=True)
    assert seen == [context] * 3
    parts = np.ma.MaskedArray(np.array([{}], object), [True])
    header, frames = serialize(parts, context={"pickle-protocol": 4})
    data = header["sub-header"]["parts"]["data"]
    assert bytes(frames[data["start"]])[1] == 4


@pytest.mark.row("S15", "S43")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
def test_context_chooses_the_protocol_of_pickle(protocol: int | None) -> None:
    """None is the highest; below 5 nothing lies beside the stream."""
    x = {"a": np.arange(10)}
    header, frames = serialize(x, context={"pickle-protocol": protocol})
    assert bytes(frames[0])[1] == (protocol or 5)
    assert len(header["writeable"]) == len(frames) - 1 == int(protocol in (5, None))
    assert deserialize(header, frames)["a"].tolist() == list(range(10))


# --- registration -------------------------------------------------------------------------------


@pytest.mark.row("S16")
def test_family_registered_again_takes_the_place_of_the_first(family: AddFamily) -> None:
    """Whether it wants the context is found out anew."""
    family("mine", lambda x: ({}, [bytes(x)]), lambda *_: 1)
    assert families["mine"].wants_context is False
    family("mine", lambda x, context: (context, [bytes(x)]), lambda *_: 2)
    assert families["mine"].wants_context is True
    assert travel(0, ["mine"], context={}) == 2


@pytest.mark.row("S16")
def test_family_that_can_only_load_says_so_when_it_is_asked(family: AddFamily) -> None:
    """It reads what another program wrote."""
    family("loads", None, lambda *_: "read")
    assert families["loads"].wants_context is None
    assert deserialize({"serializer": "loads"}, []) == "read"
    with pytest.raises(SerializationError, match="'loads' can only load"):
        serialize(1, ["loads", "pickle"], on_error="raise")
    header, frames = serialize(1, ["loads"])
    with pytest.raises(SerializationError, match="'loads' can only load"):
        deserialize(header, frames)


@pytest.mark.row("S17")
def test_families_that_are_always_there() -> None:
    """Each by its name; errors can only be loaded."""
    assert list(families) == ["custom", "pickle", "msgpack", "error"]
    assert families["error"].dumps is None


@pytest.mark.row("S18")
@pytest.mark.parametrize("count", [0, 1, 3])
def test_family_returns_any_number_of_frames_and_loads_its_whole_header(
    family: AddFamily, count: int
) -> None:
    """What it wrote is there, and the name beside it."""
    family("many", lambda x: ({"n": x}, [b"f"] * x), lambda header, frames: (header, len(frames)))
    header, found = travel(count, ["many"])
    assert (header["n"], header["serializer"], found) == (count, "many", count)


@pytest.mark.row("S19")
def test_has_keyword_counts_explicit_parameters_only() -> None:
    """Of functions, methods, classes and partial calls."""

    class Call:
        def __init__(self, context: Any) -> None:
            pass

        def __call__(self, x: Any, *, context: Any = None) -> None:
            pass

    assert has_keyword(lambda x, context: (x, context), "context")
    assert has_keyword(lambda x, *, context=None: (x, context), "context")
    assert has_keyword(Call, "context")
    assert has_keyword(Call(1), "context")
    assert not has_keyword(lambda x, **kwargs: (x, kwargs), "context")
    assert not has_keyword(lambda x: x, "context")


@pytest.mark.row("S19")
@pytest.mark.parametrize(
    "func", [lambda *context: context, lambda **context: context, eval("lambda context, /: 1")]
)
def test_has_keyword_is_no_for_what_cannot_be_passed_by_name(func: Any) -> None:
    """A catch-all or positional parameter may have that name by chance."""
    assert not has_keyword(func, "context")


@pytest.mark.row("S19", "F34")
def test_has_keyword_is_no_for_callables_that_tell_nothing() -> None:
    """Those without a signature, those that cannot be hashed, and what is not callable."""
    assert not has_keyword(min, "context")
    assert not has_keyword(dict.fromkeys, "context")
    assert not has_keyword(3, "context")
    assert has_keyword(Unhashable(), "context")
    assert not has_keyword(Unhashable(), "text")


@pytest.mark.row("F34")
def test_family_may_be_a_builtin_or_unhashable(family: AddFamily) -> None:
    """Neither can be asked in the usual way for its parameters."""
    family("odd", Unhashable(), lambda header, _: header["context"])
    assert travel(1, ["odd"], context={"a": 1}) == {"a": 1}
    family("builtin", min, max)
    assert families["builtin"].wants_context is False
