"""What does this machine, or this container, say of itself?

Every function reads below a folder that stands for "/", so that tests can show it another machine.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class Mount(NamedTuple):
    """A mounted file system."""

    path: str
    kind: str
    options: str


class Limit(NamedTuple):
    """A limit of memory, where it stands, and how much of it is in use; bytes."""

    path: str
    nbytes: int
    in_use: int


def mount_of(path: Path, root: Path = ROOT) -> Mount | None:
    """Return the file system on which a path lies; see proc_pid_mountinfo(5)."""
    found: Mount | None = None
    for mount in _mounts(root):
        inside = path == Path(mount.path) or Path(mount.path) in path.parents
        if inside and (found is None or len(mount.path) >= len(found.path)):
            found = mount
    return found


def _mounts(root: Path) -> Iterator[Mount]:
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 6 and len(tail) >= 3:
            path = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            yield Mount(path, tail[0], f"{fields[5]},{tail[2]}")


def memory_limits(root: Path = ROOT) -> list[Limit]:
    """Return the limits of the control groups of this process, the narrowest first."""
    found = [*_limits_v2(root), *_limits_v1(root)]
    return sorted(set(found), key=lambda limit: limit.nbytes)


def _limits_v2(root: Path) -> Iterator[Limit]:
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        group = rest.partition(":")[2]
        if number == "0":
            own = base / group.lstrip("/")
            for folder in (own, *own.parents):
                if folder != base and base not in folder.parents:
                    break
                yield from _limit(folder / "memory.max", folder / "memory.current")


def _limits_v1(root: Path) -> Iterator[Limit]:
    base = root / "sys/fs/cgroup/memory"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            for folder in (base / group.lstrip("/"), base):
                usage = folder / "memory.usage_in_bytes"
                yield from _limit(folder / "memory.limit_in_bytes", usage)


def _limit(most: Path, now: Path) -> Iterator[Limit]:
    text = _text(most).strip()
    if text.isdecimal() and int(text) < 1 << 60:
        in_use = _text(now).strip()
        yield Limit(str(most), int(text), int(in_use) if in_use.isdecimal() else 0)


def container(root: Path = ROOT) -> str:
    """Return in what kind of container this process runs, "" in none that is known."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    marks = ((".dockerenv", "docker"), ("run/.containerenv", "podman"))
    return next((name for mark, name in marks if (root / mark).exists()), "")


def huge_pages(root: Path = ROOT) -> str:
    """Return what is chosen for large pages of shared memory, "" if that cannot be told."""
    text = _text(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled")
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else ""


def removes_ipc(root: Path = ROOT) -> bool:
    """Return whether systemd removes the shared memory of users who log out; see logind.conf(5)."""
    if not (root / "run/systemd/system").exists():
        return False
    chosen = "yes"
    for folder in ("usr/lib/systemd", "etc/systemd"):
        files = [root / folder / "logind.conf"]
        with contextlib.suppress(OSError):
            files += sorted((root / folder / "logind.conf.d").glob("*.conf"))
        for file in files:
            found = re.findall(r"^\s*RemoveIPC\s*=\s*(\w+)", _text(file), re.MULTILINE)
            chosen = found[-1] if found else chosen
    return chosen.lower() in ("yes", "true", "on", "1")


def lingers(user: str, root: Path = ROOT) -> bool:
    """Return whether the processes of a user stay when the user logs out."""
    return (root / "var/lib/systemd/linger" / user).exists()


def swap_used(root: Path = ROOT) -> int:
    """Return the bytes of shared memory that may be in swap: what is in use of it."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE))
    return (int(found.get("SwapTotal", 0)) - int(found.get("SwapFree", 0))) * 1024


def ram(root: Path = ROOT) -> int:
    """Return the bytes of memory that the machine has."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
