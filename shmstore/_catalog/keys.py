"""Given a key, which slot holds its object?

Linear hashing (W. Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980):
the table grows by one bucket with each new key, so that its memory follows the number of keys and
no insertion ever rehashes the whole. The objects of one bucket form a chain through their slots. A
key is known by its 128-bit blake2b digest, which is the same in every process whatever
PYTHONHASHSEED says; its text lies in the object's header.

Concurrency: changes require the store lock. A reader without the lock may miss a key that is being
moved to another bucket; what it finds is right if the slot word says so. It therefore repeats a
miss under the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore.errors import CorruptStoreError

if TYPE_CHECKING:
    import numpy.typing as npt

try:  # the same as in hashlib, which loads OpenSSL: that takes as long as all of our modules
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

Digest = tuple[int, int]

NO_KEY: Digest = (0, 0)

_FIRST_BUCKETS = 64


def digest_of(key: str) -> Digest:
    """Return the two words that stand for a key."""
    raw = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _buckets_of(lows: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.intp]:
    """Return the bucket, of so many, that each digest falls into, see `KeyIndex._bucket`."""
    mask = (1 << (count - 1).bit_length()) - 1
    numbers = lows & np.uint64(mask)
    numbers[numbers >= np.uint64(count)] &= np.uint64(mask >> 1)
    return numbers.astype(np.intp)


class KeyIndex:
    """The key index of one store.

    Parameters
    ----------
    index
        The index that holds the buckets and the slots.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._words = index.words
        self._buckets = index.geometry.buckets
        self._slots = index.geometry.slots
        self._most = index.geometry.max_objects

    def find(self, digest: Digest) -> int:
        """Return the slot of a published object with this key, or -1."""
        words = self._words
        low, high = digest
        if not words[L.W_BUCKETS]:
            if words[L.W_NAMED]:
                raise self._damaged(L.W_BUCKETS, "counts no buckets, but there are keys")
            return -1
        at = self._bucket(low)
        most = self._most
        for _ in range(most + 1):
            slot = words[at]
            if not slot:
                return -1
            if slot > most:
                raise self._damaged(at, f"leads to slot {slot - 1}, the table has {most}")
            base = self._slots + (slot - 1) * L.SLOT_WORDS
            if (
                words[base + L.S_DIGEST] == low
                and words[base + L.S_DIGEST + 1] == high
                and states.is_present(words[base + L.S_STATE])
            ):
                return int(slot) - 1
            at = base + L.S_CHAIN
        raise self._damaged(at, "lies in a chain that has a loop")

    def prepare(self, count: int = 1) -> None:
        """Reserve room for so many new keys to grow by. Requires: the store lock.

        Raises
        ------
        OSError
            ENOSPC: nothing was changed.
        """
        most = self._index.geometry.max_buckets
        while self._room() < min(max(_FIRST_BUCKETS, self._words[L.W_BUCKETS] + count), most):
            self._index.grow_buckets()

    def add(self, slot: int) -> None:
        """Enter a slot under its digest. Requires: the lock, `prepare`, and no such key."""
        words = self._words
        if words[L.W_BUCKETS] < min(words[L.W_NAMED], self._room()):
            self._grow()
        self._enter(slot)

    def add_behind(self, old: int, new: int) -> int:
        """Enter `new` behind `old`, which has the same key: found as soon as `old` is doomed.

        Returns
        -------
        int
            The word that leads to `old`, for `pass_by`.
        """
        after_old = self._slots + old * L.SLOT_WORDS + L.S_CHAIN
        self._words[self._slots + new * L.SLOT_WORDS + L.S_CHAIN] = self._words[after_old]
        self._words[after_old] = new + 1
        return self._link_to(old)

    def pass_by(self, link: int, new: int) -> None:
        """Take what stood before `new` out of the chain; its slot may be free and empty by now."""
        self._words[link] = new + 1

    def remove(self, slot: int) -> None:
        """Take a slot out of its bucket. Requires: the store lock."""
        link = self._link_to(slot)
        self._words[link] = self._words[self._slots + slot * L.SLOT_WORDS + L.S_CHAIN]

    def rebuild(self, slots: npt.NDArray[np.intp]) -> None:
        """Make the index anew for these slots, lowest first. Requires: the store lock."""
        words, index = self._words, self._index
        words[L.W_BUCKETS] = 0
        if len(slots) and not self._room():  # damage has given keys to what had none
            index.grow_buckets()
        wanted = min(max(_FIRST_BUCKETS, len(slots)), self._room())
        firsts = np.zeros(wanted, np.uint64)
        if len(slots):
            table = index.rows(self._slots, int(slots[-1]) + 1, L.SLOT_WORDS)
            buckets = _buckets_of(table[slots, L.S_DIGEST], wanted)
            order = np.argsort(buckets, kind="stable")
            buckets, slots = buckets[order], slots[order]
            numbers = (slots + 1).astype(np.uint64)
            behind = np.concatenate([np.zeros(1, np.uint64), numbers[:-1]])
            behind[1:][buckets[1:] != buckets[:-1]] = 0
            table[slots, L.S_CHAIN] = behind
            firsts[buckets] = numbers  # of those in one bucket the last counts
        column = index.rows(self._buckets, wanted, 1)
        column[:, 0] = firsts
        words[L.W_BUCKETS] = wanted

    def holds_exactly(self, slots: npt.NDArray[np.intp]) -> bool:
        """Return whether these slots, lowest first, are found by their keys, once, and no others.

        They are looked at together. False may also mean that only a walk can tell what is wrong.
        """
        index, count = self._index, self._count()
        table = index.rows(self._slots, int(slots[-1]) + 1 if len(slots) else 0, L.SLOT_WORDS)
        lows = table[slots, L.S_DIGEST]
        if not count or len(np.unique(lows)) < len(slots):
            return not count and not len(slots)
        heads = index.rows(self._buckets, count, 1)[:, 0]
        filled = np.flatnonzero(heads)
        behind = table[slots, L.S_CHAIN]
        linked = np.flatnonzero(behind)
        numbers = (slots + 1).astype(np.uint64)
        reached = np.concatenate([heads[filled], behind[linked]])
        if not np.array_equal(np.sort(reached), numbers):
            return False
        buckets = _buckets_of(lows, count)
        first, following = (
            np.searchsorted(numbers, links) for links in (heads[filled], behind[linked])
        )
        if bool((buckets[first] != filled).any()):
            return False
        if bool((buckets[following] != buckets[linked]).any()):
            return False
        chain = np.full(len(slots), -1)
        chain[linked] = following
        found = 0  # each slot has one link to it, so those that no bucket leads to are in a circle
        while len(first):
            found += len(first)
            first = chain[first]
            first = first[first >= 0]
        return found == len(slots)

    def chains(self) -> Iterator[tuple[int, int]]:
        """Walk all (bucket, slot) pairs, as many as there are slots, and one more.

        Raises
        ------
        CorruptStoreError
            A chain leaves the slot table, or there are more pairs than slots: one has a loop.
        """
        words, left = self._words, self._most
        for bucket in range(self._count()):
            at = self._buckets + bucket
            while words[at]:
                slot = self._slot_at(at)
                yield bucket, slot
                left -= 1
                at = self._slots + slot * L.SLOT_WORDS + L.S_CHAIN
                if left < 0:
                    raise self._damaged(at, "lies in a chain that has a loop")

    def _enter(self, slot: int) -> None:
        """Put a slot in front of the chain of its bucket."""
        words = self._words
        base = self._slots + slot * L.SLOT_WORDS
        bucket = self._bucket(words[base + L.S_DIGEST])
        words[base + L.S_CHAIN] = words[bucket]
        words[bucket] = slot + 1

    def _slot_at(self, at: int) -> int:
        """Return the slot that a word of a chain leads to."""
        slot = int(self._words[at])
        if not 0 < slot <= self._most:
            raise self._damaged(at, f"leads to slot {slot - 1}, the table has {self._most}")
        return slot - 1

    def _count(self) -> int:
        """Return the number of buckets in use."""
        count, most = int(self._words[L.W_BUCKETS]), self._index.geometry.max_buckets
        if count > most:
            raise self._damaged(L.W_BUCKETS, f"counts {count} buckets, there are {most}")
        return count

    def _damaged(self, word: int, what: str) -> CorruptStoreError:
        return self._index.damaged("the key index", word, what, 4)

    def _room(self) -> int:
        """Return how many buckets there are pages for."""
        reserved = self._words[L.W_BUCKETS_RESERVED] // L.WORD
        return int(min(reserved, self._index.geometry.max_buckets))

    def _bucket(self, low: int) -> int:
        """Return the word of the bucket that a digest falls into."""
        count = self._words[L.W_BUCKETS]
        if count > self._index.geometry.max_buckets:
            count = self._count()
        bits = (count - 1).bit_length()
        number = low & ((1 << bits) - 1)
        if number >= count:
            number &= (1 << (bits - 1)) - 1
        return int(self._buckets + number)

    def _grow(self) -> None:
        """Add one bucket and move into it what belongs there from the bucket it splits."""
        words = self._words
        count = self._count()
        if count < _FIRST_BUCKETS:
            for bucket in range(self._buckets, self._buckets + _FIRST_BUCKETS):
                words[bucket] = 0
            words[L.W_BUCKETS] = _FIRST_BUCKETS
            return
        old = self._buckets + (count ^ (1 << (count.bit_length() - 1)))
        moving, at = [], old
        while words[at]:
            moving.append(self._slot_at(at))
            at = self._slots + moving[-1] * L.SLOT_WORDS + L.S_CHAIN
            if len(moving) > self._most:
                raise self._damaged(at, "lies in a chain that has a loop")
        words[old] = words[self._buckets + count] = 0
        words[L.W_BUCKETS] = count + 1
        for slot in moving:
            self._enter(slot)

    def _link_to(self, slot: int) -> int:
        """Return the word that points to a slot: its bucket, or the chain word before it."""
        words = self._words
        link = self._bucket(words[self._slots + slot * L.SLOT_WORDS + L.S_DIGEST])
        for _ in range(self._most + 1):
            if words[link] == slot + 1:
                return link
            if not words[link]:
                break
            link = self._slots + self._slot_at(link) * L.SLOT_WORDS + L.S_CHAIN
        raise self._damaged(link, f"ends a chain in which slot {slot} is missing")
