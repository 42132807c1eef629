"""Stores with damaged files: the short run of `make fuzz`, and the damage that it has found."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import damage_files
import damage_work
import fuzzing
import proofs
import pytest
import rooms
from damage_files import DamageError, FileTargets
from damage_templates import PAGE, Template, row_of
from damage_ways import Noise
from mutations import COUNT
from stores import Flag

from shmstore._memory import layout as L

WORD = L.WORD
Words = dict[int, int]


@pytest.fixture(scope="module")
def targets() -> Iterator[FileTargets]:
    """Give stores that can be damaged."""
    with rooms.memory_folder() as folder:
        yield FileTargets(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzzing.FILE_KINDS)
def test_damaged_files_give_the_right_value_or_an_error_of_ours(kind: str) -> None:
    """No crash, no hang, no other error, nothing lost that the damage does not concern."""
    count = COUNT // 40
    report = fuzzing.run({kind: count}, seed=COUNT, most_failures=5)
    assert not report.failures
    assert report.tried[kind] == count
    proofs.note(f"damaged files: {kind}", cases=count, refused=report.refused[kind])


# --- what was found -------------------------------------------------------------------------------


def _superblock(**words: int) -> Callable[[Template], Words]:
    """Write words of the superblock, by their names in the layout."""
    return lambda _: {getattr(L, f"W_{name}") * WORD: value for name, value in words.items()}


def _slot(name: str, **words: int) -> Callable[[Template], Words]:
    """Write fields of the slot of an object."""

    def damage(template: Template) -> Words:
        start, _ = row_of(template, template.objects[name].slot)
        return {start + getattr(L, f"S_{field}") * WORD: value for field, value in words.items()}

    return damage


def _word_of(template: Template, at: int) -> int:
    return int.from_bytes(template.index[at : at + WORD], "little")


def _grow_extent(template: Template) -> Words:
    """Let an extent reach into the next one."""
    at = row_of(template, template.objects["array"].slot)[0] + L.S_EXTENT_NBYTES * WORD
    return {at: _word_of(template, at) + 64}


def _copy_row(template: Template) -> Words:
    """Write the slot of one object over that of another, its state word too."""
    there, _ = row_of(template, template.objects["loose"].slot)
    here, end = row_of(template, template.objects["array"].slot)
    return {there + at: _word_of(template, here + at) for at in range(0, end - here, WORD)}


def _copy_fields(template: Template) -> Words:
    """The same without the state word."""
    words = _copy_row(template)
    del words[min(words)]
    return words


def _resurrect(template: Template) -> Words:
    """Make a deleted object READY again: its memory may belong to another."""
    free = _word_of(template, L.W_FREE_SLOT * WORD) - 1
    at = row_of(template, free)[0]
    return {at: _word_of(template, at) | 2}


def _loop(template: Template) -> Words:
    """Let a chain of keys lead back into itself."""
    slot = template.objects["number"].slot
    return {row_of(template, slot)[0] + L.S_CHAIN * WORD: slot + 1}


def _buckets(template: Template) -> Words:
    """Let each bucket lead out of the table."""
    start = template.geometry.buckets * WORD
    return {start + bucket * WORD: 1 << 40 for bucket in range(64)}


def _spare_node(template: Template) -> Words:
    """Say that the node of an object is a spare one."""
    node = row_of(template, template.objects["array"].slot)[0] + L.S_NODE * WORD
    return {L.W_FREE_NODE * WORD: _word_of(template, node)}


def _move_node(template: Template) -> Words:
    """Let an object name the block of another one."""
    one, two = (
        row_of(template, template.objects[name].slot)[0] + L.S_NODE * WORD
        for name in ("array", "frozen")
    )
    return {one: _word_of(template, two)}


def _above_a_free_block(template: Template) -> Words:
    """Let what lies above each free block be a word of a slot."""
    nodes, words = template.geometry.nodes, memoryview(template.index).cast("Q")
    free = range(nodes, nodes + words[L.W_NODE_TOP] * L.NODE_WORDS, L.NODE_WORDS)
    far = (template.geometry.slots + 2 * L.SLOT_WORDS - nodes) // L.NODE_WORDS + 1
    return {
        (base + L.N_UPPER) * WORD: far for base in free if words[base + L.N_STATUS] == L.NODE_FREE
    }


def _part_of_a_queue(template: Template) -> Words:
    """Let an object with a key be a part of a queue that there is not."""
    kind = row_of(template, template.objects["number"].slot)[0] + L.S_KIND * WORD
    return {kind: _word_of(template, kind) ^ (L.KIND_QUEUED | L.KIND_TALLY)}


def _queue_and_part_of_one(template: Template) -> Words:
    """Let an object with a key be both."""
    [(at, word)] = _part_of_a_queue(template).items()
    return {at: word ^ L.KIND_QUEUE}


def _free_heads(template: Template) -> Words:
    """Let each list of free blocks begin with the block of an object: trimming reads them."""
    node = row_of(template, template.objects["array"].slot)[0] + L.S_NODE * WORD
    heads = range(L.W_FREE_HEADS, L.W_FREE_HEADS + L.FIRST_LEVELS * L.SECOND_LEVELS)
    return {at * WORD: _word_of(template, node) for at in heads}


FOUND: dict[str, Callable[[Template], Words]] = {
    "buckets beyond the table": _superblock(BUCKETS=1 << 40),
    "buckets that lead out of the slots": _buckets,
    "a chain with a loop": _loop,
    "an object that is part of no queue": _part_of_a_queue,
    "an object that is a queue and part of one": _queue_and_part_of_one,
    "nodes without end": _superblock(NODE_TOP=1 << 40, FREE_NODE=0),
    "fewer nodes than there are": _superblock(NODE_TOP=1, FREE_NODE=0),
    "a node in use that is said to be spare": _spare_node,
    "a slot that names the block of another": _move_node,
    "the last block elsewhere": _superblock(LAST_NODE=1),
    "an allocator that looks new": _superblock(SEGMENT_TOP=0, LAST_NODE=0, USED=0, FREE_NODE=6),
    "no buckets": _superblock(BUCKETS=0),
    "a top below the extents": _superblock(SEGMENT_TOP=64),
    "free lists with a block in use": _free_heads,
    "a block above that is none": _above_a_free_block,
    "size classes that are none": _superblock(FIRST_LEVEL=1 << 60),
    "more keys than slots": _superblock(NAMED=(1 << 64) - 32),
    "no objects": _superblock(OBJECTS=0, NAMED=0),
    "no used bytes": _superblock(USED=0),
    "seats that are there already": _superblock(NEXT_SERIAL=1),
    "seats at their last number": _superblock(NEXT_SERIAL=(1 << 64) - 1),
    "no clients": _superblock(CLIENT_TOP=0),
    "fewer slots than there are": _superblock(SLOT_TOP=2),
    "more slots than there can be": _superblock(SLOT_TOP=1 << 40),
    "a free slot that is none": _superblock(FREE_SLOT=1),
    "a doomed slot out of the table": _superblock(DOOMED_TAIL=1 << 40),
    "a doomed slot that is none": _superblock(DOOMED_HEAD=1),
    "too few doomed bytes": _superblock(DOOMED_BYTES=1),
    "generations that were had": _superblock(NEXT_GENERATION=1),
    "generations at their end": _superblock(NEXT_GENERATION=(1 << 64) - 1),
    "tables with pages that are not there": _superblock(SLOTS_RESERVED=1 << 40, NODES_RESERVED=7),
    "an extent that reaches into the next": _grow_extent,
    "a slot that is a copy": _copy_row,
    "a slot with the fields of another": _copy_fields,
    "a deleted object that is back": _resurrect,
    "a header in an extent that is not there": _slot("number", KIND=13),
    "an object without its block": _slot("array", NODE=0),
    "a state that is none": _slot("array", STATE=0xFFFF),
    "a generation that cannot be": _slot("array", STATE=(1 << 64) - 254),
}


@pytest.mark.parametrize("living", [False, True], ids=["dead", "living"])
@pytest.mark.parametrize("name", FOUND)
def test_damage_that_was_found_hurts_nobody_else(
    targets: FileTargets, name: str, living: Flag
) -> None:
    """The store is used, recovered, checked and destroyed; all other objects are right."""
    targets.try_words("index", FOUND[name](targets.templates[0]), living=living)


FOUND_WITH_FILES: dict[str, Callable[[Template], Words]] = {
    "fewer slots than have files": _superblock(SLOT_TOP=2),
    "no slots at all": _superblock(SLOT_TOP=0, FREE_SLOT=0),
    "a block for what lies in a file": _slot("big", NODE=3),
    "another size in a file": _slot("big", EXTENT_NBYTES=1 << 40),
    "a header of another size in a file": _slot("record", HEADER_NBYTES=1 << 20),
    "a generation that the file does not have": _slot("packed", STATE=77 << 8 | 4),
}


@pytest.mark.parametrize("name", FOUND_WITH_FILES)
def test_damage_that_was_found_takes_no_files_along(targets: FileTargets, name: str) -> None:
    """Who comes next looks for files that belong to nobody: those of objects are not among them."""
    targets.try_words("index", FOUND_WITH_FILES[name](targets.templates[4]), number=4)


@pytest.mark.parametrize("living", [False, True], ids=["dead", "living"])
@pytest.mark.parametrize(
    "words",
    [{0: 0}, {8: 77}, {16: 1 << 63}, {L.FIRST_CELL * L.CELL_NBYTES: 48647}],
    ids=["mark", "serial", "cells", "pin"],
)
def test_damaged_seat_takes_no_object_along(
    targets: FileTargets, words: Words, living: Flag
) -> None:
    """While its client lives nothing is given out that it may look at; all can be got."""
    targets.try_words("seats/2", words, living=living)


def test_page_that_names_another_store_is_the_end_of_the_segment_alone(
    targets: FileTargets,
) -> None:
    """What lies in the index can still be got."""
    label = targets.templates[0].files["segment-00000"].size - PAGE
    assert targets.try_words("segment-00000", {label + WORD: 5})


PAGES = ("client table", "key index", "nodes", "slots", "second page of slots")


@pytest.mark.parametrize("living", [False, True], ids=["dead", "living"])
@pytest.mark.parametrize("page", range(len(PAGES)), ids=PAGES)
def test_page_of_another_store_is_not_taken_for_ours(
    targets: FileTargets, page: int, living: Flag
) -> None:
    """Its slots have the same numbers, generations and keys as ours, and other values."""
    template, other = targets.templates[:2]
    tables = template.geometry
    starts = (
        tables.clients,
        tables.buckets,
        tables.nodes,
        tables.slots,
        tables.slots + PAGE // WORD,
    )
    places = range(starts[page] * WORD, starts[page] * WORD + PAGE, WORD)
    targets.try_words("index", {at: _word_of(other, at) for at in places}, living=living)


# --- the harness ----------------------------------------------------------------------------------


BAD: dict[str, Callable[[Any], Any]] = {
    "ended with -11": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "ended with 9": lambda _: 1 / 0,
    "hung": lambda _: time.sleep(60),
    "IndexError": lambda work: work._attempt("index", [].pop),
    "MemoryError": lambda work: work._attempt("memory", bytearray, 1 << 60),
    "is wrong": lambda work: work._judge(
        "x", work.case.template.objects["big"], 5, "big", sure=True
    ),
    "is lost": lambda work: work._judge(
        "x", work.case.template.objects["big"], damage_work.REFUSED, "big", sure=True
    ),
    "have grown": lambda work: os.posix_fallocate(
        os.open(work.case.path / "lock", os.O_RDWR), 0, damage_files.MOST_BLOCKS_NBYTES + PAGE
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_harness_notices(targets: FileTargets, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a case does that it must not do; the next case is not harmed by it."""
    monkeypatch.setattr(damage_files, "LIMIT_S", 1)
    monkeypatch.setattr(damage_files, "FSIZE_NBYTES", 1 << 40)
    with monkeypatch.context() as patched:
        patched.setattr(damage_work.Work, "run", BAD[what])
        with pytest.raises(DamageError, match=what):
            targets.try_lock(Noise(1))
    targets.try_words("lock", {})


def test_same_case_damages_the_same_bytes(targets: FileTargets) -> None:
    """A seed and a number repeat a case, so that what was found can be looked at."""
    done = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(targets, "_run", lambda *_, **told: done.append(told["done"]))
        for _ in range(2):
            for case in range(20):
                targets.try_index(Noise(f"1/index/{case}"))
    assert done[:20] == done[20:]
    assert len(set(done)) == 20
