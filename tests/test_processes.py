"""Processes that share a store, however they are started, and what is left when they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MIB, WAIT_S, MakeStore, RunPython, StartPython, forks, lock_free_only

from shmstore import ObjectNotFoundError, ObjectRef, Store, StoreFullError, StoreNotFoundError

pytestmark = [forks, pytest.mark.usefixtures("process_helpers", "silence")]

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> BaseContext:
    """Give each way to start a process."""
    return multiprocessing.get_context(request.param)


def run(context: BaseContext, target: Callable[..., None], *arguments: Any) -> int | None:
    """Run a function in a process of its own; return the exit code."""
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(WAIT_S)
    code = process.exitcode
    process.close()
    return code


# --- every start method ---------------------------------------------------------------------------


def sum_of(ref: ObjectRef) -> int:
    """Work for a pool: get an object."""
    return int(ref.get()[:].sum())


def put_square(job: tuple[Store, str, int]) -> ObjectRef:
    """Work for a pool: put an object under a key, and return a reference to another."""
    store, key, number = job
    store[key] = number * number
    return store.put(np.full(1000, number))


def fail_with_full(ref: ObjectRef) -> None:
    """Work for a pool: raise an error of the store."""
    store = Store.attach(ref.info().key or "")
    store.put(np.zeros(2 * MIB, np.uint8))
    store.put(np.zeros(3 * MIB, np.uint8))


def test_references_in_a_process_pool_lead_to_the_objects(
    store: Store, context: BaseContext
) -> None:
    """Nothing has to be set up in the workers of a pool, whichever way they are started."""
    refs = [store.put(np.full(50_000, number)) for number in range(8)]
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(sum_of, refs)) == [number * 50_000 for number in range(8)]
    assert store.stats().pinned == 0


@lock_free_only
def test_handles_in_a_multiprocessing_pool_put_into_the_store(
    store: Store, context: BaseContext
) -> None:
    """Handles and references travel in both directions."""
    with context.Pool(2) as pool:
        refs = pool.map(put_square, [(store, f"key {n}", n) for n in range(6)])
        pool.close()
        pool.join()
    assert dict(store) == {f"key {n}": n * n for n in range(6)}
    assert [int(ref.get()[0]) for ref in refs] == list(range(6))


@lock_free_only
def test_errors_of_the_store_come_home_from_a_pool_with_their_facts(make_store: MakeStore) -> None:
    """They pickle."""
    store = make_store("pooled")
    ref = store.put(1, key="pooled")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(StoreFullError) as caught:
            pool.submit(fail_with_full, ref).result()
        assert (caught.value.asked, caught.value.capacity) == (3 * MIB, 4 * MIB)


def look_and_leave(store: Store, ref: ObjectRef, way: str) -> None:
    """Look at an object, put another, and end in one of many ways."""
    views = [store["k"], ref.get()]
    assert views[0][0] == views[1][0] == 7
    store[way] = np.ones(1000)
    if way == "os._exit":
        os._exit(0)
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "closed":
        views.clear()
        store.close()
    if way == "sys.exit":
        sys.exit(0)


@lock_free_only
@pytest.mark.parametrize("way", ["return", "closed", "sys.exit", "os._exit", "killed"])
def test_child_that_ends_in_any_way_leaves_nothing(
    store: Store, context: BaseContext, way: str
) -> None:
    """No pin, no seat, no file: what it could not give back is taken back."""
    store["k"] = np.full(1000, 7)
    ref = store.put(np.full(1000, 7))
    assert run(context, look_and_leave, store, ref, way) == (-9 if way == "killed" else 0)
    store.recover()
    assert [client.pid for client in store.clients()] == [os.getpid()]
    assert store.stats().pinned == 0
    assert store[way].all()
    store.delete_many(["k", ref, way])
    assert store.stats().used == 0
    assert len(list((store.path / "seats").iterdir())) == 1


def exit_normally(store: Store, ref: ObjectRef) -> None:
    """Look at an object and return without closing anything."""
    assert store["k"][0] == ref.get()[0]


@lock_free_only
def test_child_that_returns_gives_its_seat_back_by_itself(
    store: Store, context: BaseContext
) -> None:
    """Nobody has to recover after a process that ended well."""
    store["k"] = np.full(1000, 7)
    assert run(context, exit_normally, store, store.put(np.full(10, 7))) == 0
    assert [client.pid for client in store.clients()] == [os.getpid()]


CREATE_AND_END = """
import os, signal
import numpy as np, shmstore
store = shmstore.Store.create("mine", capacity="1MiB")
store["k"] = np.arange(1000)
view = store["k"]
other = shmstore.Store.open("ours", capacity="1MiB")
other["k"] = {"a": view}
inner = other["k"]["a"]
print(len(os.listdir(os.environ["SHMSTORE_ROOT"])))
"""


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "store.close(); other.close()",
        "del view, inner, store, other",
        "import sys; sys.exit()",
        "import atexit; atexit.register(lambda: store.close())",
        "globals()['cycle'] = [store, other, view]; cycle.append(cycle)",
        "import threading; threading.Thread(target=lambda: view.sum()).start()",
    ],
)
def test_process_that_ends_without_closing_leaves_no_file_and_prints_nothing(
    run_python: RunPython, root: Path, ending: str
) -> None:
    """Its own store and the one it has opened go with it, also while views are alive."""
    assert run_python(CREATE_AND_END + ending) == "2"
    assert list(root.iterdir()) == []


def test_process_that_ends_by_an_exception_leaves_no_file(
    start_python: StartPython, root: Path
) -> None:
    """Only the traceback is printed."""
    process = start_python(CREATE_AND_END + "\nraise SystemExit('so it ends')")
    assert process.hear() == "2"
    _, errors = process.process.communicate(timeout=WAIT_S)
    assert (process.process.returncode, errors) == (1, "so it ends\n")
    assert list(root.iterdir()) == []


def test_process_that_is_terminated_leaves_a_store_that_the_next_one_clears(
    start_python: StartPython, root: Path
) -> None:
    """What a signal leaves behind does not pile up."""
    process = start_python(CREATE_AND_END + "\nprint(flush=True); input()")
    process.hear()
    process.process.terminate()
    process.end(-signal.SIGTERM)
    for name in ("mine", "ours"):
        with Store.open(name, capacity="1MiB") as store:
            assert store.check() == []
    assert list(root.iterdir()) == []


# --- open by many at once -------------------------------------------------------------------------


OPEN_TOGETHER = """
import os
import shmstore
print("ready", flush=True)
input()
with shmstore.Store.open("common", capacity="1MiB") as store:
    store[str(os.getpid())] = os.getpid()
    print(os.stat(store.path / "index").st_ino, flush=True)
    input()
    print(sorted(store.values()), flush=True)
    input()
