"""Watching what others put and delete: all of it, in order, and what was missed is told."""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Any

import numpy as np
import pytest
import stores
from stores import MakeStore, StartPython, forked, wait_until
from waits import waiters

import shmstore
from shmstore import ChangesLostError, Store, StoreClosedError, WaitTimeoutError, Watch
from shmstore._memory import layout as L


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: watching has nothing to do with it."""
    return False


def seen(watch: Watch) -> list[tuple[str, str]]:
    """Return the changes that a watch has not given yet."""
    found = []
    while True:
        try:
            change = watch.get(timeout=0)
        except WaitTimeoutError:
            return found
        found.append((change.kind, change.key))


def test_watch_tells_what_is_put_and_deleted_from_then_on(store: Store) -> None:
    """Each change once, in order; an overwrite is a put; what has no key is not told."""
    store["before"] = 0
    with store.watch() as watch:
        store["a"] = 1
        store.put("anonymous").delete()
        store["a"] = 2
        store.put_many({"b": 3, "c": 4})
        with store.allocate(3, key="d") as array:
            array[:] = 0
        del array
        del store["a"]
        store.pop("before")
        assert seen(watch) == [
            *(("put", key) for key in "aabcd"),
            ("delete", "a"),
            ("delete", "before"),
        ]
    assert waiters(store) == 0


def test_watch_of_a_prefix_tells_of_no_other_key(store: Store) -> None:
    """A prefix counts in bytes of UTF-8, and may be a whole key."""
    with store.watch("é/") as some, store.watch("é/1") as one, store.watch("é/123456") as none:
        for key in ("é/1", "é", "e/1", "é/2", "", "x" * 1024, "é/12"):
            store[key] = key
        store.clear()
        assert [key for _, key in seen(some)] == ["é/1", "é/2", "é/12"] * 2
        assert [key for _, key in seen(one)] == ["é/1", "é/12"] * 2
        assert seen(none) == []


def test_change_leads_to_the_object(store: Store) -> None:
    """The reference is that of the object that was put, also when another one has its key now."""
    with store.watch() as watch:
        for value in (1, 2):
            store["key"] = np.full(10, value)
        first, second = next(watch), next(watch)
        assert second.ref.get().tolist() == [2] * 10
        assert (second.ref, second.ref.nbytes, second.ref.key) == (store.info("key").ref, 80, "key")
        with pytest.raises(shmstore.ObjectNotFoundError):
            first.ref.get()


def test_keys_in_long_headers_and_in_files_are_told(make_store: MakeStore, tmp_path: Any) -> None:
    """A deleted object's key is read from wherever its header lies."""
    store = make_store(capacity="64KiB", on_full="spill", spill_dir=tmp_path)
    long_key, large = "long " * 100, np.zeros(100_000, "u1")
    with store.watch() as watch:
        store[long_key] = 1
        store["large"] = large
        store["long" + long_key] = large
        store.clear()
        told = sorted(seen(watch))
    keys = ["large", long_key, "long" + long_key]
    assert told == sorted((kind, key) for kind in ("put", "delete") for key in keys)


def test_objects_that_are_evicted_or_expire_are_told(make_store: MakeStore) -> None:
    """Nobody deletes them, but their keys lead nowhere from then on."""
    store = make_store(capacity="64KiB", on_full="evict")
    with store.watch("k") as watch:
        store.put(1, key="k0", ttl=1e-6)
        for number in range(1, 30):
            store[f"k{number}"] = np.zeros(4000, "u1")
        told = seen(watch)
    gone = {key for kind, key in told if kind == "delete"}
    assert "k0" in gone
    assert {key for kind, key in told if kind == "put"} - gone == set(store)


def test_watcher_in_another_process_sleeps_until_something_happens(
    store: Store, start_python: StartPython
) -> None:
    """A watcher is no poller: it is woken by what others put."""
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name, readonly=True)
        with store.watch("job/") as changes:
            print("ready", flush=True)
            for change in changes:
                print(*change[:2], flush=True)
                if change.kind == "delete":
                    break
        store.close()
        """,
        name=store.name,
    )
    assert child.hear() == "ready"
    store["other"] = 0
    store["job/1"] = 1
    assert child.hear() == "put job/1"
    del store["job/1"]
    assert child.hear() == "delete job/1"
    child.end()
    assert waiters(store) == 0


def test_watch_can_be_selected(store: Store) -> None:
    """Its descriptor can be read from when something has happened."""
    with store.watch() as watch:
        assert select.select([watch], [], [], 0)[0] == []
        store["a"] = 1
        assert select.select([watch], [], [], 0)[0] == [watch]
        assert next(watch).key == "a"


def test_watch_that_is_not_read_tells_that_it_has_missed_changes(store: Store) -> None:
    """First comes what it still knows, then an error, then what came later."""
    with store.watch() as watch:
        for number in range(3000):
            store["key"] = number
        told = 0
        with pytest.raises(ChangesLostError, match="missed changes"):
            for told, _ in enumerate(watch, 1):  # noqa: B007 - looked at afterwards
                pass
        assert 1000 < told < 3000
        store["later"] = 1
        assert seen(watch) == [("put", "later")]


def test_watch_without_anything_new_raises_after_its_timeout(store: Store) -> None:
    """As get does."""
    with store.watch() as watch, pytest.raises(WaitTimeoutError):
        watch.get(timeout=0.01)


def test_watch_that_is_closed_is_refused(store: Store) -> None:
    """By itself, or with its store: also while another thread waits for it."""
    other = Store.attach(store.path, readonly=True)
    watch = store.watch()
    watch.close()
    watch.close()
    with pytest.raises(StoreClosedError):
        next(watch)
    watch = other.watch()
    timer = threading.Timer(0.05, other.close)
    timer.start()
    with pytest.raises(StoreClosedError):
        next(watch)
    timer.join()
    watch.close()


def test_store_that_is_destroyed_ends_its_watches(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """Nothing will ever happen there again."""
    store = make_store()
    child = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name)
        with store.watch() as changes:
            print("ready", flush=True)
            try:
                next(changes)
            except shmstore.StoreClosedError:
                print("closed", flush=True)
        """,
        name=store.name,
    )
    assert child.hear() == "ready"
    store.destroy()
    assert child.hear() == "closed"
    child.end()


