"""Strangers, with other users' processes and ours: what they put in our way is not touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strangers
from rooms import base
from stores import forks
from strangers import ALICE, MALLORY, SMALL, User, acting, meanwhile, needs_users, until

import shmstore
from shmstore import ObjectRef, Store, StoreNotFoundError, UnsafePathError

__all__ = ["base"]  # a fixture

pytestmark = forks

FILES = ["index", "lock", "segment-00000"]
SEAT = "seats/1"
KINDS = ["symlink", "dangling", "fifo", "socket", "device", "folder", "second name", "foreign"]
ENOUGH = {"done": 15, "UnsafePathError": 15}


def put_in_place(path: Path, kind: str, aside: Path) -> None:
    """Move a file aside, and put something else in its place."""
    path.rename(aside)
    if kind == "symlink":
        path.symlink_to(aside)
    elif kind == "dangling":
        path.symlink_to(aside.parent / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        path.chmod(0o600)
    elif kind == "device":
        with contextlib.suppress(PermissionError):
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        if not path.exists():
            pytest.skip("this user may not make devices")
    elif kind == "folder":
        path.mkdir(mode=0o700)
    elif kind == "second name":
        os.link(aside, path)
    else:
        shutil.copyfile(aside, path)
        path.chmod(0o600)
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(path, MALLORY.uid, MALLORY.uid)


def put_back(path: Path, aside: Path) -> None:
    """Undo `put_in_place`."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
    aside.rename(path)


def refused(call: Callable[[], Any], path: Path) -> None:
    """Fail unless a call is refused because of a path."""
    with pytest.raises(UnsafePathError) as caught:
        call()
    assert caught.value.path == str(path)
    assert caught.value.reason in str(caught.value)
    assert caught.value.facts.keys() == {"path", "reason"}


# --- what lies there -----------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "kind"), list(itertools.product(FILES, KINDS)))
def test_file_in_the_place_of_a_part_is_refused_by_everyone(
    base: Path, part: str, kind: str
) -> None:
    """At once, by who joins and by who makes; who prunes leaves it; nothing is changed."""
    root = base / "root"
    store = Store.create("s", root=root, **SMALL, persist=True)
    path = store.path / part
    store.close()
    put_in_place(path, kind, base / "aside")
    before = strangers.fingerprint(base)
    refused(lambda: Store.attach(path.parent), path)
    refused(lambda: Store.attach(path.parent, readonly=True), path)
    refused(lambda: Store.open("s", root=root, **SMALL), path)
    if part != "segment-00000":  # only who joins looks at it
        refused(lambda: Store.create("s", root=root, **SMALL), path)
    assert shmstore.prune(root) == []
    assert strangers.fingerprint(base) == before


@pytest.mark.parametrize("kind", KINDS)
def test_file_in_the_place_of_a_seat_is_refused_by_everyone(base: Path, kind: str) -> None:
    """Whether its client lives cannot be told: neither it nor its store is taken for dead."""
    root = base / "root"
    with Store.create("s", root=root, **SMALL) as store:
        store["a"] = "kept"
        path = store.path / SEAT
        put_in_place(path, kind, base / "aside")
        before = strangers.fingerprint(base)
        for call in (
            lambda: Store.attach(store.path, readonly=True),
            lambda: Store.create("s", root=root, **SMALL),
        ):
            refused(call, path)
        assert shmstore.prune(root) == []
        after = strangers.fingerprint(base)
        del before["root/s/index"], after["root/s/index"]  # DIRTY came and went
        assert after == before
        put_back(path, base / "aside")
        assert store["a"] == "kept"
        assert store.check() == []


def test_folders_in_the_place_of_folders_are_refused_when_they_are_others(base: Path) -> None:
    """The folder of a store, that of its seats: links and loose modes."""
    root = base / "root"
    Store.create("s", root=root, **SMALL, persist=True).close()
    for path in (root / "s", root / "s" / "seats"):
        path.rename(base / "aside")
        path.symlink_to(base / "aside")
        refused(lambda: Store.attach(root / "s"), path)
        refused(lambda: Store.create("s", root=root, **SMALL), path)
        path.unlink()
        (base / "aside").rename(path)
        path.chmod(0o750)
        refused(lambda: Store.attach(root / "s"), path)
        path.chmod(0o700)
    Store.attach(root / "s").destroy()


