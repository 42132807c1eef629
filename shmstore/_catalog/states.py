"""In which state is a slot, and which state may follow?

A slot's first word holds its generation (the upper 56 bits) and its state (the lower 8). A
generation belongs to one put for ever: a word that reads the same twice means the same object,
unchanged.

::

    FREE --reserve--> WRITING --publish--> READY --doom--> DOOMED --free--> FREE
                       |   |               |   ^            ^  ^
                       |   |           spill   restore      |  |
                       |   |               v   |            |  |
                       |   +--publish---> SPILLED --doom----+  |
                       +--------------- discard ---------------+

    FREE --insert--> READY where it happens under one hold of the lock; and a DOOMED slot that
    nobody looks at is filled anew like a FREE one, together with its extent

    FREE --set aside--> SPARE --put--> READY --take back--> SPARE --doom--> DOOMED where a client
    has the slot to itself; a SPARE one with an extent is FILLING while a put writes there

Nobody but this module makes a slot word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

# These numbers lie in shared memory. They are permanent.
FREE: Final = 0
WRITING: Final = 1
READY: Final = 2
DOOMED: Final = 3
SPILLED: Final = 4
SPARE: Final = 5
FILLING: Final = 6

NAMES: Final = {
    FREE: "FREE",
    WRITING: "WRITING",
    READY: "READY",
    DOOMED: "DOOMED",
    SPILLED: "SPILLED",
    SPARE: "SPARE",
    FILLING: "FILLING",
}

_MOVES: Final = frozenset(
    {
        (WRITING, READY),
        (WRITING, SPILLED),
        (WRITING, DOOMED),
        (READY, DOOMED),
        (READY, SPILLED),
        (SPILLED, READY),
        (SPILLED, DOOMED),
        (DOOMED, FREE),
        (FREE, SPARE),
        (READY, SPARE),
        (SPARE, FILLING),
        (SPARE, DOOMED),
        (FILLING, SPARE),
        (FILLING, DOOMED),
    }
)
_BEGINNINGS: Final = frozenset(
    {
        (FREE, WRITING),
        (FREE, READY),
        (DOOMED, WRITING),
        (DOOMED, READY),
        (SPARE, READY),
        (FILLING, READY),
    },
)
STATE_BITS: Final = 8
_STATE_MASK: Final = 0xFF

MOST_GENERATIONS: Final = 1 << 55
NEVER_USED: Final = 0


def begin(word: int, generation: int, state: int) -> int:
    """Return the word with which a slot begins a new life."""
    assert (word & _STATE_MASK, state) in _BEGINNINGS, f"{word:#x} begins as {NAMES[state]}"
    return generation << 8 | state


def first_word(generation: int) -> int:
    """Return the word of a slot that a put has just reserved."""
    return generation << 8 | WRITING


def ready_word(generation: int) -> int:
    """Return the word that the slot of a published object has."""
    return generation << 8 | READY


def ready_words(generations: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return `ready_word` of each generation."""
    return generations << np.uint64(STATE_BITS) | np.uint64(READY)


def spare_word(generation: int) -> int:
    """Return the word that a slot has when its owner has taken it back."""
    return generation << 8 | SPARE


def filling_word(generation: int) -> int:
    """Return the word of a slot whose extent its owner fills anew."""
    return generation << 8 | FILLING


def spilled_word(generation: int) -> int:
    """Return the word that the slot of an object in a file has."""
    return generation << 8 | SPILLED


def move(word: int, state: int) -> int:
    """Return `word` with the next state of this life; any other is our own mistake."""
    assert (word & _STATE_MASK, state) in _MOVES, f"illegal move of {word:#x} to {NAMES[state]}"
    return word & ~_STATE_MASK | state


def state_of(word: int) -> int:
    """Return the state in a slot word."""
    return word & _STATE_MASK


def is_present(word: int) -> bool:
    """Return whether a slot word tells of a published object, in memory or in a file."""
    state = word & _STATE_MASK
    return state in (READY, SPILLED)


def generation_of(word: int) -> int:
    """Return the generation in a slot word."""
    return word >> 8


def states_of(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the states in a column of slot words."""
    return words & np.uint64(_STATE_MASK)


def generations_of(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the generations in a column of slot words."""
    return words >> np.uint64(8)


def are_present(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which slot words tell of published objects, in memory or in a file."""
    found = states_of(words)
    present: npt.NDArray[np.bool_] = (found == READY) | (found == SPILLED)
    return present


def are_counted(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which slot words OBJECTS counts: of published objects, and of slots set aside."""
    found = states_of(words)  # once: the owner of a slot changes its word without the lock
    counted: npt.NDArray[np.bool_] = are_set_aside(found) | (found == READY) | (found == SPILLED)
    return counted


def are_set_aside(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which slot words are of slots that a client has to itself, without an object."""
    found = states_of(words)
    aside: npt.NDArray[np.bool_] = (found == SPARE) | (found == FILLING)
    return aside


def are_impossible(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which slot words no slot of ours can have."""
    unknown = states_of(words) > np.uint64(max(NAMES))
    return unknown | (generations_of(words) >= np.uint64(MOST_GENERATIONS))


def doom_all(words: npt.NDArray[np.uint64]) -> None:
    """Move the words of all published objects to DOOMED, in place: the store ends."""
    present = are_present(words)
    words[present] = words[present] & ~np.uint64(_STATE_MASK) | np.uint64(DOOMED)
