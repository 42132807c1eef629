"""How a store is made and joined."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import HOLD_A_STORE, JOIN_A_STORE, MIB, MakeStore, StartPython

from shmstore import (
    NotAStoreError,
    Store,
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
