"""What did it run on, and how much memory is there?"""

import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers import Found
from benchmarks.scratch import TMPFS

PACKAGES = ("numpy", "pandas", "pyarrow", "msgpack", "filelock")


def describe(found: Sequence[Found]) -> dict[str, str]:
    """Return everything that one must know to compare figures; `found` are the peers."""
    release = ".".join(platform.release().split(".")[:2])
    measured = {each.kind.package: each.python for each in found if each.kind.requires}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f}",
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "shmem_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "kernel": f"{platform.system()} {release} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(sys.executable, name) for name in PACKAGES},
        **{name: _version(python, name) for name, python in measured.items()},
    }


def available_bytes() -> int:
    """Return how much may be put into shared memory now."""
    free = os.statvfs(TMPFS)
    memory = int(_first_value("/proc/meminfo", "MemAvailable").split()[0]) * 1024
    return min(memory, free.f_bavail * free.f_frsize)


def pin(number: int) -> None:
    """Stay on one processor: by turns on one and on two, processes take turns of two lengths."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[number % len(processors)]})


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


def _version(python: str, package: str) -> str:
    """Return the version of what holds a package, as the Python that has it says."""
    asked = (
        "import sys; from importlib import metadata as m; name = sys.argv[1]; "
        "print(m.version(m.packages_distributions().get(name, [name])[0]))"
    )
    ran = subprocess.run([python, "-c", asked, package], capture_output=True, check=False)
    return ran.stdout.decode().strip() or "not installed"
