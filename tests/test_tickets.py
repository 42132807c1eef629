"""Tickets by themselves: what can be held, and what is copied instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shmstore import SerializationError, Store, tickets

KIB = 1 << 10


@pytest.mark.parametrize(
    ("obj", "held"),
    [
        (np.zeros(50), False),
        (np.zeros(127 * KIB, "u1"), False),
        (np.zeros(128 * KIB, "u1"), True),
        (bytes(500 * KIB), False),
    ],
)
def test_twin_is_held_if_it_is_a_large_view(store: Store, obj: Any, held: bool) -> None:  # noqa: FBT001 - a case
    """A copy lies elsewhere: there is no ticket to what it was made from."""
    twin, hold = tickets.deposit(store, obj)
    assert bytes(twin) == bytes(obj)
    assert (hold.is_used(), hold.ticket() is not None) == (held, held)
    del twin
    assert (hold.is_used(), hold.ticket()) == (False, None)


@pytest.mark.parametrize("obj", [5, "text", b"x", None, np.zeros(0)])
def test_object_without_memory_in_the_store_is_not_deposited(store: Store, obj: Any) -> None:
    """The error shows it, and nothing stays in the store."""
    with pytest.raises(SerializationError, match="takes no memory of the store") as caught:
        tickets.deposit(store, obj)
    assert str(caught.value).startswith(f"obj={obj!r}: this {type(obj).__name__} ")
    assert len(store) == 0
