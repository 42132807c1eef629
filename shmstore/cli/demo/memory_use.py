"""How much memory do some processes use together?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import psutil

_PSS_KB = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


def measure(pids: Iterable[int]) -> int:
    """Add up the memory of processes.

    Parameters
    ----------
    pids : iterable of int
        The processes, all of them alive.

    Returns
    -------
    int
        Bytes. Where the kernel knows it this is the PSS: a page that several processes share is
        split between them. Elsewhere it is the RSS, in which shared pages count once for each.
    """
    return sum(_pss(pid) if has_pss() else psutil.Process(pid).memory_info().rss for pid in pids)


def name_of_measure() -> str:
    """Return what `measure` measures here: ``"PSS"`` or ``"RSS"``."""
    return "PSS" if has_pss() else "RSS"


def has_pss() -> bool:
    """Return whether this system tells the PSS of a process."""
    return _smaps(psutil.Process().pid).exists()


def _pss(pid: int) -> int:
    found = _PSS_KB.search(_smaps(pid).read_bytes())
    return int(found[1]) * 1024 if found else 0


def _smaps(pid: int) -> Path:
    return Path(f"/proc/{pid}/smaps_rollup")
