"""What does a workload need, and is everything gone afterwards?"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.clock import Plan
from benchmarks.crew import Crew
from benchmarks.peers import Found
from benchmarks.samples import Sample
from benchmarks.scratch import TMPFS, uninterrupted, unique_name


@dataclass(frozen=True, slots=True)
class Arena:
    """Everything that a workload needs.

    Attributes
    ----------
    folder : Path
        On tmpfs.
    plan : Plan
        How long to measure.
    found : list of Found
        The peers that can run here.
    samples : list of Sample
        The objects to measure with.
    options : dict
        What the command line says to single workloads.
    notes : list of str
        What went wrong, or was left out.
    """

    folder: Path
    plan: Plan
    found: list[Found]
    samples: list[Sample]
    options: Mapping[str, Any]
    notes: list[str]

    def choose(self, which: Callable[[Any], bool]) -> list[Found]:
        """Return the peers whose class is such."""
        return [each for each in self.found if which(each.kind)]

    @contextmanager
    def crew(self, found: Sequence[Found], readers: int = 1) -> Iterator[Crew]:
        """Start an owner and readers for each peer; end them with the block."""
        folder = Path(mkdtemp(dir=self.folder))
        crew = Crew(folder, self.plan, self.notes)
        try:
            crew.hire(found, readers)
            yield crew
        except BaseException:
            with uninterrupted():
                crew.dismiss(at_once=True)
            raise
        else:
            crew.dismiss(at_once=False)
        finally:
            with uninterrupted():
                shutil.rmtree(folder, ignore_errors=True)
                for left in TMPFS.glob(f"{unique_name(folder)}-*"):  # by processes that were killed
                    left.unlink()
