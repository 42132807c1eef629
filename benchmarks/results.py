"""What is one figure?"""

from dataclasses import dataclass

from benchmarks.clock import Timing


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
    """

    workload: str
    measure: str
    sample: str
    peer: str
    timing: Timing


def collect(workload: str, sample: str, timings: dict[tuple[str, str], Timing]) -> list[Result]:
    """Return the results of one sample from timings by measure and peer."""
    return [
        Result(workload, measure, sample, peer, timing)
        for (measure, peer), timing in timings.items()
    ]
