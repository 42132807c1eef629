"""Who waits for what the actor does, and what does the actor do who waits himself?"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from kill_scenes import NAME, NEW, OLD, Scene, furnished, killed

from shmstore import ChangesLostError, Store, StoreClosedError
from shmstore import _waiting as waiting

# What is waited for in vain: not so short that it is over before the wait has begun.
_SHORT_S: Final = 0.02
_LONG_S: Final = 20

# --- the actor ------------------------------------------------------------------------------------


def wait_in_vain(scene: Scene) -> None:
    """Wait for keys, for the end of an object, and for changes; nothing comes."""
    waiting.SPIN_S = 0.0
    store = scene.store
    store.get("never", None, timeout=_SHORT_S)
    store.wait(["k", "never", "nor this"], timeout=_SHORT_S)
    scene.refs[0].wait(timeout=_SHORT_S)
    with store.watch("k"), store.watch(""), contextlib.suppress(TimeoutError):
        store.get("never", timeout=_SHORT_S)


def wait_for_very_many(scene: Scene) -> None:
    """Wait for more keys than there are rows in the first page of the table."""
    waiting.SPIN_S = 0.0
    scene.store.wait([f"never {number}" for number in range(100)], timeout=_SHORT_S)


def attach_and_wait(scene: Scene, **options: bool) -> None:
    """Be somebody who has waited before."""
    scene.attach(**options)
    wait_in_vain(scene)


def attach_readonly(scene: Scene) -> None:
    """Be somebody who may not change anything."""
    scene.attach(readonly=True)


def attach_and_fill_a_bell(scene: Scene) -> None:
    """Watch, and put until nothing more can be told."""
    store = scene.attach()
    scene.held.append(store.watch())
    while not any(map(store._session.waiters.lost, range(2))):
        store["k"] = OLD


def attach_and_let_sleep(scene: Scene) -> None:
    """Have a thread that waits for what never comes."""
    waiting.SPIN_S = 0.0
    store = scene.attach()

    def sleep() -> None:
        with contextlib.suppress(StoreClosedError):
            store.get("never", timeout=None)

    _in_thread(sleep)
    _until_asleep(store, 1)


# --- templates ------------------------------------------------------------------------------------


def waited_for(scene: Scene) -> None:
    """A store where somebody has died who watched, and somebody who was about to wait."""
    furnished(scene)
    attach = partial(Store.attach, NAME, root=scene.root)

    def watch() -> None:
        store = attach()
        scene.held += [store, store.watch("n"), store.watch("")]

    killed(scene, watch)
    killed(scene, lambda: attach().get("n", timeout=_LONG_S), "waiters.Waiters.enter", 2)


# --- bystanders -----------------------------------------------------------------------------------


def _in_thread(task: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    return thread


def _until_asleep(store: Store, count: int) -> None:
    """Return when so many rows lead to this process."""
    session = store._session
    while len(session.waiters.rows()) < count:
        pass


def sleeps(scene: Scene) -> Iterator[None]:
    """Wait for a key, and for the end of an object, and get both in the end."""
    waiting.SPIN_S = 0.0
    store = scene.attach()
    got: list[object] = []

    def wait_for_key() -> None:
        with contextlib.suppress(StoreClosedError):
            got.append(store.get("n", timeout=None))

    threads = [_in_thread(wait_for_key), _in_thread(scene.refs[0].wait)]
    _until_asleep(store, 2)
    yield
    with contextlib.suppress(StoreClosedError):
        store["n"] = NEW
        store.discard(scene.refs[0])
        threads[0].join()
        assert len(got) == 1, "the waiter has not got what was put"
        store.discard("n")
    for thread in threads:
        thread.join()
    got.clear()
    store.close()


def watches(scene: Scene) -> Iterator[None]:
    """Watch, and hear of what is put afterwards, or that something was missed."""
    store = scene.attach()
    with contextlib.suppress(StoreClosedError), store.watch() as watch:
        yield
        store["n"] = NEW
        told = set()
        while ("put", "n") not in told:
            with contextlib.suppress(ChangesLostError):
                told.add(watch.get(timeout=10)[:2])
                continue
            break
        store.discard("n")
    store.close()
