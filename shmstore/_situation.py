"""What is short in a store, and why?"""

from __future__ import annotations

from collections.abc import Sequence

from shmstore._catalog import states
from shmstore._census import Census, Flags, Sitter
from shmstore._info import ClientUse, FileSystemUse
from shmstore._memory import layout as L
from shmstore._page import nbytes, plural
from shmstore._session import Session
from shmstore._tuples import NamedTuple


class Situation(NamedTuple):
    """What is known when it is asked why there is no room, and for how many bytes it is asked."""

    session: Session
    census: Census
    disk: FileSystemUse
    clients: Sequence[ClientUse]
    free: int
    asked: int | None

    @property
    def capacity(self) -> int:
        """Bytes for objects."""
        return self.session.identity.capacity

    @property
    def max_objects(self) -> int:
        """Slots of the table."""
        return self.session.identity.max_objects

    @property
    def slots_used(self) -> int:
        """Slots that are not free."""
        return int((self.census.state != states.FREE).sum())

    @property
    def is_too_small(self) -> bool:
        """Whether what is asked for would not even fit into the empty store."""
        return self.asked is not None and self.asked > self.capacity

    @property
    def has_no_slot(self) -> bool:
        """Whether a put finds no slot. Eviction frees some, spilling none."""
        evictable = self.leaves == "evicted" and bool(self.loose.any())
        return self.slots_used >= self.max_objects and not evictable

    @property
    def has_no_pages(self) -> bool:
        """Whether the file system may not give what the store has free."""
        return self.disk.free < min(self.disk.unbacked, self.asked or self.free)

    @property
    def is_in_pieces(self) -> bool:
        """Whether enough is free, but not in one piece, and nothing makes way by itself."""
        if self.leaves:
            return False
        largest = self.census.largest_free
        if self.asked is not None:
            return largest < self.asked <= self.free
        return self.census.free_extents > 1 and 2 * largest < self.free

    @property
    def is_short(self) -> bool:
        """Whether a put of what is asked for, or one that fills what is free, might fail."""
        if self.has_no_slot or self.has_no_pages or self.is_too_small:
            return True
        if self.leaves:
            return self.free + self.census.total(self.loose) < (self.asked or self.capacity // 2)
        if self.is_in_pieces or self.asked is not None:
            return (self.asked or self.free) > self.census.largest_free
        return 2 * self.census.used >= self.capacity

    @property
    def leaves(self) -> str:
        """What becomes of objects that nobody looks at, when room is needed; "" for nothing."""
        flags = self.session.identity.flags
        return "evicted" * bool(flags & L.FLAG_EVICT) or "spilled" * bool(flags & L.FLAG_SPILL)

    @property
    def loose(self) -> Flags:
        """Objects in memory that nobody looks at: deleted, they would give it back at once.

        Parts of queues can be spilled, but neither deleted nor evicted.
        """
        census = self.census
        looked_at = census.looked_at() + census.looked_at(alive=False) > 0
        loose: Flags = census.are(states.READY) & ~looked_at
        return loose if self.leaves == "spilled" else loose & ~census.part

    @property
    def dead(self) -> list[Sitter]:
        """Processes that have died, and whose seats nobody has taken away yet."""
        return [sitter for sitter in self.census.sitters if not sitter.alive]


def reason(now: Situation) -> str:
    """Return one sentence: what is short, and why."""
    if not now.is_short:
        return _what_fits(now)
    if now.is_too_small:
        asked = nbytes(now.asked or 0)
        return f"It is too small: {asked} asked for, {nbytes(now.capacity)} in all."
    if now.has_no_slot:
        return f"It has no slot: {_holders_of_slots(now)}, as many as max_objects allows."
    if now.has_no_pages:
        free = f"{now.disk.path} has {nbytes(now.disk.free)} free"
        return f"Its file system is short: {free}, and the store lacks {nbytes(now.disk.unbacked)}."
    if now.is_in_pieces:
        pieces = plural(now.census.free_extents, "piece")
        largest = nbytes(now.census.largest_free)
        fits = f"{nbytes(now.free)} are free, but no object above {largest} fits"
        return f"Its free memory is in {pieces}: {fits}."
    return _holders_of_bytes(now)


def _what_fits(now: Situation) -> str:
    largest = now.census.largest_free
    if now.leaves and largest < (now.asked or now.capacity // 2):
        size = nbytes(now.census.total(now.loose))
        objects = plural(int(now.loose.sum()), "object")
        return f"It makes room by itself: {size} of {objects} can be {now.leaves}."
    return f"It is not full: an object of up to {nbytes(largest)} fits."


def _holders_of_slots(now: Situation) -> str:
    census = now.census
    kinds = (
        (census.are(states.DOOMED), "deleted one", "deleted ones"),
        (census.half_made, "half-made one", "half-made ones"),
        (census.are(states.SPARE), "slot set aside", "slots set aside"),
    )
    texts = [plural(int(census.present.sum()), "object")]
    texts += [plural(int(which.sum()), *names) for which, *names in kinds if which.any()]
    return " and ".join(texts)


def _holders_of_bytes(now: Situation) -> str:
    """Return what has most of the memory."""
    census = now.census
    deleted = census.total(census.are(states.DOOMED))
    half_made = census.total(census.half_made)
    most = max(deleted, half_made)
    if 2 * most > census.used:
        what = "deleted objects that are still looked at" if most == deleted else "half-made puts"
        return f"Most of it, {nbytes(most)}, is {what}."
    looked_at = census.are(states.READY) & ~now.loose
    if now.leaves and 2 * census.total(looked_at) > census.used:
        kept = nbytes(census.total(looked_at))
        objects = plural(int(looked_at.sum()), "object")
        return f"Most of it, {kept} of {objects}, is looked at and cannot be {now.leaves}."
    size = nbytes(census.used - deleted - half_made)
    objects = plural(int(census.are(states.READY).sum()), "object")
    largest = census.largest_free
    fits = f"up to {nbytes(largest)} fits in" if largest else "nothing fits in"
    return f"It is full: {size} in {objects}; {fits}."
