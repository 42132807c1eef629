"""The slot table: its states, its lists, and generations that never fall."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import rooms
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore._catalog import states
from shmstore._catalog.inserts import Content
from shmstore._catalog.slots import Slots
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._memory.index import Index
from shmstore.errors import CorruptStoreError

FREE, WRITING, READY, DOOMED, SPILLED = range(5)
BEGINNINGS = {(FREE, WRITING), (FREE, READY), (DOOMED, WRITING), (DOOMED, READY)}
LEGAL = {
    *((WRITING, READY), (WRITING, DOOMED), (READY, DOOMED), (DOOMED, FREE)),
    *((WRITING, SPILLED), (READY, SPILLED), (SPILLED, READY), (SPILLED, DOOMED)),
}
PID = 4711


@pytest.fixture
def index() -> Iterator[Index]:
    """Give an index with room for eight objects."""
    with rooms.an_index(rooms.identity(max_objects=8)) as made:
        yield made


@pytest.fixture
def slots(index: Index) -> Slots:
    """Give the slot table of the index."""
    return Slots(index)


def _extent(number: int, nbytes: int = 128) -> Extent:
    return Extent(number, number * 4096, nbytes, cold=False)


def _content(kind: int = 0, header: bytes = b"header", inline: bytes = b"") -> Content:
    return Content(kind, header, inline, 100, (7, 8))


def _reserve(slots: Slots, extent: Extent | None = None) -> int:
    slot = slots.take()
    assert slot is not None
    slots.reserve(slot, 3, extent)
    return slot


def _put(slots: Slots, extent: Extent | None = None, kind: int = 0) -> int:
    slot = _reserve(slots, extent)
    slots.publish(slot, _content(kind), PID)
    return slot


def _free_unpinned(slots: Slots, pinned: set[int], limit: int) -> list[int]:
    """Free what may be freed, as a session does; return the nodes of the extents."""
    taken = slots.take_unpinned(pinned, limit)
    nodes = [slots.node(slot) for slot in taken]
    for slot in taken:
        slots.free(slot)
    return nodes


def _state(slots: Slots, slot: int) -> int:
    return states.state_of(slots.word(slot))


# --- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), list(itertools.product(range(5), repeat=2)))
def test_move_is_made_if_it_is_in_the_table_and_refused_otherwise(before: int, after: int) -> None:
    """The table of a life is closed: eight moves and no other."""
    word = 77 << 8 | before
    if (before, after) in LEGAL:
        assert states.move(word, after) == 77 << 8 | after
    else:
        with pytest.raises(AssertionError, match="illegal move"):
            states.move(word, after)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(range(5), repeat=2)))
def test_life_begins_where_another_has_ended_and_nowhere_else(before: int, after: int) -> None:
    """Four beginnings and no other, each with the generation of the new life."""
    word = 77 << 8 | before
    if (before, after) in BEGINNINGS:
        assert states.begin(word, 78, after) == 78 << 8 | after
    else:
        with pytest.raises(AssertionError, match="begins as"):
            states.begin(word, 78, after)


@settings(deadline=None)
@given(generation=st.integers(0, (1 << 56) - 1), state=st.sampled_from([WRITING, READY, DOOMED]))
def test_slot_word_holds_generation_and_state_side_by_side(generation: int, state: int) -> None:
    """Neither of the two reaches into the other, up to the largest generation."""
    word = generation << 8 | state
    assert states.generation_of(word) == generation
    assert states.state_of(word) == state
    assert states.first_word(generation) == generation << 8 | WRITING
    assert states.ready_word(generation) == generation << 8 | READY
    assert max(states.first_word(generation), states.ready_word(generation)) < 1 << 64


def test_doom_all_ends_the_ready_objects_and_nothing_else() -> None:
    """At the end of a store puts under way stay what they are; generations stay too."""
    column = np.array([5 << 8 | state for state in range(5)], np.uint64)
    states.doom_all(column)
    assert column.tolist() == [5 << 8 | state for state in (FREE, WRITING, DOOMED, DOOMED, DOOMED)]


# --- the life of a slot --------------------------------------------------------------------------


def test_slot_lives_from_free_through_writing_and_ready_to_free(index: Index, slots: Slots) -> None:
    """Each call makes one move; the counts follow."""
    slot = _reserve(slots, _extent(0))
    assert _state(slots, slot) == WRITING
    assert index.words[L.W_OBJECTS] == 0
    slots.publish(slot, _content(L.KIND_NAMED), PID)
    assert _state(slots, slot) == READY
    assert (index.words[L.W_OBJECTS], index.words[L.W_NAMED]) == (1, 1)
    assert slots.doom(slot) is False
    assert _state(slots, slot) == DOOMED
    assert (index.words[L.W_OBJECTS], index.words[L.W_NAMED]) == (0, 0)
    assert _free_unpinned(slots, set(), 10) == [0]
    assert _state(slots, slot) == FREE


def test_slot_of_a_published_object_tells_what_was_published(slots: Slots) -> None:
    """Each field comes back where it was put, and so do the bytes beside the header."""
    _reserve(slots)
    slot = _reserve(slots, _extent(5, 640))
    content = Content(L.KIND_INLINE | L.KIND_PLAIN, b"head", b"data!", 5, (1 << 63, 9))
    slots.publish(slot, content, PID)
    record = slots.read(slot)
    assert (record.slot, record.owner, record.pid) == (slot, 3, PID)
    assert (record.extent, record.extent_nbytes, record.node) == (5 * 4096, 640, 5)
    assert (record.header_nbytes, record.header_offset, record.data_nbytes) == (4, 640 - 64, 5)
    assert slots.is_sound(record, b"head")
    assert not slots.is_sound(record, b"heal")
    assert (record.kind, record.digest) == (L.KIND_INLINE | L.KIND_PLAIN, (1 << 63, 9))
    assert record.word == slots.word(slot) == states.ready_word(2)
    assert record.created_ns > 0


def test_inline_bytes_lie_in_the_slot_and_nowhere_else(index: Index, slots: Slots) -> None:
    """A slot filled to the last byte leaves its neighbours alone."""
    first, middle, last = (_reserve(slots) for _ in range(3))
    header, inline = b"h" * 92, b"i" * 100
    slots.publish(middle, Content(L.KIND_INLINE, header, inline, 100, (0, 0)), PID)
    start, end = slots.inline_range(slots.read(middle))
    assert bytes(index.memory[start:end]) == header + inline
    assert end - start == L.INLINE_NBYTES
    assert _state(slots, first) == _state(slots, last) == WRITING


def test_inline_bytes_beyond_the_slot_are_damage(index: Index, slots: Slots) -> None:
    """A length from memory is checked before it is used."""
    slot = _put(slots)
    index.words[rooms.word_of(slot, L.S_HEADER_NBYTES, index)] = L.INLINE_NBYTES + 1
    with pytest.raises(CorruptStoreError, match="193 inline bytes") as caught:
        slots.inline_range(slots.read(slot))
    assert caught.value.facts["slot"] == slot
    assert caught.value.facts["offset"] == 8 * rooms.word_of(slot, 0, index)


def test_slot_discarded_while_it_is_written_is_not_counted(index: Index, slots: Slots) -> None:
    """A put that fails leaves the counts as they were."""
    slot = _reserve(slots, _extent(0))
    assert slots.doom(slot) is False
    assert (index.words[L.W_OBJECTS], index.words[L.W_NAMED]) == (0, 0)
    assert _free_unpinned(slots, set(), 1) == [0]


def test_slot_without_extent_is_free_as_soon_as_it_is_doomed(slots: Slots) -> None:
    """There is nothing that a reader could still look at."""
    slot = _put(slots)
    assert slots.doom(slot) is True
    assert _state(slots, slot) == FREE
    assert list(slots.doomed()) == []


def test_slot_used_again_forgets_the_extent_of_its_former_object(slots: Slots) -> None:
    """A new object without data does not inherit another's memory."""
    slot = _put(slots, _extent(1))
    slots.doom(slot)
    _free_unpinned(slots, set(), 1)
    assert _reserve(slots) == slot
    record = slots.read(slot)
    assert (record.extent_nbytes, record.node) == (0, -1)


