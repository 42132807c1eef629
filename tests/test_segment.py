"""Segments and mappings: no descriptor per mapping, no write where none is allowed, no SIGBUS."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rooms

from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.mapping import address_of, map_file, punch, reserve, write_all
from shmstore._memory.segment import Segment
from shmstore.errors import CorruptStoreError

PAGE = 4096
MIB = 1 << 20
STORE = 0x00112233445566778899AABBCCDDEEFF


@pytest.fixture
def path() -> Iterator[Path]:
    """Give the path of a file in shared memory that does not exist yet."""
    with rooms.memory_folder() as folder:
        yield folder / "file"


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    """Give an open file of 64 pages without any page in it."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(opened, 64 * PAGE)
    yield opened
    os.close(opened)


@pytest.fixture
def segment(path: Path) -> Iterator[Segment]:
    """Give a segment of 64 pages."""
    with_file = open_descriptor(path, os.O_RDWR | os.O_CREAT)
    Segment.create(with_file, STORE, 64 * PAGE, prefault=False)
    made = Segment(with_file, "file", STORE, 64 * PAGE, readonly=False)
    yield made
    if made.fd >= 0:
        made.close()


def _pages(path: Path) -> int:
    return path.stat().st_blocks * 512 // PAGE


def _run(source: str, *arguments: object) -> int:
    """Run a script and return its exit status; a signal is a negative number."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode


# --- mappings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("writeable", "private"), [(True, False), (False, False), (True, True)])
def test_mapping_keeps_no_descriptor(fd: int, *, writeable: bool, private: bool) -> None:
    """Thousands of views of a process that may open 64 files."""
    before = rooms.descriptors()
    kept = [map_file(fd, PAGE, writeable=writeable, private=private) for _ in range(100)]
    assert rooms.descriptors() == before
    assert len(kept[0]) == PAGE


def test_mapping_outlives_its_file_and_descriptor(path: Path) -> None:
    """The memory goes with the last buffer over it, not with the file."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(path, PAGE)
    memory = map_file(opened, PAGE, writeable=True)
    view = memoryview(memory)[10:20]
    os.close(opened)
    path.unlink()
    del memory
    view[:] = b"0123456789"
    assert bytes(view) == b"0123456789"


def test_mappings_of_one_file_see_each_others_writes(fd: int) -> None:
    """What is written through one is read through another and through the file."""
    writer, reader = map_file(fd, PAGE, writeable=True), map_file(fd, PAGE, writeable=False)
    writer[100:105] = b"hello"
    assert reader[100:105] == os.pread(fd, 5, 100) == b"hello"


def test_mapping_begins_at_its_offset(fd: int) -> None:
    """A part of a file is mapped from a page on."""
    os.pwrite(fd, b"third", 3 * PAGE)
    assert map_file(fd, PAGE, writeable=False, offset=3 * PAGE)[:5] == b"third"


def test_mapping_is_gone_when_its_last_buffer_has_died(fd: int) -> None:
    """Address space comes back; nothing waits for the end of the process."""
    memory = map_file(fd, 16 * PAGE, writeable=False)
    address = f"{address_of(memory):x}-"
    array = np.frombuffer(memory, np.uint8)
    del memory
    gc.collect()
    assert address in Path("/proc/self/maps").read_text()
    del array
    gc.collect()
    assert address not in Path("/proc/self/maps").read_text()


def test_private_mapping_keeps_its_writes_to_itself(fd: int) -> None:
    """Copy-on-write: the others, and the file, stay as they were."""
    os.pwrite(fd, b"original", 0)
    private = map_file(fd, PAGE, writeable=True, private=True)
    other = map_file(fd, PAGE, writeable=False)
    private[:8] = b"my own.."
    assert other[:8] == os.pread(fd, 8, 0) == b"original"
    assert private[:8] == b"my own.."


