"""How does a process put and delete objects without the lock?

With slots that it has for itself. Under the lock it has some set aside, and some generations; then
a put of what fits into a slot fills one of them and makes it READY (`_puts.put_spare`), and the
process may take it back: nobody else changes these slots meanwhile. An object with an extent may be
taken back, too. The slot keeps the extent then, for the next put of that size (`_refilling`), until
somebody has no room left.

An object that its owner may take back without the lock says so in its LINK. Whoever else wants to
end it, or to be told when it ends, first takes that right away, under the lock (`_claiming`): from
then on it is an object like all others. The two meet as in the pin race (see `Space.reclaim`), and
the way out is the same. The owner (1) stores ENDING, (2) loads LINK, and then the state, (3)
changes the state, (4) clears ENDING. The other (5) clears LINK, (6) lets all pass a barrier, (7)
waits until ENDING names another slot. If (2) came before (6), then (7) sees (1) and waits for (4),
and the state tells whether the object is gone; else (2) sees (5), or, if the slot is somebody's
again, another state. A SPARE slot with an extent is filled anew, and seized, in the same way.
Others know that as a lock that is biased to one thread, and whose bias is revoked (K. Kawachiya et
al., "Lock reservation", OOPSLA 2002).

So it is between a put and the end of the store. The put (1) stores the state, (2) loads DESTROYED;
who destroys the store (3) stores DESTROYED, (4) lets all pass a barrier, (5) ends all objects.

Who dies leaves SPARE and FILLING slots, which `bury` dooms, and objects that are like all others
then.

Concurrency: what is said of a function holds for it. Among the threads of a process, and against
signal handlers, there is no lock: CPython lets neither in between two stores if there is no call.
So what changes is written without one: it is done as a whole, or nothing has happened. Where each
line is a call, all is done under the lock (see `_tracing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._tracing import COVERAGE, DEBUGGER, are_lines_watched, get_tool, gettrace
from shmstore.errors import ShmStoreError

if TYPE_CHECKING:
    from shmstore._catalog.table import Table
    from shmstore._session import Session
    from shmstore._sharing.clients import Client, Clients

# So many slots a client has at first, then twice as many each time, up to the last.
_FIRST: Final = 8
MOST: Final = 128

# What it takes back it keeps up to here, of each size.
ROOM: Final = 2 * MOST

# So many sizes: what is of no size that comes again is not worth to be kept.
_MOST_SIZES: Final = 64

# Of the slots that are free no more than one in 2 ** 10 is set aside at once.
_PART_LOG2: Final = 10

WITH_EXTENT: Final = 1 << L.SPARE_SHIFT | 1

Entry = tuple[int, int, int, int, int]

_NO_SLOT: Final[Entry] = (0, 0, -1, 0, 0)  # no state word is like that


class Pile:
    """Slots that one process has for itself, whose extents have one size; 0: they have none.

    What allocators call a magazine (J. Bonwick and J. Adams, USENIX 2001).

    Attributes
    ----------
    slots
        The first `top` count: slot, where its state word lies, its state word, what depends only
        on the slot of what its checksum begins with, and where its extent begins.
    sound
        So many of them, from the first on, are known to be looked at by nobody, if there are
        extents.
    """

    __slots__ = ("slots", "sound", "top")

    def __init__(self) -> None:
        self.open()

    def close(self) -> None:
        """Neither take nor give anything, until it is opened."""
        self.slots = [_NO_SLOT] * ROOM
        self.top = ROOM

    def open(self) -> None:
        """Begin anew, with nothing."""
        self.slots = [_NO_SLOT] * ROOM
        self.top = self.sound = 0

    def end(self) -> bool:
        """Neither take nor give anything any more, if it is empty; return whether it is."""
        nothing = [_NO_SLOT] * ROOM
        # No call from here on.
        if self.top:
            return False
        self.slots = nothing
        self.top = ROOM
        return True


class Spares:
    """The slots of a store that one process has for itself.

    Parameters
    ----------
    row
        Where the words of this client lie in the index.
    serial
        Of its seat.

    Attributes
    ----------
    small
        Those without extents.
    piles
        All, by the size of their extents in bytes.
    count
        As SPARES in the index.
    nbytes
        Of the extents that no put fills by now.
    following, end
        The next generation, and where those end that this process may give.
    portion
        How many slots to ask for.
    astray
        Whether to find out anew which slots these are.
    shut
        Whether nothing is set aside, nor taken back.
    watched
        Whether some tool was called for each line when that was last found out.
    """

    __slots__ = (
        "astray",
        "count",
        "end",
        "following",
        "nbytes",
        "piles",
        "portion",
        "row",
        "serial",
        "shut",
        "small",
        "watched",
    )

    def __init__(self, row: int = 0, serial: int = 0) -> None:
        self.small = Pile()
        self.piles = {0: self.small}
        self.count = self.nbytes = self.following = self.end = 0
        self.portion = _FIRST
        self.row = row
        self.serial = serial
        self.astray = self.shut = False
        self.watched = are_lines_watched()

    def pile(self, nbytes: int) -> Pile | None:
        """Return where slots with extents of a size are kept; None: they are not."""
        pile = self.piles.get(nbytes)
        if pile is None and len(self.piles) < _MOST_SIZES:
            new = Pile()
            # No call from here on: once they are shut there is no pile that is not.
            if self.shut:
                return None
            if nbytes not in self.piles:
                self.piles[nbytes] = new
            pile = self.piles[nbytes]
        return pile

    def close(self) -> None:
        """Set nothing aside, and take nothing back, until they are opened."""
        self.shut = True
        for pile in list(self.piles.values()):
            pile.close()

    def open(self) -> None:
        """Begin anew, with nothing."""
        for pile in list(self.piles.values()):
            pile.open()
        self.shut = False


def begin(session: Session) -> Spares:
    """Return what this process begins with, as after a fork: nothing is set aside yet."""
    if not session.quick:
        return Spares()
    return Spares(session.clients.at(session.row), session.pins.seat.serial)


def nothing() -> Spares:
    """Return what neither gives nor takes anything, for as long as a fork takes."""
    spares = Spares()
    spares.close()
    return spares


def forsake(spares: Spares) -> None:
    """Let whoever is in the midst of a put or a delete find that the slots are another's."""
    spares.close()
    spares.serial = 0


