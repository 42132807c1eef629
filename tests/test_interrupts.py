"""Ctrl-C at any moment: the store stays whole, and nothing is lost."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from stores import Flag, MakeStore, RunPython, lock_free_only, used

import shmstore
from shmstore import Store
from shmstore._ending import root_locked
from shmstore._memory import folder
from shmstore._memory.descriptors import Descriptor
from shmstore._sharing.lock import hold


class InterruptAt:
    """A profile function that raises KeyboardInterrupt once, at the n-th point of shmstore's code.

    The points are those at which CPython runs signal handlers: where a function is entered and
    where a call of C code has returned.

    Parameters
    ----------
    number
        Which point.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self.point: tuple[str, str, int] | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Raise if it is time. Python calls this at every point."""
        code = frame.f_code
        if event not in {"call", "c_return"} or not _is_ours(code.co_filename):
            return
        self._left -= 1
        if self._left == 0:
            sys.setprofile(None)
            self.point = (event, code.co_qualname, frame.f_lineno)
            raise KeyboardInterrupt


def _is_ours(filename: str) -> bool:
    folder = str(Path(shmstore.__file__).parent)
    return filename.startswith(folder) or f"{os.sep}filelock{os.sep}" in filename


SMALL, LARGE = np.arange(100), np.arange(50_000)


def build(store: Store) -> None:
    """Build an array in place."""
    with store.allocate(1000, "u1", key="k") as array:
        array[:] = 1


INTERRUPTED: dict[str, Callable[[Store], Any]] = {
    "put inline": lambda s: s.put({"a": 1}, key="k"),
    "put array": lambda s: s.put(SMALL, key="k"),
    "put large": lambda s: s.put(LARGE, key="k"),
    "put dict of arrays": lambda s: s.put({"a": SMALL, "b": LARGE}, key="k"),
    "put new key": lambda s: s.put(SMALL, key="another"),
    "put_many": lambda s: s.put_many({"k": SMALL, "m": 1}),
    "delete": lambda s: s.delete("k"),
    "pop": lambda s: s.pop("k"),
    "get": lambda s: s.get("k"),
    "get part": lambda s: s.get("k")[1:].sum(),
    "get dict": lambda s: s.get("d"),
    "get inline": lambda s: s.get("i"),
    "get private": lambda s: s.get("large", mode="private"),
    "get copy": lambda s: s.get("d", mode="copy"),
    "allocate": build,
    "stats": lambda s: s.stats(),
}


CASES = [(name, False) for name in INTERRUPTED]
CASES += [(name, True) for name in ("put array", "delete", "get", "get dict", "get inline")]


@pytest.mark.parametrize(("name", "locked_reads"), CASES)
def test_interrupt_at_any_point_leaves_the_store_whole(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Wherever a signal strikes: the lock is free, nothing is pinned, nothing is lost."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    store = make_store(lock_timeout=0.2)
    fill(store)
    INTERRUPTED[name](store)
    broken: list[str] = []
    for number in range(1, 2000):
        interrupt = InterruptAt(number)
        wrong = list(found_wrong_after(store, INTERRUPTED[name], interrupt))
        if interrupt.point is None:
            break
        broken += [f"{interrupt.point}: {what}" for what in wrong]
        if wrong:
            store = make_store(lock_timeout=0.2)
        fill(store)
    assert not broken, "\n".join(broken)
    assert number > 3


@lock_free_only
@pytest.mark.parametrize(
    "name", ["put new key", "put large", "get", "get dict", "allocate", "stats"]
)
def test_interrupt_at_any_point_of_the_first_call_leaves_the_store_whole(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As above, where tables, seats and pages are touched for the first time."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    broken: list[str] = []
    for number in range(1, 2000):
        interrupt = InterruptAt(number)
        with make_store(lock_timeout=0.2) as store:
            fill(store)
            wrong = list(found_wrong_after(store, INTERRUPTED[name], interrupt))
        if interrupt.point is None:
            break
        broken += [f"{interrupt.point}: {what}" for what in wrong]
    assert not broken, "\n".join(broken)


def fill(store: Store) -> None:
    """Put the objects that the interrupted calls look for."""
    store.update({"k": SMALL, "d": {"x": SMALL, "y": b"1"}, "i": {"a": 1}, "large": LARGE})


def found_wrong_after(
    store: Store, call: Callable[[Store], Any], interrupt: InterruptAt
) -> Iterator[str]:
    """Make a call that is interrupted, and delete all; yield what is wrong then."""
    try:
        sys.setprofile(interrupt)
        try:
            call(store)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        gc.collect()
        yield from map(str, store.check())
        yield from (f"{client.pins} pins" for client in store.clients() if client.pins)
        store.get("k", None)
        store.clear()
        nbytes = used(store)
        if nbytes:
            yield f"{nbytes} bytes are lost"
    except shmstore.ShmStoreError as error:
        yield f"{type(error).__name__}: {str(error)[:60]}"


INTERRUPTED_AT_RANDOM = """
import gc, random, threading, time
import numpy as np
import shmstore

