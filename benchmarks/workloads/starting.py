"""How long does a fresh process take to import a package, and to attach for the first time?

By the clock of the process itself, from the statement on; what the interpreter needs to start does
not count. An import includes everything that the package itself imports.
"""

from __future__ import annotations

import base64
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks import actor
from benchmarks.arena import Arena
from benchmarks.crew import ROOT, environment
from benchmarks.report import progress
from benchmarks.results import Result, collect
from benchmarks.samples import MIB

IMPORT, ATTACH = "import", "attach, first in a process"
SAMPLE = "fresh process"
ROUNDS, QUICK_ROUNDS = 9, 4
OTHERS_ROUNDS = 3  # of what no target is about
NUMPY, OURS = "numpy", "shmstore"

IMPORTING = """
import sys, time
start = time.perf_counter_ns()
__import__(sys.argv[1])
print(time.perf_counter_ns() - start)
"""
ATTACHING = """
import base64, pickle, sys, time
kind, address, package = pickle.loads(base64.b64decode(sys.argv[1]))
__import__(package)
start = time.perf_counter_ns()
peer = kind.attach(address)
print(time.perf_counter_ns() - start)
peer.close()
"""


def run(arena: Arena) -> Iterator[Result]:
    """Start processes that import or attach, in random order."""
    found = arena.choose(lambda kind: kind.shared and kind.gets)
    imports = {
        (IMPORT, each.kind.package): [each.python, IMPORTING, each.kind.package] for each in found
    }
    imports |= {(IMPORT, name): [sys.executable, IMPORTING, name] for name in (NUMPY, OURS)}
    imports.pop((IMPORT, "filelock"), None)  # what tells that shmstore can be imported
    rounds = QUICK_ROUNDS if arena.plan.quick else ROUNDS
    with arena.crew(found, readers=0) as crew, crew.set_up(MIB) as teams:
        attaches = {}
        for label, team in teams.items():
            address = team.owner.call(address_of)
            kind = team.found.kind
            package = OURS if label.startswith(OURS) else kind.package
            told = base64.b64encode(pickle.dumps((kind, address, package))).decode()
            attaches[ATTACH, label] = [team.found.python, ATTACHING, told]
        times = _time(imports | attaches, rounds)
    yield from collect("starting", SAMPLE, times)


def _time(
    programs: dict[tuple[str, str], Sequence[str]], rounds: int
) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    for turn in range(rounds + 1):
        due = [key for key in programs if turn <= OTHERS_ROUNDS or key[1].startswith((NUMPY, OURS))]
        for key in random.Random(turn).sample(due, len(due)):
            progress(f"{key[0]}: {key[1]}")
            python, program, argument = programs[key]
            ran = subprocess.run(
                [python, "-c", program, argument],
                cwd=ROOT,
                env=environment(),
                capture_output=True,
                check=False,
            )
            if turn and ran.returncode == 0:  # the first time, files are read and compiled
                times[key].append(float(ran.stdout.split()[-1]))
    return times


def address_of(stand: actor.Stand) -> object:
    """Return what another process needs to attach."""
    return stand.peer.address