def test_read_only_mapping_gives_no_writeable_buffer(fd: int) -> None:
    """NumPy cannot be talked into making its arrays writeable."""
    memory = map_file(fd, PAGE, writeable=False)
    assert memoryview(memory).readonly
    array = np.frombuffer(memory, np.uint8)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(TypeError):
        memory[0] = 1


WILD_WRITE = """
import ctypes, os, sys
from shmstore._memory.mapping import address_of, map_file
memory = map_file(os.open(sys.argv[1], os.O_RDWR), 4096, writeable=sys.argv[2] == "writeable")
ctypes.memset(address_of(memory) + 100, 120, 5)
"""


def test_wild_write_through_a_read_only_mapping_kills_the_writer(path: Path, fd: int) -> None:
    """A stray pointer faults instead of changing what others read."""
    os.pwrite(fd, b"x" * PAGE, 0)
    assert _run(WILD_WRITE, path, "writeable") == 0
    os.pwrite(fd, b"y" * PAGE, 0)
    assert _run(WILD_WRITE, path, "readonly") == -signal.SIGSEGV
    assert os.pread(fd, PAGE, 0) == b"y" * PAGE


def test_mapping_that_the_system_refuses_is_an_os_error(path: Path) -> None:
    """A file opened for reading cannot be mapped for writing."""
    path.write_bytes(bytes(PAGE))
    opened = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            map_file(opened, PAGE, writeable=True)
    finally:
        os.close(opened)


def test_address_of_a_mapping_is_where_its_bytes_lie(fd: int) -> None:
    """The first byte can be read there."""
    memory = map_file(fd, PAGE, writeable=True)
    memory[:3] = b"abc"
    assert ctypes.string_at(address_of(memory), 3) == b"abc"


# --- reserving -----------------------------------------------------------------------------------


def test_reserve_makes_the_pages_of_its_range_and_no_others(path: Path, fd: int) -> None:
    """Pages exist before they are touched; what lay there stays."""
    os.pwrite(fd, b"kept", 5 * PAGE)
    reserve(fd, 4 * PAGE + 100, 2 * PAGE)
    assert _pages(path) == 3
    assert os.pread(fd, 4, 5 * PAGE) == b"kept"
    reserve(fd, 0, 0)
    assert _pages(path) == 3
    assert path.stat().st_size == 64 * PAGE


def test_reserve_on_a_full_file_system_raises_and_works_when_there_is_room() -> None:
    """ENOSPC is an error that can be handled; a signal could not."""
    with rooms.small_file_system(64 << 10) as folder:
        opened = os.open(folder / "file", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(opened, MIB)
        reserve(opened, 0, 4 * PAGE)
        ballast = rooms.fill_up(folder)
        with pytest.raises(OSError, match="No space") as caught:
            reserve(opened, 4 * PAGE, 8 * PAGE)
        assert caught.value.errno == errno.ENOSPC
        ballast.unlink()
        reserve(opened, 4 * PAGE, 8 * PAGE)
        assert _pages(folder / "file") == 12
        os.close(opened)


TOUCH_EVERYTHING = """
import errno, os, sys
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.segment import Segment
import numpy as np
fd = open_descriptor(sys.argv[1], os.O_RDWR | os.O_CREAT)
nbytes = 1 << 20
Segment.create(fd, 7, nbytes, prefault=False)
segment = Segment(fd, "file", 7, nbytes, readonly=False)
written = 0
try:
    for offset in range(0, nbytes, 5000):
        segment.write([(offset, memoryview(bytes(5000)))], cold=True)
        written = offset + 5000
except OSError as error:
    assert error.errno == errno.ENOSPC, error
else:
    sys.exit(3)
assert written > 0
warm = np.frombuffer(segment.writeable, np.uint8)[:written]
warm[:] = 255
segment.write([(0, memoryview(b"warm"))], cold=False)
assert bytes(segment.readonly[:5]) == b"warm\\xff"
"""


def test_write_into_cold_pages_of_a_full_file_system_is_an_error_never_a_signal() -> None:
    """What was written can be used, the rest is refused, and the process lives."""
    with rooms.small_file_system(128 << 10) as folder:
        assert _run(TOUCH_EVERYTHING, folder / "segment") == 0


def test_touch_of_a_page_that_cannot_be_had_would_kill() -> None:
    """The reason for all this: without the reservation the same file system kills the process."""
    touch = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "os.ftruncate(fd, 1 << 20); memory = mmap.mmap(fd, 1 << 20);"
        "[memory.__setitem__(n, 1) for n in range(0, 1 << 20, 4096)]"
    )
    with rooms.small_file_system(64 << 10) as folder:
        assert _run(touch, folder / "file") == -signal.SIGBUS


