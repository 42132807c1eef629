"""What happens in the hooks of a fork: signal handlers, other threads, hooks and finalizers."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spares import make_quick, slot_states
from stores import MakeStore, RunPython, exit_code, forks, lock_free_only, used

from shmstore import Store, _process, _refilling
from shmstore._catalog import states

pytestmark = [forks, pytest.mark.usefixtures("silence")]

FORKING = """
import numpy as np, shmstore
def succeed(child):
    assert os.waitpid(child, 0)[1] == 0
def fork_without_seat(fork=os.fork):
    child = fork()
    if not child:
        try:
            store["key"]
        except shmstore.StoreClosedError:
            os._exit(0)
        os._exit(1)
    succeed(child)
"""


def _fork_and_end() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    assert exit_code(pid) == 0


@pytest.mark.parametrize("seats", [True, False], ids=["a seat", "no seat"])
def test_view_of_a_thread_that_is_not_in_the_child_stays_in_the_parent(
    make_store: MakeStore, *, seats: bool
) -> None:
    """It dies in the child as soon as that is born, before any hook of ours."""
    store = make_store(max_clients=8 if seats else 1)
    ref = store.put(np.full(300_000, 5, np.uint8))
    local, looking, end = threading.local(), threading.Event(), threading.Event()
    seen: list[set[int]] = []

    def look() -> None:
        local.view = ref.get()
        looking.set()
        end.wait()
        seen.append(set(local.view.tolist()))

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    _fork_and_end()
    assert store._session.clients.pinned() == {ref._slot}
    ref.delete()
    new = [store.put(np.full(300_000, 7, np.uint8)) for _ in range(8)]
    end.set()
    thread.join()
    assert seen == [{5}]
    assert all((each.get() == 7).all() for each in new)
    if not seats:
        store.destroy()  # its pins are kept for the child as long as it lives


OLDER_HOOK = """
begun, go_on = os.pipe(), os.pipe()
def look_in_child():
    view = others.get()
    os.write(begun[1], b"x")
    os.read(go_on[0], 1)
    del view
    os.write(begun[1], b"x")
os.register_at_fork(after_in_child=look_in_child)
import numpy as np, shmstore
with shmstore.Store.create(capacity="64MiB") as store:
    ref, others = (store.put(np.full(300_000, number)) for number in range(2))
    child = os.fork()
    if not child:
        os._exit(0)
    os.read(begun[0], 1)
    view = ref.get()
    os.write(go_on[1], b"x")
    os.read(begun[0], 1)
    assert ref._slot in store._session.clients.pinned()
    os.waitpid(child, 0)
"""


def test_hook_that_looks_in_the_child_drops_no_pin_of_the_parent(run_python: RunPython) -> None:
    """It takes the place that the parent takes next."""
    run_python(OLDER_HOOK)


@lock_free_only
def test_thread_that_fills_while_another_one_forks_publishes(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has begun with what was set aside, which is put away for the moment of the fork."""
    store, other = make_quick(make_store), make_store()
    pair = [np.ones(30_000, np.uint8), np.ones(20_000, np.uint8)]
    for _ in range(3):
        for ref in [store.put(pair) for _ in range(20)]:
            ref.delete()
    copying, forking, filled = threading.Event(), threading.Event(), threading.Event()
    real_copy, real_prepare = _refilling.copy, _process._prepare

    def copy(*about: Any) -> None:
        copying.set()
        forking.wait(60)
        real_copy(*about)

    def prepare(session: Any) -> Any:
        if session is other._session:  # the first store is prepared already
            forking.set()
            assert filled.wait(60)
        return real_prepare(session)

    def fill() -> None:
        refs.append(store.put(pair))
        filled.set()

    refs: list[Any] = []
    monkeypatch.setattr(_refilling, "copy", copy)
    monkeypatch.setattr(_process, "_prepare", prepare)
    thread = threading.Thread(target=fill)
    thread.start()
    assert copying.wait(60)
    _fork_and_end()
    thread.join()
    assert not (slot_states(store) == states.FILLING).any()
    assert refs[0].get()[1].sum() == 20_000
    refs[0].delete()
    store.trim()
    assert used(store) == 0


INTERRUPTED = """
import numpy as np, shmstore
from shmstore import _process
real = _process.let_noted
def let_noted(held):
    _process.let_noted = real
    real(held)
    os.kill(os.getpid(), signal.SIGINT)
raised = []
sys.unraisablehook = lambda about: raised.append(about.exc_type)
with shmstore.Store.create(capacity="8MiB") as store:
    _process.let_noted = let_noted
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert raised == [KeyboardInterrupt]
    store["key"] = 1
"""


