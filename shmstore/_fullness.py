"""What holds the memory of a store: which processes, of what age, of which types?"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from shmstore import _census, _remedies, _situation
from shmstore._catalog import states
from shmstore._census import Census, Flags, Numbers, Sitter, Words
from shmstore._disk import file_system_of
from shmstore._info import ClientUse, FullReport, ObjectsUse
from shmstore._reading import make_plan
from shmstore._session import Session
from shmstore._sharing.clients import process_name, process_start_ns
from shmstore.errors import ShmStoreError

# Objects whose type is looked up: it stands in a header, so each costs a look there.
MOST_TYPED: Final = 2000
_SAMPLED: Final = 200
_LARGEST_TYPED: Final = MOST_TYPED - _SAMPLED

_MOST_TYPES: Final = 10
_MOST_LEFT: Final = 10
_AGES: Final = (("< 1 s", 1.0), ("< 1 min", 60.0), ("< 1 h", 3600.0), ("< 1 d", 86400.0))
_NOTHING: Final = (0, 0)


def report(session: Session, asked: int | None) -> FullReport:
    """Return what holds the memory of a store, and what would free it."""
    census = _census.take(session)
    disk = file_system_of(session)
    users = clients(census)
    capacity = session.identity.capacity
    free = max(0, capacity - census.used)
    doomed, writing = census.are(states.DOOMED), census.half_made
    spilled = census.are(states.SPILLED)
    situation = _situation.Situation(session, census, disk, users, free, asked)
    return FullReport(
        path=str(session.path),
        reason=_situation.reason(situation),
        remedies=tuple(_remedies.remedies(situation)),
        capacity=capacity,
        used=census.used,
        free=free,
        largest_free=census.largest_free,
        free_extents=census.free_extents,
        fragmentation=1 - census.largest_free / free if free else 0.0,
        objects=int(census.present.sum()),
        named=int(census.named.sum()),
        max_objects=session.identity.max_objects,
        slots_used=situation.slots_used,
        pinned_nbytes=census.total(census.looked_at() + census.looked_at(alive=False) > 0),
        deleted=int(doomed.sum()),
        deleted_nbytes=census.total(doomed),
        half_made=int(writing.sum()),
        half_made_nbytes=census.total(writing),
        expired=int(census.expired.sum()),
        expired_nbytes=census.total(census.expired),
        spilled=int(spilled.sum()),
        spilled_nbytes=int(census.spilled_nbytes.sum()),
        set_aside=int(census.are(states.SPARE).sum()),
        clients=users,
        ages=ages(census),
        types=types(session, census),
        file_system=disk,
    )


# --- by process ----------------------------------------------------------------------------------


def clients(census: Census) -> tuple[ClientUse, ...]:
    """Return what each process holds, most first: attached ones, and those that left objects."""
    put = _sums_by(census.owner, census.present, census.nbytes)
    begun = _sums_by(census.owner, census.half_made, census.nbytes)
    users = [_use_of(census, sitter, put, begun) for sitter in census.sitters]
    users += _departed(census)
    return tuple(sorted(users, key=lambda u: -(u.nbytes + u.half_made_nbytes + u.deleted_nbytes)))


def _use_of(
    census: Census,
    sitter: Sitter,
    put: dict[int, tuple[int, int]],
    begun: dict[int, tuple[int, int]],
) -> ClientUse:
    deleted = sitter.slots[census.state[sitter.slots] == states.DOOMED]
    objects, nbytes = put.get(sitter.client.serial, _NOTHING)
    half_made, half_made_nbytes = begun.get(sitter.client.serial, _NOTHING)
    return ClientUse(
        pid=sitter.client.pid,
        name=sitter.name,
        alive=sitter.alive,
        attached=True,
        own=sitter.own,
        objects=objects,
        nbytes=nbytes,
        views=sitter.views,
        oldest_view=sitter.oldest,
        pinned_nbytes=census.total(sitter.slots),
        deleted_nbytes=census.total(deleted),
        half_made=half_made,
        half_made_nbytes=half_made_nbytes,
    )


def _departed(census: Census) -> list[ClientUse]:
    """Return what processes without a seat have left; all but the largest of them together."""
    left = census.left_by(with_the_dead=False) & census.present
    put = _sums_by(census.pid, left, census.nbytes)
    by_size = sorted(put, key=lambda pid: -put[pid][1])
    users = [_departed_one(census, pid, left & (census.pid == pid)) for pid in by_size[:_MOST_LEFT]]
    if rest := by_size[_MOST_LEFT:]:
        objects, nbytes = (sum(put[pid][at] for pid in rest) for at in (0, 1))
        name = f"{len(rest):,} processes that have left"
        users.append(
            ClientUse(
                0, name, alive=False, attached=False, own=False, objects=objects, nbytes=nbytes
            )
        )
    return users


def _departed_one(census: Census, pid: int, put: Flags) -> ClientUse:
    """Return what one process without a seat has left. It may still run."""
    started = process_start_ns(pid) / 1e9
    alive = 0 < started <= time.time() - float(census.age[put].min())
    return ClientUse(
        pid=pid,
        name=process_name(pid) if alive else "gone",
        alive=alive,
        attached=False,
        own=pid == os.getpid(),
        objects=int(put.sum()),
        nbytes=census.total(put),
    )


def _sums_by(keys: Words, which: Flags, sizes: Numbers) -> dict[int, tuple[int, int]]:
    """Return count and bytes of the chosen slots by key."""
    found, place = np.unique(keys[which], return_inverse=True)
    counts = np.bincount(place, minlength=len(found))
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, place, sizes[which])
    rows = zip(found.tolist(), counts.tolist(), sums.tolist(), strict=True)
    return {key: (count, nbytes) for key, count, nbytes in rows}


# --- by age and by type --------------------------------------------------------------------------


def ages(census: Census) -> tuple[ObjectsUse, ...]:
    """Return what objects of each age hold, the youngest first."""
    bounds = [seconds for _, seconds in _AGES]
    names = [*(name for name, _ in _AGES), "older"]
    place = np.searchsorted(bounds, census.age, side="right")
    groups = (census.present & (place == at) for at in range(len(names)))
    return tuple(
        ObjectsUse(name, int(group.sum()), census.total(group))
        for name, group in zip(names, groups, strict=True)
    )


def types(session: Session, census: Census) -> tuple[ObjectsUse, ...]:
    """Return what objects in memory hold by type, the most first; takes no lock.

    The largest objects are looked at, and some of the rest. Only the first types are named.
    """
    slots = np.flatnonzero(census.are(states.READY) & ~census.expired)
    slots = slots[np.argsort(-census.nbytes[slots], kind="stable")]
    sums: dict[str, tuple[int, int]] = {}
    for slot in slots[:_LARGEST_TYPED].tolist():
        name = _type_of(session, slot, int(census.words[slot]))
        objects, nbytes = sums.get(name, _NOTHING)
        sums[name] = objects + 1, nbytes + int(census.nbytes[slot])
    by_size = sorted(sums.items(), key=lambda item: (-item[1][1], -item[1][0]))
    named = [ObjectsUse(name, *both) for name, both in by_size[:_MOST_TYPES]]
    others = [both for _, both in by_size[_MOST_TYPES:]]
    rest = slots[_LARGEST_TYPED:]
    if others or len(rest):
        objects = len(rest) + sum(count for count, _ in others)
        nbytes = census.total(rest) + sum(size for _, size in others)
        named.append(ObjectsUse(_name_of_rest(session, census, rest), objects, nbytes))
    return tuple(named)


def _name_of_rest(session: Session, census: Census, slots: npt.NDArray[np.intp]) -> str:
    """Return what to call objects that were not looked at, after a sample of them."""
    sample = slots[:: max(1, -(-len(slots) // _SAMPLED))].tolist()
    found = Counter(_type_of(session, slot, int(census.words[slot])) for slot in sample)
    return f"others, mostly {found.most_common(1)[0][0]}" if found else "others"


def _type_of(session: Session, slot: int, word: int) -> str:
    try:
        plan = make_plan(session, slot, word, deep=False)
    except ShmStoreError:
        return "damaged"
    return "gone since" if plan is None else str(plan.header.get("type", "unknown"))
