"""What may happen to a view that is sent when its object is deleted, and its memory wanted?

Scenarios as those of `interleave_extents`, and weakened variants of `_claiming.hold_deleted`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from interleave_actors import NEW, OLD, Actor, Scenario, array, fill
from interleave_extents import copies_not_noticed, inherit, kept_extent, let_child_go
from interleave_memory import BELLS, GRANULE, SEGMENT, Process
from interleave_mutants import Mutant, pins_that_move
from interleave_own import FEW, expect_own
from interleave_world import World

from shmstore import (
    ObjectNotFoundError,
    ObjectRef,
    _claiming,
    _lease,
    _lifecycle,
    _refilling,
    _traveling,
    tickets,
)
from shmstore._memory import layout as L
from shmstore._sharing.clients import Clients
from shmstore._sharing.seats import Anchor

SCENARIOS: Final[dict[str, Scenario]] = {}

Pin = tuple[int, int, int, float]
Receive = Callable[[Actor, ObjectRef, Pin], None]


def pinned_by(sender: Actor, ref: ObjectRef) -> Pin:
    """Let a process have a view; return what a message says of its pin."""
    session: Any = sender.store._session
    pins, cell = session.pins, session.pins.free.pop(0)
    pins.times[cell] = 1.0
    pins.cells[cell] = ref._slot + 1
    return session.row, pins.seat.serial, cell, pins.seat.times[cell]


def _send(world: World, ref: ObjectRef, receive: Receive, *, upward: bool = False) -> None:
    """Let a view of an object arrive while its sender lets go of it.

    Who looks at the pins of the sender first is of no interest, but for `upward`.
    """
    receiver, sender = (Actor(world, number) for number in ((2, 1) if upward else (1, 2)))
    for store in world.stores:  # cells for pins
        store.get(world.refer(ref))
    pin = pinned_by(sender, ref)
    session: Any = receiver.store._session
    cells = sender.store._session.pins.cells  # type: ignore[union-attr]
    world.patch(_lifecycle, "session_of", lambda *_: session)

    def let_go(_: Process) -> None:
        cells[pin[2]] = 0

    scripts = [lambda _: receive(receiver, world.refer(ref), pin), let_go]
    world.scripts += reversed(scripts) if upward else scripts


def sent(receive: Receive, *, deletes: bool = False, **more: bool) -> Callable[[World], None]:
    """The owner fills the extent anew."""

    def make(world: World) -> None:
        owner, ref = kept_extent(world, full=False)

        def go_on(_: Process) -> None:
            if deletes:
                owner.delete(world.refer(ref))
            owner.put_own(NEW)

        world.scripts = [go_on]
        _send(world, ref, receive, **more)
        if not deletes:
            owner.store.delete(ref)
        expect_own(world, array)

    return make


def sent_doomed(receive: Receive) -> Callable[[World], None]:
    """The object was deleted under the lock; who has no room takes its memory."""

    def make(world: World) -> None:
        writer = Actor(world, 0)
        ref = writer.store.put(array(OLD))
        fill(world, 0)
        world.scripts = [lambda _: writer.put(array(NEW))]
        _send(world, ref, receive)
        writer.store.delete(ref)

    return make


# --- how it arrives -------------------------------------------------------------------------------


def _message(ref: ObjectRef, pin: Pin) -> tuple[Any, ...]:
    place = ref._uuid, ref._path, ref._gid, ref._slot, ref._generation
    return place, pin, 0, "|u1", (64,), None, "readonly"


def by_message(receiver: Actor, ref: ObjectRef, pin: Pin) -> None:
    """As an array that goes through a queue; it is looked at for a while."""
    try:
        got = _traveling.arrive(*_message(ref, pin))
    except ObjectNotFoundError:
        receiver._done("late")
        return
    value = receiver.value_of(got)
    del got
    assert value == OLD
    receiver._done("arrived")


def by_message_alone(receiver: Actor, ref: ObjectRef, pin: Pin) -> None:
    """The same, without the look whether the object is deleted."""
    session: Any = receiver.store._session
    place = ref._slot, ref._generation
    got = session.lock.run(_traveling._hold_deleted, session, place, pin, "readonly")
    if got is None:
        receiver._done("late")
        return
    value = receiver.value_of(np.asarray(got))
    del got
    assert value == OLD
    receiver._done("arrived")


def by_ticket(receiver: Actor, ref: ObjectRef, pin: Pin) -> None:
    """As a ticket; the memory under the copy-on-write view is looked at for a while."""
    session: Any = receiver.store._session
    place = ref._uuid, ref._path, ref._gid, ref._slot, ref._generation
    try:
        got, hold = tickets.redeem(tickets.Ticket(*place, *pin, writeable=True))
    except ObjectNotFoundError:
        receiver._done("late")
        return
    process, start = receiver.process, session.slots.read(ref._slot).extent
    process.held.append((start, start + got.nbytes))
    seen = process.load(SEGMENT + start // GRANULE)[0]
    process.held.clear()
    del got, hold
    assert seen == OLD
    receiver._done("arrived")


def inherited(world: World) -> None:
    """What has arrived is inherited by a child, whose pins are looked at before those."""
    owner, ref = kept_extent(world, full=False)
    parent, sender = Actor(world, 2), Actor(world, 3)
    for store in world.stores:  # cells for pins
        store.get(world.refer(ref))
    pin = pinned_by(sender, ref)
    owner.store.delete(ref)
    place, session = (ref._slot, ref._generation), world.sessions[2]
    cells = sender.store._session.pins.cells  # type: ignore[union-attr]

    def beget(_: Process) -> None:
        got = session.lock.run(_traveling._hold_deleted, session, place, pin, "readonly")
        if got is not None:
            inherit(world, parent, np.asarray(got))
        del got
        parent._done("begotten")

    def let_go(_: Process) -> None:
        cells[pin[2]] = 0

    world.scripts = [lambda _: owner.put_own(NEW), lambda _: None, beget, let_go]
    expect_own(world, array)
    let_child_go(world)


def sent_on(world: World) -> None:
    """What has arrived is sent on, to a process whose pins are looked at before those."""
    owner, ref = kept_extent(world, full=False)
    last, first, sender = (Actor(world, number) for number in (1, 2, 3))
    for store in world.stores:  # cells for pins
        store.get(world.refer(ref))
    pin = pinned_by(sender, ref)
    owner.store.delete(ref)
    place, posted = (ref._slot, ref._generation), BELLS + len(world.processes)
    cells = sender.store._session.pins.cells  # type: ignore[union-attr]
    session: Any = first.store._session
    letter: list[Pin] = []

    def send_on(process: Process) -> None:
        got = session.lock.run(_traveling._hold_deleted, session, place, pin, "readonly")
        if got is not None:
            _, cell, since = session.pins.pin_of(got.obj)
            letter[:] = [(session.row, session.pins.seat.serial, cell, since)]
            process.store(posted, 1)
        del got
        first._done("sent on")

    def receive(process: Process) -> None:
        if process.load(posted):
            by_message_alone(last, world.refer(ref), letter[0])

    def let_go(_: Process) -> None:
        cells[pin[2]] = 0

    world.scripts = [lambda _: owner.put_own(NEW), receive, send_on, let_go]
    expect_own(world, array)


def _one(make: Callable[[World], None], *names: str, **more: Any) -> Scenario:
    patches = (*FEW, (_refilling, "_SHARED_SLOTS", 1), (_lease, "PRIVATE_COPY_NBYTES", 0))
    return Scenario(make, names or ("owner", "receiver", "sender"), patches=patches, **more)


_MESSAGE, _TICKET = "own extent, its view sent", "own extent, its ticket sent"
_DOOMED: Final = "writer", "receiver", "sender"
SCENARIOS[_MESSAGE] = _one(sent(by_message_alone))
SCENARIOS[f"{_MESSAGE} on"] = _one(sent_on, "owner", "last", "first", "sender")
SCENARIOS[f"{_MESSAGE}, inherited"] = _one(inherited, "owner", "child", "parent", "sender")
SCENARIOS[f"{_MESSAGE}, first look"] = _one(sent(by_message))
SCENARIOS[f"{_MESSAGE}, to who comes later"] = _one(
    sent(by_message_alone, upward=True), "owner", "sender", "receiver"
)
SCENARIOS[f"{_MESSAGE}, then deleted"] = _one(sent(by_message, deletes=True), deep=True)
SCENARIOS[_TICKET] = _one(sent(by_ticket))
SCENARIOS[f"{_TICKET}, then deleted"] = _one(sent(by_ticket, deletes=True), deep=True)
for _number, _who in enumerate(("the owner", "the receiver", "the sender")):
    SCENARIOS[f"{_MESSAGE}, death of {_who}"] = _one(
        sent(by_message_alone), mortal=(_number,), deep=not _number
    )
SCENARIOS["deleted object, its view sent"] = _one(sent_doomed(by_message_alone), *_DOOMED)
SCENARIOS["deleted object, its ticket sent"] = _one(sent_doomed(by_ticket), *_DOOMED, deep=True)


# --- what must be found out -----------------------------------------------------------------------


def not_told(world: World) -> None:
    """Who pins what is deleted does not tell that it did."""
    world.patch(_claiming, "tell_of_copied_pins", lambda _: None)


def told_early(world: World) -> None:
    """Who pins what is deleted tells that before it has."""
    hold, tell = _claiming.hold_deleted, _claiming.tell_of_copied_pins

    def tell_and_hold(session: Any, *rest: Any, **named: Any) -> Any:
        tell(session)
        return hold(session, *rest, **named)

    world.patch(_claiming, "hold_deleted", tell_and_hold)
    not_told(world)


def no_barrier_of_receiver(world: World) -> None:
    """Who pins what is deleted looks for the other pin without a barrier before."""
    world.sessions[1].pass_barrier = lambda: None


def no_barrier_of_owner(world: World) -> None:
    """Who fills an extent looks for pins without a barrier before."""
    world.sessions[0].pass_barrier = lambda: None


def believed(world: World) -> None:
    """Who pins what is deleted does not look whether the other still does."""
    world.patch(Clients, "has_pin", lambda *_: True)


def looked_first(world: World) -> None:
    """Who pins what is deleted looks before it pins whether the other still does."""

    def hold_deleted(session: Any, slot: int, _: int, pin: Pin, pins: int = 1) -> Any:
        if not session.clients.has_pin(slot, *pin):
            return None
        anchor = Anchor()
        cells = [session.pins.pin(anchor, slot) for _ in range(pins)]
        _claiming.tell_of_copied_pins(session)
        session.pass_barrier()
        return _claiming.Held(session.slots.word(slot), anchor, cells)

    world.patch(_claiming, "hold_deleted", hold_deleted)


def copies_looked_for_early(world: World) -> None:
    """Who looks at the pins looks only before whether some were copied."""

    def pinned_meanwhile(clients: Clients) -> set[int] | None:
        copied = clients._words[L.W_PINS_COPIED]
        same = clients._words[L.W_PINS_COPIED] == copied
        pins = clients.pinned()
        return pins if same else None

    world.patch(Clients, "pinned_meanwhile", pinned_meanwhile)


MUTANTS: Final[dict[str, Mutant]] = {
    "sent, not told": Mutant(not_told, _MESSAGE),
    "sent, told early": Mutant(told_early, _MESSAGE),
    "sent, no barrier of the receiver": Mutant(no_barrier_of_receiver, _MESSAGE),
    "sent, no barrier of the owner": Mutant(no_barrier_of_owner, f"{_MESSAGE}, then deleted"),
    "sent, the other pin is believed": Mutant(believed, _MESSAGE),
    "sent, looked before it is pinned": Mutant(looked_first, _MESSAGE),
    "sent, copies of pins not noticed": Mutant(copies_not_noticed, _MESSAGE),
    "sent, copies of pins looked for early": Mutant(copies_looked_for_early, _MESSAGE),
    "sent, pins that move": Mutant(pins_that_move, _MESSAGE),
    "ticket sent, pins that move": Mutant(pins_that_move, _TICKET),
    "ticket of a deleted object, pins that move": Mutant(
        pins_that_move, "deleted object, its ticket sent", deep=True
    ),
}
