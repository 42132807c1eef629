"""Object arrays of text: what survives, what repeats once, what declines, what is found forged."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import ensure_memoryview, is_readonly
from shmstore.serialization.handlers import text

SIZE = 2 * text.MIN_SIZE + 5


class Text(str):
    """A subclass of str."""

    __slots__ = ()


def array_of(elements: Any) -> np.ndarray:
    """Return an object array of one dimension."""
    return np.fromiter(elements, object)


def through(x: np.ndarray) -> np.ndarray:
    """Return what comes back from the frames of an array."""
    header, frames = text.encode(x)
    return text.decode(header, [ensure_memoryview(frame) for frame in frames])


def assert_same(got: np.ndarray, x: np.ndarray) -> None:
    """Fail unless both have the same elements, of the same types, in the same order."""
    assert (got.dtype, got.shape) == (x.dtype, x.shape)
    assert got.flags.f_contiguous == x.flags.f_contiguous
    for a, b in zip(got.ravel().tolist(), x.ravel().tolist(), strict=True):
        assert type(a) is type(b)
        assert a == b or (a != a and b != b)  # noqa: PLR0124 - NaN


def distinct(i: int) -> str:
    """Return text that no other number has."""
    return f"{i * 7919 % 1_000_003:08x}-{i}"


ELEMENTS: dict[str, Callable[[int], Any]] = {
    "distinct": distinct,
    "not ASCII": lambda i: f"{i}é€\U0001f600"[: 2 + i % 9],
    "empty": lambda i: "" if i % 3 else distinct(i),
    "with NUL": lambda i: f"{i}\0{i}",
    "with NUL late": lambda i: f"{i}\0" if i == SIZE - 1 else str(i),
    "with all ASCII separators": lambda i: "\0\x1f\x1e\x1d\x1c" + str(i),
    "few, one object each": lambda i: ("yes", "no", "perhaps")[i % 3],
    "few, many objects": lambda i: f"value {i * i % 7}",
    "hundreds": lambda i: sys.intern(f"value {i * 31 % 600}"),
    "thousands": lambda i: sys.intern(f"value {i * 31 % 5000}"),
    "None": lambda i: None if i % 10 == 0 else distinct(i),
    "NaN": lambda i: math.nan if i % 10 == 0 else distinct(i),
    "fresh NaN": lambda i: float("nan") if i % 10 == 0 else distinct(i),
    "all gaps": lambda i: (None, np.nan, float("nan"), distinct(i))[i % 4],
    "None only": lambda _: None,
    "few and None": lambda i: (None, "a", "b")[i % 3],
    "few objects and NaN": lambda i: np.nan if i % 2 else f"value {i % 5}",
    "rare gap": lambda i: None if i == SIZE // 2 else distinct(i),
    "long": lambda i: "x" * (300_000 if i == 3 else 1) + str(i),
}


@pytest.mark.row("S90")
@pytest.mark.parametrize("elements", ELEMENTS.values(), ids=ELEMENTS)
def test_text_of_any_kind_comes_back_equal(elements: Callable[[int], Any]) -> None:
    """With its gaps, and whatever characters it has."""
    x = array_of(elements(i) for i in range(SIZE))
    assert_same(through(x), x)


@pytest.mark.parametrize("elements", ELEMENTS.values(), ids=ELEMENTS)
@pytest.mark.parametrize("columns", [2, 5])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x,
        np.asfortranarray,
        lambda x: x.T,
        lambda x: np.ascontiguousarray(x.T),
        lambda x: x[:, ::-1],
        lambda x: np.concatenate([x, x])[::2],
    ],
    ids=["C", "F", "T", "columns", "reversed", "strided"],
)
def test_table_of_any_order_comes_back_in_it(
    elements: Callable[[int], Any], columns: int, arrange: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Each row or column is looked at by itself."""
    x = array_of(elements(i) for i in range(SIZE // columns * columns))
    x = arrange(x.reshape(columns, -1))
    assert_same(through(x), x)


@pytest.mark.parametrize("shape", [(SIZE,), (SIZE, 1), (1, SIZE), (300, 300), (40, 30, 20)])
def test_shape_comes_back(shape: tuple[int, ...]) -> None:
    """Also where there is one run for all, and with more than two dimensions."""
    x = array_of(map(distinct, range(math.prod(shape)))).reshape(shape)
    assert_same(through(x), x)


def test_columns_of_a_table_are_encoded_each_in_its_way() -> None:
    """One of distinct texts and one of repeated ones lie in the same block of a frame."""
    x = np.empty((3, SIZE), object)
    x[0] = [distinct(i) for i in range(SIZE)]
    x[1] = [f"value {i % 9}" for i in range(SIZE)]
    x[2] = None
    header, frames = text.encode(x)
    assert [run[1] for run in header["runs"]] == [SIZE, 9, 1]
    assert sum(frame.nbytes for frame in frames[1:]) < 2 * SIZE + 200


@pytest.mark.parametrize("name", ["few, one object each", "few, many objects", "thousands"])
def test_repeated_text_comes_back_as_one_object_per_value(name: str) -> None:
    """The reader holds each value once, however many objects the writer had."""
    x = array_of(map(ELEMENTS[name], range(SIZE)))
    got = through(x)
    assert len(set(map(id, got))) == len(set(x))


def test_text_with_none_and_not_a_number_keeps_which_is_which() -> None:
    """None is no NaN."""
    x = array_of((None, np.nan, "a", distinct(i))[i % 4] for i in range(SIZE))
    got = through(x)
    assert [type(element) for element in got[:4]] == [type(None), float, str, str]


@pytest.mark.row("F26")
@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("name", ["distinct", "few and None"])
def test_flag_of_the_array_is_that_of_its_frames(name: str, writeable: bool) -> None:  # noqa: FBT001
    """What may not be written comes back so, by the state of the frames."""
    x = array_of(map(ELEMENTS[name], range(SIZE)))
    x.flags.writeable = writeable
    header, frames = text.encode(x)
    assert {is_readonly(frame) for frame in frames} == {not writeable}
    views = [ensure_memoryview(frame) for frame in frames]
    assert text.decode(header, views).flags.writeable == writeable
    frozen = text.decode(header, [view.toreadonly() for view in views])
    assert not frozen.flags.writeable


DECLINED: dict[str, Callable[[int], Any]] = {
    "subclass": Text,
    "subclass of NumPy": np.str_,
    "one subclass": lambda i: Text("a") if i == SIZE - 2 else distinct(i),
    "one subclass among few": lambda i: Text("a") if i == SIZE - 2 else "abc"[i % 3],
    "one number": lambda i: i if i == SIZE - 2 else distinct(i),
    "one float": lambda i: 1.5 if i == SIZE - 2 else distinct(i),
    "floats": float,
    "bytes": lambda i: b"%d" % i,
    "dates": lambda i: np.datetime64(i, "s"),
    "lists": lambda i: [i],
    "lone surrogate": lambda i: "\ud800" if i == SIZE - 2 else distinct(i),
    "lone surrogates that repeat": lambda i: "\ud800" if i % 2 else "a",
    "all separators": lambda i: "".join(text._SEPARATORS) + str(i),
}


@pytest.mark.parametrize("elements", DECLINED.values(), ids=DECLINED)
def test_array_of_anything_else_declines(elements: Callable[[int], Any]) -> None:
    """It goes to pickle, as does what UTF-8 or the format cannot express."""
    with pytest.raises(NotImplementedError):
        text.encode(array_of(map(elements, range(SIZE))))


def test_array_that_is_small_or_of_another_dtype_declines() -> None:
    """Pickle is as fast for those."""
    small = array_of(map(distinct, range(text.MIN_SIZE - 1)))
    for x in (small, np.empty(0, object), np.zeros(SIZE), np.full(SIZE, "a")):
        with pytest.raises(NotImplementedError):
            text.encode(x)
    marked = np.full(SIZE, "a", np.dtype(object, metadata={"a": 1}))
    with pytest.raises(NotImplementedError):
        text.encode(marked)


def test_references_are_given_back() -> None:
    """Encoding and decoding leave as many references to each text as there were."""
    few = [f"value {i}" for i in range(3)]
    x = array_of(few[i % 3] for i in range(SIZE))
    before = [sys.getrefcount(value) for value in few]
    got = through(x)
    assert [sys.getrefcount(value) for value in few] == before
    value = got[0]
    count = sys.getrefcount(value)
    del got
    assert sys.getrefcount(value) == count - len(range(0, SIZE, 3))


def test_frames_are_not_changed_and_can_be_decoded_twice() -> None:
    """Neither header nor frames are used up."""
    x = array_of(map(ELEMENTS["few objects and NaN"], range(SIZE)))
    header, planned = text.encode(x)
    frames = [ensure_memoryview(frame) for frame in planned]
    before = copy.deepcopy(header), [bytes(frame) for frame in frames]
    assert_same(text.decode(header, frames), x)
    assert_same(text.decode(header, [bytes(frame) for frame in frames]), x)
    assert (header, [bytes(frame) for frame in frames]) == before


@pytest.mark.parametrize("value", ["longer than it was", "-"])
def test_array_that_changes_before_it_is_written_is_noticed(value: str) -> None:
    """Its text must fill the frame that was promised, not more and not less."""
    x = array_of(map(distinct, range(SIZE)))
    _, [planned] = text.encode(x)
    x[SIZE // 2] = value
    with pytest.raises(RuntimeError, match="changed"):
        ensure_memoryview(planned)


def test_text_takes_less_room_than_its_pickle() -> None:
    """A separator is shorter than what pickle puts around each text."""
    for elements in ELEMENTS.values():
        x = array_of(map(elements, range(SIZE)))
        assert sum(frame.nbytes for frame in text.encode(x)[1]) <= len(pickle.dumps(x, 5))


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="asks for modules by name")
def test_text_needs_no_other_library() -> None:
    """Neither pandas nor pyarrow is imported for it."""
    code = f"""
import sys
import numpy as np
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.handlers import text
x = np.fromiter(map(str, range({SIZE})), object)
header, frames = text.encode(x)
assert (text.decode(header, list(map(ensure_memoryview, frames))) == x).all()
assert not {{"pandas", "pyarrow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


TEXTS = st.text() | st.none() | st.just(math.nan) | st.sampled_from(["", "\0", "a", "é", "\x1f"])


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=300), st.integers(1, 8), st.integers(1, 4))
def test_text_of_any_length_in_chunks_of_any_size_comes_back(
    elements: list[Any], chunk: int, rows: int
) -> None:
    """Where chunks begin and end is seen nowhere."""
    x = array_of(elements * rows).reshape(rows, -1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MIN_SIZE": 1,
            "_MIN_RUN": 2,
            "_CHUNK": chunk,
            "_CHUNK_TEXTS": chunk,
            "_CHUNK_NBYTES": chunk,
            "_FEW": 3,
        }.items():
            patch.setattr(text, name, value)
        try:
            assert_same(through(x), x)
        except NotImplementedError:
            assert any(
                isinstance(value, str) and any(0xD800 <= ord(c) < 0xE000 for c in value)
                for value in elements
            )


# --- hostile input --------------------------------------------------------------------------------


def broken(header: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a header with some keys changed."""
    return {**header, **changes}


def changed(run: list[Any], place: int, value: Any) -> list[Any]:
    """Return the header of a run with one entry changed."""
    return [value if i == place else old for i, old in enumerate(run)]


@pytest.mark.row("F21")
@pytest.mark.parametrize("name", ["distinct", "few and None", "None"])
@pytest.mark.parametrize("rows", [1, 2])
def test_forged_header_is_found(name: str, rows: int) -> None:
    """Each key, each entry of a run: too few, too many, of another type."""
    x = array_of(map(ELEMENTS[name], range(SIZE // 2 * 2))).reshape(rows, -1)
    header, planned = text.encode(x if rows > 1 else x[0])
    frames = [ensure_memoryview(frame) for frame in planned]
    runs = header["runs"]
    forged = [{}, *({k: v for k, v in header.items() if k != key} for key in header if rows > 1)]
    wrong: list[Any] = [-1, 0, 1, 3, 10**15, 2**70, "x", None, [], b"\0", 1.5, {}]
    forged += [broken(header, order=value) for value in wrong]
    forged += [broken(header, shape=value) for value in wrong]
    forged += [broken(header, shape=[value]) for value in wrong]
    forged += [broken(header, shape=[*header["shape"], 2]), broken(header, shape=[10**12, 10**12])]
    forged += [broken(header, along=value) for value in wrong if value != header["along"]]
    forged += [broken(header, runs=value) for value in (*wrong, [*runs, runs[0]], runs[:-1])]
    forged += [broken(header, runs=[value] * rows) for value in wrong]
    for place, old in enumerate(runs[0]):
        forged += [
            broken(header, runs=[changed(runs[0], place, value), *runs[1:]])
            for value in (*wrong, "\x1f", True, 2, 4, 8, SIZE, SIZE - 1)
            if bool(value) != bool(old) or (place != 2 and value != old)
        ]
    for case in forged:
        with pytest.raises(CorruptHeaderError):
            text.decode(case, frames)


@pytest.mark.row("F21")
@pytest.mark.parametrize("name", ["distinct", "few and None", "None", "hundreds"])
def test_forged_frames_are_found(name: str) -> None:
    """Cut, extended, missing, swapped, too many, or not UTF-8."""
    header, planned = text.encode(array_of(map(ELEMENTS[name], range(SIZE))))
    frames = [bytes(ensure_memoryview(frame)) for frame in planned]
    forged: list[list[bytes]] = [[], frames[:-1], [*frames, b""], [*frames, frames[0]]]
    for i, frame in enumerate(frames):
        others = (
            b"",
            frame[: len(frame) // 2],
            frame + b"\0",
            b"\xff" * len(frame),
            frame[:-1] + b"\xff",
            b"\0" * (2 * SIZE + 1),
        )
        forged += [[*frames[:i], other, *frames[i + 1 :]] for other in others]
    for case in forged:
        with pytest.raises(CorruptHeaderError):
            text.decode(header, case)


def test_forged_size_allocates_nothing() -> None:
    """A header of a few bytes cannot ask for more than its frames hold."""
    header, planned = text.encode(array_of(map(distinct, range(SIZE))))
    frames = [ensure_memoryview(frame) for frame in planned]
    for size in (2**62, 2**40, 10**10):
        run = changed(header["runs"][0], 1, size)
        for shape in ([size], header["shape"]):
            with pytest.raises(CorruptHeaderError):
                text.decode(broken(header, shape=shape, runs=[run]), frames)
