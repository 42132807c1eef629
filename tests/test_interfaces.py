"""How does an object travel that has neither handler nor pickle, but exports its data?"""

from __future__ import annotations

import gc
import mmap
from typing import Any

import numpy as np
import pytest
from family_helpers import travel

from shmstore.errors import SerializationError
from shmstore.serialization import deserialize, serialize


class Exporter:
    """Exports data by some way, and refuses pickle."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        raise TypeError("not by pickle")


class ByInterface(Exporter):
    """Exports by ``__array_interface__``."""

    @property
    def __array_interface__(self) -> Any:
        """Return that of the array."""
        return self.array.__array_interface__


class ByDlpack(Exporter):
    """Exports by DLPack."""

    def __dlpack__(self, **options: Any) -> Any:
        """Return a capsule."""
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        """Return the kind of device."""
        return self.array.__dlpack_device__()


@pytest.mark.row("S50")
@pytest.mark.parametrize("cls", [ByInterface, ByDlpack])
@pytest.mark.parametrize("nested", [False, True])
def test_object_that_exports_an_array_travels_as_one(cls: type, *, nested: bool) -> None:
    """Without a copy, keeping dtype and shape."""
    x = np.arange(6, dtype="i2").reshape(2, 3)
    _, frames = serialize([cls(x)] if nested else cls(x), on_error="raise")
    assert np.shares_memory(np.frombuffer(frames[-1], np.uint8), x)
    back = travel([cls(x)] if nested else cls(x))
    back = back[0] if nested else back
    assert type(back) is np.ndarray
    assert (back.dtype, back.tolist()) == (x.dtype, x.tolist())


@pytest.mark.row("S50")
@pytest.mark.parametrize("access", [mmap.ACCESS_WRITE, mmap.ACCESS_READ])
def test_object_that_exports_a_buffer_travels_as_a_view(access: int) -> None:
    """A mapping, without a copy; nothing keeps it open afterwards."""
    mapping = mmap.mmap(-1, 4096, access=access)
    if access == mmap.ACCESS_WRITE:
        mapping[:5] = b"hello"
    header, frames = serialize({"m": mapping}, on_error="raise")
    assert np.shares_memory(np.frombuffer(frames[1], "u1"), np.frombuffer(mapping, "u1"))
    back = deserialize(header, [bytes(frame) for frame in frames])["m"]
    assert type(back) is memoryview
    assert bytes(back) == bytes(mapping)
    assert back.readonly is (access == mmap.ACCESS_READ)
    assert bytes(travel(mapping)) == bytes(mapping)
    del frames
    gc.collect()
    mapping.close()


@pytest.mark.row("S50")
def test_object_that_exports_data_and_can_be_pickled_keeps_its_type() -> None:
    """Its own way comes first; one that exports nothing after all keeps its error."""

    class Both(ByInterface):
        def __reduce__(self) -> Any:
            return type(self), (self.array,)

    assert type(travel(Both(np.arange(3)))) is Both

    class Empty(Exporter):
        @property
        def __array_interface__(self) -> Any:
            raise AttributeError("not now")

    with pytest.raises(SerializationError, match="not by pickle"):
        serialize(Empty(1), on_error="raise")
