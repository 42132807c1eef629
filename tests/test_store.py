"""How a store is made, joined, looked at and left."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import HOLD_A_STORE, JOIN_A_STORE, MIB, MakeStore, StartPython

from shmstore import (
    NotAStoreError,
    ObjectNotFoundError,
    Store,
    StoreClosedError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
)

# --- create ---------------------------------------------------------------------------------------


def test_create_without_name_takes_a_new_one_each_time(make_store: MakeStore) -> None:
    """Stores that nobody named do not meet."""
    assert make_store().name != make_store().name


def test_create_makes_a_private_folder_in_the_root(make_store: MakeStore, root: Path) -> None:
    """The store lies where SHMSTORE_ROOT says, for this user alone."""
    store = make_store("here")
    assert store.path == root / "here"
    assert store.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.path.iterdir() if path.is_file()} == {
        0o600
    }


def test_create_in_a_given_root_leaves_the_usual_one_alone(
    make_store: MakeStore, root: Path, tmp_path: Path
) -> None:
    """The option goes before the environment."""
    tmp_path.chmod(0o700)
    store = make_store("there", root=tmp_path)
    assert store.path == tmp_path / "there"
    assert Store.attach("there", root=tmp_path) == store
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("capacity", "nbytes"),
    [(1, 4096), (8192, 8192), ("64 KiB", 65536), ("1.5MiB", 3 * MIB // 2), ("1 MB", 1_003_520)],
)
def test_create_with_capacity_has_so_many_bytes_in_whole_pages(
    make_store: MakeStore, capacity: int | str, nbytes: int
) -> None:
    """Numbers and texts mean the same."""
    stats = make_store(capacity=capacity).stats()
    assert (stats.capacity, stats.free, stats.largest_free) == (nbytes, nbytes, nbytes)


def test_create_without_capacity_takes_what_the_machine_can_give(make_store: MakeStore) -> None:
    """The default is neither nothing nor more than the file system has."""
    capacity = make_store(capacity=None).stats().capacity
    status = os.statvfs("/dev/shm")
    assert MIB <= capacity <= status.f_blocks * status.f_frsize


def test_create_with_prefault_holds_all_pages_at_once(make_store: MakeStore) -> None:
    """No put can meet a full file system later."""
    store = make_store(capacity="1MiB", prefault=True)
    (segment,) = store.path.glob("segment-*")
    assert segment.stat().st_blocks * 512 >= MIB


def test_create_with_a_name_in_use_raises_store_exists(make_store: MakeStore) -> None:
    """A live store is never replaced."""
    store = make_store("taken")
    store["word"] = "kept"
    with pytest.raises(StoreExistsError, match="attach") as caught:
        Store.create("taken")
    assert isinstance(caught.value, FileExistsError)
    assert caught.value.name == "taken"
    assert store["word"] == "kept"


def test_create_with_the_name_of_a_killed_owner_takes_it_over(
    start_python: StartPython, make_store: MakeStore
) -> None:
    """What a killed process left does not stand in the way, and none of it is seen."""
    owner = start_python(HOLD_A_STORE, name="heir", persist=False)
    owner.hear()
    owner.kill()
    store = make_store("heir")
    assert list(store) == []
    assert store.stats().clients == 1


def test_create_with_the_name_of_a_killed_owner_with_clients_raises(
    start_python: StartPython,
) -> None:
    """A store lives for as long as anybody is attached."""
    owner = start_python(HOLD_A_STORE, name="heir", persist=False)
    owner.hear()
    client = start_python(JOIN_A_STORE, name="heir")
    assert client.hear() == "kept"
    owner.kill()
    with pytest.raises(StoreExistsError):
        Store.create("heir")
    client.say()
    client.end()
    with pytest.raises(StoreNotFoundError):
        Store.attach("heir")


def test_persistent_store_stays_without_any_process(start_python: StartPython) -> None:
    """It is there for processes to come, until one of them destroys it."""
    owner = start_python(HOLD_A_STORE, name="stays", persist=True)
    owner.hear()
    owner.kill()
    with pytest.raises(StoreExistsError):
        Store.create("stays")
    with Store.attach("stays") as store:
        assert store["word"] == "kept"
        assert store.check() == []
    store = Store.attach("stays")
    assert store["word"] == "kept"
    store.destroy()
    with pytest.raises(StoreNotFoundError):
        Store.attach("stays")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "a\0b", "ä", "x" * 65])
def test_name_that_cannot_be_a_folder_is_refused(name: Any) -> None:
    """Names never become paths elsewhere."""
    for make in (Store.create, Store.open):
        with pytest.raises(ValueError, match="name"):
            make(name)


@pytest.mark.parametrize("name", ["A", "9", "a.b", "_x-", "x" * 64])
def test_name_of_allowed_characters_is_taken(make_store: MakeStore, name: Any) -> None:
    """The limits themselves are allowed."""
    assert make_store(name).name == name


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"capacity": 0}, ValueError, "capacity"),
        ({"capacity": -1}, ValueError, "capacity"),
        ({"capacity": 1 << 60}, ValueError, "capacity"),
        ({"capacity": True}, TypeError, "size"),
        ({"capacity": 1.5}, TypeError, "size"),
        ({"capacity": b"1MiB"}, TypeError, "size"),
        ({"capacity": "lots"}, ValueError, "lots"),
        ({"capacity": "-1"}, ValueError, "-1"),
        ({"capacity": "3 apples"}, ValueError, "apples"),
        ({"max_objects": 0}, ValueError, "max_objects"),
        ({"max_objects": 2**40}, ValueError, "max_objects"),
        ({"max_objects": "many"}, TypeError, "max_objects"),
        ({"max_clients": 0}, ValueError, "max_clients"),
        ({"max_clients": 1 << 20}, ValueError, "max_clients"),
        ({"lock_timeout": 0}, ValueError, "lock_timeout"),
        ({"lock_timeout": math.inf}, ValueError, "lock_timeout"),
        ({"lock_timeout": math.nan}, ValueError, "lock_timeout"),
        ({"colour": "blue"}, TypeError, "colour"),
        ({"name": 5}, TypeError, "name"),
        ({"name": b"bytes"}, TypeError, "name"),
    ],
)
def test_option_that_makes_no_sense_is_refused_by_name(
    options: dict[str, Any], error: Any, words: str
) -> None:
    """Nothing is made before all choices are known to be good."""
    with pytest.raises(error, match=words):
        Store.create(**options)


def test_create_larger_than_the_file_system_says_how_to_enlarge_it(root: Path) -> None:
    """The way out differs between a machine, docker and kubernetes."""
    with pytest.raises(StoreFullError, match="shm-size") as caught:
        Store.create(capacity="64TiB")
    assert isinstance(caught.value, MemoryError)
    assert caught.value.asked == 64 << 40
    assert 0 < caught.value.free < caught.value.asked
    assert "medium: Memory" in str(caught.value)
    assert list(root.iterdir()) == []


def test_store_made_without_a_class_method_is_refused() -> None:
    """There is no half-made handle."""
    with pytest.raises(TypeError, match="create"):
        Store()


# --- attach and open ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [lambda s: s.name, lambda s: s.path, lambda s: str(s.path)])
def test_attach_by_name_and_by_path_leads_to_the_same_store(
    store: Store, way: Callable[[Store], Any]
) -> None:
    """What one handle puts, the other gets."""
    with Store.attach(way(store)) as other:
        other["word"] = "hello"
        assert store["word"] == "hello"
        assert other == store
        assert hash(other) == hash(store)


@pytest.mark.parametrize("name", ["nobody", "/dev/shm/no-such-root/nobody"])
def test_attach_to_nothing_raises_store_not_found(name: Any) -> None:
    """A name that is not there is named, as a missing file is."""
    with pytest.raises(StoreNotFoundError, match=r"nobody|no-such-root") as caught:
        Store.attach(name)
    assert isinstance(caught.value, FileNotFoundError)


def test_attach_to_a_folder_that_is_no_store_says_so(root: Path) -> None:
    """Somebody else's folder is left as it is."""
    folder = root / "else"
    folder.mkdir(mode=0o700)
    (folder / "precious").write_text("data")
    for join in (Store.attach, Store.open):
        with pytest.raises(NotAStoreError):
            join("else")
    assert (folder / "precious").read_text() == "data"
    (folder / "precious").unlink()
    folder.rmdir()