"""


def test_open_by_sixteen_processes_at_once_gives_one_store(
    start_python: StartPython, root: Path
) -> None:
    """All find the objects of all, and the store goes when the last has left."""
    processes = [start_python(OPEN_TOGETHER) for _ in range(16)]
    for process in processes:
        assert process.hear() == "ready"
    for process in processes:
        process.say()
    assert len({process.hear() for process in processes}) == 1
    everybody = str(sorted(process.pid for process in processes))
    for process in processes:
        assert process.ask() == everybody
    for process in processes[:-1]:
        process.say()
        process.end()
    assert [path.name for path in root.iterdir()] == ["common"]
    processes[-1].say()
    processes[-1].end()
    assert list(root.iterdir()) == []


OPEN_AND_LEAVE = """
import shmstore
for turn in range(25):
    with shmstore.Store.open("common", capacity="1MiB") as store:
        store["k"] = turn
        assert store["k"] is not None
        assert store.check() == []
"""


def test_store_opened_and_left_again_and_again_is_always_whole(
    start_python: StartPython, root: Path
) -> None:
    """Coming and going at once: nobody joins a store that is being removed."""
    processes = [start_python(OPEN_AND_LEAVE) for _ in range(4)]
    for process in processes:
        process.end()
    assert list(root.iterdir()) == []


CREATE_TOGETHER = """
import shmstore
print("ready", flush=True)
input()
try:
    store = shmstore.Store.create("wanted", capacity="1MiB")
    print("made", flush=True)
except shmstore.StoreExistsError:
    print("taken", flush=True)
input()
"""


def test_create_by_many_processes_at_once_has_one_winner(start_python: StartPython) -> None:
    """Of one name there is one store."""
    processes = [start_python(CREATE_TOGETHER) for _ in range(6)]
    for process in processes:
        process.hear()
    for process in processes:
        process.say()
    answers = [process.hear() for process in processes]
    assert sorted(answers) == ["made"] + ["taken"] * 5
    for process in processes:
        process.say()
        process.end()


# --- unrelated processes --------------------------------------------------------------------------


@lock_free_only
def test_object_passed_on_from_process_to_process_stays_one_object(
    store: Store, run_python: RunPython
) -> None:
    """Each adds to the same memory; none copies."""
    store["counts"] = np.zeros(4, np.int64)
    for number in range(4):
        run_python(
            """
            import shmstore
            shmstore.Store.attach(path)["counts"][number] += number + 1
            """,
            path=store.path,
            number=number,
        )
    assert store["counts"].tolist() == [1, 2, 3, 4]


@lock_free_only
def test_object_put_elsewhere_names_the_process_that_put_it(
    store: Store, run_python: RunPython
) -> None:
    """And it stays when that process has gone."""
    pid = run_python(
        """
        import os, numpy, shmstore
        shmstore.Store.attach(path)["k"] = numpy.arange(10)
        print(os.getpid())
        """,
        path=store.path,
    )
    assert store.info("k").owner_pid == int(pid)
    assert store["k"].sum() == 45


@lock_free_only
def test_key_put_elsewhere_is_found_whatever_the_hash_seed(
    store: Store, run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys mean the same in every process."""
    store["from here"] = 1
    for seed in ("0", "1", "random"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        run_python(
            """
            import shmstore
            store = shmstore.Store.attach(path)
            assert store["from here"] == 1
            store[key] = key
            """,
            path=store.path,
            key=f"seed {seed}",
        )
        assert store[f"seed {seed}"] == f"seed {seed}"


def test_key_deleted_elsewhere_is_gone_here_at_once(
    store: Store, start_python: StartPython
) -> None:
    """Also where it was got before, and is remembered."""
    code = """
    import shmstore
    store = shmstore.Store.attach(path)
    while True:
        key = input()
        store.delete(key)
        print("deleted", flush=True)
    """
    process = start_python(code, path=store.path)
    for value in (1, np.arange(10), {"a": np.arange(10)}):
        ref = store.put(value, key="k")
        store.get("k"), ref.get()
        assert process.ask("k") == "deleted"
        assert "k" not in store
        with pytest.raises(ObjectNotFoundError):
            store.get("k")
        with pytest.raises(ObjectNotFoundError):
            ref.get()


@lock_free_only
def test_store_path_of_a_removed_store_is_not_joined_by_anybody(
    make_store: MakeStore, run_python: RunPython
) -> None:
    """A process that comes too late is told so."""
    store = make_store("gone")
    path: Path = store.path
    store.close()
    answer = run_python(
        """
        import shmstore
        try:
            shmstore.Store.attach(path)
        except FileNotFoundError as error:
            print(type(error).__name__)
        """,
        path=path,
    )
    assert answer == StoreNotFoundError.__name__
