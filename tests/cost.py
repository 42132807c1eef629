"""What does an operation cost, counted and not timed?

``python tests/cost.py`` counts for each operation, per call and in a store that is warm:

============ =======================================================================================
instructions bytecode instructions that Python executes, of shmstore and of what it calls
calls        calls of functions that are written in C
nbytes       the most memory of Python's that the operation holds at once beyond what it began with
system_calls as strace sees them; left out where there is no strace, or it may not trace
============ =======================================================================================

The counts do not depend on the machine, but on the version of Python: ``--record`` notes them for
the version that runs in ``cost.json``, and `test_cost` fails when one has grown by more than a
tenth. Each version is recorded by its own Python: ``python3.12 tests/cost.py --record``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

RECORDED: Final = Path(__file__).with_name("cost.json")
VERSION: Final = "{}.{}".format(*sys.version_info)
WARM_UPS: Final = 40
TIMES: Final = 20
# What a count may have grown by, and may be off by where it is small.
GROWTH: Final = 1.1
SLACK: Final = {"instructions": 2.0, "calls": 0.5, "nbytes": 64.0, "system_calls": 0.25}

_MARK: Final = "/cost-mark/"
_MARKED: Final = re.compile(re.escape(_MARK) + r"([a-z0-9_-]+)/(begin|end)")

# By operation and measure.
Costs = dict[str, dict[str, float]]


class Operation(NamedTuple):
    """What is counted, and what is done before and after it."""

    run: Callable[[Any], Any]
    before: Callable[[], Any] = lambda: None
    after: Callable[[Any], Any] = lambda _: None


def operations(store: Any) -> dict[str, Operation]:
    """Return what is counted, in a store that already has something in it."""
    import numpy as np

    small = {"id": 7, "name": "sample", "score": 0.5, "tags": ["a", "b"]}
    array, text = np.arange(8192.0), "some text" * 100
    many = [dict(small, id=number) for number in range(100)]
    store["key"] = small
    ref, array_ref = store.put(small), store.put(array)
    store["array"] = array
    put, delete = store.put, store.delete
    return {
        "get_by_ref": Operation(lambda _: store.get(ref)),
        "get_by_key": Operation(lambda _: store.get("key")),
        "get_array": Operation(lambda _: store.get(array_ref)),
        "get_new_ref": Operation(store.get, before=lambda: put(small), after=lambda _: None),
        "contains": Operation(lambda _: "key" in store),
        "put_small": Operation(lambda _: put(small), after=delete),
        "put_small_by_key": Operation(lambda _: put(small, key="new"), after=delete),
        "overwrite_small": Operation(lambda _: put(small, key="key")),
        "put_text": Operation(lambda _: put(text), after=delete),
        "put_array": Operation(lambda _: put(array), after=delete),
        "put_many_100": Operation(lambda _: store.put_many(many), after=store.delete_many),
        "delete_small": Operation(delete, before=lambda: put(small)),
        "delete_array": Operation(delete, before=lambda: put(array)),
    }


# --- meters ---------------------------------------------------------------------------------------


class _Instructions:
    """Counts the events that `sys.settrace` gives for each instruction of a frame."""

    def __init__(self) -> None:
        from shmstore import _puts, _refilling, _spares

        self.count = 0
        for module in (_puts, _refilling, _spares):
            vars(module)["gettrace"] = bool  # as if nobody did: a call into C that says no

    def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        sys.settrace(self._enter)
        try:
            return function(argument)
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        self.count += event == "opcode"
        return self._step


class _Calls:
    """Counts the events that `sys.setprofile` gives for each call into C."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        sys.setprofile(self._see)
        try:
            return function(argument)
        finally:
            sys.setprofile(None)

    def _see(self, _frame: FrameType, event: str, _argument: Any) -> None:
        self.count += event == "c_call"