@pytest.mark.parametrize("name", [5, None, ["a"]])
def test_attach_with_something_else_than_a_name_raises_type_error(name: Any) -> None:
    """Wrong types are told at once."""
    with pytest.raises(TypeError):
        Store.attach(name)


def test_handle_that_is_closed_does_not_end_the_others(store: Store) -> None:
    """Handles of one process are counted."""
    first, second = Store.attach(store.name), Store.attach(store.name)
    first.close()
    second["word"] = "still here"
    assert store["word"] == "still here"
    second.close()
    assert store["word"] == "still here"


def test_open_makes_a_store_once_and_joins_it_afterwards(root: Path) -> None:
    """Whoever comes second gets what the first has made."""
    first = Store.open("shared", capacity="1MiB")
    second = Store.open("shared", capacity="2MiB")
    first["word"] = "hello"
    assert second["word"] == "hello"
    assert second.stats().capacity == MIB
    first.close()
    assert second["word"] == "hello"
    second.close()
    assert list(root.iterdir()) == []


def test_store_made_by_open_lives_until_its_last_process_leaves(start_python: StartPython) -> None:
    """It is nobody's own: the process that made it may go first."""
    with Store.open("shared", capacity="1MiB") as store:
        store["word"] = "kept"
        client = start_python(JOIN_A_STORE, name="shared")
        assert client.hear() == "kept"
    late = start_python(JOIN_A_STORE, name="shared")
    assert late.hear() == "kept"
    for process in (client, late):
        process.say()
        process.end()
    with pytest.raises(StoreNotFoundError):
        Store.attach("shared")


