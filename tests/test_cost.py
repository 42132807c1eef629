"""An operation may not come to cost more than was recorded, by more than a tenth."""

from __future__ import annotations

import cost
import pytest

NAMES = [
    *("get_by_ref", "get_by_key", "get_array", "get_new_ref", "contains"),
    *("put_small", "put_small_by_key", "overwrite_small", "put_text", "put_array", "put_many_100"),
    *("delete_small", "delete_array"),
]


class Counted:
    """What was counted now, once for all tests."""

    def __init__(self) -> None:
        self.costs, self.missing = cost.count()


@pytest.fixture(scope="module")
def counted() -> Counted:
    """Count in processes of their own."""
    return Counted()


@pytest.fixture(scope="module")
def recorded() -> cost.Costs:
    """Return what was recorded for this version of Python."""
    return cost.recorded()[cost.VERSION]


def test_operations_are_those_that_were_recorded(counted, recorded):
    """A new operation is recorded before it is guarded, an old one does not stay in the file."""
    assert set(counted.costs) == set(recorded) == set(NAMES)


@pytest.mark.parametrize("measure", ["instructions", "calls", "nbytes"])
@pytest.mark.parametrize("name", NAMES)
def test_cost_of_an_operation_does_not_grow(name, measure, counted, recorded):
    """More than a tenth above the record fails: mend it, or say why and record anew."""
    now, before = counted.costs[name][measure], recorded[name][measure]
    assert now <= before * cost.GROWTH + cost.SLACK[measure]


@pytest.mark.parametrize("name", NAMES)
def test_system_calls_of_an_operation_do_not_grow(name, counted, recorded):
    """A get asks the kernel for nothing, a put only for the lock."""
    if counted.missing:
        pytest.skip(counted.missing)
    now, before = counted.costs[name]["system_calls"], recorded[name]["system_calls"]
    assert now <= before * cost.GROWTH + cost.SLACK["system_calls"]


def test_costs_are_recorded_for_all_versions_alike():
    """Each version of Python guards the same operations, by the same measures."""
    versions = cost.recorded()
    assert set(versions) >= {"3.11", "3.12", "3.13"}
    for costs in versions.values():
        assert {name: set(values) for name, values in costs.items()} == {
            name: set(cost.SLACK) for name in NAMES
        }


def test_counts_are_the_same_when_they_are_counted_again(counted):
    """What is compared with the record does not depend on chance."""
    again = cost.count()[0]
    for name in NAMES:
        assert again[name]["instructions"] == pytest.approx(
            counted.costs[name]["instructions"], rel=0.01
        )
        assert again[name]["calls"] == pytest.approx(counted.costs[name]["calls"], rel=0.01)
