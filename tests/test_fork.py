"""A forked child: born with seat, pins and lock of its own, and in nobody's way."""

from __future__ import annotations

import errno
import gc
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from stores import (
    DESCRIPTORS,
    MakeStore,
    RunPython,
    StartPython,
    exit_code,
    fill_up,
    forked,
    forks,
    in_threads,
    lock_free_only,
    running,
    wait_until,
)

import shmstore
from shmstore import Store, _claiming
from shmstore._memory.allocator import Allocator

pytestmark = [forks, pytest.mark.usefixtures("silence")]


def test_forked_child_has_a_seat_of_its_own(store: Store) -> None:
    """It is a client like any other, with its own pid, before it runs our code."""
    store["k"] = np.arange(1000)
    view = store["k"]

    def child() -> None:
        mine = [client for client in store.clients() if client.own]
        assert [client.pid for client in mine] == [os.getpid()]
        assert len(store.clients()) == 2
        assert mine[0].pins == 1
        assert set(store.info("k").pinned_by) == {os.getpid(), os.getppid()}
        assert view[999] == 999

    assert exit_code(forked(child)) == 0
    assert view[999] == 999


def test_view_in_a_forked_child_survives_what_its_parent_does(store: Store) -> None:
    """The parent drops, deletes, refills; the child reads what it was born with."""
    ref = store.put(np.arange(100_000))
    parts = store.put({"a": np.arange(1000)})
    views = [ref.get(), ref.get()[50:], parts.get()["a"], store.get(ref, mode="private")]
    sums = [int(view.sum()) for view in views]
    wait, go = os.pipe()

    def child() -> None:
        os.read(wait, 1)
        assert [int(view.sum()) for view in views] == sums

    pid = forked(child)
    views.clear()
    gc.collect()
    nbytes = ref.info().stored_nbytes + parts.info().stored_nbytes
    store.delete_many([ref, parts])
    fill_up(store, np.full(1000, -1))
    os.write(go, b"x")
    assert exit_code(pid) == 0
    os.close(wait)
    os.close(go)
    assert store.recover().nbytes == nbytes


def test_parent_keeps_its_views_when_the_child_drops_its_own(store: Store) -> None:
    """Each has its own pins: one process cannot unpin for another."""
    ref = store.put(np.arange(1000))
    view = ref.get()

    def child() -> None:
        nonlocal view
        del view
        gc.collect()
        ref.delete()
        for _ in range(300):
            store.put(np.full(1000, -1))

    assert exit_code(forked(child)) == 0
    assert view.tolist() == list(range(1000))


def test_forked_child_does_not_end_the_store_of_its_parent(store: Store) -> None:
    """Neither by closing, nor by ending, nor by a fork of its own."""
    store["k"] = 1

    def child() -> None:
        def grandchild() -> None:
            store["from grandchild"] = os.getpid()
            store.close()

        assert exit_code(forked(grandchild)) == 0
        store["from child"] = os.getpid()
        store.close()
        assert store.closed

    assert exit_code(forked(child)) == 0
    assert sorted(store) == ["from child", "from grandchild", "k"]
    assert store["k"] == 1


def test_forked_child_that_outlives_its_parent_keeps_the_store_it_has_opened(
    run_python: RunPython, root: Path
) -> None:
    """The store of open goes with the last process, whoever made it."""
    code = """
    import os, time, shmstore
    store = shmstore.Store.open("common", capacity="1MiB")
    store["k"] = "kept"
    parent = os.getpid()
    faulthandler.cancel_dump_traceback_later()  # its thread would be missed at the child's exit
    if os.fork():
        os._exit(0)
    os.close(0), os.close(1), os.close(2)
    while os.getppid() == parent:
        time.sleep(0.01)
    store["child"] = os.getpid()
    while "stop" not in store:
        time.sleep(0.01)
    """
    run_python(code)
    with Store.attach("common") as store:
        wait_until(lambda: "child" in store)
        assert store["k"] == "kept"
        child = psutil.Process(store["child"])
        store["stop"] = True
    wait_until(lambda: not list(root.iterdir()))
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_fork_with_a_read_only_handle_gives_the_child_one(store: Store) -> None:
    """Both kinds of handles survive a fork, and keep their rights."""
    store["k"] = np.arange(1000)
    with Store.attach(store.name, readonly=True) as reader:
        views = [reader["k"]]

        def child() -> None:
            assert reader["k"].sum() == views[0].sum() == 499500
            with pytest.raises(shmstore.ReadOnlyStoreError):
                reader["x"] = 1
            assert len(reader.clients()) == 4

        assert exit_code(forked(child)) == 0
        views.clear()


