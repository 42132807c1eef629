"""What lies where in a segment, as a picture has it: in stretches, in cells, in groups?

Every byte is of one kind: free; of an object that can be got, looked at or not; of a deleted one
that is still looked at, or not needed again yet; of a put that has not ended.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

import shmstore

FREE, USED, PINNED, DELETED, HALF_MADE = range(5)
NAMES: Final = ("free", "used", "looked at", "deleted", "half-made")
SIGNS: Final = (".", "#", "@", "x", "~")
COLOURS: Final = ("#e8e8e8", "#4c78a8", "#54a24b", "#e45756", "#eeca3b")
AGES: Final = (("< 1 min", 60.0), ("< 1 h", 3600.0), ("< 1 d", 86400.0), ("older", np.inf))
SIZES: Final = (
    ("< 4 KiB", 4096.0),
    ("< 1 MiB", 2.0**20),
    ("< 64 MiB", 2.0**26),
    ("larger", np.inf),
)

Numbers = npt.NDArray[np.int64]


class Stretches(NamedTuple):
    """The extents of a segment by their place; what lies between them is free."""

    capacity: int
    start: Numbers
    end: Numbers
    kind: npt.NDArray[np.int8]
    age: npt.NDArray[np.float64]
    row: npt.NDArray[np.intp]


def stretches(survey: shmstore.Survey) -> Stretches:
    """Return the extents that a survey has found; of two that overlap, the upper one is cut."""
    rows = np.flatnonzero(survey.nbytes)
    rows = rows[np.argsort(survey.offset[rows], kind="stable")]
    start = np.minimum(survey.offset[rows], survey.capacity)
    end = np.minimum(start + survey.nbytes[rows], survey.capacity)
    below = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), end]))[:-1]
    start = np.maximum(start, below)
    whole = end > start
    rows = rows[whole]
    kind = np.where(survey.views[rows] > 0, PINNED, USED).astype(np.int8)
    kind[survey.state[rows] == "deleted"] = DELETED
    kind[survey.state[rows] == "half-made"] = HALF_MADE
    age = np.maximum(0.0, time.time() - survey.created[rows])
    return Stretches(survey.capacity, start[whole], end[whole], kind, age, rows)


def cells(found: Stretches, count: int) -> npt.NDArray[np.float64]:
    """Return for each of so many equal parts of the segment which share of it is of each kind."""
    edges = np.linspace(0, found.capacity, count + 1)
    shares = np.zeros((count, len(NAMES)))
    for kind in range(1, len(NAMES)):
        chosen = found.kind == kind
        shares[:, kind] = np.diff(_covered(found.start[chosen], found.end[chosen], edges))
    shares *= count / found.capacity
    shares[:, FREE] = np.clip(1 - shares.sum(axis=1), 0, 1)
    return shares


def _covered(
    start: Numbers, end: Numbers, edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return how many bytes below each edge lie in any of the stretches."""
    if not len(start):
        return np.zeros(len(edges))
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(end - start)])
    at = np.searchsorted(start, edges, side="right")
    last = np.maximum(at - 1, 0)
    inside = np.where(at > 0, np.clip(edges - start[last], 0, (end - start)[last]), 0.0)
    covered: npt.NDArray[np.float64] = before[last] + inside
    return covered


def cell_ages(found: Stretches, count: int) -> npt.NDArray[np.float64]:
    """Return for each part of the segment the age of the stretch in its middle; inf: it is free."""
    middle = (np.arange(count) + 0.5) * found.capacity / count
    at = np.searchsorted(found.start, middle, side="right") - 1
    inside = at >= 0
    inside[inside] = middle[inside] < found.end[at[inside]]
    ages = np.full(count, np.inf)
    ages[inside] = found.age[at[inside]]
    return ages


class Group(NamedTuple):
    """So many extents of one kind, age or size, and their bytes."""

    by: str
    name: str
    extents: int
    nbytes: int


def groups(found: Stretches) -> list[Group]:
    """Return the extents by kind, by age and by size."""
    nbytes = found.end - found.start
    by_kind = [
        Group("kind", name, int((found.kind == kind).sum()), int(nbytes[found.kind == kind].sum()))
        for kind, name in enumerate(NAMES)
        if kind != FREE
    ]
    gaps = free_gaps(found)
    free = Group("kind", NAMES[FREE], len(gaps), int(gaps.sum()))
    by_age = _classes("age", AGES, found.age, nbytes)
    return [*by_kind, free, *by_age, *_classes("size", SIZES, nbytes.astype(np.float64), nbytes)]


def free_gaps(found: Stretches) -> Numbers:
    """Return the sizes of what lies free between extents, and above them."""
    ends = np.concatenate([np.zeros(1, np.int64), found.end])
    starts = np.concatenate([found.start, np.array([found.capacity])])
    gaps: Numbers = (starts - ends)[starts > ends]
    return gaps


def _classes(
    by: str,
    bounds: tuple[tuple[str, float], ...],
    values: npt.NDArray[np.float64],
    nbytes: Numbers,
) -> list[Group]:
    place = np.searchsorted([bound for _, bound in bounds], values, side="right")
    place = np.minimum(place, len(bounds) - 1)
    return [
        Group(by, name, int((place == at).sum()), int(nbytes[place == at].sum()))
        for at, (name, _) in enumerate(bounds)
    ]
