"""What time is it for objects that expire?"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final


def boottime_ns() -> int:
    """Return a clock of the whole machine that nobody can set, in nanoseconds."""
    return time.clock_gettime_ns(_CLOCK) - _ahead_ns[0]


_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _clock_ahead_ns() -> int:
    """Return by how much this clock is ahead of the machine's: a time namespace has its own."""
    try:
        lines = Path("/proc/self/timens_offsets").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    offsets = {name: int(s) * 10**9 + int(ns) for name, s, ns in map(str.split, lines)}
    return offsets.get("boottime", 0)


def _look_at_clock() -> None:
    _ahead_ns[0] = _clock_ahead_ns()


_ahead_ns: Final = [_clock_ahead_ns()]
os.register_at_fork(after_in_child=_look_at_clock)  # a child may be born into another namespace
