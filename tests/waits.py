"""Processes and threads that wait: what the tests of waiting share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from stores import Child, StartPython, wait_until

from shmstore import Store

# The fixture `run`: what runs a coroutine in an event loop.
Run = Callable[[Coroutine[Any, Any, Any]], Any]

WAIT_FOR = """
import shmstore
from shmstore import _waiting
store = shmstore.Store.attach(name, readonly=readonly)
if not spins:
    _waiting.SPIN_S = 0.0
print("ready", flush=True)
print(store.get(key, timeout=None), flush=True)
store.close()
"""


def threads_of_waiters() -> int:
    """Return how many threads there are, but for the one that gives idle memory back."""
    return sum(not thread.name.startswith("shmstore") for thread in threading.enumerate())


def waiters(store: Store) -> int:
    """Return how many rows of the table of waiters are in use."""
    session: Any = store._session
    return len(session.waiters.rows())


def start_waiter(
    start_python: StartPython,
    store: Store,
    key: str = "key",
    *,
    readonly: bool = False,
    spins: bool = False,
) -> Child:
    """Start a process that waits for a key, and return when it sleeps."""
    before = waiters(store)
    child = start_python(WAIT_FOR, name=store.name, key=key, readonly=readonly, spins=spins)
    assert child.hear() == "ready"
    wait_until(lambda: waiters(store) > before)
    return child


@contextlib.contextmanager
def after(seconds: float, do: Any, *args: Any) -> Iterator[None]:
    """Let something be done by another thread, a little later."""
    timer = threading.Timer(seconds, do, args)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def activity_of(pid: int) -> list[str]:
    """Return how often the threads of a process slept and were interrupted, and what they used."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        status = (task / "status").read_text().splitlines()
        found += [line for line in status if "ctxt_switches" in line]
        found += (task / "stat").read_text().rpartition(")")[2].split()[11:13]
    return found


def activity_at_rest(pid: int) -> list[str]:
    """Return the same when it does not change any more: each thread has begun, and sleeps."""
    seen = [activity_of(pid)]

    def is_at_rest() -> bool:
        time.sleep(0.05)
        seen.append(activity_of(pid))
        return seen[-1] == seen[-2]

    wait_until(is_at_rest)
    return seen[-1]


def state_of(pid: int) -> str:
    """Return what a process does: "S" if it sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
