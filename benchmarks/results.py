"""What is one figure, and how is it written?"""

from dataclasses import dataclass

from benchmarks.clock import Timing
from benchmarks.volumes import Volume


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a table.

    Attributes
    ----------
    workload, measure : str
        What was timed; a workload may have several measures.
    sample, peer : str
        With which object, and whose.
    timing : Timing
        How long it took.
    volume : Volume, optional
        How many bytes it took.
    """

    workload: str
    measure: str
    sample: str
    peer: str
    timing: Timing
    volume: Volume | None = None


def collect(workload: str, sample: str, timings: dict[tuple[str, str], Timing]) -> list[Result]:
    """Return the results of one sample from timings by measure and peer."""
    return [
        Result(workload, measure, sample, peer, timing)
        for (measure, peer), timing in timings.items()
    ]


def number(value: float) -> str:
    """Return it with three digits, and all those before the point."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"
