"""The checker: each broken invariant is found by its number, and what is derived is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms

from shmstore import CorruptStoreError, Store
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._session import Session


class Damaged:
    """A store with a bit of everything, and its words for breaking them.

    Slot 0 is a named array, slot 1 another one, slot 2 a small named object, slot 3 was deleted and
    is still looked at, slots 4 and 5 were deleted: 4 lies between two extents, 5 had none.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        session = store._session
        assert session is not None
        self.session: Session = session
        self.words = session.index.words
        store.put(np.arange(1000), key="first")
        store.put(np.arange(100), key="second")
        store.put("small", key="small")
        refs = [store.put(np.ones(50)), store.put(np.ones(50)), store.put("gone")]
        store.put(np.ones(50), key="last")
        self.view = refs[0].get()
        store.delete_many(refs)
        assert store.check() == []
        self.kept = self.words.tolist()

    def slot(self, slot: int, field: int) -> int:
        """Return the word of a field of a slot."""
        return rooms.word_of(slot, field, self.session.index)

    def node(self, slot: int, field: int) -> int:
        """Return the word of a field of the allocator node of a slot's extent."""
        node = self.words[self.slot(slot, L.S_NODE)] - 1
        return int(self.session.index.geometry.nodes + node * L.NODE_WORDS + field)

    def bucket(self, slot: int) -> int:
        """Return the word of the bucket that a slot's key falls into."""
        digest = self.words[self.slot(slot, L.S_DIGEST)]
        number = digest % self.words[L.W_BUCKETS]
        return int(self.session.index.geometry.buckets + number)

    def restore(self) -> None:
        """Write all words as they were before anything was broken."""
        for word, value in enumerate(self.kept):
            if self.words[word] != value:
                self.words[word] = value


@pytest.fixture
def damaged() -> Iterator[Damaged]:
    """Give a store that may be broken; it is whole again when it goes."""
    with Store.create(capacity="1MiB", max_objects=64, max_clients=4) as store:
        made = Damaged(store)
        yield made
        made.restore()
        assert store.check() == []
        del made.view


def _add(word: int, value: int = 1) -> Callable[[Damaged], None]:
    def damage(d: Damaged) -> None:
        d.words[word] += value

    return damage


def _set_slot(slot: int, field: int, value: int) -> Callable[[Damaged], None]:
    def damage(d: Damaged) -> None:
        d.words[d.slot(slot, field)] = value

    return damage


def _overlap(d: Damaged) -> None:
    d.words[d.slot(1, L.S_EXTENT)] = d.words[d.slot(0, L.S_EXTENT)] + 64


def _grow_block(d: Damaged) -> None:
    d.words[d.node(0, L.N_NBYTES)] += 64


def _unlist_free_block(d: Damaged) -> None:
    heads = range(L.W_FREE_HEADS, L.W_FREE_HEADS + L.FIRST_LEVELS * L.SECOND_LEVELS)
    [head] = [word for word in heads if d.words[word]]
    d.words[head] = 0


def _cut_free_block(d: Damaged) -> None:
    """Make two free blocks of one, each in its list."""
    allocator = d.session.allocator
    [node] = allocator.listed()
    allocator._unlink(node)
    allocator._split(node, 64)
    allocator._link(node)


def _free_used_block(d: Damaged) -> None:
    """Say that the block of an object is free."""
    d.words[d.node(0, L.N_STATUS)] = L.NODE_FREE


def _lose_key(d: Damaged) -> None:
    d.words[d.bucket(0)] = 0


def _find_key_twice(d: Damaged) -> None:
    d.words[d.slot(0, L.S_CHAIN)] = 1


def _find_what_is_gone(d: Damaged) -> None:
    """Enter the slot of a deleted object into a bucket."""
    d.words[d.slot(3, L.S_CHAIN)] = d.words[d.bucket(0)]
    d.words[d.bucket(0)] = 4


def _two_with_one_key(d: Damaged) -> None:
    for field in (L.S_DIGEST, L.S_DIGEST + 1):
        d.words[d.slot(1, field)] = d.words[d.slot(0, field)]
    rooms.seal(d.session, 1)


