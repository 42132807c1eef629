"""The format: golden bytes, and a page that says the same as the code."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pickle
import re
import struct
import textwrap
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import pytest
import rooms
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import Store, _check
from shmstore._catalog import states
from shmstore._memory import layout
from shmstore.serialization import headers

PAGE = 4096
FORMAT_PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "format.md"

# The geometry of the stores below, worked out by hand from docs/explanation/format.md.
MAX_OBJECTS, MAX_CLIENTS, CAPACITY = 100, 10, 1 << 20
CLIENTS_AT = 8192
BUCKETS_AT = CLIENTS_AT + 4096
NODES_AT = BUCKETS_AT + 4096
SLOTS_AT = NODES_AT + 16384
WAITERS_AT = SLOTS_AT + 32768
INDEX_NBYTES = WAITERS_AT + 65536


def _words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def _bytes(words: dict[int, int], nbytes: int) -> bytes:
    data = bytearray(nbytes)
    for word, value in words.items():
        struct.pack_into("<Q", data, 8 * word, value)
    return bytes(data)


def _nonzero(data: bytes) -> dict[int, int]:
    return {word: value for word, value in enumerate(_words(data)) if value}


def _digest(key: str) -> list[int]:
    return _words(hashlib.blake2b(key.encode(), digest_size=16).digest())


def _bucket_of(key: str) -> int:
    return _digest(key)[0] % 64


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    """Give a store whose geometry is the one above."""
    with Store.create(
        "golden", root=root, capacity=CAPACITY, max_objects=MAX_OBJECTS, max_clients=MAX_CLIENTS
    ) as created:
        yield created


def _index(store: Store, offset: int, nbytes: int) -> bytes:
    with (store.path / "index").open("rb") as file:
        file.seek(offset)
        return file.read(nbytes)


def _low_uuid(store: Store) -> int:
    return _words(_index(store, 0, 32))[3] & 0xFFFFFFFF


# --- golden bytes --------------------------------------------------------------------------------


def test_superblock_of_a_new_store_is_these_bytes() -> None:
    """A store made of known numbers has a superblock known to the last byte."""
    made_from = rooms.identity(
        capacity=CAPACITY, max_objects=MAX_OBJECTS, max_clients=MAX_CLIENTS, flags=5
    )
    constants = {
        0: int.from_bytes(b"shmstore", "little"),
        1: 3,
        2: 0x0102030405060708,
        3: 0x8899AABBCCDDEEFF,
        4: 0x0011223344556677,
        5: CAPACITY,
        6: MAX_OBJECTS,
        7: MAX_CLIENTS,
        8: 5,
        9: 1_700_000_000,
        10: 4242,
    }
    crc = zlib.crc32(_bytes(constants, 104))
    with rooms.memory_folder() as folder:
        with rooms.open_index(folder, made_from, backed=8192):
            pass
        content = (folder / "index").read_bytes()
    assert len(content) == INDEX_NBYTES
    begun = {18: 1, 19: 1, 33: 8192, 35: 16384, 37: 16384}
    assert content == _bytes({**constants, 13: crc, **begun}, INDEX_NBYTES)


def test_files_of_a_store_are_those_of_the_page(store: Store) -> None:
    """Each file that the page names exists, and no other."""
    named = re.findall(r"^\| `([\w/-]+)` \|", FORMAT_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = [entry.name + "/" * entry.is_dir() for entry in store.path.iterdir()]
    assert sorted(found) == sorted(named)
    assert (store.path / "lock").read_bytes() == b""
    assert (store.path / "segment-00000").stat().st_size == CAPACITY + PAGE
    assert (store.path / "index").stat().st_size == INDEX_NBYTES


def test_slot_of_a_small_object_is_these_bytes(store: Store) -> None:
    """A small named object lies in the slot: words, header, pickle."""
    store.put({"a": 1}, key="k")
    stream = pickle.dumps({"a": 1}, 5)
    header = msgpack.packb([2, {"type": "dict", "key": "k"}, []])
    content = _index(store, SLOTS_AT, 320)
    words = _words(content[:128])
    kind = 2 | 4 | 8
    crc = zlib.crc32(content[56:128] + header + stream, (1 << 8 | kind) ^ _low_uuid(store))
    created_ns, words[13] = words[13], 0
    low, high = _digest("k")
    assert words == [
        *(1 << 8 | 2, 0, 0, 0, 0, 1, kind | crc << 32, 1),
        *(0, len(header), len(stream), low, high, 0, os.getpid(), 0),
    ]
    assert created_ns > 1_700_000_000 * 10**9
    assert content[128:] == (header + stream).ljust(192, b"\0")
    assert _words(_index(store, BUCKETS_AT, 64 * 8)) == [
        int(bucket == _bucket_of("k")) for bucket in range(64)
    ]


def test_slot_and_extent_of_an_array_are_these_bytes(store: Store) -> None:
    """An array lies in the segment as it is; its header in the slot says how it looks."""
    array = np.arange(10, 13, dtype=">i4")
    store.put(0)
    store.put(array)
    words = _words(_index(store, SLOTS_AT + 320, 320))
    packed = struct.pack("<24Q", *words[16:])[: words[9]]
    header = msgpack.unpackb(packed)
    first = 2 << 8 ^ 0x9E3779B1 ^ _low_uuid(store)
    crc = zlib.crc32(struct.pack("<9Q", *words[7:16]) + packed, first)
    extent = (0 ^ 2 * 0x9E3779B1) * 0x9E3779B97F4A7C15 >> 48 & 0xFFFF
    assert words[:9] == [2 << 8 | 2, extent << 48, 1, 0, 1, 2, crc << 32, 1, 64]
    assert words[10:13] == [12, 0, 0]
    assert words[14:16] == [os.getpid(), 0]
    assert header == [
        2,
        {
            "serializer": "custom",
            "type": "numpy.ndarray",
            "sub-header": {"dtype": ">i4", "shape": [3]},
        },
        [[0, 12, True, None]],
    ]
    with (store.path / "segment-00000").open("rb") as file:
        assert file.read(64) == array.tobytes().ljust(64, b"\0")
    assert _nonzero(_index(store, NODES_AT, 64)) == {1: 64, 2: 2, 5: 2}


def test_header_too_long_for_the_slot_lies_behind_the_frames(store: Store) -> None:
    """KIND says so; it lies at the end of the extent."""
    key = "k" * 500
    store.put(np.zeros(100, "u1"), key=key)
    words = _words(_index(store, SLOTS_AT, 128))
    header_nbytes, kind, header_offset = words[9], words[6] & 0xFF, 128
    assert (words[1] & (1 << 48) - 1, words[8]) == (0, 128 + -(-header_nbytes // 64) * 64)
    assert kind == 1 | 8
    with (store.path / "segment-00000").open("rb") as file:
        file.seek(header_offset)
        version, header, table = msgpack.unpackb(file.read(header_nbytes))
    assert (version, header["key"], table) == (2, key, [[0, 100, True, None]])


def test_words_of_the_superblock_follow_the_objects(store: Store) -> None:
    """After three puts and a delete the counters are these."""
    store.put(b"small", key="a")
    ref = store.put(np.ones(1000), key="b")
    store.put(np.ones(16))
    view = ref.get()
    ref.delete()
    changing = {w: v for w, v in _nonzero(_index(store, 0, 512)).items() if w >= 16}
    puts = {18: 4, 19: 2, 20: 3, 22: 2, 23: 2, 24: 2, 25: 1, 26: 8000 + 128, 27: 8000}
    tables = {28: 64, 29: 2, 31: 8000 + 128, 32: 2, 34: 1, 35: 16384, 36: 4096, 37: 16384}
    assert changing == puts | tables
    del view


def test_client_row_and_seat_are_these_bytes(store: Store) -> None:
    """The creator sits in row 0 on seat 1; a view takes the first cell."""
    ref = store.put(np.arange(5))
    view = ref.get()
    row = _words(_index(store, CLIENTS_AT, 64))
    assert row[:2] == [1, os.getpid()]
    assert 0 < row[2] < row[3]
    assert row[4:] == [0, 0, 0, 0]
    with (store.path / "seats" / "1").open("rb") as file:
        seat = _words(file.read(PAGE))
    assert seat[:2] == [int.from_bytes(b"shmsseat", "little"), 1]
    assert seat[3:8] == [0] * 5
    assert seat[8:32] == [1, 40, 1, 40] + [0] * 20
    cells = seat[32 : 32 + 2 * seat[2]]
    used = [(pin, since) for pin, since in zip(cells[::2], cells[1::2], strict=True) if pin]
    assert [pin for pin, _ in used] == [1]
    assert 0 <= time.monotonic() - struct.unpack("d", struct.pack("Q", used[0][1]))[0] < 60
    assert not any(seat[32 + 2 * seat[2] :])
    del view


def _slot(generation: int, kind: int, sizes: tuple[int, ...], name: str, beside: bytes) -> bytes:
    """Return the words and inline bytes of a slot, but for EXTENT, NODE and CHAIN."""
    extent_nbytes, header_nbytes, data_nbytes = sizes
    origin = (*_digest(name), 1, 1, 0)
    described = struct.pack("<9Q", 1, extent_nbytes, header_nbytes, data_nbytes, *origin)
    slot = generation - 1
    crc = zlib.crc32(described + beside, (generation << 8 | kind) ^ slot * 0x9E3779B1 ^ 7)
    words = (generation << 8 | 2, 0, 0, 0, 0, 0, kind | crc << 32)
    return struct.pack("<7Q", *words) + described + beside.ljust(192, b"\0")


def _make_by_hand(folder: Path) -> None:
    """Write a store with an array "numbers" and a text "word", after the page alone."""
    array, word = np.arange(7, dtype="<u2"), pickle.dumps("hello", 5)
    packed = msgpack.packb(
        [
            2,
            {
                "serializer": "custom",
                "type": "numpy.ndarray",
                "sub-header": {"dtype": "<u2", "shape": [7]},
                "key": "numbers",
            },
            [[0, 14, False, None]],
        ]
    )
    plain = msgpack.packb([2, {"type": "str", "key": "word"}, []])
    marks = {0: int.from_bytes(b"shmstore", "little"), 1: 3, 2: 0x0102030405060708, 3: 7, 4: 9}
    constants = marks | {5: CAPACITY, 6: MAX_OBJECTS, 7: MAX_CLIENTS, 8: 1 | 2, 9: 1, 10: 1}
    crc = zlib.crc32(_bytes(constants, 104))
    counters = {13: crc, 18: 3, 19: 1, 20: 2, 24: 2, 25: 2, 26: 64}
    tables = {28: 64, 29: 1, 31: 64, 32: 1, 35: 32768, 36: 4096, 37: 16384}
    buckets = {_bucket_of("numbers"): 1}
    chain = buckets.get(_bucket_of("word"), 0)
    buckets[_bucket_of("word")] = 2
    first = bytearray(_slot(1, 8, (64, len(packed), 14), "numbers", packed))
    struct.pack_into(
        "<2Q", first, 8, ((0 ^ 0x9E3779B1) * 0x9E3779B97F4A7C15 >> 48 & 0xFFFF) << 48, 1
    )
    second = bytearray(_slot(2, 2 | 4 | 8, (0, len(plain), len(word)), "word", plain + word))
    struct.pack_into("<Q", second, 24, chain)
    index = (
        _bytes(constants | counters | tables, 8192 + 4096)
        + _bytes(buckets, 4096)
        + _bytes({1: 64, 2: 2, 5: 1}, 16384)
        + (first + second).ljust(32768, b"\0")
        + bytes(65536)
    )
    folder.mkdir(mode=0o700)
    (folder / "seats").mkdir(mode=0o700)
    label = _bytes({0: int.from_bytes(b"shmssegm", "little"), 1: 7, 2: 9}, PAGE)
    segment = array.tobytes().ljust(CAPACITY, b"\0") + label
    for name, content in (("lock", b""), ("index", index), ("segment-00000", segment)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


def test_store_written_by_hand_is_read_and_in_order(root: Path) -> None:
    """Who follows the page writes stores that this library takes for its own."""
    _make_by_hand(root / "by-hand")
    with Store.attach(root / "by-hand") as store:
        assert store.check() == []
        assert sorted(store) == ["numbers", "word"]
        assert store["word"] == "hello"
        numbers = store["numbers"]
        assert numbers.tolist() == list(range(7))
        assert numbers.dtype == np.dtype("<u2")
        assert not numbers.flags.writeable
        store["more"] = np.ones(100)
        del numbers
        del store["numbers"]
        assert store.check() == []
        store.destroy()


# --- the page, the docstring and the constants ---------------------------------------------------


def _literal_blocks(docstring: str) -> list[str]:
    """Return the indented blocks that follow a line ending in "::"."""
    blocks = re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", docstring)
    return [textwrap.dedent(block).strip("\n") for block in blocks]


def _fenced_blocks(page: str) -> list[str]:
    return [block.strip("\n") for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL)]


def test_page_has_the_tables_of_the_layout() -> None:
    """Index, client row, node, slot, queue and seat stand there as in the module that owns them."""
    blocks = _literal_blocks(layout.__doc__ or "")
    assert len(blocks) == 8
    assert _fenced_blocks(FORMAT_PAGE.read_text(encoding="utf-8")) == blocks


def _constants(prefix: str) -> dict[str, int]:
    sizes = ("NODE_WORDS", "SLOT_WORDS", "SLOT_NBYTES", "SEAT_NBYTES")
    return {
        name.removeprefix(prefix): value
        for name, value in vars(layout).items()
        if name.startswith(prefix) and name not in sizes
    }


def _rows(block: str) -> dict[str, int]:
    """Return field and first word of each line of a table."""
    pattern = r"^(\d+)(?:, \d+| to \d+| \.\.)? +([A-Z_]+)\b"
    return {name: int(word) for word, name in re.findall(pattern, block, re.MULTILINE)}


def _pairs(block: str) -> dict[str, int]:
    """Return field and word of tables that are written in a line."""
    return {name: int(word) for word, name in re.findall(r"\b(\d+) ([A-Z_]{2,})", block)}


def test_constants_of_the_layout_are_those_of_its_tables() -> None:
    """No field is missing in the tables, and each stands at its word."""
    index, client, node, slot, queue, waiter, seat, segment = _literal_blocks(layout.__doc__ or "")
    assert _constants("W_") == _rows(index)
    assert _constants("C_") == _pairs(client)
    assert _constants("N_") == _pairs(node)
    assert _constants("S_") == _rows(slot) | _rows(queue)
    assert _constants("WAIT_") == _pairs(waiter)
    cells = {"FIRST_CELL": 32, "MAGIC": layout.SEAT_MAGIC}
    assert _constants("SEAT_") == _pairs(seat) | cells
    assert segment.startswith("0 MARK   1, 2 UUID")


def test_ranges_of_the_layout_do_not_overlap() -> None:
    """The bitmaps and heads of the allocator fill exactly the words that the table gives them."""
    assert layout.W_SECOND_LEVEL + layout.FIRST_LEVELS - 1 == 112
    assert layout.W_FREE_HEADS + layout.FIRST_LEVELS * layout.SECOND_LEVELS - 1 == 895
    assert layout.SLOT_NBYTES == 320
    assert layout.INLINE_NBYTES == 192
    assert layout.SUPERBLOCK_NBYTES == 8192
    assert len(set(_constants("W_").values())) == len(_constants("W_"))


def test_page_has_the_states_and_their_moves() -> None:
    """The table of states is the transition table."""
    page = FORMAT_PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([A-Z]+) \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    assert {int(number): name for number, name, _ in rows} == states.NAMES
    numbers = {name: number for number, name in states.NAMES.items()}
    moves = {
        (int(number), numbers[after])
        for number, _, following in rows
        for after in re.findall(r"[A-Z]{4,}", following)
    }
    legal = set()
    for before in states.NAMES:
        for after in states.NAMES:
            for change in (states.move, partial(states.begin, generation=1)):
                with contextlib.suppress(AssertionError):
                    change(before, state=after)
                    legal.add((before, after))
    assert moves == legal


def test_page_has_the_frame_table_and_version_of_the_headers() -> None:
    """The columns are those of a row, and the version is the one that is written."""
    page = FORMAT_PAGE.read_text(encoding="utf-8")
    table = page.partition("The frame table has a row per frame:")[2].partition("\n\nA plain")[0]
    columns = re.findall(r"^\| ([a-z]+) \|", table, re.MULTILINE)
    assert columns == ["column", *headers.FrameRow._fields]
    assert f"its version is {headers.HEADER_VERSION}." in page
    assert layout.FORMAT_VERSION == 3


def test_page_has_the_invariants_that_are_checked() -> None:
    """The numbered sentences are those of the functions that prove them."""
    page = FORMAT_PAGE.read_text(encoding="utf-8").partition("## What must always be true")[2]
    sentences = re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE)
    checked = [
        (function.__doc__ or "").partition("\n")[0] for function in _check.INVARIANTS.values()
    ]
    assert [f"{number}: {sentence}" for number, sentence in sentences] == checked
    assert [int(number) for number, _ in sentences] == list(_check.INVARIANTS)


# --- geometry ------------------------------------------------------------------------------------


def test_geometry_of_known_sizes_is_the_one_worked_out_by_hand() -> None:
    """Word indexes follow from the rows of the tables."""
    geometry = layout.Geometry(MAX_OBJECTS, MAX_CLIENTS)
    starts = (geometry.clients, geometry.buckets, geometry.nodes, geometry.slots)
    assert [8 * start for start in starts] == [CLIENTS_AT, BUCKETS_AT, NODES_AT, SLOTS_AT]
    assert geometry.nbytes == INDEX_NBYTES


@settings(deadline=None)
@given(max_objects=st.integers(1, 1 << 31), max_clients=st.integers(1, 1 << 16))
def test_geometry_of_any_sizes_has_room_for_every_row(max_objects: int, max_clients: int) -> None:
    """Tables begin at pages, do not overlap, and are as long as their rows."""
    geometry = layout.Geometry(max_objects, max_clients)
    tables = [
        (0, 8192),
        (8 * geometry.clients, 64 * max_clients),
        (8 * geometry.buckets, 8 * geometry.max_buckets),
        (8 * geometry.nodes, 64 * geometry.max_nodes),
        (8 * geometry.slots, 320 * max_objects),
        (8 * geometry.waiters, 64 * geometry.max_waiters),
        (geometry.nbytes, 0),
    ]
    for (start, nbytes), (following, _) in itertools.pairwise(tables):
        assert start % PAGE == 0
        assert start + nbytes <= following < start + nbytes + PAGE
    assert max_objects <= geometry.max_buckets
    assert geometry.max_nodes > 2 * max_objects


@settings(deadline=None)
@given(nbytes=st.integers(0, 1 << 60), power=st.integers(0, 20))
def test_align_gives_the_next_multiple(nbytes: int, power: int) -> None:
    """Never less, never a whole boundary more."""
    aligned = layout.align(nbytes, 1 << power)
    assert aligned % (1 << power) == 0
    assert nbytes <= aligned < nbytes + (1 << power)
