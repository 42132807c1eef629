"""The key index: every key is found exactly once, through growth, overwriting and repair."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import rooms
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import Store
from shmstore._catalog.inserts import Content
from shmstore._catalog.keys import NO_KEY, KeyIndex, digest_of
from shmstore._catalog.slots import Slots
from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore.errors import CorruptStoreError


class Catalog:
    """Slot table and key index together, as a put, an overwrite and a delete use them."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.slots = Slots(index)
        self.keys = KeyIndex(index)

    def put(self, key: str) -> int:
        """Enter a key, or swap its slot for a new one."""
        digest = digest_of(key)
        slot = self.slots.take()
        assert slot is not None
        self.keys.prepare()
        self.slots.reserve(slot, 0, None)
        old = self.keys.find(digest)
        self.slots.publish(slot, Content(L.KIND_NAMED, b"", b"", 0, digest), 1)
        if old < 0:
            self.keys.add(slot)
        else:
            link = self.keys.add_behind(old, slot)
            self.slots.doom(old)
            self.keys.pass_by(link, slot)
        return slot

    def remove(self, key: str) -> None:
        """Take a key out."""
        slot = self.find(key)
        self.keys.remove(slot)
        self.slots.doom(slot)

    def find(self, key: str) -> int:
        """Return the slot of a key, or -1."""
        return self.keys.find(digest_of(key))

    def assert_equal(self, model: dict[str, int]) -> None:
        """Compare with a dict: each key leads to its slot, and the chains hold nothing else."""
        assert {key: self.find(key) for key in model} == model
        found = [slot for _, slot in self.keys.chains()]
        assert sorted(found) == sorted(model.values())
        assert self.index.words[L.W_NAMED] == len(model)


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    """Give a catalog with room for 6,000 objects."""
    with rooms.an_index(rooms.identity(max_objects=6000)) as index:
        yield Catalog(index)


# --- digests -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(key=st.text(max_size=50))
def test_digest_is_the_one_of_the_format(key: str) -> None:
    """blake2b with 16 bytes of the UTF-8 text, as two little-endian words."""
    raw = hashlib.blake2b(key.encode(), digest_size=16).digest()
    assert digest_of(key) == struct.unpack("<2Q", raw)


def test_digest_of_a_known_key_never_changes() -> None:
    """Stores outlive processes and versions."""
    assert digest_of("shmstore") == (0x730A7D63CDED2D19, 0xE738980D4579C822)
    assert digest_of("") != NO_KEY


def test_digest_is_the_same_under_every_hash_seed() -> None:
    """Processes with different PYTHONHASHSEED find each other's keys."""
    source = "from shmstore._catalog.keys import digest_of; print(digest_of('ключ'), hash('ключ'))"
    answers = [rooms.run_python(source, PYTHONHASHSEED=seed).rpartition(" ") for seed in "12"]
    assert answers[0][0] == answers[1][0] == str(digest_of("ключ"))
    assert answers[0][2] != answers[1][2]


# --- against a dict ------------------------------------------------------------------------------


def test_keys_by_the_thousand_are_all_found_through_growth_and_removal(catalog: Catalog) -> None:
    """Put, overwrite and remove in random order until thousands of buckets were split."""
    rng = random.Random(7)
    model: dict[str, int] = {}
    for step in range(9000):
        key = f"key-{rng.randrange(5000)}"
        if key in model and rng.random() < 0.3:
            catalog.remove(key)
            del model[key]
        else:
            model[key] = catalog.put(key)
        if step % 1500 == 0:
            catalog.assert_equal(model)
    catalog.assert_equal(model)
    assert catalog.find("never put") == -1
    assert catalog.index.words[L.W_BUCKETS] >= len(model) // 2
    for key in list(model):
        catalog.remove(key)
    catalog.assert_equal({})


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["put", "remove", "rebuild"]), st.integers(0, 90))),
    ballast=st.integers(0, 200),
)
def test_keys_in_any_order_of_calls_agree_with_a_dict(
    steps: list[tuple[str, int]], ballast: int
) -> None:
    """Around the first split of buckets, with rebuilds in between."""
    with rooms.an_index(rooms.identity(max_objects=400)) as index:
        catalog = Catalog(index)
        model = {f"ballast-{n}": catalog.put(f"ballast-{n}") for n in range(ballast)}
        for what, number in steps:
            key = f"key-{number}"
            if what == "put":
                model[key] = catalog.put(key)
            elif what == "remove" and key in model:
                catalog.remove(key)
                del model[key]
            elif what == "rebuild":
                catalog.keys.rebuild(np.array(sorted(model.values()), np.intp))
            assert catalog.find(key) == model.get(key, -1)
        catalog.assert_equal(model)


