"""What does each slot hold, and who looks at it, at one moment?

The slot table and the pins are copied under the store lock, column by column, so that adding up
and telling can be done afterwards, with NumPy: it costs little at any number of objects.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from shmstore import _claiming
from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.queues import are_of
from shmstore._catalog.table import extents_of, holds_extent
from shmstore._inspection import name_of, wall_clock
from shmstore._memory import layout as L
from shmstore._session import Session
from shmstore._sharing.clients import Client
from shmstore._tuples import NamedTuple

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Sitter(NamedTuple):
    """An attached process and what it looks at.

    Parameters
    ----------
    client, name, alive, own
        Who it is.
    slots
        What it looks at, each slot once.
    views
        How many views it has of them.
    oldest
        When the oldest of these was made, in seconds since 1970; None: there is none.
    sites
        Where those of deleted objects were got, with how many; in a store that traces pins.
    """

    client: Client
    name: str
    alive: bool
    own: bool
    slots: npt.NDArray[np.intp]
    views: int
    oldest: float | None
    sites: dict[str, int]


class Census(NamedTuple):
    """Arrays with an entry per slot, and the numbers of the whole store.

    Parameters
    ----------
    words
        The slot words.
    state, named, expired, part
        What the object of a slot is; a part of a queue cannot be deleted.
    offset, nbytes
        Its extent in the segment; 0 bytes: it has none.
    spilled_nbytes
        Bytes of its file.
    owner, pid
        Who put it: the serial of a seat, and the process.
    age
        Seconds since it was published.
    queue
        The generation of the queue in which it waits; 0: it does not.
    """

    words: Words
    state: Words
    named: Flags
    expired: Flags
    part: Flags
    offset: Numbers
    nbytes: Numbers
    spilled_nbytes: Numbers
    owner: Words
    pid: Words
    age: npt.NDArray[np.float64]
    queue: Words
    sitters: list[Sitter]
    used: int
    largest_free: int
    free_extents: int

    def are(self, state: int) -> Flags:
        """Return which slots are in a state."""
        which: Flags = self.state == state
        return which

    def looked_at(self, *, alive: bool = True) -> npt.NDArray[np.intp]:
        """Return for each slot how many living, or dead, processes look at it."""
        counts = np.zeros(len(self.state), np.intp)
        for sitter in self.sitters:
            if sitter.alive == alive:
                counts[sitter.slots] += 1
        return counts

    @property
    def present(self) -> Flags:
        """Return which slots hold an object that can be got."""
        return self.are(states.READY) | self.are(states.SPILLED)

    @property
    def half_made(self) -> Flags:
        """Return which slots a put fills that has not ended."""
        return self.are(states.WRITING) | self.are(states.FILLING)

    def left_by(self, *, with_the_dead: bool) -> Flags:
        """Return which slots were filled by processes without a seat, or also by dead ones."""
        there = [s.client.serial for s in self.sitters if s.alive or not with_the_dead]
        left: Flags = ~np.isin(self.owner, np.array(there, np.uint64))
        return left

    def total(self, which: Flags | npt.NDArray[np.intp]) -> int:
        """Return the bytes that the chosen slots hold in the segment."""
        return int(self.nbytes[which].sum())


def take(session: Session) -> Census:
    """Copy what is to be told, after taking back what nobody looks at."""
    return session.lock.run(_take, session)


def _take(session: Session) -> Census:
    """Requires: the store lock."""
    session.check_alive()
    if not session.readonly:
        _claiming.seize(session)
    session.reclaim_all()
    table = session.slots.table()
    state = states.states_of(table[:, L.S_STATE])
    present = states.are_present(table[:, L.S_STATE])
    in_memory = holds_extent(table)
    used = int(session.words[L.W_USED])
    # Sizes beyond the store, clocks beyond all times: such a slot is damaged, the rest is not.
    sizes = np.minimum(table[:, L.S_EXTENT_NBYTES], np.uint64(session.identity.capacity))
    expires = table[:, L.S_EXPIRES_NS]
    if session.readonly:
        kept = _kept(session, state, in_memory)
        in_memory[kept] = False
        used -= int(sizes[kept].sum())
    return Census(
        words=table[:, L.S_STATE].copy(),
        state=state,
        named=present & (table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0),
        expired=present & (expires != 0) & (expires <= np.uint64(boottime_ns())),
        part=are_of(table, L.KINDS_OF_QUEUES),
        offset=np.where(in_memory, extents_of(table), 0).astype(np.int64),
        nbytes=np.where(in_memory, sizes, 0).astype(np.int64),
        spilled_nbytes=np.where(state == states.SPILLED, sizes, 0).astype(np.int64),
        owner=table[:, L.S_OWNER].copy(),
        pid=table[:, L.S_PID].copy(),
        age=time.time() - table[:, L.S_CREATED_NS] / 1e9,
        queue=np.where(present & are_of(table, L.KIND_QUEUED), table[:, L.S_DIGEST], np.uint64(0)),
        sitters=[_sitter(session, client, state) for client in session.clients.rows()],
        used=used,
        largest_free=session.allocator.largest_free(),
        free_extents=_free_extents(session),
    )


def _kept(session: Session, state: Words, in_memory: Flags) -> npt.NDArray[np.intp]:
    """Return the slots whose extents clients keep, who cannot be robbed of them: these are free.

    Those that somebody looks at are deleted, also in `state`.
    """
    kept = np.flatnonzero(in_memory & (state == states.SPARE))
    looked_at = np.isin(kept, list(session.clients.pinned()))
    state[kept[looked_at]] = states.DOOMED
    return kept[~looked_at]


def _sitter(session: Session, client: Client, state: Words) -> Sitter:
    """Return what a client looks at. A put in progress has a pin too, which is no view."""
    seat = session.clients.seat(client)
    slots, since, sites = seat.views()
    inside = (slots >= 0) & (slots < len(state))
    slots, since, sites = slots[inside], since[inside], sites[inside]
    views = ~np.isin(state[slots], (states.FREE, states.WRITING, states.FILLING))
    slots, since, sites = slots[views], since[views], sites[views]
    sites = sites[(state[slots] == states.DOOMED) & (sites != 0)]
    numbers, counts = np.unique(sites, return_counts=True)
    alive = session.clients.is_alive(client)
    return Sitter(
        client,
        name_of(client, alive=alive),
        alive,
        client.row == session.row,
        np.unique(slots),
        len(slots),
        wall_clock(float(since.min())) if len(since) else None,
        {seat.site(n): c for n, c in zip(numbers.tolist(), counts.tolist(), strict=True)},
    )


def _free_extents(session: Session) -> int:
    """Return in how many pieces the free bytes are. Requires: the store lock."""
    words, geometry = session.words, session.index.geometry
    rows = min(int(words[L.W_NODE_TOP]), geometry.max_nodes)
    flat = np.frombuffer(
        session.index.memory, np.uint64, rows * L.NODE_WORDS, geometry.nodes * L.WORD
    )
    free = flat.reshape(rows, L.NODE_WORDS)[:, L.N_STATUS] == L.NODE_FREE
    last = int(words[L.W_LAST_NODE]) - 1
    above = session.identity.capacity - int(words[L.W_SEGMENT_TOP])
    apart = above > 0 and not (0 <= last < rows and free[last])
    return int(free.sum()) + int(apart)