class _Memory:
    """Adds up the peaks of the memory that `tracemalloc` knows of."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = function(argument)
        self.count += tracemalloc.get_traced_memory()[1] - before
        return result


def _per_call(meter: Any, operation: Operation) -> float:
    """Return what a meter counts per call, without what it counts of nothing."""
    nothing = type(meter)()
    for _ in range(TIMES):
        argument = operation.before()
        operation.after(meter.run(operation.run, argument))
        nothing.run(_nothing, None)
    return (meter.count - nothing.count) / TIMES


def _nothing(argument: Any) -> Any:
    return argument


def count_here() -> Costs:
    """Count what can be counted in this process."""
    costs: Costs = {}
    for name, operation in _warm_operations():
        costs[name] = {
            "instructions": _per_call(_Instructions(), operation),
            "calls": _per_call(_Calls(), operation),
        }
        tracemalloc.start()
        costs[name]["nbytes"] = _per_call(_Memory(), operation)
        tracemalloc.stop()
    return costs


def _warm_operations() -> Iterator[tuple[str, Operation]]:
    """Give each operation after it was run for a while; the cyclic collector stands still."""
    from shmstore import Store

    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-cost-") as root:
        gc.collect()
        gc.disable()
        with Store.create(
            capacity="64MiB", root=Path(root) / "stores", locked_reads=False
        ) as store:
            for name, operation in operations(store).items():
                for _ in range(WARM_UPS):
                    operation.after(operation.run(operation.before()))
                yield name, operation
        gc.enable()


# --- system calls ---------------------------------------------------------------------------------


def run_between_marks() -> None:
    """Run each operation between two system calls that fail, and are found again."""
    for name, operation in _warm_operations():
        for _ in range(TIMES):
            argument = operation.before()
            _mark(name, "begin")
            result = operation.run(argument)
            _mark(name, "end")
            operation.after(result)


def _mark(name: str, edge: str) -> None:
    Path(f"{_MARK}{name}/{edge}").exists()


def count_system_calls() -> tuple[dict[str, float], str]:
    """Return the system calls of each operation, or why they cannot be counted."""
    strace = shutil.which("strace")
    if strace is None:
        return {}, "there is no strace"
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "calls"
        ran = subprocess.run(
            [strace, "-qq", "-o", written, sys.executable, __file__, "--marks"],
            capture_output=True,
            env=_environment(),
            check=False,
        )
        if ran.returncode:
            return {}, ran.stderr.decode(errors="replace").strip().splitlines()[-1]
        counts = _between_marks(written.read_text(errors="replace").splitlines())
    return {name: count / TIMES for name, count in counts.items()}, ""


def _between_marks(lines: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    current = None
    for line in lines:
        if marked := _MARKED.search(line):
            current = marked[1] if marked[2] == "begin" else None
            counts[marked[1]] += 0
        elif current is not None:
            counts[current] += 1
    return counts


# --- all together ---------------------------------------------------------------------------------


def count() -> tuple[Costs, str]:
    """Count in processes of their own, so that nothing else is counted; also why not all could."""
    ran = subprocess.run(
        [sys.executable, __file__, "--json"],
        stdout=subprocess.PIPE,
        env=_environment(),
        check=True,
    )
    costs: Costs = json.loads(ran.stdout)
    system_calls, missing = count_system_calls()
    for name, calls in system_calls.items():
        costs[name]["system_calls"] = calls
    return costs, missing


def _environment() -> dict[str, str]:
    """Return the environment without what would count along: coverage, development mode."""
    foreign = ("COVERAGE_", "COV_", "PYTHONDEVMODE", "PYTHONTRACEMALLOC")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def recorded() -> dict[str, Costs]:
    """Return what was recorded, by version of Python."""
    return json.loads(RECORDED.read_text())


def record(costs: Costs) -> None:
    """Note the counts for this version of Python."""
    versions = recorded() if RECORDED.exists() else {}
    versions[VERSION] = costs
    ordered = {version: versions[version] for version in sorted(versions)}
    RECORDED.write_text(json.dumps(ordered, indent=1) + "\n")


def show(costs: Costs, before: Costs) -> None:
    """Print the counts, with those that were recorded in brackets."""
    measures = list(SLACK)
    print(f"{'':<18}" + "".join(f"{measure:>22}" for measure in measures))
    for name, values in costs.items():
        cells = []
        for measure in measures:
            old = before.get(name, {}).get(measure)
            value = values.get(measure)
            told = "-" if value is None else f"{value:,.1f}"
            cells.append(f"{told} ({'-' if old is None else f'{old:,.1f}'})")
        print(f"{name:<18}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="note the counts in cost.json")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--marks", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.marks:
        run_between_marks()
    elif options.json:
        print(json.dumps(count_here()))
    else:
        costs, missing = count()
        if missing:
            print(f"system calls are not counted: {missing}", file=sys.stderr)
        show(costs, recorded().get(VERSION, {}) if RECORDED.exists() else {})
        if options.record:
            record(costs)


if __name__ == "__main__":
    main()