def test_index_without_keys_finds_nothing(catalog: Catalog) -> None:
    """Before the first key there is not even a bucket."""
    assert catalog.find("a") == -1
    assert list(catalog.keys.chains()) == []
    catalog.keys.rebuild(np.array([], np.intp))
    assert catalog.find("a") == -1


def test_buckets_grow_with_the_keys_and_chains_stay_short(catalog: Catalog) -> None:
    """The memory follows the number of keys, and no bucket holds many of them."""
    assert catalog.index.words[L.W_BUCKETS_RESERVED] == 0
    for number in range(4000):
        catalog.put(f"key-{number}")
    lengths: dict[int, int] = {}
    for bucket, _ in catalog.keys.chains():
        lengths[bucket] = lengths.get(bucket, 0) + 1
    assert 2000 <= catalog.index.words[L.W_BUCKETS] <= 4096
    assert max(lengths.values()) <= 16


def test_room_for_a_batch_is_reserved_at_once() -> None:
    """Keys that come together leave no growing to do for those that come later."""
    with rooms.an_index(rooms.identity(max_objects=100_000)) as index:
        catalog = Catalog(index)
        catalog.keys.prepare(20_000)
        assert index.words[L.W_BUCKETS_RESERVED] >= 20_000 * L.WORD
    with (
        rooms.memory_folder() as folder,
        Store.create(capacity="8MiB", max_objects=10_000, root=folder) as store,
    ):
        store.put_many({str(number): number for number in range(9_000)})
        assert store._live().words[L.W_BUCKETS] == 9_000


def test_buckets_stay_within_the_table_when_it_is_full() -> None:
    """With as many keys as objects the index stops growing and goes on working."""
    with rooms.an_index(rooms.identity(max_objects=600)) as index:
        catalog = Catalog(index)
        model = {f"key-{n}": catalog.put(f"key-{n}") for n in range(600)}
        assert catalog.slots.take() is None
        for number in range(0, 600, 2):
            catalog.remove(f"key-{number}")
            del model[f"key-{number}"]
        for number in range(0, 600, 2):
            model[f"new-{number}"] = catalog.put(f"new-{number}")
        catalog.assert_equal(model)
        assert index.words[L.W_BUCKETS] <= index.geometry.max_buckets


# --- one key -------------------------------------------------------------------------------------


def test_key_overwritten_leads_to_the_new_slot_in_one_store(catalog: Catalog) -> None:
    """Between the calls of an overwrite a reader finds the old object or the new one."""
    for number in range(300):
        catalog.put(f"key-{number}")
    old = catalog.find("key-7")
    digest = digest_of("key-7")
    new = catalog.slots.take()
    assert new is not None
    catalog.slots.reserve(new, 0, None)
    assert catalog.find("key-7") == old
    catalog.slots.publish(new, Content(L.KIND_NAMED, b"", b"", 0, digest), 1)
    assert catalog.find("key-7") == old
    link = catalog.keys.add_behind(old, new)
    assert catalog.find("key-7") == old
    catalog.slots.doom(old)
    assert catalog.find("key-7") == new
    catalog.keys.pass_by(link, new)
    assert catalog.find("key-7") == new


