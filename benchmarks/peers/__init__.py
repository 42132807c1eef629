"""Who is measured?

Each module here adapts one way to share objects and lists its classes in `PEERS`. A module whose
package is not installed is left out, and said to be.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

MODULES = ("floor", "ours", "lmdb", "shared_memory")
FLOOR = "floor"
MEMCPY = "memcpy alone"


class Peer:
    """One way to share objects between processes: the owner's end of it or the reader's.

    What is timed comes as a callable without arguments, made beforehand: what an adapter adds to
    the package that it adapts is then as little as can be.

    Attributes
    ----------
    label : str
        Its name in the tables.
    keyed : bool
        Whether objects have names, so that a put can overwrite.
    gets, puts : bool
        Whether it has a get, a put of its own that is worth timing.
    batches : bool
        Whether it takes many objects at once.
    address : object
        What another process needs to attach; pickles.
    """

    label: ClassVar[str]
    keyed: ClassVar[bool] = False
    gets: ClassVar[bool] = True
    puts: ClassVar[bool] = True
    batches: ClassVar[bool] = False
    address: Any

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Set it up in an empty folder, with room for some objects of `nbytes` in all."""
        raise NotImplementedError

    @classmethod
    def attach(cls, address: Any) -> Self:
        """Open what another process has created, for reading."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of it; the owner also removes what does not lie in its folder."""

    def putter(self, value: object) -> Callable[[], object]:
        """Return what puts `value` and returns a handle; where `keyed`, always under one key."""
        raise NotImplementedError

    def getter(self, handle: Any) -> Callable[[], object]:
        """Return what gets the object of the handle."""
        raise NotImplementedError

    def delete(self, handle: Any) -> None:
        """Remove the object of the handle."""
        raise NotImplementedError

    def many_putter(self, values: Sequence[object]) -> Callable[[], object]:
        """Return what puts all of them at once and returns one handle for all."""
        raise NotImplementedError

    def many_getter(self, handle: Any) -> Callable[[], object]:
        """Return what gets the list of all of them."""
        raise NotImplementedError

    def delete_many(self, handle: Any) -> None:
        """Remove all of them."""
        raise NotImplementedError


def find() -> tuple[list[type[Peer]], list[str]]:
    """Return the peers that can run here, and why others cannot."""
    found: list[type[Peer]] = []
    missing: list[str] = []
    for name in MODULES:
        try:
            found += import_module(f"{__name__}.{name}").PEERS
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return found, missing
