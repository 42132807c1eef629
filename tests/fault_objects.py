"""What is done with objects, and repairs, for `faults`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from fault_operations import (
    LARGE,
    NAME,
    PUBLISHED,
    Operation,
    Peer,
    die_after,
    die_in_a_change,
    make_store,
    operation,
    same,
)
from fault_stores import Attach, Create

import shmstore
from shmstore import Store

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
        if not any(same(self.store["mine"], value) for value in ([1, 2], LARGE)):
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

    @property
    def stays_out(self) -> bool:
        """It does not matter what it holds."""
        return False

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

    @property
    def stays_out(self) -> bool:
        """It does not matter what it holds."""
        return False

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
            code = 4
            try:
                code = self._as_child()
            except KeyboardInterrupt:  # of `faults`, in the child: it ends
                code = 0
            finally:
                os._exit(code)
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
