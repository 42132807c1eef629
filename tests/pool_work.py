"""What do tests of pools share: a small pool, and what its workers are asked to do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from stores import MIB

from shmstore import ProcessPoolExecutor

COUNT = 100_000  # elements: 800 kB


def make_pool(method: str = "fork", workers: int = 2, **options: Any) -> ProcessPoolExecutor:
    """Make a pool with a small store."""
    if "store" not in options:
        options.setdefault("capacity", 32 * MIB)
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), **options)


# --- what workers are asked to do -----------------------------------------------------------------


def total(array: np.ndarray, more: float = 0) -> float:
    """Add up."""
    return float(array.sum()) + more


def doubled(array: np.ndarray) -> np.ndarray:
    """Return a large result."""
    return array * 2


def full(number: int) -> np.ndarray:
    """Return a large result of one number."""
    return np.full(COUNT, number, float)


def zeroed(array: np.ndarray) -> bool:
    """Write to the argument; return whether it is writeable."""
    array[:] = 0
    return bool(array.flags.writeable)


def nested(number: int) -> dict[str, Any]:
    """Return what has large parts of several kinds."""
    return {
        "large": np.full(COUNT, number),
        "many": [np.full(100, number) for _ in range(200)],
        "text": "x" * 100_000,
        "bytes": b"y" * 100_000,
    }


def looked_at(array: np.ndarray) -> tuple[bool, tuple[int, ...], str]:
    """Return what the argument is."""
    return array.flags.writeable, array.shape, array.dtype.str


def missing(array: np.ndarray) -> None:
    """Fail."""
    raise KeyError(len(array))


def die_at(number: int) -> np.ndarray:
    """Be killed in one of many calls."""
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return full(number)


def wait_for(path: str) -> None:
    """Wait until a file is there."""
    while not Path(path).exists():
        time.sleep(0.005)


def sum_when(path: str, array: np.ndarray) -> float:
    """Add up when a file is there."""
    wait_for(path)
    return total(array)


_prepared: list[Any] = []


def prepare(array: np.ndarray, word: str) -> None:
    """Note what the initializer got."""
    _prepared.append((float(array.sum()), word))


def prepared(_: int) -> Any:
    """Return what the initializer got."""
    return _prepared[-1]


def pid(_: int) -> int:
    """Return which worker it is."""
    return os.getpid()
