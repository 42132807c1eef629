"""The allocator: extents never overlap, nothing is lost, and what was used last is used first."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import rooms
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmstore._memory import layout as L
from shmstore._memory.allocator import Allocator, Extent, size_class
from shmstore._memory.index import Index
from shmstore._memory.rebuilding import size_classes
from shmstore.errors import CorruptStoreError

UNIT = 64
CAPACITY = 64 * 4096


@contextlib.contextmanager
def _allocator(capacity: int = CAPACITY, *, max_objects: int = 300, backed: int = 0) -> Any:
    """Give an allocator over a new index, and the index."""
    made_from = rooms.identity(capacity=capacity, max_objects=max_objects)
    with rooms.an_index(made_from, backed=backed) as index:
        yield Allocator(index), index


def _take(allocator: Allocator, nbytes: int) -> Extent:
    extent = allocator.allocate(nbytes)
    assert extent is not None
    return extent


def _rebuild(allocator: Allocator, extents: dict[int, int]) -> list[int]:
    """Make the tables anew from ranges (offset: nbytes); return their nodes."""
    offsets = np.array(list(extents), np.uint64)
    sizes = np.array(list(extents.values()), np.uint64)
    return allocator.rebuild(offsets, sizes, np.full(len(extents), -1)).tolist()


def _assert_in_order(allocator: Allocator, index: Index, live: dict[int, int]) -> None:
    """Compare the walk over all blocks with what is known to be live (offset: nbytes)."""
    top, used, above_is_free, free = index.words[L.W_SEGMENT_TOP], {}, False, set()
    for block in allocator.blocks():
        assert block.offset + block.nbytes == top
        assert block.nbytes > 0
        assert block.offset % UNIT == block.nbytes % UNIT == 0
        top = block.offset
        is_free = block.status == L.NODE_FREE
        assert not (is_free and above_is_free), "two free neighbours"
        above_is_free = is_free
        if is_free:
            free.add((block.node, size_class(block.nbytes)))
        else:
            used[block.offset] = block.nbytes
    assert top == 0
    assert used == live
    assert index.words[L.W_USED] == sum(live.values())
    assert set(allocator.listed().items()) == free


class AllocatorMachine(RuleBasedStateMachine):
    """Any order of calls against a plain list of live extents."""

    def __init__(self) -> None:
        super().__init__()
        self._opened = contextlib.ExitStack()
        self.live: list[Extent] = []

    @initialize(pages=st.sampled_from([1, 3, 64]))
    def make(self, pages: int) -> None:
        """Begin with an empty segment."""
        self.capacity = pages * 4096
        self.allocator, self.index = self._opened.enter_context(_allocator(self.capacity))

    def _gaps(self) -> list[int]:
        """Return the sizes of all ranges that nobody has."""
        gaps, end = [], 0
        for extent in sorted(self.live, key=lambda e: e.offset):
            gaps.append(extent.offset - end)
            end = extent.offset + extent.nbytes
        return [gap for gap in (*gaps, self.capacity - end) if gap]

    @precondition(lambda self: len(self.live) < 280)
    @rule(nbytes=st.one_of(st.integers(1, 300), st.integers(1, 5000), st.integers(1, CAPACITY)))
    def allocate(self, nbytes: int) -> None:
        """Take an extent: it fits where there is room, and only there."""
        aligned = -(-nbytes // UNIT) * UNIT
        largest = max(self._gaps(), default=0)
        extent = self.allocator.allocate(nbytes)
        if aligned > largest:
            assert extent is None
            return
        assert extent is not None, f"{aligned} bytes are free in one piece of {largest}"
        assert extent.nbytes == aligned
        assert 0 <= extent.offset <= self.capacity - aligned
        for other in self.live:
            assert extent.offset >= other.offset + other.nbytes or (
                other.offset >= extent.offset + aligned
            )
        self.live.append(extent)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Give any extent back."""
        extent = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.allocator.release(extent.node)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def mark_warm(self, data: st.DataObject) -> None:
        """Note that the pages of an extent exist."""
        self.allocator.mark_warm(data.draw(st.sampled_from(self.live)).node)

    @rule()
    def rebuild(self) -> None:
        """Make the tables anew from the extents."""
        self.live.sort(key=lambda extent: extent.offset)
        nodes = _rebuild(self.allocator, {e.offset: e.nbytes for e in self.live})
        self.live = [e._replace(node=node) for e, node in zip(self.live, nodes, strict=True)]

    @invariant()
    def in_order(self) -> None:
        """Look at all blocks after every step."""
        if hasattr(self, "allocator"):
            _assert_in_order(self.allocator, self.index, {e.offset: e.nbytes for e in self.live})
            assert self.allocator.largest_free() == max(self._gaps(), default=0)

    def teardown(self) -> None:
        """Give everything back; the whole capacity can be had again."""
        with self._opened:
            if not hasattr(self, "allocator"):
                return
            for extent in self.live:
                self.allocator.release(extent.node)
            _assert_in_order(self.allocator, self.index, {})
            assert _take(self.allocator, self.capacity)[1:3] == (0, self.capacity)


