"""Packed headers: what is written comes back, and no bytes make anything but our errors."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import rooms
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shmstore import ObjectRef, Store
from shmstore._memory import layout as L
from shmstore.errors import (
    CorruptStoreError,
    FormatVersionError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import headers
from shmstore.serialization.headers import FrameRow

ROOM = 4096

rows = st.builds(
    FrameRow,
    st.integers(0, ROOM // 2),
    st.integers(0, ROOM // 2),
    st.booleans(),
    st.none() | st.tuples(st.sampled_from(["lz4", "zstd"]), st.integers(0)).map(list),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(0, 9)), inner, max_size=4),
    ),
    max_leaves=12,
)


# --- packing -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=8), anything, max_size=5),
    table=st.lists(rows, max_size=5),
)
def test_header_packed_comes_back_the_same(header: dict[str, Any], table: list[FrameRow]) -> None:
    """Map and frame table, with rows of their own type."""
    assert headers.unpack(headers.pack(header, table), ROOM) == (header, table)


def test_header_that_cannot_be_packed_is_an_error_of_its_family() -> None:
    """A handler made something that no other process could read."""
    for value in (object(), np.float64(1)):
        with pytest.raises(SerializationError, match="'custom'") as caught:
            headers.pack({"serializer": "custom", "type": "Image", "odd": value}, [])
        assert caught.value.facts["type"] == "Image"


@settings(deadline=None)
@given(table=st.lists(rows, min_size=1, max_size=5), room=st.integers(0, ROOM))
def test_frames_that_leave_their_extent_are_damage(table: list[FrameRow], room: int) -> None:
    """Exactly those: a frame that ends where the extent ends is inside."""
    packed = headers.pack({}, table)
    if all(row.offset + row.nbytes <= room for row in table):
        assert headers.unpack(packed, room)[1] == table
    else:
        with pytest.raises(CorruptStoreError, match="leaves its extent"):
            headers.unpack(packed, room)


@pytest.mark.parametrize("version", [0, 1, 3, None, "1", [1], -1])
def test_header_of_another_version_is_refused_with_both_numbers(version: Any) -> None:
    """The version comes before everything that it may have changed."""
    with pytest.raises((FormatVersionError, CorruptStoreError)) as caught:
        headers.unpack(msgpack.packb([version, {}, []]), ROOM)
    if isinstance(caught.value, FormatVersionError):
        assert caught.value.facts == {"found": version, "expected": 2}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        [2],
        [2, {}],
        [2, {}, [], []],
        [2, [], []],
        [2, "header", []],
        [2, {}, None],
        [2, {}, 3],
        [2, {}, [[]]],
        [2, {}, [[0, 1]]],
        [2, {}, [[0, 1, True, None, 5]]],
        [2, {}, [["0", 1, True, None]]],
        [2, {}, [[0.0, 1, True, None]]],
        [2, {}, [[-64, 64, True, None]]],
        [2, {}, [[64, -64, True, None]]],
        [2, {}, [[True, 1, True, None]]],
        [2, {}, [[(1 << 64) - 1, 1, True, None]]],
        [2, {}, [[0, (1 << 64) - 1, True, None]]],
    ],
)
def test_header_of_another_make_is_damage(content: Any) -> None:
    """Each part has its type, each number its limits."""
    with pytest.raises(CorruptStoreError):
        headers.unpack(msgpack.packb(content), ROOM)


# --- fuzz ----------------------------------------------------------------------------------------


def _assert_safe(packed: bytes) -> None:
    """Unpack; what comes back without an error of ours may be used."""
    try:
        header, table = headers.unpack(packed, ROOM)
    except ShmStoreError:
        return
    assert type(header) is dict
    for row in table:
        assert 0 <= row.offset <= row.offset + row.nbytes <= ROOM


@settings(deadline=None, max_examples=400)
@given(packed=st.binary(max_size=200))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc7\x08\xff" + bytes(8))
@example(b"\xd6\xff\xff\xff\xff\xff")
@example(b"\x91" * 100_000)
@example(b"\x81\x90\x01")
def test_header_of_any_bytes_gives_an_error_of_ours_or_a_safe_header(packed: bytes) -> None:
    """Lengths that lie, nesting without end, keys that cannot be keys."""
    _assert_safe(packed)


@settings(deadline=None, max_examples=400)
@given(content=anything)
def test_header_of_any_message_gives_an_error_of_ours_or_a_safe_header(content: Any) -> None:
    """Well-formed, but of any shape."""
    _assert_safe(msgpack.packb(content))
    _assert_safe(msgpack.packb([2, content, content]))
    _assert_safe(msgpack.packb([2, {}, [content]]))


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_header_with_a_changed_byte_or_cut_gives_an_error_of_ours_or_a_safe_header(
    position: int, value: int, cut: int
) -> None:
    """As a stray write would leave it."""
    header = {"serializer": "custom", "type": "numpy.ndarray", "sub-header": {"shape": [3, 4]}}
    packed = bytearray(headers.pack(header, [FrameRow(0, 96, writeable=True)]))
    packed[position % len(packed)] = value
    _assert_safe(bytes(packed))
    _assert_safe(bytes(packed[: cut % len(packed)]))


# --- through a store -----------------------------------------------------------------------------


class Victim:
    """A stored array whose slot and header can be written over."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ref = store.put(np.arange(16, dtype="u1"), key="victim")
        index = store._session.index  # type: ignore[union-attr]
        self.words = index.words
        self.slot = index.geometry.slots
        self.memory = memoryview(index.memory)
        self.original = self.words[self.slot : self.slot + L.SLOT_WORDS].tolist()

    def write_header(self, content: Any) -> None:
        """Give the array another header, packed as a put would pack it."""
        packed = msgpack.packb(content)
        if len(packed) > L.INLINE_NBYTES:
            packed = msgpack.packb(None)
        start = self.slot * 8 + L.INLINE_OFFSET
        self.memory[start : start + len(packed)] = packed
        self.words[self.slot + L.S_HEADER_NBYTES] = len(packed)

    def repair(self) -> None:
        """Write the slot as it was."""
        for number, word in enumerate(self.original):
            self.words[self.slot + number] = word

    def look(self) -> list[Any]:
        """Ask everything that reads the slot; return what was got, errors of ours left out."""
        ref: ObjectRef = pickle.loads(pickle.dumps(self.ref))
        self.store._plans.clear()
        got = []
        for mode in ("shared", "readonly", "private", "copy"):
            looks: list[Callable[..., Any]] = [
                ref.get,
                partial(ref.get, deserializers=("custom",)),
                partial(self.store.get, "victim"),
            ]
            for look in looks:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        got.append(look(mode=mode))
                    except ShmStoreError:
                        continue
        for inspect in (ref.info, self.store.objects, self.store.check, lambda: list(self.store)):
            try:
                inspect()
            except ShmStoreError:
                continue
        return got


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """Give a victim that is written over again and again."""
    with (
        rooms.memory_folder() as folder,
        Store.create(root=Path(folder), capacity="1MiB") as store,
    ):
        yield Victim(store)