def leave(session: Session, clients: Clients) -> None:
    """Give everything back, and the seat. Requires: the store lock.

    Another thread may be about to take something back: without a serial it will not.
    """
    settle(session)
    session.spares.serial = 0
    give_back(session)
    clients.leave(session.row, session.pins.seat.serial)


def take_back(session: Session, slot: int, generation: int) -> bool:
    """Delete an object that this process may delete without the lock; False: that needs the lock.

    Flat: the workload "put" of the benchmarks pays for it.
    """
    spares, words, slots = session.spares, session.words, session.slots
    outside = not 0 <= slot < words[L.W_SLOT_TOP]
    if outside or spares.watched or gettrace() or get_tool(DEBUGGER) or get_tool(COVERAGE):
        return False
    base, ending = slots.start + slot * L.SLOT_WORDS, spares.row + L.C_ENDING
    ready, spare = states.ready_word(generation), states.spare_word(generation)
    nbytes, start, counted = words[base + L.S_EXTENT_NBYTES], 0, 1
    pile: Pile | None = spares.small
    if nbytes:
        node, start = words[base + L.S_NODE] - 1, words[base + L.S_EXTENT] & L.EXTENT_MASK
        if nbytes > session.most_spare or not session.allocator.is_warm(node, slot, start, nbytes):
            return False
        pile, counted = spares.pile(nbytes), WITH_EXTENT
    if pile is None:
        return False
    entry = slot, base, spare, L.first_crc(slots.store, slot, 0, 0), start
    told = session.counts
    # No call from here on.
    top, count, held = pile.top, spares.count, spares.nbytes + nbytes
    if top == ROOM or held > session.most_spare or not spares.serial or words[L.W_DESTROYED]:
        return False
    words[ending] = slot + 1
    own = words[base + L.S_LINK] == L.LINK_OWN and words[base + L.S_OWNER] == spares.serial
    if own and words[base] == ready:
        words[base] = spare
        pile.slots[top] = entry
        pile.top = top + 1
        words[spares.row + L.C_SPARES] = spares.count = count + counted
        if nbytes:
            told[L.SEAT_KEPT] = spares.nbytes = held
        words[ending] = 0
        return True
    words[ending] = 0
    return False


# --- setting slots aside -------------------------------------------------------------------------


def set_aside(session: Session) -> None:
    """Give this process slots and generations, if there are many. Requires: the store lock."""
    if not session.quick:
        return
    settle(session)
    spares, table, words = session.spares, session.slots, session.index.words
    free = session.identity.max_objects - words[L.W_OBJECTS]
    count = min(spares.portion, free >> _PART_LOG2)
    if count < _FIRST:
        return
    try:
        taken = table.take_many(max(0, count - spares.small.top)) or []
    except OSError:  # no pages for more slots: the next put will say so, if it needs one
        return
    spares.portion = min(2 * spares.portion, MOST)
    table.set_aside(taken, spares.serial)
    take_generations(session)
    for slot in taken:
        _keep(session, slot)


def take_generations(session: Session) -> None:
    """Give this process generations. Requires: the store lock."""
    first = session.slots.take_generations(MOST)
    session.spares.following, session.spares.end = first, first + MOST
    session.spares.watched = are_lines_watched()