def test_open_takes_over_the_name_of_a_killed_process(start_python: StartPython) -> None:
    """Nobody lives there any more: what was left works, and goes with this handle."""
    owner = start_python(HOLD_A_STORE, name="heir", persist=False)
    owner.hear()
    owner.kill()
    with Store.open("heir", capacity="1MiB") as store:
        store["word"] = "new"
        assert store["word"] == "new"
        assert store.check() == []
        assert store.stats().clients == 1


# --- close and destroy ----------------------------------------------------------------------------


def test_owner_that_closes_destroys_the_store_for_everyone(
    make_store: MakeStore, root: Path
) -> None:
    """The other handles say so, and nothing is left."""
    owner = make_store("mine")
    other = Store.attach("mine")
    owner.close()
    assert owner.closed
    assert other.closed
    with pytest.raises(StoreClosedError):
        other["word"] = "too late"
    other.close()
    assert list(root.iterdir()) == []


def test_owner_that_closes_is_noticed_by_other_processes(
    start_python: StartPython, root: Path
) -> None:
    """Changes are refused; there is no store that anybody could still join."""
    owner = start_python(HOLD_A_STORE, name="theirs", persist=False)
    owner.hear()
    store = Store.attach("theirs")
    owner.say()
    owner.end()
    with pytest.raises(StoreClosedError, match="destroyed"):
        store["word"] = "too late"
    with pytest.raises(StoreNotFoundError):
        Store.attach("theirs")
    store.close()
    assert list(root.iterdir()) == []


def test_destroy_by_somebody_else_than_the_owner_ends_the_store(
    make_store: MakeStore, root: Path
) -> None:
    """Any handle that may write may destroy."""
    owner = make_store("mine")
    Store.attach("mine").destroy()
    assert owner.closed
    owner.close()
    assert list(root.iterdir()) == []


def test_close_twice_does_nothing_more(store: Store) -> None:
    """Handles may be closed in a finally clause as well."""
    store.close()
    store.close()
    assert store.closed
    assert repr(store) == "<Store closed>"