def test_victim_left_alone_is_read(victim: Victim) -> None:
    """What the tests below look for can be found."""
    victim.repair()
    assert [array.tolist() for array in victim.look()] == [list(range(16))] * 12


# What stands where in the header of an array, and what may stand there instead.
dtype_like = st.one_of(
    st.sampled_from(["|u1", "<f8", "|O", "", "V0", "nonsense", "i4,i4", "(2,3)f4", "<U1000000"]),
    anything,
    st.fixed_dictionaries(
        {},
        optional={
            "names": anything,
            "formats": st.lists(st.sampled_from(["u1", "O", "x"]), max_size=2),
            "offsets": st.lists(st.integers(-8, 1 << 40), max_size=2),
            "titles": anything,
            "itemsize": st.integers(-1, 1 << 62),
            "aligned": anything,
        },
    ),
)
sizes = st.one_of(st.lists(st.integers(-(1 << 62), 1 << 62), max_size=4), anything)
sub_headers = st.one_of(
    anything,
    st.fixed_dictionaries(
        {}, optional={"dtype": dtype_like, "shape": sizes, "strides": st.one_of(st.none(), sizes)}
    ),
)
forged_headers = st.one_of(
    anything,
    st.fixed_dictionaries(
        {},
        optional={
            "serializer": st.one_of(st.sampled_from(["custom", "pickle"]), anything),
            "type": st.one_of(st.sampled_from(["numpy.ndarray", "numpy.matrix"]), anything),
            "sub-header": sub_headers,
            "writeable": anything,
            "key": anything,
        },
    ),
)
forged_rows = st.one_of(
    anything,
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64), anything, st.none()), max_size=3),
)


