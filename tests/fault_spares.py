"""Objects that come and go without the lock, for `faults`.

In stores so large that slots and extents are set aside for this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from fault_objects import Fork
from fault_operations import NAME, PUBLISHED, Operation, Peer, operation, same
from fault_stores import CloseOwner

import shmstore
from shmstore import ObjectRef, Store, StoreFullError, _spares
from shmstore._catalog import states
from shmstore._memory import layout as L

_MANY = 1 << 14
_ARRAY = np.arange(500)


def make_roomy(**options: Any) -> Store:
    """Make a store of which this process has slots and extents for itself."""
    options = {"capacity": "32MiB", "lock_timeout": 1, "max_objects": _MANY, **options}
    store = Store.create(NAME, **options)
    store.update(PUBLISHED)
    fill_spares(store)
    return store


def fill_spares(store: Store) -> None:
    """Have slots, and extents of one size, set aside."""
    session: Any = store._session
    for number in range(3):
        store.delete(store.put(number))
    for ref in [store.put(_ARRAY) for _ in range(24)]:
        store.delete(ref)
    assert session.spares.small.top
    assert session.spares.nbytes


class Roomy(Operation):
    """Puts and deletes take no lock, mostly."""

    def prepare(self) -> None:
        """Have slots."""
        self.store = make_roomy()

    def wrong_after_failure(self) -> Iterator[str]:
        """What is set aside is known to whom it belongs."""
        yield from self.unknown()
        yield from super().wrong_after_failure()

    def wrong(self) -> Iterator[str]:
        """What is set aside is known to whom it belongs."""
        yield from self.unknown()
        yield from super().wrong()

    def unknown(self) -> Iterator[str]:
        """Compare what this process knows with what the slots say."""
        assert self.store is not None
        session: Any = self.store._session
        if session is None:
            return
        session.lock.run(_spares.settle, session)
        table = session.slots.table()
        spare = states.states_of(table[:, L.S_STATE]) == states.SPARE
        spare &= table[:, L.S_OWNER] == np.uint64(session.spares.serial)
        own = set(spare.nonzero()[0].tolist())
        entries = [e[0] for pile in session.spares.piles.values() for e in pile.slots[: pile.top]]
        if sorted(entries) != sorted(own):
            yield f"the slots {sorted(own)} are set aside, {sorted(entries)} are known"
        told = session.words[session.spares.row + L.C_SPARES] & L.SPARE_MASK
        if told != len(own):
            yield f"{len(own)} slots are set aside, {told} are told"


@operation("put inline without the lock")
class PutOwn(Roomy):
    """Into a slot that is set aside."""

    value: Any = ("b", 2)

    def act(self) -> None:
        """Put."""
        assert self.store is not None
        self.ref = self.store.put(self.value)

    def wrong(self) -> Iterator[str]:
        """Get it."""
        if not same(self.ref.get(), self.value):
            yield f"put {self.value!r:.60}, got {self.ref.get()!r:.60}"
        yield from super().wrong()


@operation("put small without the lock")
class PutSmallOwn(PutOwn):
    """Into an extent that is filled anew."""

    value = _ARRAY


@operation("delete inline without the lock")
class DeleteOwn(Roomy):
    """It lies in its slot, and this process has put it."""

    value: Any = ("b", 2)

    def prepare(self) -> None:
        """Put it."""
        super().prepare()
        assert self.store is not None
        self.ref = self.store.put(self.value)

    def act(self) -> None:
        """Delete it."""
        assert self.store is not None
        self.store.discard(self.ref)

    def wrong(self) -> Iterator[str]:
        """It is gone."""
        assert self.store is not None
        if self.ref in self.store:
            yield "it is there"
        yield from super().wrong()


@operation("delete small without the lock")
class DeleteSmallOwn(DeleteOwn):
    """It has an extent."""

    value = _ARRAY


@operation("put and delete many without the lock")
class ManyOwn(Roomy):
    """More than is set aside at once, and than is kept."""

    def act(self) -> None:
        """Put and delete."""
        assert self.store is not None
        refs: list[ObjectRef] = []
        try:
            refs += [self.store.put(number) for number in range(300)]
            refs += [self.store.put(_ARRAY) for _ in range(60)]
        finally:
            for ref in refs:
                ref.delete()


@operation("delete what others could take back")
class DeleteOfOthers(Roomy):
    """Their right is taken away."""

    def prepare(self) -> None:
        """Let another process put."""
        super().prepare()
        assert self.store is not None

        def put() -> None:
            other = Store.attach(NAME)
            fill_spares(other)
            kept.extend([other.put("theirs"), other.put(_ARRAY)])

        kept: list[ObjectRef] = []
        self.peer = Peer(put)
        self.refs = [info.ref for info in self.store.objects() if info.key is None]

    def act(self) -> None:
        """Delete."""
        assert self.store is not None
        self.store.delete_many(self.refs)

    def finish(self) -> None:
        """End it."""
        self.peer.end()
        super().finish()


@operation("bury one who had slots")
class BuryOwner(Roomy):
    """What was set aside for it comes back."""

    undone = False

    def prepare(self) -> None:
        """Let another process die."""
        super().prepare()
        Peer(lambda: fill_spares(Store.attach(NAME))).end()

    def act(self) -> None:
        """Bury it."""
        assert self.store is not None
        self.store.recover()

    def wrong(self) -> Iterator[str]:
        """Only what is of this process is set aside."""
        assert self.store is not None
        session: Any = self.store._session
        found = states.states_of(session.slots.table()[:, L.S_STATE]) == states.SPARE
        if int(found.sum()) != session.spares.count & L.SPARE_MASK:
            yield f"{int(found.sum())} slots are set aside"
        yield from super().wrong()


@operation("fill a store in which much is set aside")
class FillRoomy(Roomy):
    """Extents come back when there is no room."""

    undone = False

    def prepare(self) -> None:
        """Let another process keep extents, too."""
        super().prepare()
        self.peer = Peer(lambda: fill_spares(Store.attach(NAME)))
        assert self.store is not None
        self.store.clients()  # maps their seats

    def act(self) -> None:
        """Fill it, and make room again."""
        assert self.store is not None
        refs: list[ObjectRef] = []
        large = np.zeros(1 << 17)
        try:
            while True:
                refs.append(self.store.put(large))
        except StoreFullError:
            pass
        finally:
            self.store.delete_many(refs)

    def wrong(self) -> Iterator[str]:
        """It was full to the last extent of that size."""
        assert self.store is not None
        session: Any = self.store._session
        session.lock.run(session.reclaim_all)
        yield from super().wrong()

    def wrong_after_failure(self) -> Iterator[str]:
        """Objects that were put may stay: nobody has a reference."""
        assert self.store is not None
        yield from map(str, self.store.check())
        yield from self.unknown()
        self.store.delete_many([i.ref for i in self.store.objects() if i.key is None])

    def finish(self) -> None:
        """End it."""
        self.peer.end()
        super().finish()


@operation("leave with slots set aside")
class LeaveWithSpares(CloseOwner):
    """They come back."""

    def prepare(self) -> None:
        """Attach to a store that another process has made."""
        make_roomy(persist=True).close()
        self.store = Store.attach(NAME)
        fill_spares(self.store)

    def wrong(self) -> Iterator[str]:
        """Nothing is set aside for anybody."""
        other = Store.attach(NAME)
        session: Any = other._session
        other.recover()
        found = states.are_set_aside(session.slots.table()[:, L.S_STATE])
        if found.any():
            yield f"{int(found.sum())} slots are set aside for nobody"
        yield from map(str, other.check())
        other.destroy()

    def finish(self) -> None:
        """Destroy it."""
        shmstore.prune()


@operation("fork with slots set aside")
class ForkWithSpares(Fork):
    """The child has none of them."""

    def prepare(self) -> None:
        """Have slots and a view."""
        self.store = make_roomy()
        self.view = self.store["large"]
        self.ends = []

    def _as_child(self) -> int:
        assert self.store is not None
        if not self.store.closed:
            refs = [self.store.put(("child", number)) for number in range(20)]
            if [ref.get() for ref in refs] != [("child", number) for number in range(20)]:
                return 5
            for ref in refs:
                ref.delete()
        return super()._as_child()
