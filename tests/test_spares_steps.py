"""What is done as a whole, or not at all, since no other thread comes in between."""

from __future__ import annotations

import dis
import inspect
from typing import Any

import pytest

from shmstore import _puts, _refilling, _spares

STEPS = [_puts.put_spare, _spares.take_back, _spares._doom_one, _spares.Spares.pile]
STEPS += [_refilling._fill_at_once, _refilling._take, _refilling._publish, _refilling._let_go]
STEPS += [_refilling._unpinned]


@pytest.mark.parametrize("function", STEPS, ids=lambda function: function.__name__)
def test_nothing_that_garbage_is_collected_for_is_made_in_one_step(function: Any) -> None:
    """Python 3.11 collects where it makes a tuple, a list, a slice; finalizers put and delete."""
    lines, first = inspect.getsourcelines(function)
    begin = next(first + at for at, line in enumerate(lines) if "# No call" in line)
    made = [
        (step.opname, step.positions.lineno)
        for step in dis.get_instructions(function)
        if step.opname.startswith(("BUILD_", "MAKE_")) and (step.positions.lineno or 0) > begin
    ]
    assert made == []
