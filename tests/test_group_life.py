"""Stores of a group, and what becomes of them: who dies, what travels, who races.

Alice and Bob are real users in one group, Mallory is in none of theirs.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
import strangers
from groups import furnish, join, make, peek, staying, with_store
from stores import forks
from strangers import ALICE, BOB, DATA, MALLORY, SMALL, User, acting, finish, meanwhile, until
from test_strangers import live, plant_roots

import shmstore
from shmstore import ReadOnlyStoreError, Store, StoreExistsError, UnsafePathError
from shmstore._memory import folder, owners

pytestmark = [strangers.needs_users, forks]


@pytest.fixture
def root() -> Iterator[Path]:
    """Give the name of a root in a folder for all; nobody has made it yet."""
    with strangers.public_folder() as place:
        yield place / "root"


# --- what others left ----------------------------------------------------------------------------


@pytest.mark.parametrize("mender", [ALICE, BOB, User(0, (DATA,))], ids=["self", "other", "root"])
def test_what_a_dead_member_left_is_undone_by_any_other(root: Path, mender: User) -> None:
    """Pins, half-made puts, seats."""

    def hold() -> Any:
        store = join(root)
        array = store["array"]
        block = store.allocate(1000, "u1")
        block.__enter__()
        return store, array, block

    def mend() -> tuple[int, int]:
        with join(root) as store:
            del store["array"]
            before = store.stats().reclaimable
            found = store.recover()
            assert store.check() == []
            assert store.stats().reclaimable == 0
            assert [path.name for path in (root / "s" / "seats").iterdir()] != []
            return before, found.clients

    acting(ALICE, lambda: furnish(root))
    with staying(ALICE, hold) as pid, staying(BOB, hold):
        os.kill(pid, signal.SIGSTOP)
        assert [c for _, c in [acting(mender, lambda: with_store(root, peek))]] == [0]
        os.kill(pid, signal.SIGKILL)
    acting(mender, mend)
    assert list((root / "s" / "seats").iterdir()) == []


def test_view_of_one_member_is_safe_from_the_others(root: Path) -> None:
    """Its pin is seen across users."""
    acting(ALICE, lambda: furnish(root))

    def fill() -> None:
        with join(root) as store:
            del store["array"]
            for _ in range(300):
                store.put(np.full(1000, 255), key="same")

    store = Store.attach(root / "s", group=DATA)
    view = store["array"]
    acting(BOB, fill)
    assert view.tolist() == list(range(1000))
    del view
    store.close()


def test_dead_store_of_one_member_makes_way_for_another(root: Path) -> None:
    """By its name, and by pruning."""

    def own() -> Any:
        return make(root), make(root, "t"), make(root, "u")

    with staying(ALICE, own) as pid:
        with pytest.raises(StoreExistsError):
            raise acting(BOB, lambda: make(root))
        assert acting(BOB, lambda: shmstore.prune(root, group=DATA)) == []
        os.kill(pid, signal.SIGKILL)
    acting(BOB, lambda: make(root).close())
    assert acting(BOB, lambda: shmstore.prune(root, group=DATA)) == ["t", "u"]
    assert list(root.iterdir()) == []


def test_what_was_cut_short_before_it_was_the_groups_is_removed_by_others(root: Path) -> None:
    """For an instant a folder or seat is its maker's alone, and he may die then."""

    def die() -> None:
        os.umask(0o077)
        store = make(root, persist=True)
        (root / ".new-0123456789abcdef").mkdir(mode=0o700)
        os.close(os.open(store.path / "seats" / "77", os.O_CREAT | os.O_EXCL, 0o600))

    def take_over() -> list[str]:
        make(root, "t").close()
        store = Store.attach(root / "s", group=DATA)
        store.destroy()
        return [path.name for path in root.iterdir()]

    acting(ALICE, die)
    assert acting(BOB, take_over) == []


def test_leftover_that_cannot_be_removed_keeps_nobody_from_making_a_store(root: Path) -> None:
    """Whatever is in it."""

    def leave() -> None:
        make(root, "other", persist=True).close()
        below = root / ".old-0123456789abcdef" / "seats"
        below.mkdir(parents=True)
        below.parent.chmod(0o700)

    acting(ALICE, leave)
    acting(BOB, lambda: make(root).close())
    assert (root / ".old-0123456789abcdef").is_dir()
    acting(ALICE, lambda: make(root).close())
    assert [path.name for path in root.iterdir()] == ["other"]


# --- what travels --------------------------------------------------------------------------------