def _write_over_header(d: Damaged) -> None:
    d.words[d.slot(0, L.S_INLINE)] = (1 << 64) - 1


def _abandon_put(d: Damaged) -> None:
    """A put by a client that is not there."""
    word = d.words[d.slot(0, L.S_STATE)]
    d.words[d.slot(0, L.S_STATE)] = states.first_word(states.generation_of(word))
    d.words[d.slot(0, L.S_OWNER)] = 4


def _pin_free_slot(d: Damaged) -> None:
    """A view whose slot was freed under it."""
    d.words[d.slot(3, L.S_STATE)] = states.generation_of(d.words[d.slot(3, L.S_STATE)]) << 8


DAMAGES: dict[str, tuple[int, Callable[[Damaged], Any]]] = {
    "extents overlap": (1, _overlap),
    "an extent leaves the segment": (1, _set_slot(0, L.S_EXTENT, (1 << 20) - 64)),
    "an extent is not aligned": (1, _set_slot(0, L.S_EXTENT_NBYTES, 7999)),
    "blocks leave a gap": (2, _grow_block),
    "the top is elsewhere": (2, _add(L.W_SEGMENT_TOP, 64)),
    "used blocks are miscounted": (2, _add(L.W_USED, 64)),
    "a free block is in no list": (3, _unlist_free_block),
    "free blocks are neighbours": (3, _cut_free_block),
    "a used block is said to be free": (3, _free_used_block),
    "a key is in no bucket": (4, _lose_key),
    "a key is in its bucket twice": (4, _find_key_twice),
    "a key leads to what is gone": (4, _find_what_is_gone),
    "two objects have one key": (4, _two_with_one_key),
    "a header is written over": (5, _write_over_header),
    "a header is too long": (5, _set_slot(0, L.S_HEADER_NBYTES, 1000)),
    "frames leave the extent": (5, _set_slot(0, L.S_EXTENT_NBYTES, 64)),
    "nobody finishes a put": (6, _abandon_put),
    "a generation is yet to come": (7, _set_slot(0, L.S_STATE, 99 << 8 | states.READY)),
    "a generation is there twice": (7, _set_slot(1, L.S_STATE, 1 << 8 | states.READY)),
    "a pinned slot is free": (8, _pin_free_slot),
    "the used bytes are miscounted": (9, _add(L.W_USED, 64)),
    "an extent names another block": (9, _set_slot(0, L.S_NODE, 2)),
    "objects are miscounted": (10, _add(L.W_OBJECTS)),
    "named objects are miscounted": (10, _add(L.W_NAMED)),
    "free slots are lost": (10, lambda d: d.words.__setitem__(L.W_FREE_SLOT, 0)),
    "doomed slots are lost": (10, lambda d: d.words.__setitem__(L.W_DOOMED_HEAD, 0)),
}

# What follows from the slot table, and is made anew from it.
DERIVED = [
    "blocks leave a gap",
    "the top is elsewhere",
    "used blocks are miscounted",
    "a free block is in no list",
    "free blocks are neighbours",
    "a used block is said to be free",
    "a key is in no bucket",
    "a key is in its bucket twice",
    "a key leads to what is gone",
    "an extent names another block",
    "objects are miscounted",
    "named objects are miscounted",
    "free slots are lost",
    "doomed slots are lost",
    "nobody finishes a put",
]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_by_the_number_of_its_invariant(damaged: Damaged, name: str) -> None:
    """The finding says which sentence of the format is not true, and where."""
    number, damage = DAMAGES[name]
    damage(damaged)
    findings = damaged.store.check()
    assert number in {finding.invariant for finding in findings}
    for finding in findings:
        assert Path(finding.path).parent == damaged.store.path
        assert finding.offset is not None
        assert f"{finding.offset}" in finding.message
    [*_, text] = [str(f) for f in findings if f.invariant == number]
    assert text.startswith(f"invariant {number}: ")


