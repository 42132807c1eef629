"""What is right and wrong with the machine, one function per topic?"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import pwd
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

import shmstore
from shmstore.cli import _host, _words

# What docker gives a container that asks for nothing.
_DOCKER_NBYTES: Final = 64 << 20
_FEW_FILES: Final = 1024
_MOST_IN_USE: Final = 0.9
_FIRST_USER: Final = 1000
_OPTIONAL: Final = (
    "rich",
    "pandas",
    "pyarrow",
    "polars",
    "torch",
    "lz4",
    "zstandard",
    "matplotlib",
)
_IN_MEMORY: Final = ("tmpfs", "ramfs", "hugetlbfs", "shm")


class Finding(NamedTuple):
    """What was found, how bad it is, and what to do about it."""

    level: str
    text: str
    remedy: str = ""


def root_of(arguments: argparse.Namespace) -> Path:
    """Return the folder of the stores that a command is about."""
    if arguments.root:
        return Path(arguments.root).absolute()
    given = os.environ.get("SHMSTORE_ROOT")
    if given:
        return Path(given).absolute()
    shared = Path("/dev/shm")  # noqa: S108 - the place for it
    base = shared if sys.platform == "linux" else Path(tempfile.gettempdir())
    whose = f"group-{arguments.group}" if arguments.group is not None else os.geteuid()
    return base / f"shmstore-{whose}"


def existing(path: Path) -> Path:
    """Return the path, or what is there above it."""
    return next((above for above in (path, *path.parents) if above.exists()), Path("/"))


# --- versions ------------------------------------------------------------------------------------


def versions(_: argparse.Namespace) -> Iterator[Finding]:
    """Tell what runs here."""
    yield Finding(
        "ok",
        f"shmstore {shmstore.__version__}, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, {platform.system()} {platform.release()} on {platform.machine()}",
    )
    found = [f"{name} {version}" for name in _OPTIONAL if (version := _version(name))]
    yield Finding("ok", f"optional: {', '.join(found) or 'none'}")
    if sys.platform != "linux":
        text = f"on {platform.system()} a store lies on disk, and much is not tested"
        yield Finding("warning", text, "use Linux where speed or safety matter")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- where stores lie ----------------------------------------------------------------------------


def shared_memory(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Tell size, kind and room of the file system of the stores."""
    root = root_of(arguments)
    there = existing(root)
    status = os.statvfs(there)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    mount = _host.mount_of(there)
    kind = mount.kind if mount else "unknown"
    text = f"{root} on {kind}, {_words.size(free)} of {_words.size(size)} free"
    if kind not in (*_IN_MEMORY, "unknown"):
        remedy = "set SHMSTORE_ROOT to a folder on a tmpfs, such as /dev/shm"
        yield Finding("warning", f"{text}: that is no shared memory, it is as slow as it", remedy)
    elif size <= _DOCKER_NBYTES:
        yield Finding("warning", f"{text}: that is little", _how_to_enlarge(there))
    elif free < size * (1 - _MOST_IN_USE):
        yield Finding("warning", f"{text}: it is nearly full", _how_to_enlarge(there))
    else:
        yield Finding("ok", text)
    yield from _inodes(there, status)
    yield from _promised(arguments, free)


def _how_to_enlarge(there: Path) -> str:
    where = _host.container()
    if where == "kubernetes":
        return "mount a volume `emptyDir: {medium: Memory}` on /dev/shm"
    if where:
        return f"start the container with `--shm-size=4g` ({where})"
    mount = _host.mount_of(there)
    return f"`mount -o remount,size=4g {mount.path if mount else there}`; `shmstore prune`"


def _inodes(there: Path, status: os.statvfs_result) -> Iterator[Finding]:
    if status.f_files and status.f_favail < 1000:
        text = f"{there} has room for only {_words.plural(status.f_favail, 'more file')}"
        remedy = "remove files there, or `mount -o remount,nr_inodes=...`"
        yield Finding("warning", text, remedy)


def _promised(arguments: argparse.Namespace, free: int) -> Iterator[Finding]:
    """Tell whether stores may grow beyond what there is."""
    try:
        found = shmstore.stores(arguments.root, group=arguments.group)
    except shmstore.ShmStoreError:
        return
    growth = sum(max(0, store.capacity - store.resident) for store in found)
    if growth > free:
        text = f"stores may still grow by {_words.size(growth)}, {_words.size(free)} are free"
        remedy = (
            "give them smaller capacities, or create them with prefault=True, which fails early"
        )
        yield Finding("note", text, remedy)


# --- limits --------------------------------------------------------------------------------------


