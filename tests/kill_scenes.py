"""Where is a process when it is killed? The scenes of the kill matrix, and who else is in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from kill_points import die, machine

import shmstore
from shmstore import Store, StoreClosedError, StoreFullError
from shmstore._memory import layout as L

NAME: Final = "s"
MIB: Final = 1 << 20

OLD, NEW = np.full(3000, 1, np.uint8), np.full(5000, 2, np.uint8)
LARGE = np.full(400_000, 3, np.uint8)
IN_PIECES = np.arange(160_000, dtype=np.int32)[::2]
LONG_KEY = "a key that does not fit into a slot, " * 8


@dataclass
class Scene:
    """Where an operation takes place.

    Attributes
    ----------
    root
        The folder of the stores.
    group
        The group that shares the stores.
    refs
        The objects without names that the template has made.
    store
        The actor's handle.
    held
        What the actor keeps alive.
    forked
        The actor's own child, 0 in the child.
    """

    root: Path
    group: int | None = None
    refs: list[Any] = field(default_factory=list)
    store: Any = None
    held: list[Any] = field(default_factory=list)
    forked: int = -1

    @property
    def spill_dir(self) -> Path:
        """Where objects go for which there is no memory."""
        return self.root.parent / "spilled"

    def create(self, name: str = NAME, **options: Any) -> Store:
        """Make a store, a small one."""
        options = {"capacity": MIB, "max_objects": 512, "max_clients": 16, **options}
        self.store = Store.create(name, root=self.root, group=self.group, **options)
        return self.store

    def attach(self, name: str = NAME, **options: Any) -> Store:
        """Join the store."""
        where = {"root": self.root, "group": self.group, "lock_timeout": 10}
        self.store = Store.attach(name, **where, **options)
        return self.store

    def prune(self) -> None:
        """Remove stores of the dead."""
        shmstore.prune(self.root, group=self.group)


# --- templates ------------------------------------------------------------------------------------


def furnish(scene: Scene, store: Store) -> None:
    """Put objects of all kinds, between memory that is free in pieces."""
    warm = store.put(np.full(200_000, 9, np.uint8))
    small = [store.put(np.full(3000, value, np.uint8)) for value in range(6)]
    store.update({"k": OLD, "l": OLD, "p": [1], "text": "t" * 2000, LONG_KEY: (1, 2)})
    store.put({"a": OLD, "b": NEW[:7]}, key="kept")
    store.put(b"\0" * 9000, key="packed", compression="zlib")
    store.delete_many([warm, *small[::2]])
    store.put(("anonymous", 1))
    scene.refs += small[1::2]


def furnished(scene: Scene) -> None:
    """A store that persists, with objects of all kinds."""
    store = scene.create(persist=True)
    furnish(scene, store)
    store.close()


def locked(scene: Scene) -> None:
    """The same, where readers take the lock."""
    store = scene.create(persist=True, locked_reads=True)
    furnish(scene, store)
    store.close()


def traced(scene: Scene) -> None:
    """The same, where it is noted which line of a program looks at what."""
    store = scene.create(persist=True, trace_pins=True)
    furnish(scene, store)
    store.close()


def backed(scene: Scene) -> None:
    """The same, where all memory was reserved at creation."""
    store = scene.create(persist=True, prefault=True)
    furnish(scene, store)
    store.close()


def zeroed(scene: Scene) -> None:
    """The same, where memory that is given back is made zero."""
    store = scene.create(persist=True, zero_on_free=True)
    furnish(scene, store)
    store.close()


def summed(scene: Scene) -> None:
    """The same, where objects have checksums."""
    store = scene.create(persist=True, checksum=True)
    furnish(scene, store)
    store.close()


def timed(scene: Scene) -> None:
    """The same, with objects whose time is over, and some whose time comes much later."""
    store = scene.create(persist=True, ttl=3600)
    furnish(scene, store)
    over = {f"over {number}": np.full(100_000, 7, np.uint8) for number in range(4)}
    store.put_many({**over, "over": [7]}, ttl=1e-6)
    store.close()


def evicting(scene: Scene) -> None:
    """A full store that lets go what was not used for longest."""
    store = scene.create(persist=True, capacity="64KiB", max_objects=24, on_full="evict")
    store.put({"a": OLD, "b": NEW[:7]}, key="kept")
    store.update({"p": [1], "k": OLD})
    while store.stats().largest_free >= OLD.nbytes:
        scene.refs.append(store.put(np.full(3000, len(scene.refs), np.uint8)))
    store.get(scene.refs[2])
    store.close()


def create_spilling(scene: Scene, **options: Any) -> Store:
    """Make a small store that moves to files what was not used for longest."""
    options = {"capacity": "64KiB", "on_full": "spill", "spill_dir": scene.spill_dir, **options}
    return scene.create(**options)


def fill_and_spill(scene: Scene, store: Store) -> None:
    """Put more than there is memory for: what comes first goes into files."""
    store.put({"a": OLD, "b": NEW[:7]}, key="kept")
    store.update({"p": [1], "k": OLD})
    store["large"] = LARGE[:100_000]
    scene.refs += [store.put(np.full(3000, value, np.uint8)) for value in range(23)]


def spilling(scene: Scene) -> None:
    """A full store, and objects of it in files."""
    store = create_spilling(scene, persist=True)
    fill_and_spill(scene, store)
    store.close()


def spilling_summed(scene: Scene) -> None:
    """The same, with checksums."""
    store = create_spilling(scene, persist=True, checksum=True)
    fill_and_spill(scene, store)
    store.close()


def spilling_owned(scene: Scene) -> None:
    """The same, of which the owner was killed."""
    killed(scene, lambda: fill_and_spill(scene, create_spilling(scene)))


def let_others_die_spilling(scene: Scene) -> None:
    """Let clients die while they move objects to files, and back."""
    attach = partial(Store.attach, NAME, root=scene.root)
    killed(scene, lambda: attach().put(NEW), "spill_files.SpillFiles.write", 2)
    killed(scene, lambda: attach().put(NEW), "spill_files.SpillFiles.commit")


def spilling_dirty(scene: Scene) -> None:
    """The same, where others have died in the middle of moving objects."""
    spilling(scene)
    let_others_die_spilling(scene)


def empty(scene: Scene) -> None:
    """A store that never held anything."""
    scene.create(persist=True).close()


def crowded(scene: Scene) -> None:
    """A store whose key index and slot table grow with the next object."""
    store = scene.create(persist=True)
    store.update({str(number): number for number in range(64)})
    words = store._session.words
    while (words[L.W_SLOT_TOP] + 1) * L.SLOT_NBYTES <= words[L.W_SLOTS_RESERVED]:
        store.put(0)
    store.close()


def full(scene: Scene) -> None:
    """A store without room."""
    store = scene.create(persist=True, capacity="64KiB")
    with contextlib.suppress(StoreFullError):
        while True:
            scene.refs.append(store.put(OLD))
    store.close()


def one_seat(scene: Scene) -> None:
    """A store that takes one client."""
    store = scene.create(persist=True, max_clients=1)
    store["k"] = OLD
    store.close()


def killed(scene: Scene, task: Callable[[], Any], place: str = "", hit: int = 1) -> None:
    """Let a process die in a task: at a point or in a function, or when it comes to the end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"nobody came to {place}, hit {hit}"
        return
    try:
        if place:
            machine.arm((place, hit))
        task()
        if not place:
            die()
    finally:
        os._exit(1)