def _keep(session: Session, slot: int) -> None:
    """Make a SPARE slot one of this process, or doom it."""
    spares, slots, words = session.spares, session.slots, session.index.words
    told = session.counts
    base = slots.state_index(slot)
    nbytes, start, counted = slots.extent_nbytes(slot), 0, 1
    if nbytes:
        start, counted = words[base + L.S_EXTENT] & L.EXTENT_MASK, WITH_EXTENT
    pile = spares.pile(nbytes)
    entry = slot, base, slots.word(slot), L.first_crc(slots.store, slot, 0, 0), start
    if pile is None or pile.top == ROOM:
        slots.doom(slot)
        return
    words[base + L.S_LINK] = L.LINK_OWN
    pile.slots[pile.top] = entry
    pile.top += 1
    words[spares.row + L.C_SPARES] = spares.count = spares.count + counted
    told[L.SEAT_KEPT] = spares.nbytes = spares.nbytes + nbytes
    if gettrace():
        spares.astray = True  # other threads, which are not traced, came in between


def give_back(session: Session) -> None:
    """Doom all that was set aside for this process. Requires: the store lock."""
    give_back_extents(session)
    give_back_slots(session, ROOM)


def make_room(session: Session) -> None:
    """Give something back if no more can be taken back. Requires: the store lock."""
    spares = session.spares
    if spares.small.top == ROOM:
        give_back_slots(session, MOST)
    if spares.nbytes > session.most_spare // 2:
        give_back_extents(session)


def give_back_slots(session: Session, count: int) -> None:
    """Doom some of the slots without extents. Requires: the store lock."""
    spares = session.spares
    for _ in range(min(count, spares.small.top)):
        _doom_one(session, spares.small, 0, 1)


def give_back_extents(session: Session) -> None:
    """Doom all slots with extents that were set aside for this process. Requires: the lock."""
    spares = session.spares
    for nbytes, pile in list(spares.piles.items()):
        if nbytes:
            for _ in range(pile.top):
                _doom_one(session, pile, nbytes, WITH_EXTENT)
            if len(spares.piles) >= _MOST_SIZES and pile.end():
                del spares.piles[nbytes]


def _doom_one(session: Session, pile: Pile, nbytes: int, counted: int) -> None:
    """Doom the last slot of a pile, unless it was seized. Requires: the store lock."""
    spares, words, told = session.spares, session.index.words, session.counts
    # No call up to the last store.
    top = pile.top
    if not top:
        return
    slot, base, spare, _, _ = pile.slots[top - 1]
    pile.top = top - 1
    if pile.sound >= top:
        pile.sound = top - 1
    if words[base] != spare:
        spares.astray = True
        return
    told[L.SEAT_KEPT] = spares.nbytes = spares.nbytes - nbytes
    words[spares.row + L.C_SPARES] = spares.count = spares.count - counted
    session.slots.doom(slot)


def settle(session: Session) -> None:
    """Find out anew which slots these are if some were seized. Requires: the store lock."""
    spares = session.spares
    if spares.serial and (spares.astray or session.index.words[spares.row + L.C_SEIZED]):
        recount(session, session.slots.table())


def recount(session: Session, table: Table) -> None:
    """Find out anew which slots are set aside for this process. Requires: the store lock."""
    spares, words, told = session.spares, session.index.words, session.counts
    if not spares.serial:
        return
    spares.astray = False
    spares.close()
    before = -1
    while before != spares.count:  # other threads publish what they were filling
        before = spares.count
        found = states.states_of(table[:, L.S_STATE])
        own = table[:, L.S_OWNER] == np.uint64(spares.serial)
        filling = np.flatnonzero(own & (found == states.FILLING))
        counted = len(filling) * WITH_EXTENT
    # No call up to the last store.
    words[spares.row + L.C_SPARES] = spares.count = spares.count - before + counted
    told[L.SEAT_KEPT] = spares.nbytes = 0
    words[spares.row + L.C_SEIZED] = 0
    spares.open()
    for slot in np.flatnonzero(own & (found == states.SPARE)).tolist():
        _keep(session, slot)


def count_objects(clients: Clients) -> int:
    """Return how many objects are published: of what OBJECTS counts, what is not set aside.

    Without the lock it may be off by what changes meanwhile.
    """
    words, aside = clients.words, 0
    for client in clients.rows():
        aside += words[client.at + L.C_SPARES] & L.SPARE_MASK
        aside -= words[client.at + L.C_SEIZED] & L.SEIZED_MASK
    return max(0, words[L.W_OBJECTS] - aside)


def kept_nbytes(clients: Clients) -> int:
    """Return how many bytes of deleted objects clients keep for their next puts, about."""
    words, kept = clients.words, 0
    for client in clients.rows():
        seized = words[client.at + L.C_SEIZED] >> L.SEIZED_SHIFT
        kept += max(0, told_nbytes(clients, client) - seized * L.ALIGNMENT)
    return min(kept, words[L.W_USED])


def told_nbytes(clients: Clients, client: Client) -> int:
    """Return how many bytes a client says that it keeps; 0 where its seat cannot be read."""
    return told_by_seat(clients, client, L.SEAT_KEPT)


def told_by_seat(clients: Clients, client: Client, word: int) -> int:
    """Return a word of the seat of a client; 0 where that cannot be read."""
    try:
        return int(clients.seat(client).words[word])
    except (ShmStoreError, OSError):
        return 0
