"""How does an object leave memory, and how does it come back?

In the words of its slot: what of these stores comes first decides what is left when the process
dies between them.

Concurrency: everything here requires the store lock.
"""

from __future__ import annotations

from shmstore._catalog import states
from shmstore._catalog.table import SlotTable
from shmstore._memory import layout as L


class Moves(SlotTable):
    """The slots of one store, on their way between memory and file."""

    def leave_memory(self, slot: int) -> None:
        """Make an object SPILLED; its extent is still its own. Requires: the store lock."""
        words, base = self._words, self._start + slot * L.SLOT_WORDS
        words[base] = states.move(words[base], states.SPILLED)
        words[L.W_SPILLED] += 1
        words[L.W_SPILLED_BYTES] += words[base + L.S_EXTENT_NBYTES]

    def return_to_memory(self, slot: int) -> None:
        """Make an object READY that has an extent (again). Requires: the store lock."""
        words, base = self._words, self._start + slot * L.SLOT_WORDS
        words[L.W_SPILLED] -= 1
        words[L.W_SPILLED_BYTES] -= words[base + L.S_EXTENT_NBYTES]
        words[base] = states.move(words[base], states.READY)

    def expect_file(self, slot: int, nbytes: int) -> None:
        """Note that a put goes into a file of this size. Requires: the store lock."""
        self._words[self._start + slot * L.SLOT_WORDS + L.S_EXTENT_NBYTES] = nbytes

    def give_up_extent(self, slot: int) -> None:
        """Let go of an extent that is needed no more. Requires: the store lock."""
        base = self._start + slot * L.SLOT_WORDS
        self._words[base + L.S_NODE] = 0
        self._words[base + L.S_EXTENT] = 0  # its check fails now: no damage brings it back

    def take_over(self, slot: int, other: int) -> int:
        """Give a SPILLED object the extent of another slot; return its node. Requires: the lock.

        Between the two stores the extent is nobody's; whoever mends then finds it free.
        """
        words = self._words
        base, old = self._start + slot * L.SLOT_WORDS, self._start + other * L.SLOT_WORDS
        offset, node = words[old + L.S_EXTENT] & L.EXTENT_MASK, words[old + L.S_NODE]
        words[old + L.S_NODE] = 0
        check = L.extent_check(offset, slot)
        words[base + L.S_EXTENT] = offset | check << L.EXTENT_SHIFT
        words[base + L.S_LAST_USED] = words[L.W_NEXT_GENERATION]
        words[base + L.S_NODE] = node
        return int(node) - 1
