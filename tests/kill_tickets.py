"""Where is a process when it is killed that lends objects to others (`shmstore.tickets`)?"""

from __future__ import annotations

from typing import Any

from kill_scenes import LARGE, Scene

from shmstore import tickets


def lend(scene: Scene) -> None:
    """Put objects that others get by tickets."""
    scene.held += [tickets.deposit(scene.store, LARGE[:nbytes]) for nbytes in (300_000, 200_000)]


def attach_and_lend(scene: Scene) -> None:
    """Do so in peace."""
    scene.attach()
    lend(scene)


def take_back(scene: Scene) -> None:
    """Delete what others have got by their tickets, or are about to."""
    sent = [_ticket(hold) for _, hold in scene.held]
    taken = [tickets.redeem(ticket) for ticket in sent]
    for _, hold in scene.held:
        hold.ref.delete()
    taken += [tickets.redeem(ticket) for ticket in sent]
    scene.held.clear()


def _ticket(hold: tickets.Hold) -> Any:
    ticket = hold.ticket()
    assert ticket is not None
    return ticket


def delete_orphans(scene: Scene) -> None:
    """Delete what those had put who have gone."""
    tickets.delete_orphans(scene.store)
