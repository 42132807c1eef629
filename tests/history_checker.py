"""Is there an order of these operations that explains what each of them saw?

A history is linearizable when each operation can be given one instant between its start and its
end, so that the operations, done one after the other at these instants, return what they returned
(M. Herlihy, J. Wing, 1990). The search goes along the history and keeps every explanation that is
still possible, as the just-in-time linearization of G. Lowe, "Testing for linearizability", 2017,
does: an explanation is the state of the register and the set of the running operations that have
had their instant already. An operation that ends must have had it; only then is looked for.

The histories of different keys are checked one by one: a store is linearizable when each key is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

MISSING: Final = 0

# What an operation needs of the state. A positive number or MISSING: exactly this state.
ANY: Final = -1
PRESENT: Final = -2
OTHER: Final = -3

# What it leaves. A positive number or MISSING: this state.
SAME: Final = -1

# More explanations than this for one instant are a mistake of whoever made the history.
_MOST_EXPLANATIONS: Final = 200_000

Explanation = tuple[int, int]


class Operation(NamedTuple):
    """One operation on one register.

    Attributes
    ----------
    start, end
        When it was called and when it returned, on one clock.
    needs
        The state that it must have met: a state, ANY, PRESENT (any but MISSING), or OTHER (any but
        `value`).
    leaves
        The state after it, or SAME.
    value
        The state that OTHER excludes.
    optional
        It may have happened or not: whoever called it was killed before it returned. `end` then
        says from when on it can happen no more.
    label
        Words for people.
    """

    start: int
    end: int
    needs: int
    leaves: int
    value: int = MISSING
    optional: bool = False
    label: str = ""


def step(state: int, operation: Operation) -> int | None:
    """Return the state after an operation, None when it could not have returned what it did."""
    needs = operation.needs
    if needs >= 0:
        if state != needs:
            return None
    elif (needs == PRESENT and state == MISSING) or (needs == OTHER and state == operation.value):
        return None
    return state if operation.leaves == SAME else operation.leaves


class Violation(NamedTuple):
    """The first operation whose return no order explains."""

    operation: Operation
    running: list[Operation]
    states: list[int]

    def __str__(self) -> str:
        """Tell it with times relative to the start of the operation."""
        zero = self.operation.start

        def tell(operation: Operation) -> str:
            start, end = operation.start - zero, operation.end - zero
            killed = ", whose process was killed" if operation.optional else ""
            return f"{start:+,} .. {end:+,} ns {operation.label}{killed}"

        return "\n".join(
            [
                f"no order explains: {tell(self.operation)}",
                f"the register may have been {self.states} before it returned",
                *(f"  while it ran: {tell(operation)}" for operation in self.running),
            ]
        )


def violation(
    operations: Iterable[Operation], *, may_vanish: bool = False, initial: int = MISSING
) -> Violation | None:
    """Return the first operation that no order explains, None when the history is linearizable.

    Parameters
    ----------
    operations
        All operations on one register. Those that begin and end at the same instant count as
        concurrent.
    may_vanish
        Whether the register may become MISSING at any time by itself, as an evicted object does.
    initial
        The state before the first operation.
    """
    history = list(operations)
    events = sorted(
        [(operation.start, 0, number) for number, operation in enumerate(history)]
        + [(operation.end, 1, number) for number, operation in enumerate(history)]
    )
    explanations: set[Explanation] = {(initial, 0)}
    running: dict[int, Operation] = {}
    bits: dict[int, int] = {}
    free_bits: list[int] = []
    for _, ends, number in events:
        operation = history[number]
        if not ends:
            bit = free_bits.pop() if free_bits else 1 << len(running)
            bits[number] = bit
            running[bit] = operation
            continue
        bit = bits.pop(number)
        left = _ended(explanations, running, bit, may_vanish)
        if not left:
            del running[bit]
            states = sorted({state for state, _ in explanations})
            return Violation(operation, list(running.values()), states)
        explanations = left
        del running[bit]
        free_bits.append(bit)
    return None


def _ended(
    explanations: set[Explanation],
    running: dict[int, Operation],
    bit: int,
    may_vanish: bool,  # noqa: FBT001 - as in `violation`
) -> set[Explanation]:
    """Return the explanations in which a running operation has had its instant, and is over."""
    left: set[Explanation] = set()
    optional = running[bit].optional
    others = list(running.items())
    seen = set(explanations)
    work = list(explanations)
    while work:
        state, done = work.pop()
        if done & bit:
            left.add((state, done ^ bit))
            continue
        if optional:
            left.add((state, done))
        following = [
            (after, done | other)
            for other, operation in others
            if not done & other and (after := step(state, operation)) is not None
        ]
        if may_vanish and state != MISSING:
            following.append((MISSING, done))
        for explanation in following:
            if explanation not in seen:
                seen.add(explanation)
                work.append(explanation)
        assert len(seen) < _MOST_EXPLANATIONS, "too many operations at once"
    return left


def in_any_order(operations: list[Operation], *, may_vanish: bool = False) -> bool:
    """Say the same as `violation` by trying all orders: slow, and plain enough to be believed."""
    return _explains(MISSING, operations, may_vanish=may_vanish)


def _explains(state: int, left: list[Operation], *, may_vanish: bool) -> bool:
    if all(operation.optional for operation in left):
        return True
    last_start = min(operation.end for operation in left)
    for operation in left:
        if operation.start > last_start:
            continue
        rest = [other for other in left if other is not operation]
        if operation.optional and _explains(state, rest, may_vanish=may_vanish):
            return True
        for before in {state, MISSING} if may_vanish else {state}:
            after = step(before, operation)
            if after is not None and _explains(after, rest, may_vanish=may_vanish):
                return True
    return False
