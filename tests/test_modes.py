"""What the four modes of get make of an object's buffers, at every size and for both flags."""

from __future__ import annotations

import ctypes
import gc
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import Flag, RunPython, address, lock_free_only

from shmstore import Store

MODES = ("shared", "readonly", "private", "copy")

# Below and above the size from which private views are mappings of their own.
SIZES = {"small": 1000, "large": 300_000}


def array_itself(array: np.ndarray) -> Any:
    """Put the array as the object."""
    return array


def dict_of_arrays(array: np.ndarray) -> Any:
    """Put the array as the second of three buffers of a pickle."""
    return {"first": np.ones(5), "array": array, "last": b"inband"}


KINDS: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]] = {
    "array": (array_itself, lambda got: got),
    "dict": (dict_of_arrays, lambda got: got["array"]),
}


class Case:
    """An object put in one way, and how to get its array out.

    Parameters
    ----------
    store
        Where it is put.
    nbytes
        Size of its array.
    wrap, unwrap
        From array to object and back.
    writeable
        The flag of the array at put.
    """

    def __init__(self, store: Store, nbytes: int, kind: str, *, writeable: bool) -> None:
        self.store = store
        self.wrap, self.unwrap = KINDS[kind]
        self.expected = np.arange(nbytes // 8)
        array = self.expected.copy()
        array.flags.writeable = writeable
        self.ref = store.put(self.wrap(array), key="k")

    def get(self, mode: str) -> np.ndarray:
        """Return the array as a reader with this mode gets it."""
        return self.unwrap(self.store.get("k", mode=mode))


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    """Give a number of bytes on each side of the limit."""
    return SIZES[request.param]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Say whether the array is the object, or part of one."""
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["writeable", "read-only"])
def writeable(request: pytest.FixtureRequest) -> bool:
    """Give the flag of the buffer when it was put."""
    return bool(request.param)


@pytest.fixture
def case(store: Store, size: int, kind: str, writeable: bool) -> Case:  # noqa: FBT001
    """Give an object of each kind, size and flag."""
    return Case(store, size, kind, writeable=writeable)


@pytest.mark.parametrize("mode", MODES)
def test_buffer_in_each_mode_holds_what_was_put(case: Case, mode: str) -> None:
    """The modes differ in rights, not in values, dtype or shape."""
    got = case.get(mode)
    assert (got.dtype, got.shape) == (case.expected.dtype, case.expected.shape)
    np.testing.assert_array_equal(got, case.expected)


@pytest.mark.parametrize("mode", MODES)
def test_buffer_in_each_mode_is_writeable_as_the_table_says(
    case: Case, writeable: Flag, mode: str
) -> None:
    """Shared and copy follow the flag, read-only is never, private is always writeable."""
    expected = {"shared": writeable, "readonly": False, "private": True, "copy": writeable}
    assert case.get(mode).flags.writeable == expected[mode]


def test_view_that_is_read_only_cannot_be_made_writeable(case: Case, writeable: Flag) -> None:
    """Not by its flags, nor by another array over it."""
    for mode in ["readonly"] if writeable else ["readonly", "shared"]:
        view = case.get(mode)
        for array in (view, view[2:], np.asarray(memoryview(view)), np.frombuffer(view, np.uint8)):
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.setflags(write=True)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        with pytest.raises((TypeError, BufferError)):
            (ctypes.c_char * view.nbytes).from_buffer(view)


@pytest.mark.parametrize("mode", ["shared", "readonly"])
def test_views_of_one_object_lie_on_the_same_memory(case: Case, mode: str) -> None:
    """Nothing is copied: two gets lead to the same bytes."""
    assert address(case.get(mode)) == address(case.get(mode))


def test_write_through_a_shared_view_is_seen_by_all_shared_and_readonly_views(
    store: Store, size: int, kind: str
) -> None:
    """One memory, two mappings."""
    case = Case(store, size, kind, writeable=True)
    views = [case.get("shared"), case.get("readonly"), case.get("shared")]
    views[0][7] = -1
    assert [view[7] for view in views] == [-1, -1, -1]
    assert case.get("private")[7] == case.get("copy")[7] == -1


@lock_free_only
def test_write_through_a_shared_view_is_seen_by_another_process(
    store: Store, size: int, kind: str, run_python: RunPython
) -> None:
    """In both directions, without another put."""
    case = Case(store, size, kind, writeable=True)
    view = case.get("shared")
    view[7] = -1
    run_python(
        """
        got = ref.get()
        array = got["array"] if isinstance(got, dict) else got
        assert array[7] == -1
        array[8] = -2
        """,
        ref=case.ref,
    )
    assert view[8] == -2


@pytest.mark.parametrize("mode", ["private", "copy"])
def test_write_through_a_private_buffer_stays_with_its_reader(
    case: Case, writeable: Flag, mode: str
) -> None:
    """Neither other views nor other gets nor the store see it."""
    shared, mine, other = case.get("readonly"), case.get(mode), case.get(mode)
    if mode == "copy" and not writeable:
        mine = mine.copy()
    mine[:] = -1
    for array in (shared, other, case.get("shared"), case.get(mode)):
        np.testing.assert_array_equal(array, case.expected)
    assert (mine == -1).all()


@lock_free_only
def test_write_through_a_private_buffer_is_invisible_to_another_process(
    store: Store, kind: str, run_python: RunPython
) -> None:
    """The pages written belong to this reader alone."""
    for nbytes in SIZES.values():
        case = Case(store, nbytes, kind, writeable=True)
        mine = case.get("private")
        mine[:] = -1
        total = run_python(
            """
            got = ref.get()
            print(int((got["array"] if isinstance(got, dict) else got).sum()))
            """,
            ref=case.ref,
        )
        assert int(total) == case.expected.sum()


@pytest.mark.parametrize("mode", MODES)
def test_buffer_in_each_mode_outlives_the_object(case: Case, mode: str) -> None:
    """After delete and under the pressure of new objects it reads as before."""
    got = case.get(mode)
    case.store.delete(case.ref)
    for _ in range(2):
        refs = [case.store.put(np.full(100_000, 255, np.uint8)) for _ in range(30)]
        case.store.delete_many(refs)
    np.testing.assert_array_equal(got, case.expected)


@pytest.mark.parametrize("mode", MODES)
def test_buffer_in_each_mode_gives_its_memory_back_when_it_dies(case: Case, mode: str) -> None:
    """Nothing stays pinned, whatever the mode."""
    got = case.get(mode)
    case.ref.delete()
    del got
    gc.collect()
    assert case.store.stats().used == 0


def test_copies_keep_nothing_of_the_store(case: Case) -> None:
    """A copy is on the heap: the object can go at once."""
    got = case.get("copy")
    case.ref.delete()
    assert case.store.stats().used == 0
    np.testing.assert_array_equal(got, case.expected)


def test_private_buffer_written_before_the_object_is_overwritten_keeps_both(case: Case) -> None:
    """Its written and its unwritten pages survive the object."""
    mine = case.get("private")
    mine[3] = -3
    for value in range(50):
        case.store["k"] = np.full(case.expected.nbytes, value, np.uint8)
    assert mine[3] == -3
    mine[3] = 3
    np.testing.assert_array_equal(mine, case.expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_array_without_elements_has_the_flags_of_its_mode(
    store: Store, mode: str, shape: Any
) -> None:
    """Empty arrays have no memory, but they have flags."""
    for writeable in (True, False):
        array = np.zeros(shape)
        array.flags.writeable = writeable
        store["k"] = array
        store["d"] = [array]
        expected = {"shared": writeable, "readonly": False, "private": True, "copy": writeable}
        for got in (store.get("k", mode=mode), store.get("d", mode=mode)[0]):
            assert got.shape == shape
            assert got.flags.writeable == expected[mode]


@pytest.mark.parametrize("mode", MODES)
def test_array_in_any_order_keeps_its_strides_in_each_mode(
    store: Store, mode: str, size: int
) -> None:
    """Fortran order and broadcasts are no matter of the mode."""
    n = size // 80
    for array in (
        np.asfortranarray(np.arange(n * 10).reshape(n, 10)),
        np.broadcast_to(np.arange(10), (n, 10)),
        np.arange(n * 20).reshape(n, 20)[:, ::2],
        np.zeros(n, [("a", "u1"), ("b", ">f8")]),
    ):
        got = store.get(store.put(array), mode=mode)
        np.testing.assert_array_equal(got, array)
        assert got.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize("mode", MODES)
def test_mode_of_a_reference_and_of_a_batch_is_that_of_the_store(store: Store, mode: str) -> None:
    """All ways to an object know the modes."""
    ref = store.put(np.arange(1000), key="k")
    flags = {
        array.flags.writeable
        for array in (
            store.get("k", mode=mode),
            store.get(ref, mode=mode),
            ref.get(mode=mode),
            store.get_many([ref], mode=mode)[0],
            store.get_many(["k"], mode=mode)[0],
        )
    }
    assert flags == {mode != "readonly"}


WILD_WRITE = """
import ctypes, resource
import numpy as np, shmstore
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
store = shmstore.Store.attach(path, readonly=readonly)
got = store.get("k", mode=mode)
array = got["array"] if isinstance(got, dict) else got
assert array[0] == 0
ctypes.memset(array.ctypes.data, 255, 64)
print("survived")
"""


@lock_free_only
@pytest.mark.parametrize(
    ("put_writeable", "mode", "readonly"),
    [(False, "shared", False), (True, "readonly", False), (True, "shared", True)],
    ids=["read-only object", "read-only mode", "read-only handle"],
)
def test_wild_write_into_a_read_only_view_kills_the_writer_and_changes_nothing(
    store: Store, kind: str, run_python: RunPython, put_writeable: Flag, mode: str, readonly: Flag
) -> None:
    """The mapping itself refuses: a stray pointer cannot damage what others share."""
    case = Case(store, SIZES["small"], kind, writeable=put_writeable)
    run_python(
        WILD_WRITE,
        returncode=-signal.SIGSEGV,
        path=store.path,
        mode=mode,
        readonly=readonly,
    )
    np.testing.assert_array_equal(case.get("shared"), case.expected)
    assert store.recover().clients == 1


@lock_free_only
def test_wild_write_into_the_index_through_a_read_only_handle_kills_the_writer(
    store: Store, run_python: RunPython
) -> None:
    """A read-only handle maps the tables read-only as well."""
    store["k"] = 1
    run_python(
        """
        import ctypes, resource
        import numpy as np, shmstore
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        store = shmstore.Store.attach(path, readonly=True)
        assert store["k"] == 1
        words = np.frombuffer(store._session.words, np.uint64)
        ctypes.memset(words.ctypes.data, 0, 8)
        """,
        returncode=-signal.SIGSEGV,
        path=store.path,
    )
    assert store["k"] == 1
