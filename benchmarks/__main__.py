"""``python -m benchmarks``."""

import argparse
import sys
import time
import traceback
from pathlib import Path

import shmstore
from benchmarks import catalogue, clock, kinds, machine, peers, render, report, samples
from benchmarks.arena import Arena
from benchmarks.results import Result
from benchmarks.scratch import scratch_folder

INTERRUPTED, FAILED = "interrupted", "failed"


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = _options()
    if options.list:
        for name, meaning in catalogue.WORKLOADS.items():
            sys.stdout.write(f"{name:<12} {meaning}\n")
        return 0
    if options.read:
        _tell(options, *render.read(options.read))
        return 0
    plan = clock.QUICK if options.quick else clock.FULL
    found, notes = peers.find()
    if options.peers:
        found = [each for each in found if _is_wanted(each.kind.label, options.peers)]
    chosen = samples.QUICK_SAMPLES if options.quick else samples.SAMPLES
    if options.samples:
        chosen = tuple(
            each for each in samples.SAMPLES if any(s in each.label for s in options.samples)
        )
    notes += kinds.find()[1]
    context = {"shmstore": shmstore.__version__, **machine.describe(found), "plan": str(plan)}
    with scratch_folder() as folder:
        arena = Arena(folder, plan, found, list(chosen), vars(options), notes)
        results, seconds = _measure(arena, options.names or list(catalogue.WORKLOADS))
    context["seconds"] = ", ".join(seconds)
    context["notes"] = "; ".join(notes) or "none"
    report.progress("")
    _tell(options, context, results)
    return _status(notes)


def _measure(arena: Arena, names: list[str]) -> tuple[list[Result], list[str]]:
    """Return what was measured, if need be up to an interrupt, and how long it took.

    A workload that fails keeps what it has measured, and the others go on.
    """
    results: list[Result] = []
    seconds: list[str] = []
    for name in names:
        start = time.monotonic()
        try:
            results.extend(catalogue.load(name)(arena))
        except KeyboardInterrupt:
            arena.notes.append(INTERRUPTED)
            break
        except Exception as error:  # noqa: BLE001 - told at once, and by the exit status
            traceback.print_exc()
            arena.notes.append(f"{name} {FAILED} ({type(error).__name__})")
        seconds.append(f"{name} {time.monotonic() - start:.0f}")
    return results, seconds


def _status(notes: list[str]) -> int:
    if INTERRUPTED in notes:
        return 130
    return int(any(FAILED in note for note in notes))


def _tell(options: argparse.Namespace, context: dict[str, str], results: list[Result]) -> None:
    report.show(context, results)
    if options.json:
        report.write_json(options.json, context, results)
    if options.render:
        render.render(options.render, context, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list; all by default")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument(
        "--render", type=Path, metavar="FOLDER", help="write a page and its pictures there"
    )
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: tell what --json wrote",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing above 64 MiB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--peers", nargs="+", metavar="LABEL", help="beside shmstore and the floors, only these"
    )
    parser.add_argument(
        "--samples", nargs="+", metavar="LABEL", help="for put and get, only these ('64 KiB')"
    )
    parser.add_argument(
        "--objects", type=int, metavar="N", help="for objects, measure with so many, too"
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in catalogue.WORKLOADS:
            parser.error(f"there is no {name}; there are {', '.join(catalogue.WORKLOADS)}")
    return options


def _is_wanted(label: str, wanted: list[str]) -> bool:
    always = (peers.FLOOR, peers.MEMCPY, "shmstore")
    return label.startswith(always) or any(part.lower() in label.lower() for part in wanted)


if __name__ == "__main__":
    sys.exit(main())