def test_death_in_the_middle_of_a_change_is_told_to_watchers(
    store: Store, start_python: StartPython
) -> None:
    """Whether the change was made or not: the watcher is to look for itself."""
    with store.watch() as watch:
        child = start_python(
            """
            import os, signal, shmstore
            store = shmstore.Store.attach(name)
            store._session.lock.run(os.kill, os.getpid(), signal.SIGKILL)
            """,
            name=store.name,
        )
        child.process.wait()
        store["next"] = 1
        with pytest.raises(ChangesLostError):
            next(watch)
        store["later"] = 1
        assert seen(watch)[-1] == ("put", "later")
    store.recover()


def test_watcher_that_is_killed_costs_nothing_for_long(
    store: Store, start_python: StartPython
) -> None:
    """Its row goes after some changes, its seat and its bell when the dead are buried."""
    child = start_python(
        "import shmstore; store = shmstore.Store.attach(name); watch = store.watch()\n"
        "print('ready', flush=True); next(watch)",
        name=store.name,
    )
    assert child.hear() == "ready"
    os.kill(child.pid, signal.SIGKILL)
    child.process.wait()
    for number in range(300):
        store["key"] = number
    assert waiters(store) == 0
    assert store.recover().clients == 1
    assert [path.name for path in (store.path / "seats").iterdir()] == ["1"]


def test_forked_child_goes_on_with_a_watch_of_its_own(store: Store) -> None:
    """It is told that it missed what was before, and takes nothing away from its parent."""

    def child() -> None:
        with pytest.raises(ChangesLostError):
            watch.get(timeout=stores.WAIT_S)
        store["from the child"] = 1
        assert seen(watch) == [("put", "from the child")]
        watch.close()

    with store.watch() as watch:
        store["a"] = 1
        assert stores.exit_code(forked(child)) == 0
        assert seen(watch) == [("put", "a"), ("put", "from the child")]


def test_bell_that_somebody_wrote_nonsense_into_is_refused(store: Store) -> None:
    """What is no change is not taken for one."""
    with store.watch() as watch:
        [bell] = (store.path / "seats").glob("*-*")
        with bell.open("wb", buffering=0) as file:
            file.write(b"x" * 100)
        with pytest.raises(shmstore.CorruptStoreError):
            watch.get(timeout=1)


def test_watchers_miss_nothing_while_many_processes_put(store: Store) -> None:
    """Four processes put and delete, two watch: each hears of each change, once."""
    count, puts = 4, 100

    def work(number: int) -> None:
        for key in range(puts):
            store[f"{number}/{key}"] = key
            if key % 2:
                del store[f"{number}/{key}"]

    with store.watch() as everything, store.watch("2/") as some:
        children = [forked(lambda number=number: work(number)) for number in range(count)]
        told = [everything.get(timeout=stores.WAIT_S)[:2] for _ in range(count * puts * 3 // 2)]
        assert [stores.exit_code(child) for child in children] == [0] * count
        assert seen(everything) == []
        assert seen(some) == [change for change in told if change[1].startswith("2/")]
    for number in range(count):
        mine = [change for change in told if change[1].startswith(f"{number}/")]
        keys = [f"{number}/{key}" for key in range(puts)]
        expected = [
            change
            for place, key in enumerate(keys)
            for change in [("put", key), ("delete", key)][: 1 + place % 2]
        ]
        assert mine == expected


def test_table_of_waiters_is_small_again_after_all_have_left(store: Store) -> None:
    """Rows in the middle are used again, and the last one in use is the end."""
    session: Any = store._session
    watches = [store.watch(str(number)) for number in range(40)]
    assert session.words[L.W_WAITERS] == 40
    for watch in watches[::2]:
        watch.close()
    assert session.words[L.W_WAITERS] == 40
    again = store.watch("again")
    assert session.waiters.watchers()[0].topic == again._topic
    for watch in [again, *watches]:
        watch.close()
    wait_until(lambda: session.words[L.W_WAITERS] == 0)
