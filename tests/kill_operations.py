"""What is a process doing when it is killed? The operations of the kill matrix.

Each operation begins in a scene: a folder of stores that a template has made (in a process of its
own, that has gone), maybe a bystander (another process that lives on), and the actor. `before` is
what the actor does in peace, `run` what it is killed in.

To add an operation, add it to `OPERATIONS`. What the store may hold afterwards follows from two
runs without a kill, one that ends before `run` and one that ends after it: each object is as in the
first or as in the second.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kill_points import machine
from kill_scenes import (
    IN_PIECES,
    LARGE,
    LONG_KEY,
    MIB,
    NAME,
    NEW,
    OLD,
    Bystander,
    Scene,
    attach_to_die_among,
    create_spilling,
    crowded,
    cut_short,
    dirty,
    dirty_seats,
    empty,
    evicting,
    fill_and_spill,
    full,
    furnish,
    furnished,
    inhabited,
    let_one_die_in_a_change,
    let_others_die_spilling,
    locked,
    looks,
    looks_at_deleted,
    nothing,
    one_seat,
    owned,
    sits,
    spilling,
    spilling_dirty,
    spilling_owned,
    summed,
    timed,
    traced,
    two_owned,
    zeroed,
)

import shmstore
from shmstore import Store, StoreFullError
from shmstore import _process as process

# --- operations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One row of the matrix.

    Attributes
    ----------
    run, before
        What the actor does.
    template
        What it finds.
    bystander
        Who else is there.
    child
        A child that the actor forks is killed instead of the actor.
    may_miss
        There may be no store in between.
    keeps
        Afterwards the store holds what it held before.
    spills
        There is a folder for objects that there is no memory for.
    group
        The store is shared by a group.
    """

    run: Callable[[Scene], object]
    before: Callable[[Scene], object] = Scene.attach
    template: Callable[[Scene], None] = furnished
    bystander: Bystander | None = None
    child: bool = False
    may_miss: bool = False
    keeps: bool = False
    spills: bool = False
    group: bool = False

    @property
    def alone(self) -> bool:
        """Whether others know where the store lies, so that it cannot be moved to be judged."""
        return self.spills or self.group or self.bystander is not None


def build(scene: Scene) -> None:
    """Build an array in place."""
    with scene.store.allocate(1000, "u1", key="k") as array:
        array[:] = 2


def build_half(scene: Scene) -> None:
    """Begin to build an array, and give up."""
    with contextlib.suppress(ZeroDivisionError), scene.store.allocate(500_000, "u1", key="k"):
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


