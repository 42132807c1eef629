"""The kill matrix: each operation, killed at each point that it comes to. ``make soak`` runs all.

::

    python tests/kill_matrix.py                             each operation and point once
    python tests/kill_matrix.py --all --recovery 10         each hit; and after ten of the deaths of
                                                            each operation each point of recovery
    python tests/kill_matrix.py --operation clear           one operation
    python tests/kill_matrix.py --operation clear --kill states.doom:1=1 --then recovery.mend:2=1
                                                            one case, as a failure is told
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

import proofs
from kill_operations import OPERATIONS
from kill_processes import Case, Result

TESTS: Final = Path(__file__).parent
EVERY: Final = 1 << 30


class Killer:
    """The process that forks those who are killed.

    Parameters
    ----------
    weakenings
        What is taken away from the store there.
    """

    def __init__(self, *weakenings: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "kill_machine.py"), *weakenings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, **request: Any) -> Result:
        """Run an operation; see `kill_machine.run` and `run_one`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pickle.dumps(request))
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, Result):
            return answer
        raise AssertionError(f"{request['name']}: {answer}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def note(result: Result) -> None:
    """Count what has been proved."""
    proofs.note(f"kill matrix: {result.operation}", **result.kills)
    if result.second:
        proofs.note(f"second kills: {result.operation}", **result.second)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill processes at each step of each operation.")
    parser.add_argument("--operation", action="append", choices=OPERATIONS, metavar="NAME")
    parser.add_argument("--all", action="store_true", help="kill at each hit, not one per point")
    parser.add_argument("--hits", type=int, default=1, help="kills per operation and point")
    parser.add_argument("--recovery", type=int, default=0, metavar="N", help="deaths to recover of")
    parser.add_argument("--points", type=int, default=EVERY, help="per recovery; default: all")
    parser.add_argument("--again", type=int, default=3, help="kills per point of recovery")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--kill", metavar="POINT=HIT", help="one case")
    parser.add_argument("--then", metavar="POINT=HIT", help="and a second death in its recovery")
    return parser.parse_args()


def _target(text: str) -> tuple[str, int]:
    point, _, hit = text.rpartition("=")
    return point, int(hit)


def _requests(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    names = arguments.operation or list(OPERATIONS)
    if arguments.kill:
        then = _target(arguments.then) if arguments.then else None
        return [{"name": name, "case": Case(*_target(arguments.kill), then)} for name in names]
    options = {
        "hits": EVERY if arguments.all else arguments.hits,
        "deaths": arguments.recovery,
        "points": arguments.points,
        "again": arguments.again,
        "seed": arguments.seed,
    }
    return [{"name": name, **options} for name in names]


def main() -> int:
    """Run the matrix, or a part of it; say what was found."""
    arguments = _arguments()
    requests = _requests(arguments)
    killers: SimpleQueue[Killer] = SimpleQueue()
    started = time.monotonic()
    failures = kills = 0

    def answer(request: dict[str, Any]) -> Result:
        killer = killers.get()
        try:
            return killer.ask(**request)
        except AssertionError as error:
            return Result(request["name"], failures=[str(error)])
        finally:
            killers.put(killer)

    workers = min(arguments.workers, len(requests))
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            killers.put(Killer())
        for result in pool.map(answer, requests):
            first, second = result.kills.total(), result.second.total()
            print(f"{result.operation:32} {first:6,} + {second:6,} kills", flush=True)
            for failure in [*result.failures, *map(str, result.unlisted)]:
                print(failure)
            for case in result.missed:
                print(f"{case}: nobody came to it again")
            failures += len(result.failures) + len(result.unlisted)
            kills += first + second
            note(result)
    while not killers.empty():
        with killers.get():
            pass
    print(f"{kills:,} kills in {time.monotonic() - started:.0f} s, {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
