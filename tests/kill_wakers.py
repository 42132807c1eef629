"""Does a waiter get what was published by somebody who died in that very moment?

In the kill matrix whoever looks at a store after a death takes its lock, finds that a change was
not finished, and wakes everybody. Here nobody does: who dies in a put leaves the waiter alone with
what he has done before. If the object is there, the waiter must get it. ``python kill_wakers.py``
kills at each step of a put and prints what the waiters got.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import kill_points
from kill_points import machine

kill_points.install()

# ruff: noqa: E402 - from here on shmstore may be imported: it gets its points
from shmstore import Store, _reading, _waiting
from shmstore._catalog.keys import digest_of

_WAIT_S = 20


def _forked(task: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        task()
        os._exit(0)
    finally:
        os._exit(1)


def _put(store: Store, target: tuple[str, int]) -> None:
    machine.arm(target)
    store["key"] = 1


def _steps() -> list[tuple[str, int]]:
    """Return the points that a put to a sleeping waiter comes to, first and last time of each."""
    with Store.create(capacity="1MiB") as store:
        waiter = _start_waiter(store)
        _put(store, (kill_points.END, 1))
        machine.disarm()
        os.waitpid(waiter, 0)
        last = dict(machine.order)
        return [(point, hit) for point, hit in machine.order if hit in (1, last[point])]


def _start_waiter(store: Store) -> int:
    """Start a process that waits, and return when it sleeps."""
    session = store._session

    def wait() -> None:
        _waiting.SPIN_S = 0.0
        assert store.get("key", timeout=None) == 1

    waiter = _forked(wait)
    while not session.waiters.rows():
        time.sleep(1e-3)
    while Path(f"/proc/{waiter}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(1e-3)
    return waiter


def _ends(waiter: int) -> bool:
    """Return whether a waiter gets what it waits for; kill it if not."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(waiter, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(1e-3)
    os.kill(waiter, signal.SIGKILL)
    os.waitpid(waiter, 0)
    return False


def _let_die(target: tuple[str, int]) -> str:
    """Let somebody die at a step; return whether the object was there, and somebody waited."""
    with Store.create(capacity="1MiB") as store:
        session = store._session
        waiter = _start_waiter(store)
        os.waitpid(_forked(lambda: _put(store, target)), 0)
        found = _reading.glance(session, digest_of("key"))  # takes no lock
        if found is None:
            store["key"] = 1
        assert _ends(waiter), f"killed at {target}: the waiter was left asleep, found {found}"
        return "there" if found else "not there"


def main() -> int:
    """Kill at each step of a put."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        os.environ["SHMSTORE_ROOT"] = root
        counts = Counter(_let_die(target) for target in _steps())
    print(counts["there"], counts["not there"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