@settings(deadline=None, max_examples=300)
@given(header=forged_headers, table=forged_rows)
@example({"type": "numpy.ndarray"}, [])
@example({"serializer": "custom", "type": "numpy.ndarray", "sub-header": {}}, [])
@example({"serializer": ["custom"], "type": "dict"}, [])
@example({"serializer": "custom", "type": {}}, [[0, 16, True, None]])
def test_object_with_a_forged_header_gives_an_error_of_ours_or_stays_in_its_extent(
    victim: Victim, header: Any, table: Any
) -> None:
    """Whatever the header says: no crash, no other error, no byte from beyond the extent."""
    victim.repair()
    victim.write_header([2, header, table])
    for got in victim.look():
        if isinstance(got, np.ndarray):
            assert got.nbytes <= 64 or 0 in got.strides
    victim.repair()


@settings(deadline=None, max_examples=200)
@given(
    field=st.integers(1, L.S_INLINE - 1),
    value=st.one_of(
        st.integers(0, 1 << 10), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 20, 1 << 63])
    ),
)
def test_object_with_a_forged_slot_gives_an_error_of_ours_or_the_object(
    victim: Victim, field: int, value: int
) -> None:
    """Any number in any field but the state word."""
    victim.repair()
    victim.words[victim.slot + field] = value
    victim.look()
    victim.repair()


@pytest.mark.parametrize("depth", [100, 500, 1000, 5000])
def test_object_with_a_header_nested_very_deep_gives_an_error_of_ours(depth: int) -> None:
    """Neither unpacking nor interpreting it leaves the stack."""
    nested: Any = b"\xa2u1"
    for _ in range(depth):
        nested = b"\x92" + nested + b"\x91\x01"
    header = {"serializer": "custom", "type": "numpy.ndarray", "sub-header": {"shape": [16]}}
    packed = msgpack.packb([2, header, [[0, 16, True, None]]])
    before, _, after = packed.partition(msgpack.packb("sub-header") + b"\x81")
    forged = before + msgpack.packb("sub-header") + b"\x82" + b"\xa5dtype" + nested + after
    with Store.create(capacity="1MiB") as store:
        ref = store.put(np.zeros(32 << 10, "u1"))
        session = store._session
        assert session is not None
        words, base = session.index.words, session.index.geometry.slots
        with (store.path / "segment-00000").open("r+b") as file:
            file.seek((32 << 10) - L.align(len(forged)))
            file.write(forged)
        words[base + L.S_HEADER_NBYTES] = len(forged)
        words[base + L.S_KIND] |= L.KIND_HEADER_IN_EXTENT
        rooms.seal(session, 0)
        with pytest.raises(ShmStoreError, match=r"slot 0|packed header"):
            pickle.loads(pickle.dumps(ref)).get()


@pytest.mark.parametrize("nbytes", [449, 1 << 20, 1 << 31])
def test_object_whose_header_leaves_its_extent_is_damage(nbytes: int) -> None:
    """What lies there belongs to others."""
    with Store.create(capacity="1MiB") as store:
        ref = store.put(np.zeros(64, "u1"), key="k" * 300)
        assert store.stats().used == 64 + 384
        session = store._session
        assert session is not None
        session.index.words[session.index.geometry.slots + L.S_HEADER_NBYTES] = nbytes
        with pytest.raises(CorruptStoreError, match="out of bounds"):
            pickle.loads(pickle.dumps(ref)).get()


def test_object_whose_header_in_the_extent_is_written_over_is_damage() -> None:
    """A stray write through a view can reach the header of a large one; it is noticed."""
    with Store.create(capacity="1MiB") as store:
        ref = store.put(np.zeros(100, "u1"), key="k" * 300)
        with (store.path / "segment-00000").open("r+b") as file:
            file.seek(128)
            file.write(struct.pack("<8Q", *range(8)))
        with pytest.raises(CorruptStoreError):
            pickle.loads(pickle.dumps(ref)).get()
        assert {finding.invariant for finding in store.check()} == {5}
