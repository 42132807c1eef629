"""Is each line of a program a call, in which other threads and signal handlers come in?

It is for a thread that is traced, and for all where a tool of `sys.monitoring` (of Python 3.12 and
newer) asks for lines. What has no lock asks `gettrace`, and `get_tool` for the two tools that do:
the debugger and the measurement of coverage. That another one does is found out now and then.

Concurrency: any thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from sys import gettrace
from typing import Any, Final

__all__ = ["COVERAGE", "DEBUGGER", "are_lines_watched", "get_tool", "gettrace"]

_monitoring: Final[Any] = getattr(sys, "monitoring", None)

DEBUGGER: Final = 0
COVERAGE: Final = 1
_TOOLS: Final = range(6)

_NAMES: Final = ("LINE", "INSTRUCTION", "JUMP", "BRANCH", "BRANCH_LEFT", "BRANCH_RIGHT")

# Returns the name of a tool that is in use, or None.
get_tool: Final[Callable[[int], object]] = {}.get if _monitoring is None else _monitoring.get_tool


def are_lines_watched() -> bool:
    """Return whether some tool of `sys.monitoring` is called for each line, jump or instruction."""
    if _monitoring is None:
        return False
    wanted = sum({getattr(_monitoring.events, name, 0) for name in _NAMES})
    tools = [tool for tool in _TOOLS if get_tool(tool) is not None]
    return any(_monitoring.get_events(tool) & wanted for tool in tools)
