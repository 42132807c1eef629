"""What is the time for a simulated process?

Clocks stand still: what they show is seen by people only, or would make each run another.
"""

from __future__ import annotations

import sys
import time
import types
from typing import Any, Final

from interleave_memory import LOAD, PAUSED, running

NOW_NS: Final = 1_700_000_000_000_000_000


def pause(_: float) -> None:
    """Let others go on. Who looks until it changes knows no more than at the first time."""
    process = running()
    if process is None:
        return  # at the end, when nobody changes anything any more
    looks_on = sys._getframe(1).f_code.co_name
    if looks_on == "claim":
        process.forget_what_was_seen(looks_on)
    process.wait(LOAD, PAUSED)


def _clock(**others: Any) -> Any:
    """Return what stands for the module."""
    still = {"time_ns": lambda: NOW_NS, "clock_gettime_ns": lambda _: NOW_NS}
    return types.SimpleNamespace(**{**vars(time), **still, **others})


# By the identity of what is replaced.
STILL: Final = {
    id(time): _clock(),
    id(time.monotonic): lambda: 0.0,
    id(time.time_ns): lambda: NOW_NS,
}

# For code that waits by looking.
LOOKED_AT: Final = _clock(sleep=pause, monotonic=lambda: 0.0)
