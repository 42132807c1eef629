"""What becomes of an object that cannot be serialized, and who learns the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from family_helpers import AddFamily, decline, fail, own_families

from shmstore.errors import SerializationError
from shmstore.serialization import Serialize, deserialize, serialize

MOST_TRACEBACK = 100_000


@pytest.fixture
def family() -> Iterator[AddFamily]:
    """Give `register_serialization_family`; what it adds is taken out at the end."""
    with own_families() as register:
        yield register


@pytest.mark.row("S37")
@pytest.mark.parametrize("names", [[], ["declines"], ["msgpack"], ["custom"]])
def test_object_that_all_families_decline_is_an_error_with_its_type(
    family: AddFamily, names: list[str]
) -> None:
    """It has no cause, and tells who was asked."""
    family("declines", decline, lambda *_: None)
    for x in (object(), Serialize(object())):
        with pytest.raises(SerializationError, match="type object: no family") as caught:
            serialize(x, names, on_error="raise")
        assert caught.value.__cause__ is None
        assert caught.value.facts["families"] == tuple(names)
        header, frames = serialize(x, names)
        assert header["serializer"] == "error"
        assert len(frames) == 1


@pytest.mark.row("S38", "F18")
@pytest.mark.parametrize("error", [MemoryError("m"), OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("on_error", ["message", "raise"])
@pytest.mark.parametrize("nested", [False, True])
def test_want_of_resources_reaches_the_caller_as_it_is(
    family: AddFamily, error: BaseException, on_error: str, *, nested: bool
) -> None:
    """It says nothing about the object, and becomes no payload."""

    def dumps(_: Any) -> Any:
        raise error

    family("poor", dumps, lambda *_: None)
    with pytest.raises(type(error)) as caught:
        serialize([1] if nested else 1, ["poor"], on_error, iterate_collection=nested)
    assert caught.value is error


@pytest.mark.row("S38", "S39")
def test_error_as_payload_has_message_and_traceback(family: AddFamily) -> None:
    """Two frames of text, read by anybody."""
    family("broken", fail, lambda *_: None)
    header, frames = serialize(1, ["broken"])
    assert header["serializer"] == "error"
    message, text = (bytes(frame).decode() for frame in frames)
    assert "'broken' failed with ZeroDivisionError: the reason" in message
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: the reason\n")


@pytest.mark.row("S39", "F19")
def test_traceback_that_is_too_long_loses_its_head(family: AddFamily) -> None:
    """The last line names the exception."""

    def dumps(_: Any) -> Any:
        raise ValueError("x" * 2 * MOST_TRACEBACK + "the end")

    family("verbose", dumps, lambda *_: None)
    _, [message, text] = serialize(1, ["verbose"])
    assert len(text) == MOST_TRACEBACK
    assert text.endswith(b"the end\n")
    assert len(message) < 2000


@pytest.mark.row("S40", "F19")
def test_error_that_is_raised_is_ours_with_the_original_behind_it(family: AddFamily) -> None:
    """It is also a TypeError, and knows type and family."""
    family("broken", fail, lambda *_: None)
    with pytest.raises(SerializationError, match=r"list.*'broken'") as caught:
        serialize([], ["broken"], on_error="raise")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.facts["type"] == "list"
    assert caught.value.facts["family"] == "broken"


@pytest.mark.row("S40", "F19")
@pytest.mark.parametrize("on_error", ["message", "raise"])
def test_object_whose_text_fails_does_not_hide_the_error(on_error: str) -> None:
    """Neither that of the object nor that of its error is trusted."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

        def __reduce__(self) -> Any:
            raise MuteError

    with pytest.raises(SerializationError, match=r"MuteError: <no text.*Mute"):
        deserialize(*serialize({"k": Mute()}, on_error=on_error))


@pytest.mark.row("S40")
def test_error_does_not_print_all_of_a_large_object() -> None:
    """The message stays readable."""

    class Large:
        def __repr__(self) -> str:
            return "L" * 10_000_000

        def __reduce__(self) -> Any:
            raise ValueError("e" * 10_000_000)

    with pytest.raises(SerializationError) as caught:
        serialize({"k": [Large()], Large(): 1}, on_error="raise")
    assert len(str(caught.value)) < 4000


@pytest.mark.row("S41")
@pytest.mark.parametrize("on_error", ["ignore", "", None, "Raise"])
def test_on_error_that_is_unknown_is_a_value_error_at_once(on_error: Any) -> None:
    """Also when nothing fails."""
    with pytest.raises(ValueError, match="expected 'message' or 'raise'"):
        serialize(1, on_error=on_error)


@pytest.mark.row("S42", "F20")
@pytest.mark.parametrize("deserializers", [None, ("custom",), ("custom", "msgpack"), ()])
def test_error_as_payload_is_raised_whatever_is_accepted(deserializers: Any) -> None:
    """Who refuses pickles learns the reason all the same; the exception object does not travel."""
    header, frames = serialize(n for n in range(3))
    with pytest.raises(SerializationError, match="generator") as caught:
        deserialize(header, frames, deserializers)
    assert isinstance(caught.value, TypeError)
    assert "Traceback" in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.row("S42")
def test_error_as_payload_may_be_any_bytes() -> None:
    """Text that is none does not hide the rest."""
    with pytest.raises(SerializationError, match="first\nsecond"):
        deserialize({"serializer": "error"}, [b"first", b"second\xff"])
    with pytest.raises(SerializationError):
        deserialize({"serializer": "error"}, [])


@pytest.mark.row("S33", "S39")
def test_element_that_fails_becomes_an_error_and_the_others_survive() -> None:
    """Who reads the container meets it at its place."""
    header, frames = serialize([b"1", object(), b"3"], ["custom"], iterate_collection=True)
    assert [sub["serializer"] for sub in header["sub-headers"]] == ["custom", "error", "custom"]
    assert [bytes(frame) for frame in (frames[0], frames[-1])] == [b"1", b"3"]
    with pytest.raises(SerializationError, match="type object"):
        deserialize(header, frames)
