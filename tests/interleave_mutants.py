"""Which weakened variants of the protocols must the explorer find out?

Each leaves out, or moves, one step of the real code, in one world.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from interleave_memory import running
from interleave_world import World
from interleave_wrappers import Words

from shmstore import _reading, _space, _waiting, _writing
from shmstore._catalog import states
from shmstore._catalog.slots import Slots
from shmstore._memory import layout as L
from shmstore._sharing.clients import Clients
from shmstore._sharing.seats import Pins


class Mutant(NamedTuple):
    """A weakened variant, and a scenario that it must fail in."""

    weaken: Callable[[World], None]
    scenario: str
    deep: bool = False


def no_barrier(world: World) -> None:
    """The reclaimer loads the pins without a barrier after the stores before."""
    world.patch(_space, "membarrier", lambda: None)


class Remembered:
    """Words that a reader looks at only once: it believes that they stay what they were."""

    def __init__(self, process: Any, words: Words, first: int) -> None:
        self._process, self._words, self._first = process, words, first
        self._seen: dict[int, int] = {}

    def __getitem__(self, at: int) -> Any:
        if at < self._first or self._process.locked:
            return self._words[at]
        if self._process.direct:
            self._seen[at] = self._words[at]
        return self._seen[at]


def no_second_look(world: World) -> None:
    """A reader pins, and does not look at the slot again."""
    session = world.sessions[0]
    session.words = Remembered(world.processes[0], session.words, session.index.geometry.slots)
    for slot in range(session.index.geometry.max_objects):
        for field in range(L.S_INLINE):
            session.words[session.slots.state_index(slot) + field]


def pins_before_doom(world: World) -> None:
    """The pins are loaded before the object is doomed, not after."""
    doom, pinned = Slots.doom, Clients.pinned

    def load_pins_and_doom(slots: Slots, slot: int) -> bool:
        process = running()
        if process is not None:
            world.remembered[process.number] = frozenset(
                pinned(world.sessions[process.number].clients)
            )
        return doom(slots, slot)

    def loaded_before(clients: Clients) -> set[int]:
        process = running()
        return pinned(clients) if process is None else set(world.remembered[process.number])

    world.patch(Slots, "doom", load_pins_and_doom)
    world.patch(Clients, "pinned", loaded_before)


def state_before_fields(world: World) -> None:
    """A put stores the state word before it describes the object."""

    def hasty(fill: Callable[..., None]) -> Callable[..., None]:
        def fill_hastily(slots: Slots, slot: int, *rest: Any, **named: Any) -> None:
            process = running()
            if process is None:
                return fill(slots, slot, *rest, **named)
            buffer = process.buffer
            begin = len(buffer)
            fill(slots, slot, *rest, **named)
            at = slots.state_index(slot)
            state = next(n for n in range(begin, len(buffer)) if buffer[n].address == at)
            buffer.insert(begin, buffer.pop(state))
            return None

        return fill_hastily

    world.patch(Slots, "publish", hasty(Slots.publish))
    world.patch(Slots, "insert", hasty(Slots.insert))


def pins_that_move(world: World) -> None:
    """What is secured gets the pins of its views later, in other cells."""

    def pin_again(pins: Pins, cell: int, anchor: object) -> None:
        pins.pin(anchor, pins.cells[cell] - 1)

    world.patch(Pins, "pass_on", pin_again)


def found_at_once(world: World) -> None:
    """What a key leads to is not asked a second time."""

    def find(session: Any, digest: tuple[int, int]) -> tuple[int, int] | None:
        slot = session.keys.find(digest)
        if slot < 0:
            return None
        record = session.slots.read(slot)
        same = record.digest == digest and states.is_present(record.word)
        return (slot, record.word) if same else None

    world.patch(_reading, "_find", world.forgetful(find))


def missed_at_once(world: World) -> None:
    """A key that is not found is not asked for again under the lock."""
    world.patch(_reading, "find_digest", _reading._find)


def never_mended(world: World) -> None:
    """Who takes the lock after a death does not mind that a change was under way."""
    for session in [*world.sessions, world.judge_session]:
        session.lock._mend = lambda: None


def never_marked(world: World) -> None:
    """Who dies has not marked that a change is under way."""
    world.sessions[0].lock.mark = 0


class Blind:
    """Words of who does not see when an object was used last."""

    def __init__(self, words: Words, first: int) -> None:
        self._words, self._first = words, first

    def __getitem__(self, at: int) -> Any:
        in_slots = at >= self._first
        if in_slots and (at - self._first) % L.SLOT_WORDS == L.S_LAST_USED:
            return 0
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._words[at] = value


def writes_unnoticed(world: World) -> None:
    """Who moves an object to a file does not look whether it was got meanwhile."""
    session = world.sessions[1]
    session.words = Blind(session.words, session.index.geometry.slots)


def rung_afterwards(world: World) -> None:
    """The bell is rung when the object is there, not before."""
    tell, take_key = _writing._tell, _writing._take_key
    told: list[tuple[Any, ...]] = []
    world.patch(_writing, "_tell", lambda *about: told.append(about))

    def take_key_and_tell(*key: Any) -> None:
        take_key(*key)
        while told:
            tell(*told.pop())

    world.patch(_writing, "_take_key", take_key_and_tell)


def not_settled(world: World) -> None:
    """A waiter does not look again when it enters its rows."""

    def settle(sleeper: Any, _: Any, topics: Any, prefix: int = -1) -> None:
        sleeper._enter(topics, prefix)

    world.patch(_waiting.Sleeper, "settle", settle)


MUTANTS: Final[dict[str, Mutant]] = {
    "no barrier": Mutant(no_barrier, "memory used again, later get: array"),
    "no second look": Mutant(no_second_look, "memory used again, later get: array"),
    "no second look at what is copied": Mutant(
        no_second_look, "memory used again, later get: plain"
    ),
    "pins loaded before the doom": Mutant(pins_before_doom, "memory used again, later get: array"),
    "state word before the fields": Mutant(state_before_fields, "death in put, no such key: array"),
    "pins that move": Mutant(pins_that_move, "memory used again, mode readonly: dict of arrays"),
    "no barrier before an eviction": Mutant(no_barrier, "evicted: array"),
    "no barrier before a file counts": Mutant(no_barrier, "spilled while written: array"),
    "writes unnoticed by who spills": Mutant(writes_unnoticed, "spilled while written: array"),
    "a key asked once": Mutant(found_at_once, "overwritten twice: plain", deep=True),
    "a miss believed": Mutant(missed_at_once, "key index: buckets split"),
    "never mended": Mutant(never_mended, "death in put, no such key: array"),
    "a bell rung afterwards": Mutant(rung_afterwards, "waited for, death of the putter: plain"),
    "no last look": Mutant(not_settled, "waited for: plain"),
    "never marked as dirty": Mutant(never_marked, "death in put, no such key: array"),
}
