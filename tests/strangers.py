"""Other users of the machine: friends in a group, and somebody who means harm.

They are real: forked children that give up being root. Where this process is not root, tests that
need them are skipped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import pickle
import signal
import stat
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import proofs
import pytest
import rooms
import stores

from shmstore import ShmStoreError

DATA: Final = 61000
"""The group of Alice and Bob."""

PR_SET_DUMPABLE: Final = 4
PAGE: Final = 4096

SMALL: Final[dict[str, Any]] = {"capacity": "1MiB", "max_objects": 500}
"""A store that is quickly made."""


class User(NamedTuple):
    """Somebody, with a group of his own and maybe others."""

    uid: int
    groups: tuple[int, ...] = ()


ALICE: Final = User(61001, (DATA,))
BOB: Final = User(61002, (DATA,))
MALLORY: Final = User(61003)

needs_users = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make processes of several users"
)


# --- processes of others ------------------------------------------------------------------------


def become(user: User) -> None:
    """Be this user from now on, and in no way root any more."""
    os.setgroups(user.groups)
    os.setresgid(user.uid, user.uid, user.uid)
    os.setresuid(user.uid, user.uid, user.uid)
    os.environ.pop("SHMSTORE_ROOT", None)
    os.chdir("/")
    with contextlib.suppress(AttributeError):  # /proc/self would be root's
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)


def start(user: User, act: Callable[[], Any]) -> tuple[int, int]:
    """Start a process of this user; return its pid and a pipe with what `act` returns or raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code = 1
    try:
        os.close(reader)
        become(user)
        signal.alarm(stores.WAIT_S)  # whoever hangs is killed
        try:
            result = act()
        except (ShmStoreError, OSError, ValueError) as error:
            result = error
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(result, pipe)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # As an ordinary process ends: whoever still has a handle leaves its store.
        from shmstore import _process

        _process._leave_all()
        os._exit(code)


def finish(process: tuple[int, int]) -> Any:
    """Wait for a process that was started; return what it has to say."""
    pid, reader = process
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    assert stores.exit_code(pid) == 0
    return pickle.loads(answer)


def acting(user: User, act: Callable[[], Any]) -> Any:
    """Let a user do something; return what comes of it, or the error that it met."""
    return finish(start(user, act))


@contextlib.contextmanager
def meanwhile(user: User, act: Callable[[], Any]) -> Iterator[None]:
    """Let a user do something again and again, while the block lasts."""

    def again_and_again() -> None:
        while True:
            with contextlib.suppress(OSError):
                act()

    pid, reader = start(user, again_and_again)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(reader)
        assert stores.exit_code(pid) == -signal.SIGKILL


# --- places -------------------------------------------------------------------------------------


@contextlib.contextmanager
def public_folder(mode: int = 0o1777) -> Iterator[Path]:
    """Give a folder in shared memory where everybody may make something, as /dev/shm is."""
    with rooms.memory_folder() as path:
        path.chmod(mode)
        yield path


@contextlib.contextmanager
def volume(mode: int) -> Iterator[Path]:
    """Give a file system of its own with a mode, or skip the test where none may be mounted."""
    with rooms.small_file_system(16 << 20) as path:
        # mkdtemp keeps others out of the place, not of what is mounted there.
        path.chmod(mode)
        yield path


def set_acl(path: Path, kind: str, uid: int = 61004) -> None:
    """Let another user in by a POSIX ACL ("access" or "default"), or skip the test."""
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, 7, uid), (4, 0, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    mode = path.stat().st_mode & 0o777
    if not sys.platform.startswith("linux"):
        pytest.skip("POSIX ACLs are attributes on Linux only")
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", packed)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip("the file system has no POSIX ACLs")
        raise
    path.chmod(mode)  # the mask is closed: only the ACL itself is left to be seen


def treasure(folder: Path, user: User | None = None) -> Path:
    """Make a folder outside of any root that looks like one with a store; return it."""
    path = folder / "treasure"
    for below in ("s/seats", ".old-0123456789abcdef", ".new-0123456789abcdef/seats"):
        (path / below).mkdir(parents=True)
    for name in ("index", "lock", "segment-00000", "seats/1"):
        (path / "s" / name).write_bytes(b"gold")
    (path / ".old-0123456789abcdef" / "index").write_bytes(b"gold")
    for below in (path, *path.rglob("*")):
        below.chmod(0o700 if below.is_dir() else 0o600)
        if user is not None:
            os.chown(below, user.uid, user.uid)
    return path


def fingerprint(folder: Path) -> dict[str, tuple[int, int, int, int, str]]:
    """Return what is in a folder: of each file its mode, owners, length and a hash of its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest = digest_of(path) if stat.S_ISREG(status.st_mode) else ""
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        name = str(path.relative_to(folder))
        found[name] = (status.st_mode, status.st_uid, status.st_gid, size, digest)
    return found


def digest_of(path: Path, *, but: Container[int] = ()) -> str:
    """Return a hash of the bytes of a file, read past its holes; of all words `but` some."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        end, offset = path.stat().st_size, 0
        while offset < end:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA) // PAGE * PAGE
            except OSError:  # nothing but a hole is left
                break
            page = os.pread(file.fileno(), PAGE, offset)
            if any(page):
                words = [
                    b"?" if offset // 8 + number in but else page[8 * number : 8 * number + 8]
                    for number in range(len(page) // 8 + 1)
                ]
                digest.update(b"%d:%b" % (offset, b"".join(words) if but else page))
            offset += PAGE
    return digest.hexdigest()


def until(outcomes: dict[str, int], act: Callable[[], None]) -> dict[str, int]:
    """Do something until it has ended so often in each of these ways, or time is up; count all.

    Where proofs are counted (``make soak``) it goes on for as long as a test may take.
    """
    counts: dict[str, int] = {}
    deadline = time.monotonic() + stores.WAIT_S / 2
    is_long = proofs.VARIABLE in os.environ
    while time.monotonic() < deadline:
        try:
            act()
            outcome = "done"
        except ShmStoreError as error:
            outcome = type(error).__name__
        except OSError as error:
            outcome = f"{type(error).__name__}: {error}"
        counts[outcome] = counts.get(outcome, 0) + 1
        if not is_long and all(counts.get(name, 0) >= often for name, often in outcomes.items()):
            break
    return counts


def note(race: str, counts: dict[str, int]) -> None:
    """Count what a race has shown."""
    done = counts.get("done", 0)
    proofs.note(f"strangers: {race}", tries=sum(counts.values()), undisturbed=done)


def temporary(folder: Path) -> Path:
    """Return a name that is not taken."""
    return Path(tempfile.mktemp(dir=folder))
