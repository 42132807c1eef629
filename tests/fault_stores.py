"""Making, joining, leaving and ending stores, for `faults`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from fault_operations import (
    LARGE,
    NAME,
    PUBLISHED,
    Operation,
    die_after,
    die_in_a_change,
    make_store,
    operation,
    same,
)

import shmstore
from shmstore import ObjectRef, Store

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

    @property
    def stays_out(self) -> bool:
        """It does not matter what it holds."""
        return False

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


# --- ending ---------------------------------------------------------------------------------------


@operation("close, as the owner")
class CloseOwner(Operation):
    """The store goes."""

    undone = False

    @property
    def stays_out(self) -> bool:
        """Whether the handle is closed; otherwise it may be closed again."""
        return self.store is None or self.store.closed

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
        """It may be tried again, unless the handle is closed."""
        return iter(())

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
