"""How are slots taken away from the process that has them for itself?

Where the object in them is to end under the lock (`claim`), where somebody else needs their extents
(`seize`), and where that process is gone. What the two sides do is told in `_spares`.

Concurrency: everything here requires the store lock, but for `is_own`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._sharing.seats import Anchor
from shmstore._spares import give_back_extents, told_nbytes
from shmstore._tuples import NamedTuple
from shmstore.errors import LockTimeoutError

if TYPE_CHECKING:
    from shmstore._catalog.table import Table
    from shmstore._session import Session
    from shmstore._sharing.clients import Client

_PAUSE_S: Final = 50e-6

# How often that to wait for somebody who fills a slot, or takes it back.
_LOOKS: Final = 100


def is_own(session: Session, slot: int) -> bool:
    """Return whether the owner of a published object may take it back without the lock."""
    at = session.slots.state_index(slot)
    words = session.index.words
    return bool(words[at + L.S_LINK] == L.LINK_OWN and states.state_of(words[at]) == states.READY)


def claim(session: Session, slot: int, words: Any = None) -> None:
    """Let an object end under the lock only. It may be gone then. Requires: the store lock.

    Parameters
    ----------
    words
        Of the index, as a read-only session has mapped it for writing.

    Raises
    ------
    LockTimeoutError
        Its owner was stopped while it took the object back.
    """
    words = session.words if words is None else words
    at = session.slots.state_index(slot)
    if not is_own(session, slot):
        return  # where it is free by now, its LINK is that of a list
    owner = words[at + L.S_OWNER]
    words[at + L.S_LINK] = 0
    if owner == session.spares.serial:
        return  # no thread of this process is in the midst of it now
    session.pass_barrier()
    deadline = time.monotonic() + session.lock.timeout_s
    while (client := _ending(session, slot, owner)) is not None:
        if not session.clients.is_alive(client):
            return
        if time.monotonic() > deadline:
            words[at + L.S_LINK] = L.LINK_OWN
            holder = session.clients.describe(client.row)
            message = f"{holder} was stopped while it deleted an object. Continue it, or end it."
            raise LockTimeoutError(message, holder=holder, timeout_s=session.lock.timeout_s)
        time.sleep(_PAUSE_S)


def _ending(session: Session, slot: int, owner: int) -> Client | None:
    """Return the client with the serial `owner` if it is taking the object of a slot back."""
    words = session.index.words
    for client in session.clients.rows():
        if client.serial == owner:
            return client if words[client.at + L.C_ENDING] == slot + 1 else None
    return None


def seize(session: Session) -> None:
    """Doom what has extents and is set aside, for whomever. Requires: the store lock."""
    if not session.quick:  # nothing is set aside in such a store
        return
    give_back_extents(session)
    others = [client.at for client in session.clients.rows() if client.row != session.row]
    if not any(session.words[at + L.C_SPARES] >> L.SPARE_SHIFT for at in others):
        return
    table = session.slots.table()
    spare = states.states_of(table[:, L.S_STATE]) == states.SPARE
    seize_slots(session, np.flatnonzero(spare & (table[:, L.S_NODE] != 0)).tolist())


def seize_slots(session: Session, slots: list[int]) -> None:
    """Doom slots with extents that are set aside, as far as no put fills them by now.

    Requires: the store lock.
    """
    words, place = session.words, session.slots.state_index
    for slot in slots:
        words[place(slot) + L.S_LINK] = 0
    if slots:
        session.pass_barrier()
    rows = {client.serial: client.at for client in session.clients.rows()}
    for slot in slots:
        at = place(slot)
        row = rows.get(words[at + L.S_OWNER])
        for _ in range(_LOOKS):
            if row is None or words[row + L.C_ENDING] != slot + 1:
                break
            time.sleep(_PAUSE_S)
        else:
            words[at + L.S_LINK] = L.LINK_OWN  # its owner was stopped in the midst of it
            continue
        if states.state_of(words[at]) == states.SPARE:
            if row is not None:
                units = session.slots.extent_nbytes(slot) // L.ALIGNMENT
                words[row + L.C_SEIZED] += 1 + (units << L.SEIZED_SHIFT)
            session.slots.doom(slot)


class Held(NamedTuple):
    """What was deleted, and is pinned by this process.

    Its pins live as long as an anchor of their own, until they are passed on: views must have these
    and no new ones, for the same reason as those of a `Lease`.
    """

    word: int
    anchor: Anchor
    cells: list[int]


def hold_deleted(
    session: Session, slot: int, generation: int, pin: tuple[int, int, int, float], pins: int = 1
) -> Held | None:
    """Pin what was deleted, if somebody else still pins it. Requires: the store lock.

    Its owner may be about to fill it anew, and looks for pins: (1) the own pin is stored, (2) it is
    told that pins are copied, (3) after a barrier (4) that of the other is looked for. If it is
    there, who looks for pins sees it, or the own one, or that it has to look again.

    Parameters
    ----------
    pin
        That of the other, see `Clients.has_pin`.
    pins
        How many own ones there are to be.
    """

    def is_deleted(word: int) -> bool:
        state = states.state_of(word)
        return states.generation_of(word) == generation and state in (states.DOOMED, states.SPARE)

    known = 0 <= slot < session.words[L.W_SLOT_TOP]
    if not known or not is_deleted(session.slots.word(slot)):
        return None
    anchor = Anchor()
    cells = [session.pins.pin(anchor, slot) for _ in range(pins)]
    tell_of_copied_pins(session)
    session.pass_barrier()
    word = session.slots.word(slot)
    found = is_deleted(word) and session.clients.has_pin(slot, *pin)
    return Held(word, anchor, cells) if found else None


def tell_of_copied_pins(session: Session) -> None:
    """Let who looks for pins without the lock look again. Requires: the store lock."""
    with session.writeable_clients() as clients:
        copied = clients.words[L.W_PINS_COPIED]
        clients.words[L.W_PINS_COPIED] = copied + 1 & L.WORD_MASK


def give_back_of_dead(session: Session, table: Table, owners: Iterable[int]) -> None:
    """Doom slots that were set aside for nobody who is there. Requires: the store lock."""
    aside = np.flatnonzero(states.are_set_aside(table[:, L.S_STATE]))
    living = np.array(list(owners), np.uint64)
    for slot in aside[~np.isin(table[aside, L.S_OWNER], living)].tolist():
        session.slots.doom(slot)


def recount_seized(session: Session, table: Table) -> None:
    """Find out anew what was taken from others. Requires: the store lock.

    They go on meanwhile: what they tell and what they have is looked at until it stays the same.
    """
    words, clients = session.index.words, list(session.clients.rows())
    rows = [client.at for client in clients]

    def tell() -> list[tuple[int, int]]:
        kept = [told_nbytes(session.clients, client) for client in clients]
        return list(zip([words[row + L.C_SPARES] for row in rows], kept, strict=True))

    before: list[tuple[int, int]] = []
    told, held = tell(), [(0, 0)] * len(rows)
    for _ in range(_LOOKS):
        if told == before:
            break
        before = told
        aside = table[states.are_set_aside(table[:, L.S_STATE])]
        held = [_held_by(aside, client.serial) for client in clients]
        told = tell()
    for row, (count, kept), (slots, nbytes) in zip(rows, told, held, strict=True):
        lost = max(0, (count & L.SPARE_MASK) - slots), max(0, kept - nbytes) // L.ALIGNMENT
        words[row + L.C_SEIZED] = min(lost[0], L.SEIZED_MASK) + (lost[1] << L.SEIZED_SHIFT)


def _held_by(aside: Table, serial: int) -> tuple[int, int]:
    """Return how many slots a client has for itself, and the bytes of extents it keeps."""
    own = aside[aside[:, L.S_OWNER] == np.uint64(serial)]
    spare = states.states_of(own[:, L.S_STATE]) == states.SPARE
    kept = own[spare & (own[:, L.S_NODE] != 0), L.S_EXTENT_NBYTES]
    return len(own), min(int(kept.sum()), L.MAX_CAPACITY)
