"""The pages of a mapping that a process has met: a large write takes few faults."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest
import rooms

from shmstore import Store
from shmstore._memory import page_table
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.mapping import populate
from shmstore._memory.segment import Segment

MIB = 1 << 20
NBYTES = 16 * MIB
PAGES = NBYTES // 4096
STORE = 0x00112233445566778899AABBCCDDEEFF


@pytest.fixture
def segment() -> Iterator[Segment]:
    """Give a segment whose first half was written to by another mapping."""
    with rooms.memory_folder() as folder:
        fd = open_descriptor(folder / "file", os.O_RDWR | os.O_CREAT)
        Segment.create(fd, STORE, 2 * NBYTES, prefault=False)
        made = Segment(fd, "file", STORE, 2 * NBYTES, readonly=False)
        made.write([(0, memoryview(bytes(NBYTES)))], cold=True)
        yield made
        made.close()


@pytest.fixture
def data() -> memoryview:
    """Give the bytes to write."""
    return memoryview(np.full(NBYTES, 7, np.uint8))


needs_populate = pytest.mark.skipif(
    not populate(mmap.mmap(-1, 4096), 0, 4096),
    reason="the system cannot enter pages in the page table at once",
)


def _faults_of_write(segment: Segment, data: memoryview) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    segment.write([(0, data)], cold=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_populate
def test_first_write_into_warm_pages_takes_few_faults(segment: Segment, data: memoryview) -> None:
    """Pages that exist are entered many at once, and only the first time."""
    assert _faults_of_write(segment, data) < PAGES / 8
    assert _faults_of_write(segment, data) < 8
    assert bytes(segment.readonly[:NBYTES]) == bytes(data)


@needs_populate
def test_pages_that_came_anew_are_met_anew(segment: Segment, data: memoryview) -> None:
    """What went back to the system and was written through the file is foreign again."""
    segment.write([(0, data)], cold=False)
    segment.release_pages(0, NBYTES)
    segment.write([(0, data)], cold=True)
    assert 8 < _faults_of_write(segment, data) < PAGES / 8


@needs_populate
def test_forked_child_meets_the_pages_itself(segment: Segment, data: memoryview) -> None:
    """A child begins with an empty page table, whatever its parent has met."""
    segment.write([(0, data)], cold=False)
    child = os.fork()
    if not child:
        os._exit(int(not 8 < _faults_of_write(segment, data) < PAGES / 8))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_populate
def test_array_built_in_prefaulted_memory_takes_few_faults() -> None:
    """Pages that somebody else has touched are entered before the builder gets them."""
    with (
        rooms.memory_folder() as folder,
        Store.create(capacity=2 * NBYTES, prefault=True, root=folder) as store,
        store.allocate(NBYTES, "u1") as array,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array[:] = 7
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < PAGES / 8


def test_write_succeeds_where_the_system_cannot_populate(
    segment: Segment, data: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older system takes a fault for each page, once, and is asked only once."""
    asked: list[int] = []
    monkeypatch.setattr(page_table, "populate", lambda *_: asked.append(1) or False)
    assert _faults_of_write(segment, data) > PAGES / 2
    assert _faults_of_write(segment, data) < 8
    assert bytes(segment.readonly[:NBYTES]) == bytes(data)
    assert len(asked) == 1


def test_small_writes_are_not_accounted_for(segment: Segment, data: memoryview) -> None:
    """Below a quarter of a MiB a few faults are cheaper than to look."""
    met: list[object] = []
    table = segment._pages
    segment.write([(0, data[: page_table.WORTH_NBYTES - 1])], cold=False)
    met.append(bytes(table._met))
    segment.write([(0, data[: page_table.WORTH_NBYTES])], cold=False)
    met.append(bytes(table._met).rstrip(b"\0"))
    assert met == [b"", b"\1" * 4]


def test_range_may_begin_and_end_anywhere(segment: Segment, data: memoryview) -> None:
    """An extent is aligned to 64 bytes, not to pages, and what lies beside it stays as it is."""
    segment.write([(4160, data[: 3 * MIB + 64])], cold=False)
    assert bytes(segment.readonly[: 4160 + 3 * MIB + 128]) == (
        bytes(4160) + b"\7" * (3 * MIB + 64) + bytes(64)
    )
