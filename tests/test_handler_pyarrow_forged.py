"""Forged Arrow data: without pickle, nothing is accepted that leads out of its buffers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from roundtrips import SAFE

from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import ensure_memoryview

pa = pytest.importorskip("pyarrow")


def patched(x: Any, before: Any, after: Any) -> tuple[Any, list[bytes]]:
    """Return header and stream of an object, some numbers in the stream replaced by others."""
    header, frames = serialize(x, on_error="raise")
    old, new = np.asarray(before).tobytes(), np.asarray(after).tobytes()
    frame = bytes(ensure_memoryview(frames[0]))
    assert frame.count(old) == 1
    return header, [frame.replace(old, new)]


def i4(*numbers: int) -> Any:
    """Return numbers of 32 bits."""
    return np.array(numbers, "<i4")


def i8(*numbers: int) -> Any:
    """Return numbers of 64 bits."""
    return np.array(numbers, "<i8")


LONG = ["x" * 41, "y" * 42]

# What a column is, and which of its numbers become which.
FORGED: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "offsets of lists": (lambda: pa.array([[1, 2], [3]]), i4(0, 2, 3), i4(0, 1 << 30, 3)),
    "offsets of text": (lambda: pa.array(["ab", "c"]), i4(0, 2, 3), i4(0, -(1 << 30), 3)),
    "offsets of long text": (
        lambda: pa.array(["ab", "c"], pa.large_string()),
        i8(0, 2, 3),
        i8(0, 1 << 40, 3),
    ),
    "buffer of a view": (
        lambda: pa.array(LONG, pa.string_view()),
        [*b"yyyy", *i4(0, 41).tobytes()],
        [*b"yyyy", *i4(7, 41).tobytes()],
    ),
    "start of a view": (
        lambda: pa.array(LONG, pa.string_view()),
        [*b"yyyy", *i4(0, 41).tobytes()],
        [*b"yyyy", *i4(0, 1 << 30).tobytes()],
    ),
    "UTF-8": (lambda: pa.array(["abcd"]), [*b"abcd"], [*b"ab\xff\xff"]),
    "UTF-8 of a view": (
        lambda: pa.array(["abcd"], pa.string_view()),
        [*b"abcd"],
        [*b"ab\xff\xff"],
    ),
    "indices of a dictionary": (
        lambda: pa.DictionaryArray.from_arrays(i4(1, 0, 1), LONG),
        i4(1, 0, 1),
        i4(1, 1 << 30, 1),
    ),
    "kinds of a union": (
        lambda: pa.UnionArray.from_sparse(
            pa.array([0, 1, 1, 0, 1], pa.int8()), [pa.array([7] * 5), pa.array([8] * 5)]
        ),
        [0, 1, 1, 0, 1],
        [0, 1, 99, 0, 1],
    ),
    "offsets of a union": (
        lambda: pa.UnionArray.from_dense(
            pa.array([0, 1, 0, 0, 1], pa.int8()),
            pa.array(i4(0, 0, 1, 2, 1)),
            [pa.array([70] * 3), pa.array([80] * 2)],
        ),
        i4(0, 0, 1, 2, 1),
        i4(0, 0, 1, 1 << 30, 1),
    ),
    "ends of runs": (
        lambda: pa.RunEndEncodedArray.from_arrays(i4(3, 5, 9), [70, 80, 90]),
        i4(3, 5, 9),
        i4(3, -5, 9),
    ),
    "offsets of list views": (
        lambda: pa.ListViewArray.from_arrays(i4(6, 2, 4), i4(2, 2, 1), pa.array([70] * 9)),
        i4(6, 2, 4),
        i4(6, 1 << 30, 4),
    ),
    "sizes of list views": (
        lambda: pa.ListViewArray.from_arrays(i4(3, 1, 0), i4(4, 2, 1), pa.array([70] * 9)),
        i4(4, 2, 1),
        i4(4, 1 << 30, 1),
    ),
    "digits of a decimal": (
        lambda: pa.array([1234567], pa.int32()).cast(pa.decimal128(10, 0)),
        i8(1234567, 0),
        i8(1234567, 1 << 40),
    ),
}


def flat(numbers: Any) -> Any:
    """Return bytes as what they are, other numbers unchanged."""
    return np.array(numbers, np.uint8) if isinstance(numbers, list) else numbers


def nested(x: Any) -> dict[str, Any]:
    """Return an array in all that an array can be part of."""
    return {
        "array": x,
        "chunks": pa.chunked_array([x]),
        "batch": pa.record_batch([x], names=["a"]),
        "table": pa.table({"a": x}),
        "struct": pa.StructArray.from_arrays([x], names=["a"]),
        "list": pa.ListArray.from_arrays(i4(0, len(x)), x),
        "fixed list": pa.FixedSizeListArray.from_arrays(x, len(x)),
    }


@pytest.mark.row("F21", "F43", "S105")
@pytest.mark.parametrize("place", nested(pa.array([1])))
@pytest.mark.parametrize("name", FORGED)
def test_forged_contents_are_refused_without_pickle(name: str, place: str) -> None:
    """Whatever looks at the values later would crash, or see memory that is not theirs."""
    make, before, after = FORGED[name]
    x = nested(make())[place]
    header, frames = patched(x, flat(before), flat(after))
    with pytest.raises(CorruptHeaderError):
        deserialize(header, frames, SAFE)


@pytest.mark.row("F43")
@pytest.mark.parametrize("name", FORGED)
def test_contents_that_were_not_forged_are_accepted(name: str) -> None:
    """By the same reader."""
    for x in nested(FORGED[name][0]()).values():
        header, frames = serialize(x, on_error="raise")
        assert deserialize(header, frames, SAFE).equals(x)


@pytest.mark.row("F21", "F43")
def test_forged_dictionary_is_refused_where_it_is_shared() -> None:
    """Values of a dictionary are contents too."""
    x = pa.DictionaryArray.from_arrays(i4(1, 0), pa.array(["abcd", "e"]))
    header, frames = patched(pa.table({"a": x}), flat([*b"abcd"]), flat([*b"ab\xff\xff"]))
    with pytest.raises(CorruptHeaderError):
        deserialize(header, frames, SAFE)


@pytest.mark.row("F21", "F43")
def test_whatever_is_accepted_without_pickle_can_be_used() -> None:
    """Bytes changed at random are found, or harmless: looking at all values only raises."""
    rng = random.Random(0)
    pool = [
        serialize(place, on_error="raise")
        for make, _, _ in FORGED.values()
        for name, place in nested(make()).items()
        if name != "chunks"
    ]
    pool = [(header, bytes(ensure_memoryview(frames[0]))) for header, frames in pool]
    used = 0
    for _ in range(4000):
        header, frame = rng.choice(pool)
        stream = bytearray(frame)
        for _ in range(rng.choice([1, 2, 4])):
            form = rng.choice("BHIQ")
            nbytes = struct.calcsize(form)
            at = rng.randrange(len(stream) // nbytes) * nbytes
            most = (1 << 8 * nbytes) - 1
            value = rng.choice([0, 1, 2, 8, most, most >> 1, (most >> 1) + 1, rng.randint(0, most)])
            struct.pack_into(f"<{form}", stream, at, value)
        try:
            got = deserialize(header, [bytes(stream)], SAFE)
        except (DeserializationError, MemoryError):
            continue
        if len(got) < 1000:
            look_at(got)
            used += 1
    assert used > 200


def look_at(x: Any) -> None:
    """Follow each offset and index of Arrow data."""
    x.validate(full=True)
    for use in (x.to_pylist, lambda: str(x), lambda: x.equals(x), x.to_pandas):
        try:
            use()
        except (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError):
            continue  # a time out of range, a name that is no UTF-8
