"""What is shmstore meant to reach, and does it?

Each target bounds the ratio of two medians of the same run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers import FLOOR, MEMCPY
from benchmarks.results import Result

PREFIX = "shmstore, "
BY_REF, BY_KEY = f"{PREFIX}by ref", f"{PREFIX}by key"
GET = "get, touch, drop"
PUT_TYPE, GET_TYPE = "put of each type", "get and drop of each type"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound: `peer` takes at most `at_most` times as long as `other`.

    Attributes
    ----------
    measure, sample : str
        What is timed, and with which object.
    peer, other : str
        Whose time, and beside whose.
    at_most : float
        The bound.
    other_sample : str
        The object of the other one, where it is not the same.
    """

    measure: str
    sample: str
    peer: str
    other: str
    at_most: float
    other_sample: str = ""

    @property
    def subject(self) -> str:
        """What is bounded, in words."""
        return f"{self.measure}, {self.sample}, {self.peer.removeprefix(PREFIX)}"

    @property
    def measuring_stick(self) -> str:
        """What it is held against, in words."""
        return self.other_sample or self.other


TARGETS = (
    Target(GET, "small dict", BY_REF, "LMDB", 1.0),
    Target(GET, "small dict", BY_KEY, "LMDB", 1.3),
    Target(GET, "64 KiB array", BY_REF, FLOOR, 1.0),
    Target(GET, "1 MiB array", BY_REF, FLOOR, 1.0),
    Target(GET, "64 MiB array", BY_REF, FLOOR, 1.0),
    Target(GET, "512 MiB array", BY_REF, FLOOR, 1.0),
    Target(GET, "512 MiB array", BY_REF, BY_REF, 1.1, other_sample="64 KiB array"),
    Target("put", "small dict", BY_REF, "LMDB", 1.0),
    Target("put", "64 KiB array", BY_REF, MEMCPY, 3.0),
    Target("put", "1 MiB array", BY_REF, MEMCPY, 1.4),
    Target("put", "64 MiB array", BY_REF, MEMCPY, 1.05),
    Target("put", "512 MiB array", BY_REF, MEMCPY, 1.05),
    Target("put_many", "1000 small dicts", BY_REF, "LMDB writemap", 1.0),
    Target(PUT_TYPE, "pandas, arrow strings, 64 MiB", BY_REF, FLOOR, 1.15),
    Target(GET_TYPE, "pandas, arrow strings, 64 MiB", BY_REF, FLOOR, 1.3),
    # The best of the peers, over the same floor.
    Target(PUT_TYPE, "pandas, object strings, 64 MiB", BY_REF, FLOOR, 0.39),
    Target(GET_TYPE, "pandas, object strings, 64 MiB", BY_REF, FLOOR, 1.0),
)


def judge(results: list[Result]) -> Iterator[tuple[Target, float]]:
    """Give the targets that the results speak to, each with the ratio that was measured."""
    medians = {(each.measure, each.sample, each.peer): each.timing.median_ns for each in results}
    for each in TARGETS:
        ours = medians.get((each.measure, each.sample, each.peer))
        other = medians.get((each.measure, each.other_sample or each.sample, each.other))
        if ours and other:
            yield each, ours / other
