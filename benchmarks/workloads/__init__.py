"""What is measured?

A workload is a function that takes an `Arena` and gives results.
"""

from collections.abc import Callable, Iterator

from benchmarks.arena import Arena
from benchmarks.results import Result
from benchmarks.workloads import get, many, put, types

Workload = Callable[[Arena], Iterator[Result]]

WORKLOADS: dict[str, Workload] = {
    "get": get.run,
    "put": put.run,
    "put_many": many.run_put,
    "get_many": many.run_get,
    "types": types.run,
}
