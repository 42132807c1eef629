"""Would the kill matrix notice? Stores that lack one of the things which make them recover.

Each weakening is made in the process that forks those who are killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shmstore import _recovery
from shmstore._catalog.slots import Slots
from shmstore._sharing.clients import Clients
from shmstore._sharing.lock import StoreLock


def no_mark() -> None:
    """Nothing tells that a change is under way."""
    run = StoreLock.run

    def unmarked(self: StoreLock, *args: Any) -> Any:
        self.mark = 0
        return run(self, *args)

    StoreLock.run = unmarked  # type: ignore[method-assign, assignment]


def no_mending() -> None:
    """What tells that a change was cut short is not heeded."""
    _recovery.mend = lambda session: None  # noqa: ARG005


def half_made_puts_stay() -> None:
    """Nobody asks whether who was putting lives."""
    _recovery._doom_abandoned = lambda session: 0  # noqa: ARG005


def dead_clients_stay() -> None:
    """Their seats and pins are never taken back."""
    Clients.bury = lambda self, own_row: []  # type: ignore[method-assign] # noqa: ARG005


def stray_seats_stay() -> None:
    """The file of who died before its row was there is left."""
    Clients.remove_strays = lambda self: None  # type: ignore[method-assign] # noqa: ARG005


def deleted_stay_for_ever() -> None:
    """What nobody looks at any more is not given back."""
    Slots.take_unpinned = lambda self, *_: []  # type: ignore[method-assign] # noqa: ARG005


# What is weakened, and an operation in which that must be noticed.
WEAKENINGS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "no mark": (no_mark, "overwrite"),
    "no mending": (no_mending, "overwrite"),
    "half-made puts stay": (half_made_puts_stay, "put in fresh memory"),
    "dead clients stay": (dead_clients_stay, "put in a slot"),
    "stray seats stay": (stray_seats_stay, "attach"),
    "deleted stay for ever": (deleted_stay_for_ever, "overwrite"),
}
