"""Where does a put lie, what is returned for it, and where is it counted?"""

from __future__ import annotations

from collections.abc import Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from shmstore._catalog import states
from shmstore._catalog.inserts import DESCRIPTION, DESCRIPTION_AT
from shmstore._memory import layout as L
from shmstore._packing import (
    PLAIN,
    Headers,
    Package,
    known_headers,
    pack_pickled,
)
from shmstore._ref import ObjectRef, refer_to_many
from shmstore._refilling import refill_stream
from shmstore._sharing import counts
from shmstore._tracing import COVERAGE, DEBUGGER, get_tool, gettrace
from shmstore.serialization import custom_serialize
from shmstore.serialization.pickling import BYTES, SMALL_NBYTES, dump

if TYPE_CHECKING:
    from shmstore._copying import Place
    from shmstore._session import Session

_PUTS: Final = L.SEAT_PUTS
_NBYTES: Final = L.SEAT_PUT_NBYTES

_describe: Final = DESCRIPTION.pack


def put_plain(
    session: Session,
    obj: Any,
    readonly: bool | None,  # noqa: FBT001 - a put calls it
) -> ObjectRef | Package | None:
    """Put a small object of a builtin type without key, and without the lock.

    Flat: the workload "put" of the benchmarks pays for it.

    Returns
    -------
    ObjectRef, Package or None
        None: it is another object; a package: it needs another way.
    """
    kind = type(obj)
    cache, headers_of = Headers.known
    if cache is not custom_serialize.cache:
        headers_of = known_headers()
    header = headers_of.get(kind)
    if header is None or (kind in BYTES and len(obj) > SMALL_NBYTES):
        return None
    pickled = dump(obj)
    if type(pickled) is bytes:
        if len(pickled) + len(header) <= L.INLINE_NBYTES:
            ref = put_spare(session, PLAIN, header, pickled)
        else:
            ref = refill_stream(session, header, pickled)
        if ref is not None:
            return ref
    return None if pickled is None else pack_pickled(obj, pickled, None, readonly=readonly)


def put_spare(session: Session, kind: int, header: bytes, inline: bytes) -> ObjectRef | None:
    """Put what fits into a slot and has no key without the lock; None: that needs the lock.

    See `_spares`. Flat: the workload "put" of the benchmarks pays for it.

    Parameters
    ----------
    kind, header, inline
        See `Content`.
    """
    spares, words = session.spares, session.words
    pile, generation = spares.small, spares.following
    top = pile.top
    if not top or generation >= spares.end or words[L.W_DESTROYED]:
        return None
    if spares.watched or gettrace() or get_tool(DEBUGGER) or get_tool(COVERAGE):
        return None
    entry = slot, base, spare, seed, _ = pile.slots[top - 1]
    word, nbytes = states.ready_word(generation), len(inline)
    body = _describe(spares.serial, 0, len(header), nbytes, 0, 0, time_ns(), session.pid, 0)
    body += header + inline
    # As `layout.first_crc`.
    kinds = kind | crc32(body, (word & -256 | kind) ^ seed) << L.CRC_SHIFT
    start = base * L.WORD + DESCRIPTION_AT
    place = slice(start, start + len(body))  # here: Python 3.11 may collect garbage as it makes one
    ref = ObjectRef(session.uuid, session.path_text, slot, generation, nbytes, None, session.gid)
    memory, counted = session.memory, session.counts
    # No call from here on.
    if pile.top != top or spares.following != generation or pile.slots[top - 1] is not entry:
        return None  # another thread was here
    if words[base] != spare:
        return None  # damaged
    memory[place] = body
    words[base + L.S_KIND] = kinds
    words[base] = word
    spares.following = generation + 1
    pile.top = top - 1
    words[spares.row + L.C_SPARES] = spares.count = spares.count - 1
    try:  # as `counts.add`
        counted[_PUTS] += 1
        counted[_NBYTES] += nbytes
    except ValueError:
        pass
    if words[L.W_DESTROYED]:
        session.check_alive()
    return ref


def refer(session: Session, package: Package, place: Place) -> ObjectRef:
    """Return the reference to an object that has been published, and count it."""
    nbytes, counted = package.content.data_nbytes, session.counts
    try:  # as `counts.add`
        counted[_PUTS] += 1
        counted[_NBYTES] += nbytes
    except ValueError:
        pass
    return ObjectRef(
        session.uuid,
        session.path_text,
        place.slot,
        place.generation,
        nbytes,
        package.key,
        session.gid,
    )


def refer_all(
    session: Session, packages: Sequence[Package], places: Sequence[Place]
) -> list[ObjectRef]:
    """Return the references to objects that have been published, and count them."""
    sizes = [package.content.data_nbytes for package in packages]
    count(session, len(sizes), sum(sizes))
    store, path, gid = session.uuid, session.path_text, session.gid
    return [
        ObjectRef(store, path, place.slot, place.generation, nbytes, package.key, gid)
        for package, place, nbytes in zip(packages, places, sizes, strict=True)
    ]


def refer_batch(
    session: Session, slots: Sequence[int], generation: int, sizes: bytes
) -> list[ObjectRef]:
    """Return the references to objects without keys that have been published, and count them."""
    count(session, len(sizes), sum(sizes))
    store, path, gid = session.uuid, session.path_text, session.gid
    return refer_to_many(store, path, slots, generation, sizes, gid)


def count(session: Session, objects: int, nbytes: int) -> None:
    """Count objects that have been published."""
    counts.add(session.counts, _PUTS, objects)
    counts.add(session.counts, _NBYTES, nbytes)