def test_damages_cover_every_invariant() -> None:
    """None of the numbered sentences is without a test that breaks it."""
    assert {number for number, _ in DAMAGES.values()} == set(range(1, 11))


@pytest.mark.parametrize("name", DERIVED)
def test_damage_of_what_is_derived_is_mended_by_the_next_who_locks(
    damaged: Damaged, name: str
) -> None:
    """A store that is marked as dirty is made anew from its slots."""
    DAMAGES[name][1](damaged)
    damaged.words[L.W_DIRTY] = 3
    damaged.store.put(np.ones(300), key="new")
    assert damaged.store.check() == []
    kept = {"second", "small", "last", "new"}
    assert set(damaged.store) - {"first"} == kept
    assert damaged.store["second"].tolist() == list(range(100))
    assert damaged.view.tolist() == [1.0] * 50
    damaged.kept = damaged.words.tolist()


@pytest.mark.parametrize("name", ["extents overlap", "an extent leaves the segment"])
def test_extent_that_cannot_be_right_is_never_given_out_while_it_is_viewed(
    damaged: Damaged, name: str
) -> None:
    """Where the view looks cannot be told any more; the error names the slot."""
    views = damaged.store["first"], damaged.store["second"]
    DAMAGES[name][1](damaged)
    damaged.words[L.W_DIRTY] = 3
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="slot") as caught:
            damaged.store.put(np.ones(300))
        assert caught.value.facts["slot"] in (0, 1)
        assert damaged.words[L.W_DIRTY] != 0
    assert [view[1] for view in views] == [1, 1]


@pytest.mark.parametrize("name", ["extents overlap", "an extent leaves the segment"])
def test_extent_that_cannot_be_right_takes_its_object_along_and_no_other(
    damaged: Damaged, name: str
) -> None:
    """The object is damaged, its memory is free, and the store goes on."""
    DAMAGES[name][1](damaged)
    damaged.words[L.W_DIRTY] = 3
    damaged.store.put(np.ones(300), key="new")
    lost, kept = ("second", "first") if name == "extents overlap" else ("first", "second")
    with pytest.raises(CorruptStoreError, match="slot"):
        damaged.store.get(lost)
    assert damaged.store.get(kept)[:100].tolist() == list(range(100))
    assert {finding.invariant for finding in damaged.store.check()} == {5}
    del damaged.store[lost]
    assert damaged.store.check() == []
    damaged.kept = damaged.words.tolist()


def test_older_of_two_objects_with_one_key_goes_when_the_store_is_mended(damaged: Damaged) -> None:
    """An overwrite was cut short after the new object was ready."""
    _two_with_one_key(damaged)
    damaged.words[L.W_DIRTY] = 3
    damaged.store.put("x", key="new")
    assert damaged.store.check() == []
    assert damaged.store["first"].tolist() == list(range(100))
    damaged.kept = damaged.words.tolist()


def test_checker_goes_on_after_an_invariant_that_cannot_be_told(damaged: Damaged) -> None:
    """A chain that leads out of its table is a finding, and the other invariants are still told."""
    damaged.words[L.W_LAST_NODE] = 1 << 40
    damaged.words[L.W_OBJECTS] += 1
    findings = damaged.store.check()
    assert {2, 3, 10} <= {finding.invariant for finding in findings}
    assert any("cannot be told" in finding.message for finding in findings)


def test_checker_runs_in_a_read_only_handle(damaged: Damaged) -> None:
    """It finds the same and changes nothing."""
    with Store.attach(damaged.store.path, readonly=True) as reader:
        assert reader.check() == []
        damaged.words[L.W_OBJECTS] += 1
        assert {finding.invariant for finding in reader.check()} == {10}
        damaged.words[L.W_OBJECTS] -= 1
    damaged.kept = damaged.words.tolist()


def test_checker_of_a_new_store_finds_nothing() -> None:
    """Also with the smallest tables that there are."""
    with Store.create(capacity=1, max_objects=1, max_clients=1) as store:
        assert store.check() == []
        store["a"] = np.zeros(4096, "u1")
        assert store.check() == []
        del store["a"]
        assert store.check() == []
