"""The index file: whose is it, is it whole, and how does it grow?"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import rooms
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore._memory.index import Identity, Index, create_index, new_identity
from shmstore.errors import CorruptStoreError, FormatVersionError, NotAStoreError

VERSION, BYTE_ORDER, CAPACITY, MAX_OBJECTS, MAX_CLIENTS, GEOMETRY_CRC = 1, 2, 5, 6, 7, 13
DAMAGED = (NotAStoreError, FormatVersionError, CorruptStoreError)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder in shared memory that holds a good index."""
    with rooms.memory_folder() as path:
        with rooms.open_index(path, rooms.identity()):
            pass
        yield path


def _write_words(folder: Path, words: dict[int, int], *, mend_crc: bool = False) -> None:
    with (folder / "index").open("r+b") as file:
        for word, value in words.items():
            file.seek(8 * word)
            file.write(struct.pack("<Q", value))
        if mend_crc:
            file.seek(0)
            crc = zlib.crc32(file.read(8 * GEOMETRY_CRC))
            file.write(struct.pack("<Q", crc))


def _open(folder: Path) -> None:
    with rooms.open_index(folder):
        pass


def test_index_opened_again_tells_what_it_was_made_of() -> None:
    """Every constant word comes back as it was written."""
    made_from = rooms.identity(capacity=3 << 20, max_objects=1000, max_clients=33, flags=5)
    with rooms.memory_folder() as folder:
        with rooms.open_index(folder, made_from) as index:
            assert index.identity == made_from
        with rooms.open_index(folder) as index:
            assert index.identity == made_from
            assert index.geometry.max_objects == 1000
            assert not index.protected


def test_index_of_a_new_store_has_an_identity_of_its_own() -> None:
    """Two stores made by one process in one moment differ by their uuid."""
    first, second = (new_identity(1 << 20, 10, 2, 0) for _ in range(2))
    assert first.creator_pid == os.getpid()
    assert first.uuid != second.uuid
    assert uuid.UUID(int=first.uuid).version == 4
    assert uuid.UUID(int=first.uuid).variant == uuid.RFC_4122


@pytest.mark.parametrize(
    "content", [b"", b"shmstore", b"\0" * 8192, b"SQLite format 3\0" * 1024, b"x" * 100_000]
)
def test_file_that_is_something_else_is_not_a_store(content: bytes) -> None:
    """Whatever lies there, the error says so and nothing is mapped."""
    with rooms.memory_folder() as folder:
        (folder / "index").write_bytes(content)
        with pytest.raises(NotAStoreError, match=r"name or (the )?folder of a store") as caught:
            _open(folder)
        assert caught.value.path == str(folder / "index")  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", [0, 1, 2, 1 << 63])
def test_index_of_another_version_is_refused_with_both_numbers(folder: Path, version: int) -> None:
    """The version is looked at before anything that it may have changed."""
    _write_words(folder, {VERSION: version, CAPACITY: 0})
    with pytest.raises(FormatVersionError, match="same version") as caught:
        _open(folder)
    assert caught.value.facts["found"] == version
    assert caught.value.facts["expected"] == 3


def test_index_of_another_byte_order_is_refused(folder: Path) -> None:
    """A big-endian machine would read every number wrong."""
    _write_words(folder, {BYTE_ORDER: 0x0807060504030201})
    with pytest.raises(FormatVersionError, match="0x807060504030201"):
        _open(folder)


@pytest.mark.parametrize("word", [*range(3, 13), GEOMETRY_CRC])
def test_index_with_a_changed_constant_is_damaged(folder: Path, word: int) -> None:
    """The checksum covers each of the words that never change."""
    with rooms.open_index(folder) as index:
        value = index.words[word]
    _write_words(folder, {word: value ^ 1})
    with pytest.raises(CorruptStoreError, match="checksum") as caught:
        _open(folder)
    assert caught.value.facts["offset"] == 8 * GEOMETRY_CRC


@pytest.mark.parametrize("change", [-4096, -1, 1, 4096])
def test_index_cut_or_extended_is_damaged(folder: Path, change: int) -> None:
    """A table that ends early would be a bus error; the length is compared with the geometry."""
    path = folder / "index"
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(CorruptStoreError, match="cut or extended"):
        _open(folder)


