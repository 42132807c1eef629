"""What lies at an address of the simulated memory? Names for people who read a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from interleave_memory import ALIVE, BELLS, DISK, FILES, GRANULE, PAUSED, SEATS, SEGMENT

from shmstore._memory import layout as L

_NAMES: Final = {
    (name[0], value): name[2:]
    for name, value in vars(L).items()
    if name.startswith(("S_", "W_", "C_")) and isinstance(value, int)
}


def name_of(address: int, processes: Sequence[str], geometry: L.Geometry) -> str:
    """Return what lies at an address of a store."""
    kinds: list[tuple[int, Callable[[int], str]]] = [
        (PAUSED, lambda _: "nothing, for a while"),
        (BELLS, lambda at: f"the bell of {processes[at]}"),
        (DISK, lambda _: "the files"),
        (ALIVE, lambda at: f"life of {processes[at]}"),
        (FILES, lambda at: f"file of seat {at}"),
        (SEGMENT, lambda at: f"data at {at * GRANULE}"),
        (SEATS, lambda at: f"word {at % SEATS} of the seat of {processes[at // SEATS]}"),
        (geometry.waiters, lambda at: f"waiter {at // L.WAITER_WORDS}.{at % L.WAITER_WORDS}"),
        (geometry.slots, _slot_word),
        (geometry.nodes, lambda at: f"node {at // L.NODE_WORDS}.{at % L.NODE_WORDS}"),
        (geometry.buckets, lambda at: f"bucket {at}"),
        (geometry.clients, _client_word),
        (0, lambda at: _NAMES.get(("W", at), f"word {at}")),
    ]
    first, name = next(kind for kind in kinds if address >= kind[0])
    return name(address - first)


def _slot_word(at: int) -> str:
    slot, field = divmod(at, L.SLOT_WORDS)
    return f"slot {slot}.{_NAMES.get(('S', field), field)}"


def _client_word(at: int) -> str:
    row, field = divmod(at, L.CLIENT_WORDS)
    return f"client {row}.{_NAMES.get(('C', field), field)}"
