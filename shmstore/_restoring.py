"""How does an object come back that lies in a file?

Into memory when there is room, and else it is mapped from its file. Either way the reference and
the key lead to the same object, and what was writeable is writeable and shared by all.

1. begin   (lock)     a slot of our own and an extent, as for a put
2. read    (no lock)  the file into the extent, held against its checksum
3. finish  (lock)     if the object is still in the file and nobody looks at it there, it takes the
                      extent over; its slot says READY; the file goes

Concurrency: views of a file are made under the store lock, so that 3 cannot miss their pins. While
there are any, the object stays in the file: what is written there would be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from shmstore._catalog import states
from shmstore._catalog.slots import Record
from shmstore._lease import Lease
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._memory.folder import NO_ROOM
from shmstore._plans import GONE, Plan
from shmstore.serialization import headers

if TYPE_CHECKING:
    import mmap

    from shmstore._memory.spill_files import SpillFile
    from shmstore._session import Session

# As many deleted objects are looked at for room.
_RECLAIM_FEW = 64


class _Return(NamedTuple):
    """An object on its way back: its record, a slot of our own with an extent, and its guard."""

    record: Record
    helper: int
    generation: int
    extent: Extent
    guard: object


def bring_back(session: Session, slot: int, word: int) -> int:
    """Read an object back into memory if there is room; return its slot word afterwards.

    Raises
    ------
    CorruptStoreError
        Its file is gone or damaged.
    """
    coming = session.lock.run(_begin, session, slot, word)
    if coming is None:
        return session.slots.word(slot)
    whole = False
    try:
        whole = _read(session, coming)
    finally:
        session.lock.run(_finish, session, coming, whole)
    return session.slots.word(slot)


class _Guard:
    __slots__ = ("__weakref__",)


def _begin(session: Session, slot: int, word: int) -> _Return | None:
    """Find room; None when there is none, or no need. Requires: the store lock."""
    session.check_alive()
    slots = session.slots
    if slots.word(slot) != word or session.readonly or not session.spills:
        return None
    record = slots.read(slot)
    session.reclaim(_RECLAIM_FEW)
    helper = slots.take()
    if helper is None or slot in session.clients.pinned():
        return None
    extent = session.allocator.allocate(record.extent_nbytes, helper)
    if extent is None:
        return None
    generation = slots.reserve(helper, session.pins.seat.serial, extent)
    guard = _Guard()
    session.pins.pin(guard, helper)
    return _Return(record, helper, generation, extent, guard)


def _read(session: Session, coming: _Return) -> bool:
    """Read the file; False when there are no pages, or the object is gone meanwhile."""
    record, extent = coming.record, coming.extent
    try:
        if extent.cold:
            session.segment.reserve(extent.offset, extent.nbytes)
        generation = states.generation_of(record.word)
        with session.files.open(record.slot, generation, record.extent_nbytes) as file:
            target = memoryview(session.segment.writeable)
            file.read_into(target[extent.offset : extent.offset + extent.nbytes])
    except FileNotFoundError:
        if session.slots.word(record.slot) != record.word:
            return False
        raise lost(session, record) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return False
    return True


def _finish(session: Session, coming: _Return, whole: bool) -> None:  # noqa: FBT001 - under the lock
    """Let the object take the extent over, or give it back. Requires: the store lock."""
    record, helper = coming.record, coming.helper
    slots, words = session.slots, session.words
    if not slots.is_writing(helper, coming.generation):
        return
    wanted = whole and slots.word(record.slot) == record.word
    if wanted and record.slot not in session.clients.pinned():
        node = slots.take_over(record.slot, helper)
        session.allocator.give(node, record.slot)
        session.allocator.mark_warm(node)
        slots.return_to_memory(record.slot)
        session.files.remove(record.slot, states.generation_of(record.word))
        words[L.W_RESTORES] += 1
    slots.doom(helper)


def lost(session: Session, record: Record) -> Exception:
    """Return the error for an object whose file is gone."""
    return session.slots.damaged(record.slot, f"its file in {session.files.path} is gone")


class FilePlan(Plan):
    """An object that lies in a file: its views are of a mapping of the file."""

    __slots__ = ("_is_new",)

    def __init__(
        self,
        session: Session,
        record: Record,
        header: dict[str, Any],
        table: list[headers.FrameRow],
    ) -> None:
        super().__init__(session, record, header, table)
        self._is_new = True

    def secure(self) -> Any:
        """Pin the object under the lock: who brings it back looks at the pins there."""
        return self.session.lock.run(self.secure_once)

    def secure_once(self) -> Any:
        """Pin the object; GONE also when there is room for it in memory by now."""
        if not self._is_new and self._could_come_back():
            return GONE
        self._is_new = False
        lease = _FileLease(self)
        if not self.is_there():
            return GONE
        lease.file = self._open()
        return lease

    def _could_come_back(self) -> bool:
        session = self.session
        return not session.readonly and session.allocator.largest_free() >= self.extent_nbytes

    def _open(self) -> SpillFile:
        generation = states.generation_of(self.word)
        try:
            return self.session.files.open(
                self.slot, generation, self.extent_nbytes, readonly=self.session.readonly
            )
        except FileNotFoundError:
            raise lost(self.session, self.record) from None

    def verify(self, file: SpillFile) -> None:
        """Hold the file against its checksum, once."""
        if self.word not in self.session.verified:
            file.verify()
            self.session.verified.add(self.word)


class _FileLease(Lease):
    """A hold on an object in a file, opened under the lock: a delete removes its name at once."""

    __slots__ = ("file",)

    file: SpillFile
    _plan: FilePlan

    def exporter(self, mode: str) -> tuple[mmap.mmap, int]:
        """Return a mapping of the file, and where the extent begins in it."""
        self._plan.verify(self.file)
        private = mode == "private"
        writeable = private or (mode != "readonly" and not self._plan.session.readonly)
        return self.file.map(writeable=writeable, private=private), L.PAGE


def read_header(session: Session, record: Record) -> bytes | None:
    """Return the header of an object that lies in its file; None when it is not there any more."""
    generation = states.generation_of(record.word)
    try:
        place = record.slot, generation, record.extent_nbytes
        with session.files.open(*place, readonly=session.readonly) as file:
            return file.read(record.header_offset, record.header_nbytes)
    except FileNotFoundError:
        if session.slots.word(record.slot) != record.word:
            return None
        raise lost(session, record) from None
