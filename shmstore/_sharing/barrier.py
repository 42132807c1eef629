"""How does the reclaimer make sure that it sees every pin? (The one place for the pin race.)

A reader stores its pin and then loads the slot word; the reclaimer stores DOOMED and then loads
the pins. Even x86-64 may let a load overtake an earlier store, so both could miss each other. The
cure costs the reader nothing: between its store and its loads the reclaimer makes every processor
that runs a registered process pass a full memory barrier (membarrier(2),
MEMBARRIER_CMD_GLOBAL_EXPEDITED).

A process is registered when the package is imported, before NumPy is: as long as it has one thread
the kernel does it at once, later it waits for all processors, some 5 to 20 ms. A forked child is
registered too.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Final

_NUMBERS: Final = {"x86_64": 324}
_GLOBAL_EXPEDITED: Final = 1 << 1
_REGISTER_GLOBAL_EXPEDITED: Final = 1 << 2

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_number = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None


def register() -> bool:
    """Make this process take part in barriers; False where the system has or allows none."""
    if _number is None:
        return False
    return int(_syscall(_number, _REGISTER_GLOBAL_EXPEDITED, 0, 0)) == 0


register()


def membarrier() -> None:
    """Let every running thread of every registered process pass a full memory barrier."""
    if _syscall(_number, _GLOBAL_EXPEDITED, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "membarrier failed after it had been registered")
