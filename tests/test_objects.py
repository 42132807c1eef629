"""What is put comes back: every kind of object, by key, by reference, in batches."""

from __future__ import annotations

import datetime as dt
import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from stores import MIB, Flag, RunPython, used

from shmstore import (
    DeserializationError,
    KeyExistsError,
    ObjectNotFoundError,
    SerializationError,
    Store,
    StoreFullError,
)

# --- put and get ----------------------------------------------------------------------------------


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


def test_put_returns_a_reference_with_key_and_size(store: Store) -> None:
    """The facts of the object are at hand without asking the store."""
    named, anonymous = store.put(np.zeros(10), key="k"), store.put(np.zeros(20))
    assert (named.key, named.nbytes) == ("k", 80)
    assert (anonymous.key, anonymous.nbytes) == (None, 160)


def test_put_on_a_taken_key_replaces_the_object(store: Store) -> None:
    """The key leads to the new object, the old reference to none."""
    old = store.put([1], key="k")
    new = store.put([2], key="k")
    assert store["k"] == new.get() == [2]
    with pytest.raises(ObjectNotFoundError):
        old.get()
    assert len(store) == len(store.objects()) == 1


@pytest.mark.parametrize("value", [1, np.zeros(10), np.zeros(100_000)])
def test_put_without_overwrite_on_a_taken_key_raises_and_takes_nothing(
    store: Store, value: Any
) -> None:
    """What is there stays, in every size."""
    store.put("first", key="k", overwrite=False)
    before = used(store)
    with pytest.raises(KeyExistsError, match="'k'") as caught:
        store.put(value, key="k", overwrite=False)
    assert isinstance(caught.value, KeyError)
    assert caught.value.key == "k"
    assert store["k"] == "first"
    assert used(store) == before


def test_put_without_overwrite_on_a_free_key_stores_the_object(store: Store) -> None:
    """Also where the key was used before."""
    store.put(1, key="k", overwrite=False).delete()
    store.put(2, key="k", overwrite=False)
    assert store["k"] == 2


