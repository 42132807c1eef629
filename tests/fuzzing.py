"""Does anything forged do more than raise our errors? Two processes: one tries, one watches.

The child makes case after case, each from the seed and its number alone, so that any of them can be
repeated. Its memory is limited, its modules are counted, and pickle is replaced by one that loads
intact streams only. The parent notices when it dies or hangs, and goes on behind that case.

Damaged files of stores (`damage_files`) take longer, so there are a tenth as many of these cases,
and each of them is a process of its own that the child watches.

``python tests/fuzzing.py --count 100000 --seed 1`` is what ``make fuzz`` runs;
``--kind headers --case 17 --seed 1`` repeats one case in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HANG_S = 10
IMPORT_S = 120
ROOM_NBYTES = 1 << 30
_PLACE = struct.Struct("=2q")

# A case may import nothing but parts of these; all handlers are loaded before the first case.
LIBRARIES = frozenset(
    {
        *("encodings", "h5py", "numba", "numpy", "pandas", "polars", "pyarrow", "scipy"),
        *("shmstore", "sparse", "torch"),
    }
)


FILE_KINDS = ("index", "seat", "segment", "lock", "spill", "live")
FILES_PER_CASE = 10


class Failure(NamedTuple):
    """What one case did that it must not do."""

    kind: str
    case: int
    what: str
    where: str

    def signature(self) -> tuple[str, ...]:
        """Return what failures have in common that have the same cause."""
        return self.kind, self.what.partition(":")[0], *self.where.splitlines()[-3:]


class Report(NamedTuple):
    """What came out of a run."""

    tried: dict[str, int]
    refused: dict[str, int]
    failures: list[Failure]

    def add(self, failure: Failure) -> None:
        """Note a failure unless one like it is known."""
        if failure.signature() not in {known.signature() for known in self.failures}:
            self.failures.append(failure)


# --- the process that watches ---------------------------------------------------------------------


def run(kinds: dict[str, int], seed: int, *, most_failures: int = 20, show: bool = False) -> Report:
    """Try so many cases of each kind in a child, in a new one after each that died or hung."""
    report = Report(dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0), [])
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-fuzz-") as folder:
        for kind, count in kinds.items():
            first = 0
            while first < count and len(report.failures) < most_failures:
                first = _watch(Path(folder), (kind, first, count, seed), report, show=show)
    return report


def _watch(folder: Path, task: tuple[str, int, int, int], report: Report, *, show: bool) -> int:
    """Run one child; return the number of the case behind the last that it tried."""
    kind, first, count, seed = task
    place_path = folder / "place"
    place_path.write_bytes(_PLACE.pack(first, -1))
    command = [
        sys.executable,
        __file__,
        "--child",
        str(folder),
        "--kind",
        kind,
        "--seed",
        str(seed),
    ]
    command += ["--first", str(first), "--count", str(count)]
    env = {**os.environ, "SHMSTORE_ROOT": str(folder / "root")}  # stores of the dead go with it
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env)
        hung = _wait(child, place_path, (kind, count), show=show)
        last, refused = _PLACE.unpack(place_path.read_bytes())
        out.seek(0)
        err.seek(0)
        for line in out.read().splitlines():
            report.add(Failure(*json.loads(line)))
        if child.returncode:
            what = f"hung for {HANG_S} s" if hung else f"ended with {child.returncode}"
            report.add(Failure(kind, last, what, _stack(err.read())))
    tried = (last + 1 if child.returncode else count) - first
    report.tried[kind] += tried
    report.refused[kind] += max(refused, 0)
    return first + tried


def _wait(
    child: subprocess.Popen[Any], place_path: Path, task: tuple[str, int], *, show: bool
) -> bool:
    """Wait for the child; end it when it stays at one case. Return whether it did."""
    before, since, shown = (-1, -1), time.monotonic(), time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
            return False
        case, refused = at = _PLACE.unpack(place_path.read_bytes())
        now = time.monotonic()
        if at != before:
            before, since = at, now
        if now - since > (IMPORT_S if refused < 0 else HANG_S):
            child.send_signal(signal.SIGABRT)  # faulthandler shows where it is
            child.wait()
            return True
        if show and now - shown > 5:
            shown = now
            print(f"{task[0]}: {case:,} of {task[1]:,}, {refused:,} refused", flush=True)


def _stack(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "File" in line or "rror" in line]
    return "\n".join(reversed(lines[:12]))  # as tracebacks: the innermost last


# --- the process that tries -----------------------------------------------------------------------


def _child(folder: Path, kind: str, seed: int, first: int, count: int) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    targets = _open_targets(folder, kind)
    try_one = targets.kinds[kind]
    with (folder / "place").open("r+b") as file:
        place = mmap.mmap(file.fileno(), _PLACE.size)
    refused = 0
    _try(_fail, random.Random("text"))  # Python imports some modules late
    known = set(sys.modules)
    for case in range(first, count):
        _PLACE.pack_into(place, 0, case, refused)
        failure, was_refused = _try(try_one, random.Random(f"{seed}/{kind}/{case}"))
        refused += was_refused
        if len(sys.modules) != len(known):
            new = {name.partition(".")[0] for name in set(sys.modules) - known}
            known = set(sys.modules)
            if new - LIBRARIES:
                failure = f"imported {sorted(new - LIBRARIES)}", ""
        if failure is not None:
            print(json.dumps([kind, case, *failure]), flush=True)
    _PLACE.pack_into(place, 0, count, refused)
    sys.stdout.flush()
    os._exit(0)


def _open_targets(folder: Path, kind: str) -> Any:
    """Return what has the doors of a kind, in a process that is ready for them."""
    targets: Any
    if kind in FILE_KINDS:
        from damage_files import FileTargets

        targets = FileTargets(folder)
    else:
        from fuzz_targets import Targets

        targets = Targets(folder)
        _load_intact_only(targets.streams)
    _limit_memory()
    return targets


def _try(
    try_one: Callable[[random.Random], bool], noise: random.Random
) -> tuple[tuple[str, str] | None, bool]:
    """Return what went wrong, if anything did, and whether the forgery was refused."""
    try:
        return None, try_one(noise)
    except BaseException as error:  # whatever gets through is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        where = "\n".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:])
        where = getattr(error, "where", where)  # of a case in a process of its own
        return (
            f"{type(error).__name__}: {error!s:.300}".encode(errors="replace").decode(),
            where,
        ), False


def _fail(_: random.Random) -> bool:
    raise ValueError


def _load_intact_only(streams: frozenset[bytes]) -> None:
    """Replace `pickle.loads` by one that refuses what no pickler of ours has written."""
    loads = pickle.loads

    def load_intact(stream: Any, /, **options: Any) -> Any:
        if bytes(stream) not in streams:
            raise pickle.UnpicklingError("a stream that was changed, or is none")
        return loads(stream, **options)

    pickle.loads = load_intact  # type: ignore[assignment]


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_NBYTES, used + ROOM_NBYTES))


# --- the command line -----------------------------------------------------------------------------


def main() -> None:
    """Run, watch or repeat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", type=Path)
    parser.add_argument("--kind")
    parser.add_argument("--case", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    if given.child:
        _child(given.child, given.kind, given.seed, given.first, given.count)
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    if given.case is not None:
        _repeat(given.kind, seed, given.case)
        return
    from fuzz_targets import KINDS
    from proofs import note

    counts = dict.fromkeys(KINDS, given.count)
    counts |= dict.fromkeys(FILE_KINDS, -(-given.count // FILES_PER_CASE))
    kinds = {kind: count for kind, count in counts.items() if given.kind in (None, kind)}
    print(f"seed {seed}: {kinds}", flush=True)
    failures = 0
    for kind, count in kinds.items():
        report = run({kind: count}, seed, show=True)
        tried, refused, failed = report.tried[kind], report.refused[kind], len(report.failures)
        print(f"{kind}: {tried:,} tried, {refused:,} refused", flush=True)
        subject = "damaged files" if kind in FILE_KINDS else "forged bytes"
        note(f"{subject}: {kind}", cases=tried, refused=refused, failures=failed)
        for failure in report.failures:
            again = f"--kind {kind} --seed {seed} --case {failure.case}"
            print(f"\n{kind} case {failure.case}: {failure.what}\n{failure.where}")
            print(f"  repeat: python {__file__} {again}", flush=True)
        failures += failed
    sys.exit(bool(failures))


def _repeat(kind: str, seed: int, case: int) -> None:
    faulthandler.enable()
    with _folder(kind) as folder:
        targets = _open_targets(folder, kind)
        targets.verbose = True
        print("refused:", targets.kinds[kind](random.Random(f"{seed}/{kind}/{case}")))
        sys.stdout.flush()
        if kind not in FILE_KINDS:
            os._exit(0)


@contextlib.contextmanager
def _folder(kind: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if kind in FILE_KINDS else None) as folder:
        yield Path(folder)


if __name__ == "__main__":
    main()