AllocatorMachine.TestCase.settings = settings(
    deadline=None, max_examples=60, stateful_step_count=60
)
TestAllocatorAgainstModel = AllocatorMachine.TestCase


# --- which extent one gets -----------------------------------------------------------------------


def test_extent_freed_last_is_used_first() -> None:
    """The pages that were touched last are the warmest."""
    with _allocator() as (allocator, _):
        extents = [_take(allocator, 256) for _ in range(9)]
        for number in (1, 5, 3):
            allocator.release(extents[number].node)
        again = [_take(allocator, 256).offset for _ in range(3)]
        assert again == [extents[number].offset for number in (3, 5, 1)]


def test_extent_from_used_pages_comes_before_fresh_ones() -> None:
    """Space above the top is taken only when nothing below fits."""
    with _allocator() as (allocator, index):
        low, _guard = _take(allocator, 8192), _take(allocator, 64)
        top = index.words[L.W_SEGMENT_TOP]
        allocator.release(low.node)
        assert _take(allocator, 64).offset < top
        assert _take(allocator, 4096).offset < top
        assert _take(allocator, 8192).offset == top


def test_extent_too_small_for_its_own_size_class_is_passed_over() -> None:
    """Two sizes share a list; the first block in it need not be large enough."""
    with _allocator() as (allocator, _):
        small, _guard = _take(allocator, 4096), _take(allocator, 64)
        assert size_class(4096) == size_class(4160)
        allocator.release(small.node)
        assert _take(allocator, 4160).offset != small.offset
        assert _take(allocator, 4096).offset == small.offset


def test_extent_behind_a_smaller_one_of_its_size_class_is_found() -> None:
    """Before a store is full, every block of the own list has been looked at."""
    with _allocator(16384) as (allocator, _):
        large, _ = _take(allocator, 4160), _take(allocator, 64)
        small, _ = _take(allocator, 4096), _take(allocator, 64)
        _take(allocator, allocator.largest_free())
        allocator.release(large.node)
        allocator.release(small.node)
        assert _take(allocator, 4160).offset == large.offset


def test_extent_freed_between_free_neighbours_merges_with_both() -> None:
    """Three pieces become one, of which the whole can be had."""
    with _allocator() as (allocator, index):
        first, middle, last, _guard = (_take(allocator, n) for n in (128, 192, 256, 64))
        allocator.release(first.node)
        allocator.release(last.node)
        assert len(allocator.listed()) == 2
        allocator.release(middle.node)
        assert len(allocator.listed()) == 1
        assert index.words[L.W_USED] == 64
        assert _take(allocator, 128 + 192 + 256).offset == first.offset


def test_extent_at_the_free_top_grows_into_fresh_space() -> None:
    """A free block at the top counts together with what lies above it."""
    with _allocator(4096) as (allocator, _):
        keep, free = _take(allocator, 1024), _take(allocator, 1024)
        allocator.release(free.node)
        assert allocator.largest_free() == 3072
        assert _take(allocator, 3072).offset == 1024
        assert allocator.allocate(1) is None
        assert allocator.largest_free() == 0
        allocator.release(keep.node)
        assert allocator.largest_free() == 1024


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 40_000), max_size=40), odd=st.booleans())
def test_largest_free_extent_can_truly_be_had_and_no_larger_one(
    sizes: list[int], *, odd: bool
) -> None:
    """What the error of a full store promises is what the next put gets."""
    with _allocator() as (allocator, _):
        extents = [extent for n in sizes if (extent := allocator.allocate(n)) is not None]
        for extent in extents[odd::2]:
            allocator.release(extent.node)
        largest = allocator.largest_free()
        assert allocator.allocate(largest + 1) is None
        assert largest == 0 or _take(allocator, largest).nbytes == largest


def test_capacity_can_be_had_whole_after_everything_is_released() -> None:
    """No fragment is lost in a thousand puts and deletes."""
    with _allocator(1 << 20, max_objects=2000) as (allocator, index):
        extents = [_take(allocator, 64 * (1 + n % 13)) for n in range(1500)]
        for extent in extents[::2] + extents[1::2]:
            allocator.release(extent.node)
        assert index.words[L.W_USED] == 0
        assert _take(allocator, 1 << 20).offset == 0


