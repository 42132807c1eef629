"""Where is a process when it is killed that puts and deletes objects without the lock?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import numpy as np
from family_helpers import own_handlers
from kill_scenes import MIB, NAME, Scene, furnish, killed, let_others_die

from shmstore import LockTimeoutError, Store, _spares
from shmstore._memory import layout as L
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned

# Of so many slots some are set aside.
_MANY = 1 << 14


def roomy(scene: Scene) -> None:
    """A store that persists, with slots enough to set some aside, and objects put into such."""
    store = scene.create(persist=True, max_objects=_MANY)
    furnish(scene, store)
    scene.refs += [store.put(("quick", number)) for number in range(3)]
    store.close()


def attach_with_spares(scene: Scene) -> None:
    """Have slots set aside, and objects in others that were."""
    store = scene.attach()
    scene.held += [store.put(("own", number)) for number in range(3)]
    assert store._session.spares.small.top


def attach_with_nothing_held(scene: Scene) -> None:
    """Have slots set aside."""
    attach_with_spares(scene)
    scene.held.clear()


def attach_with_many(scene: Scene) -> None:
    """Have put more objects than one keeps slots for."""
    attach_with_spares(scene)
    scene.held += [scene.store.put(number) for number in range(_spares.ROOM + 40)]


def attach_with_spares_to_die_among(scene: Scene) -> None:
    """Have slots set aside, and be there when others die who have some."""
    attach_with_spares(scene)
    let_others_die(scene)


def delete_own(scene: Scene) -> None:
    """Delete what one may take back, one by one."""
    for ref in scene.held:
        ref.delete()


def delete_of_others(scene: Scene) -> None:
    """Delete what its owner could have taken back."""
    scene.store.delete_many(scene.refs)


def delete_in_vain(scene: Scene) -> None:
    """Give up, since its owner seems to be in the midst of taking it back."""
    scene.store._session.lock.timeout_s = 0.0  # one look: each death is at the same step
    [ref] = [info.ref for info in scene.store.objects() if info.type == "complex"]
    with contextlib.suppress(LockTimeoutError):
        scene.store.delete(ref)


def takes_back_for_long(scene: Scene) -> Iterator[None]:
    """Look like a client that was stopped while it took an object back."""
    store = scene.attach()
    store.put("first, under the lock")
    session, ref = store._session, store.put(1j)
    session.lock.run(_spares.give_back_slots, session, _spares.ROOM)
    at = session.spares.row + L.C_ENDING
    session.words[at] = ref._slot + 1
    yield
    session.words[at] = 0
    store.close()


def wait_for_end(scene: Scene) -> None:
    """Wait for the end of what one could take back, in vain."""
    scene.refs[-1].wait(0.01)


# --- with extents ---------------------------------------------------------------------------------

# So many extents of one size are looked at together.
_TOGETHER = 16


def spacious(scene: Scene) -> None:
    """A store that persists, with memory enough for a client to keep some."""
    store = scene.create(persist=True, max_objects=_MANY, capacity=256 * MIB)
    furnish(scene, store)
    store.close()


def in_parts(number: int) -> list[np.ndarray]:
    """Make an object of several buffers, which are copied one after the other."""
    return [np.full(3000, number, np.uint8), np.full(100, number, np.uint8)]


def _come_and_go(
    store: Store,
    count: int = _TOGETHER,
    make: Callable[[int], object] = lambda number: np.full(3000, number, np.uint8),
) -> None:
    """Put objects of one size and take them back."""
    for ref in [store.put(make(number)) for number in range(count)]:
        ref.delete()


def attach_with_extents(scene: Scene) -> None:
    """Have taken objects back, whose extents are still there."""
    store = scene.attach()
    _come_and_go(store)
    assert store._session.spares.nbytes


def attach_with_parts(scene: Scene) -> None:
    """Have taken objects back that were of several buffers."""
    store = scene.attach()
    _come_and_go(store, make=in_parts)
    assert store._session.spares.nbytes


def attach_with_some_sound(
    scene: Scene, make: Callable[[int], object] = lambda number: np.full(3000, number, np.uint8)
) -> None:
    """Have found out that nobody looks at some of them."""
    store = scene.attach()
    _come_and_go(store, make=make)
    scene.held += [store.put(make(9))]
    [pile] = [pile for nbytes, pile in store._session.spares.piles.items() if nbytes]
    assert pile.sound


def attach_and_look(scene: Scene) -> None:
    """Have taken objects back of which one is looked at."""
    store = scene.attach()
    refs = [store.put(np.full(3000, number, np.uint8)) for number in range(_TOGETHER)]
    scene.held.append(refs[-1].get())
    for ref in refs:
        ref.delete()


def attach_to_be_robbed(scene: Scene) -> None:
    """Have taken objects back, whose extents somebody else has taken since."""
    attach_with_some_sound(scene)
    _rob(scene)


def attach_to_be_robbed_of_parts(scene: Scene) -> None:
    """As above, where the objects were of several buffers."""
    attach_with_some_sound(scene, in_parts)
    _rob(scene)


def _rob(scene: Scene) -> None:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), Store.attach(NAME, root=scene.root) as store:
            store.trim()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    session = scene.store._session
    assert session.words[session.spares.row + L.C_SEIZED]


def attach_with_extents_to_die_among(scene: Scene) -> None:
    """Have extents, and be there when others die who have some, and are filling one."""
    attach_with_extents(scene)

    def fill() -> None:
        store = Store.attach(NAME, root=scene.root)
        _come_and_go(store, make=in_parts)
        store.put(in_parts(7))

    killed(scene, fill, "refilling._publish")


def keeps_extents(scene: Scene) -> Iterator[None]:
    """Have extents that somebody else may want."""
    store = scene.attach()
    _come_and_go(store)
    yield
    _come_and_go(store, 3)
    store.close()


def keeps_one_for_long(scene: Scene) -> Iterator[None]:
    """Look like a client that was stopped while it began to fill one of its extents."""
    store = scene.attach()
    _come_and_go(store, 2)
    session = store._session
    [pile] = [pile for nbytes, pile in session.spares.piles.items() if nbytes]
    session.words[session.spares.row + L.C_ENDING] = pile.slots[0][0] + 1
    yield
    session.words[session.spares.row + L.C_ENDING] = 0
    store.close()


def attach_with_large(scene: Scene) -> None:
    """Have extents that are too large to be filled by a plan before they are taken."""
    _come_and_go(scene.attach(), make=lambda number: np.full(100_000, number, np.uint8))


class _Broken:
    """An object that fails while it is written to its place."""


def give_up(scene: Scene) -> None:
    """Begin to fill an extent, and fail."""

    def fail(_: memoryview) -> None:
        raise RuntimeError

    plan = Planned(100_000, fail)
    with own_handlers(), contextlib.suppress(RuntimeError):
        register_serialization(_Broken, lambda _: ({}, [plan]), lambda _, frames: frames)
        scene.store.put(_Broken())
