"""Arrays that are built where they will stay."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from stores import MIB, address, used

from shmstore import (
    KeyExistsError,
    ObjectTooLargeError,
    Store,
)


@pytest.mark.parametrize(
    ("shape", "dtype"), [(5, float), ((300, 400), "f4"), ([2, 3], ">i2"), (7, [("a", "u1")])]
)
def test_allocate_gives_shared_memory_that_the_end_of_the_block_publishes(
    store: Store, shape: Any, dtype: Any
) -> None:
    """Until then nobody sees it; afterwards it is the object, without a copy."""
    block = store.allocate(shape, dtype, key="built")
    with block as array:
        where = address(array)
        array[...] = np.ones(array.shape, array.dtype)
        assert "built" not in store
        assert store.objects() == []
    del array
    got = store["built"]
    assert (address(got), got.dtype) == (where, np.dtype(dtype))
    np.testing.assert_array_equal(got, np.ones(got.shape, got.dtype))
    assert block.ref is not None
    assert block.ref.get().shape == got.shape


def test_allocate_left_by_an_exception_leaves_nothing(store: Store) -> None:
    """The exception goes on, the memory comes back."""
    block = store.allocate(100_000, key="built")
    with pytest.raises(ZeroDivisionError), block as array:
        array[0] = 1 / 0
    assert block.ref is None
    assert "built" not in store
    del array
    assert used(store) == 0


def test_array_of_an_abandoned_allocation_stays_valid_while_it_lives(store: Store) -> None:
    """It is a view like all others: nobody gets its memory before it has died."""
    with contextlib.suppress(ZeroDivisionError), store.allocate(1000, "u1") as array:
        array[:] = 7
        raise ZeroDivisionError
    store.put_many([np.full(1000, 9, np.uint8) for _ in range(100)])
    assert set(array) == {7}


def test_allocate_readonly_gives_read_only_views_to_readers(store: Store) -> None:
    """The builder writes, the readers do not."""
    with store.allocate(10, key="k", readonly=True) as array:
        array[:] = 3
    assert array.flags.writeable
    got = store["k"]
    assert got.tolist() == [3] * 10
    with pytest.raises(ValueError, match="WRITEABLE"):
        got.setflags(write=True)


def test_allocate_that_is_not_entered_cannot_be_left(store: Store) -> None:
    """Neither before nor once more afterwards."""
    block = store.allocate(3)
    with pytest.raises(RuntimeError, match="not entered: use allocate"):
        block.__exit__(None, None, None)
    with block as array:
        array[:] = 1
    with pytest.raises(RuntimeError, match="not entered: use allocate"):
        block.__exit__(None, None, None)
    assert block.ref is not None
    assert block.ref.get().tolist() == [1, 1, 1]


def test_allocate_on_a_taken_key_follows_overwrite(store: Store) -> None:
    """As put does: replace, or refuse before anything is taken."""
    old = store.put("old", key="k")
    with pytest.raises(KeyExistsError), store.allocate(3, key="k", overwrite=False):
        pytest.fail("the block must not be entered")
    assert store["k"] == "old"
    with store.allocate(3, key="k") as array:
        array[:] = 5
        assert store["k"] == "old"
    assert store["k"].tolist() == [5, 5, 5]
    assert old not in store


def test_allocate_whose_key_is_taken_meanwhile_refuses_at_the_end(store: Store) -> None:
    """Without overwrite the first to publish wins."""

    def build_too_late() -> None:
        with store.allocate(1000, key="k", overwrite=False) as array:
            array[:] = 1
            store["k"] = "first"

    with pytest.raises(KeyExistsError):
        build_too_late()
    assert store["k"] == "first"
    assert used(store) == 0


NOTED = np.dtype("i4", metadata={"unit": "m"})
OF_RECORDS = np.dtype((np.record, [("a", "i4")]))


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (object, "objects of Python"),
        ([("a", object)], "objects of Python"),
        (NOTED, "metadata"),
        ([("a", NOTED)], "metadata"),
        (OF_RECORDS, "beside its fields"),
    ],
    ids=["objects", "field of objects", "metadata", "metadata of a field", "records"],
)
def test_allocate_says_what_it_cannot_keep_of_a_dtype(
    store: Store, dtype: Any, reason: str
) -> None:
    """The reason that holds, for what `put` takes."""
    with pytest.raises(TypeError, match=reason):
        store.allocate(3, dtype)
    array = np.zeros(3, dtype)
    assert store.put(array).get().dtype == array.dtype


@pytest.mark.parametrize("shape", [0, (0, 5), ()])
def test_allocate_of_nothing_or_of_one_works(store: Store, shape: Any) -> None:
    """Empty arrays and arrays without dimensions."""
    with store.allocate(shape, "i4", key="k") as array:
        array[...] = 4
    del array
    assert store["k"].shape == np.empty(shape).shape
    assert (store["k"] == 4).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        (-1, float, ValueError),
        ((2, -3), float, ValueError),
        (1.5, float, TypeError),
        ("3", float, TypeError),
        (None, float, TypeError),
        (3, object, TypeError),
        (3, [("a", object)], TypeError),
        (3, "no such type", TypeError),
        (5 * MIB, "u1", ObjectTooLargeError),
        ((2**40, 2**40), float, ObjectTooLargeError),
    ],
)
def test_allocate_of_a_shape_or_dtype_that_cannot_be_raises(
    store: Store, shape: Any, dtype: Any, error: Any
) -> None:
    """Each with its class, and nothing is taken."""
    with pytest.raises(error), store.allocate(shape, dtype):
        pytest.fail("the block must not be entered")
    assert used(store) == 0