def test_references_and_handles_of_a_group_work_where_they_arrive(root: Path) -> None:
    """They say the group themselves; who is not in it cannot use them."""
    pickled = acting(ALICE, lambda: furnish(root))

    def use() -> tuple[int, str]:
        ref, _ = pickle.loads(pickled)
        total = int(ref.get().sum())
        again = pickle.loads(pickle.dumps(ref))
        assert again == ref
        return total, str(Store.attach(root / "s", group=DATA)["text"])

    def fail() -> None:
        with pytest.raises(UnsafePathError):
            pickle.loads(pickled)

    assert acting(BOB, use) == (499500, "kept")
    acting(MALLORY, fail)


def test_reference_carries_a_group_only_where_there_is_one(root: Path) -> None:
    """It costs nothing elsewhere."""

    def sizes(group: int | None) -> tuple[int, int]:
        with make(root, group=group) as store:
            ref = store.put(np.zeros(10_000))
            assert store.put(1, key="k").key == "k"
            return len(pickle.dumps(ref)), len(pickle.dumps(store))

    shared = acting(ALICE, lambda: sizes(DATA))
    root.rmdir()
    private = acting(ALICE, lambda: sizes(None))
    assert 1 <= shared[0] - private[0] <= 12
    assert 1 <= shared[1] - private[1] <= 12


def test_members_children_have_seats_that_are_the_groups(root: Path) -> None:
    """A forked child gets its own, and is seen by the others."""

    def family() -> int:
        store = make(root)
        store["a"] = np.arange(10)
        child = stores.forked(lambda: store.put(int(store["a"].sum()), key="sum"))
        assert stores.exit_code(child) == 0
        modes = {path.stat().st_mode & 0o777 for path in (root / "s" / "seats").iterdir()}
        assert modes == {0o660}
        return int(store["sum"])

    assert acting(ALICE, family) == 45


def test_member_may_attach_to_read_only(root: Path) -> None:
    """With a seat of its own, and nothing else."""
    acting(ALICE, lambda: furnish(root))

    def read() -> str:
        with join(root, readonly=True) as store:
            with pytest.raises(ReadOnlyStoreError):
                store["text"] = "changed"
            with pytest.raises(ReadOnlyStoreError):
                store.destroy()
            return str(store["text"])

    assert acting(BOB, read) == "kept"


def test_spilled_objects_are_the_groups_too(root: Path) -> None:
    """Their files are shared and closed like all others."""
    files = root.with_name("files")

    def overfill() -> None:
        options: dict[str, Any] = {"on_full": "spill", "spill_dir": files, "persist": True}
        with make(root, **options) as store:
            for number in range(10):
                store[str(number)] = np.full(40_000, number)
            assert store.stats().spilled

    def read() -> list[int]:
        with join(root) as store:
            assert store.stats().spilled
            found = [int(store[key][7]) for key in sorted(store)]
            store.clear()
            return found

    acting(ALICE, overfill)
    kinds = {(path.is_dir(), path.stat().st_mode & 0o7777) for path in files.rglob("*")}
    assert kinds == {(True, 0o2770), (False, 0o660)}
    assert acting(BOB, read) == list(range(10))
    acting(BOB, lambda: join(root).destroy())
    assert [path for path in files.rglob("*") if path.is_file()] == []


# --- all at once ---------------------------------------------------------------------------------


def test_members_that_open_a_store_at_once_get_one(root: Path) -> None:
    """Also when the root is not there yet."""

    def count() -> int:
        with Store.open("s", root=root, group=DATA, **SMALL) as store:
            for number in range(20):
                store[f"{os.getpid()}-{number}"] = number
            return len({key.split("-")[0] for key in store})

    for _ in range(3):
        users = [ALICE, BOB] * 2
        processes = [strangers.start(user, count) for user in users]
        assert all(1 <= finish(process) <= len(users) for process in processes)
        assert list(root.iterdir()) == []
        root.rmdir()


def test_race_of_a_stranger_for_the_root_of_a_group_is_lost(root: Path) -> None:
    """He cannot make what seems to be the group's."""
    precious = strangers.treasure(root.parent, ALICE)
    before = strangers.fingerprint(precious)
    enough = {"done": 15, "UnsafePathError": 15}
    with meanwhile(MALLORY, plant_roots(root, precious)):
        counts = acting(ALICE, lambda: until(enough, live(root, DATA)))
    strangers.note("for the root of a group", counts)
    assert set(counts) - {"StoreNotFoundError"} == set(enough)
    assert strangers.fingerprint(precious) == before


def test_shared_root_is_made_whole_without_renameat2(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no such call a plain rename does."""
    monkeypatch.setattr(folder, "_renameat2", None)
    acting(ALICE, lambda: make(root, persist=True).close())
    assert acting(BOB, lambda: with_store(root, peek)) == (1, 0)

    def name() -> type[BaseException]:
        with pytest.raises(StoreExistsError) as caught:
            make(root)
        return caught.type

    assert acting(BOB, name) is StoreExistsError
    assert owners.group_of(os.open(root, os.O_RDONLY | os.O_CLOEXEC)) == DATA