def test_forked_child_does_not_inherit_the_lock_of_another_thread(store: Store) -> None:
    """A fork in the middle of the puts of other threads: the child never waits for them."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                store[f"thread {number}"] = np.full(20_000, number, np.uint8)
                assert set(store[f"thread {number}"]) == {number}
                store.put(number).delete()
        except BaseException as error:
            errors.append(error)

    def child() -> None:
        for turn in range(5):
            store["child"] = np.full(20_000, turn, np.uint8)
            assert set(store["child"]) == {turn}
            for number in range(3):
                assert store.get(f"thread {number}", [number])[0] == number

    with running(*(partial(work, number) for number in range(3))):
        try:
            for _ in range(25):
                assert exit_code(forked(child)) == 0
        finally:
            stop.set()
    assert errors == []
    store.recover()
    assert store.stats().clients == 1


def test_fork_from_several_threads_at_once_gives_each_child_its_seat(store: Store) -> None:
    """Births do not mix."""
    store["k"] = np.arange(1000)
    view = store["k"]
    codes: list[int] = []

    def child() -> None:
        assert view.sum() == store["k"].sum() == 499500
        assert [client.pid for client in store.clients() if client.own] == [os.getpid()]
        store[str(os.getpid())] = 1

    def fork_once() -> int:
        while True:
            try:
                return forked(child)
            except RuntimeError as error:  # filelock refuses while another thread forks
                if "filelock" not in str(error):
                    raise

    def fork_some() -> None:
        codes.extend(exit_code(fork_once()) for _ in range(5))

    in_threads(*[fork_some] * 4)
    assert codes == [0] * 20
    assert len(store) == 21


@lock_free_only
def test_fork_leaves_no_seat_and_no_descriptor_in_the_parent(store: Store) -> None:
    """Fifty children later all is as before."""
    store["k"] = np.arange(10)
    view = store["k"]
    before = len(list(DESCRIPTORS.iterdir()))
    for _ in range(50):
        assert exit_code(forked(view.sum)) == 0
    assert len(list(DESCRIPTORS.iterdir())) == before
    store.recover()
    assert len(list((store.path / "seats").iterdir())) == 1


def test_fork_with_a_closed_store_whose_views_live_keeps_them_valid(store: Store) -> None:
    """A session that only views hold is inherited too."""
    store["k"] = np.arange(1000)
    with Store.attach(store.path) as other:
        view = other["k"]
    store.close()

    def child() -> None:
        assert view.tolist() == list(range(1000))

    assert exit_code(forked(child)) == 0
    assert view.tolist() == list(range(1000))


DESTROYS = """
import numpy as np, shmstore
store = shmstore.Store.create("doomed", capacity="1MiB")
store["k"] = np.arange(1000)
print("ready", flush=True)
input()
store.close()
print("gone", flush=True)
"""


def test_fork_after_the_owner_has_destroyed_the_store_keeps_views_valid(
    start_python: StartPython, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no store to have a seat in, and no reason to say so."""
    owner = start_python(DESTROYS)
    owner.hear()
    store = Store.attach("doomed")
    views = [store["k"]]
    assert owner.ask() == "gone"
    owner.end()

    def child() -> None:
        assert views[0].tolist() == list(range(1000))
        with pytest.raises(shmstore.StoreClosedError):
            store["k"] = 1

    assert exit_code(forked(child)) == 0
    assert caplog.text == ""
    assert views[0].tolist() == list(range(1000))
    views.clear()
    store.close()