def test_illegal_moves_of_a_slot_are_refused(slots: Slots) -> None:
    """Publishing twice, dooming what is doomed, freeing what lives."""
    slot = _put(slots, _extent(0))
    with pytest.raises(AssertionError):
        slots.publish(slot, _content(), PID)
    with pytest.raises(AssertionError):
        slots.free(slot)
    slots.doom(slot)
    with pytest.raises(AssertionError):
        slots.doom(slot)
    assert _state(slots, slot) == DOOMED


def test_put_knows_whether_its_slot_is_still_its_own(slots: Slots) -> None:
    """After another put has got the slot, the first one's number no longer fits."""
    slot = _reserve(slots)
    generation = states.generation_of(slots.word(slot))
    assert slots.is_writing(slot, generation)
    slots.doom(slot)
    assert not slots.is_writing(slot, generation)
    assert _reserve(slots) == slot
    assert not slots.is_writing(slot, generation)
    assert slots.is_writing(slot, generation + 1)


# --- free slots and generations ------------------------------------------------------------------


def test_table_that_is_full_gives_no_slot_until_one_is_free(slots: Slots) -> None:
    """The last slot can be used, one more cannot, and a freed one comes back."""
    taken = [_put(slots) for _ in range(8)]
    assert sorted(taken) == list(range(8))
    assert slots.take() is None
    slots.doom(5)
    assert slots.take() == 5