swallowed = []
sys.unraisablehook = lambda told: swallowed.append(told.exc_type)
faulthandler.dump_traceback_later(60, exit=True)
random_ = random.Random(seed)
arrays = [np.full(size, size % 251, np.uint8) for size in (8, 500, 5000, 70_000, 300_000)]

def put(store): store.put(random_.choice(arrays), key=f"k{random_.randrange(8)}")
def put_dict(store): store.put({"a": arrays[1], "b": arrays[3]}, key="d")
def put_plain(store): store.put({"a": 1}, key="p")
def delete(store): store.discard(f"k{random_.randrange(8)}")
def get(store):
    view = store.get(f"k{random_.randrange(8)}", None)
    assert view is None or (view[0] == view[-1] == view.nbytes % 251)
def get_dict(store): store.get("d", None)

def ring(number, frame):
    global armed
    if armed:  # an alarm that another thread took up may arrive after it was called off
        armed = False
        raise KeyboardInterrupt

armed = False
signal.signal(signal.SIGALRM, ring)
counts = dict(done=0, interrupted=0)
store = shmstore.Store.create(capacity="4MiB", lock_timeout=5, locked_reads=locked or None)
for call in (put_dict, get_dict, put_plain, delete):  # what they import is Python's to interrupt
    call(store)
end = time.monotonic() + seconds
while time.monotonic() < end:
    call = random_.choice([put, put, put_dict, put_plain, delete, get, get, get_dict])
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random_.uniform(1e-6, 150e-6))
        call(store)
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        counts["done"] += 1
    except KeyboardInterrupt:
        counts["interrupted"] += 1
signal.setitimer(signal.ITIMER_REAL, 0)
gc.collect()
assert store.check() == [], store.check()
assert [client.pins for client in store.clients()] == [0], store.clients()
store.clear()
assert store.stats().used == 0, store.stats()
store.close()
assert set(swallowed) <= {KeyboardInterrupt}, swallowed
print(counts["done"], counts["interrupted"])
"""


def test_interrupts_at_random_moments_leave_the_store_whole(
    run_python: RunPython, root: Path, locked_reads: Flag
) -> None:
    """Thousands of puts, gets and deletes under a timer; then all is well and nothing is lost."""
    answer = run_python(INTERRUPTED_AT_RANDOM, seed=1, locked=locked_reads, seconds=1.5)
    done, interrupted = map(int, answer.split())
    assert done > 100
    assert interrupted > 100
    assert list(root.iterdir()) == []


def test_signal_handler_that_raises_between_calls_of_a_with_block_ends_the_store(
    run_python: RunPython, root: Path
) -> None:
    """Ctrl-C during a loop of puts: the block closes the store on the way out."""
    code = """
    import numpy as np, shmstore
    try:
        with shmstore.Store.create(capacity="4MiB") as store:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            while True:
                store.put(np.zeros(10_000), key="k")
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert run_python(code) == "interrupted"
    assert list(root.iterdir()) == []


def test_signal_handler_that_raises_as_the_root_is_closed_gives_its_lock_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback has the open root as long as it lives: nobody waits for that."""

    def interrupted(descriptor: Descriptor) -> None:
        patched.undo()
        raise KeyboardInterrupt

    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt) as caught,
        root_locked(root, 0, create=False, gid=None),
    ):
        patched.setattr(Descriptor, "close", interrupted)
    with folder.open_root(root, create=False) as root_fd:
        assert hold(root_fd, 0)
    assert caught.tb is not None