@pytest.mark.parametrize("nbytes", [8, 1000, 300_000])
def test_put_readonly_gives_read_only_views_whatever_the_flags_were(
    store: Store, nbytes: int
) -> None:
    """The writer decides that nobody writes."""
    array = np.zeros(nbytes, np.uint8)
    for got in (
        store.put(array, readonly=True).get(),
        store.put({"x": array}, readonly=True).get()["x"],
        store.put_many([array], readonly=True)[0].get(),
    ):
        with pytest.raises(ValueError, match="read-only"):
            got[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            got.setflags(write=True)


def test_put_with_readonly_false_keeps_what_was_read_only(store: Store) -> None:
    """The flag of the object is the stricter one."""
    array = np.zeros(10)
    array.flags.writeable = False
    assert not store.put(array, readonly=False).get().flags.writeable


@pytest.mark.parametrize("key", [5, b"bytes", ("a",), 1.0])
def test_key_that_is_no_string_raises_type_error(store: Store, key: Any) -> None:
    """Everywhere a key is given."""
    for call in (
        lambda: store.put(1, key=key),
        lambda: store.put_many({key: 1}),
        lambda: store.allocate(3, key=key),
        lambda: store.get(key),
        lambda: store.get(key, None),
        lambda: store.delete(key),
        lambda: store.discard(key),
        lambda: store.info(key),
        lambda: store.__getitem__(key),
        lambda: store.pop(key, None),
    ):
        with pytest.raises(TypeError, match="key"):
            call()
    assert key not in store
    assert store.objects() == []


@pytest.mark.parametrize("key", ["", "/", "../x", "a\0b", "ä", "\N{SNOWMAN}" * 341, "k" * 1024])
def test_key_may_be_any_text_up_to_its_limit(store: Store, key: Any) -> None:
    """Keys are no paths: nothing in them is special."""
    store[key] = key
    assert store[key] == key
    assert list(store) == [key]
    assert store.info(key).key == key


@pytest.mark.parametrize("key", ["k" * 1025, "\N{SNOWMAN}" * 342, "\ud800"])
def test_key_too_long_or_not_encodable_raises_value_error(store: Store, key: Any) -> None:
    """The limit is told, and nothing is stored."""
    with pytest.raises(ValueError, match="key"):
        store[key] = 1
    assert store.objects() == []


def test_get_of_a_missing_key_raises_object_not_found(store: Store) -> None:
    """As a dict would, with the key."""
    with pytest.raises(ObjectNotFoundError, match="'nowhere'") as caught:
        store.get("nowhere")
    assert isinstance(caught.value, KeyError)
    assert caught.value.key == "nowhere"


def test_get_with_default_returns_it_only_where_nothing_is_stored(store: Store) -> None:
    """None is a default, and None is a value."""
    store["nothing"] = None
    gone = store.put(1)
    gone.delete()
    assert store.get("nothing", "default") is None
    assert store.get("nowhere", None) is None
    assert store.get(gone, "default") == "default"
    assert store.get("nowhere", default=5) == 5


def test_get_many_keeps_the_order_and_fills_in_the_default(store: Store) -> None:
    """References and keys may be mixed."""
    ref = store.put("anonymous")
    store["a"] = "named"
    assert store.get_many(["a", ref, "a"]) == ["named", "anonymous", "named"]
    assert store.get_many(["a", "b"], None) == ["named", None]
    assert store.get_many([]) == []
    with pytest.raises(ObjectNotFoundError):
        store.get_many(["a", "b"])


@pytest.mark.parametrize("target", [5, None, b"k", ("k",), object()])
def test_target_that_is_neither_reference_nor_key_raises_type_error(
    store: Store, target: Any
) -> None:
    """No guess is made."""
    for call in (store.get, store.delete, store.discard, store.info):
        with pytest.raises(TypeError, match="key"):
            call(target)


def test_mode_that_is_unknown_raises_value_error(store: Store) -> None:
    """By every way to an object; the good ones are named."""
    ref = store.put(np.zeros(3), key="k")
    for call in (partial(store.get, "k"), ref.get, partial(store.get_many, ["k"])):
        with pytest.raises(ValueError, match="private"):
            call(mode="bogus")


def test_put_many_of_a_mapping_names_the_objects(store: Store) -> None:
    """One reference per key."""
    refs = store.put_many({"a": 1, "b": np.arange(3)})
    assert list(refs) == ["a", "b"]
    assert refs["a"].get() == store["a"] == 1
    assert refs["b"].key == "b"
    assert store["b"].tolist() == [0, 1, 2]


def test_put_many_of_a_sequence_keeps_the_order(store: Store) -> None:
    """Any iterable will do; the objects are anonymous."""
    refs = store.put_many(iter([1, "two", np.zeros(200_000)]))
    assert [ref.key for ref in refs] == [None] * 3
    assert store.get_many(refs)[:2] == [1, "two"]
    assert len(store) == 0
    assert store.put_many([]) == []
    assert store.put_many({}) == {}


def test_put_many_without_room_for_the_last_stores_none(store: Store) -> None:
    """All or nothing, and what was there before stays."""
    store.put_many({"a": "old", "b": "old"})
    before = store.stats()
    with pytest.raises(StoreFullError):
        store.put_many({"a": np.zeros(MIB, np.uint8), "c": np.zeros(7 * MIB // 2, np.uint8)})
    assert dict(store) == {"a": "old", "b": "old"}
    assert store.stats() == before


def test_put_many_without_overwrite_stores_none_if_one_key_is_taken(store: Store) -> None:
    """All or nothing."""
    store["b"] = "old"
    with pytest.raises(KeyExistsError) as caught:
        store.put_many({"a": 1, "b": 2}, overwrite=False)
    assert caught.value.key == "b"
    assert dict(store) == {"b": "old"}


def test_serializers_of_a_put_choose_the_family(store: Store) -> None:
    """An array may go through pickle where that is asked for."""
    array = np.arange(3)
    assert store.info(store.put(array)).serializer == "custom"
    ref = store.put(array, serializers=("pickle",))
    assert store.info(ref).serializer == "pickle"
    assert ref.get().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown-family"):
        store.put(array, serializers=("unknown-family",))
    with pytest.raises(SerializationError):
        store.put({}, serializers=("custom",))


@pytest.mark.parametrize("value", [{"small": 1}, {"large": np.zeros(100_000)}])
def test_deserializers_of_a_get_refuse_a_pickle_by_name(store: Store, value: Any) -> None:
    """A reader may decide to run no code of others; nothing stays pinned."""
    ref = store.put(value, key="k")
    for call in (partial(store.get, "k"), ref.get):
        with pytest.raises(DeserializationError, match="pickle"):
            call(deserializers=("custom", "msgpack"))
    assert store.get("k", deserializers=("pickle",)).keys() == value.keys()
    assert ref.info().pinned_by == ()


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


# --- delete ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, np.zeros(10), np.zeros(100_000)])
def test_delete_takes_the_object_away_by_key_and_by_reference(store: Store, value: Any) -> None:
    """Gone for new readers at once, and its memory with it."""
    for target in ("key", "ref"):
        ref = store.put(value, key="k")
        store.get("k")
        store.delete("k" if target == "key" else ref)
        assert "k" not in store
        assert ref not in store
        for again in ("k", ref):
            with pytest.raises(ObjectNotFoundError):
                store.get(again)
            with pytest.raises(ObjectNotFoundError):
                store.delete(again)
    assert used(store) == 0


def test_discard_tells_whether_there_was_something(store: Store) -> None:
    """Deleting twice is no error here."""
    ref = store.put(1, key="k")
    assert store.discard("k") is True
    assert store.discard("k") is False
    assert store.discard(ref) is False


def test_delete_many_counts_what_was_there(store: Store) -> None:
    """Keys and references, each object once."""
    refs = store.put_many({"a": 1, "b": 2, "c": 3})
    assert store.delete_many(["a", refs["a"], refs["b"], "nowhere"]) == 2
    assert list(store) == ["c"]
    assert store.delete_many([]) == 0


def test_delete_many_with_a_wrong_target_deletes_nothing(store: Store) -> None:
    """All targets are looked at before the first is deleted."""
    store["a"] = 1
    with pytest.raises(TypeError):
        store.delete_many(["a", 5])
    assert list(store) == ["a"]