def test_fork_while_a_store_is_full_of_clients_is_no_error_for_the_parent(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no seat for the child: it cannot use the store, and says so; the parent goes on."""
    store = make_store(max_clients=1)
    store["k"] = 1

    def child() -> None:
        with pytest.raises(shmstore.StoreClosedError):
            store.get("k")

    assert exit_code(forked(child)) == 0
    assert "seat" in caplog.text
    store["k"] = 2
    assert store["k"] == 2


def test_fork_that_fails_when_pins_are_copied_leaves_them_to_the_parent_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It makes more cells for itself afterwards, and none in a seat that nobody has."""
    ref = store.put(np.zeros(1000))

    def fail(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(_claiming, "tell_of_copied_pins", fail)
    assert exit_code(forked(lambda: None)) == 0
    assert "seat" in caplog.text
    views = [ref.get() for _ in range(1000)]
    assert len(list((store.path / "seats").iterdir())) == 1
    del views


def test_child_that_a_signal_handler_forks_under_the_lock_writes_for_itself_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both go on in the midst of the same change, and the child comes first."""
    store.put([np.zeros(1000), np.zeros(10)], key="k")
    pids: list[int] = []
    allocate = Allocator.allocate

    def fork_and_allocate(*about: Any) -> Any:
        monkeypatch.undo()
        pids.append(os.fork())
        if pids[0]:
            assert exit_code(pids[0]) == 0
        return allocate(*about)

    monkeypatch.setattr(Allocator, "allocate", fork_and_allocate)
    try:
        store.put([np.ones(1000), np.ones(10)], key="k")
    finally:
        if not pids[0]:
            with pytest.raises(shmstore.StoreClosedError):
                store.get("k")
            os._exit(0)
    assert "seat" in caplog.text
    assert [x.sum() for x in store.get("k", mode="copy")] == [1000, 10]
    assert store.stats().objects == 1
    assert len(store.clients()) == 1
    assert store.check() == []


OLDER_HOOKS = """
import os, threading
def put_in_child():
    if store is not None:
        try:
            refs.append(store.put(np.full(3000, 99)))
        except shmstore.LockTimeoutError as error:
            told.append(str(error))
os.register_at_fork(after_in_child=put_in_child, before=lambda: threads.append(len(refs)))
store, refs, told, threads = None, [], [], []

import numpy as np, shmstore
with shmstore.Store.create(capacity="64MiB") as store:
    for ref in [store.put(np.zeros(3000)) for _ in range(40)]:
        ref.delete()
    class Temporary:
        def __init__(self):
            self.ref = store.put(np.full(3000, 5))
        def __del__(self):
            try:
                self.ref.delete()
            except shmstore.LockTimeoutError:
                pass
    local, begun, goes_on, kept = threading.local(), threading.Event(), threading.Event(), []
    def work():
        local.temporary = Temporary()
        kept.append(local.temporary.ref)
        begun.set()
        goes_on.wait()
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        assert refs == [] and "hook of a fork" in told[0], (refs, told)
        assert store.put(1).get() == 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (kept[0].get() == 5).all()
    goes_on.set()
    thread.join()
    mine = [store.put(np.full(3000, number)) for number in range(3)]
    assert [ref.get()[0] for ref in mine] == [0, 1, 2]
    assert not store.check()
"""


def test_child_that_has_not_its_own_yet_takes_nothing_of_its_parent(run_python: RunPython) -> None:
    """Objects of threads that are not there any more die in it, and older hooks of others run."""
    run_python("import warnings; warnings.simplefilter('ignore')\n" + OLDER_HOOKS)
