"""What is seen of stores from outside: listed, surveyed, visited, removed by name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms
from stores import HOLD_A_STORE, MakeStore, StartPython, wait_until

import shmstore
from shmstore import (
    LockTimeoutError,
    ReadOnlyStoreError,
    Store,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
)
from shmstore._memory import layout as L


def _states() -> dict[str, str]:
    return {found.name: found.state for found in shmstore.stores()}


def test_stores_of_a_root_that_is_not_there_are_none(root: Path) -> None:
    """Nothing is made by looking."""
    assert shmstore.stores(root / "none") == []
    assert not (root / "none").exists()


def test_stores_tells_living_kept_dead_and_damaged_ones_apart(start_python: StartPython) -> None:
    """Looking at them changes none of them: the dead one is there the second time, too."""
    dead = start_python(HOLD_A_STORE, name="dead", persist=False)
    dead.hear()
    dead.kill()
    with Store.create("alive", capacity="1MiB") as alive:
        for name in ("kept", "cut"):
            Store.create(name, capacity="1MiB", persist=True).close()
        os.truncate(alive.path.parent / "cut" / "index", 100)
        expected = {"alive": "alive", "cut": "damaged", "dead": "dead", "kept": "kept"}
        assert _states() == expected
        assert _states() == expected
        [found] = [found for found in shmstore.stores() if found.name == "dead"]
        assert (found.clients, found.dead, found.objects) == (0, 1, 1)
        for name in ("cut", "dead", "kept"):
            shmstore.remove(name, force=name == "cut")


def test_survey_has_a_row_for_each_object_and_says_who_looks(store: Store) -> None:
    """Deleted objects with views are among them, with their extents and types."""
    store["small"] = {"a": 1}
    store["large"] = np.zeros(5000)
    refs = [store.put(np.zeros(n)) for n in (1000, 2000)]
    view = refs[1].get()
    refs[1].delete()
    survey = store.survey()
    assert survey.state.tolist() == ["object", "object", "object", "deleted"]
    assert survey.named.tolist() == [True, True, False, False]
    assert survey.nbytes.tolist() == [0, 40_000, 8000, 16_000]
    assert survey.views.tolist() == [0, 0, 0, 1]
    assert [info.key for info in survey.infos([1, 0])] == ["large", "small"]
    assert survey.infos([3])[0].type == "numpy.ndarray"
    assert survey.infos([3])[0].pinned_by == (os.getpid(),)
    [pin] = survey.who_pins(3)
    assert (pin.pid, pin.views, pin.own) == (os.getpid(), 1, True)
    assert survey.problems == ()
    del view


def test_survey_leaves_out_what_has_gone_since(store: Store) -> None:
    """A row is of one object; another one in its place is not taken for it."""
    ref = store.put(np.zeros(1000))
    survey = store.survey()
    ref.delete()
    store.put({"a": 1})
    assert survey.infos([0]) == []


def test_survey_of_a_store_whose_lock_is_stuck_answers(make_store: MakeStore) -> None:
    """It takes no lock, so that it can tell what is wrong."""
    store = make_store(lock_timeout=0.05)
    store["a"] = np.zeros(10)
    with (store.path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockTimeoutError):
            store.stats()
        assert [info.key for info in store.survey().infos([0])] == ["a"]


def test_survey_calls_an_object_damaged_that_cannot_be_read(make_store: MakeStore) -> None:
    """And tells the others all the same."""
    store = make_store()
    store["a"], store["b"] = np.zeros(1000), np.zeros(1000)
    session: Any = store._session
    place = rooms.word_of(store.info("a").slot, L.S_HEADER_NBYTES, session.index)
    kept, session.words[place] = session.words[place], 1 << 20
    try:
        assert [info.type for info in store.survey().infos([0, 1])] == ["damaged", "numpy.ndarray"]
    finally:
        session.words[place] = kept


def test_visitor_leaves_a_dead_store_as_it_is(start_python: StartPython) -> None:
    """Its dead client and its objects are there for the next one to look at."""
    child = start_python(HOLD_A_STORE, name="left", persist=False)
    child.hear()
    child.kill()
    for readonly in (True, False, True):
        with Store.attach("left", readonly=readonly, visit=True) as store:
            assert store["word"] == "kept"
            assert [client.alive for client in store.clients()].count(False) == 1
    Store.attach("left").close()
    assert _states() == {}


def test_visitor_who_is_the_last_to_leave_a_living_store_ends_it(
    start_python: StartPython,
) -> None:
    """It would stay for ever otherwise: a guest counts like anybody where somebody lived."""
    child = start_python(
        "import shmstore\nstore = shmstore.Store.open(name)\nprint(flush=True)\ninput()",
        name="open",
    )
    child.hear()
    guest = Store.attach("open", readonly=True, visit=True)
    child.say()
    child.end()
    assert _states() == {"open": "alive"}
    guest.close()
    assert _states() == {}


def test_visitor_who_then_attaches_counts_like_anybody(start_python: StartPython) -> None:
    """The store goes with the last handle of the process."""
    child = start_python(HOLD_A_STORE, name="left", persist=False)
    child.hear()
    child.kill()
    with Store.attach("left", visit=True), Store.attach("left"):
        pass
    assert _states() == {}


def test_remove_takes_a_store_that_persists_and_refuses_one_in_use(
    start_python: StartPython,
) -> None:
    """With force it goes as well, and whoever is attached learns it."""
    Store.create("kept", capacity="1MiB", persist=True).close()
    shmstore.remove("kept")
    with pytest.raises(StoreNotFoundError):
        shmstore.remove("kept")
    child = start_python(HOLD_A_STORE, name="busy", persist=True)
    child.hear()
    with pytest.raises(StoreExistsError, match="attached"):
        shmstore.remove("busy")
    shmstore.remove("busy", force=True)
    assert _states() == {}
    child.say()
    child.end()


def test_remove_takes_a_store_that_lacks_a_file_only_with_force() -> None:
    """Without its seats nobody can tell whether it has clients."""
    with Store.create("cut", capacity="1MiB", persist=True) as store:
        path = store.path
    (path / "lock").unlink()
    with pytest.raises(shmstore.NotAStoreError):
        shmstore.remove("cut")
    shmstore.remove("cut", force=True)
    wait_until(lambda: not path.exists())


# --- looking on ----------------------------------------------------------------------------------


def test_onlooker_is_told_everything_and_changes_nothing(store: Store) -> None:
    """No seat, no row, no file; afterwards the store is as it was, to the byte."""
    store["array"], store["plain"] = np.zeros(1000), {"a": 1}
    files = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    with Store.look(store.name) as outside:
        assert outside.readonly
        assert outside.stats() == store.stats()
        assert len(outside.clients()) == len(outside.survey().clients) == 1
        assert [info.key for info in outside.objects()] == ["array", "plain"]
        assert list(outside) == ["array", "plain"]
        assert outside.metrics().puts == 2
        assert "It is not full" in outside.why_full().reason
        assert outside.check() == []
        assert outside.info("array").type == "numpy.ndarray"
        same = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
        assert same == files


def test_onlooker_gets_no_views_and_changes_nothing(store: Store) -> None:
    """Nothing would keep their memory; the message says what to do."""
    store["array"] = np.zeros(1000)
    store["list"] = [np.zeros(1000)]
    with Store.look(store.path) as outside:
        for call in (
            lambda: outside["array"],
            lambda: outside.get("array", mode="copy"),
            lambda: outside.get("list", decode=False),
            lambda: outside.get("none", timeout=0.1),
            lambda: outside.put(1),
            lambda: outside.delete("array"),
            outside.recover,
            outside.destroy,
        ):
            with pytest.raises(ReadOnlyStoreError):
                call()
    assert store.check() == []


def test_onlooker_and_client_of_one_process_leave_each_other_alone(store: Store) -> None:
    """The client's handle works on when the onlooker has gone, and the other way round."""
    with Store.attach(store.path, readonly=True) as reader:
        outside = Store.look(store.path)
        store["array"] = np.arange(5)
        outside.close()
        assert reader["array"].sum() == 10
        outside = Store.look(store.path)
    assert outside.survey().named.tolist() == [True]
    outside.close()
    assert outside.closed


