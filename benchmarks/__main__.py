"""``python -m benchmarks``."""

import argparse
import sys
from pathlib import Path

from benchmarks import clock, kinds, machine, peers, report, samples
from benchmarks.arena import COPIES, Arena
from benchmarks.reader import Reader
from benchmarks.results import Result
from benchmarks.scratch import scratch_folder
from benchmarks.workloads import WORKLOADS

INTERRUPTED = 130


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = _options()
    plan = clock.QUICK if options.quick else clock.FULL
    found, missing = peers.find()
    _, no_kinds = kinds.find()
    chosen, too_large = _fitting(samples.QUICK_SAMPLES if options.quick else samples.SAMPLES)
    skipped = "; ".join(missing + no_kinds + too_large) or "nothing"
    context = {**machine.describe(), "plan": str(plan), "skipped": skipped}
    results: list[Result] = []
    try:
        with scratch_folder() as folder, Reader() as reader:
            arena = Arena(folder, reader, plan, found, chosen)
            for name in options.names or WORKLOADS:
                results += WORKLOADS[name](arena)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    report.progress("")
    report.show(context, results)
    if options.json:
        report.write_json(options.json, context, results)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing above 64 MiB")
    options = parser.parse_args()
    for name in options.names:
        if name not in WORKLOADS:
            parser.error(f"there is no {name}; there are {', '.join(WORKLOADS)}")
    return options


def _fitting(wanted: tuple[samples.Sample, ...]) -> tuple[list[samples.Sample], list[str]]:
    """Return the samples that there is memory for, and what is missing for the others."""
    available = machine.available_bytes()
    fitting = [each for each in wanted if COPIES * each.nbytes < available]
    short = [
        f"{each.label}: needs {COPIES * each.nbytes:,} bytes, {available:,} are available"
        for each in wanted
        if each not in fitting
    ]
    return fitting, short


if __name__ == "__main__":
    sys.exit(main())
