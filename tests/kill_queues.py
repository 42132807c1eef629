"""What does a process do with queues in which, or before which, it is killed?

Where more than objects is to be looked at (are they in their order, what is counted as taken), the
check of the store does it: see invariant 13.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal

from family_helpers import own_handlers
from kill_scenes import LARGE, NEW, OLD, Scene, furnish

from shmstore import StoreFullError
from shmstore._memory import layout as L
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned


def queued(scene: Scene) -> None:
    """A store with two queues, in which objects of all kinds wait."""
    store = scene.create(persist=True)
    furnish(scene, store)
    store.queue("q", maxsize=5).put_many([1, OLD, "two" * 100, NEW])
    store.queue("r").put(LARGE[:100_000])
    store.close()


def evicting_queued(scene: Scene) -> None:
    """A full store that gives up what was not used for longest, but nothing that waits."""
    store = scene.create(persist=True, on_full="evict", capacity="64KiB")
    store.queue("q").put_many([NEW, 1])
    for number in range(80):
        store[str(number)] = OLD
    store.close()


def filed_queued(scene: Scene) -> None:
    """A store that spills, with a queue whose objects lie in files."""
    options = {"on_full": "spill", "spill_dir": scene.spill_dir, "capacity": "64KiB"}
    store = scene.create(persist=True, **options)
    store.queue("q").put_many([LARGE[:30_000], 1])
    for number in range(4):
        store[str(number)] = LARGE[:15_000]
    store.close()


def without_slots(scene: Scene) -> None:
    """A store in which nothing more can be put, with a queue."""
    store = scene.create(persist=True, max_objects=64)
    store.queue("q", maxsize=2).put_many([1, 2])
    with contextlib.suppress(StoreFullError):
        while True:
            scene.refs.append(store.put(1))
    store.close()


def attach_with_room(scene: Scene) -> None:
    """Be where there is room again for what lies in files."""
    store = scene.attach()
    store.delete_many(list(store))


def taken_by_the_dead(scene: Scene) -> None:
    """A store with a queue from which somebody has taken who has died."""
    queued(scene)
    pid = os.fork()
    if not pid:
        scene.attach().queue("q").get()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def make_queue(scene: Scene) -> None:
    """Make a queue, and another one."""
    scene.store.queue("n", maxsize=2)
    scene.store.queue("m")


def put_one(scene: Scene) -> None:
    """Put what lies in a slot."""
    scene.store.queue("q").put((1, 2))


def put_large(scene: Scene) -> None:
    """Put what is copied without the lock."""
    scene.store.queue("q").put(LARGE[:150_000])


def put_many(scene: Scene) -> None:
    """Put more than there is room for."""
    assert scene.store.queue("q").put_many([OLD, LARGE[:90_000], 3], block=False) == 1
    scene.store.queue("r").put_many([(7,), (8,), LARGE[:70], (9,)])


class _Slow:
    """Something during whose serialization others act."""


def put_filed(scene: Scene) -> None:
    """Put what is larger than the store, between what is not, and once more without success."""
    line = scene.store.queue("n", maxsize=3)
    assert line.put_many([1, LARGE[:20_000], LARGE[:70_000], 3], block=False) == 3
    with contextlib.suppress(queue.Full):
        line.put(LARGE[:70_000], timeout=0.0)


def wait_with_a_file(scene: Scene) -> None:
    """Have written what is larger than the store when there is no room in the queue any more."""
    line = scene.store.queue("n", maxsize=1)
    plan = Planned(90_000, lambda _: line.put(1))
    with own_handlers(), contextlib.suppress(queue.Full):
        register_serialization(_Slow, lambda _: ({}, [plan]), lambda _, frames: frames)
        line.put(_Slow(), timeout=0.01)


def take_one(scene: Scene) -> None:
    """Take the first object."""
    scene.held.append(scene.store.queue("q").get())


def take_all(scene: Scene) -> None:
    """Take all objects, and let go of them."""
    assert len(scene.store.queue("q").get_many(10)) == 4
    scene.store.queue("r").get()


def take_and_do(scene: Scene) -> None:
    """Take objects, and say that they are done."""
    line = scene.store.queue("q")
    for _ in range(4):
        line.get()
        line.task_done()
    assert line.join(timeout=10)


def wait_for_one(scene: Scene) -> None:
    """Wait for an object that does not come, and for room that there is not."""
    with contextlib.suppress(queue.Empty):
        scene.store.queue("q").get_many(4)
        scene.store.queue("q").get(timeout=0.01)
    with contextlib.suppress(queue.Full):
        scene.store.queue("q").put_many(range(10, 15))
        scene.store.queue("q").put(15, timeout=0.01)


def join_after_a_death(scene: Scene) -> None:
    """Wait for what nobody will do."""
    line = scene.store.queue("q")
    line.get_many(10)
    line.task_done(3)
    assert line.join(timeout=10)


def destroy_queue(scene: Scene) -> None:
    """Take a queue away, with what waits in it."""
    line = scene.store.queue("q")
    line.get()
    line.destroy()


def take_without_a_slot(scene: Scene) -> None:
    """Take where there is no room to count it for this client alone."""
    line = scene.store.queue("q")
    line.get()
    line.task_done()


def break_the_counts(scene: Scene) -> None:
    """Be where a queue was damaged."""
    session = scene.attach()._session
    slot = next(session.queues.all())
    session.words[session.queues.base(slot) + L.S_WAITING] = 77
    session.words[session.queues.base(slot) + L.S_TAIL] = 0


def mend(scene: Scene) -> None:
    """Make everything anew."""
    scene.store.recover()