def test_socket_or_fifo_as_root_is_refused_at_once(base: Path) -> None:
    """Nobody waits for who would open the other end."""
    os.mkfifo(base / "fifo", 0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(base / "socket"))
    for name in ("fifo", "socket"):
        refused(lambda name=name: Store.create("s", root=base / name), base / name)
        refused(lambda name=name: Store.attach("s", root=base / name), base / name)
        with pytest.raises(UnsafePathError):
            shmstore.prune(base / name)


def test_store_that_ends_does_not_follow_what_lies_in_it(base: Path) -> None:
    """Links and folders that somebody has put there go; what they lead to stays."""
    precious = strangers.treasure(base)
    before = strangers.fingerprint(precious)
    with Store.create("s", root=base / "root", **SMALL) as store:
        (store.path / "link").symlink_to(precious)
        for name in ("file", "spill"):
            (store.path / name).symlink_to(precious / "s" / "index")
        (store.path / "more" / "deep").mkdir(parents=True)
        (store.path / "more" / "deep" / "link").symlink_to(precious / "s")
    assert list((base / "root").iterdir()) == []
    assert strangers.fingerprint(precious) == before


# --- other users ---------------------------------------------------------------------------------


@needs_users
@pytest.mark.parametrize("who", [MALLORY, User(0)], ids=["stranger", "root"])
def test_store_of_another_user_is_refused(who: User) -> None:
    """By root too, who could open it: what lies there is not root's."""
    with strangers.public_folder() as place:
        root = place / "root"

        def make() -> bytes:
            with Store.create("s", root=root, **SMALL, persist=True) as store:
                return pickle.dumps((store.put([1], key="k"), store.path))

        def trespass() -> list[str]:
            with contextlib.suppress(UnsafePathError, StoreNotFoundError):
                ObjectRef.get(pickle.loads(pickled)[0])
            calls: list[Callable[[], Any]] = [
                lambda: Store.attach(root / "s"),
                lambda: Store.attach(root / "s", readonly=True),
                lambda: Store.open("s", root=root, **SMALL),
                lambda: Store.create("t", root=root, **SMALL),
                lambda: shmstore.prune(root),
            ]
            reasons = []
            for call in calls:
                with pytest.raises(UnsafePathError) as caught:
                    call()
                reasons.append(caught.value.reason)
            return reasons

        pickled = acting(ALICE, make)
        before = strangers.fingerprint(place)
        reason = f"user {ALICE.uid}" if who.uid == 0 else "Permission denied"
        assert all(reason in told for told in acting(who, trespass))
        assert strangers.fingerprint(place) == before


@needs_users
@pytest.mark.parametrize("kind", ["folder", "open folder", "symlink", "fifo", "file"])
def test_root_that_a_stranger_has_made_first_is_refused(kind: str) -> None:
    """Whatever it is, nothing is put there and nothing is taken away."""
    with strangers.public_folder() as place:
        root = place / f"shmstore-{ALICE.uid}"
        precious = strangers.treasure(place, ALICE)

        def plant() -> None:
            os.umask(0)
            if kind == "symlink":
                root.symlink_to(precious)
            elif kind == "fifo":
                os.mkfifo(root, 0o777)
            elif kind == "file":
                root.touch(0o777)
            else:
                root.mkdir(0o777 if kind == "open folder" else 0o700)

        def use() -> None:
            for call in (
                lambda: Store.create("s", root=root, **SMALL),
                lambda: Store.open("s", root=root, **SMALL),
                lambda: Store.attach("s", root=root),
                lambda: shmstore.prune(root),
            ):
                refused(call, root)

        acting(MALLORY, plant)
        before = strangers.fingerprint(place)
        assert acting(ALICE, use) is None
        assert strangers.fingerprint(place) == before


# --- races ---------------------------------------------------------------------------------------