def test_write_all_continues_after_a_short_write(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take less than it was given."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: pwrite(f, memoryview(data)[:7], at))
    write_all(fd, memoryview(b"a sentence longer than seven bytes"), 1000)
    assert os.pread(fd, 34, 1000) == b"a sentence longer than seven bytes"


def test_write_all_that_gets_nowhere_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not try for ever."""
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="No space"):
        write_all(fd, memoryview(b"x"), 0)


# --- giving back ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can punch holes")
def test_punch_gives_back_the_whole_pages_inside_its_range(path: Path, fd: int) -> None:
    """Pages that the range shares with others stay, with all their bytes."""
    os.pwrite(fd, b"x" * (10 * PAGE), 0)
    assert _pages(path) == 10
    punch(fd, PAGE - 1, 4 * PAGE + 2)
    assert _pages(path) == 6
    assert os.pread(fd, PAGE, 0) == b"x" * PAGE
    assert os.pread(fd, 4 * PAGE, PAGE) == bytes(4 * PAGE)
    assert os.pread(fd, PAGE, 5 * PAGE) == b"x" * PAGE


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 0), (1, PAGE), (100, 200), (PAGE, PAGE - 1)])
def test_punch_of_less_than_a_page_changes_nothing(
    path: Path, fd: int, offset: int, nbytes: int
) -> None:
    """There is no whole page inside."""
    os.pwrite(fd, b"x" * (3 * PAGE), 0)
    punch(fd, offset, nbytes)
    assert _pages(path) == 3
    assert os.pread(fd, 3 * PAGE, 0) == b"x" * (3 * PAGE)


# --- the segment ---------------------------------------------------------------------------------


def test_segment_is_sparse_until_it_is_written(path: Path, segment: Segment) -> None:
    """A store costs what is in it, not its capacity."""
    assert path.stat().st_size == 65 * PAGE
    assert _pages(path) == 1
    segment.write([(0, memoryview(b"a")), (10 * PAGE, memoryview(b"b"))], cold=True)
    assert _pages(path) == 3


def test_segment_prefaulted_has_all_its_pages(path: Path) -> None:
    """No put ever meets a page for the first time."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    Segment.create(opened, STORE, 64 * PAGE, prefault=True)
    os.close(opened)
    assert _pages(path) == 65


def test_segment_prefaulted_beyond_the_file_system_is_refused() -> None:
    """At creation, not at the first put."""
    with rooms.small_file_system(64 << 10) as folder:
        opened = os.open(folder / "file", os.O_RDWR | os.O_CREAT, 0o600)
        with pytest.raises(OSError, match="No space"):
            Segment.create(opened, STORE, MIB, prefault=True)
        os.close(opened)


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 5000, 100_000])
def test_frames_written_are_read_back_through_every_mapping(
    segment: Segment, nbytes: int, *, cold: bool
) -> None:
    """Cold pages through the file, warm ones through memory: the bytes are the same."""
    if not cold:
        segment.reserve(0, 64 * PAGE)
    frame = np.random.default_rng(nbytes).bytes(nbytes)
    segment.write([(64, memoryview(b"before")), (128, memoryview(frame))], cold=cold)
    for mapping in (segment.writeable, segment.readonly):
        assert mapping[64:70] == b"before"
        assert mapping[128 : 128 + nbytes] == frame
        assert mapping[128 + nbytes :].count(b"\0") == 64 * PAGE - 128 - nbytes


