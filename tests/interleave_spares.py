"""What does a simulated process remember of the slots that it has for itself?

The part of `interleave_world` for `shmstore._spares`.
"""

from __future__ import annotations

from typing import Any

from interleave_memory import Counterexample, Process

from shmstore import _spares
from shmstore._catalog import states
from shmstore._memory import layout as L


def known_of(session: Any) -> tuple[Any, ...]:
    """Return all that a session knows of its slots, for the hash of a state."""
    spares = session.spares
    numbers = spares.count, spares.nbytes, spares.following, spares.end, spares.portion
    piles = [
        (nbytes, pile.top, pile.sound, *pile.slots[: pile.top])
        for nbytes, pile in sorted(spares.piles.items())
    ]
    return (*numbers, spares.astray, *piles)


class Kept:
    """The slots of a session as they are now, to be had back."""

    def __init__(self, session: Any) -> None:
        self._spares = session.spares
        self._values = {name: getattr(self._spares, name) for name in _spares.Spares.__slots__}
        self._piles = dict(self._spares.piles)
        self._kept = [
            (pile, list(pile.slots), pile.top, pile.sound) for pile in self._piles.values()
        ]

    def put_back(self) -> None:
        """Let everything be as it was."""
        for name, value in self._values.items():
            setattr(self._spares, name, value)
        self._spares.piles.clear()
        self._spares.piles.update(self._piles)
        for pile, slots, top, sound in self._kept:
            pile.slots, pile.top, pile.sound = list(slots), top, sound


def check_spares(session: Any, process: Process) -> None:
    """What a living process knows of its slots is what memory says of them.

    Where it is told that some were seized, after it has found out which.
    """
    spares, slots, words = session.spares, session.slots, session.index.words
    if not spares.serial:
        return
    with process.going_on():
        session.lock.run(_spares.settle, session)
    own = {
        slot: slots.word(slot)
        for slot in range(words[L.W_SLOT_TOP])
        if states.state_of(slots.word(slot)) == states.SPARE
        and words[slots.state_index(slot) + L.S_OWNER] == spares.serial
    }
    entries = [entry for pile in spares.piles.values() for entry in pile.slots[: pile.top]]
    listed = {entry[0]: entry[2] for entry in entries}
    told = words[spares.row + L.C_SPARES] & L.SPARE_MASK
    if own != listed or len(entries) != len(own) or told != len(own):
        raise Counterexample(f"{process.name} has the slots {own}, knows {entries}, tells {told}")
    if words[spares.row + L.C_ENDING]:
        raise Counterexample(f"{process.name} still tells that it takes an object back")
