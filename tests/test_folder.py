"""Folders and files of stores: what may be trusted, and what is refused instead of repaired."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rooms
from rooms import base, base_fd

from shmstore import Store
from shmstore._memory import folder
from shmstore.errors import (
    NotAStoreError,
    ShmStoreError,
    StoreFullError,
    StoreNotFoundError,
    UnsafePathError,
)

__all__ = ["base", "base_fd"]  # fixtures

LOOSE_MODES = [0o701, 0o710, 0o704, 0o770, 0o755, 0o777]
SOMEBODY_ELSE = 12345


def _give_away(path: Path) -> None:
    """Let a path belong to somebody else, or skip the test."""
    try:
        os.chown(path, SOMEBODY_ELSE, SOMEBODY_ELSE)
    except PermissionError:
        pytest.skip("this user may not give files away")


def _make_file(base: Path, name: str = "index", mode: int = 0o600) -> Path:
    path = base / name
    path.write_bytes(b"content")
    path.chmod(mode)
    return path


def _assert_refused(path: Path, reason: str, open_it: Callable[[], int]) -> None:
    """Fail unless the path is refused with its name, the reason and what to do."""
    with pytest.raises(UnsafePathError, match=reason) as caught:
        open_it()
    assert isinstance(caught.value, PermissionError)
    assert caught.value.facts["path"] == str(path)
    assert "SHMSTORE_ROOT" in str(caught.value)


def test_folder_that_has_no_place_is_told_by_the_option_that_named_it(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root by its option or the environment, the folder of the files by its own."""
    monkeypatch.setenv("SHMSTORE_ROOT", str(base / "none" / "here"))
    far = base / "none" / "far"
    for option, path, options in (
        ("SHMSTORE_ROOT", base / "none" / "here", {}),
        ("root", far, {"root": far}),
        ("spill_dir", far, {"root": base / "root", "on_full": "spill", "spill_dir": far}),
    ):
        with pytest.raises(StoreNotFoundError) as caught:
            Store.create(capacity="1MiB", **options)
        message = f"the folder above {option}={path} does not exist: make it, or change {option}."
        assert str(caught.value) == message
        assert caught.value.facts["path"] == str(path)
    assert list(base.rglob("*")) == [base / "root"]


# --- the root ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_root_is_made_for_its_user_alone_whatever_the_umask(base: Path, mask: int) -> None:
    """Nobody else can look into it, not even for a moment."""
    old = os.umask(mask)
    try:
        folder.open_root(base / "root", create=True).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((base / "root").stat().st_mode) == 0o700


def test_root_that_exists_is_opened_as_it_is(base: Path) -> None:
    """Making it twice is no error."""
    for _ in range(2):
        folder.open_root(base / "root", create=True).close()
    folder.open_root(base / "root", create=False).close()


def test_root_that_is_missing_is_not_found(base: Path) -> None:
    """The message names the folder and the variable."""
    with pytest.raises(StoreNotFoundError, match="SHMSTORE_ROOT") as caught:
        folder.open_root(base / "root", create=False)
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(StoreNotFoundError, match="above root="):
        folder.open_root(base / "missing" / "root", create=True)


def test_root_that_is_a_symlink_is_refused(base: Path) -> None:
    """Whoever made the link could turn it elsewhere."""
    (base / "real").mkdir(mode=0o700)
    (base / "root").symlink_to(base / "real")
    path = base / "root"
    _assert_refused(path, "folder", lambda: folder.open_root(path, create=False))
    _assert_refused(path, "folder", lambda: folder.open_root(path, create=True))
    assert list((base / "real").iterdir()) == []


def test_root_that_is_a_file_is_refused(base: Path) -> None:
    """A file is no folder of stores."""
    path = _make_file(base, "root")
    _assert_refused(path, "folder", lambda: folder.open_root(path, create=True))


@pytest.mark.parametrize("mode", LOOSE_MODES)
def test_root_that_lets_others_in_is_refused_and_not_repaired(base: Path, mode: int) -> None:
    """What others may have put there cannot be undone by a chmod."""
    path = base / "root"
    path.mkdir()
    path.chmod(mode)
    _assert_refused(path, f"{mode:#o}", lambda: folder.open_root(path, create=True))
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_root_of_somebody_else_is_refused(base: Path) -> None:
    """Somebody may have made it first, to read what we would put there."""
    path = base / "root"
    path.mkdir(mode=0o700)
    _give_away(path)
    reason = f"belongs to user {SOMEBODY_ELSE}, not to {os.geteuid()}"
    _assert_refused(path, reason, lambda: folder.open_root(path, create=True))


