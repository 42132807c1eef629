"""Forged headers in a store, and objects that misbehave while they are put."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from family_helpers import own_families, own_handlers
from forgeries import SAFE, custom, put_packed
from stores import exit_code, forked, in_threads, lock_free_only, used, wait_until

from shmstore import Store, _writing
from shmstore._catalog.inserts import Content
from shmstore._catalog.keys import NO_KEY
from shmstore._memory import layout as L
from shmstore._packing import Package
from shmstore.errors import (
    CorruptHeaderError,
    CorruptStoreError,
    DeserializationError,
    FormatVersionError,
    ModuleRefusedError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import (
    Serialized,
    deserialize,
    msgpacking,
    register_serialization,
    register_serialization_family,
    serialize,
)
from shmstore.serialization.frames import Planned, ensure_memoryview
from shmstore.serialization.headers import HEADER_VERSION


@pytest.fixture
def handlers() -> Iterator[None]:
    """Forget afterwards which types were registered."""
    with own_handlers():
        yield


BEYOND = {
    "last stride": [4, 8, 2**63 - 1],
    "first stride": [2**63 - 1, 8, 24],
    "wrapped to the front": [4, 8, 2**62],
    "backwards": [4, 8, -24],
}


@pytest.mark.parametrize("strides", BEYOND.values(), ids=BEYOND)
def test_array_whose_strides_leave_its_frame_is_refused(store: Store, strides: list[int]) -> None:
    """The check of NumPy itself wraps."""
    header = custom("numpy.ndarray", dtype=">i4", shape=[2, 3, 4], strides=strides)
    with pytest.raises(CorruptHeaderError):
        deserialize(header, [bytes(96)], SAFE)
    ref = put_packed(store, [HEADER_VERSION, header, [[0, 96, True, None]]], [bytes(96)])
    for accepted in (None, SAFE):
        with pytest.raises((CorruptHeaderError, CorruptStoreError)):
            store.get(ref, deserializers=accepted)
    store.delete(ref)


# --- what lies in the store -----------------------------------------------------------------------


ROWS = {
    "no codec": [0, 96, True, 5],
    "name alone": [0, 96, True, "zlib"],
    "too few": [0, 96, True, ["zlib"]],
    "too many": [0, 96, True, ["zlib", 1, 2]],
    "no name": [0, 96, True, [[], 5]],
    "no size": [0, 96, True, ["zlib", "x"]],
    "negative": [0, 96, True, ["zlib", -5]],
    "bomb": [0, 96, True, ["zlib", 1 << 50]],
    "flag": [0, 96, "x", None],
    "short": [0, 96],
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_forged_rows_of_frame_tables_are_refused(store: Store, row: list[Any]) -> None:
    """By our error, in every mode."""
    ref = put_packed(store, [HEADER_VERSION, custom("bytes"), [row]], [bytes(96)])
    for mode in ("shared", "copy", "private", "readonly"):
        with pytest.raises((CorruptStoreError, CorruptHeaderError)):
            store.get(ref, mode=mode)
    store.delete(ref)


@pytest.mark.parametrize("rest", [(), ({}, []), ({}, [], 5), ("x", 5)], ids=str)
def test_stored_headers_of_other_versions_are_refused_by_name(store: Store, rest: Any) -> None:
    """Whatever else they hold."""
    ref = put_packed(store, msgpack.packb([99, *rest]))
    with pytest.raises(FormatVersionError, match="99"):
        ref.get()
    store.delete(ref)


def test_stored_header_that_names_a_module_says_so(store: Store) -> None:
    """As elsewhere."""
    member = msgpack.ExtType(7, msgpack.packb(["os", "system", None, 1]))
    header = {**custom("bytes"), "odd": member}
    ref = put_packed(store, msgpack.packb([HEADER_VERSION, header, []]))
    with pytest.raises(ModuleRefusedError, match="os"):
        ref.get()
    store.delete(ref)


def test_damaged_small_pickle_is_told_each_time(store: Store) -> None:
    """Also by the second get, which takes a shorter way."""
    packed = msgpacking.packb([HEADER_VERSION, {"type": "int"}, []])
    content = Content(L.KIND_PLAIN | L.KIND_INLINE, packed, b"", 0, NO_KEY)
    ref = _writing.put(store._session, Package(content, (), 0, None), overwrite=True)
    for _ in range(3):
        with pytest.raises(DeserializationError):
            ref.get()


# --- put ------------------------------------------------------------------------------------------


def test_put_holds_frames_against_their_header(store: Store) -> None:
    """What was cut on the way is not made whole by being stored."""
    header, frames = serialize(b"x" * 100_000)
    with pytest.raises(CorruptHeaderError):
        store.put(Serialized(header, [ensure_memoryview(frames[0])[:-1]]))
    assert store.stats().objects == 0


@pytest.mark.parametrize(
    "x",
    [
        Serialized("text", []),  # type: ignore[arg-type]
        Serialized(5, []),  # type: ignore[arg-type]
        Serialized({"serializer": "pickle"}, [b"abc"]),
        Serialized(custom("bytes"), [5]),
        Serialized(custom("bytes"), 5),  # type: ignore[arg-type]
        Serialized({**custom("bytes"), "writeable": 5}, [b"x"]),
        Serialized({**custom("bytes"), "odd": object()}, [b"x"]),
    ],
    ids=range(7),
)
def test_put_refuses_what_is_no_header_and_frames(store: Store, x: Serialized) -> None:
    """By our error; nothing stays behind."""
    with pytest.raises(ShmStoreError):
        store.put(x)
    assert store.stats().objects == 0


class Own:
    """Taken by a family of its user."""


def test_family_need_not_name_a_type(store: Store) -> None:
    """Its header is its own."""
    with own_families():
        register_serialization_family(
            "mine", lambda _: ({"n": 7}, []), lambda header, _: header["n"]
        )
        assert store.put(Own(), serializers=("mine",)).get() == 7


class Plan:
    """Made at its destination."""

    def __init__(self, write_into: Callable[[memoryview], Any], nbytes: int = 1 << 20) -> None:
        self.write_into = write_into
        self.nbytes = nbytes


@pytest.fixture
def planned(handlers: None) -> None:
    """Handle `Plan`; what comes back is the frame."""
    register_serialization(
        Plan, lambda x: ({}, [Planned(x.nbytes, x.write_into)]), lambda _, frames: bytes(frames[0])
    )


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("nbytes", [1000, 1 << 20])
def test_writer_that_is_killed_leaves_nothing(store: Store, nbytes: int) -> None:
    """In the middle of making its bytes."""
    store["kept"] = np.arange(5)
    before = used(store)

    def die(_: memoryview) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        assert (
            exit_code(forked(lambda: store.put(Plan(die, nbytes), key="dead"))) == -signal.SIGKILL
        )
    store.recover()
    assert store.check() == []
    assert "dead" not in store
    assert used(store) == before
    assert store["kept"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("planned")
def test_writer_that_hangs_holds_nobody_up(store: Store, tmp_path: Any) -> None:
    """Other processes put, get and delete meanwhile."""
    started = tmp_path / "started"

    def hang(_: memoryview) -> None:
        started.touch()
        time.sleep(60)

    child = forked(lambda: store.put(Plan(hang), key="never"))
    try:
        wait_until(started.exists)
        begun = time.monotonic()
        for number in range(50):
            store[f"k{number}"] = np.arange(20_000)
            assert store[f"k{number}"][-1] == 19_999
            del store[f"k{number}"]
        assert time.monotonic() - begun < 30
        assert "never" not in store
    finally:
        os.kill(child, signal.SIGKILL)
        exit_code(child)
    store.recover()
    assert store.check() == []


@pytest.mark.usefixtures("planned")
def test_threads_that_put_one_object_all_put_it(make_store: Callable[..., Store]) -> None:
    """Its plan is carried out once for each of them."""
    store = make_store(capacity="32MiB")
    noise = np.random.default_rng(1).integers(0, 256, 1 << 18, np.uint8).tobytes()

    def write(view: memoryview) -> None:
        view[:] = noise

    x = [Plan(write, len(noise)), np.arange(60_000).reshape(2, -1).T]
    refs: list[Any] = []
    in_threads(*[lambda: refs.extend(store.put(x) for _ in range(5))] * 4)
    assert len(refs) == 20
    assert all(ref.get()[0] == noise for ref in refs)


class Growing:
    """Changes the container that it is in while that is pickled."""

    def __init__(self, container: dict[int, Any]) -> None:
        self.container = container

    def __reduce__(self) -> Any:
        """Add an element."""
        self.container[len(self.container)] = 1
        return int, ()


def test_container_that_changes_while_it_is_put_is_refused(store: Store) -> None:
    """The error names its place."""
    x: dict[int, Any] = {}
    x[0] = Growing(x)
    x[1] = np.arange(5)
    with pytest.raises(SerializationError, match=r"changed size.*obj\['a'\]\[2\]"):
        store.put({"a": [1, 2, x]})
    assert store.stats().objects == 0


def test_types_with_odd_names_come_back_or_are_named(store: Store) -> None:
    """Not ASCII, lone surrogates."""
    for name in ("\u00dcn\u00efc\u00f6de", "lone\ud800"):
        cls = type("Plain", (), {})
        cls.__qualname__ = name
        assert type(store.put(cls()).get()).__qualname__ == name
        cls.__reduce__ = lambda _: 1 / 0  # type: ignore[assignment,method-assign]
        with pytest.raises(SerializationError):
            store.put([1, cls()])


def test_many_small_frames_are_one_object(make_store: Callable[..., Store]) -> None:
    """Taken apart or not, out and in again as bytes."""
    store = make_store(capacity="64MiB")
    x = [np.arange(3) for _ in range(20_000)]
    for serializers in (None, SAFE):
        ref = store.put(x, serializers=serializers)
        assert len(ref.get()) == 20_000
        copy = store.load_bytes(store.dump_bytes(ref))
        assert copy.get()[-1].tolist() == [0, 1, 2]
        del ref, copy
        gc.collect()


@lock_free_only
def test_depth_is_bounded_by_errors_of_ours(store: Store) -> None:
    """Lists, tuples and dicts in each other, however they are put."""
    for wrap in (lambda x: [x], lambda x: (x,), lambda x: {"k": x}):
        x: Any = np.arange(3)
        # Code of C has a limit of its own, which is higher.
        for times, kinds in ((2, [SAFE]), (18, [None, ("msgpack",)])):
            for _ in range(sys.getrecursionlimit() * times):
                x = wrap(x)
            for serializers in kinds:
                with pytest.raises(SerializationError):
                    store.put(x, serializers=serializers)
        while len(x) == 1 and not isinstance(x, np.ndarray):
            x = x["k"] if isinstance(x, dict) else x[0]
    assert store.stats().objects == 0
