"""How are the demo's outcomes shown?"""

from __future__ import annotations

from rich.table import Table

from shmstore.cli.demo import memory_use
from shmstore.cli.demo.corpus import Corpus
from shmstore.cli.demo.jobs import Summary
from shmstore.cli.demo.race import Outcome

WHAT_WAS_DONE = """\
shmstore: create a store, put the corpus once, send each worker a reference.
pickle: pickle the corpus and send it through a pipe, once for each worker.
The hand-over begins when all workers are up, and ends when each of them has the
data and has touched every page; that is when memory is measured. Bytes copied
are those put and sent; further copies by pipes and by unpickling are left out."""


def of_costs(corpus: Corpus, workers: int, stored: Outcome, pickled: Outcome) -> Table:
    """Return the table of what both ways cost, and how many times more pickles cost."""
    table = Table(title=f"{corpus.title}, {workers} workers")
    table.add_column("")
    for heading in ("shmstore", "pickle", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    measure = memory_use.name_of_measure()
    for label, field, show in (
        ("time to hand over", "handover_s", _seconds),
        ("time for the work", "work_s", _seconds),
        ("time in all", "total_s", _seconds),
        (f"memory over all processes ({measure})", "memory_nbytes", _megabytes),
        ("memory taken by handing over", "memory_added_nbytes", _megabytes),
        ("bytes copied", "copied_nbytes", _megabytes),
    ):
        costs = getattr(stored, field), getattr(pickled, field)
        table.add_row(label, *map(show, costs), _ratio(*costs))
    return table


def of_findings(summary: Summary) -> Table:
    """Return the table of what the workers found, the same in both ways."""
    table = Table(title=summary.heading)
    table.add_column(summary.columns[0], max_width=20)
    for heading in summary.columns[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.rows:
        table.add_row(*row)
    return table


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB"


def _ratio(stored: float, pickled: float) -> str:
    return f"{pickled / stored:.1f} x" if min(stored, pickled) > 0 else "-"