def test_root_by_default_is_named_after_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user has one, and $SHMSTORE_ROOT names another; an empty value does not count."""
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("SHMSTORE_ROOT", raising=False)
        else:
            monkeypatch.setenv("SHMSTORE_ROOT", value)
        assert folder.default_root().name == f"shmstore-{os.getuid()}"
        assert folder.default_root().is_absolute()
    monkeypatch.setenv("SHMSTORE_ROOT", "here")
    assert folder.default_root() == Path.cwd() / "here"


def test_root_that_the_user_named_stays_when_it_is_empty(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the default one is made and removed by us."""
    monkeypatch.setenv("SHMSTORE_ROOT", str(base))
    folder.remove_root(base)
    assert base.is_dir()
    monkeypatch.delenv("SHMSTORE_ROOT")
    monkeypatch.setattr(folder, "default_root", lambda _: base / "default")
    (base / "default").mkdir()
    _make_file(base / "default")
    folder.remove_root(base / "default")
    assert (base / "default").is_dir()
    (base / "default" / "index").unlink()
    folder.remove_root(base / "default")
    assert not (base / "default").exists()


# --- the folder of a store -----------------------------------------------------------------------


def test_store_folder_that_is_missing_is_not_found(base: Path, base_fd: int) -> None:
    """The message names the store and where it was looked for."""
    with pytest.raises(StoreNotFoundError, match=f"'training' in {base}") as caught:
        folder.open_store(base_fd, "training", base / "training")
    assert caught.value.facts["name"] == "training"


@pytest.mark.parametrize("kind", ["symlink", "file", "loose"])
@pytest.mark.parametrize("opener", [folder.open_store, folder.open_seats])
def test_store_folder_that_is_none_of_ours_is_refused(
    base: Path, base_fd: int, kind: str, opener: Callable[[int, str, Path], int]
) -> None:
    """The same rules as for the root, for the folder of the store and that of its seats."""
    path = base / "name"
    if kind == "symlink":
        (base / "real").mkdir(mode=0o700)
        path.symlink_to("real")
    elif kind == "file":
        _make_file(base, "name")
    else:
        path.mkdir()
        path.chmod(0o750)
    parent = base if opener is folder.open_seats else path
    _assert_refused(path, "not safe", lambda: opener(base_fd, "name", parent))


def test_store_folder_is_made_in_hiding_and_renamed(base: Path, base_fd: int) -> None:
    """Until it has its name nobody finds it; its mode is that of the root."""
    hidden, fd = folder.make_store_folder(base_fd)
    fd.close()
    assert hidden.startswith(".")
    with pytest.raises(ValueError, match="dot"):
        folder.check_name(hidden)
    folder.rename(base_fd, hidden, "training")
    fd = folder.open_store(base_fd, "training", base / "training")
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
    assert folder.is_linked(fd, base / "training")
    folder.rename(base_fd, "training", "other")
    assert not folder.is_linked(fd, base / "training")
    (base / "training").mkdir()
    assert not folder.is_linked(fd, base / "training")
    fd.close()


# --- files ---------------------------------------------------------------------------------------


def test_file_of_ours_is_opened_for_reading_or_writing(base: Path, base_fd: int) -> None:
    """As asked, and never left open over an exec."""
    _make_file(base)
    for readonly in (False, True):
        fd = folder.open_file(base_fd, "index", base, readonly=readonly)
        assert not os.get_inheritable(fd)
        if readonly:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
        else:
            assert os.write(fd, b"x") == 1
        fd.close()


def test_file_that_is_missing_means_that_the_folder_is_no_store(base: Path, base_fd: int) -> None:
    """The folder is there, but what makes it a store is not."""
    with pytest.raises(NotAStoreError, match="holds no 'index'") as caught:
        folder.open_file(base_fd, "index", base)
    assert caught.value.facts == {"path": str(base), "missing": "index"}
    with pytest.raises(NotAStoreError, match="holds no 'seats'"):
        folder.open_seats(base_fd, "seats", base)


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder", "socket", "device"])
def test_file_that_is_something_else_is_refused_at_once(
    base: Path, base_fd: int, kind: str, *, readonly: bool
) -> None:
    """A link could lead anywhere, and a pipe could make us wait for ever."""
    path = base / "index"
    if kind == "symlink":
        path.symlink_to(_make_file(base, "real"))
    elif kind == "dangling":
        path.symlink_to(base / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this user may not make devices")
    else:
        path.mkdir(mode=0o700)
    _assert_refused(
        path, "not safe", lambda: folder.open_file(base_fd, "index", base, readonly=readonly)
    )


@pytest.mark.parametrize("mode", [0o640, 0o606, 0o666, 0o620])
def test_file_that_others_may_use_is_refused(base: Path, base_fd: int, mode: int) -> None:
    """Whoever can write it can write any object."""
    path = _make_file(base, mode=mode)
    _assert_refused(path, f"{mode:#o}", lambda: folder.open_file(base_fd, "index", base))
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_file_with_a_second_name_is_refused(base: Path, base_fd: int) -> None:
    """A hard link may let somebody else's folder lead to our data."""
    path = _make_file(base)
    os.link(path, base / "second")
    reason = "2 hard links"
    _assert_refused(path, reason, lambda: folder.open_file(base_fd, "index", base))
    (base / "second").unlink()
    folder.open_file(base_fd, "index", base).close()


def test_file_of_somebody_else_is_refused(base: Path, base_fd: int) -> None:
    """It was not us who put it there."""
    path = _make_file(base)
    _give_away(path)
    reason = f"belongs to user {SOMEBODY_ELSE}"
    _assert_refused(path, reason, lambda: folder.open_file(base_fd, "index", base))


def test_file_is_made_new_and_for_its_user_alone(base: Path, base_fd: int) -> None:
    """What exists is never taken over, not even through a link."""
    old = os.umask(0)
    try:
        folder.create_file(base_fd, "index").close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((base / "index").stat().st_mode) == 0o600
    (base / "link").symlink_to("elsewhere")
    for name in ("index", "link"):
        with pytest.raises(FileExistsError):
            folder.create_file(base_fd, name)
    assert not (base / "elsewhere").exists()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR])