def test_slot_freed_last_is_used_first(slots: Slots) -> None:
    """Its words are still in the cache."""
    taken = [_put(slots) for _ in range(6)]
    for slot in taken[1:4]:
        slots.doom(slot)
    assert [_reserve(slots) for _ in range(4)] == [3, 2, 1, 6]


def test_slot_taken_but_not_reserved_changes_nothing(index: Index, slots: Slots) -> None:
    """`take` only looks: a put that finds no extent leaves no trace."""
    slots.doom(_put(slots))
    before = index.words[:64].tolist()
    assert slots.take() == slots.take() == 0
    assert index.words[:64].tolist() == before


def test_slots_grow_page_by_page_when_they_are_taken() -> None:
    """Thousands of slots are reserved as they are needed and all keep their words."""
    with rooms.an_index(rooms.identity(max_objects=5000)) as index:
        slots = Slots(index)
        for number in range(5000):
            assert _put(slots) == number
        assert slots.take() is None
        assert len(slots.table()) == 5000
        assert index.words[L.W_SLOTS_RESERVED] >= 5000 * L.SLOT_NBYTES
        assert [slot for _, slot in slots.present()] == list(range(5000))


@pytest.mark.parametrize("state", [states.SPARE, states.FILLING])
def test_named_objects_are_counted_without_those_that_damage_has_set_aside(
    index: Index, slots: Slots, state: int
) -> None:
    """When the tables are made anew such a slot counts no more, and then it is doomed."""
    _put(slots, None, L.KIND_NAMED)
    slot = _put(slots, None, L.KIND_NAMED)
    index.words[slots.state_index(slot)] ^= READY ^ state
    index.words[L.W_NAMED] = 1
    slots.doom(slot)
    assert index.words[L.W_NAMED] == 1
    assert _state(slots, slot) == FREE


@pytest.mark.parametrize("count", range(1, 60))
def test_slots_put_where_no_page_was_reserved_are_all_found_again(count: int) -> None:
    """Also the last one, if it ends in a page that its object did not reach."""
    with rooms.an_index(rooms.identity(max_objects=5000)) as index:
        slots = Slots(index)
        index.words[L.W_SLOTS_RESERVED] = 1 << 40
        for _ in range(count):
            _put(slots, _extent(0), L.KIND_HEADER_IN_EXTENT)
        slots.recount()
        reserved = index.words[L.W_SLOTS_RESERVED]
        assert len(slots.table()) == count
        assert slots.take() == count
        assert count * L.SLOT_NBYTES <= reserved <= count * L.SLOT_NBYTES + 2 * L.PAGE
        assert reserved % L.PAGE == 0


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.sampled_from(["reserve", "put", "end", "free"]), max_size=40))
def test_generation_of_a_slot_never_falls_and_belongs_to_one_put(steps: list[str]) -> None:
    """Whatever is put, discarded and freed in whatever order."""
    with rooms.an_index(rooms.identity(max_objects=4)) as index:
        slots = Slots(index)
        latest = [0] * 4
        seen: set[int] = set()
        live: list[int] = []
        for number, step in enumerate(steps):
            slot = slots.take()
            if step == "free":
                _free_unpinned(slots, set(), 4)
            elif step == "end" and live:
                slots.doom(live.pop(number % len(live)))
            elif step in ("reserve", "put") and slot is not None:
                generation = slots.reserve(slot, 0, _extent(1) if number % 3 else None)
                assert generation > latest[slot]
                assert generation not in seen
                seen.add(generation)
                latest[slot] = generation
                live.append(slot)
                if step == "put":
                    slots.publish(slot, _content(), PID)
            for row in range(index.words[L.W_SLOT_TOP]):
                assert states.generation_of(slots.word(row)) == latest[row]


def test_ready_objects_come_in_the_order_of_their_puts(slots: Slots) -> None:
    """The oldest first, wherever their slots lie."""
    for slot in [_put(slots) for _ in range(5)][1:3]:
        slots.doom(slot)
    again = [_put(slots), _put(slots)]
    assert [slot for _, slot in slots.present()] == [0, 3, 4, *again]
    assert [word >> 8 for word, _ in slots.present()] == [1, 4, 5, 6, 7]