def clear(path: Path) -> None:
    """Remove whatever has a name, if this user may."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def plant_roots(root: Path, target: Path) -> Callable[[], None]:
    """Return what a stranger does: each time something else where the root should be."""
    kinds: list[Callable[[], object]] = [
        lambda: root.symlink_to(target),
        lambda: root.mkdir(0o777),
        lambda: os.mkfifo(root, 0o777),
        lambda: root.touch(0o777),
        lambda: root.rename(strangers.temporary(root.parent)),
    ]
    turns = itertools.cycle(kinds)

    def act() -> None:
        with contextlib.suppress(OSError):
            next(turns)()
        clear(root)

    return act


def live(root: Path, group: int | None = None) -> Callable[[], None]:
    """Return what a user does: make a store, use it, and leave nothing."""

    def act() -> None:
        try:
            with Store.create("s", root=root, **SMALL, group=group) as store:
                store["a"] = b"mine"
                with Store.attach(root / "s", readonly=True, group=group) as reader:
                    assert reader["a"] == b"mine"
        finally:
            with contextlib.suppress(shmstore.ShmStoreError):
                shmstore.prune(root, group=group)
            clear(root)
            for taken_away in root.parent.glob("tmp*"):
                shutil.rmtree(taken_away, ignore_errors=True)

    return act


@needs_users
@pytest.mark.parametrize("place_for_all", ["sticky", "volume"])
def test_race_for_the_name_of_a_root_is_won_whole_or_lost_whole(place_for_all: str) -> None:
    """Also in a volume without sticky bit, where a stranger can take the root away at any time."""
    opened = strangers.public_folder() if place_for_all == "sticky" else strangers.volume(0o777)
    with opened as place:
        root, precious = place / "root", strangers.treasure(place, ALICE)
        before = strangers.fingerprint(precious)
        with meanwhile(MALLORY, plant_roots(root, precious)):
            counts = acting(ALICE, lambda: until(ENOUGH, live(root)))
        assert ENOUGH.keys() <= counts.keys()
        strangers.note(f"for a root ({place_for_all})", counts)
        if place_for_all == "volume":  # with the stores that were taken away it fills up
            counts.pop("StoreFullError", None)
        assert set(counts) <= {"done", "UnsafePathError", "StoreNotFoundError"}
        assert strangers.fingerprint(precious) == before


@contextlib.contextmanager
def inside(place: Path, *names: str) -> Iterator[int]:
    """Open a folder below a place without following links: the madman must not hit the treasure."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    with contextlib.ExitStack() as opened:
        fd = os.open(place, flags)
        opened.callback(os.close, fd)
        for name in names:
            fd = os.open(name, flags, dir_fd=fd)
            opened.callback(os.close, fd)
        yield fd


def disturb(place: Path, target: Path) -> Callable[[], None]:
    """Return what a madman among our own processes does in a root: rename, link, replace."""

    def swap(lead: Path | None, *names: str) -> None:
        with inside(place, *names[:-1]) as fd, inside(place) as place_fd:
            name, away = names[-1], strangers.temporary(place).name
            os.rename(name, away, src_dir_fd=fd, dst_dir_fd=place_fd)
            if lead is None:
                os.mkfifo(name, 0o600, dir_fd=fd)
            else:
                os.symlink(lead, name, dir_fd=fd)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=fd)
            try:
                os.rename(away, name, src_dir_fd=place_fd, dst_dir_fd=fd)
            except OSError:
                shutil.rmtree(away, ignore_errors=True, dir_fd=place_fd)

    def swap_unfinished() -> None:
        with inside(place, "root") as fd:
            names = [entry.name for entry in os.scandir(fd) if entry.name.startswith(".")]
        for name in names:
            swap(target / "s", "root", name)
            swap(target / "s" / "index", "root", name, "index")

    kinds: list[Callable[[], object]] = [
        lambda: swap(target, "root"),
        lambda: swap(target / "s", "root", "s"),
        lambda: swap(target / "s" / "index", "root", "s", "index"),
        lambda: swap(target / "s" / "seats", "root", "s", "seats"),
        lambda: swap(target / "s" / "segment-00000", "root", "s", "segment-00000"),
        lambda: swap(target / "s" / "seats" / "1", "root", "s", "seats", "1"),
        lambda: swap(None, "root", "s", "lock"),
        swap_unfinished,
    ]
    turns = itertools.cycle(kinds)

    def act() -> None:
        with contextlib.suppress(OSError):
            next(turns)()

    return act


@needs_users
def test_race_inside_of_a_root_touches_nothing_outside_of_it() -> None:
    """Not even processes of the same user, which are trusted, can lead us out of it."""
    with strangers.public_folder(0o700) as place:
        os.chown(place, ALICE.uid, ALICE.uid)
        root, precious = place / "root", strangers.treasure(place, ALICE)
        before = strangers.fingerprint(precious)
        with meanwhile(ALICE, disturb(place, precious)):
            counts = acting(ALICE, lambda: until(ENOUGH, live(root)))
        strangers.note("inside of a root", counts)
        assert ENOUGH.keys() <= counts.keys()
        assert strangers.fingerprint(precious) == before
