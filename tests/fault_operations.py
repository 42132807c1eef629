"""The operations into which `faults` lets the system fail: what they share.

A class per operation: `prepare` makes what it needs, `act` is what meets the faults, `wrong` tells
what is not as it should be once it has succeeded, and `finish` ends all. A new operation is a new
class with the mark `@operation`, in `fault_stores` or `fault_objects`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from shmstore import Store

NAME: Final = "s"
PUBLISHED: Final = {
    "inline": {"a": 1},
    "small": np.arange(100),
    "large": np.arange(40_000),
}
LARGE: Final = np.arange(50_000)

OPERATIONS: dict[str, type[Operation]] = {}


def operation(name: str) -> Callable[[type[Operation]], type[Operation]]:
    """Enter a class into the table under a name."""

    def enter(cls: type[Operation]) -> type[Operation]:
        OPERATIONS[name] = cls
        return cls

    return enter


def make_store(name: str = NAME, **options: Any) -> Store:
    """Make a store that holds what must not be lost."""
    store = Store.create(name, capacity="2MiB", lock_timeout=1, max_objects=4096, **options)
    store.update(PUBLISHED)
    return store


def wrong_with(store: Store, looked_at: int = 0) -> Iterator[str]:
    """Tell what is wrong with a store: unsound, something lost, bytes not given back."""
    yield from map(str, store.check())
    for key, value in PUBLISHED.items():
        found = store.get(key, None)
        if not same(found, value):
            yield f"{key!r} is {found!r:.60}"
    del found
    session: Any = store._session
    session.lock.run(session.reclaim_all)
    lost = store.stats().used - sum(info.stored_nbytes for info in store.objects())
    if lost != looked_at and not store.readonly:
        yield f"{lost:,} bytes belong to no object, {looked_at:,} are looked at"


def same(found: Any, value: Any) -> bool:
    """Return whether an object came back as it was put."""
    return type(found) is type(value) and bool(np.all(found == value))


class Operation:
    """A store that holds something, in this process; nothing else is done to it."""

    # Whether a failed operation leaves all files as they were before.
    undone = True

    @property
    def stays_out(self) -> bool:
        """Whether this process holds no more of the store after it has failed than before."""
        return True

    # How many bytes of deleted objects somebody looks at, before and after.
    looked_at = (0, 0)

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store: Store | None = None
        self.got: Any = None

    def prepare(self) -> None:
        """Make what the operation needs."""
        self.store = make_store()

    def act(self) -> None:
        """Do what meets the faults."""
        raise NotImplementedError

    def again(self) -> None:
        """Do it once more after it has failed."""
        self.act()

    def wrong_after_failure(self) -> Iterator[str]:
        """Tell what is wrong after it has failed and before it is done once more."""
        if self.store is not None:
            yield from wrong_with(self.store, self.looked_at[0])

    def wrong(self) -> Iterator[str]:
        """Tell what is wrong after it has succeeded."""
        assert self.store is not None
        yield from wrong_with(self.store, self.looked_at[1])

    def finish(self) -> None:
        """End all."""
        self.got = None
        if self.store is not None:
            self.store.destroy()


# --- other processes ------------------------------------------------------------------------------


class Peer:
    """A forked process that is a client, does something, and then waits for its end."""

    def __init__(self, act: Callable[[], Any]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                act()
                os.write(writer, b".")
                signal.pause()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)

    def end(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def die_after(act: Callable[[], Any]) -> None:
    """Let a process do something and be killed."""
    kept: list[Any] = []
    Peer(lambda: kept.append(act())).end()


def die_in_a_change(store: Store | None = None) -> None:
    """Be killed under the lock, with the tables half changed."""
    store = Store.attach(NAME) if store is None else store
    session: Any = store._session
    session.lock.run(lambda: os.kill(os.getpid(), signal.SIGKILL))
