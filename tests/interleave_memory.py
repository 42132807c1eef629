"""What do simulated processes see of shared memory? x86-TSO, one visible step at a time.

Each simulated process is a greenlet that runs the real code of shmstore. What that code takes for
memory (words of the index, cells of seats, bytes of the segment) is in `interleave_wrappers`. A
store goes into the FIFO store buffer of its process, and to memory only when the scheduler flushes
it; a load looks into the own buffer first. Before each step that another process could notice (a
*label*) a process hands control to the scheduler.

Model of the machine (P. Sewell et al., "x86-TSO: a rigorous and usable programmer's model for x86
multiprocessors", CACM 53, 2010):

* taking and giving back the store lock wait until the own buffer is empty (system calls fence);
* ``membarrier()`` passes a process once everything is flushed that this process had stored before
  its last label; what it has stored since may as well be stored later;
* a process dies at a label. What its buffer still holds is dropped: that is the same as a death
  before these stores, so every store of a process is a point of death. (A real store buffer drains
  even when its process dies; a drained death is the one before the next store.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import greenlet

WORD: Final = 8
GRANULE: Final = 64  # what one label shows of the segment

# An address is a word of the index, or one of these plus a number.
SEATS: Final = 1 << 32  # (1 + process) * SEATS + word of its seat
SEGMENT: Final = 1 << 48  # + granule
FILES: Final = 1 << 52  # + serial of a seat file: 1 if it is there
ALIVE: Final = 1 << 53  # + process
DISK: Final = 1 << 54  # a hash of the files that objects were moved to
BELLS: Final = 1 << 55  # + process: 1 if its bell was rung
PAUSED: Final = 1 << 56  # what somebody looks at who lets time pass


_NOBODY: Final = (0, 0, 0, 0)


class Killed(BaseException):
    """Thrown into a simulated process that has died, or whose run is not needed any more."""


class Counterexample(Exception):  # noqa: N818 - what the explorer looks for
    """A property does not hold in this interleaving."""


class Entry:
    """One store in a buffer."""

    __slots__ = ("address", "locked", "segment", "value")

    def __init__(self, address: int, value: Any, segment: int, *, locked: bool) -> None:
        self.address, self.value, self.segment, self.locked = address, value, segment, locked


class Knowledge:
    """Which process reads and writes which address, with the store lock or without?

    A load or a flush is a label only where it can matter to another process: where that one writes
    (or reads) the same address and not both do it under the lock. This is learned: when an access
    shows that an address is shared, `stale` is set, and the exploration begins anew with what is
    known by then.
    """

    def __init__(self) -> None:
        self._known: dict[int, list[int]] = {}  # loads free, loads locked, stores free, locked
        self._used: dict[int, tuple[int, ...]] = {}
        self.loose: set[int] = set()  # what somebody stores without the lock
        self.stale = False

    def refresh(self) -> None:
        """Go by all that has been learned."""
        self._used = {address: tuple(masks) for address, masks in self._known.items()}
        self.loose = {address for address, masks in self._known.items() if masks[2]}
        self.stale = False

    def of(self, address: int) -> tuple[int, ...]:
        """Return the masks of an address."""
        return self._used.get(address, _NOBODY)

    def note(self, address: int, process: int, *, store: bool, locked: bool) -> tuple[int, ...]:
        """Note an access; return the masks of its address."""
        masks = self._known.get(address)
        if masks is None:
            masks = self._known[address] = [0, 0, 0, 0]
        kind = 2 * store + locked
        bit = 1 << process
        if not masks[kind] & bit:
            masks[kind] |= bit
            self.stale = self.stale or self._shared(masks) != 0
        return self._used.get(address, _NOBODY)

    @staticmethod
    def _shared(masks: list[int]) -> int:
        """Return who takes part in a race at an address; 0: nobody."""
        free, locked, stores, locked_stores = masks
        everyone = free | locked | stores | locked_stores
        if everyone & (everyone - 1) and (stores | locked_stores) and (free | stores):
            return everyone
        return 0


class Memory:
    """The one memory behind all buffers: real files, whose first content can be had back.

    Attributes
    ----------
    digest
        A hash of what differs from the first content.
    watch
        Called with (process, address, old, new) for each change.
    """

    def __init__(self, index: memoryview, segment: memoryview, seats: list[memoryview]) -> None:
        self.index = index
        self._segment = segment
        self._seats = seats
        self.files: dict[int, int] = {}
        self.alive: dict[int, int] = {}
        self.disk = 0
        self.bells: dict[int, int] = {}
        self._first: dict[int, Any] = {}
        self.digest = 0
        self.watch: Callable[[int, int, Any, Any], None] = lambda *_: None

    def peek(self, address: int) -> Any:
        """Return what lies at an address."""
        if address < SEATS:
            return self.index[address]
        if address < SEGMENT:
            return self._seats[address // SEATS - 1][address % SEATS]
        if address < FILES:
            start = (address - SEGMENT) * GRANULE
            return bytes(self._segment[start : start + GRANULE])
        if address < ALIVE:
            return self.files.get(address - FILES, 0)
        if address >= BELLS:
            return self.bells.get(address - BELLS, 0)
        return self.alive.get(address - ALIVE, 0) if address < DISK else self.disk

    def poke(self, address: int, value: Any) -> None:
        """Put something at an address."""
        if address < SEATS:
            self.index[address] = value
        elif address < SEGMENT:
            self._seats[address // SEATS - 1][address % SEATS] = value
        elif address < FILES:
            start = (address - SEGMENT) * GRANULE
            self._segment[start : start + GRANULE] = value
        elif address < ALIVE:
            self.files[address - FILES] = value
        elif address < DISK:
            self.alive[address - ALIVE] = value
        elif address >= BELLS:
            self.bells[address - BELLS] = value
        else:
            self.disk = value

    def change(self, process: int, address: int, old: Any, new: Any) -> None:
        """Change what lies at an address from `old` to `new`."""
        if address < SEATS and new < 0:
            raise Counterexample(f"{new} is stored at {address}")
        self._first.setdefault(address, old)
        self.poke(address, new)
        self.digest ^= hash((address, old)) ^ hash((address, new))
        self.watch(process, address, old, new)

    def reset(self) -> None:
        """Go back to the first content."""
        for address, value in self._first.items():
            self.poke(address, value)
        self._first.clear()
        self.digest = 0


# What a process waits to do. A label is (kind, address or process).
START, LOAD, LOCK, UNLOCK, DRAIN, PASS = "start", "load", "lock", "unlock", "drain", "pass"
CALL = "call"  # of the system, on a file
SLEEP = "sleep"  # until a bell has been rung
Label = tuple[str, int]


class Process:
    """One simulated process.

    Attributes
    ----------
    direct
        It runs alone, with plain loads and stores: while a store is made ready, and at the end.
    history
        A hash of all that it has seen: with it its state is known, since its code is deterministic.
    segment
        How many labels it has passed.
    lasting
        Returns what its code remembers from one call to the next.
    """

    def __init__(self, number: int, name: str, memory: Memory, known: Knowledge) -> None:
        self.number = number
        self.name = name
        self.memory = memory
        self.known = known
        self.direct = True
        self.fiber: Any = None
        self.lasting: Callable[[], Any] = tuple
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.dead = self.died = self.finished = self.locked = False
        self.buffer: list[Entry] = []
        self._latest: dict[int, Entry] = {}
        self.history = self.segment = self.tries = 0
        self.label: Label = (START, 0)
        self.failure: BaseException | None = None
        self.outcomes: list[Any] = []
        self.held: list[tuple[int, int]] = []

    # --- running -------------------------------------------------------------------------------

    def begin(self, script: Callable[[Process], None], scheduler: Any) -> None:
        """Start the script; it stops at its first label."""
        self.direct = False

        def run() -> None:
            try:
                script(self)
            except (Killed, greenlet.GreenletExit):
                return
            except BaseException as error:
                if not self.dead:
                    self.failure = error
            self.finished = True
            self.history = hash(tuple(map(str, self.outcomes)))

        self.fiber = greenlet.greenlet(run, scheduler)
        self.fiber.process = self
        self.fiber.switch()

    def wait(self, kind: str, what: int) -> None:
        """Stop at a label until the scheduler lets this process go on."""
        if self.dead:
            raise Killed
        self.label = (kind, what)
        self.fiber.parent.switch()
        if self.dead:
            raise Killed
        self.segment += 1

    def end(self) -> None:
        """Take the process away: whatever still runs in it has no effect."""
        self.dead = True
        if self.fiber is not None and not self.fiber.dead:
            self.fiber.throw(Killed)
        self.fiber = None

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Do something more, alone, after all have ended."""
        assert self.direct
        ended, self.dead = self.dead, False
        try:
            yield
        finally:
            self.dead = ended

    # --- what the code does --------------------------------------------------------------------

    def load(self, address: int) -> Any:
        """Load: from the own buffer, or from memory at a label."""
        if self.direct:
            return self.memory.peek(address)
        if self.dead:
            raise Killed
        _, _, stores, locked_stores = self.known.note(
            address, self.number, store=False, locked=self.locked
        )
        others = stores if self.locked else stores | locked_stores
        if others & ~(1 << self.number):
            self.wait(LOAD, address)
        entry = self._latest.get(address)
        value = self.memory.peek(address) if entry is None else entry.value
        self.history = hash((self.history, value))
        return value

    def store(self, address: int, value: Any) -> None:
        """Store: into the own buffer."""
        if self.direct:
            self.memory.change(self.number, address, self.memory.peek(address), value)
        elif not self.dead:
            entry = Entry(address, value, self.segment, locked=self.locked)
            self._latest[address] = entry
            self.buffer.append(entry)

    def own(self, address: int) -> Any:
        """Return what this process would load, without doing it."""
        entry = self._latest.get(address)
        return self.memory.peek(address) if entry is None else entry.value

    def drain(self) -> None:
        """Wait until the own buffer is empty."""
        if self.dead:
            raise Killed
        if self.buffer:
            self.wait(DRAIN, 0)

    def settle(self, outcome: Any, *state: Any) -> None:
        """Say what a part of the script came to, and that nothing else of it is remembered."""
        if not self.dead:
            self.outcomes.append(outcome)
            self.tries = 0
            self.forget(*state)

    def forget(self, *state: Any) -> None:
        """Forget what was seen since `settle`: only how often this was called matters."""
        self.tries += 1
        self.forget_what_was_seen(*state)

    def forget_what_was_seen(self, *state: Any) -> None:
        """The same, however often."""
        self.history = hash((self.tries, *map(str, self.outcomes), *state, self.lasting()))

    # --- what the scheduler does ---------------------------------------------------------------

    def is_quiet(self, entry: Entry) -> bool:
        """Return whether the flush of a store can matter to no other process."""
        others = ~(1 << self.number)
        silent = self.memory.peek(entry.address) == entry.value
        if silent:
            _, _, stores, locked_stores = self.known.of(entry.address)
            return not (stores if entry.locked else stores | locked_stores) & others
        free, locked, stores, locked_stores = self.known.note(
            entry.address, self.number, store=True, locked=entry.locked
        )
        looking = free | stores if entry.locked else free | locked | stores | locked_stores
        return not looking & others

    def is_silent(self, entry: Entry) -> bool:
        """Return whether the flush of a store changes nothing."""
        return bool(self.memory.peek(entry.address) == entry.value)

    def flush(self) -> None:
        """Let the oldest store reach memory."""
        entry = self.buffer.pop(0)
        if self._latest[entry.address] is entry:
            del self._latest[entry.address]
        old = self.memory.peek(entry.address)
        if old != entry.value:
            self.memory.change(self.number, entry.address, old, entry.value)

    def die(self) -> None:
        """Die here, without the stores that are still in the buffer."""
        self.dead = self.died = True
        self.buffer.clear()
        self._latest.clear()
        self.held.clear()
        self.label = (START, 0)
        self.history = hash(tuple(map(str, self.outcomes)))

    def lets_pass(self) -> bool:
        """Return whether a barrier can pass this process now."""
        return not self.buffer or self.buffer[0].segment >= self.segment


def running() -> Process | None:
    """Return the process whose code runs now; None: what runs is not simulated."""
    return getattr(greenlet.getcurrent(), "process", None)
