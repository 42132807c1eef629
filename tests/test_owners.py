"""Whose is a path, and who could put another one in its place?"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rooms import base
from stores import forks
from strangers import (
    ALICE,
    BOB,
    DATA,
    MALLORY,
    User,
    acting,
    needs_users,
    public_folder,
    set_acl,
    volume,
)

import shmstore
from shmstore import Store, UnsafePathError
from shmstore._memory import folder, owners

__all__ = ["base"]  # a fixture

pytestmark = forks

CLONE_NEWUSER = 0x10000000


def refusal(root: Path, *, create: bool = True, gid: int | None = None) -> UnsafePathError:
    """Return the error for a root that is refused."""
    with pytest.raises(UnsafePathError) as caught:
        folder.open_root(root, create=create, gid=gid)
    assert caught.value.facts.keys() == {"path", "reason"}
    assert caught.value.reason in str(caught.value)
    return caught.value


def accept(root: Path, gid: int | None = None) -> None:
    """Fail unless a root can be made, and opened again."""
    for create in (True, False):
        folder.open_root(root, create=create, gid=gid).close()


# --- the folders above the root -----------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o702])
@pytest.mark.parametrize("below", ["root", "deeper/root"])
def test_root_where_anybody_could_exchange_it_is_refused(base: Path, mode: int, below: str) -> None:
    """Without the sticky bit everybody may rename what is not theirs."""
    open_folder = base / "open"
    (open_folder / "deeper").mkdir(parents=True)
    open_folder.chmod(mode)
    for create in (True, False):
        error = refusal(open_folder / below, create=create)
        assert error.path == str(open_folder)
        assert f"{mode:#o}" in error.reason
        assert "chmod +t" in str(error)
    assert [path.name for path in open_folder.rglob("*")] == ["deeper"]
    open_folder.chmod(0o1000 | mode)
    accept(open_folder / below)


@needs_users
def test_root_where_the_members_of_a_group_could_exchange_it_is_refused(base: Path) -> None:
    """Unless it is the group that was named, or the system's."""
    shared = base / "shared"
    shared.mkdir()
    os.chown(shared, -1, DATA)
    shared.chmod(0o770)
    assert f"group {DATA}" in refusal(shared / "root").reason
    assert f"group {DATA}" in refusal(shared / "root", gid=DATA + 1).reason
    accept(shared / "root", gid=DATA)
    os.chown(shared, -1, 0)
    accept(shared / "private")