def owned(scene: Scene) -> None:
    """A store that nobody has, since its owner was killed."""
    killed(scene, lambda: furnish(scene, scene.create()))


def two_owned(scene: Scene) -> None:
    """Two of them."""
    owned(scene)
    killed(scene, lambda: scene.create("t"))


def cut_short(scene: Scene) -> None:
    """Folders of stores that were being made and removed."""
    killed(scene, scene.create, "folder.rename")
    killed(scene, lambda: scene.create().destroy(), "removal._remove", 2)


def nothing(scene: Scene) -> None:
    """No store."""


def attach_and_damage(scene: Scene) -> None:
    """Be there when the index is overwritten: an object, a copy of another, a row, a count."""
    session: Any = scene.attach()._session
    words, at = session.words, session.slots.state_index
    lost, copied = (at(scene.store._ref_of(key)._slot) for key in ("l", "p"))
    words[lost + L.S_DATA_NBYTES] += 64
    copy = at(words[L.W_SLOT_TOP] - 1)
    words[copy : copy + L.SLOT_WORDS] = words[copied : copied + L.SLOT_WORDS]
    words[session.index.geometry.clients + session.row * L.CLIENT_WORDS + L.C_SERIAL] = 0
    words[L.W_SLOTS_RESERVED] += 1


def inhabited(scene: Scene) -> None:
    """A store with what dead clients have left: pins, half-made puts, seats."""
    furnished(scene)
    let_others_die(scene)


def let_others_die(scene: Scene) -> None:
    """Let clients die that look at a deleted object, and are in the middle of two puts."""

    def look_and_build() -> None:
        store = Store.attach(NAME, root=scene.root)
        scene.held += [store["l"], store.get("kept")]
        store.delete("l")
        scene.held.append(store.allocate(3000, "u1", key="half"))
        scene.held[-1].__enter__()
        store.put(LARGE, key="more")

    killed(scene, look_and_build, "allocator.Allocator.mark_warm")
    killed(scene, lambda: Store.attach(NAME, root=scene.root))


def attach_to_die_among(scene: Scene) -> None:
    """Be there when others die."""
    scene.attach()
    let_others_die(scene)


def dirty(scene: Scene) -> None:
    """A store whose tables contradict each other, since somebody was killed in a change."""
    inhabited(scene)
    let_one_die_in_a_change(scene)


def let_one_die_in_a_change(scene: Scene) -> None:
    """Let a client die between the two steps of an overwrite."""
    task = lambda: Store.attach(NAME, root=scene.root).put(NEW, key="p")  # noqa: E731
    killed(scene, task, "slots.Slots.doom")


def dirty_seats(scene: Scene) -> None:
    """A store with a seat file that no row names."""
    furnished(scene)
    killed(scene, scene.attach, "clients.Clients.register", 3)


# --- bystanders: run to the yield, live on, and look again when the actor is dead -----------------

Bystander = Callable[[Scene], Iterator[None]]


def sits(scene: Scene) -> Iterator[None]:
    """Be attached, and work on afterwards."""
    store = scene.attach()
    yield
    with contextlib.suppress(StoreClosedError):
        store["bystander"] = NEW
        assert store["bystander"].sum() == NEW.sum()
        store.delete("bystander")
    store.close()


def looks(scene: Scene) -> Iterator[None]:
    """Look at objects whose memory must not be used again."""
    store = scene.attach()
    views = [store["k"], store["kept"]["a"][5:], store.get(scene.refs[0], mode="readonly")]
    before = [view.copy() for view in views]
    yield
    assert all(map(np.array_equal, views, before)), "a view of a living process has changed"
    views.clear()
    store.close()


def looks_at_deleted(scene: Scene) -> Iterator[None]:
    """The same, when they have been deleted."""
    looking = looks(scene)
    next(looking)
    scene.store.delete_many(["k", "kept", scene.refs[0]])
    yield
    next(looking, None)
