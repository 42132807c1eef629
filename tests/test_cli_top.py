"""The live view: what it shows, its keys, and how it leaves the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import numpy as np
import pytest
from commands import Shell, command_line, run_command
from stores import StartPython

from shmstore import Store
from shmstore.cli import _sampling

WAIT_S = 30
LEAVES = b"\x1b[?25h\x1b[?1049l"

BUSY = """
import numpy as np, shmstore, time
store = shmstore.Store.attach("it")
array = np.zeros(1000)
print(flush=True)
for number in range(100_000):
    store["busy"] = array
    view = store["busy"]
    time.sleep(0.001)
"""


@pytest.fixture
def it() -> Iterator[Store]:
    """Give a store with an array and a dict."""
    with Store.create("it", capacity="4MiB") as store:
        store["array"], store["dict"] = np.arange(5000), {"a": 1}
        yield store


# Ctrl-C is for the processes of the terminal that a session has.
TAKE_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_THE_TERMINAL, *command_line(*arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )
        self.pid = self._process.pid
        os.close(theirs)
        self.seen = b""

    def wait_for(self, pattern: str) -> str:
        """Read until something is on the screen; return the screen."""
        deadline = time.monotonic() + WAIT_S
        while not re.search(pattern, self.screen):
            assert time.monotonic() < deadline, self.screen
            self._read(0.2)
        return self.screen

    @property
    def screen(self) -> str:
        """What was drawn last, without colours."""
        whole = self.seen.decode(errors="replace").rpartition("\x1b[H")[2]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", whole)

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._fd, key.encode())

    def end(self) -> int:
        """Return the exit code, when it has ended."""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while self._read(WAIT_S):
                pass
        os.close(self._fd)
        return self._process.wait(timeout=WAIT_S)

    def is_as_before(self) -> bool:
        """Return whether keys are read in lines again, and echoed."""
        flags = termios.tcgetattr(self._fd)[3]
        return bool(flags & termios.ICANON and flags & termios.ECHO)

    def _read(self, timeout_s: float) -> bytes:
        ready, _, _ = select.select([self._fd], [], [], timeout_s)
        found = os.read(self._fd, 1 << 16) if ready else b""
        self.seen += found
        return found


def test_top_shows_rates_memory_clients_and_objects(it: Store, start_python: StartPython) -> None:
    """What a busy process does is seen while it does it; q ends it."""
    child = start_python(BUSY)
    child.hear()
    top = Terminal("top", "it", "--interval", "0.1")
    for shown in (r"puts [1-9]", r"gets [1-9]", "2 processes", "of 4MiB", r"array\b"):
        top.wait_for(shown)
    top.wait_for(rf"{child.pid} +alive +[1-9]")
    top.press("q")
    assert top.end() == 0
    assert top.seen.endswith(LEAVES)
    child.kill()


def test_keys_sort_pause_and_change_the_interval(it: Store) -> None:
    """Each is answered at once, whatever the interval is."""
    top = Terminal("top", "it", "--interval", "30")
    top.wait_for("q quit")
    top.press("\x1b[A")
    for key, answer in (("a", "by age"), ("v", "by views"), ("n", "by size"), (" ", "paused")):
        top.wait_for("q quit")
        top.press(key)
        top.wait_for(answer)
    top.press(" ")
    top.press("+")
    top.wait_for("every 60 s")
    top.press("-")
    top.wait_for("every 30 s")
    top.press("q")
    assert top.end() == 0


@pytest.mark.parametrize(
    ("end", "code"), [("\x03", 130), (signal.SIGTERM, 128 + signal.SIGTERM)], ids=["Ctrl-C", "TERM"]
)
def test_terminal_is_as_before_however_it_ends(it: Store, end: str | int, code: int) -> None:
    """Cursor, screen and keys, and the store has no client more."""
    top = Terminal("top", "it", "--interval", "0.1")
    top.wait_for("q quit")
    assert not top.is_as_before()
    if isinstance(end, str):
        top.press(end)
    else:
        os.kill(top.pid, end)
    deadline = time.monotonic() + WAIT_S
    while not top.is_as_before():
        assert time.monotonic() < deadline
    assert top.end() == code
    assert LEAVES in top.seen
    assert b"Traceback" not in top.seen
    assert len(it.clients()) == 1


def test_top_of_a_store_that_ends_says_so(it: Store) -> None:
    """And ends itself, with 0: nothing is wrong."""
    top = Terminal("top", "--interval", "0.1")
    top.wait_for("q quit")
    it.destroy()
    assert top.end() == 0
    assert b"has ended" in top.seen


def test_top_without_a_terminal_prints_a_line_per_look(it: Store) -> None:
    """In columns, or as JSON."""
    done = run_command("top", "--count", "3", "--interval", "0.05")
    assert len(done.rows) == 3
    assert {len(line) for line in done.out.splitlines()} == {len(done.out.splitlines()[0])}
    lines = run_command("top", "--count", "2", "--interval", "0.05", "--json").out.splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["objects"], first["clients"]) == (2, 1)
    assert second["largest"][0]["key"] == "array"
    assert second["puts"] == 0


def test_rates_are_those_of_others(it: Store) -> None:
    """Between two samples; nothing is told of the first alone."""
    before = _sampling.take(it)
    with Store.attach("it", readonly=True):
        after = _sampling.take(it)
    counts = dict.fromkeys(_sampling.COUNTED, 0.0)
    one = before._replace(counts=counts, at=10.0)
    two = after._replace(counts={**counts, "puts": 50.0}, at=12.0)
    assert _sampling.rates(one, two)["puts"] == 25
    assert _sampling.rates(two, one._replace(at=14.0))["puts"] == 0
    assert _sampling.rates(None, two)["puts"] is None
    assert _sampling.rates(one._replace(counts=None), two)["puts"] is None


def test_lock_that_is_held_is_told_and_not_waited_for(it: Store) -> None:
    """What needs no lock is shown all the same."""
    with Store.attach("it", readonly=True, lock_timeout=0.05) as store:
        with (store.path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            it_session_is_shared = store == it
            sample = _sampling.take(store)
        assert not it_session_is_shared
        assert "lock" in sample.trouble
        assert _sampling.memory(sample)["objects"] == 2


def test_top_asks_for_a_store_when_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    """And takes the only one."""
    shell = Shell(capsys)
    assert shell("top").code == 2
    with Store.create("a", capacity="1MiB"), Store.create("b", capacity="1MiB"):
        done = shell("top")
        assert (done.code, "a, b" in done.err) == (2, True)
        assert shell("top", "b", "--count", "1", "--interval", "0.05").code == 0
