"""Any call of the system may fail: nothing leaks or is lost, and the error says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fault_objects
import fault_room
import fault_sent
import fault_spares
import fault_stores
import pytest
from fault_operations import OPERATIONS
from stores import WARNINGS

HARNESS = Path(__file__).parent / "faults.py"

# Operations of one group run in one process, one after the other.
GROUPS = {
    module.__name__: [n for n, of in OPERATIONS.items() if of.__module__ == module.__name__]
    for module in (fault_stores, fault_objects, fault_room, fault_sent, fault_spares)
}
INTERRUPTED = ["create", "attach readonly", "open a new store", "close, as the last client"]


def run(*arguments: str) -> None:
    """Run the harness; fail with what it found."""
    done = subprocess.run(
        [sys.executable, *WARNINGS, HARNESS, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_call_of_the_system_that_fails_leaves_nothing_and_loses_nothing(group: str) -> None:
    """Each call of each operation fails once, with the likeliest of its errors."""
    run("--quick", *GROUPS[group])


@pytest.mark.parametrize("name", ["attach", "put where others look at deleted objects"])
def test_call_that_fails_while_another_failure_is_undone_leaves_nothing(name: str) -> None:
    """Two failures, and failures that do not end."""
    run(name)


def test_signal_handler_that_raises_leaves_no_descriptor() -> None:
    """Ctrl-C at many points of the making, joining and leaving of stores."""
    run("--interrupts", "13", *INTERRUPTED)