def memory_limit(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Tell the limits of the container: shared memory counts among what it uses."""
    limits = _host.memory_limits()
    where = _host.container()
    if not limits:
        text = f"none{f' in this {where} container' if where else ''}"
        yield Finding("ok", f"{text}; the machine has {_words.size(_host.ram())}")
        return
    tightest = limits[0]
    text = f"{_words.size(tightest.nbytes)}, {_words.size(tightest.in_use)} in use"
    status = os.statvfs(existing(root_of(arguments)))
    shm = status.f_blocks * status.f_frsize
    raise_it = f"raise {tightest.path} (docker `--memory`, kubernetes `resources.limits.memory`)"
    if tightest.in_use > _MOST_IN_USE * tightest.nbytes:
        yield Finding("warning", f"{text}: whoever puts more may be killed", raise_it)
    elif tightest.nbytes < shm:
        what = f"{text}: less than the {_words.size(shm)} of shared memory, which counts in it"
        yield Finding("note", what, f"keep capacities below it, or {raise_it}")
    else:
        yield Finding("ok", text)


def process_limits(_: argparse.Namespace) -> Iterator[Finding]:
    """Tell the limits of a process, see getrlimit(2)."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < _FEW_FILES:
        text = f"a process may open {files} files; a store takes six, and one per further client"
        yield Finding("warning", text, f"`ulimit -n {min(most, 4096) if most > 0 else 4096}`")
    for name, limit, option in (
        ("addresses", resource.RLIMIT_AS, "-v"),
        ("sizes of files", resource.RLIMIT_FSIZE, "-f"),
    ):
        soft, _hard = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            text = f"{name} are limited to {_words.size(soft)}: a larger store cannot be mapped"
            yield Finding("warning", text, f"`ulimit {option} unlimited`")
    shown = "unlimited" if files == resource.RLIM_INFINITY else f"{files:,}"
    yield Finding("ok", f"{shown} open files")


# --- the system ----------------------------------------------------------------------------------


def large_pages(_: argparse.Namespace) -> Iterator[Finding]:
    """Tell whether shared memory may have large pages."""
    chosen = _host.huge_pages()
    if not chosen:
        yield Finding("note", "whether shared memory may have large pages cannot be told")
    elif chosen in ("always", "force"):
        text = f"shmem_enabled is {chosen}: memory is taken in steps of 2 MiB"
        yield Finding("note", text, "with many small stores choose `advise` there")
    else:
        yield Finding("ok", f"shmem_enabled is {chosen}")


def logging_out(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Tell whether stores vanish when their user logs out."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    in_shm = root_of(arguments).is_relative_to("/dev/shm")  # noqa: S108 - looked at, not used
    if not (_host.removes_ipc() and in_shm) or uid < _FIRST_USER:
        yield Finding("ok", "nothing removes stores when their user logs out")
    elif _host.lingers(user):
        yield Finding("ok", f"systemd keeps what belongs to {user}, who lingers")
    else:
        text = f"systemd removes all of {user} in /dev/shm at the last logout (RemoveIPC)"
        remedy = f"`loginctl enable-linger {user}`, or RemoveIPC=no in /etc/systemd/logind.conf"
        yield Finding("warning", text, remedy)


def self_test(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Put and get something in a store of its own, which is gone afterwards."""
    above = existing(root_of(arguments).parent)
    if not os.access(above, os.W_OK):
        text, remedy = f"{above} may not be written to", "set SHMSTORE_ROOT to a folder of yours"
        yield Finding("problem", text, remedy)
        return
    with tempfile.TemporaryDirectory(prefix="shmstore-doctor-", dir=above) as folder:
        yield _try_out(folder, locked=False)


def _try_out(folder: str, *, locked: bool) -> Finding:
    try:
        with shmstore.Store.create(
            "doctor", capacity="1MiB", root=folder, locked_reads=locked
        ) as store:
            store["array"] = np.arange(1000)
            total, found = int(store["array"].sum()), store.check()
    except shmstore.ShmStoreError as error:
        if locked:
            return Finding("problem", f"a store cannot be used here: {error}", "see the message")
        found_locked = _try_out(folder, locked=True)
        if found_locked.level == "problem":
            return found_locked
        text = "membarrier(2) is not allowed here: gets take the store lock, and are slower"
        remedy = "allow it in the seccomp profile, or create stores with locked_reads=True"
        return Finding("note", text, remedy)
    if total != 499500 or found:
        return Finding("problem", f"a new store is wrong: {total}, {found}", "report this, please")
    return Finding("ok", "a store was made, filled, read, checked and removed")
