"""A list that somebody has forged: its records are what they say, or an error says why not."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest

from shmstore import CorruptHeaderError, DeserializationError, ShmStoreError
from shmstore.serialization import deserialize
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.handlers import records as R
from shmstore.serialization.recording import record

SAFE = ("custom", "msgpack")
LISTS: dict[str, list[Any]] = {
    "text": ["zero", "eins", "zwölf"],
    "bytes": [b"zero", b"one", b""],
    "rows": [np.arange(6).reshape(2, 3) for _ in range(4)],
    "ragged": [np.arange(n, dtype="i2") for n in range(5)],
    "mixed": ["a", b"b", 3, 0.5, np.arange(4), (np.ones(2), "x"), {"k": np.ones((2, 2))}, {1, 2}],
    "pickled": [{"a": [1]}, [1, [np.arange(9)]], range(3)],
}


def recorded(name: str) -> tuple[dict[str, Any], list[bytearray]]:
    """Return header and frames that can be changed."""
    header, frames = record(LISTS[name])
    return copy.deepcopy(header), [bytearray(ensure_memoryview(frame)) for frame in frames]


def set_word(frame: bytearray, at: int, number: int) -> None:
    """Change an entry of a table."""
    np.frombuffer(frame, "u4")[at] = number


@pytest.mark.parametrize("name", ["text", "bytes", "mixed", "pickled"])
@pytest.mark.parametrize("number", [0xFFFFFFFF, 100_000, 0])
def test_record_that_leaves_its_frame_is_refused(name: str, number: int) -> None:
    """Its end lies behind the data, or before its start; its neighbour is still got."""
    header, frames = recorded(name)
    set_word(frames[0], 2, number)
    found = deserialize(header, frames)
    with pytest.raises(CorruptHeaderError, match="ends"):
        _ = found[1]
    assert found[0] == LISTS[name][0]


@pytest.mark.parametrize(("at", "number"), [(6, 1 << 31), (7, 1 << 31), (6, 38), (7, 200)])
def test_array_that_leaves_its_frame_is_refused(at: int, number: int) -> None:
    """Start or length of one among arrays of different lengths."""
    header, frames = recorded("ragged")
    set_word(frames[0], at, number)
    with pytest.raises(CorruptHeaderError, match="places"):
        _ = deserialize(header, frames)[3]


def test_text_that_is_none_is_refused() -> None:
    """What is no UTF-8 is said to be none."""
    header, frames = recorded("text")
    frames[1][1] = 0xFF
    with pytest.raises(CorruptHeaderError, match="UTF-8"):
        _ = deserialize(header, frames)[0]


HEADERS = [
    ("text", {"count": -1}),
    ("text", {"count": 4}),
    ("text", {"count": 1 << 60}),
    ("text", {"count": "3"}),
    ("text", {"word": 3}),
    ("text", {"word": [4]}),
    ("text", {"layout": "rows"}),
    ("text", {"layout": ["text"]}),
    ("rows", {"count": 5}),
    ("rows", {"count": 1 << 47}),
    ("rows", {"pitch": 0}),
    ("rows", {"pitch": -48}),
    ("rows", {"shape": [2, -3]}),
    ("rows", {"shape": [2, 1 << 62]}),
    ("rows", {"dtype": "O"}),
    ("ragged", {"tail": [-1]}),
    ("ragged", {"tail": [1 << 63]}),
    ("ragged", {"tail": [1] * 64}),
    ("mixed", {"dtypes": 5}),
    ("mixed", {"dtypes": ["O"]}),
    ("mixed", {"schemas": [["set", [], [0]]]}),
    ("mixed", {"schemas": [["dict", ["a"], [0, 0]]]}),
    ("mixed", {"schemas": [["dict", [["a"]], [0]]]}),
    ("mixed", {"schemas": [["tuple", [], [R.FIELDS]]]}),
    ("mixed", {"schemas": [["tuple", [], [-1]]]}),
    ("mixed", {"schemas": 7}),
]


@pytest.mark.parametrize(("name", "changes"), HEADERS)
def test_header_that_makes_no_sense_is_refused(name: str, changes: dict[str, Any]) -> None:
    """Before any record is got, and without memory for what it claims."""
    header, frames = recorded(name)
    header["sub-header"].update(changes)
    with pytest.raises(DeserializationError):
        deserialize(header, frames)


@pytest.mark.parametrize("name", LISTS)
def test_list_without_a_frame_is_refused(name: str) -> None:
    """Each layout knows how many frames it has."""
    header, frames = recorded(name)
    with pytest.raises(DeserializationError):
        deserialize(header, frames[1:])
    del header["sub-header"]["layout"]
    with pytest.raises(DeserializationError):
        deserialize(header, frames)


def test_record_of_a_schema_that_is_not_there_is_refused() -> None:
    """So are those that end before they begin."""
    header, frames = recorded("mixed")
    header["sub-header"]["schemas"] = []
    with pytest.raises(CorruptHeaderError, match="fields"):
        _ = deserialize(header, frames)[5]


@pytest.mark.parametrize("name", LISTS)
def test_damage_anywhere_gives_a_record_or_an_error(name: str) -> None:
    """Random bytes in all frames: no reader that accepts no pickle meets anything else."""
    dice = random.Random(name)
    for _ in range(400):
        header, frames = recorded(name)
        for _ in range(dice.randint(1, 6)):
            frame = dice.choice([frame for frame in frames if frame])
            frame[dice.randrange(len(frame))] = dice.choice([0, 1, 2, 8, 0x7F, 0x80, 0xFF])
        try:
            found = deserialize(header, frames, SAFE)
        except ShmStoreError:
            continue
        for at in range(len(found)):
            try:
                record_of = found[at]
            except ShmStoreError:
                continue
            repr(record_of)
