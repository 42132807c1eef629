"""How does a workload run a whole program, whose memory and processes are its own?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.crew import ROOT, environment

INTERVAL_S = 0.02


def call(function: Callable[..., Any], *args: object) -> Any:
    """Call a function of a module in a new process; arguments and result go as JSON."""
    ran = subprocess.run(
        [sys.executable, "-m", __name__, function.__module__, function.__name__, json.dumps(args)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def pss(*pids: int) -> int:
    """Return the proportional set size of processes with their children, in bytes.

    Without any: of this one.
    """
    processes = [psutil.Process(pid) for pid in pids or (os.getpid(),)]
    children = [child for each in processes for child in each.children(recursive=True)]
    return sum(_pss_of(each.pid) for each in processes + children)


class Peak:
    """The most memory that this process and its children take while a block runs.

    Attributes
    ----------
    nbytes : int
        More than before the block, as far as a look every 20 ms sees it.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(pss(),))

    def _look(self, before: int) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.nbytes = max(self.nbytes, pss() - before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()


def _pss_of(pid: int) -> int:
    with suppress(OSError), Path(f"/proc/{pid}/smaps_rollup").open() as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _main(module: str, function: str, args: str) -> None:
    result = getattr(import_module(module), function)(*json.loads(args))
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
