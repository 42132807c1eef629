"""In which state is a slot, and which state may follow?

A slot's first word holds its generation (the upper 56 bits) and its state (the lower 8). A
generation belongs to one put for ever: a word that reads the same twice means the same object,
unchanged.

::

    FREE --reserve--> WRITING --publish--> READY --doom--> DOOMED --free--> FREE
                         |                                    ^
                         +------------- discard --------------+

Nobody but this module makes a slot word.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

# These numbers lie in shared memory. They are permanent. 4 is kept for objects on disk.
FREE: Final = 0
WRITING: Final = 1
READY: Final = 2
DOOMED: Final = 3

NAMES: Final = {FREE: "FREE", WRITING: "WRITING", READY: "READY", DOOMED: "DOOMED"}

_MOVES: Final = frozenset(
    {(FREE, WRITING), (WRITING, READY), (WRITING, DOOMED), (READY, DOOMED), (DOOMED, FREE)}
)
_STATE_MASK: Final = 0xFF


def first_word(generation: int) -> int:
    """Return the word of a slot that a put has just reserved."""
    return generation << 8 | WRITING


def ready_word(generation: int) -> int:
    """Return the word that the slot of a published object has."""
    return generation << 8 | READY


def move(word: int, state: int) -> int:
    """Return `word` with the next state; a move that is not in the table is our own mistake."""
    assert (word & _STATE_MASK, state) in _MOVES, f"illegal move of {word:#x} to {NAMES[state]}"
    return word & ~_STATE_MASK | state


def state_of(word: int) -> int:
    """Return the state in a slot word."""
    return word & _STATE_MASK


def generation_of(word: int) -> int:
    """Return the generation in a slot word."""
    return word >> 8


def states_of(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the states in a column of slot words."""
    return words & np.uint64(_STATE_MASK)


def generations_of(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the generations in a column of slot words."""
    return words >> np.uint64(8)


def doom_all(words: npt.NDArray[np.uint64]) -> None:
    """Move every READY word of a column to DOOMED, in place: the store ends."""
    ready = states_of(words) == READY
    words[ready] += np.uint64(DOOMED - READY)
