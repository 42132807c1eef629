"""Stores that the members of a group share: every member may do everything, nobody else anything.

Alice and Bob are real users in one group, Mallory is in none of theirs.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import strangers
from groups import furnish, join, make, unsafe
from stores import forks
from strangers import ALICE, BOB, DATA, MALLORY, SMALL, User, acting

import shmstore
from shmstore import Store, StoreExistsError, StoreNotFoundError, UnsafePathError

pytestmark = [strangers.needs_users, forks]


@pytest.fixture
def root() -> Iterator[Path]:
    """Give the name of a root in a folder for all; nobody has made it yet."""
    with strangers.public_folder() as place:
        yield place / "root"


# --- who may come in -----------------------------------------------------------------------------


def test_store_of_a_group_is_everything_to_every_member(root: Path) -> None:
    """Objects, also those of others, in place too; checks; and its end."""

    def use() -> int:
        with join(root) as store:
            assert store["text"] == "kept"
            store["array"][0] = 7
            store["text"] = "changed"
            store["mine"] = 1
            with pytest.raises(StoreExistsError):
                make(root)
            assert {client.own for client in store.clients()} == {True}
            assert store.check() == []
            assert store.recover() is not None
            return os.getuid()

    def end() -> tuple[int, str]:
        store = join(root)
        found = int(store["array"][0]), store["text"]
        store.destroy()
        return found

    acting(ALICE, lambda: furnish(root))
    assert acting(BOB, use) == BOB.uid
    assert acting(ALICE, end) == (7, "changed")
    assert list(root.iterdir()) == []


def test_trust_is_said_on_both_sides(root: Path) -> None:
    """A store that is open to a group is refused by who does not name it, or names another."""
    acting(ALICE, lambda: furnish(root))

    def ask() -> list[str]:
        other = DATA + 1
        return [
            unsafe(lambda: Store.attach(root / "s")),
            unsafe(lambda: Store.attach("s", root=root, readonly=True)),
            unsafe(lambda: Store.open("s", root=root, **SMALL)),
            unsafe(lambda: make(root, "t", group=None)),
            unsafe(lambda: Store.attach(root / "s", group=other)),
            unsafe(lambda: make(root, "t", group=other)),
            unsafe(lambda: shmstore.prune(root)),
        ]

    for user, why in ((BOB, f"user {ALICE.uid}"), (ALICE, "0o2770 lets others in")):
        reasons = acting(user, ask)
        assert [reason for reason in reasons if why in reason] == [*reasons[:4], reasons[-1]]
        assert all(f"group {DATA}" in reason for reason in reasons[4:6])


def test_private_store_is_refused_by_who_names_a_group(root: Path) -> None:
    """His own too: it would be open to nobody else."""
    acting(ALICE, lambda: make(root, group=None, persist=True).close())
    assert f"group {ALICE.uid}" in acting(ALICE, lambda: unsafe(lambda: join(root)))
    assert "Permission denied" in acting(BOB, lambda: unsafe(lambda: join(root)))


@pytest.mark.parametrize("group", [DATA, None])
def test_who_is_not_in_the_group_stays_outside(root: Path, group: int | None) -> None:
    """Whatever he says; and he cannot make a store for a group that he is not in."""
    acting(ALICE, lambda: furnish(root))
    before = strangers.fingerprint(root)

    def trespass() -> list[str]:
        reasons = [
            unsafe(lambda: Store.attach(root / "s", group=group)),
            unsafe(lambda: Store.attach(root / "s", group=group, readonly=True)),
            unsafe(lambda: make(root, "t", group=group)),
            unsafe(lambda: shmstore.prune(root, group=group)),
        ]
        with pytest.raises(PermissionError):
            list(root.iterdir())
        with pytest.raises(UnsafePathError, match=f"{MALLORY.uid} is not a member"):
            make(root.with_name("another"))
        assert not root.with_name("another").exists()
        return reasons

    assert len(acting(MALLORY, trespass)) == 4
    assert strangers.fingerprint(root) == before
    assert [path.name for path in root.parent.iterdir()] == ["root"]


FOLDERS = [".", "s", "s/seats"]
FILES = ["s/index", "s/lock", "s/segment-00000"]


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        *itertools.product(FOLDERS, ["others", "too little", "group", "access", "default"]),
        *itertools.product(FILES, ["others", "too little", "group", "access"]),
    ],
)
def test_part_that_is_not_the_groups_alone_is_refused(root: Path, part: str, fault: str) -> None:
    """Loose and narrow modes, another group, and access lists."""
    acting(ALICE, lambda: furnish(root))
    path = root / part
    mode = stat.S_IMODE(path.stat().st_mode)
    if fault in {"others", "too little"}:
        path.chmod(mode | 0o004 if fault == "others" else mode & ~0o020)
    elif fault == "group":
        os.chown(path, -1, DATA + 1)
    else:
        strangers.set_acl(path, fault)
    reason = acting(ALICE, lambda: unsafe(lambda: join(root)))
    told = {"group": f"{DATA + 1}", "default": "ACL", "access": "ACL"}
    assert told.get(fault, "is not that of a shared store") in reason


def test_root_that_a_stranger_may_have_planted_is_refused() -> None:
    """Where new folders get the group of the one above, the group says nothing about who made it.

    Containers with a group for their volumes have such a /dev/shm.
    """
    with strangers.public_folder(0o3777) as place:
        os.chown(place, -1, DATA)
        root = place / "root"

        def plant() -> tuple[int, int]:
            os.umask(0)
            root.mkdir(mode=0o770)
            (root / "deeper").mkdir(mode=0o770)
            return root.stat().st_gid, root.stat().st_mode & 0o7777

        assert acting(MALLORY, plant) == (DATA, 0o2770)
        assert "strangers" in acting(BOB, lambda: unsafe(lambda: make(root)))
        assert f"user {MALLORY.uid}" in acting(BOB, lambda: unsafe(lambda: make(root / "deeper")))
        assert [path.name for path in root.iterdir()] == ["deeper"]
        acting(BOB, lambda: make(place / "own").close())


def test_folders_on_the_way_may_belong_to_other_members(root: Path) -> None:
    """Who are trusted; but nobody else may exchange what is in them."""
    place = root.parent / "place"
    place.mkdir()
    os.chown(place, BOB.uid, DATA)
    place.chmod(0o2770)
    acting(ALICE, lambda: make(place / "root").close())
    assert (place / "root").is_dir()
    place.chmod(0o2775)
    acting(ALICE, lambda: make(place / "root").close())
    place.chmod(0o2777)
    assert f"user {BOB.uid}" in acting(ALICE, lambda: unsafe(lambda: make(place / "root")))


# --- names ---------------------------------------------------------------------------------------


@pytest.fixture
def own_group() -> Iterator[int]:
    """Give a group whose default root is there for this test alone."""
    gid = DATA + os.getpid() % 100_000 + 1
    path = Path(f"/dev/shm/shmstore-group-{gid}")
    yield gid
    if path.exists():
        path.rmdir()


def test_members_find_a_store_by_its_name(own_group: int) -> None:
    """In a root that is named after the group."""
    alice, bob = (User(user.uid, (own_group,)) for user in (ALICE, BOB))

    def first() -> tuple[str, int]:
        store = Store.create("by-name", group=own_group, persist=True, **SMALL)
        store["text"] = "found"
        return str(store.path), store.path.parent.stat().st_mode & 0o7777

    def second() -> str:
        with Store.open("by-name", group=own_group, **SMALL) as store:
            with pytest.raises(StoreNotFoundError):
                Store.attach("by-name")
            return str(store["text"])

    path = f"/dev/shm/shmstore-group-{own_group}/by-name"
    assert acting(alice, first) == (path, 0o2770)
    assert acting(bob, second) == "found"
    acting(alice, lambda: Store.attach("by-name", group=own_group).destroy())
    assert not Path(path).parent.exists()


def test_variable_names_the_root_of_groups_too(root: Path) -> None:
    """It must be the group's then."""

    def use() -> str:
        os.environ["SHMSTORE_ROOT"] = str(root)
        with Store.create("s", group=DATA, **SMALL) as store:
            reason = unsafe(lambda: Store.create("t", **SMALL))
            assert "lets others in" in reason
            return str(store.path)

    assert acting(ALICE, use) == str(root / "s")


def test_root_that_was_begun_by_who_died_is_no_hindrance(root: Path) -> None:
    """It never had the name; the next to make one removes it if it was his."""

    def die() -> None:
        root.parent.joinpath(f".shmstore-group-{DATA}-0123456789abcdef").mkdir(0o700)

    acting(ALICE, die)
    acting(BOB, lambda: make(root, persist=True).close())
    acting(ALICE, lambda: make(root, "t", persist=True).close())
    root.rename(root.with_name("aside"))
    acting(ALICE, lambda: make(root, persist=True).close())
    assert sorted(path.name for path in root.parent.iterdir()) == ["aside", "root"]
