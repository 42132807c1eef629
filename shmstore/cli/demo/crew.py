"""How do the parent and its workers talk?

Each worker is a spawned process, so it inherits nothing, at the far end of a pipe of its own. The
parent sends a call of one of `_Desk`'s methods, the worker answers with what it returned or raised.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Self, cast

import numpy as np

import shmstore
from shmstore.cli._errors import CommandError
from shmstore.cli._interrupts import sigint_blocked
from shmstore.cli.demo.jobs import Answer, Data

_JOIN_TIMEOUT_S = 5
_LARGE_BLOCK_NBYTES = 31 << 20
_PAGE_NBYTES = 4096


class Crew:
    """Worker processes that hold one parcel of data and compute on it.

    All of them are up and idle when the ``with`` block begins, and gone when it has ended.

    Parameters
    ----------
    size : int
        The number of processes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._workers: dict[Connection, SpawnProcess] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.push(self)
            with sigint_blocked():
                for _ in range(self._size):
                    self._start_worker()
            self._call_all("greet")
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._workers:
            pipe.close()  # the worker's next read or write fails, and it goes home
        for process in self._workers.values():
            process.join(_JOIN_TIMEOUT_S)
            process.kill()
            process.join()
            process.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._workers.values() if process.pid is not None]

    def hand_over(self, parcel: shmstore.ObjectRef | Data) -> int:
        """Let every worker hold the data of a parcel; return the bytes that went through pipes."""
        return self._call_all("hold", parcel)

    def settle(self) -> None:
        """Let all workers treat memory alike: unpickling changes, by chance, how malloc does."""
        self._call_all("settle")

    def map(
        self, sample: Callable[[Data, int], Answer], tasks: int, on_done: Callable[[], None]
    ) -> list[Answer]:
        """Return ``sample(data, task)`` of each task; whoever is idle gets the next one."""
        answers: dict[int, Answer] = {}
        queue = iter(range(tasks))
        idle = list(self._workers)
        busy: dict[Connection, int] = {}
        while True:
            for pipe, task in zip(idle, queue, strict=False):
                _send(pipe, "work", sample, task)
                busy[pipe] = task
            if not busy:
                return [answers[task] for task in range(tasks)]
            idle = cast("list[Connection]", wait(list(busy)))
            for pipe in idle:
                answers[busy.pop(pipe)] = _receive(pipe)
                on_done()

    def _start_worker(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._workers[ours] = process

    def _call_all(self, method: str, *arguments: object) -> int:
        nbytes = sum(_send(pipe, method, *arguments) for pipe in self._workers)
        for pipe in self._workers:
            _receive(pipe)
        return nbytes


class _Desk:
    """What does one worker hold, and what can it be asked?"""

    def greet(self) -> None:
        """Answer at all: this process is up, and has imported what it needs."""

    def hold(self, parcel: shmstore.ObjectRef | Data) -> None:
        """Keep the data; touch every page of them, since mapped memory only arrives when read."""
        self._data: Data = parcel.get() if isinstance(parcel, shmstore.ObjectRef) else parcel
        for array in self._data.values():
            array.reshape(-1).view(np.uint8)[::_PAGE_NBYTES].max()

    def settle(self) -> None:
        """Free one large block: it teaches malloc to keep what is freed from now on."""
        np.empty(_LARGE_BLOCK_NBYTES, np.uint8)

    def work(self, sample: Callable[[Data, int], Answer], task: int) -> Answer:
        """Do one task on the data."""
        return sample(self._data, task)


@dataclass(frozen=True)
class _Failure:
    reason: str


def _serve(pipe: Connection) -> None:
    """Answer calls until the parent closes its end of the pipe, or dies."""
    desk = _Desk()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, arguments = pipe.recv()
            pipe.send_bytes(_pickled(_answer(getattr(desk, method), arguments)))


def _answer(method: Callable[..., object], arguments: Sequence[object]) -> object:
    try:
        return method(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells the user
        return _Failure(repr(error))


def _send(pipe: Connection, method: str, *arguments: object) -> int:
    message = _pickled((method, arguments))
    try:
        pipe.send_bytes(message)
    except ConnectionError as error:
        raise CommandError("a worker process has died") from error
    return len(message)


def _receive(pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise CommandError("a worker process has died") from error
    if isinstance(answer, _Failure):
        raise CommandError(f"a worker process failed: {answer.reason}")
    return answer


def _pickled(message: object) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
