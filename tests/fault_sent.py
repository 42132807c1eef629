"""Views of deleted objects that arrive, for `faults`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
from fault_operations import NAME, PUBLISHED, Operation, Peer, operation, same
from fault_spares import make_roomy

import shmstore
from shmstore import Store, _traveling, tickets

_SENT = np.arange(40_000)


class Arrive(Operation):
    """Another process has put the object, deleted it, and still looks at it."""

    readonly = False

    def prepare(self) -> None:
        """Let it send."""
        reader, writer = os.pipe()
        kept: list[Any] = []

        def send() -> None:
            store = make_roomy()
            view, hold = tickets.deposit(store, _SENT)
            shared = hold.ref.get()
            referred = _traveling.refer(shared, keep=False)
            assert referred is not None
            kept.extend([store, view, shared])
            hold.ref.delete()
            os.write(writer, pickle.dumps((referred[1], hold.ticket())))

        self.peer = Peer(send)
        self.message, self.ticket = pickle.loads(os.read(reader, 1 << 12))
        os.close(reader)
        os.close(writer)
        self.store = Store.attach(NAME, readonly=self.readonly)
        self.store.clients()  # maps their seats

    def act(self) -> None:
        """Receive it."""
        self.got = _traveling.arrive(*self.message)

    def wrong_after_failure(self) -> Iterator[str]:
        """Nothing is pinned."""
        yield from self.pinned(0)

    def wrong(self) -> Iterator[str]:
        """It is what was sent, and pinned."""
        if not same(self.got, _SENT):
            yield f"{self.got!r:.60} has arrived"
        yield from self.pinned(1)

    def pinned(self, pins: int) -> Iterator[str]:
        """Compare how many pins this process has with what it should."""
        assert self.store is not None
        yield from map(str, self.store.check())
        found = [client.pins for client in self.store.clients() if client.own]
        if found != [pins]:
            yield f"this process has {found} pins, should have {pins}"
        small = self.store["small"]
        if not same(small, PUBLISHED["small"]):
            yield f"'small' is {small!r:.60}"

    def finish(self) -> None:
        """Let all go."""
        self.got = None
        assert self.store is not None
        self.store.close()
        self.peer.end()
        shmstore.prune()


operation("receive what is deleted")(Arrive)


@operation("receive what is deleted, read-only")
class ArriveReadonly(Arrive):
    """The table of clients is mapped once more."""

    readonly = True


@operation("redeem what is deleted, read-only")
class RedeemReadonly(ArriveReadonly):
    """By a ticket."""

    def act(self) -> None:
        """Receive it."""
        self.got, _ = tickets.redeem(self.ticket)
