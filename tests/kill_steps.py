"""What does a process do in which, or before which, it is killed?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from kill_points import machine
from kill_scenes import (
    LARGE,
    LONG_KEY,
    MIB,
    NAME,
    NEW,
    OLD,
    Scene,
    create_spilling,
    fill_and_spill,
    furnish,
    killed,
    let_others_die_spilling,
)

import shmstore
from shmstore import Store, StoreFullError
from shmstore import _process as process


def build(scene: Scene) -> None:
    """Build an array in place."""
    with scene.store.allocate(1000, "u1", key="k") as array:
        array[:] = 2


def build_sealed(scene: Scene) -> None:
    """Build an array in place that nobody may write to afterwards."""
    with scene.store.allocate(1000, "u1", key="k", readonly=True) as array:
        array[:] = 2


def attach_and_delete(scene: Scene) -> None:
    """Be where memory is free that was used before."""
    store = scene.attach()
    store.delete_many([store.put(LARGE), "k", scene.refs[1]])


def attach_and_delete_few(scene: Scene) -> None:
    """Be where fewer slots are free than are needed, in a list."""
    store = scene.attach()
    store.delete_many([store.put((number,)) for number in range(2)])


def build_half(scene: Scene) -> None:
    """Begin to build an array, and give up."""
    with contextlib.suppress(ZeroDivisionError), scene.store.allocate(500_000, "u1", key="k"):
        raise ZeroDivisionError


def build_large(scene: Scene) -> None:
    """Build an array that memory has no room for."""
    with scene.store.allocate(300_000, "u1", key="k", readonly=True) as array:
        array[:] = 2


def build_large_half(scene: Scene) -> None:
    """Begin to build such an array, and give up."""
    with contextlib.suppress(ZeroDivisionError), scene.store.allocate(300_000, "u1", key="k"):
        raise ZeroDivisionError


def look(scene: Scene) -> None:
    """Get views, many of them, and let them go."""
    store = scene.store
    views = [store["k"], store["kept"], store["text"], store["packed"], store[LONG_KEY]]
    views += [store.get("k", mode=mode) for mode in ("readonly", "private", "copy")]
    views += [store["l"] for _ in range(40)]
    del views[::2]
    views.clear()


def try_to_put(scene: Scene) -> None:
    """Put into a full store, first what has no room, then what has when something goes."""
    with contextlib.suppress(StoreFullError):
        scene.store.put(NEW)
    scene.store.delete(scene.refs[3])
    scene.store.put(OLD, key="new")


def put_if_absent(scene: Scene) -> None:
    """Put under a key that is free, and under one that is taken."""
    scene.store.put(NEW, key="n", overwrite=False)
    with contextlib.suppress(shmstore.KeyExistsError):
        scene.store.put(NEW, key="k", overwrite=False)


def change_mapping(scene: Scene) -> None:
    """Use the store as a dict."""
    scene.store.update({"k": NEW, "u": 1})
    scene.store.pop("l")
    scene.store.setdefault("v", [2])


def break_a_change(scene: Scene) -> None:
    """Let an exception strike in the middle of a change."""

    def change() -> None:
        scene.store._session.slots.doom(2)
        raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        scene.store._session.lock.run(change)


def create_and_furnish(scene: Scene) -> None:
    """Own a store."""
    furnish(scene, scene.create())


def open_and_furnish(scene: Scene) -> None:
    """Be in a store that goes with its last client."""
    scene.store = Store.open(NAME, root=scene.root, capacity=MIB, max_objects=512)
    furnish(scene, scene.store)


def hold_views(scene: Scene) -> None:
    """Look at objects, also at one that has been deleted."""
    store = scene.attach()
    scene.held += [store["k"], store["kept"], *(store["l"] for _ in range(40))]
    store.delete("l")


def close_before_views(scene: Scene) -> None:
    """Close while views are alive: the seat goes with the last of them."""
    scene.store.close()
    scene.held.clear()
    scene.prune()


def fork(scene: Scene) -> None:
    """Fork with views alive; both go on, at first who is killed."""
    wait, first_is_done = os.pipe()
    scene.forked = os.fork()
    if machine.child == machine.in_child:
        os.close(wait)
    else:
        os.close(first_is_done)
        os.read(wait, 1)
    assert all((view == 1).all() for view in scene.held[2:])
    scene.store["parent" if scene.forked else "child"] = NEW
    if machine.child == machine.in_child:
        os.close(first_is_done)


def fork_while_others_look(scene: Scene) -> None:
    """Fork while views come and go in another thread."""

    def look() -> None:
        scene.held[2] = scene.store["k"]
        scene.held.append(scene.store["k"])

    machine.in_fork = look
    fork(scene)


def free_the_top(scene: Scene) -> None:
    """Delete the objects that lie highest."""
    store = scene.attach()
    store.delete_many([store.put(LARGE), store.put(LARGE[:100_000])])


def free_the_top_in_part(scene: Scene) -> None:
    """Delete the object that lies highest but for memory that was never written."""
    store = scene.attach()
    ref = store.put(LARGE[:300_000])
    with contextlib.suppress(ZeroDivisionError), store.allocate(250_000, "u1"):
        raise ZeroDivisionError
    store.delete(ref)


def remove_root(scene: Scene) -> None:
    """Let there be no folder of stores."""
    scene.root.rmdir()


def clear_and_put(scene: Scene) -> None:
    """Delete everything, then use its memory."""
    scene.store.delete_many([*scene.store, *scene.refs])
    scene.store.put(NEW)


def putting_many_small(scene: Scene) -> None:
    """Put objects in slots until there is none left."""
    for number in range(8):
        scene.store.put([number])


def look_at_few(scene: Scene) -> None:
    """Use objects, so that they are not the ones that go."""
    views = [scene.store["k"], scene.store["kept"], scene.store["p"], scene.store["k"]]
    views += [scene.store.get(ref) for ref in scene.refs[:3]]
    views.clear()


def attach_and_make_room(scene: Scene) -> None:
    """Be where there is room for objects that lie in files."""
    scene.attach().delete_many(scene.refs[-4:])


def attach_to_die_among_spilling(scene: Scene) -> None:
    """Be there when others die that move objects to files."""
    scene.attach()
    let_others_die_spilling(scene)


def create_spilling_and_fill(scene: Scene) -> None:
    """Own a store of which objects lie in files."""
    fill_and_spill(scene, create_spilling(scene))


def leave_half_a_root(scene: Scene) -> None:
    """Let there be a folder of stores that a dead process did not finish."""
    scene.root.rmdir()
    killed(scene, scene.create, "folder.rename")


def attach_twice(scene: Scene) -> None:
    """Attach where this process is attached already, also under other conditions."""
    scene.held += [scene.store]
    scene.attach()
    scene.held += [scene.store, scene.attach(readonly=True)]


def create_too_large(scene: Scene) -> None:
    """Begin to make a store that there is no memory for."""
    with contextlib.suppress(StoreFullError):
        scene.create(capacity="100TiB")


def fork_without_a_seat(scene: Scene) -> None:
    """Fork where the child can get no seat: its handle is closed, its views stay."""
    scene.held.append(scene.store["k"])
    scene.forked = os.fork()
    assert (scene.held[0] == 1).all()
    if not scene.forked:
        assert scene.store.closed


def reopen(scene: Scene) -> None:
    """Join or make a store."""
    scene.store = Store.open(NAME, root=scene.root, capacity=MIB, max_objects=512)


def make(**options: Any) -> Callable[[Scene], object]:
    """Return what makes a store."""
    return lambda scene: scene.create(**options)


def putting(obj: Any, **options: Any) -> Callable[[Scene], object]:
    """Return what puts an object."""
    return lambda scene: scene.store.put(obj, **options)


def end(scene: Scene) -> None:
    """Do what a process does at its end."""
    process._leave_all()


def idle(scene: Scene) -> None:
    """Do nothing."""
