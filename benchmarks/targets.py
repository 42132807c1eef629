"""What is shmstore meant to reach, and does it?

Each target bounds a figure of ours: by what others took in the same run, or by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers import FLOOR, MEMCPY
from benchmarks.results import PER_SECOND, Result

PREFIX = "shmstore, "
BY_REF, BY_KEY = f"{PREFIX}by ref", f"{PREFIX}by key"
GET = "get, touch, drop"
PUT_TYPE, GET_TYPE = "put of each type", "get and drop of each type"
# In the place of a peer: the best of all that are neither ours nor a floor.
BEST = "best peer"
NO_PEERS = (FLOOR, MEMCPY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on a figure of ours, divided by a figure of another.

    Attributes
    ----------
    measure, sample, peer : str
        What is bounded.
    other : str
        Whose figure it is divided by; `BEST`; empty: it is bounded by itself.
    other_measure, other_sample : str
        Of which measure and object, where it is not the same.
    at_most, at_least : float
        The bound; one of them is given.
    scale : float
        What a figure that is bounded by itself is divided by, to be told in `unit`.
    unit : str
        Written behind the figures.
    """

    measure: str
    sample: str
    peer: str = BY_REF
    other: str = ""
    other_measure: str = ""
    other_sample: str = ""
    at_most: float = float("inf")
    at_least: float = 0.0
    scale: float = 1.0
    unit: str = " x"

    @property
    def subject(self) -> str:
        """What is bounded, in words."""
        return f"{self.measure}, {self.sample}, {self.peer.removeprefix(PREFIX)}"

    @property
    def bound(self) -> str:
        """The bound, in words."""
        return f">= {self.at_least:g}" if self.at_least else f"<= {self.at_most:g}"


@dataclass(frozen=True, slots=True)
class Judged:
    """A target and what was measured."""

    target: Target
    value: float
    beside: str

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.target.at_least <= self.value <= self.target.at_most


ARRAYS = ("64 KiB array", "1 MiB array", "64 MiB array", "512 MiB array", "1 GiB array")
FRAME_ARROW, FRAME_OBJECT = "64 MiB frame, arrow strings", "64 MiB frame, object strings"
TRIPS = ("small dict", "64 KiB array", "1 MiB array", "64 MiB array", "512 MiB array")

TARGETS = (
    # get of a small object
    Target(measure=GET, sample="small dict", other="LMDB", at_most=1.0),
    Target(measure=GET, sample="small dict", peer=BY_KEY, other="LMDB", at_most=1.3),
    # get of an array
    *(Target(measure=GET, sample=each, other=FLOOR, at_most=1.0) for each in ARRAYS),
    Target(
        measure=GET, sample="1 GiB array", other=BY_REF, other_sample="64 KiB array", at_most=1.1
    ),
    # put of a small object
    Target(measure="put", sample="small dict", other="LMDB", at_most=1.0),
    Target(measure="put_many", sample="1000 small dicts", other="LMDB writemap", at_most=1.0),
    # put of an array, warm and cold
    *(
        Target(measure="put", sample=sample, other=MEMCPY, at_most=bound)
        for sample, bound in zip(ARRAYS, (3.0, 1.4, 1.05, 1.05), strict=False)
    ),
    *(
        Target(measure="first put, fresh pages", sample=each, other="write()", at_most=1.15)
        for each in ARRAYS[1:4]
    ),
    # pandas frames
    Target(measure="put", sample=FRAME_ARROW, other=FLOOR, at_most=1.15),
    Target(measure="get", sample=FRAME_ARROW, other=FLOOR, at_most=1.3),
    Target(measure="put", sample=FRAME_OBJECT, other=BEST, at_most=1.0),
    Target(measure=GET, sample=FRAME_OBJECT, other=BEST, at_most=1.0),
    # handing over
    Target(
        measure="one way, B asleep",
        sample="small dict",
        peer=BY_KEY,
        other="a byte, pipe",
        at_most=1.3,
    ),
    Target(
        measure="one way, B just waiting",
        sample="small dict",
        peer=BY_KEY,
        other="a byte, pipe",
        other_measure="one way, B asleep",
        at_most=0.1,
    ),
    *(
        Target(measure="there and back", sample=each, peer=BY_KEY, other=BEST, at_most=1.0)
        for each in TRIPS
    ),
    # first get
    Target(measure="first get", sample="512 MiB array", at_most=60, scale=1000, unit=" us"),
    Target(
        measure="read all, second time",
        sample="512 MiB array",
        other="array of one's own",
        other_measure="read all, third time",
        at_most=1.1,
    ),
    # scale
    *(
        Target(
            measure=f"{verb}, by number of objects",
            sample="1,000,000 objects",
            peer=peer,
            other=peer,
            other_sample="1,000 objects",
            at_most=1.25,
        )
        for verb, peer in (("get", BY_REF), ("get", BY_KEY), ("put", BY_REF), ("put", BY_KEY))
    ),
    *(
        Target(measure="attach", sample=each, at_most=2, scale=1e6, unit=" ms")
        for each in ("1,000 objects", "1,000,000 objects")
    ),
    Target(measure="import", sample="fresh process", peer="shmstore", other="numpy", at_most=1.3),
    # memory
    Target(measure="PSS of all, in copies", sample="512 MiB array, 4 readers", at_most=1.02),
    Target(measure="overhead per object", sample="1,000,000 objects", at_most=512, unit=" bytes"),
    # contention
    Target(
        measure="put and get, all together",
        sample="8 processes",
        other=BY_REF,
        other_sample="1 process",
        at_least=1.0,
    ),
    *(
        Target(measure=f"p99.9 over median of a {verb}", sample=sample, at_most=20)
        for sample in ("8 processes", "8 processes, with pauses")
        for verb in ("put", "get")
    ),
)


def judge(results: list[Result]) -> Iterator[Judged]:
    """Give the targets that the results speak to, each with what was measured."""
    figures = {(each.measure, each.sample, each.peer): each.figure for each in results}
    for target in TARGETS:
        ours = figures.get((target.measure, target.sample, target.peer))
        if ours is None:
            continue
        if not target.other:
            yield Judged(target, ours.median / target.scale, "")
            continue
        measure = target.other_measure or target.measure
        sample = target.other_sample or target.sample
        other = target.other if target.other != BEST else _best(results, measure, sample)
        theirs = figures.get((measure, sample, other))
        if theirs is not None and theirs.median:
            beside = target.other_sample or (f"{other} (best)" if target.other == BEST else other)
            yield Judged(target, ours.median / theirs.median, beside)


def _best(results: list[Result], measure: str, sample: str) -> str:
    """Return the peer that did best."""
    among = [
        each
        for each in results
        if (each.measure, each.sample) == (measure, sample)
        and each.peer not in NO_PEERS
        and not each.peer.startswith((PREFIX, "a byte"))
    ]
    if not among:
        return ""
    sign = -1 if among[0].figure.unit == PER_SECOND else 1
    return min(among, key=lambda each: sign * each.figure.median).peer
