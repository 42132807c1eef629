"""The other process: a spawned one that runs what it is told to over a pipe."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from benchmarks.clock import Operation, Plan, Timing, interleave
from benchmarks.peers import Peer
from benchmarks.scratch import uninterrupted

GRACE_S = 10.0

# What the reader is attached to, by label.
Attached = dict[str, Peer]


class ReaderError(RuntimeError):
    """A function raised in the reader; the message is its traceback."""


class Reader:
    """The handle on the process.

    It ends with the block: at once, where the block is left by an exception; and by itself, where
    the owner is killed.
    """

    def __enter__(self) -> Self:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # starting it later would unblock the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is not for it
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """End the process and wait for that."""
        with uninterrupted():
            if kind is None:
                self._pipe.send(None)
                self._process.join(GRACE_S)
            self.kill()

    def call(self, function: Callable[..., object], *args: object) -> Any:
        """Run ``function(attached, *args)`` over there and return what it returns."""
        self._pipe.send((function, args))
        done, answer = self._pipe.recv()
        if not done:
            raise ReaderError(answer)
        return answer

    def kill(self) -> None:
        """End the process at once; it may be in the middle of something."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    attached: Attached = {}
    with suppress(EOFError):
        while (order := pipe.recv()) is not None:
            function, args = order
            try:
                pipe.send((True, function(attached, *args)))
            except Exception:  # noqa: BLE001 - told to the owner, whatever it is
                pipe.send((False, traceback.format_exc()))


def attach(attached: Attached, addresses: list[tuple[type[Peer], object]]) -> None:
    """Attach to what the owner created."""
    for kind, address in addresses:
        attached[kind.label] = kind.attach(address)


def detach(attached: Attached) -> None:
    """Close everything."""
    while attached:
        attached.popitem()[1].close()


def time_gets(
    attached: Attached,
    handles: dict[str, object],
    touch: Callable[[Any], object],
    plan: Plan,
) -> dict[tuple[str, str], Timing]:
    """Time get of each peer's handle: by itself, and with reading one element and dropping it."""
    operations = {}
    for label, handle in handles.items():
        get = attached[label].getter(handle)
        operations["get", label] = Operation(get, undo=_ignore)
        operations["get, touch, drop", label] = Operation(_touching(get, touch))
    return interleave(operations, plan)


def time_many_gets(
    attached: Attached, handles: dict[str, object], plan: Plan
) -> dict[tuple[str, str], Timing]:
    """Time getting all objects of each peer's handle at once, and dropping them."""
    return interleave(
        {
            ("get_many, drop", label): Operation(attached[label].many_getter(handle))
            for label, handle in handles.items()
        },
        plan,
    )


def _touching(get: Callable[[], object], touch: Callable[[Any], object]) -> Callable[[], object]:
    return lambda: touch(get())


def _ignore(_: object) -> None:
    pass
