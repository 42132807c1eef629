"""What lies where in a store, as far as it can be seen without its lock?

For those who look at a store from outside: columns with an entry per object, so that a hundred
thousand of them are sorted and counted by NumPy, and only those that are shown are read.

Concurrency: nothing here takes the store lock, so a store whose lock is stuck can be surveyed. A
row whose slot changes while it is copied is left out; what belongs to two rows, such as extents
that touch, may be from two moments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from shmstore import _inspection, _ref
from shmstore._catalog import states
from shmstore._catalog.clock import boottime_ns
from shmstore._catalog.table import extents_of, holds_extent
from shmstore._info import ClientInfo, ObjectInfo, PinInfo
from shmstore._memory import layout as L
from shmstore._reading import make_plan
from shmstore._ref import ObjectRef
from shmstore._session import Session
from shmstore._sharing.clients import Client
from shmstore._sharing.seats import Views
from shmstore.errors import ShmStoreError

if TYPE_CHECKING:
    from shmstore._catalog.table import Table

_NAMES: Final = {
    states.READY: "object",
    states.SPILLED: "spilled",
    states.DOOMED: "deleted",
    states.WRITING: "half-made",
    states.SPARE: "deleted",
    states.FILLING: "half-made",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """Arrays with an entry per object of a store, as they were at about one moment.

    Parameters
    ----------
    capacity
        Bytes of the segment.
    slot, generation
        Place in the slot table, and number of the put: the later, the greater.
    state
        "object", "spilled" (it lies in a file), "deleted" (somebody still looks at it, or its
        memory has not been needed yet) or "half-made" (its put has not ended).
    named, expired
        Whether it has a key, and whether its time is over.
    offset, nbytes
        Its extent in the segment, in bytes; 0 bytes: it has none.
    data_nbytes
        Bytes of its frames.
    created
        When it was published, in seconds since 1970.
    pid
        The process that put it.
    views
        How many views of it there are, in all processes.
    clients
        The attached processes.
    problems
        What could not be read, a sentence each.
    """

    capacity: int
    slot: npt.NDArray[np.intp]
    generation: npt.NDArray[np.int64]
    state: npt.NDArray[np.str_]
    named: npt.NDArray[np.bool_]
    expired: npt.NDArray[np.bool_]
    offset: npt.NDArray[np.int64]
    nbytes: npt.NDArray[np.int64]
    data_nbytes: npt.NDArray[np.int64]
    created: npt.NDArray[np.float64]
    pid: npt.NDArray[np.int64]
    views: npt.NDArray[np.intp]
    clients: tuple[ClientInfo, ...]
    problems: tuple[str, ...]
    _describe: Callable[[Iterable[int]], list[ObjectInfo]] = dataclasses.field(repr=False)
    _who_pins: Callable[[int], list[PinInfo]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.slot)

    def infos(self, rows: Iterable[int]) -> list[ObjectInfo]:
        """Return what is known of the objects of some rows; those that are gone are left out.

        The type of one that cannot be read is "damaged", or "expired".
        """
        return self._describe(rows)

    def who_pins(self, row: int) -> list[PinInfo]:
        """Return which processes look at the object of a row, those with most views first."""
        return self._who_pins(int(self.slot[row]))


def take(session: Session) -> Survey:
    """Copy what is to be told of a store. Takes no lock."""
    session.check_alive()
    words, table = _rows(session)
    known = np.isin(states.states_of(words), list(_NAMES))
    known &= (states.states_of(words) != states.SPARE) | (table[:, L.S_NODE] != 0)
    slots = np.flatnonzero(known)
    words, table = words[slots], table[slots]
    state = states.states_of(words)
    in_memory = holds_extent(table)
    # Sizes beyond the store, clocks beyond all times: such a slot is damaged, the rest is not.
    sizes = np.minimum(table[:, L.S_EXTENT_NBYTES], np.uint64(session.identity.capacity))
    expires = table[:, L.S_EXPIRES_NS]
    left = (expires.astype(np.float64) - boottime_ns()) / 1e9
    problems: list[str] = []
    sitters = list(_sitters(session, problems))
    rank = np.full(int(slots.max(initial=-1)) + 1, -1)
    rank[slots] = np.arange(len(slots))
    return Survey(
        capacity=session.identity.capacity,
        slot=slots,
        generation=states.generations_of(words).astype(np.int64),
        state=np.array([_NAMES[code] for code in state.tolist()], dtype="U9"),
        named=table[:, L.S_KIND] & np.uint64(L.KIND_NAMED) != 0,
        expired=(expires != 0) & (left <= 0),
        offset=np.where(in_memory, extents_of(table), 0).astype(np.int64),
        nbytes=np.where(in_memory, sizes, 0).astype(np.int64),
        data_nbytes=np.minimum(table[:, L.S_DATA_NBYTES], np.uint64(L.MAX_CAPACITY)).astype(
            np.int64
        ),
        created=table[:, L.S_CREATED_NS] / 1e9,
        pid=table[:, L.S_PID].astype(np.int64),
        views=_count_views(sitters, rank, len(slots)),
        clients=tuple(_client(session, *sitter, sizes, rank) for sitter in sitters),
        problems=tuple(problems),
        _describe=lambda rows: _describe(session, words, slots, sitters, rows),
        _who_pins=lambda slot: _pins(session, sitters, slot),
    )


def _rows(session: Session) -> tuple[npt.NDArray[np.uint64], Table]:
    """Copy the slot words, and of each row what lies before its header, if the word stays so."""
    table = session.slots.table()
    words = table[:, L.S_STATE].copy()
    copied = table[:, : L.S_INLINE].copy()
    changed = table[:, L.S_STATE] != words
    return np.where(changed, np.uint64(states.NEVER_USED), words), copied


def _sitters(session: Session, problems: list[str]) -> Iterable[tuple[Client, bool, Views]]:
    """Yield each client, whether it lives, and its views."""
    for client in session.clients.rows():
        try:
            alive = session.clients.is_alive(client)
            yield client, alive, session.clients.seat(client).views()
        except ShmStoreError as error:  # it may just have left
            if client in list(session.clients.rows()):
                problems.append(str(error))


def _count_views(
    sitters: list[tuple[Client, bool, Views]], rank: npt.NDArray[np.intp], count: int
) -> npt.NDArray[np.intp]:
    """Return how many views of each object there are."""
    found = [_ranks(views.slots, rank) for _, _, views in sitters]
    return np.bincount(np.concatenate([*found, np.zeros(0, np.intp)]), minlength=count)


def _ranks(slots: npt.NDArray[np.intp], rank: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    inside = rank[slots[(slots >= 0) & (slots < len(rank))]]
    found: npt.NDArray[np.intp] = inside[inside >= 0]
    return found


def _client(
    session: Session,
    client: Client,
    alive: bool,  # noqa: FBT001 - as it stands in a row of sitters
    views: Views,
    sizes: npt.NDArray[np.uint64],
    rank: npt.NDArray[np.intp],
) -> ClientInfo:
    return ClientInfo(
        pid=client.pid,
        name=_inspection.name_of(client, alive=alive),
        started=client.started_ns / 1e9,
        attached=client.attached_ns / 1e9,
        alive=alive,
        readonly=client.readonly,
        pins=len(views.slots),
        pinned_nbytes=int(sizes[np.unique(_ranks(views.slots, rank))].sum()),
        oldest_pin=_inspection.wall_clock(float(views.since.min())) if len(views.slots) else None,
        own=client.row == session.row,
    )


def _describe(
    session: Session,
    words: npt.NDArray[np.uint64],
    slots: npt.NDArray[np.intp],
    sitters: list[tuple[Client, bool, Views]],
    rows: Iterable[int],
) -> list[ObjectInfo]:
    """Return what is known of some objects; those that have gone meanwhile are left out."""
    pinned_by: dict[int, set[int]] = {}
    for client, _, views in sitters:
        for slot in views.slots.tolist():
            pinned_by.setdefault(slot, set()).add(client.pid)
    found = (_info(session, int(slots[row]), int(words[row]), pinned_by) for row in rows)
    return [info for info in found if info is not None]


def _info(
    session: Session, slot: int, word: int, pinned_by: dict[int, set[int]]
) -> ObjectInfo | None:
    try:
        plan = make_plan(session, slot, word, deep=False)
        if plan is not None:
            return _inspection.describe(plan, _ref.refer(plan), pinned_by)
        return _unread(session, slot, word, pinned_by, "expired")
    except ShmStoreError:
        return _unread(session, slot, word, pinned_by, "damaged")


def _unread(
    session: Session, slot: int, word: int, pinned_by: dict[int, set[int]], why: str
) -> ObjectInfo | None:
    """Return what its slot says of an object that cannot be read; None: it has gone."""
    record = session.slots.read(slot)
    if record.word != word:
        return None
    generation = states.generation_of(word)
    ref = ObjectRef(session.uuid, session.path_text, slot, generation, record.data_nbytes)
    return ObjectInfo(
        key=None,
        type=why,
        serializer="unknown",
        nbytes=record.data_nbytes,
        stored_nbytes=record.extent_nbytes,
        spilled=states.state_of(word) == states.SPILLED,
        expires=None,
        frames=0,
        created=record.created_ns / 1e9,
        owner_pid=record.pid,
        pinned_by=tuple(sorted(pinned_by.get(slot, ()))),
        slot=slot,
        generation=generation,
        ref=ref,
    )


def _pins(session: Session, sitters: list[tuple[Client, bool, Views]], slot: int) -> list[PinInfo]:
    """Return which processes look at a slot, those with most views first."""
    pins = []
    for client, alive, views in sitters:
        mine = views.slots == slot
        if mine.any():
            since = _inspection.wall_clock(float(views.since[mine].min()))
            sites = _sites(session, client, views.sites[mine])
            name = _inspection.name_of(client, alive=alive)
            own, count = client.row == session.row, int(mine.sum())
            pins.append(PinInfo(client.pid, name, alive, count, since, own, sites))
    return sorted(pins, key=lambda pin: -pin.views)


def _sites(session: Session, client: Client, sites: npt.NDArray[np.intp]) -> dict[str, int]:
    """Return where views were got, and how many of them there."""
    if not sites.any():
        return {}
    try:
        seat = session.clients.seat(client)
    except ShmStoreError:
        return {}
    numbers, counts = np.unique(sites, return_counts=True)
    pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
    found = ((seat.site(number), count) for number, count in pairs)
    return {text: count for text, count in found if text}
