"""How does an object get into a queue, in memory or in a file?

See `_queueing` for the steps.

Concurrency: threads and processes. Who waits with an object that is copied already, or written to a
file, since the queue is full holds its slot; whoever puts meanwhile is before it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from shmstore import _announcing, _copying, _filing, _packing, _puts, _spilling, _writing
from shmstore._catalog import states
from shmstore._catalog.inserts import Content
from shmstore._copying import Place
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._packing import COPY_LOCKED_NBYTES, Package
from shmstore._queueing import Line, check, content_of, has_room
from shmstore._session import Session
from shmstore._sharing.seats import Anchor


def pack(session: Session, obj: Any) -> list[Package]:
    """Lay an object out."""
    return _without_end(session, [_packing.pack(obj, None)])


def pack_many(session: Session, objects: Sequence[Any]) -> list[Package]:
    """Lay objects out; SerializationError names the one that it is of."""
    pairs = [(None, obj) for obj in objects]
    packages = _packing.pack_many(pairs, readonly=None, serializers=None, compression=None)
    return _without_end(session, packages)


def _without_end(session: Session, packages: list[Package]) -> list[Package]:
    """Return packages with the checksum that the store wants. In a queue nothing expires."""
    if not session.checksums:
        return packages
    return [session.with_options(package, math.inf) for package in packages]


class Putting:
    """Objects on their way into a queue, in their order.

    Parameters
    ----------
    session, line
        Of the queue.
    packages
        The objects.

    Attributes
    ----------
    count
        How many of them are in the queue.
    """

    def __init__(self, session: Session, line: Line, packages: Sequence[Package]) -> None:
        self._session = session
        self._line = line
        self._packages = packages
        self.count = 0
        self._places: list[Place] = []
        self._guard: Anchor | None = None
        self._copied = False
        self._file = ""

    def advance(self) -> bool:
        """Put as many as there is room for, or for which it can be made; False: the queue is full.

        Raises
        ------
        StoreFullError, ObjectTooLargeError
            There is no room for the next one.
        PlanFailed
            What its plan raised.
        """
        if not self._session.spills:
            return self._advance()
        while self.count < len(self._packages):
            if not _spilling.spilling(self._session, self._needed, self._advance, self._put_filed):
                return False
        return True

    def _needed(self) -> int:
        """Return the bytes of memory that the next object needs."""
        return self._packages[self.count].extent_nbytes

    def _advance(self) -> bool:
        """Put as many as there is room for in memory; False: the queue is full."""
        run = self._session.lock.run
        while self.count < len(self._packages):
            if self._guard is None and not run(self._put_small):
                return False
            if self._guard is not None and not self._put_reserved():
                return False
        return True

    def _put_filed(self) -> bool:
        """Put the next one, into a file if there is no room in memory; False: the queue is full."""
        if self._guard is None and not self._session.lock.run(self._reserve_file):
            return False
        return self._put_reserved()

    def _reserve_file(self) -> bool:
        """Requires: the store lock."""
        session, line = self._session, self._line
        check(session, line)
        if has_room(session, line) is None:
            return False
        package = self._packages[self.count]
        self._guard = _filing.reserve(session, [package], self._places, overwrite=True)
        return True

    def _put_reserved(self) -> bool:
        """Put what has its place, which is filled once; False: the queue is full."""
        session, package, [place] = self._session, self._packages[self.count], self._places
        if not self._copied:
            if _filing.is_filed(package, place):
                self._file = session.files.new_name(session.pins.seat.serial)
                _filing.write(session, package, place, self._file)
            else:
                _copying.copy(session, package, place, self._guard)
            self._copied = True
        done: bool = session.lock.run(self._publish)
        return done

    def _put_small(self) -> bool:
        """Put what is small and warm, up to the first that is not. Requires: the store lock."""
        session, line = self._session, self._line
        _writing.begin(session, self._packages, overwrite=True)
        check(session, line)
        if len(self._packages) > self.count + 1:
            self._put_inline()
        while self.count < len(self._packages):
            if has_room(session, line) is None:
                return False
            package = self._packages[self.count]
            slot, extent = _writing.find_place(session, package)
            if extent is not None and (extent.cold or extent.nbytes > COPY_LOCKED_NBYTES):
                _writing.take_place(session, slot, extent, self._places)
                self._guard = session.pins.hold(self._places[0].slot)
                return True
            self._insert(package, slot, extent)
            self.count += 1
        return True

    def _put_inline(self) -> None:
        """Put what comes first and lies in slots, all at once. Requires: the store lock."""
        session, line = self._session, self._line
        waiting = session.words[line.base + L.S_WAITING]
        room = line.maxsize - waiting if line.maxsize else len(self._packages)
        coming = self._packages[self.count : self.count + max(0, room)]
        coming = list(itertools.takewhile(_is_inline, coming))
        slots = session.slots.take_many(len(coming)) if len(coming) > 1 else None
        if slots is None:
            return
        self._ring()
        queue, number = states.generation_of(line.word), session.queues.next_number(line.slot)
        contents = [
            content_of(package, L.KIND_QUEUED, (queue, number))
            for number, package in enumerate(coming, number)
        ]
        session.slots.insert_many(slots, contents, session.pins.seat.serial, session.pid)
        session.queues.append(line.slot, slots)
        _puts.count(session, len(contents), sum([each.data_nbytes for each in contents]))
        self.count += len(contents)

    def _insert(self, package: Package, slot: int, extent: Extent | None) -> None:
        session, line = self._session, self._line
        slots = session.slots
        if extent is not None:
            _copying.copy(session, package, Place(slot, slots.next_generation(), extent))
        content = self._numbered(package)
        slots.insert(slot, content, session.pins.seat.serial, session.pid, extent)
        session.queues.append(line.slot, [slot])
        _puts.count(session, 1, content.data_nbytes)

    def _publish(self) -> bool:
        """Append what was copied without the lock. Requires: the store lock."""
        session, line, place = self._session, self._line, self._places[0]
        package = self._packages[self.count]
        check(session, line)
        if has_room(session, line) is None:
            return False
        package = package._replace(content=self._numbered(package))
        _filing.publish(session, [package], [place], [self._file], overwrite=True)
        session.queues.append(line.slot, [place.slot])
        _puts.count(session, 1, package.content.data_nbytes)
        self.count += 1
        self._places.clear()
        self._guard, self._copied, self._file = None, False, ""
        return True

    def _numbered(self, package: Package) -> Content:
        """Wake who waits for objects; return what goes into the slot of the next one."""
        self._ring()
        session, line = self._session, self._line
        digest = states.generation_of(line.word), session.queues.next_number(line.slot)
        return content_of(package, L.KIND_QUEUED, digest)

    def _ring(self) -> None:
        """Wake who waits for objects."""
        words = self._session.words
        if words[L.W_WAITERS] and not words[self._line.base + L.S_HEAD]:
            _announcing.ring(self._session, self._line.objects)

    def give_up(self, error: BaseException | None = None) -> None:
        """Give back what was reserved for an object that is not in the queue."""
        session, places = self._session, self._places
        self._guard = None
        if places and not session.closed:
            [place] = places
            try:
                if session.slots.is_writing(place.slot, place.generation):
                    left = self._packages[self.count : self.count + 1]
                    _filing.give_up(session, left, places, error)
            finally:
                _spilling.discard(session, filter(None, [self._file]))
            places.clear()


def _is_inline(package: Package) -> bool:
    return not package.extent_nbytes