@needs_users
def test_folder_of_a_group_that_only_its_user_is_in_is_as_good_as_private(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each user has such a group folders are made so; an ACL may say something else."""
    shared = base / "shared"
    shared.mkdir()
    os.chown(shared, -1, DATA)
    shared.chmod(0o775)
    names: dict[str, Any] = {"group": "ann", "members": []}
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="ann"))
    monkeypatch.setattr(
        grp,
        "getgrgid",
        lambda _: SimpleNamespace(gr_name=names["group"], gr_mem=names["members"]),
    )
    accept(shared / "root")
    for group, members in (("ann", ["ann", "ben"]), ("users", [])):
        names.update(group=group, members=members)
        assert f"group {DATA}" in refusal(shared / "root").reason
    names.update(group="ann", members=["ann"])
    accept(shared / "root")
    set_acl(shared, "access")
    shared.chmod(0o775)
    assert f"group {DATA}" in refusal(shared / "root").reason


@needs_users
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_root_in_a_folder_of_somebody_else_is_refused(base: Path, mode: int) -> None:
    """Its owner may rename whatever is in it, with or without the sticky bit."""
    place = base / "place"
    (place / "deeper").mkdir(parents=True)
    place.chmod(mode)
    os.chown(place, MALLORY.uid, MALLORY.uid)
    for root in (place / "root", place / "deeper" / "root"):
        error = refusal(root)
        assert error.path == str(place)
        assert f"user {MALLORY.uid}" in error.reason


def test_links_on_the_way_are_followed_where_nobody_else_can_turn_them(base: Path) -> None:
    """/var/run is one; absolute and relative ones, with dots in them."""
    (base / "real" / "deep").mkdir(parents=True)
    (base / "absolute").symlink_to(base / "real")
    (base / "relative").symlink_to("real/../real/deep")
    accept(base / "absolute" / "one")
    accept(base / "relative" / "two")
    assert (base / "real" / "one").is_dir()
    assert (base / "real" / "deep" / "two").is_dir()
    (base / "real" / "open").mkdir()
    (base / "real" / "open").chmod(0o777)
    (base / "there").symlink_to("absolute/open")
    assert refusal(base / "there" / "root").path == str(base / "real" / "open")


def test_links_in_a_circle_are_refused(base: Path) -> None:
    """They lead nowhere, in bounded time."""
    (base / "a").symlink_to("b")
    (base / "b").symlink_to("a")
    assert "links" in refusal(base / "a" / "root").reason


@needs_users
def test_link_of_a_stranger_on_the_way_is_refused() -> None:
    """Who may make links in a folder for all may not lead us anywhere."""
    with public_folder() as place:
        target = place / "target"
        target.mkdir(mode=0o700)
        link = place / "link"
        link.symlink_to(target)
        os.chown(link, MALLORY.uid, MALLORY.uid, follow_symlinks=False)
        error = refusal(link / "root")
        assert error.path == str(link)
        assert f"link of user {MALLORY.uid}" in error.reason
        assert list(target.iterdir()) == []


def test_way_that_is_no_folder_is_refused_and_one_that_is_missing_not_found(base: Path) -> None:
    """A file, a FIFO, and nothing."""
    (base / "file").write_bytes(b"")
    os.mkfifo(base / "fifo")
    for name in ("file", "fifo"):
        assert refusal(base / name / "root").path == str(base / name)
    for create in (True, False):
        with pytest.raises(shmstore.StoreNotFoundError):
            folder.open_root(base / "nowhere" / "root", create=create)


def test_folder_for_all_that_the_system_has_mounted_is_accepted() -> None:
    """Containers get their volumes so, and cannot change it; below it nothing is forgiven."""
    with volume(0o777) as place:
        accept(place / "root")
        (place / "open").mkdir()
        (place / "open").chmod(0o777)
        assert refusal(place / "open" / "root").path == str(place / "open")
        if os.geteuid() == 0:
            os.chown(place, MALLORY.uid, -1)
            assert f"user {MALLORY.uid}" in refusal(place / "root").reason


@needs_users
def test_folders_whose_owner_a_user_namespace_does_not_know_are_the_systems() -> None:
    """There root of the machine looks like "nobody"; without a namespace "nobody" is a stranger."""
    unmapped = int(Path("/proc/sys/kernel/overflowuid").read_text())
    with public_folder() as place:

        def inside() -> tuple[int, int]:
            user = os.geteuid()
            if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
                return -1, -1
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            accept(place / "root")
            return os.geteuid(), place.parent.stat().st_uid

        found = acting(ALICE, inside)
        if found == (-1, -1):
            pytest.skip("this user may not make a user namespace")
        assert found == (0, unmapped)
        os.chown(place, unmapped, unmapped)
        assert f"user {unmapped}" in acting(ALICE, lambda: refusal(place / "other")).reason


# --- access lists -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["access", "default"])
@pytest.mark.parametrize("part", [".", "s", "s/seats"])
def test_folder_with_an_access_list_is_refused(base: Path, part: str, kind: str) -> None:
    """A list for what is made in it lets others into files whose mode says nothing of it."""
    root = base / "root"
    Store.create("s", root=root, capacity="1MiB", persist=True).close()
    set_acl(root / part, kind)
    assert stat.S_IMODE((root / part).stat().st_mode) == 0o700
    for call in (
        lambda: Store.attach(root / "s"),
        lambda: Store.attach(root / "s", readonly=True),
        lambda: Store.create("s", root=root, capacity="1MiB"),
    ):
        with pytest.raises(UnsafePathError, match="ACL") as caught:
            call()
        assert caught.value.path == str(root / part)
        assert "setfacl" in str(caught.value)


@pytest.mark.parametrize("part", ["index", "lock", "segment-00000", "seats/1"])
def test_file_with_an_access_list_is_refused(base: Path, part: str) -> None:
    """Each of them, whoever opens it."""
    with Store.create("s", root=base / "root", capacity="1MiB") as store:
        set_acl(store.path / part, "access")
        with pytest.raises(UnsafePathError, match="ACL") as caught:
            Store.attach(store.path, readonly=True)
        assert caught.value.path == str(store.path / part)
        os.removexattr(store.path / part, "system.posix_acl_access")


def test_root_made_in_a_folder_that_hands_its_access_list_on_is_refused(base: Path) -> None:
    """And is not left behind."""
    set_acl(base, "default")
    assert "ACL" in refusal(base / "root").reason
    assert list(base.iterdir()) == []


# --- what is made -------------------------------------------------------------------------------


@needs_users
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177, 0o027])
@pytest.mark.parametrize("gid", [None, DATA])
def test_what_is_made_has_its_modes_whatever_the_umask(mask: int, gid: int | None) -> None:
    """Closed to others, open to its user, and to the group where there is one."""
    with public_folder(0o3777) as place:
        os.chown(place, -1, DATA + 5)  # what is made there would have this group

        def modes() -> set[tuple[bool, int, int]]:
            os.umask(mask)
            with Store.create("s", root=place / "root", capacity="1MiB", group=gid) as store:
                there = [store.path.parent, store.path, *store.path.rglob("*")]
                found = [(path.is_dir(), path.stat()) for path in there]
                return {(d, stat.S_IMODE(s.st_mode), s.st_gid) for d, s in found if d or gid}

        if gid is None:
            assert {mode for _, mode, _ in acting(ALICE, modes)} == {0o700}
        else:
            assert acting(ALICE, modes) == {(True, 0o2770, DATA), (False, 0o660, DATA)}


@needs_users
@pytest.mark.parametrize("user", [ALICE, BOB, MALLORY])
def test_default_root_is_that_of_the_effective_user(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that changes its user does not make a root that the other one then refuses."""
    monkeypatch.delenv("SHMSTORE_ROOT")

    def name() -> str:
        return folder.default_root().name

    assert acting(user, name) == f"shmstore-{user.uid}"
    assert folder.default_root(DATA).name == f"shmstore-group-{DATA}"


def test_root_of_a_file_system_is_refused_as_any_other_folder() -> None:
    """It is open to others."""
    assert refusal(Path("/"), create=False).path == "/"


def test_attributes_that_cannot_be_read_are_an_error(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a file system that has none may be silent about them."""
    for number, is_told in ((1, True), (95, False)):

        def fail(_: int, number: int = number) -> list[str]:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "listxattr", fail)
        fd = os.open(base, os.O_RDONLY)
        try:
            if is_told:
                with pytest.raises(PermissionError):
                    owners.has_acl(fd)
            else:
                assert not owners.has_acl(fd)
        finally:
            os.close(fd)
