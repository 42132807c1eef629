"""Objects that travel in different ways: what the tests of explanations share."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from shmstore.serialization import deserialize_parts, register_serialization, serialize_parts
from shmstore.serialization.explaining import Explanation, Part, explain
from shmstore.serialization.frames import Planned

MIXED = [{}, "text", 3] * 50


class Plain:
    """Attributes and nothing else."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slotted:
    """An attribute in a slot."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class Pair:
    """Has a handler that asks for two parts."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left = left
        self.right = right


class Refusing:
    """Has a handler that declines, and says why."""


class Made:
    """Has a handler whose frame is made where it will lie."""


class Exporting:
    """Refuses pickle, exports an array."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.data.__array_interface__

    def __reduce_ex__(self, _: Any) -> Any:
        message = "no pickles of this"
        raise TypeError(message)


class Buffered:
    """Pickles itself with a buffer beside the stream."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, _: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(self.data),)


class Copying(np.ndarray):
    """A subclass of arrays that copies itself into the stream."""

    def __reduce__(self) -> Any:
        return np.asarray, (self.tobytes(),)

    def __reduce_ex__(self, _: Any) -> Any:
        return self.__reduce__()


class View(np.ndarray):
    """A subclass of arrays without a way of its own."""


def _refuse(_: Any) -> Any:
    raise NotImplementedError("not on Sundays")


def _serialize_pair(x: Pair, context: Any = None) -> Any:
    headers, frames = serialize_parts({"left": x.left, "right": x.right}, context)
    return {"parts": headers}, frames


def _deserialize_pair(header: Any, frames: Any) -> Pair:
    return Pair(**deserialize_parts(header["parts"], frames))


register_serialization(Pair, _serialize_pair, _deserialize_pair)
register_serialization(Refusing, _refuse, _refuse)
register_serialization(Made, lambda _: ({}, [Planned(1000, lambda _: None)]), _refuse)


def parts_of(told: Explanation) -> dict[str, Part]:
    """Return parts by their paths."""
    return {part.path: part for part in told.parts}


def part_at(x: Any, path: str, **options: Any) -> Part:
    """Return one part of what is told of an object."""
    return parts_of(explain(x, **options))[path]


def pandas_frame() -> Any:
    """Return a DataFrame with a block of two columns, text, categories and objects."""
    pd = pytest.importorskip("pandas")
    columns = {"a": np.zeros(50), "b": np.ones(50), "i": np.arange(50)}
    text = {"t": [f"{n}" for n in range(50)], "c": pd.Categorical(["x", "y"] * 25)}
    return pd.DataFrame({**columns, **text, "o": [(n,) for n in range(50)]})
