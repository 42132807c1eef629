"""Which part of an object is blamed when it cannot be pickled?"""

from __future__ import annotations

import gc
import pickle
import sys
from typing import Any

import pytest
from family_helpers import travel

from shmstore.errors import SerializationError
from shmstore.serialization import serialize, typename


class Holder:
    """An object with an attribute."""

    def __init__(self, part: Any) -> None:
        self.a = {"b": [1, 2, 3, part]}


class Slotted:
    """An object without a dict of attributes."""

    __slots__ = ("part",)

    def __init__(self, part: Any) -> None:
        self.part = part


class Unwilling:
    """An object that says why it cannot be pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.row("S40", "S47")
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


@pytest.mark.row("S40")
def test_part_that_cannot_be_pickled_is_named_by_its_path() -> None:
    """Through containers, attributes, slots, and what a function closes over."""
    bad = Unwilling(ValueError("no"))

    for x, path in (
        (Holder(bad), "obj.a['b'][3]"),
        ([1, (2, {"k": bad})], "obj[1][1]['k']"),
        ({"f": lambda: bad}, "obj['f'].__closure__['bad']"),
        ({(1, bad): 1}, "obj.key("),
        (Slotted([bad]), "obj.part[0]"),
    ):
        with pytest.raises(SerializationError) as caught:
            serialize(x, on_error="raise")
        assert caught.value.facts["path"].startswith(path)
        assert path in str(caught.value)
        assert caught.value.facts["part_type"] == typename(Unwilling)


@pytest.mark.row("S38", "F18")
@pytest.mark.parametrize("error", [MemoryError(), OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("on_error", ["raise", "message"])
def test_want_of_resources_while_pickling_reaches_the_caller(
    error: BaseException, on_error: str
) -> None:
    """It says nothing about the object."""
    with pytest.raises(type(error)) as caught:
        serialize([Unwilling(error)], on_error=on_error)
    assert caught.value is error


@pytest.mark.parametrize("x", [sys.stdout, (n for n in range(3)), sys._getframe(), gc.collect])
def test_objects_of_the_process_itself_are_refused_or_travel_whole(x: Any) -> None:
    """A file or a generator cannot be sent; nothing in between happens."""
    try:
        back = travel(x)
    except SerializationError:
        return
    assert back is x
