"""The operations into which `faults` lets the system fail.

A class per operation: `prepare` makes what it needs, `act` is what meets the faults, `wrong` tells
what is not as it should be once it has succeeded, and `finish` ends all. A new operation is a new
class with the mark `@operation`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

import shmstore
from shmstore import ObjectRef, Store

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
    # Whether this process is no client of the store after it has failed.
    stays_out = True
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


# --- making and joining ---------------------------------------------------------------------------


@operation("create")
class Create(Operation):
    """There is nothing yet."""

    options: ClassVar[dict[str, Any]] = {}

    def prepare(self) -> None:
        """Need nothing."""

    def act(self) -> None:
        """Create."""
        self.store = Store.create(NAME, capacity="2MiB", max_objects=4096, **self.options)

    def wrong(self) -> Iterator[str]:
        """Look whether it can be used."""
        assert self.store is not None
        self.store.update(PUBLISHED)
        yield from super().wrong()


@operation("create prefaulted")
class CreatePrefaulted(Create):
    """All of its pages are reserved."""

    options: ClassVar[dict[str, Any]] = {"prefault": True}


@operation("create in place of a dead store")
class CreateInPlace(Create):
    """A killed process has left a store of that name."""

    undone = False

    def prepare(self) -> None:
        """Let a process die."""
        die_after(make_store)


@operation("open a new store")
class OpenNew(Create):
    """As create, by another door."""

    def act(self) -> None:
        """Open."""
        self.store = Store.open(NAME, capacity="2MiB", max_objects=4096)


@operation("attach")
class Attach(Operation):
    """A store that persists, and that this process does not know yet."""

    def prepare(self) -> None:
        """Make it and leave it."""
        make_store(persist=True).close()

    def act(self) -> None:
        """Attach."""
        self.store = Store.attach(NAME)

    def finish(self) -> None:
        """Destroy it, also if it never was attached."""
        if self.store is None or self.store.readonly:
            if self.store is not None:
                self.store.close()
            self.store = Store.attach(NAME)
        self.store.destroy()


@operation("attach readonly")
class AttachReadonly(Attach):
    """Everything but the seat is mapped for reading."""

    def act(self) -> None:
        """Attach."""
        self.store = Store.attach(NAME, readonly=True)


@operation("open a store that is there")
class OpenThere(Attach):
    """As attach, by another door."""

    def act(self) -> None:
        """Open."""
        self.store = Store.open(NAME)


@operation("attach beside a dead client")
class AttachBesideDead(Attach):
    """Its holder died in the middle of a change."""

    undone = False

    def prepare(self) -> None:
        """Let a process die under the lock."""
        super().prepare()
        die_after(die_in_a_change)


@operation("get by a reference that has come from elsewhere")
class GetByReference(Attach):
    """The process attaches by itself, and stays attached."""

    stays_out = False

    def prepare(self) -> None:
        """Have a reference, but no session."""
        store = make_store(persist=True)
        self.ref: ObjectRef = store.put(LARGE)
        store.close()

    def act(self) -> None:
        """Get."""
        self.got = self.ref.get()

    def wrong(self) -> Iterator[str]:
        """Look at what was got."""
        if not same(self.got, LARGE):
            yield f"got {self.got!r:.60}"
        self.got = None
        self.store = Store.attach(NAME)
        yield from super().wrong()


# --- putting --------------------------------------------------------------------------------------


class Put(Operation):
    """One object more."""

    key: str | None = None
    value: Any = None

    def act(self) -> None:
        """Put."""
        assert self.store is not None
        self.ref = self.store.put(self.value, key=self.key)

    def wrong(self) -> Iterator[str]:
        """Get it."""
        if not same(self.ref.get(), self.value):
            yield f"put {self.value!r:.60}, got {self.ref.get()!r:.60}"
        yield from super().wrong()


@operation("put inline")
class PutInline(Put):
    """It lies in the index."""

    value: Any = ("b", 2)


@operation("put small")
class PutSmall(Put):
    """It has an extent, in pages that there are."""

    value = np.arange(200)

    def prepare(self) -> None:
        """Have warm pages."""
        super().prepare()
        assert self.store is not None
        self.store.put(np.zeros(300)).delete()


@operation("put large")
class PutLarge(Put):
    """Its pages come into being."""

    value = LARGE


@operation("put under a new key")
class PutNamed(Put):
    """The key index grows."""

    key = "new"
    value = LARGE


@operation("overwrite")
class Overwrite(Put):
    """An object of that name is there."""

    key = "mine"
    value = LARGE

    def prepare(self) -> None:
        """Have an older one."""
        super().prepare()
        assert self.store is not None
        self.store["mine"] = [1, 2]

    def wrong_after_failure(self) -> Iterator[str]:
        """The older one stays."""
        assert self.store is not None
        if self.store["mine"] != [1, 2] and not same(self.store["mine"], LARGE):
            yield "the older object is lost"
        yield from super().wrong_after_failure()


@operation("put many")
class PutMany(Operation):
    """All or none; slots, nodes and buckets grow."""

    def act(self) -> None:
        """Put."""
        assert self.store is not None
        self.store.put_many({f"m{i}": self.value(i) for i in range(250)})

    def value(self, i: int) -> Any:
        """Return an object; few of them have an extent, and then pages of their own."""
        return i if i % 25 else np.arange(i + 512)

    def wrong_after_failure(self) -> Iterator[str]:
        """None is there."""
        assert self.store is not None
        if len(self.store) != len(PUBLISHED):
            yield f"{len(self.store)} objects instead of {len(PUBLISHED)}"
        yield from super().wrong_after_failure()

    def wrong(self) -> Iterator[str]:
        """All are there."""
        assert self.store is not None
        if len(self.store) != len(PUBLISHED) + 250:
            yield f"{len(self.store)} objects"
        yield from super().wrong()


@operation("allocate")
class Allocate(Operation):
    """Build in place."""

    def act(self) -> None:
        """Build."""
        assert self.store is not None
        with self.store.allocate(LARGE.shape, LARGE.dtype, key="built") as array:
            array[:] = LARGE
        del array

    def wrong(self) -> Iterator[str]:
        """Get it."""
        assert self.store is not None
        if not same(self.store["built"], LARGE):
            yield "not what was built"
        yield from super().wrong()


@operation("put where others look at deleted objects")
class PutReclaims(Put):
    """Seats of other clients are mapped for the first time, and stay mapped."""

    value = LARGE
    stays_out = False
    looked_at = (LARGE.nbytes, LARGE.nbytes)

    def prepare(self) -> None:
        """Have another client, and deleted objects, one of them looked at."""
        super().prepare()
        assert self.store is not None
        kept, other = self.store.put(LARGE), self.store.put(LARGE)
        self.view = kept.get()
        self.peer = Peer(lambda: None)
        kept.delete()
        other.delete()

    def wrong(self) -> Iterator[str]:
        """The view is what it was."""
        if not same(self.view, LARGE):
            yield "the view has changed"
        yield from super().wrong()

    def finish(self) -> None:
        """End the other client too."""
        self.peer.end()
        del self.view
        super().finish()


# --- getting and deleting -------------------------------------------------------------------------


@operation("first get")
class FirstGet(Attach):
    """The process has mapped the store, but no object of it yet."""

    mode = "shared"

    def prepare(self) -> None:
        """Attach."""
        super().prepare()
        self.store = Store.attach(NAME)

    def act(self) -> None:
        """Get."""
        assert self.store is not None
        self.got = [self.store.get(key, mode=self.mode) for key in PUBLISHED]

    def wrong(self) -> Iterator[str]:
        """Compare."""
        if not all(map(same, self.got, PUBLISHED.values())):
            yield f"got {self.got}"
        self.got = None
        yield from super().wrong()


@operation("first private get")
class FirstPrivateGet(FirstGet):
    """It makes a mapping."""

    mode = "private"


@operation("many views")
class ManyViews(FirstGet):
    """The cells of the seat grow."""

    def act(self) -> None:
        """Get very often."""
        assert self.store is not None
        self.got = [self.store.get(key) for key in PUBLISHED]
        views = [self.store["small"] for _ in range(600)]
        del views


@operation("delete")
class Delete(Operation):
    """Named, and by a reference."""

    def prepare(self) -> None:
        """Have something to delete."""
        super().prepare()
        assert self.store is not None
        self.store["mine"] = LARGE
        self.ref = self.store.put(LARGE)

    def act(self) -> None:
        """Delete."""
        assert self.store is not None
        self.store.delete_many(["mine", self.ref])

    def wrong(self) -> Iterator[str]:
        """Both are gone."""
        assert self.store is not None
        if "mine" in self.store or self.ref in self.store:
            yield "still there"
        yield from super().wrong()


@operation("look at everything")
class Inspect(Operation):
    """Seats are mapped, and stay mapped."""

    stays_out = False

    def prepare(self) -> None:
        """Have another client."""
        super().prepare()
        self.peer = Peer(lambda: None)

    def act(self) -> None:
        """Look."""
        assert self.store is not None
        self.store.stats()
        self.store.objects()
        self.store.clients()
        assert self.store.check() == []

    def finish(self) -> None:
        """End the other client too."""
        self.peer.end()
        super().finish()


# --- ending ---------------------------------------------------------------------------------------


@operation("close, as the owner")
class CloseOwner(Operation):
    """The store goes."""

    undone = False

    def act(self) -> None:
        """Close."""
        assert self.store is not None
        self.store.close()

    def again(self) -> None:
        """Close again if it is not closed; what it could not remove then is removed by others."""
        assert self.store is not None
        self.store.close()
        shmstore.prune()

    def wrong_after_failure(self) -> Iterator[str]:
        """It may be tried again, unless the handle is closed."""
        return iter(())

    def wrong(self) -> Iterator[str]:
        """Nothing is there."""
        if list(self.root.iterdir()):
            yield f"in the root: {list(self.root.rglob('*'))}"

    def finish(self) -> None:
        """Nothing is left to do."""


@operation("destroy")
class Destroy(CloseOwner):
    """The store goes, whoever uses it."""

    def act(self) -> None:
        """Destroy."""
        assert self.store is not None
        self.store.destroy()

    def again(self) -> None:
        """Destroy it if that has not been done."""
        assert self.store is not None
        if not self.store.closed:
            self.store.destroy()
        shmstore.prune()


@operation("close, as the last client")
class CloseLast(CloseOwner):
    """The store goes too."""

    def prepare(self) -> None:
        """Open it."""
        self.store = Store.open(NAME, capacity="2MiB")
        self.store.update(PUBLISHED)


@operation("close a store that persists")
class ClosePersistent(Attach):
    """The seat goes."""

    undone = False

    def prepare(self) -> None:
        """Attach."""
        super().prepare()
        self.store = Store.attach(NAME)

    def act(self) -> None:
        """Close."""
        assert self.store is not None
        self.store.close()

    def wrong_after_failure(self) -> Iterator[str]:
        """The handle is closed."""
        assert self.store is not None
        if not self.store.closed:
            yield "the handle is not closed"

    def wrong(self) -> Iterator[str]:
        """It can be joined, and nobody sits there."""
        self.store = Store.attach(NAME)
        self.store.recover()
        if len(self.store.clients()) != 1:
            yield f"{self.store.clients()}"
        yield from super().wrong()


@operation("close a reader")
class CloseReader(ClosePersistent):
    """A read-only session maps the client table once more."""

    def prepare(self) -> None:
        """Attach."""
        make_store(persist=True).close()
        self.store = Store.attach(NAME, readonly=True)


# --- repairing ------------------------------------------------------------------------------------


@operation("recover")
class Recover(Operation):
    """A client is dead: its pins, its half-made put, its seat."""

    undone = False

    def prepare(self) -> None:
        """Let a client die."""
        super().prepare()
        self.peer = Peer(self._leave_much)
        self.peer.end()

    def _leave_much(self) -> None:
        assert self.store is not None
        self.kept = self.store["large"], self.store.allocate(1000).__enter__()

    def wrong_after_failure(self) -> Iterator[str]:
        """Look only whether it is sound: what the dead have left may still be there."""
        assert self.store is not None
        yield from map(str, self.store.check())

    def act(self) -> None:
        """Recover."""
        assert self.store is not None
        self.store.recover()

    def wrong(self) -> Iterator[str]:
        """Only this process is there."""
        assert self.store is not None
        if len(self.store.clients()) != 1 or len(self.store.objects()) != len(PUBLISHED):
            yield f"{self.store.clients()}, {self.store.objects()}"
        yield from super().wrong()


@operation("mend")
class Mend(Recover):
    """A client died in the middle of a change; this put finds its mark."""

    def prepare(self) -> None:
        """Let it die."""
        self.store = make_store()
        self.peer = Peer(lambda: die_in_a_change(self.store))
        self.peer.end()

    def act(self) -> None:
        """Put."""
        assert self.store is not None
        self.store["mine"] = LARGE

    def wrong(self) -> Iterator[str]:
        """The put is there."""
        assert self.store is not None
        if not same(self.store["mine"], LARGE):
            yield "not what was put"
        self.store.delete("mine")
        self.store.recover()
        yield from super().wrong()


@operation("prune")
class Prune(Create):
    """Two stores of dead processes, and one of a living one."""

    def prepare(self) -> None:
        """Let processes die."""
        die_after(lambda: (make_store("one"), make_store("two")))
        self.store = make_store()

    def act(self) -> None:
        """Prune."""
        shmstore.prune()

    def wrong(self) -> Iterator[str]:
        """Only the living one is there."""
        if [path.name for path in self.root.iterdir()] != [NAME]:
            yield f"{list(self.root.iterdir())}"
        yield from super().wrong()

    # Each store that has gone has gone for good.
    undone = False


@operation("fork")
class Fork(Operation):
    """The child has a seat of its own, or closed handles."""

    undone = False

    def prepare(self) -> None:
        """Have a view."""
        super().prepare()
        assert self.store is not None
        self.view = self.store["large"]
        self.ends: list[int] = []

    def act(self) -> None:
        """Fork, and wait for the child."""
        pid = os.fork()
        if not pid:
            os._exit(self._as_child())
        self.ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _as_child(self) -> int:
        assert self.store is not None
        if not same(self.view, PUBLISHED["large"]):
            return 2
        if not self.store.closed:
            self.store.put(LARGE).delete()
            return 0 if same(self.store["small"], PUBLISHED["small"]) else 3
        return 0

    def wrong(self) -> Iterator[str]:
        """Every child found what it needs."""
        assert self.store is not None
        if set(self.ends) != {0}:
            yield f"children ended with {self.ends}"
        self.store.recover()
        if len(self.store.clients()) != 1:
            yield f"{self.store.clients()}"
        yield from super().wrong()

    def finish(self) -> None:
        """Drop the view."""
        del self.view
        super().finish()


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
