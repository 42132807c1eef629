"""What is measured?

A workload is a module in `workloads/` with a function `run`, which takes an `Arena` and gives
results; it is listed here with what it tells in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from benchmarks.arena import Arena
from benchmarks.results import Result

Workload = Callable[[Arena], Iterator[Result]]

WORKLOADS = {
    "put": "put an object into memory that was used before, by size",
    "get": "get an object in another process, time and again, by size",
    "many": "put and get 1,000 small objects in one call",
    "cold": "put an array into pages that nobody has touched",
    "handoff": "hand an object over to a process that waits for it, and hear back",
    "first_get": "get a large array for the first time, and read all of it",
    "objects": "put, get and attach with 1,000 to 1,000,000 objects; memory for each",
    "starting": "import and attach in fresh processes",
    "readers": "1 to 8 processes read one array: time, and memory of all of them",
    "contention": "1 to 8 processes put and get small objects at once: throughput, tails",
    "writers": "1 to 8 processes put 64 KiB arrays at once: throughput",
    "mixed": "4 processes put, get and delete objects of all sizes: percentiles",
    "usable": "how much of the capacity stays usable in a long run of all sizes and ages",
    "fork": "fork a process that has many live views",
    "queue": "small and large objects through a queue between two processes",
    "pool": "a large argument of many calls of a process pool, and large results",
    "dataset": "memory of a data set that 4 workers of a torch DataLoader read",
    "types": "put and get an object of each type that is handled, beside pickle",
}


def load(name: str) -> Workload:
    """Return the workload of a name."""
    return import_module(f"benchmarks.workloads.{name}").run
