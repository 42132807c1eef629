"""Explore all interleavings of the real code, and show that weakened code is found out.

    python tests/interleave.py [--deep] [--only PATTERN] [--runs N]

Prints a line per scenario and per weakened variant; with --deep also of those scenarios that take
minutes. A counterexample is printed as its schedule, and ends this with status 1. How processes
and memory are simulated is told in `interleave_memory`, how schedules are searched in
`interleave_explorer`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator

import interleave_deaths
import interleave_extents
import interleave_own
import interleave_own_mutants
import interleave_sent
import proofs
from interleave_actors import explore
from interleave_explorer import Result
from interleave_mutants import MUTANTS as COMMON_MUTANTS
from interleave_scenarios import SCENARIOS as COMMON_SCENARIOS

SCENARIOS = {
    **COMMON_SCENARIOS,
    **interleave_deaths.SCENARIOS,
    **interleave_own.SCENARIOS,
    **interleave_extents.SCENARIOS,
    **interleave_sent.SCENARIOS,
}
MUTANTS = {
    **COMMON_MUTANTS,
    **interleave_own_mutants.MUTANTS,
    **interleave_extents.MUTANTS,
    **interleave_sent.MUTANTS,
}


def note(name: str, result: Result) -> None:
    """Count what was explored for docs/explanation/reliability.md."""
    proofs.note(
        f"interleave: {name}",
        states=result.states,
        schedules=result.runs,
        steps=result.steps,
        deaths=result.deaths,
        endings=result.endings,
    )


def told(result: Result) -> str:
    """Return a counterexample with its schedule."""
    return "\n".join([f"    {result.failure}", *(f"    {line}" for line in result.schedule)])


def explored(pattern: str, runs: int | None, *, deep: bool) -> Iterator[bool]:
    """Explore scenarios; yield whether each holds in all of its interleavings."""
    for name, scenario in SCENARIOS.items():
        if re.search(pattern, name) and (deep or not scenario.deep):
            result = explore(scenario, runs)
            fate = "all" if result.complete else "FAILS" if result.failure else "not all"
            counts = f"{result.states:>9,} states {result.runs:>8,} schedules"
            print(f"{name:<58}{counts} {result.seconds:>7.1f} s  {fate}", flush=True)
            if result.failure:
                print(told(result))
            note(name, result)
            yield result.complete


def found_out(pattern: str, *, deep: bool) -> Iterator[bool]:
    """Explore weakened code; yield whether a counterexample was found."""
    for name, mutant in MUTANTS.items():
        if re.search(pattern, name) and (deep or not mutant.deep):
            result = explore(SCENARIOS[mutant.scenario], None, mutant.weaken)
            print(f"weakened: {name}: found out after {result.runs:,} schedules")
            print(told(result) if result.failure else "    NOT FOUND OUT", flush=True)
            proofs.note(
                f"weakened: {name}",
                found_in=mutant.scenario if result.failure else "NOT FOUND",
                schedules=result.runs,
                length=len(result.schedule),
            )
            yield bool(result.failure)


def main() -> int:
    """Explore what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deep", action="store_true", help="also what takes minutes")
    parser.add_argument("--only", default="", metavar="PATTERN", help="names to explore")
    parser.add_argument("--runs", type=int, help="at most so many schedules per scenario")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-test-") as root:
        os.environ["SHMSTORE_ROOT"] = root
        verdicts = [
            *explored(chosen.only, chosen.runs, deep=chosen.deep),
            *found_out(chosen.only, deep=chosen.deep),
        ]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