@pytest.mark.parametrize(
    "words",
    [
        {MAX_OBJECTS: 0},
        {MAX_OBJECTS: 1 << 62},
        {MAX_OBJECTS: (1 << 64) - 1},
        {MAX_CLIENTS: 0},
        {MAX_CLIENTS: 1 << 60},
        {CAPACITY: 0},
        {CAPACITY: 1 << 63},
        {CAPACITY: (1 << 20) + 1},
    ],
)
def test_index_forged_with_a_good_checksum_is_damaged(folder: Path, words: dict[int, int]) -> None:
    """Sizes that no store can have are refused before they are used."""
    _write_words(folder, words, mend_crc=True)
    with pytest.raises(CorruptStoreError):
        _open(folder)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_index_with_any_bit_flipped_in_its_constants_is_refused(data: st.DataObject) -> None:
    """One bit among the constant words is always noticed, with one of the three errors."""
    bit = data.draw(st.integers(0, 64 * (GEOMETRY_CRC + 1) - 1))
    with rooms.memory_folder() as folder:
        with rooms.open_index(folder, rooms.identity()) as index:
            index.words[bit // 64] ^= 1 << bit % 64
        with pytest.raises(DAMAGED):
            _open(folder)


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=200), length=st.integers(0, 40_000))
def test_index_of_any_bytes_gives_one_of_the_three_errors(content: bytes, length: int) -> None:
    """No file can make opening fail in another way."""
    with rooms.memory_folder() as folder:
        (folder / "index").write_bytes(content)
        os.truncate(folder / "index", length)
        with pytest.raises(DAMAGED):
            _open(folder)


def test_index_refused_leaves_its_descriptor_to_the_caller(folder: Path) -> None:
    """Who opened the file closes it; nothing of a refused index stays open."""
    _write_words(folder, {VERSION: 9})
    before = rooms.descriptors()
    with pytest.raises(FormatVersionError):
        _open(folder)
    assert rooms.descriptors() == before


def test_index_grows_only_by_pages_that_were_reserved() -> None:
    """Each table has its own measure, and the file its full length from the beginning."""
    with rooms.memory_folder() as folder:
        made_from = rooms.identity(max_objects=100_000)
        with rooms.open_index(folder, made_from) as index:
            length = (folder / "index").stat().st_size
            assert length == index.geometry.nbytes
            blocks = [(folder / "index").stat().st_blocks]
            for grow in (index.grow_slots, index.grow_buckets, index.grow_nodes):
                grow()
                blocks.append((folder / "index").stat().st_blocks)
            assert sorted(set(blocks)) == blocks
            assert (folder / "index").stat().st_size == length
            assert blocks[-1] * 512 < length // 10


def test_index_grown_to_the_end_stays_inside_its_file() -> None:
    """The last step is as short as it must be, and one more changes nothing."""
    with rooms.an_index(rooms.identity(max_objects=3000)) as index:
        for _ in range(100):
            index.grow_slots()
            index.grow_buckets()
            index.grow_nodes()
        status = os.fstat(index.fd)
        assert status.st_size == index.geometry.nbytes
        assert status.st_blocks * 512 <= index.geometry.nbytes


def test_index_on_a_full_file_system_cannot_be_made() -> None:
    """The first pages are reserved before they are touched."""
    with rooms.small_file_system(8192) as folder:
        fd = os.open(folder / "index", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with pytest.raises(OSError, match="No space"):
                create_index(fd, rooms.identity(max_clients=1000), backed=0)
        finally:
            os.close(fd)


def test_index_protected_cannot_be_written() -> None:
    """A read-only client sees changes but makes none."""
    with (
        rooms.memory_folder() as folder,
        rooms.open_index(folder, rooms.identity()) as writer,
        rooms.open_index(folder) as reader,
    ):
        reader.protect(reader.map_readonly())
        writer.words[20] = 7
        assert reader.words[20] == 7
        assert reader.protected
        with pytest.raises(TypeError, match="read-only"):
            reader.words[20] = 8


def test_index_closed_keeps_its_mapping_for_those_who_read() -> None:
    """Views of dead handles may look at the words for as long as they live."""
    with rooms.memory_folder() as folder:
        made_from: Identity = rooms.identity()
        before = rooms.descriptors()
        with rooms.open_index(folder, made_from) as index:
            words = index.words
        assert rooms.descriptors() == before
        assert isinstance(index, Index)
        assert words[CAPACITY] == made_from.capacity
