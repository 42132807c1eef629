"""How long do puts, gets and hand-overs take?"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

import shmstore
from shmstore.cli._interrupts import sigint_blocked

_PAGE: Final = 4096
_FEWEST: Final = 5
_MOST: Final = 20_000
_BATCH: Final = 100
_JOIN_TIMEOUT_S: Final = 5
_KEY: Final = "bench"
_CROWD_ITEM: Final = 1024


def median_s(step: Callable[[], object], budget_s: float, *, batch: int = 1) -> float:
    """Return the median time of a step, tried for as long as the budget lasts.

    With `batch` so many steps are timed together, for those that are as short as the clock.
    """
    step()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < _FEWEST or (time.perf_counter() < end and len(times) < _MOST):
        begun = time.perf_counter()
        for _ in range(batch):
            step()
        times.append((time.perf_counter() - begun) / batch)
    return statistics.median(times)


def memcpy_rate(budget_s: float) -> float:
    """Return how many bytes a second one thread copies, between pages that are there."""
    source = np.ones(1 << 26, np.uint8)
    target = np.zeros_like(source)
    return source.nbytes / median_s(lambda: np.copyto(target, source), budget_s)


def of_size(store: shmstore.Store, peer: Peer, nbytes: int, budget_s: float) -> dict[str, Any]:
    """Return the times for arrays of one size."""
    array = np.ones(nbytes, np.uint8)

    def put() -> None:
        store.put(array, key=_KEY)

    def hand_over() -> None:
        store.put(array, key=_KEY)
        peer.ask(_KEY)

    put_s = median_s(put, budget_s / 4)
    get_s = median_s(lambda: store.get(_KEY), budget_s / 8, batch=_BATCH)
    handover_s = median_s(hand_over, budget_s / 4)
    pipe_s = median_s(lambda: peer.ask(array), budget_s / 4)
    store.discard(_KEY)
    return {
        "nbytes": nbytes,
        "put_s": put_s,
        "put_rate": nbytes / put_s,
        "get_s": get_s,
        "handover_s": handover_s,
        "pipe_s": pipe_s,
        "ratio": round(pipe_s / handover_s, 1),
    }


def of_small_objects(store: shmstore.Store, budget_s: float) -> list[dict[str, Any]]:
    """Return the times for small values."""
    value = {"step": 1, "loss": 0.5}
    batch = {f"{_KEY}-{at}": value for at in range(_BATCH)}
    store[_KEY] = value
    ref = store.put(value)
    steps: list[tuple[str, Callable[[], object], int]] = [
        ("put a dict", lambda: store.put(value, key=_KEY), 1),
        ("put_many of dicts, each", lambda: store.put_many(batch), _BATCH),
        ("get a dict by key", lambda: store.get(_KEY), 1),
        ("get a dict by reference", ref.get, 1),
        ("is a key there", lambda: _KEY in store, 1),
    ]
    rows = []
    for what, step, items in steps:
        tries = 1 if items > 1 else _BATCH
        seconds = median_s(step, budget_s / 4, batch=tries) / items
        rows.append({"what": what, "seconds": seconds, "per_s": 1 / seconds})
    store.clear()
    ref.delete()
    return rows


# --- another process -----------------------------------------------------------------------------


class _Process:
    """A spawned process at the far end of a pipe; gone when the ``with`` block ends."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with sigint_blocked():
            self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
            self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self._process.join(_JOIN_TIMEOUT_S)
        self._process.kill()
        self._process.join()
        self._process.close()


class Peer(_Process):
    """A process that takes arrays, by name or through its pipe.

    Parameters
    ----------
    path, group
        Of the store.
    """

    def __init__(self, path: Path, group: str | int | None) -> None:
        super().__init__(_take, str(path), group)

    def ask(self, item: Any) -> None:
        """Let the other process have an array, and wait until it has read it."""
        self.pipe.send(item)
        self.pipe.recv()


def _take(pipe: Connection, path: str, group: str | int | None) -> None:
    """Take what comes, and read one byte of each page, until the other end is closed."""
    store = shmstore.Store.attach(path, group=group)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            item = pipe.recv()
            array = store.get(item) if isinstance(item, str) else item
            pipe.send(int(array[::_PAGE].max()))
            del item, array


def of_crowd(
    store: shmstore.Store, processes: int, budget_s: float, group: str | int | None
) -> dict[str, Any]:
    """Return how many puts, and gets, so many processes do in a second together."""
    found: dict[str, Any] = {"processes": processes}
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(_Process(_work, str(store.path), at, group))
            for at in range(processes)
        ]
        for what in ("puts", "gets"):
            for process in crowd:
                process.pipe.send((what, budget_s / 4))
            found[what] = sum(process.pipe.recv() for process in crowd)
    store.clear()
    return found


def _work(pipe: Connection, path: str, number: int, group: str | int | None) -> None:
    """Put or get for a while, as often as asked; tell how many it were in a second."""
    store = shmstore.Store.attach(path, group=group)
    array, key = np.zeros(_CROWD_ITEM, np.uint8), f"{_KEY}-{number}"
    store[key] = array
    steps = {"puts": lambda: store.put(array, key=key), "gets": lambda: store.get(key)}
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            what, budget_s = pipe.recv()
            pipe.send(_count_per_s(steps[what], budget_s))


def _count_per_s(step: Callable[[], object], budget_s: float) -> float:
    done, begun = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begun) < budget_s:
        for _ in range(_BATCH):
            step()
        done += _BATCH
    return done / seconds
