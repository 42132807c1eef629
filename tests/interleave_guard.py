"""What must never happen to memory, whoever runs?

Looked at with each change: memory that somebody looks at is used for nothing else, and generations
only grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from interleave_memory import (
    FILES,
    GRANULE,
    SEATS,
    SEGMENT,
    Counterexample,
    Memory,
    Process,
    running,
)

from shmstore._catalog import states
from shmstore._memory import layout as L

_NOBODYS: Final = (states.FREE, states.WRITING)


class Guard:
    """Raises Counterexample where a change breaks a promise.

    Parameters
    ----------
    memory
        What is changed.
    processes
        Who must not be robbed; the judge is none of them.
    geometry
        Of the index.
    """

    def __init__(self, memory: Memory, processes: Sequence[Process], geometry: L.Geometry) -> None:
        self._memory = memory
        self._processes = processes
        self._geometry = geometry

    def look(self, number: int, address: int, old: Any, new: Any) -> None:
        """Look at each change of memory."""
        if running() is not None or number == len(self._processes):
            return
        if SEGMENT <= address < FILES:
            start = (address - SEGMENT) * GRANULE
            self._refuse_held(start, start + GRANULE, "is written over", number)
        elif address < SEATS and self._field(address) == L.S_STATE:
            if new >> 8 < old >> 8:
                raise Counterexample(f"the generation falls from {old >> 8} to {new >> 8}")
            self._check_states(address, old, new)
        elif address < SEATS and self._field(address) == L.S_NODE and not new:
            base = address - L.S_NODE
            if states.state_of(self._memory.peek(base)) not in _NOBODYS:
                self._refuse_held(*self._extent_of(base), "is given up")
        elif address == L.W_NEXT_GENERATION and new < old:
            raise Counterexample(f"the next generation falls from {old} to {new}")

    def _field(self, address: int) -> int:
        """Return which word of a slot lies at an address, or -1."""
        at = address - self._geometry.slots
        return at % L.SLOT_WORDS if at >= 0 else -1

    def _check_states(self, address: int, old: int, new: int) -> None:
        """A slot is freed, or begins a new life: its extent may be nobody's."""
        if old and (states.state_of(new) in _NOBODYS or new >> 8 != old >> 8):
            name = states.NAMES[states.state_of(new)]
            self._refuse_held(*self._extent_of(address), f"is {name}")

    def _extent_of(self, base: int) -> tuple[int, int]:
        start = self._memory.peek(base + L.S_EXTENT) & L.EXTENT_MASK
        return start, start + self._memory.peek(base + L.S_EXTENT_NBYTES)

    def _refuse_held(self, start: int, end: int, what: str, by: int = -1) -> None:
        for process in self._processes:
            for first, last in process.held:
                if first < end and start < last and process.number != by:
                    raise Counterexample(
                        f"the extent at {first}, which {process.name} looks at, {what}"
                    )

    def check_held(self, process: Process, start: int) -> None:
        """What was just got is still there: its slot is not free."""
        for slot in range(self._memory.peek(L.W_SLOT_TOP)):
            base = self._geometry.slots + slot * L.SLOT_WORDS
            first, end = self._extent_of(base)
            state = states.state_of(self._memory.peek(base))
            there = self._memory.peek(base + L.S_NODE) and state not in _NOBODYS
            if there and first <= start < end:
                return
        raise Counterexample(f"{process.name} got what has been freed")
