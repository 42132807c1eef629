"""A whole store at a time: what the tests of stores share."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms

from shmstore import FullReport, ObjectRef, Store, StoreFullError
from shmstore._memory import layout as L

MIB = 1 << 20
WAIT_S = 60

DESCRIPTORS = Path("/proc/self/fd")

# What fixtures give.
MakeStore = Callable[..., Store]
RunPython = Callable[..., str]
Flag = bool

# What differs only in how long it takes need not be tested both ways.
lock_free_only = pytest.mark.parametrize("locked_reads", [False], ids=["lock-free"])

# Python 3.12 and newer warn when a process that has threads forks, and with NumPy it has some.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
WARNINGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")

PRELUDE = f"""
import faulthandler, os, pickle, signal, sys
faulthandler.dump_traceback_later({WAIT_S}, exit=True)
globals().update(pickle.loads(bytes.fromhex(sys.argv[1])))
"""


# --- looking at a store ---------------------------------------------------------------------------


def used(store: Store) -> int:
    """Return the bytes in use, after memory that nobody looks at has come back."""
    gc.collect()
    return store.stats().used


def fill_up(store: Store, array: np.ndarray) -> list[ObjectRef]:
    """Put an array as often as there is room; return the references."""
    refs = []
    with contextlib.suppress(StoreFullError):
        while True:
            refs.append(store.put(array))
    return refs


def address(array: np.ndarray) -> int:
    """Return where an array lies in this process."""
    return int(array.__array_interface__["data"][0])


def make_old(store: Store, key: str, seconds: float) -> None:
    """Move the publication of an object into the past."""
    session: Any = store._session
    slot = store.info(key).slot
    session.words[rooms.word_of(slot, L.S_CREATED_NS, session.index)] -= int(seconds * 1e9)
    rooms.seal(session, slot)


def reclaim_at_once(store: Store) -> None:
    """Let every put use the memory of what was deleted, however little it is."""
    session: Any = store._session
    session.most_doomed = session.most_spare = 0


def remedy_of(report: FullReport, start: str) -> str:
    """Return the one remedy that begins like this."""
    [remedy] = [remedy for remedy in report.remedies if remedy.startswith(start)]
    return remedy


@contextlib.contextmanager
def replaced_words(store: Store, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Let this process reach the index of a store through other words for a while."""
    session: Any = store._session
    owners = [(session, "words"), (session.lock, "words")]
    owners += [(part, "_words") for part in (session.slots, session.keys, session.allocator)]
    originals = [getattr(owner, name) for owner, name in owners]
    for (owner, name), words in zip(owners, originals, strict=True):
        setattr(owner, name, wrap(words))
    try:
        yield
    finally:
        for (owner, name), words in zip(owners, originals, strict=True):
            setattr(owner, name, words)


class SignallingWords:
    """The words of an index, of which the n-th store brings a signal to the process.

    Parameters
    ----------
    words
        What is stored to.
    left
        A list with the number of stores to go, shared by all words of the index.
    number
        The signal.
    """

    def __init__(self, words: Any, left: list[int], number: int) -> None:
        self._words, self._left, self._number = words, left, number

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._words[at] = value
        self._left[0] -= 1
        if not self._left[0]:
            os.kill(os.getpid(), self._number)


@contextlib.contextmanager
def signal_at(store: Store, nth: int, number: int) -> Iterator[None]:
    """Let the n-th store into the index bring a signal to this process."""
    left = [nth]
    with replaced_words(store, lambda words: SignallingWords(words, left, number)):
        yield


# --- processes ------------------------------------------------------------------------------------


def forked(target: Callable[[], Any]) -> int:
    """Fork; return the pid of the child, which calls a function and ends with 0 if that returns."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        target()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a forked child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(task: Callable[[], Any]) -> None:
    """Do something in another process, and let it succeed."""
    assert exit_code(forked(task)) == 0


def kill(pid: int) -> None:
    """Kill a forked child, and wait until it has gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextlib.contextmanager
def running(*works: Callable[[], Any]) -> Iterator[None]:
    """Let functions run meanwhile, each in a thread of its own; afterwards all must have ended."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)


def in_threads(*works: Callable[[], Any]) -> None:
    """Call functions at the same time, each in a thread of its own, until all have ended."""
    with running(*works):
        pass


def wait_until(condition: Callable[[], Any], seconds: float = WAIT_S) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Child:
    """A Python process that has nothing to do with this one, in dialogue over its pipes.

    Parameters
    ----------
    code
        What it runs. It reads lines with ``input()`` and answers with ``print(..., flush=True)``.
    values
        Names that the code finds, with their values.
    """

    def __init__(self, code: str, values: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            command_for(code, values),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def ask(self, line: str = "") -> str:
        """Send a line; return the line that it answers."""
        self.say(line)
        return self.hear()

    def say(self, line: str = "") -> None:
        """Send a line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.hear()

    def hear(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"the process ended: {self.process.communicate()[1]}")
        return line.rstrip("\n")

    def kill(self) -> None:
        """Kill it, as if the machine had no memory left for it."""
        self.process.kill()
        self.end(-signal.SIGKILL)

    def end(self, returncode: int = 0) -> None:
        """Wait for its end; fail unless it ends this way and prints no error."""
        _, errors = self.process.communicate(timeout=WAIT_S)
        assert (self.process.returncode, errors) == (returncode, "")


def command_for(code: str, values: dict[str, Any]) -> list[str]:
    """Return the command that runs code in a new Python, where each warning is an error."""
    return [
        sys.executable,
        *WARNINGS,
        "-c",
        PRELUDE + textwrap.dedent(code),
        pickle.dumps(values).hex(),
    ]


# For `StartPython`: a process that has a store of its own, and one that joins it.
HOLD_A_STORE = """
import shmstore
store = shmstore.Store.create(name, persist=persist)
store["word"] = "kept"
print(store.path, flush=True)
input()
"""

JOIN_A_STORE = """
import shmstore
store = shmstore.Store.attach(name)
print(store["word"], flush=True)
input()
"""

StartPython = Callable[..., Child]
