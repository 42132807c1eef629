"""What does sharing real data through a store save, compared with sending it through pickles?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from shmstore.cli._errors import CommandError
from shmstore.cli.demo import race, tables
from shmstore.cli.demo.corpus import Corpus, load
from shmstore.cli.demo.jobs import Answer

_TASKS = 64


def run(path: Path | None, workers: int) -> None:
    """Hand a corpus to worker processes in two ways, and print what each way costs.

    Parameters
    ----------
    path : Path, optional
        A file or folder of text, .npy or .csv; Python's standard library by default.
    workers : int
        The number of processes.

    Raises
    ------
    CommandError
        When there is nothing to work on, a worker dies, or the two ways give different answers.
    """
    with _progress() as progress:
        loading = progress.add_task("loading", total=None)
        corpus = load(path)
        progress.update(loading, total=1, completed=1)
        stored = _run_way("shmstore", progress, corpus, workers)
        pickled = _run_way("pickle", progress, corpus, workers)
    _require_same(stored.answers, pickled.answers)
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(tables.of_costs(corpus, workers, stored, pickled))
    console.print(tables.WHAT_WAS_DONE, style="dim", end="\n\n")
    console.print(tables.of_findings(corpus.job.summarize(stored.answers)))
    console.print(f"Over {_TASKS} random samples; both ways gave the same answers.", style="dim")


def _progress() -> Progress:
    """Make the bars: on stderr, gone at the end, and not there at all without a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _run_way(name: str, progress: Progress, corpus: Corpus, workers: int) -> race.Outcome:
    bar = progress.add_task(name, total=_TASKS)
    way = {"shmstore": race.through_store, "pickle": race.through_pickles}[name]
    return race.run(
        way, corpus, workers=workers, tasks=_TASKS, on_done=lambda: progress.advance(bar)
    )


def _require_same(stored: Sequence[Answer], pickled: Sequence[Answer]) -> None:
    for task, (left, right) in enumerate(zip(stored, pickled, strict=True)):
        if not all(map(_equal, left, right)):
            raise CommandError(f"the two ways give different answers to task {task}: this is a bug")


def _equal(left: np.ndarray, right: np.ndarray) -> bool:
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