# --- doomed slots --------------------------------------------------------------------------------


def test_doomed_slots_are_freed_in_the_order_of_their_end(index: Index, slots: Slots) -> None:
    """The queue counts its bytes and gives the nodes of the extents back."""
    taken = [_put(slots, _extent(number, 64 * (number + 1))) for number in range(5)]
    for slot in (3, 0, 4):
        slots.doom(taken[slot])
    assert list(slots.doomed()) == [3, 0, 4]
    assert index.words[L.W_DOOMED_BYTES] == 64 * (4 + 1 + 5)
    assert _free_unpinned(slots, set(), 2) == [3, 0]
    assert index.words[L.W_DOOMED_BYTES] == 64 * 5
    assert _free_unpinned(slots, set(), 2) == [4]
    assert list(slots.doomed()) == []
    assert index.words[L.W_DOOMED_HEAD] == index.words[L.W_DOOMED_TAIL] == 0


def test_doomed_slots_that_are_pinned_wait_behind_the_others(index: Index, slots: Slots) -> None:
    """One view that lives for long does not keep the others from being reclaimed."""
    taken = [_put(slots, _extent(number)) for number in range(4)]
    for slot in taken:
        slots.doom(slot)
    assert _free_unpinned(slots, {0, 2}, 8) == [1, 3]
    assert list(slots.doomed()) == [0, 2]
    assert index.words[L.W_DOOMED_BYTES] == 2 * 128
    assert _free_unpinned(slots, {0, 2}, 8) == []
    assert _free_unpinned(slots, set(), 8) == [0, 2]


def test_doomed_slots_all_pinned_are_each_looked_at_once(slots: Slots) -> None:
    """A limit larger than the queue does not go round it for ever."""
    for slot in [_put(slots, _extent(number)) for number in range(3)]:
        slots.doom(slot)
    for limit in (3, 4, 5):
        assert _free_unpinned(slots, {0, 1, 2}, limit) == []
        assert list(slots.doomed()) == [0, 1, 2]


STEPS = st.one_of(
    st.integers(0, 11), st.tuples(st.sets(st.integers(0, 11), max_size=4), st.integers(1, 14))
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEPS, max_size=40))
def test_doomed_queue_frees_exactly_what_nobody_pins(
    steps: list[int | tuple[set[int], int]],
) -> None:
    """Against a list: any ends (a number: which of the objects), any pins, any limits."""
    with rooms.an_index(rooms.identity(max_objects=12)) as index:
        slots = Slots(index)
        waiting: list[int] = []
        ready = [_put(slots, _extent(number)) for number in range(12)]
        for step in [*steps, (set(), 12)]:
            if isinstance(step, tuple):
                pinned, limit = step
                looked, rest = waiting[:limit], waiting[limit:]
                freed = _free_unpinned(slots, pinned, limit)
                assert freed == [slot for slot in looked if slot not in pinned]
                waiting = rest + [slot for slot in looked if slot in pinned]
            elif ready:
                waiting.append(ready.pop(step % len(ready)))
                slots.doom(waiting[-1])
            assert list(slots.doomed()) == waiting
            assert index.words[L.W_DOOMED_BYTES] == 128 * len(waiting)
        assert slots.count_free() == 12 - len(ready)


# --- damage --------------------------------------------------------------------------------------


def test_slot_top_beyond_the_table_is_damage(index: Index, slots: Slots) -> None:
    """The number of slots is checked before a table of that length is made."""
    index.words[L.W_SLOT_TOP] = 9
    with pytest.raises(CorruptStoreError, match="9 slots in use"):
        slots.table()
    index.words[L.W_SLOT_TOP] = (1 << 64) - 1
    with pytest.raises(CorruptStoreError):
        list(slots.present())


def test_doomed_queue_with_a_loop_is_damage_not_a_hang(index: Index, slots: Slots) -> None:
    """The walk ends after as many steps as there are slots."""
    for slot in [_put(slots, _extent(number)) for number in range(3)]:
        slots.doom(slot)
    index.words[rooms.word_of(2, L.S_LINK, index)] = 1
    with pytest.raises(CorruptStoreError, match="loop"):
        list(slots.doomed())


def test_free_slots_with_a_loop_are_damage_not_a_hang(index: Index, slots: Slots) -> None:
    """Counting them ends after as many steps as there are slots."""
    for slot in [_put(slots) for _ in range(3)]:
        slots.doom(slot)
    index.words[rooms.word_of(0, L.S_LINK, index)] = 1
    with pytest.raises(CorruptStoreError, match="loop"):
        slots.count_free()
