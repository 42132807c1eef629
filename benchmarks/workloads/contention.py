"""What do processes get done that put and get at once, and how long does one of them wait?

Each puts a small object, gets one of those that all share, and deletes its own ones after a while.
Throughput counts the three operations of all processes. The tail is the worst process's: its 99.9th
percentile, over the median of all. The floor is processes that pickle and copy each for itself.

More processes than processors wait for one another whatever they do: the scheduler lets the others
run for some milliseconds, a thousand times the length of a put. So the tails are also measured with
processes that pause after each turn, and leave the processors idle for most of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from benchmarks import together
from benchmarks.arena import Arena
from benchmarks.crew import Crew, Team
from benchmarks.peers import FLOOR
from benchmarks.report import progress
from benchmarks.results import PER_SECOND, TIMES, Result, collect
from benchmarks.samples import MIB, small_dict
from benchmarks.together import Log, Work

PROCESSES = (1, 2, 4, 8)
TOGETHER = "put and get, all together"
TAIL = "p99.9 over median of a {}"
ROUNDS, SECONDS = 3, 0.4
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.2
PAUSE_S = 0.002

# What each process did, by peer and number of processes, round by round.
Logs = dict[str, dict[int, list[list[Log]]]]


def run(arena: Arena) -> Iterator[Result]:
    """Let 1, 2, 4 and 8 processes of each peer work, by turns; then 8 that pause."""
    seconds = QUICK_SECONDS if arena.plan.quick else SECONDS
    logs = measure(arena, Work((small_dict,), 1, seconds), TOGETHER)
    for processes in PROCESSES:
        values = {
            (TOGETHER, peer): [together.per_second(each) for each in rounds[processes]]
            for peer, rounds in logs.items()
        }
        yield from collect("contention", named(processes), values, PER_SECOND)
        yield from _tails(logs, processes, named(processes))
    processes = max(PROCESSES)
    paced = Work((small_dict,), 1, 2 * seconds, pause_s=PAUSE_S)
    logs = measure(arena, paced, "put and get, with pauses", (processes,))
    yield from _tails(logs, processes, f"{named(processes)}, with pauses")


def _tails(logs: Logs, processes: int, sample: str) -> Iterator[Result]:
    tails = {
        (TAIL.format(verb), peer): [tail(each, verb) for each in rounds[processes]]
        for peer, rounds in logs.items()
        for verb in ("put", "get")
    }
    yield from collect("contention", sample, tails, TIMES)


def measure(arena: Arena, work: Work, what: str, counts: tuple[int, ...] = PROCESSES) -> Logs:
    """Return by peer and number of processes what each process did, round by round."""
    found = arena.choose(
        lambda kind: (
            kind.label == FLOOR or (kind.shared and kind.crowds and kind.puts and kind.gets)
        )
    )
    rounds = QUICK_ROUNDS if arena.plan.quick else ROUNDS
    with arena.crew(found, readers=max(counts) - 1) as crew, crew.set_up(4 * MIB) as teams:
        ready = [label for label, team in teams.items() if crew.attempt(label, prepare, team, work)]
        logs = {label: {processes: [] for processes in counts} for label in ready}
        for _ in range(rounds):
            for processes in counts:
                for label in list(logs):
                    progress(f"{what}: {label}, {processes}")
                    done = _work(crew, label, processes, work)
                    if done is None:
                        del logs[label]
                    else:
                        logs[label][processes].append(done)
        return logs


def _work(crew: Crew, label: str, processes: int, work: Work) -> list[Log] | None:
    return crew.attempt(label, together.run, crew.teams[label].all[:processes], work)


def prepare(team: Team, work: Work) -> bool:
    """Let each process put what all may get."""
    dumped = [each.call(together.prepare, work, number) for number, each in enumerate(team.all)]
    for each in team.all:
        each.call(together.share, list(chain.from_iterable(dumped)))
    return True


def tail(logs: list[Log], verb: str) -> float:
    """Return the longest 99.9th percentile of a process, over the median of all of them."""
    taken = [log.taken[verb] for log in logs if len(log.taken[verb])]
    longest = max(np.percentile(each, 99.9) for each in taken)
    return float(longest / np.median(np.concatenate(taken)))


def named(processes: int) -> str:
    """Return the label of so many processes."""
    return "1 process" if processes == 1 else f"{processes} processes"
