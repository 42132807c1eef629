"""What is put comes back: every kind of object, and what comes of those that cannot."""

from __future__ import annotations

import datetime as dt
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from stores import Flag, RunPython, used

from shmstore import (
    DeserializationError,
    SerializationError,
    Store,
)


class Point:
    """Something with a class."""

    def __init__(self, x: float, y: float) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


VALUES: list[Any] = [
    None,
    True,
    0,
    -(2**200),
    1.5,
    2 + 3j,
    "",
    "text with ünïcode and \0",
    b"",
    b"bytes" * 100,
    bytearray(b"mutable"),
    "long" * 10_000,
    (),
    [],
    {},
    set(),
    {1: [2, (3, {"four": None})]},
    frozenset({1, 2}),
    range(5),
    slice(1, 2),
    dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    Path("/a/b"),
    Point(1, 2),
    [Point(3, 4)] * 2,
    ValueError("an error is a value too"),
    NotImplemented,
    np.float32(1.5),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_object_that_is_put_comes_back_equal(store: Store, value: Any) -> None:
    """By reference, by key, again from what is remembered, and with its type."""
    ref = store.put(value)
    store["key"] = value
    for got in (ref.get(), store.get(ref), store["key"], store["key"], store.get("key")):
        assert type(got) is type(value)
        assert got == value or repr(got) == repr(value)


ARRAYS: dict[str, Callable[[], np.ndarray]] = {
    "0-d": lambda: np.array(7.5),
    "empty": lambda: np.empty((0, 3)),
    "empty 3-d": lambda: np.empty((2, 0, 3), order="F"),
    "one": lambda: np.array([1], np.int8),
    "C": lambda: np.arange(24.0).reshape(2, 3, 4),
    "F": lambda: np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "transposed": lambda: np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": lambda: np.arange(100)[3:90:7],
    "reversed": lambda: np.arange(10)[::-1],
    "column": lambda: np.arange(12).reshape(3, 4)[:, 1],
    "broadcast": lambda: np.broadcast_to(np.arange(3), (4, 3)),
    "structured": lambda: np.array([(1, 2.5, b"x")], [("a", "i4"), ("b", "f8"), ("c", "S3")]),
    "unaligned": lambda: np.zeros(3, np.dtype([("a", "u1"), ("b", "f8")])),
    "nested dtype": lambda: np.zeros(2, [("a", [("b", "u2", (2, 2))])]),
    "big-endian": lambda: np.arange(5, dtype=">i4"),
    "datetime": lambda: np.array(["2024-02-29", "NaT"], "M8[D]"),
    "timedelta": lambda: np.array([1, 2], "m8[25s]"),
    "bool": lambda: np.array([True, False]),
    "half": lambda: np.arange(3, dtype="f2"),
    "long double": lambda: np.arange(3, dtype=np.longdouble),
    "complex": lambda: np.arange(3) * 1j,
    "text": lambda: np.array(["a", "bcd", ""]),
    "bytes": lambda: np.array([b"a", b"bcd"]),
    "void": lambda: np.zeros(3, "V5"),
    "objects": lambda: np.array([1, "two", None, [3]], dtype=object),
    "large": lambda: np.arange(200_000),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_that_is_put_comes_back_with_dtype_shape_and_order(store: Store, name: str) -> None:
    """Every kind of array, as a whole object and inside of one."""
    array = ARRAYS[name]()
    ref, inside = store.put(array), store.put({"array": [array]})
    for got in (ref.get(), inside.get()["array"][0]):
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.flags.f_contiguous == array.flags.f_contiguous or not array.flags.contiguous
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("writeable", [True, False])
def test_array_that_is_put_keeps_its_writeable_flag(
    store: Store, name: str, writeable: Flag
) -> None:
    """Readers may write what the writer could."""
    array = ARRAYS[name]().copy()
    array.flags.writeable = writeable
    if array.size and not array.dtype.hasobject:
        assert store.put(array).get().flags.writeable == writeable
    if array.size and array.dtype.kind not in "OMm":  # NumPy pickles these without buffers
        assert store.put([array]).get()[0].flags.writeable == writeable


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    array=npst.arrays(
        dtype=npst.scalar_dtypes() | npst.array_dtypes(max_size=3),
        shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    order=st.sampled_from("CFK"),
    step=st.sampled_from([1, 2, -1]),
)
def test_any_array_comes_back_byte_for_byte(
    store: Store, array: np.ndarray, order: str, step: int
) -> None:
    """Whatever dtype, shape, order and stride."""
    array = np.array(array, order=order)[..., ::step] if array.ndim else array
    with store.put(array) as ref:
        got = ref.get()
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
        del got
    assert used(store) == 0


def test_function_and_class_without_a_module_come_back_by_value(store: Store) -> None:
    """Lambdas, closures and local classes travel whole."""

    class Local:
        offset = 3

        def add(self, x: int) -> int:
            return x + self.offset

    factor = 7
    assert store.put(lambda x: x * factor).get()(6) == 42
    assert store.put(Local()).get().add(4) == 7


def test_class_of_a_main_module_is_understood_elsewhere(
    store: Store, run_python: RunPython
) -> None:
    """What a script defines can be got by a process that has never seen the script."""
    run_python(
        """
        import shmstore
        class Here:
            def greet(self): return "hello from main"
        shmstore.Store.attach(path)["it"] = Here()
        """,
        path=store.path,
    )
    assert store["it"].greet() == "hello from main"


def test_shared_references_inside_an_object_stay_shared(store: Store) -> None:
    """Identity within one object survives; an array in it twice lies there once."""
    array = np.zeros(1000)
    got = store.put([array, array, {"again": array}]).get()
    assert got[0] is got[1]
    assert got[2]["again"] is got[0]
    assert 8000 <= used(store) < 9000


def test_array_subclass_keeps_its_class(store: Store) -> None:
    """A subclass is not flattened into an array."""
    masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    record = np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    for value in (masked, record):
        got = store.put(value).get()
        assert type(got) is type(value)
        assert got.tolist() == value.tolist()


def test_changes_after_put_do_not_reach_the_store(store: Store) -> None:
    """Put copies: the caller keeps its object."""
    array = np.zeros(1000)
    ref = store.put(array)
    array[:] = 1
    assert not ref.get().any()


# --- errors of objects ----------------------------------------------------------------------------


class Reducing:
    """An object that does something while it is pickled."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action
        self.data = np.zeros(1000)

    def __reduce__(self) -> Any:
        return list, ([self.action(), self.data],)


class Rebuilding:
    """An object that fails when it is unpickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.data = np.zeros(100_000)

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["error"]


def raise_(error: BaseException) -> None:
    """Raise an error, as an expression."""
    raise error


def test_object_that_cannot_be_pickled_raises_serialization_error(store: Store) -> None:
    """The type is named, the reason is the cause, nothing is taken."""
    with pytest.raises(SerializationError, match="lock") as caught:
        store.put({"lock": threading.Lock(), "data": np.zeros(1000)}, key="k")
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is not None
    assert (used(store), len(store)) == (0, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError("none")])
def test_put_interrupted_while_pickling_lets_the_exception_through(
    store: Store, error: Any
) -> None:
    """It is not ours to translate, and nothing is taken."""
    with pytest.raises(type(error)):
        store.put(Reducing(lambda: raise_(error)), key="k")
    assert (used(store), len(store)) == (0, 0)


def test_put_called_while_an_object_is_pickled_works(store: Store) -> None:
    """Pickling holds no lock: an object may put its parts itself."""
    store["outer"] = Reducing(lambda: store.put("inner", key="inner"))
    ref, _ = store["outer"]
    assert ref.get() == "inner"


@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_get_of_an_object_that_fails_to_unpickle_keeps_no_pin(
    store: Store, error: Any, mode: str
) -> None:
    """Errors say that the object could not be rebuilt; an interrupt is passed on."""
    ref = store.put(Rebuilding(error))
    expected = DeserializationError if error is RuntimeError else KeyboardInterrupt
    for _ in range(3):
        with pytest.raises(expected):
            store.get(ref, mode=mode)
    gc.collect()
    assert ref.info().pinned_by == ()
    ref.delete()
    assert used(store) == 0
