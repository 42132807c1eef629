"""Where objects lie in a pickle stream, and by which paths they are reached."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from explanations import (
    Slotted,
)

from shmstore.serialization.explaining.extents import extents
from shmstore.serialization.explaining.naming import find_paths


@pytest.mark.parametrize("protocol", [4, 5])
def test_extents_are_those_of_the_objects(protocol: int) -> None:
    """What an object adds to a stream lies between start and end."""
    text = "needle" * 20
    x = [
        1,
        {"key": (text, bytes(300), 1 << 80)},
        {text, 2},
        frozenset([3]),
        bytearray(10),
        Slotted([]),
    ]
    stream = pickle.dumps(x, protocol)
    found = extents([stream])
    assert all(0 < start < end <= len(stream) for start, end in found)
    start = stream.index(text.encode())
    assert [start - 2, start + len(text) + 1] in found
    whole = found[0]
    assert (len(stream) - 1, whole[1]) == (whole[1], len(stream) - 1)


def test_extents_follow_values_that_are_pieces_of_their_own() -> None:
    """Large values need not be joined with the rest of the stream."""
    pieces: list[Any] = []

    class File:
        write = staticmethod(pieces.append)

    x = [b"a" * 100_000, bytearray(70_000), "c" * 80_000, b"small"]
    pickle.Pickler(File(), 5).dump(x)
    assert len(pieces) > 5
    assert extents(pieces) == extents([b"".join(pieces)])
    assert sorted(end - start for start, end in extents(pieces))[-4:-1] > [70_000, 80_000, 100_000]


def test_extents_of_something_else_are_refused() -> None:
    """Bytes that are no pickle end in an error that says so."""
    with pytest.raises(LookupError):
        extents([b"certainly not"])


def test_paths_are_the_shortest_and_end_with_patience() -> None:
    """A part that is reached in two ways has the shorter path; what is not found is left out."""
    part = object()
    x = {"long": [[[part]]], "slot": Slotted([part]), 1: (part, Slotted)}
    assert find_paths(x, {id(part): part}, 1) == {id(part): "[1][0]"}
    far = [[n] for n in range(5000)]
    assert find_paths(far, {id(part): part}, 0) == {}
