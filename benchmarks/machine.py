"""What did it run on, and how much memory is there?"""

import mmap
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.scratch import TMPFS

PACKAGES = ("shmstore", "numpy", "lmdb", "msgpack", "cloudpickle", "filelock", "psutil", "rich")


def describe() -> dict[str, str]:
    """Return everything that one must know to compare figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f}",
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "shmem_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "kernel": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(name) for name in PACKAGES},
    }


def available_bytes() -> int:
    """Return how much may be put into shared memory now."""
    free = os.statvfs(TMPFS)
    memory = int(_first_value("/proc/meminfo", "MemAvailable").split()[0]) * 1024
    return min(memory, free.f_bavail * free.f_frsize)


def touch_memory(nbytes: int) -> None:
    """Write to each page of fresh memory, and give it back.

    A virtual machine hands idle pages back to its host; the first touch after that is several
    times slower, and whoever is measured first would pay for it.
    """
    with mmap.mmap(-1, nbytes) as memory:
        for offset in range(0, nbytes, mmap.PAGESIZE):
            memory[offset] = 1


def _first_value(path: str, label: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == label:
            return value.strip()
    return "unknown"


def _chosen(path: str) -> str:
    """Return the word in brackets: the setting that holds."""
    try:
        return Path(path).read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # Run from a checkout, it is imported by now.
        return getattr(sys.modules.get(package), "__version__", "not installed")