CALLS: list[Callable[[Store], Any]] = [
    lambda s: s.put(1),
    lambda s: s.put(1, key="k"),
    lambda s: s.put_many([1]),
    lambda s: s.get("k"),
    lambda s: s.get("k", None),
    lambda s: s.get("k", mode="copy"),
    lambda s: s.get_many(["k"]),
    lambda s: s.delete("k"),
    lambda s: s.discard("k"),
    lambda s: s.delete_many(["k"]),
    lambda s: s.allocate(3),
    lambda s: s["k"],
    lambda s: "k" in s,
    len,
    list,
    lambda s: s.pop("k"),
    lambda s: s.setdefault("k", 1),
    lambda s: s.update(k=1),
    lambda s: s.clear(),
    lambda s: s.info("k"),
    lambda s: s.stats(),
    lambda s: s.objects(),
    lambda s: s.clients(),
    lambda s: s.check(),
    lambda s: s.recover(),
    lambda s: s.destroy(),
    lambda s: s.name,
    lambda s: s.path,
    lambda s: s.readonly,
    pickle.dumps,
    lambda s: s.__enter__(),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("end", [Store.close, Store.destroy])
def test_closed_handle_refuses_every_call_with_store_closed(
    store: Store, call: Callable[..., Any], end: Callable[[Store], None]
) -> None:
    """No call works on a store that has been left, also where the object is remembered."""
    store["k"] = 1
    assert store["k"] == 1
    end(store)
    with pytest.raises(StoreClosedError) as caught:
        call(store)
    assert isinstance(caught.value, ValueError)


def test_with_block_closes_also_after_an_error(make_store: MakeStore, root: Path) -> None:
    """The owner's store goes however the block ends."""
    with pytest.raises(ZeroDivisionError), make_store() as store:
        store["x"] = 1 / 0
    assert store.closed
    assert list(root.iterdir()) == []


def test_repr_of_a_live_store_tells_name_and_use(make_store: MakeStore) -> None:
    """What a session at the prompt wants to know."""
    store = make_store("seen")
    store.put(np.zeros(8))
    assert repr(store) == "<Store 'seen' 1 objects, 64 of 4,194,304 bytes>"


# --- looking at a store ---------------------------------------------------------------------------


def test_info_tells_what_the_object_is_and_who_looks_at_it(store: Store) -> None:
    """By key and by reference the same."""
    before = time.time()
    ref = store.put(np.zeros(100), key="k")
    info = store.info("k")
    assert info == store.info(ref) == ref.info()
    assert (info.key, info.type, info.serializer) == ("k", "numpy.ndarray", "custom")
    assert (info.nbytes, info.stored_nbytes, info.frames) == (800, 832, 1)
    assert (info.owner_pid, info.pinned_by) == (os.getpid(), ())
    assert before - 1 <= info.created <= time.time() + 1
    assert info.age >= 0
    view = store["k"]
    assert store.info("k").pinned_by == (os.getpid(),)
    del view
    assert store.info("k").pinned_by == ()


def test_info_of_something_that_is_gone_raises(store: Store) -> None:
    """As get does."""
    ref = store.put(1, key="k")
    ref.delete()
    for target in ("k", ref):
        with pytest.raises(ObjectNotFoundError):
            store.info(target)
    with pytest.raises(ObjectNotFoundError):
        ref.info()


def test_objects_lists_all_from_the_oldest_to_the_youngest(store: Store) -> None:
    """Named or not, small or large."""
    store["a"] = 1
    store.put(np.zeros(1000))
    store["b"] = {"x": np.zeros(10), "y": np.zeros(20)}
    listed = store.objects()
    assert [(info.key, info.type) for info in listed] == [
        ("a", "int"),
        (None, "numpy.ndarray"),
        ("b", "dict"),
    ]
    assert [info.frames for info in listed] == [1, 1, 3]
    assert listed[0].stored_nbytes == 0
    assert len({(info.slot, info.generation) for info in listed}) == 3


def test_stats_follow_put_view_delete_and_the_last_view(store: Store) -> None:
    """Each byte is in one place: free, used, waiting for its last reader."""
    empty = store.stats()
    assert (empty.used, empty.free, empty.objects, empty.clients) == (0, 4 * MIB, 0, 1)
    store["k"] = np.zeros(1000)
    store.put(1)
    stats = store.stats()
    assert (stats.used, stats.objects, stats.named, stats.pinned) == (8000, 2, 1, 0)
    view = store["k"]
    assert store.stats().pinned == 8000
    del store["k"]
    stats = store.stats()
    assert (stats.used, stats.reclaimable, stats.pinned, stats.objects) == (8000, 8000, 8000, 1)
    del view
    stats = store.stats()
    assert (stats.used, stats.reclaimable, stats.pinned) == (0, 0, 0)
    assert stats.free == stats.capacity


def test_clients_lists_this_process_once_and_the_others(
    store: Store, start_python: StartPython
) -> None:
    """Who is here, since when, with how many views."""
    code = """
    import shmstore
    store = shmstore.Store.attach(path, readonly=True)
    views = [store["k"], store["k"]]
    print("ready", flush=True)
    input()
    """
    store["k"] = np.zeros(1000)
    with Store.attach(store.name):
        (own,) = store.clients()
    assert (own.pid, own.own, own.alive, own.readonly, own.pins) == (
        os.getpid(),
        True,
        True,
        False,
        0,
    )
    assert own.started <= own.attached
    child = start_python(code, path=store.path)
    child.hear()
    (other,) = (client for client in store.clients() if not client.own)
    assert (other.pid, other.alive, other.readonly) == (child.pid, True, True)
    assert (other.pins, other.pinned_nbytes) == (2, 8000)
    assert store.info("k").pinned_by == (child.pid,)
    child.say()
    child.end()
    assert [client.pid for client in store.clients() if client.alive] == [os.getpid()]


def test_recover_with_nothing_to_do_says_so(store: Store) -> None:
    """Calling it too often does no harm, also while objects are looked at."""
    store["k"] = np.zeros(1000)
    view = store["k"]
    recovered = store.recover()
    assert (recovered.clients, recovered.puts, recovered.nbytes) == (0, 0, 0)
    assert not view.any()
