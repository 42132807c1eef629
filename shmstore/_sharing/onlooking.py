"""What has a process instead of pins that only looks at a store?

Concurrency: nothing here is shared.
"""

from __future__ import annotations

from shmstore.errors import ReadOnlyStoreError


class NoPins:
    """In the place of the pins of a process that only looks, and has no seat.

    What it copies out it verifies afterwards; views it cannot have.
    """

    def __init__(self) -> None:
        self.free: list[int] = []
        self.seat = _NoSeat()

    def hold(self, _: int) -> None:
        """Do nothing: who reads a header looks at the slot again when it is copied."""

    def pin(self, _: object, __: int) -> int:
        """Refuse to give a view."""
        raise _only_looks()

    def grow(self) -> int:
        """Refuse to give a view."""
        raise _only_looks()

    def watch(self, _: object) -> None:
        """Do nothing: there is nothing to wait for."""

    def in_use(self) -> int:
        """Return 0."""
        return 0

    def sweep(self) -> None:
        """Do nothing: there is nothing to drop."""


class _NoSeat:
    """In the place of a seat."""

    @property
    def serial(self) -> int:
        """Refuse: nobody sits here."""
        raise _only_looks()

    def close(self) -> None:
        """Do nothing."""


def _only_looks() -> ReadOnlyStoreError:
    return ReadOnlyStoreError(
        "this handle only looks (Store.look), and has no seat that could protect a view. Use "
        "Store.attach to get objects, or to wait for them."
    )
