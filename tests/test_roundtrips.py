"""Every kind of object that is handled, through every kind of memory, into another process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from likeness import likeness, portrait
from specimens import SPECIMENS, make
from stores import Child, lock_free_only

from shmstore import Store
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.msgpacking import packb, unpackb

READER = """
import sys
sys.path.insert(0, tests)
import shmstore
from likeness import likeness
while True:
    mode, path, key = input().split(" ")
    store = shmstore.Store.attach(path)
    x = store.get(key, mode=mode)
    print(likeness(x), flush=True)
    del x
    store.close()
"""


@pytest.fixture(scope="module")
def reader(module_child: Callable[..., Child]) -> Child:
    """Give another process that tells what an object of a store looks like there."""
    return module_child(READER, tests=str(Path(__file__).parent))


@pytest.fixture(params=[False, True], ids=["alone", "nested"])
def nested(request: pytest.FixtureRequest) -> bool:
    """Say whether the object lies inside of another one."""
    return bool(request.param)


def wrapped(name: str, nested: bool) -> Any:  # noqa: FBT001 - a fixture
    """Return the object of a name, perhaps inside of others."""
    x = make(name)
    return {"k": [x], "again": x} if nested else x


PLACES: dict[str, Callable[[Any], Any]] = {
    "frames as they are": lambda frame: frame,
    "bytes": lambda frame: bytes(ensure_memoryview(frame)),
    "bytearrays": lambda frame: bytearray(ensure_memoryview(frame)),
    "read-only views": lambda frame: memoryview(bytearray(ensure_memoryview(frame))).toreadonly(),
    "arrays": lambda frame: np.array(ensure_memoryview(frame)),
}


@pytest.mark.row("S84-S100", "S102-S106", "S108", "F01")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", SPECIMENS)
def test_object_comes_back_from_frames_of_any_kind_again_and_again(
    name: str,
    place: str,
    nested: bool,  # noqa: FBT001 - a fixture
) -> None:
    """The same header is decoded twice, after a trip through bytes; neither side is changed."""
    x = wrapped(name, nested)
    before = portrait(x)
    header, frames = serialize(x, on_error="raise")
    header = unpackb(packb(header))
    packed = packb(header)
    frames = [PLACES[place](frame) for frame in frames]
    contents = [bytes(memoryview(frame)) for frame in frames]
    for _ in range(2):
        assert portrait(deserialize(header, tuple(frames))) == before
    assert portrait(x) == before
    assert packb(header) == packed
    assert [bytes(memoryview(frame)) for frame in frames] == contents


@pytest.mark.row("S84-S100", "S102-S106", "S108", "S06")
@lock_free_only
@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
@pytest.mark.parametrize("name", SPECIMENS)
def test_object_comes_back_from_a_store_in_each_mode(
    store: Store,
    name: str,
    mode: str,
    nested: bool,  # noqa: FBT001 - a fixture
) -> None:
    """From a mapping that may be written, one that may not, one of its own, and none."""
    x = wrapped(name, nested)
    ref = store.put(x)
    for _ in range(2):
        back = ref.get(mode=mode)
        assert portrait(back) == portrait(x)
        del back
    gc.collect()


@pytest.mark.row("S84-S100", "S102-S106", "S108", "S06")
@lock_free_only
@pytest.mark.parametrize("mode", ["shared", "private"])
@pytest.mark.parametrize("name", SPECIMENS)
def test_object_comes_back_in_another_process(
    store: Store,
    reader: Child,
    name: str,
    mode: str,
    nested: bool,  # noqa: FBT001 - a fixture
) -> None:
    """One that has nothing in common with this one but the store."""
    x = wrapped(name, nested)
    store.put(x, key="x")
    assert reader.ask(f"{mode} {store.path} x") == likeness(x)


@pytest.mark.row("S44", "S96", "F26", "F27")
@lock_free_only
@pytest.mark.parametrize("mode", ["shared", "readonly", "private"])
def test_arrays_of_an_object_have_the_flags_of_their_mode(store: Store, mode: str) -> None:
    """Each its own, however it is nested."""
    fixed, strided = np.arange(5), np.arange(20)[::2]
    fixed.flags.writeable = False
    x = {"fixed": fixed, "free": [np.arange(5)], "strided": strided, "none": np.zeros(0)}
    found = store.put(x).get(mode=mode)
    flags = {
        "fixed": found["fixed"].flags.writeable,
        "free": found["free"][0].flags.writeable,
        "strided": found["strided"].flags.writeable,
        "none": found["none"].flags.writeable,
    }
    assert flags == {
        "fixed": mode == "private",
        "free": mode != "readonly",
        "strided": mode != "readonly",
        "none": mode != "readonly",
    }
    del found
    gc.collect()
