"""How do processes talk that are made to be killed, and how is their folder made anew each time?"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from kill_points import BEGIN, END

WAIT_S: Final = 60

Send = Callable[[Any], None]
Wait = Callable[[], None]


class Helper:
    """A forked process that runs a task; what the task sends comes back until all of it is gone.

    Parameters
    ----------
    task
        Called with a function that sends a dict to the parent, and one that waits for the parent
        to call `go_on`.
    """

    def __init__(self, task: Callable[[Send, Wait], object]) -> None:
        read, write = os.pipe()
        waits, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            os.close(self._go)
            _run(task, write, waits)
        os.close(write)
        os.close(waits)
        self._read = os.fdopen(read, "rb")
        self._deadline = time.monotonic() + WAIT_S

    def hear(self) -> dict[str, Any] | None:
        """Return the next thing that it sends; None: it has ended, and so have its children."""
        left = self._deadline - time.monotonic()
        if not self._read.peek() and not select.select([self._read], [], [], max(0, left))[0]:
            os.kill(self.pid, signal.SIGABRT)
            return {"failed": f"it hangs: nothing heard for {WAIT_S} s"}
        try:
            thing: dict[str, Any] = pickle.load(self._read)
        except EOFError:
            return None
        return thing

    def go_on(self) -> None:
        """Let it come back from waiting."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b".")

    def end(self) -> tuple[dict[str, Any], list[str]]:
        """Return all that it has sent, merged, and what went wrong; it was killed, or has ended."""
        sent: dict[str, Any] = {}
        failures = []
        while (thing := self.hear()) is not None:
            sent |= thing
            if "failed" in thing:
                failures.append(thing["failed"])
                break
        self._read.close()
        os.close(self._go)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        sent["killed"] = code == -signal.SIGKILL
        if code not in {0, -signal.SIGKILL} and not failures:
            failures.append(f"a process ended with {code}")
        return sent, failures


def _run(task: Callable[[Send, Wait], object], write: int, waits: int) -> None:
    """Be the child."""

    def send(thing: Any) -> None:
        rest = memoryview(pickle.dumps(thing))
        while rest:
            rest = rest[os.write(write, rest) :]

    code = 1
    try:
        task(send, lambda: os.read(waits, 1) and None)
        code = 0
    except BaseException:
        send({"failed": traceback.format_exc()})
    finally:
        os._exit(code)


# --- what is asked, and answered ------------------------------------------------------------------


class Case(NamedTuple):
    """Deaths: at which point and hit the actor dies, and who recovers from it, if he does."""

    point: str
    hit: int
    then: tuple[str, int] | None = None

    @property
    def last(self) -> tuple[str, int]:
        """The point and the hit of the last death."""
        return self.then or (self.point, self.hit)

    def within(self, hits: dict[str, int]) -> Case:
        """Return this with the last death at a hit that is there: of so many of each point."""
        point, hit = self.last
        hit = min(hit, hits.get(point, hit))
        return self._replace(hit=hit) if self.then is None else self._replace(then=(point, hit))

    def shown(self, operation: str) -> str:
        """Return the arguments of kill_matrix.py that let it happen again."""
        words = f"--operation {operation!r} --kill {self.point}={self.hit}"
        return words if self.then is None else f"{words} --then {self.then[0]}={self.then[1]}"


@dataclass
class Result:
    """What the kills of one operation have shown.

    Attributes
    ----------
    kills, second
        How many processes died at each point: in the operation, and in the recovery from it.
    reached
        Points that it came to at all.
    unlisted
        Changes of shared state that no point stands at.
    failures
        What was not as it must be, with how to see it again.
    missed
        Where processes race: kills at points that nobody came to again.
    """

    operation: str
    kills: Counter[str] = field(default_factory=Counter)
    second: Counter[str] = field(default_factory=Counter)
    reached: set[str] = field(default_factory=set)
    unlisted: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def count(self, case: Case) -> None:
        """Count a kill that came about."""
        point, _ = case.last
        if point not in {BEGIN, END}:
            (self.kills if case.then is None else self.second)[point] += 1


# --- the folder -----------------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Give an empty folder where stores may lie."""
    where = "/dev/shm" if sys.platform == "linux" else None
    path = Path(tempfile.mkdtemp(prefix="shmstore-kills-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Copy:
    """What some folders hold, kept on the heap: files with their holes, modes, folders."""

    def __init__(self, *tops: Path) -> None:
        self._tops = tops
        self._folders: list[tuple[Path, int]] = []
        self._files: list[tuple[Path, int, int, list[tuple[int, bytes]]]] = []
        self._fifos: list[Path] = []
        for path in [found for top in tops for found in (top, *sorted(top.rglob("*")))]:
            if path.is_dir():
                self._folders.append((path, stat.S_IMODE(path.stat().st_mode)))
            elif path.is_fifo():
                self._fifos.append(path)
            elif path.exists():
                self._keep(path)

    def _keep(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        status = os.fstat(fd)
        pieces = []
        at = 0
        with contextlib.suppress(OSError):  # ENXIO: no more data
            while True:
                start = os.lseek(fd, at, os.SEEK_DATA)
                at = os.lseek(fd, start, os.SEEK_HOLE)
                pieces.append((start, os.pread(fd, at - start, start)))
        os.close(fd)
        self._files.append((path, stat.S_IMODE(status.st_mode), status.st_size, pieces))

    def restore(self) -> None:
        """Make the folders hold this, and nothing else."""
        for top in self._tops:
            if top.exists():
                shutil.rmtree(top)
        for path, mode in self._folders:
            path.mkdir(mode)
        for path in self._fifos:
            os.mkfifo(path, 0o600)
        for path, mode, nbytes, pieces in self._files:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            os.ftruncate(fd, nbytes)
            for start, data in pieces:
                os.pwrite(fd, data, start)
            os.close(fd)