def test_interrupt_in_the_hook_after_a_fork_refuses_nobody_for_ever(run_python: RunPython) -> None:
    """The hook runs once more, and ends what it has begun."""
    run_python(INTERRUPTED)


NESTED = f"""{FORKING}
from shmstore import _spares
from shmstore._sharing.lock import StoreLock
signal.signal(signal.SIGUSR1, lambda *_: fork_without_seat())
places = dict(hold=StoreLock, nothing=_spares, seat=StoreLock)
names = dict(hold="hold_threads", nothing="nothing", seat="run")
place, name = places[where], names[where]
real = getattr(place, name)
def disturbed(*about):
    setattr(place, name, real)
    os.kill(os.getpid(), signal.SIGUSR1)
    return real(*about)
with shmstore.Store.create(capacity="64MiB") as store:
    for number in range(40):
        store.put(number)
    view = store.put(np.ones(1000)).get()
    store["key"] = 1
    setattr(place, name, disturbed)
    child = os.fork()
    if not child:
        assert store["key"] == 1 and view.sum() == 1000
        os._exit(0)
    succeed(child)
    assert store._session.spares.serial and store._session.lock._thread == 0
    store["key"] = 2
    assert len([store.put(number) for number in range(300)]) == 300
    assert store.check() == []
    child = os.fork()
    if not child:
        assert store["key"] == 2
        os._exit(0)
    succeed(child)
"""


@pytest.mark.parametrize("where", ["hold", "nothing", "seat"])
def test_fork_of_a_signal_handler_in_the_hook_before_a_fork(
    run_python: RunPython, where: str
) -> None:
    """Its child has no seat; the other one has, and the parent goes on as if there was none."""
    run_python(NESTED, where=where)


ATTACHING = f"""{FORKING}
from shmstore import _spares
def fork(*_):
    global child
    child = os.fork()
child, real = None, _spares.begin
signal.signal(signal.SIGUSR1, fork)
def begin(session):
    _spares.begin = real
    os.kill(os.getpid(), signal.SIGUSR1)
    return real(session)
_spares.begin = begin
try:
    store = shmstore.Store.create(name, root=root) if make else shmstore.Store.attach(path)
except shmstore.StoreClosedError as error:
    assert child == 0 and "signal handler" in str(error)
    if make:
        os._exit(0)
    with shmstore.Store.attach(path) as store:
        for number in range(300):
            assert store.put([number]).get() == [number]
    os._exit(0)
succeed(child)
for number in range(300):
    assert store.put(np.full(300, number)).get()[0] == number
with shmstore.Store.attach(store.path) as other:
    assert not other.check()
store.close()
"""


def test_fork_of_a_signal_handler_in_the_midst_of_attach(
    store: Store, run_python: RunPython
) -> None:
    """The child is told, and may attach once more; the seat is the parent's."""
    run_python(ATTACHING, path=str(store.path), make=False)
    assert len(store.clients()) == 1
    assert store.check() == []


def test_fork_of_a_signal_handler_in_the_midst_of_create(root: Path, run_python: RunPython) -> None:
    """The child is told, and removes nothing: the store is the parent's."""
    run_python(ATTACHING, name="made", root=str(root), make=True)
    assert list(root.iterdir()) == []


LIMITED = f"""{FORKING}
import resource
with shmstore.Store.create(capacity="64MiB", max_clients=1) as store:
    store["key"] = 1
    resource.setrlimit(resource.RLIMIT_DATA, (120 << 20, 120 << 20))
    fork_without_seat()
    assert store["key"] == 1
"""


def test_child_without_a_seat_that_gets_no_private_memory_is_closed(run_python: RunPython) -> None:
    """It does not go on with the seat of its parent."""
    run_python(LIMITED)


WITHOUT_SEGMENT = f"""{FORKING}
store = shmstore.Store.attach(path)
fork_without_seat(lambda: store._session.lock.run(os.fork))  # as a signal handler would
"""


def test_child_without_a_seat_of_a_store_without_segment_is_closed(
    store: Store, run_python: RunPython
) -> None:
    """There is nothing of it that could be made private."""
    [segment] = store.path.glob("segment*")
    away = segment.rename(segment.with_name("away"))
    run_python(WITHOUT_SEGMENT, path=str(store.path))
    away.rename(segment)
