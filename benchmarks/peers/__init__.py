"""Who is measured?

Each module here adapts one way to share objects and lists its classes in `PEERS`. A class says what
package it needs and imports it when it is set up: it may be installed in an environment of its own
(`make bench-peers`), which the processes of this peer then run in. What is not installed is left
out, and said to be.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

from benchmarks.line import MOMENT, Line

MODULES = (
    "floor",
    "ours",
    "lmdb",
    "shared_memory",
    "files",
    "pipes",
    "manager",
    "diskcache",
    "redis",
    "plasma",
    "ray",
    "vineyard",
    "ultradict",
    "iceoryx2",
)
FLOOR = "floor"
MEMCPY = "memcpy alone"
SMALL_NBYTES = 1024
BLOCK = 512  # the unit of st_blocks
ENVIRONMENTS = Path(__file__).resolve().parent.parent.parent / ".venv-peers"


class Peer:
    """One way to share objects between processes: one process's end of it.

    An adapter needs `create`, `attach`, `put`, `get` and `delete`. What is timed comes as a
    callable without arguments, made beforehand (`putter`, `getter`): one that is about as fast as
    ours overrides these, so that what is timed is the package and not the adapter.

    Attributes
    ----------
    label : str
        Its name in the tables.
    package : str
        What has to be importable.
    requires : tuple of str
        What pip installs for it in an environment of its own.
    keyed : bool
        Whether objects have names, so that a put can overwrite.
    gets, puts : bool
        Whether it has a get, a put of its own that is worth timing.
    batches : bool
        Whether it takes many objects at once.
    shared : bool
        Whether many processes can put into it and get from it at once.
    hands : bool
        Whether it is worth while to hand objects over by it.
    own_consumer : bool
        Whether it starts the process that it hands objects over to.
    fresh : bool
        Whether it can be set up in no time, over and over.
    copies : float
        How often an object lies in memory at once, at most, in all processes.
    largest : int
        The size of the largest object that is worth the time.
    address : object
        What another process needs to attach; pickles.
    line : Line
        By which two processes tell each other something, where the peer has nothing for that.
    folder : Path
        Where it lies, if that can be said.
    crowds : bool
        Whether it is worth while to start eight processes of it.
    numbered : bool
        Whether it is meant for a million objects.
    lacks : tuple of str
        Packages whose objects it refuses, or does not give back.
    """

    label: ClassVar[str]
    package: ClassVar[str] = "numpy"
    requires: ClassVar[tuple[str, ...]] = ()
    keyed: ClassVar[bool] = False
    gets: ClassVar[bool] = True
    puts: ClassVar[bool] = True
    batches: ClassVar[bool] = False
    shared: ClassVar[bool] = True
    crowds: ClassVar[bool] = True
    hands: ClassVar[bool] = True
    own_consumer: ClassVar[bool] = False
    numbered: ClassVar[bool] = False
    fresh: ClassVar[bool] = True
    lacks: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[float] = 4.0
    largest: ClassVar[int] = 512 << 20
    address: Any
    line: Line
    folder: Path

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Set it up in an empty folder, with room for some objects of `nbytes` in all."""
        raise NotImplementedError

    @classmethod
    def attach(cls, address: Any) -> Self:
        """Open what another process has created."""
        raise NotImplementedError

    @classmethod
    def create_for(cls, folder: Path, count: int) -> Self:
        """Set it up with room for so many small objects, and some more."""
        return cls.create(folder, count * SMALL_NBYTES)

    @classmethod
    def create_bounded(cls, folder: Path, nbytes: int) -> Self:
        """Set it up with room for so many bytes and no more."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of it; the owner also removes what does not lie in its folder."""

    def put(self, value: object, key: str) -> Any:
        """Put an object and return its handle; without names, the key need not be used."""
        raise NotImplementedError

    def get(self, handle: Any) -> object:
        """Get the object of a handle."""
        raise NotImplementedError

    def delete(self, handle: Any) -> None:
        """Remove the object of a handle."""
        raise NotImplementedError

    def dump(self, handle: Any) -> bytes:
        """Return what brings a handle to another process."""
        return pickle.dumps(handle)

    def load(self, dumped: bytes) -> Any:
        """Return the handle."""
        return pickle.loads(dumped)

    # --- many objects ---

    def put_named(self, values: dict[str, object]) -> list[Any]:
        """Put objects, at once where that can be done; return their handles."""
        return [self.put(value, key) for key, value in values.items()]

    def held_nbytes(self) -> int:
        """Return the shared memory that it occupies."""
        return tree_nbytes(self.folder)

    # --- handing over; see the workload `handoff` ---

    def hand_over(self, value: object, key: str) -> Any:
        """Put an object and tell the other process; return its handle."""
        handle = self.put(value, key)
        self.line.send(self.dump(handle))
        return handle

    def take(self, key: str) -> object:
        """Wait for what is handed over, and get it."""
        del key
        return self.get(self.load(self.line.receive()))

    def answer(self, key: str, read_at: int) -> None:
        """Say that it was read, and when."""
        del key
        self.line.send(MOMENT.pack(read_at))

    def answered(self, key: str) -> int:
        """Wait for that; return when it was read."""
        del key
        return MOMENT.unpack(self.line.receive())[0]

    # --- as callables without arguments ---

    def putter(self, value: object, key: str = "sample") -> Callable[[], object]:
        """Return what puts `value` and returns a handle; where `keyed`, always under one key."""
        return partial(self.put, value, key)

    def getter(self, handle: Any) -> Callable[[], object]:
        """Return what gets the object of the handle."""
        return partial(self.get, handle)

    def many_putter(self, values: Sequence[object]) -> Callable[[], object]:
        """Return what puts all of them at once and returns one handle for all."""
        raise NotImplementedError

    def many_getter(self, handle: Any) -> Callable[[], object]:
        """Return what gets the list of all of them."""
        raise NotImplementedError

    def delete_many(self, handle: Any) -> None:
        """Remove all of them."""
        raise NotImplementedError


def tree_nbytes(folder: Path) -> int:
    """Return the bytes that the files below a folder really occupy."""
    return sum(path.stat().st_blocks * BLOCK for path in folder.rglob("*"))


@dataclass(frozen=True, slots=True)
class Found:
    """A peer that can run, and the Python that can run it."""

    kind: type[Peer]
    python: str

    @property
    def label(self) -> str:
        """The name of the peer."""
        return self.kind.label

    def has(self, package: str) -> bool:
        """Return whether another package is installed beside it, and it takes its objects."""
        return package not in self.kind.lacks and _has(self.python, package)


def environment_of(kind: type[Peer]) -> Path:
    """Return the folder of the environment that a peer may have to itself."""
    return ENVIRONMENTS / kind.__module__.rpartition(".")[2]


def every() -> Iterator[type[Peer]]:
    """Give all adapters."""
    for name in MODULES:
        yield from import_module(f"{__name__}.{name}").PEERS


def find() -> tuple[list[Found], list[str]]:
    """Return the peers that can run here, and why others cannot."""
    found: list[Found] = []
    missing: dict[str, str] = {}
    for kind in every():
        own = environment_of(kind) / "bin" / "python"
        for python in (sys.executable, str(own)):
            if _has(python, kind.package):
                found.append(Found(kind, python))
                break
        else:
            missing[kind.package] = f"{kind.label}: {kind.package} is not installed"
    return found, list(missing.values())


@cache
def _has(python: str, package: str) -> bool:
    if python == sys.executable and "." not in package:
        return find_spec(package) is not None
    if not Path(python).exists():
        return False
    asked = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", asked], check=False, capture_output=True).returncode == 0