def test_want_of_resources_is_not_taken_for_an_unsafe_path(
    base: Path, base_fd: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A process without free descriptors is told so, and not that its files are foreign."""
    _make_file(base)
    fail = OSError(number, os.strerror(number))

    def refuse(*_: object, **__: object) -> int:
        raise fail

    openers: list[Callable[[], Any]] = [
        lambda: folder.open_root(base, create=False),
        lambda: folder.open_store(base_fd, "name", base / "name"),
        lambda: folder.open_file(base_fd, "index", base),
        lambda: folder.open_seats(base_fd, "seats", base),
    ]
    for opener in openers:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                opener()
        assert not isinstance(caught.value, UnsafePathError)
        assert caught.value.errno == number


# --- a full file system --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM])
def test_full_file_system_is_an_error_with_numbers_and_ways_out(
    base: Path, base_fd: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """How much was asked, how much is free, and how to enlarge it in a container."""
    assert folder.free_bytes(base_fd) > 0
    monkeypatch.setattr(folder, "free_bytes", lambda _: 7_654)
    error = folder.full_file_system(base_fd, base, 123_456, OSError(number, os.strerror(number)))
    assert isinstance(error, StoreFullError)
    assert isinstance(error, MemoryError)
    assert error.facts["asked"] == 123_456
    assert error.facts["free"] == 7_654
    for hint in ("123,456", "7,654", "--shm-size", "emptyDir", "remount", os.strerror(number)):
        assert hint in str(error)


def test_other_errors_of_the_system_stay_what_they_are(base: Path, base_fd: int) -> None:
    """An input/output error is not a full disk."""
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Input/output") as caught:
        folder.full_file_system(base_fd, base, 1, broken)
    assert caught.value is broken


# --- through the front door ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["index", "lock", "seats"], ["symlink", "loose", "missing"]),
        ("segment-00000", "symlink"),  # without one, other objects are still there
        ("segment-00000", "loose"),
    ],
)
def test_store_with_a_part_that_is_not_ours_cannot_be_attached(
    base: Path, name: str, kind: str
) -> None:
    """Each file is checked by whoever opens it, and what was opened before is closed."""
    with Store.create("whole", root=base, capacity="1MiB", persist=True):
        pass
    path = base / "whole" / name
    if kind == "symlink":
        path.rename(base / "moved")
        path.symlink_to(base / "moved")
    elif kind == "loose":
        path.chmod(0o755)
    else:
        path.rename(base / "moved")
    before = rooms.descriptors()
    with pytest.raises(NotAStoreError if kind == "missing" else UnsafePathError):
        Store.attach(base / "whole")
    assert rooms.descriptors() == before


def test_store_cannot_be_created_in_a_root_that_lets_others_in(base: Path) -> None:
    """Nothing is put there."""
    root = base / "root"
    root.mkdir()
    root.chmod(0o755)
    with pytest.raises(UnsafePathError, match="0o755"):
        Store.create("mine", root=root, capacity="1MiB")
    assert list(root.iterdir()) == []


def test_store_name_taken_by_something_else_is_refused(base: Path) -> None:
    """A file of that name is not removed to make room."""
    precious = _make_file(base, "mine")
    with pytest.raises(ShmStoreError):
        Store.create("mine", root=base, capacity="1MiB")
    assert precious.read_bytes() == b"content"
    (base / "empty").mkdir(mode=0o700)
    with pytest.raises(ShmStoreError):
        Store.create("empty", root=base, capacity="1MiB")
    assert (base / "empty").is_dir()
