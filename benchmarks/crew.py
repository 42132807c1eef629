"""Who is at work while something is measured, and is everything gone afterwards?

Each peer has processes of its own: the owner, which creates it, and readers, which attach to it.
The conductor, this process, tells them what to do, one at a time unless it is about many at once.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks import actor
from benchmarks.clock import Plan, Timer, TimerError
from benchmarks.machine import available_bytes, touch_memory
from benchmarks.peers import FLOOR, Found
from benchmarks.report import progress
from benchmarks.samples import Sample

ROOT = Path(__file__).resolve().parent.parent
SERVE = "from benchmarks.actor import main; main()"
GRACE_S = 20.0
OURS = "shmstore"
# What must be there in every group of peers: the others are compared with it.
LEADERS = (FLOOR, OURS)
SHARE_OF_MEMORY = 0.8
SPARE = 256 << 20


class ActorError(TimerError):
    """A function raised in an actor; the message is its traceback."""


class Actor:
    """The handle on one process."""

    def __init__(self, found: Found, folder: Path, name: str) -> None:
        ours, theirs = socket.socketpair()
        self._log = folder.with_suffix(f".{name}.log")
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [found.python, "-c", SERVE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,  # with the servers that it starts
                env=environment(),
            )
        self._pipe = Connection(ours.detach())
        self._pipe.send_bytes(pickle.dumps((found.kind, folder)))
        self.pid: int = 0

    def start(self, function: Callable[..., object], *args: object) -> None:
        """Tell it to run ``function(stand, *args)``."""
        if not self.pid:
            self.pid = self.result()
        self._pipe.send_bytes(pickle.dumps((function, args)))

    def result(self) -> Any:
        """Wait until it has, and return what it returned."""
        try:
            done, answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            status = self._process.wait(GRACE_S)
            said = self._log.read_text(errors="replace")[-2000:]
            raise ActorError(f"ended with status {status}\n{said}") from None
        if not done:
            raise ActorError(answer)
        return answer

    def call(self, function: Callable[..., object], *args: object) -> Any:
        """Run ``function(stand, *args)`` over there and return what it returns."""
        self.start(function, *args)
        return self.result()

    def timer(self, measure: str) -> Timer:
        """Return a timer of what was prepared over there."""
        return partial(self.call, actor.time_operation, measure)

    def end(self) -> None:
        """Let it end, and make sure that it does."""
        with suppress(OSError):
            if not self.pid:
                self._pipe.recv_bytes()
            self._pipe.send_bytes(pickle.dumps(None))
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, with its children."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()


def environment() -> dict[str, str]:
    """Return the environment of processes that import things as installed packages are imported."""
    compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**compiled, "PYTHONWARNINGS": "ignore"}


@dataclass(slots=True)
class Team:
    """The processes of one peer."""

    found: Found
    owner: Actor
    readers: list[Actor]

    @property
    def reader(self) -> Actor:
        """The first of them."""
        return self.readers[0]

    @property
    def all(self) -> list[Actor]:
        """Everyone."""
        return [self.owner, *self.readers]


@dataclass(slots=True)
class Crew:
    """The processes of all peers that take part in a workload; they end with the block."""

    folder: Path
    plan: Plan
    notes: list[str]
    teams: dict[str, Team] = field(default_factory=dict)

    def hire(self, found: Sequence[Found], readers: int) -> None:
        """Start the processes; they are up when they are first told to do something."""
        for each in found:
            folder = Path(mkdtemp(dir=self.folder))
            names = ["owner", *(f"reader-{number}" for number in range(readers))]
            owner, *others = [Actor(each, folder / "peer", name) for name in names]
            self.teams[each.kind.label] = Team(each, owner, others)

    @contextmanager
    def set_up(self, nbytes: int, labels: Sequence[str] = ()) -> Iterator[dict[str, Team]]:
        """Create each peer, with its readers attached; close all of them afterwards.

        Parameters
        ----------
        nbytes : int
            Size of the objects that will be in each.
        labels : sequence of str
            Those that are wanted; all by default.
        """
        touch_memory(2 * nbytes)
        wanted = {label: self.teams[label] for label in labels or self.teams}
        up = {
            label: team
            for label, team in wanted.items()
            if self.attempt(label, _open, team, nbytes)
        }
        yield up  # an error ends all processes; see `Arena.crew`
        for label, team in up.items():
            if label in self.teams:
                self.attempt(label, _close, team)

    def attempt(self, label: str, function: Callable[..., object], *args: object) -> Any:
        """Return what a function returns; a peer for which it fails is noted and sent away."""
        try:
            return function(*args)
        except ActorError as error:
            if label.startswith(LEADERS):
                raise
            sys.stderr.write(f"\n{label} is left out from here on:\n{error}\n")
            kind, _, _ = str(error).strip().splitlines()[-1].partition(":")
            self.notes.append(f"{label}: {function.__name__.strip('_')} raised {kind}")
            for each in self.teams.pop(label).all:
                each.kill()
            return None

    def flights(self, sample: Sample) -> Iterator[list[str]]:
        """Give groups of peers for which there is memory at once, the leaders in each of them."""
        leaders = [label for label in self.teams if label.startswith(LEADERS)]
        others = [label for label in self.teams if label not in leaders]
        fitting = [label for label in leaders + others if self._is_fit(label, sample)]
        leaders = [label for label in fitting if label in leaders]
        room = SHARE_OF_MEMORY * available_bytes()
        room -= sum(self._need(label, sample) for label in leaders)
        if room < 0:
            self.notes.append(f"{sample.label}: not enough memory")
            return
        flight, left = list(leaders), room
        for label in fitting[len(leaders) :]:
            need = self._need(label, sample)
            if need > left and len(flight) > len(leaders):
                yield flight
                flight, left = list(leaders), room
            flight.append(label)
            left -= need
        yield flight

    def _is_fit(self, label: str, sample: Sample) -> bool:
        found = self.teams[label].found
        return sample.nbytes <= found.kind.largest and found.has(sample.package)

    def _need(self, label: str, sample: Sample) -> float:
        return self.teams[label].found.kind.copies * sample.nbytes

    def dismiss(self, *, at_once: bool) -> None:
        """End all processes and remove what they left."""
        for team in self.teams.values():
            for each in team.all:
                each.kill() if at_once else each.end()
        self.teams.clear()


def _open(team: Team, nbytes: int) -> bool:
    address = team.owner.call(actor.create, nbytes)
    for each in team.readers:
        each.call(actor.attach, address)
    return True


def _close(team: Team) -> None:
    for each in reversed(team.all):
        each.call(actor.close)
    progress("")