def test_onlooker_needs_no_room_and_no_lock(make_store: MakeStore) -> None:
    """Full of clients, or with a lock that is stuck."""
    store = make_store(max_clients=1)
    store["array"] = np.arange(5)
    with pytest.raises(StoreFullError), Store.attach(store.path, readonly=True):
        pass
    with (store.path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Store.look(store.path, lock_timeout=0.05) as outside:
            assert [info.key for info in outside.survey().infos([0])] == ["array"]
            with pytest.raises(LockTimeoutError):
                outside.stats()


def test_onlooker_works_on_a_full_file_system() -> None:
    """When it matters most."""
    with (
        rooms.small_file_system(1 << 20) as folder,
        Store.create("full", capacity="256KiB", root=folder / "root") as store,
    ):
        store["array"] = np.arange(5)
        ballast = rooms.fill_up(folder)
        with pytest.raises(StoreFullError), Store.attach(store.path, readonly=True):
            pass
        with Store.look(store.path) as outside:
            assert outside.stats().objects == 1
            assert "file system" in str(outside.why_full())
        ballast.unlink()


def test_onlooker_leaves_a_dead_store_as_it_is(start_python: StartPython) -> None:
    """Looked at as often as one likes."""
    child = start_python(HOLD_A_STORE, name="left", persist=False)
    child.hear()
    child.kill()
    for _ in range(2):
        with Store.look("left") as outside:
            assert [client.alive for client in outside.clients()] == [False]
            assert outside.stats().objects == 1
    assert shmstore.prune() == ["left"]


def test_onlooker_of_a_store_that_ends_learns_it(store: Store) -> None:
    """With its next call; closing is no error."""
    outside = Store.look(store.path)
    store.destroy()
    with pytest.raises(shmstore.StoreClosedError):
        outside.survey()
    outside.close()
    with pytest.raises(StoreNotFoundError):
        Store.look("gone")
