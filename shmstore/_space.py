"""When is the memory of an object free again?

When it was taken away from new readers (DOOMED), and nobody looks at it any more. The reclaimer's
half of the pin race is here; the reader's is in `_plans`.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from shmstore import _announcing
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._sharing.barrier import membarrier
from shmstore._trimming import MUCH_NBYTES

# How many deleted objects one put looks at before it takes fresh memory.
_FEW: Final = 64

_MANY: Final = 4096

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from shmstore._catalog.slots import Slots
    from shmstore._memory.allocator import Allocator, Extent
    from shmstore._memory.segment import Segment
    from shmstore._memory.spill_files import SpillFiles
    from shmstore._sharing.clients import Clients
    from shmstore._sharing.seats import Pins
    from shmstore._sharing.waking import Bells


class Space:
    """The part of a session that gives memory back."""

    words: Any
    unpinned: set[int]
    readonly: bool
    most_doomed: int
    lock_free: bool
    spills: bool
    slots: Slots
    allocator: Allocator
    segment: Segment
    files: SpillFiles
    clients: Clients
    pins: Pins
    bells: Bells
    announced: int
    allowed_modules: Collection[str] | None
    abandoned: list[tuple[int, int]]
    notice: Callable[[], None]

    def reclaim(self, limit: int) -> None:
        """Free deleted objects that nobody looks at any more. Requires: the store lock.

        The pin race, and why it is won: a reader (1) stores its pin, (2) loads the slot word, and
        uses the extent only if the word still says READY. A delete (3) stores DOOMED; then, here,
        (4) the barrier, (5) the pins are loaded. If (5) misses the pin of (1), then (1) came after
        the barrier, so (2) sees (3) and the reader lets go. Where there is no barrier, (1) and (2)
        are done under the store lock.
        """
        if not self.words[L.W_DOOMED_HEAD]:
            return
        self.pass_barrier()
        slots = self.slots
        for slot in slots.take_unpinned(self.clients.pinned(), limit):
            self.free_extent(slot)
            slots.free(slot)

    def recycle(self, nbytes: int) -> tuple[int, Extent] | None:
        """Return a deleted object that nobody looks at, to be filled anew, if its extent fits.

        Others that come before it are freed, until little is left. For the allocator nothing
        changes: where objects of one size come and go, this is most of what a put costs.

        Who was seen without a pin after it was doomed and a barrier (see `reclaim`) will never have
        one: `unpinned` keeps their words, so that there is not a barrier for each.
        """
        slots, words = self.slots, self.words
        if slots.wipes:
            self.reclaim(_FEW)
            return None
        looked = False
        for _ in range(_FEW):
            if words[L.W_DOOMED_BYTES] <= self.most_doomed:
                break
            slot = slots.oldest_doomed()
            word = slots.word(slot)
            if word not in self.unpinned and not looked:
                self._look_who_pins()
                looked = True
            if word not in self.unpinned:
                slots.defer_doomed()
                continue
            self.unpinned.discard(word)
            node = slots.node(slot)
            if node >= 0 and self.allocator.nbytes(node) == nbytes:
                self.allocator.check_owner(node, slot)
                slots.pop_doomed()
                return slot, self.allocator.extent(node)
            slots.pop_doomed()
            self.free_extent(slot)
            slots.free(slot)
        return None

    def _look_who_pins(self) -> None:
        """Find out which of the next doomed slots nobody looks at."""
        self.pass_barrier()
        pinned, slots = self.clients.pinned(), self.slots
        if len(self.unpinned) > _MANY:
            self.unpinned.clear()
        doomed = islice(slots.doomed(), _FEW)
        self.unpinned.update(slots.word(slot) for slot in doomed if slot not in pinned)

    def _wipe(self, slot: int, node: int) -> None:
        """Leave nothing of an object behind. Pages that may not exist go back to the system."""
        self.allocator.check_owner(node, slot)
        offset, nbytes = self.allocator.place(node)
        cold = self.allocator.is_cold(node)
        if cold:
            self.allocator.mark_cold(node)
        self.segment.wipe(offset, nbytes, cold=cold)

    def doom(self, slot: int) -> None:
        """Take an object, or a half-made one, away from new readers. Requires: the store lock."""
        word = self.slots.word(slot)
        if self.words[L.W_WAITERS]:
            _announcing.object_ends(self, slot)
        self.slots.doom(slot)
        if self.words[L.W_DOOMED_BYTES] >= MUCH_NBYTES:
            self.notice()
        if states.state_of(word) == states.SPILLED and self.spills:
            self.files.remove(slot, states.generation_of(word))

    def free_extent(self, slot: int) -> None:
        """Give the extent of a slot back, if it has one. Requires: the store lock."""
        node = self.slots.node(slot)
        if node < 0:
            return
        self.slots.give_up_extent(slot)
        if self.slots.wipes:  # after that: what is half wiped must be nobody's
            self._wipe(slot, node)
        self.allocator.release(node, slot)

    def pass_barrier(self) -> None:
        """Let all readers pass a memory barrier, where they read without the lock."""
        if self.lock_free:
            membarrier()

    def sweep(self) -> None:
        """Give up what exceptions of this process have cut loose. Requires: the store lock."""
        self.pins.sweep()
        while self.abandoned:
            slot, generation = self.abandoned.pop()
            if self.slots.is_writing(slot, generation):
                self.doom(slot)
