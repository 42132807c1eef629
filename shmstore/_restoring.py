"""How does an object come back that lies in a file?

Into memory when there is room, and else it is mapped from its file. Either way the reference and
the key lead to the same object, and what was writeable is writeable and shared by all.

1. begin   (lock)     a slot of our own and an extent, as for a put; LAST_USED := its generation
2. read    (no lock)  the file into the extent, held against its checksum
3. finish  (lock)     if nobody has got the object since 1, it takes the extent over; its slot says
                      READY; the file goes

Concurrency: views of a file are made under the store lock, and what is written through them would
be lost. So while there are any, the object stays in the file: 3 sees their pins, or, when these are
gone, what a get writes to LAST_USED. Of two who bring the same object back the first one gives up.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from shmstore._catalog import states
from shmstore._catalog.slots import Record
from shmstore._lease import Lease
from shmstore._memory import layout as L
from shmstore._memory.allocator import Extent
from shmstore._memory.folder import NO_ROOM
from shmstore._memory.segment import Absent
from shmstore._plans import GONE, Plan
from shmstore._sharing import counts
from shmstore._sharing.seats import Anchor
from shmstore._tuples import NamedTuple
from shmstore.serialization import headers

if TYPE_CHECKING:
    import mmap

    from shmstore._memory.spill_files import SpillFile
    from shmstore._session import Session

# As many deleted objects are looked at for room.
_RECLAIM_FEW: Final = 64

# So many files are remembered to be whole.
_MOST_VERIFIED: Final = 1 << 14


class _Return(NamedTuple):
    """An object on its way back: its record, and a slot of our own with an extent."""

    record: Record
    helper: int
    generation: int
    extent: Extent


def bring_back(session: Session, slot: int, word: int) -> int:
    """Read an object back into memory if there is room; return its slot word afterwards.

    Raises
    ------
    CorruptStoreError
        Its file is damaged.
    """
    under_way: list[_Return] = []
    guards: list[Anchor] = []
    whole = False
    try:
        session.lock.run(_begin, session, slot, word, under_way, guards)
        whole = all(_read(session, coming) for coming in under_way)
    finally:
        try:
            for coming in under_way:
                session.lock.run(_finish, session, coming, whole)
        except BaseException:
            session.abandoned += [(coming.helper, coming.generation) for coming in under_way]
            raise
        finally:
            guards.clear()  # an error keeps this frame
    return session.slots.word(slot)


def _begin(
    session: Session, slot: int, word: int, under_way: list[_Return], guards: list[Anchor]
) -> None:
    """Find room, unless there is none or no need; `under_way` always tells. Requires: the lock."""
    session.check_alive()
    slots = session.slots
    here = session.spills and not (session.readonly or isinstance(session.segment, Absent))
    if slots.word(slot) != word or not here:
        return
    record = slots.read(slot)
    session.reclaim(_RECLAIM_FEW)
    if slot in session.clients.pinned():
        session.bury()  # perhaps by somebody who is dead
    try:
        helper = slots.take()
        if helper is None or slot in session.clients.pinned():
            return
        extent = session.allocator.allocate(record.extent_nbytes, helper)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return
    if extent is None:
        return
    coming = _Return(record, helper, slots.next_generation(), extent)
    under_way.append(coming)
    slots.reserve(helper, session.pins.seat.serial, extent)
    # Nobody else writes this number there: views that come and go meanwhile do not go unseen.
    session.words[slots.state_index(slot) + L.S_LAST_USED] = coming.generation
    guards.append(session.pins.hold(helper))


def _read(session: Session, coming: _Return) -> bool:
    """Read the file; False when there are no pages, or the file is not there (any more)."""
    record, extent = coming.record, coming.extent
    try:
        if extent.cold:
            session.segment.reserve(extent.offset, extent.nbytes)
        generation = states.generation_of(record.word)
        with session.files.open(record.slot, generation, record.extent_nbytes) as file:
            target = memoryview(session.segment.writeable)
            file.read_into(target[extent.offset : extent.offset + extent.nbytes])
    except FileNotFoundError:
        return False
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
    last_used = words[slots.state_index(record.slot) + L.S_LAST_USED]
    same = slots.word(record.slot) == record.word and last_used == coming.generation
    if whole and same and record.slot not in session.clients.pinned():
        node = slots.take_over(record.slot, helper)
        session.allocator.give(node, record.slot)
        session.allocator.mark_warm(node)
        slots.return_to_memory(record.slot)
        session.files.remove(record.slot, states.generation_of(record.word))
        counts.add(words, L.W_RESTORES)
        counts.add(session.counts, L.SEAT_RESTORES)
    slots.doom(helper)


def lost(session: Session, record: Record) -> Exception:
    """Return the error for an object whose file is gone."""
    return session.slots.damaged(record.slot, f"its file in {session.files.path} is gone")


class FilePlan(Plan):
    """An object that lies in a file: its views are of a mapping of the file.

    It is good for one get: the next one looks first whether there is room in memory by now.
    """

    __slots__ = ("_is_used",)

    def __init__(
        self,
        session: Session,
        record: Record,
        header: dict[str, Any],
        table: list[headers.FrameRow],
    ) -> None:
        super().__init__(session, record, header, table)
        self._is_used = False

    def is_there(self) -> bool:
        """Return whether this plan can be used."""
        return not self._is_used and super().is_there()

    def secure(self) -> Any:
        """Pin the object under the lock: who brings it back looks at the pins there."""
        return GONE if self._is_used else self.session.lock.run(self.secure_once)

    def secure_once(self) -> Any:
        """Pin the object and open its file."""
        lease = _FileLease(self)
        if not self.is_there():
            return GONE
        self._is_used = True
        lease.file = self._open()
        return lease

    def _open(self) -> SpillFile:
        generation = states.generation_of(self.word)
        try:
            return self.session.files.open(
                self.slot, generation, self.extent_nbytes, readonly=self.session.readonly
            )
        except FileNotFoundError:
            raise lost(self.session, self.record) from None

    def verify_again(self) -> None:
        """Hold the file against its checksum; whether there is one is for invariant 11."""
        place = self.slot, states.generation_of(self.word), self.extent_nbytes
        with (
            contextlib.suppress(FileNotFoundError),
            self.session.files.open(*place, readonly=True) as file,
        ):
            file.verify()

    def verify(self, file: SpillFile) -> None:
        """Hold the file against its checksum, once."""
        verified = self.session.verified
        if (self.word, file.crc) not in verified:
            file.verify()
            self._verify_data(file)
            if len(verified) >= _MOST_VERIFIED:
                verified.clear()
            verified.add((self.word, file.crc))

    def _verify_data(self, file: SpillFile) -> None:
        """Hold what is sealed against its own checksum: it may have been damaged in memory."""
        if not self.record.kind & L.KIND_DATA_CRC:
            return
        memory, crc = memoryview(file.map(writeable=False)), 0
        for row in self.table:
            if not row.writeable:
                start = L.PAGE + row.offset
                crc = crc32(memory[start : start + row.nbytes], crc)
        if crc != self.record.data_crc:
            raise self.session.slots.damaged(self.slot, "the checksum of its data does not agree")


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
    """Return the header of an object that lies in its file; None when it is not there (yet)."""
    if not session.spills:
        return None  # it is being evicted
    generation = states.generation_of(record.word)
    try:
        place = record.slot, generation, record.extent_nbytes
        with session.files.open(*place, readonly=session.readonly) as file:
            return file.read(record.header_offset, record.header_nbytes)
    except FileNotFoundError:
        leaves = record.node >= 0  # it is withdrawn and still has its extent
        if leaves or session.slots.word(record.slot) != record.word:
            return None
        raise lost(session, record) from None
