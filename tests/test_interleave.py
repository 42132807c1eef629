"""The real code in all interleavings of two or three processes, with deaths at every store.

What a simulated process is stands in `interleave_memory`; the scenarios that take minutes are
explored by ``python tests/interleave.py --deep``.
"""

from __future__ import annotations

import sys

import interleave
import pytest
from interleave import MUTANTS, SCENARIOS
from interleave_actors import explore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the barrier is Linux's")

QUICK = [name for name, scenario in SCENARIOS.items() if not scenario.deep]


@pytest.mark.parametrize("name", QUICK)
def test_scenario_explored_completely_breaks_no_property(name: str) -> None:
    """No held extent is used again, nothing published is lost, nobody sees half an object."""
    result = explore(SCENARIOS[name])
    assert not result.failure, interleave.told(result)
    assert result.complete
    assert result.runs > 10
    interleave.note(name, result)


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if not mutant.deep])
def test_weakened_protocol_explored_yields_a_counterexample(name: str) -> None:
    """Each step of the protocols is needed, and the explorer sees what happens without it."""
    mutant = MUTANTS[name]
    result = explore(SCENARIOS[mutant.scenario], weaken=mutant.weaken)
    assert result.failure
    assert result.schedule


def test_schedule_of_a_counterexample_tells_each_step_by_name() -> None:
    """People must be able to follow it: both have looked before either's store could be seen."""
    mutant = MUTANTS["no barrier"]
    result = explore(SCENARIOS[mutant.scenario], weaken=mutant.weaken)
    steps = [" ".join(step.split()) for step in result.schedule]

    def first(start: str) -> int:
        return next((n for n, step in enumerate(steps) if step.startswith(start)), len(steps))

    missed, pinned = first("writer load word"), first("reader stored word")
    assert missed < pinned
    assert first("reader load slot 0.STATE") < first("writer stored slot 0.STATE") < len(steps)