def test_large_frame_is_copied_whole(path: Path) -> None:
    """A frame that is copied without the interpreter's lock arrives like the others."""
    opened = open_descriptor(path, os.O_RDWR | os.O_CREAT)
    Segment.create(opened, STORE, 4 * MIB, prefault=True)
    segment = Segment(opened, "file", STORE, 4 * MIB, readonly=False)
    frame = np.random.default_rng(0).bytes(3 * MIB + 13)
    segment.write([(64, memoryview(frame))], cold=False)
    assert segment.readonly[64 : 64 + len(frame)] == frame
    assert segment.readonly[:64] == bytes(64)
    assert segment.readonly[64 + len(frame) : 4 * MIB].count(0) == MIB - 77
    segment.close()


def test_segment_mapped_read_only_has_no_writeable_mapping(path: Path) -> None:
    """A read-only client could not write if it wanted to."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    Segment.create(opened, STORE, PAGE, prefault=False)
    os.close(opened)
    segment = Segment(open_descriptor(path, os.O_RDONLY), "file", STORE, PAGE, readonly=True)
    assert memoryview(segment.writeable).readonly
    private, _ = segment.map_private(0, 10)
    private[0] = 1
    assert segment.readonly[0] == 0
    segment.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 10), (64, PAGE), (3 * PAGE + 64, 2 * PAGE)])
def test_private_range_begins_where_it_should(segment: Segment, offset: int, nbytes: int) -> None:
    """The mapping begins at a page, the range inside it where it is told."""
    content = np.random.default_rng(offset).bytes(nbytes)
    segment.write([(offset, memoryview(content))], cold=True)
    private, skip = segment.map_private(offset, nbytes)
    assert isinstance(private, mmap.mmap)
    assert skip < PAGE
    assert len(private) == skip + nbytes
    assert private[skip : skip + nbytes] == content
    private[skip : skip + nbytes] = bytes(nbytes)
    assert segment.readonly[offset : offset + nbytes] == content


def test_segment_gives_pages_back_and_can_be_written_again(path: Path, segment: Segment) -> None:
    """A destroyed store keeps only what somebody looks at."""
    segment.write([(0, memoryview(b"x" * (8 * PAGE)))], cold=True)
    segment.release_pages(PAGE, 6 * PAGE)
    assert _pages(path) == 3
    assert segment.readonly[PAGE : 7 * PAGE].count(0) == 6 * PAGE
    segment.write([(2 * PAGE, memoryview(b"again"))], cold=True)
    assert segment.readonly[2 * PAGE : 2 * PAGE + 5] == b"again"


def test_segment_closed_keeps_its_views(segment: Segment, path: Path) -> None:
    """Views are valid for as long as they live, without a descriptor."""
    segment.write([(64, memoryview(b"still here"))], cold=True)
    view = memoryview(segment.readonly)[64:74]
    segment.close()
    path.unlink()
    assert bytes(view) == b"still here"


@pytest.mark.parametrize("nbytes", [0, PAGE, 64 * PAGE, 66 * PAGE])
def test_segment_of_another_length_is_damage(path: Path, fd: int, nbytes: int) -> None:
    """A touch beyond the end of a file that was cut would be a bus error."""
    os.truncate(path, nbytes)
    with pytest.raises(CorruptStoreError, match="cut or extended") as caught:
        Segment(fd, "the file", STORE, 64 * PAGE, readonly=False)
    assert caught.value.facts == {"path": "the file", "offset": min(nbytes, 65 * PAGE)}


def test_segment_of_another_store_is_damage(path: Path, fd: int) -> None:
    """The page behind the data says whose it is."""
    Segment.create(fd, STORE, 64 * PAGE, prefault=False)
    with pytest.raises(CorruptStoreError, match="belongs to another") as caught:
        Segment(fd, str(path), STORE + (1 << 64), 64 * PAGE, readonly=False)
    assert caught.value.facts["offset"] == 64 * PAGE
