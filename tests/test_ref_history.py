"""Objects without a key come and go without the lock; each stays one object."""

from __future__ import annotations

import pytest
from ref_history import DELETE, FOUND, GET, MISSED, PUT, SCENARIOS, judged, run, tell

OPERATIONS = 6000

# Where there is no room, extents are taken from those who keep them.
HAVE_ROOM = [name for name in SCENARIOS if "little room" not in name]


@pytest.mark.parametrize("name", SCENARIOS)
def test_history_of_each_object_is_that_of_one_object(name: str) -> None:
    """It is there from its put to the one delete that says so, for everybody."""
    counts = run(SCENARIOS[name], OPERATIONS, seed=5)
    tell(name, counts)
    assert counts["puts"] > OPERATIONS // 20
    assert counts["taken back"] > counts["deletes"] // 3
    if name in HAVE_ROOM:
        assert counts["without the lock"] > counts["puts"] // 10


def row(kind: int, began: int, ended: int, result: int) -> list[int]:
    """Return a record of object 7."""
    return [kind, 7, 3, 16, began, ended, result, 0]


A_PUT = row(PUT, 0, 10, FOUND)


@pytest.mark.parametrize(
    ("rows", "present", "wrong"),
    [
        ([A_PUT], {7}, ""),
        ([A_PUT], set(), "nobody has deleted"),
        ([A_PUT, row(DELETE, 20, 30, FOUND)], set(), ""),
        ([A_PUT, row(DELETE, 20, 30, FOUND)], {7}, "is there"),
        ([A_PUT, row(DELETE, 20, 30, FOUND), row(DELETE, 25, 35, FOUND)], set(), "2 times"),
        ([A_PUT, row(DELETE, 20, 30, FOUND), row(GET, 31, 40, FOUND)], set(), "after it was"),
        ([A_PUT, row(DELETE, 20, 30, FOUND), row(GET, 21, 40, FOUND)], set(), ""),
        ([A_PUT, row(DELETE, 20, 30, FOUND), row(GET, 11, 19, MISSED)], set(), "before anybody"),
        ([A_PUT, row(DELETE, 20, 0, 2)], set(), ""),
        ([A_PUT, row(DELETE, 20, 0, 2)], {7}, ""),
        ([A_PUT, A_PUT], {7}, "put 2 times"),
    ],
)
def test_judge_tells_histories_that_cannot_be(
    rows: list[list[int]], present: set[int], wrong: str
) -> None:
    """Who judges must not say that all is well whatever comes."""
    told = "; ".join(judged(7, rows, present))
    assert wrong in told
    assert bool(told) == bool(wrong)