OPERATIONS: Final[dict[str, Operation]] = {
    "put in a slot": Operation(putting({"n": 1})),
    "put in a slot, named": Operation(putting({"n": 1}, key="n")),
    "put in used memory": Operation(putting(NEW, key="n")),
    "put in fresh memory": Operation(putting(LARGE, key="n")),
    "put the first object": Operation(putting(NEW, key="n"), template=empty),
    "put, large in used memory": Operation(putting(LARGE[:190_000])),
    "put, large where the top is free": Operation(putting(LARGE[:300_000]), free_the_top),
    "put, large in part fresh memory": Operation(putting(LARGE[:300_000]), free_the_top_in_part),
    "put, large header": Operation(putting(NEW, key=LONG_KEY + "!")),
    "put, large pickle": Operation(putting({"a": LARGE[:100_000], "b": NEW}, key="n")),
    "put, made in place": Operation(putting(IN_PIECES, key="n")),
    "put, compressed": Operation(putting(b"ab" * 9000, key="n", compression="zlib")),
    "put, tables grow": Operation(putting([1], key="n"), template=crowded),
    "put into a full store": Operation(try_to_put, template=full),
    "put if absent": Operation(put_if_absent),
    "put many": Operation(lambda s: s.store.put_many([NEW, [1], OLD])),
    "put many, named": Operation(lambda s: s.store.put_many({"k": NEW, "n": LARGE, "p": [2]})),
    "put after deletes, pinned": Operation(putting(NEW, key="n"), bystander=looks_at_deleted),
    "overwrite": Operation(putting(NEW, key="k")),
    "overwrite, large": Operation(putting(LARGE, key="k")),
    "overwrite, in a slot": Operation(putting([2], key="p")),
    "overwrite, looked at": Operation(putting(NEW, key="k"), bystander=looks),
    "delete": Operation(lambda s: s.store.delete("k")),
    "delete, in a slot": Operation(lambda s: s.store.delete("p")),
    "delete by reference": Operation(lambda s: s.store.delete(s.refs[0])),
    "delete many, looked at": Operation(
        lambda s: s.store.delete_many(["k", "p", "kept", *s.refs]), bystander=looks
    ),
    "clear": Operation(lambda s: s.store.clear()),
    "update, pop, setdefault": Operation(change_mapping),
    "build in place": Operation(build),
    "build in place, give up": Operation(build_half, keeps=True),
    "get and let go": Operation(look, keeps=True),
    "get under the lock": Operation(look, template=locked, keeps=True),
    "put, zeroing": Operation(putting(NEW, key="k"), hold_views, template=zeroed),
    "clear, zeroing": Operation(clear_and_put, template=zeroed),
    "recover, zeroing": Operation(
        lambda s: s.store.recover(), attach_to_die_among, zeroed, keeps=True
    ),
    "put, checksums": Operation(putting(LARGE, key="n"), template=summed),
    "put, made in place, checksums": Operation(putting(IN_PIECES, key="k"), template=summed),
    "put with its time": Operation(putting(NEW, key="n", ttl=1000)),
    "put where times are over": Operation(putting(LARGE, key="n"), template=timed),
    "recover where times are over": Operation(
        lambda s: s.store.recover(), template=timed, keeps=True
    ),
    "put, evict": Operation(putting(NEW, key="n"), template=evicting),
    "put, evict many": Operation(putting(LARGE[:30_000], key="n"), template=evicting),
    "put in a slot, evict": Operation(putting_many_small, template=evicting),
    "put, evict, looked at": Operation(
        putting(LARGE[:30_000], key="n"), template=evicting, bystander=looks
    ),
    "get where others evict": Operation(look_at_few, template=evicting, keeps=True),
    "get, traced": Operation(look, template=traced, keeps=True),
    "exception in a change": Operation(break_a_change),
    "check": Operation(lambda s: s.store.check(), attach_to_die_among, keeps=True),
    "recover": Operation(lambda s: s.store.recover(), attach_to_die_among, keeps=True),
    "recover, looked at": Operation(
        lambda s: s.store.recover(), attach_to_die_among, bystander=looks, keeps=True
    ),
    "put where others died": Operation(putting(LARGE, key="n"), attach_to_die_among),
    "attach": Operation(Scene.attach, idle, keeps=True),
    "attach twice": Operation(attach_twice, keeps=True),
    "attach, read-only": Operation(lambda s: s.attach(readonly=True), idle, keeps=True),
    "attach after deaths": Operation(Scene.attach, idle, dirty, keeps=True),
    "attach after a death in attach": Operation(Scene.attach, idle, dirty_seats, keeps=True),
    "attach after deaths, looked at": Operation(
        Scene.attach, let_one_die_in_a_change, inhabited, looks_at_deleted, keeps=True
    ),
    "close": Operation(lambda s: s.store.close(), bystander=sits, template=owned, keeps=True),
    "close, read-only": Operation(
        lambda s: s.store.close(), lambda s: s.attach(readonly=True), bystander=sits, keeps=True
    ),
    "close, owner": Operation(lambda s: s.store.close(), create_and_furnish, nothing),
    "close, last client": Operation(lambda s: s.store.close(), open_and_furnish, nothing),
    "close before views": Operation(close_before_views, hold_views, keeps=True),
    "exit": Operation(end, bystander=sits, keeps=True),
    "exit, views alive": Operation(end, hold_views, template=owned),
    "exit, owner": Operation(end, create_and_furnish, nothing),
    "fork, parent": Operation(fork, hold_views),
    "fork, child": Operation(fork, hold_views, child=True),
    "fork, others look": Operation(fork_while_others_look, hold_views),
    "fork, traced": Operation(fork, hold_views, template=traced),
    "fork, no seat, parent": Operation(fork_without_a_seat, template=one_seat, keeps=True),
    "fork, no seat, child": Operation(
        fork_without_a_seat, template=one_seat, child=True, keeps=True
    ),
    "create": Operation(make(), idle, nothing),
    "create, with its root": Operation(make(), remove_root, nothing),
    "create, for a group": Operation(make(), remove_root, nothing, group=True),
    "create, all memory at once": Operation(make(prefault=True, persist=True), idle, nothing),
    "create, too large": Operation(create_too_large, idle, nothing, keeps=True),
    "create over a dead store": Operation(make(), idle, owned, may_miss=True),
    "create over leftovers": Operation(make(), idle, cut_short),
    "open, make": Operation(reopen, idle, nothing),
    "open, join": Operation(reopen, idle, keeps=True),
    "destroy": Operation(lambda s: s.store.destroy()),
    "destroy, looked at": Operation(lambda s: s.store.destroy(), bystander=looks),
    "prune": Operation(lambda s: s.prune(), idle, two_owned),
}

# Operations of stores that move objects to files.
SPILLING: Final[dict[str, Operation]] = {
    "put, spill": Operation(putting(NEW, key="n"), template=spilling, spills=True),
    "put, spill many": Operation(putting(LARGE[:30_000], key="n"), template=spilling, spills=True),
    "put many, spill": Operation(
        lambda s: s.store.put_many({"n": NEW, "m": LARGE[:20_000]}), template=spilling, spills=True
    ),
    "put into a file": Operation(putting(LARGE, key="n"), template=spilling, spills=True),
    "overwrite, in a file": Operation(putting(NEW, key="k"), template=spilling, spills=True),
    "delete, in a file": Operation(lambda s: s.store.delete("k"), template=spilling, spills=True),
    "clear, with files": Operation(clear_and_put, template=spilling, spills=True),
    "get, back into memory": Operation(
        look_at_few, attach_and_make_room, template=spilling, spills=True, keeps=True
    ),
    "get, mapped from a file": Operation(look_at_few, template=spilling, spills=True, keeps=True),
    "recover, who died spilling": Operation(
        lambda s: s.store.recover(), attach_to_die_among_spilling, spilling, spills=True, keeps=True
    ),
    "attach after deaths in spilling": Operation(
        Scene.attach, idle, spilling_dirty, spills=True, keeps=True
    ),
    "create, that spills": Operation(create_spilling, idle, nothing, spills=True),
    "create over dead, with files": Operation(
        make(), idle, spilling_owned, spills=True, may_miss=True
    ),
    "close, owner, with files": Operation(
        lambda s: s.store.close(), create_spilling_and_fill, nothing, spills=True
    ),
    "destroy, with files": Operation(lambda s: s.store.destroy(), template=spilling, spills=True),
    "prune, with files": Operation(lambda s: s.prune(), idle, spilling_owned, spills=True),
}