def test_key_of_an_object_that_is_not_ready_is_not_found(catalog: Catalog) -> None:
    """The slot word decides, whatever the chain still says."""
    slot = catalog.put("a")
    catalog.slots.doom(slot)
    assert catalog.find("a") == -1


def test_keys_of_one_bucket_are_told_apart_by_their_whole_digest(catalog: Catalog) -> None:
    """Digests that share a word are different keys."""
    digests = [(5, 1), (5, 2), (5 + (1 << 40), 1)]
    found = []
    for digest in digests:
        slot = catalog.slots.take()
        assert slot is not None
        catalog.keys.prepare()
        catalog.slots.reserve(slot, 0, None)
        catalog.slots.publish(slot, Content(L.KIND_NAMED, b"", b"", 0, digest), 1)
        catalog.keys.add(slot)
        found.append(slot)
    assert [catalog.keys.find(digest) for digest in digests] == found
    assert catalog.keys.find((5, 3)) == -1
    catalog.keys.remove(found[1])
    assert [catalog.keys.find(digest) for digest in digests] == [found[0], -1, found[2]]


def test_key_removed_twice_is_damage(catalog: Catalog) -> None:
    """A slot that is in no chain is not silently ignored."""
    slot = catalog.put("a")
    catalog.keys.remove(slot)
    with pytest.raises(CorruptStoreError, match=f"slot {slot} is missing") as caught:
        catalog.keys.remove(slot)
    assert caught.value.facts["invariant"] == 4


# --- repair and damage ---------------------------------------------------------------------------


def test_rebuild_of_an_index_that_had_no_room_makes_some(catalog: Catalog) -> None:
    """Damage may have given a key to an object of a store that never had any."""
    model = {f"key-{n}": catalog.put(f"key-{n}") for n in range(3)}
    catalog.index.words[L.W_BUCKETS] = catalog.index.words[L.W_BUCKETS_RESERVED] = 0
    catalog.keys.rebuild(np.array(sorted(model.values()), np.intp))
    catalog.assert_equal(model)


def test_rebuild_after_damage_finds_every_key_again(catalog: Catalog) -> None:
    """Buckets and chains full of nonsense are made anew from the slots."""
    model = {f"key-{n}": catalog.put(f"key-{n}") for n in range(700)}
    index = catalog.index
    for bucket in range(index.words[L.W_BUCKETS]):
        index.words[index.geometry.buckets + bucket] = bucket % 5
    for slot in model.values():
        index.words[rooms.word_of(slot, L.S_CHAIN, index)] = 3
    catalog.keys.rebuild(np.array(sorted(model.values()), np.intp))
    catalog.assert_equal(model)
    model["more"] = catalog.put("more")
    catalog.assert_equal(model)


def test_chain_with_a_loop_is_damage_not_a_hang(catalog: Catalog) -> None:
    """Looking for a key ends after as many steps as there are objects."""
    slot = catalog.put("a")
    catalog.index.words[rooms.word_of(slot, L.S_CHAIN, catalog.index)] = slot + 1
    catalog.slots.doom(slot)
    for look in (lambda: catalog.find("a"), lambda: list(catalog.keys.chains())):
        with pytest.raises(CorruptStoreError, match="loop") as caught:
            look()
        assert caught.value.facts["offset"] == 8 * rooms.word_of(slot, L.S_CHAIN, catalog.index)


def test_prepare_on_a_full_file_system_changes_nothing() -> None:
    """A key that cannot be entered is refused before its object is made."""
    with rooms.small_file_system(96 << 10) as folder:
        made_from = rooms.identity(max_objects=100_000)
        with rooms.open_index(folder, made_from) as index:
            catalog = Catalog(index)
            catalog.slots.take()
            rooms.fill_up(folder)
            before = index.words[:128].tolist()
            with pytest.raises(OSError, match="No space"):
                catalog.keys.prepare()
            assert index.words[:128].tolist() == before