def test_nodes_are_enough_for_the_worst_pattern() -> None:
    """With every other extent free, max_objects extents still fit into the reserved nodes."""
    count = 2048
    with _allocator(count * 128, max_objects=count) as (allocator, index):
        for _ in range(3):
            extents = [_take(allocator, 64) for _ in range(count)]
            for extent in extents[::2]:
                allocator.release(extent.node)
            assert len(allocator.listed()) <= count // 2 + 1
            for extent in extents[1::2]:
                allocator.release(extent.node)
        assert index.words[L.W_NODE_TOP] <= index.geometry.max_nodes
        assert index.words[L.W_NODES_RESERVED] >= 64 * index.words[L.W_NODE_TOP]


# --- size classes --------------------------------------------------------------------------------

sizes_of_blocks = st.one_of(st.integers(1, 64), st.integers(1, 1 << 41)).map(lambda n: n * UNIT)


@settings(deadline=None)
@given(small=sizes_of_blocks, large=sizes_of_blocks)
def test_size_class_follows_the_size(small: int, large: int) -> None:
    """Every block of a higher class is larger than every block of a lower one."""
    if size_class(small) < size_class(large):
        assert small < large
    if small == large:
        assert size_class(small) == size_class(large)


@settings(deadline=None)
@given(nbytes=sizes_of_blocks)
def test_size_class_is_narrow_and_has_a_list(nbytes: int) -> None:
    """A class spans one 64-byte step, or a sixteenth of its power of two."""
    number = size_class(nbytes)
    assert 0 <= number < L.FIRST_LEVELS * L.SECOND_LEVELS
    assert size_class(nbytes + max(UNIT, nbytes // 16 + UNIT)) > number
    if nbytes < 1024:
        assert size_class(nbytes + UNIT) == number + 1


# --- warm and cold -------------------------------------------------------------------------------


def test_extent_is_cold_until_its_pages_have_been_written() -> None:
    """A put that failed before its copy leaves the extent as cold as it was."""
    with _allocator() as (allocator, _):
        extent = _take(allocator, 4096)
        assert extent.cold
        allocator.release(extent.node)
        extent = _take(allocator, 4096)
        assert extent.cold
        allocator.mark_warm(extent.node)
        allocator.release(extent.node)
        assert not _take(allocator, 4096).cold


def test_extent_cut_from_a_warm_one_is_warm() -> None:
    """Both parts of a block that is split keep what is known of its pages."""
    with _allocator() as (allocator, _):
        whole, _guard = _take(allocator, 8192), _take(allocator, 64)
        allocator.mark_warm(whole.node)
        allocator.release(whole.node)
        assert not _take(allocator, 1024).cold
        assert not _take(allocator, 1024).cold


def test_extent_merged_from_warm_and_cold_is_cold() -> None:
    """One page that may be missing is enough to go the careful way."""
    for warm in (0, 1):
        with _allocator() as (allocator, _):
            parts = [_take(allocator, 4096), _take(allocator, 4096)]
            _take(allocator, 64)
            allocator.mark_warm(parts[warm].node)
            for part in parts:
                allocator.release(part.node)
            assert _take(allocator, 8192).cold


def test_extent_grown_into_fresh_space_is_cold() -> None:
    """A warm block at the top does not warm what lies above it."""
    with _allocator() as (allocator, _):
        extent = _take(allocator, 4096)
        allocator.mark_warm(extent.node)
        allocator.release(extent.node)
        assert _take(allocator, 8192).cold


def test_extent_within_prefaulted_pages_is_never_cold() -> None:
    """What was reserved at creation is warm, what lies above it is not."""
    with _allocator(backed=8192) as (allocator, _):
        assert not _take(allocator, 4096).cold
        assert not _take(allocator, 4096).cold
        assert _take(allocator, 64).cold


@given(units=st.lists(st.integers(1, L.MAX_CAPACITY // UNIT)))
def test_size_classes_of_many_are_those_of_each(units: list[int]) -> None:
    """What rebuilds the tables hangs each block where the allocator looks for it."""
    edges = [(1 << level) + d for level in range(4, 42) for d in (-1, 0, 1)]
    sizes = [UNIT * unit for unit in (*units, *edges)]
    expected = [size_class(nbytes) for nbytes in sizes]
    assert size_classes(np.array(sizes, np.uint64)).tolist() == expected


# --- rebuilding, and damage ----------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    gaps_and_sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), max_size=50),
    asked=st.lists(st.integers(1, 9000), max_size=10),
)
def test_rebuilt_allocator_gives_what_the_old_one_could_give(
    gaps_and_sizes: list[tuple[int, int]], asked: list[int]
) -> None:
    """From the extents alone come tables that are in order and hold all free space."""
    extents, end = {}, 0
    for gap, size in gaps_and_sizes:
        extents[end + gap * UNIT] = size * UNIT
        end += (gap + size) * UNIT
    with _allocator(1 << 20) as (allocator, index):
        for n in asked:
            allocator.allocate(n)
        nodes = _rebuild(allocator, extents)
        assert len(set(nodes)) == len(extents)
        _assert_in_order(allocator, index, extents)
        gaps = [gap * UNIT for gap, _ in gaps_and_sizes]
        assert allocator.largest_free() == max([*gaps, (1 << 20) - end])
        for node in nodes:
            allocator.release(node)
        assert _take(allocator, 1 << 20).offset == 0


def test_chain_of_neighbours_with_a_loop_is_damage_not_a_hang() -> None:
    """The walk ends after as many steps as there are nodes."""
    with _allocator() as (allocator, index):
        extents = [_take(allocator, 64) for _ in range(5)]
        base = index.geometry.nodes + extents[2].node * L.NODE_WORDS
        index.words[base + L.N_LOWER] = extents[4].node + 1
        with pytest.raises(CorruptStoreError, match="loop"):
            list(allocator.blocks())


def test_free_list_with_a_loop_is_damage_not_a_hang() -> None:
    """A block that follows itself in its list is found out."""
    with _allocator() as (allocator, index):
        extents = [_take(allocator, 128) for _ in range(5)]
        allocator.release(extents[1].node)
        base = index.geometry.nodes + extents[1].node * L.NODE_WORDS
        index.words[base + L.N_NEXT_FREE] = extents[1].node + 1
        with pytest.raises(CorruptStoreError, match="loop"):
            allocator.listed()


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_free_neighbour_that_leads_astray_is_not_merged(side: str) -> None:
    """Its own neighbour would be written to: it may be a word of another table by now."""
    with _allocator() as (allocator, index):
        extents = [_take(allocator, 128) for _ in range(4)]
        freed, kept = (1, 2) if side == "lower" else (2, 1)
        allocator.release(extents[freed].node)
        base = index.geometry.nodes + extents[freed].node * L.NODE_WORDS
        index.words[base + (L.N_LOWER if side == "lower" else L.N_UPPER)] = 700
        astray = index.geometry.nodes + 699 * L.NODE_WORDS
        before = index.words[astray : astray + L.NODE_WORDS].tolist()
        with pytest.raises(CorruptStoreError, match="neighbours differ"):
            allocator.release(extents[kept].node)
        assert index.words[astray : astray + L.NODE_WORDS].tolist() == before


def test_tables_that_cannot_grow_are_reported_before_anything_changes() -> None:
    """On a full file system an allocation fails whole, and works again when there is room."""
    with rooms.small_file_system(256 << 10) as folder:
        made_from = rooms.identity(max_objects=100_000, capacity=1 << 30)
        with rooms.open_index(folder, made_from) as index:
            allocator = Allocator(index)
            live: dict[int, int] = {}
            extent = _take(allocator, 64)
            live[extent.offset] = 64
            ballast = rooms.fill_up(folder)
            with pytest.raises(OSError, match="No space"):  # noqa: PT012 - which one fails is open
                for _ in range(10_000):
                    extent = _take(allocator, 64)
                    live[extent.offset] = 64
            _assert_in_order(allocator, index, live)
            ballast.unlink()
            extent = _take(allocator, 64)
            live[extent.offset] = 64
            _assert_in_order(allocator, index, live)


@pytest.mark.parametrize("freed", [False, True])
def test_top_of_an_older_time_is_found_before_memory_is_given_twice(*, freed: bool) -> None:
    """What tells where it is fits together, and the blocks that came later are still there."""
    with _allocator() as (allocator, index):
        one = _take(allocator, 1024)
        before = {at: index.words[at] for at in (L.W_SEGMENT_TOP, L.W_LAST_NODE, L.W_NODE_TOP)}
        _take(allocator, 1024)
        if freed:
            allocator.release(one.node)
        for at, word in before.items():
            index.words[at] = word
        with pytest.raises(CorruptStoreError, match="above the last one"):
            allocator.allocate(4096)
