"""Sparse matrices and arrays of SciPy: what is kept, what is shared, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from roundtrips import SAFE, address, forge, frames_of, round_trip
from stores import RunPython, lock_free_only, used

from shmstore import Store
from shmstore.errors import DeserializationError, FamilyRefusedError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.parts import serialize_parts

sp = pytest.importorskip("scipy.sparse")

MODES = ("shared", "readonly", "private", "copy")
FORMATS = ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
KINDS = ("array", "matrix")
DTYPES = ("?", "i1", "u2", "i8", "f4", "f8", "g", "c8", "c16")

# Their parts, which must be shared and not copied.
COMPONENTS = {
    "bsr": ("indptr", "indices", "data"),
    "csc": ("indptr", "indices", "data"),
    "csr": ("indptr", "indices", "data"),
    "dia": ("offsets", "data"),
}


def make(name: str, kind: str = "array", dtype: str = "f8", shape: tuple[int, int] = (6, 4)) -> Any:
    """Return a sparse matrix or array with some elements."""
    dense = np.zeros(shape, dtype)
    dense.flat[::3] = 1
    dense.flat[5::7] = np.ones(1, dtype)[0]
    return getattr(sp, f"{name}_{kind}")(dense)


def components(x: Any) -> list[np.ndarray]:
    """Return the arrays that a sparse matrix consists of."""
    if x.format == "coo":
        return [*x.coords, x.data]
    return [getattr(x, name) for name in COMPONENTS[x.format]]


def same(x: Any, y: Any) -> bool:
    """Return whether two matrices agree in class, shape, dtype and elements."""
    return (
        type(x) is type(y)
        and (x.shape, x.dtype, x.nnz) == (y.shape, y.dtype, y.nnz)
        and np.array_equal(x.toarray(), y.toarray())
    )


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.row("S103")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_of_each_format_and_dtype_needs_no_pickle(name: str, kind: str, dtype: str) -> None:
    """Matrices and arrays, and each comes back as what it was."""
    x = make(name, kind, dtype)
    assert same(x, round_trip(x, deserializers=SAFE))
    assert same(x, round_trip([x])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (4, 6)])
def test_sparse_without_elements_keeps_its_shape(
    name: str, kind: str, shape: tuple[int, int]
) -> None:
    """Whatever is zero: elements, rows or columns."""
    if name == "bsr" and 0 in shape:
        pytest.skip("SciPy makes no such matrix")
    x = getattr(sp, f"{name}_{kind}")(shape, dtype="f4")
    got = round_trip(x, deserializers=SAFE)
    assert (type(got), got.shape, got.dtype, got.nnz) == (type(x), shape, np.dtype("f4"), 0)
    assert got.toarray().shape == shape


@pytest.mark.parametrize("name", ["csr", "coo", "dok"])
def test_sparse_array_of_one_dimension_keeps_it(name: str) -> None:
    """Arrays need not be matrices."""
    x = getattr(sp, f"{name}_array")(np.array([0, 3, 0, 4.0]))
    assert same(x, round_trip(x, deserializers=SAFE))


@pytest.mark.parametrize("ndim", [3, 5])
def test_coo_array_of_many_dimensions_keeps_them(ndim: int) -> None:
    """One array of coordinates for each."""
    x = sp.coo_array(np.arange(2**ndim).reshape((2,) * ndim) % 3)
    header, frames = frames_of(x)
    assert len(frames) == ndim + 1
    assert same(x, deserialize(header, frames, deserializers=SAFE))


@pytest.mark.parametrize("name", ["bsr", "csc", "csr", "dia", "coo"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_component_arrays_are_the_frames(name: str, kind: str, index: Any) -> None:
    """Neither put nor get copies them, and no dtype of indices is changed."""
    x = make(name, kind)
    if name == "coo":
        x.coords = tuple(indices.astype(index) for indices in x.coords)
    for part in {"indptr", "indices", "offsets"} & vars(x).keys():
        setattr(x, part, getattr(x, part).astype(index))
    header, frames = serialize(x, on_error="raise")
    got = deserialize(header, frames, deserializers=SAFE)
    expected = [address(part) for part in components(x)]
    assert [address(frame) for frame in frames] == expected
    assert [address(part) for part in components(got)] == expected
    assert [part.dtype for part in components(got)] == [part.dtype for part in components(x)]


def test_byte_order_of_elements_is_kept() -> None:
    """SciPy itself makes none of another order, but has them."""
    x = make("csr")
    x.data = x.data.astype(">f8")
    got = round_trip(x, deserializers=SAFE)
    assert got.data.dtype == np.dtype(">f8")
    assert np.array_equal(got.data, x.data)


@pytest.mark.parametrize("name", ["csr", "csc", "bsr"])
@pytest.mark.parametrize("order", ["unknown", "canonical", "sorted", "unsorted"])
def test_what_is_known_about_the_order_of_indices_is_kept(name: str, order: str) -> None:
    """So that no reader looks, or sorts in place what others read, and no more is claimed."""
    x = make(name)
    for flag in ("_has_canonical_format", "_has_sorted_indices"):
        vars(x).pop(flag, None)
    if order == "canonical":
        x.sum_duplicates()
    elif order != "unknown":
        x.has_canonical_format = False
        x.has_sorted_indices = order == "sorted"
    flags = {key: value for key, value in vars(x).items() if key.startswith("_has_")}
    got = vars(round_trip(x))
    assert {key: value for key, value in got.items() if key.startswith("_has_")} == flags


@pytest.mark.parametrize("canonical", [True, False])
def test_coordinates_know_whether_they_are_canonical(canonical: bool) -> None:  # noqa: FBT001
    """A reader without trust in the writer does not believe it."""
    x = sp.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))
    if canonical:
        x.sum_duplicates()
    got = round_trip(x)
    assert got.has_canonical_format == canonical
    assert got.nnz == x.nnz
    assert not round_trip(x, deserializers=SAFE).has_canonical_format


@pytest.mark.parametrize("name", ["lil", "dok"])
def test_formats_of_python_objects_can_be_changed_as_before(name: str) -> None:
    """They are built of lists and dicts of their own."""
    x = make(name)
    got = round_trip(x)
    for one in (x, got):
        one[0, 1] = 9
        one[5, 3] = 0
    assert same(x, got)
    assert same(x.tocsr(), got.tocsr())


class Weighted(sp.csr_array):
    """A subclass of a user."""


def test_subclasses_and_attributes_of_users_are_kept() -> None:
    """By pickle, which shares the arrays too."""
    weighted = Weighted(make("csr"))
    assert type(round_trip(weighted)) is Weighted
    x = make("csr")
    x.name = "x"
    header, frames = serialize(x, on_error="raise")
    got = deserialize(header, frames)
    assert (header["serializer"], got.name) == ("pickle", "x")
    assert address(got.data) == address(x.data)
    with pytest.raises(FamilyRefusedError):
        deserialize(header, frames, deserializers=SAFE)


def test_matrices_that_share_arrays_share_them_again() -> None:
    """In one object each of them is one frame."""
    x = make("csr", shape=(500, 400))
    y = sp.csr_array(x.shape)
    y.indptr, y.indices, y.data = x.indptr, x.indices, x.data
    header, frames = frames_of([x, y, x.data])
    assert len(frames) == 4
    got = deserialize(header, frames)
    got[0].data[0] = 77
    assert got[1].data[0] == got[2][0] == 77


@pytest.mark.parametrize("maxprint", [7, None])
def test_what_is_printed_of_a_matrix_is_kept(maxprint: Any) -> None:
    """It is a choice of its user."""
    x = make("csr")
    x.maxprint = maxprint
    assert round_trip(x).maxprint == x.maxprint


def test_header_is_small() -> None:
    """A few hundred bytes, as the index has room for."""
    x = make("csr", shape=(1000, 1000))
    header, frames = frames_of(x)
    assert len(frames) == 3
    assert len(repr(header)) < 800


# --- forged headers ------------------------------------------------------------------------------

FORGED: dict[str, tuple[str, dict[str, Any]]] = {
    "more rows": ("csr", {"shape": [7, 4]}),
    "fewer rows": ("csr", {"shape": [5, 4]}),
    "more columns of columns": ("csc", {"shape": [6, 5]}),
    "no dimensions": ("csr", {"shape": []}),
    "three dimensions": ("csr", {"shape": [1, 6, 4]}),
    "one dimension": ("csc", {"shape": [6]}),
    "negative": ("csr", {"shape": [6, -4]}),
    "no numbers": ("csr", {"shape": ["6", 4]}),
    "huge": ("csr", {"shape": [1 << 70, 4]}),
    "huge lists": ("lil", {"shape": [1 << 50, 4]}),
    "blocks that do not fit": ("bsr", {"shape": [6, 5]}),
    "other dimensions": ("coo", {"shape": [6, 4, 1]}),
    "no parts": ("csr", {"parts": {}}),
    "parts of another format": ("dia", {"parts": None}),
}


@pytest.mark.row("F21")
@pytest.mark.parametrize("name", FORGED)
def test_forged_header_of_a_sparse_matrix_is_an_error(name: str) -> None:
    """What costs nothing to check is always checked."""
    kind, changes = FORGED[name]
    dense = make(kind).toarray()
    header, frames = frames_of(
        sp.bsr_array(dense, blocksize=(2, 2)) if kind == "bsr" else make(kind)
    )
    if name == "parts of another format":
        changes = {"parts": frames_of(make("csr"))[0]["sub-header"]["parts"]}
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **changes), frames)


def shaped(part: Any, shape: list[int], dtype: str | None = None) -> Any:
    """Return the header of a part with another shape and dtype."""
    sub = {**part["header"]["sub-header"], "shape": shape}
    if dtype is not None:
        sub["dtype"] = dtype
    return {**part, "header": {**part["header"], "sub-header": sub}}


@pytest.mark.parametrize(
    ("part", "shape", "dtype"),
    [
        ("indices", [1, 8], "<i4"),
        ("indices", [4], "<i8"),
        ("indices", [8], "<f4"),
        ("indices", [8], ">i4"),
        ("data", [8, 1], "<f8"),
        ("data", [4], "<c16"),
        ("indptr", [7], "<f4"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_an_error(
    part: str, shape: list[int], dtype: str
) -> None:
    """Lengths, dimensions and dtypes of the arrays are looked at before SciPy sees them."""
    dense = np.zeros((6, 4))
    dense.flat[:8] = 1
    header, frames = frames_of(sp.csr_array(dense))
    parts = header["sub-header"]["parts"]
    parts = {**parts, part: shaped(parts[part], shape, dtype)}
    with pytest.raises(DeserializationError):
        deserialize(forge(header, parts=parts), frames)


def test_ends_of_index_pointers_are_always_checked() -> None:
    """They say how far the compiled code goes."""
    for position, value in [(0, 1), (-1, 1000), (-1, -1)]:
        header, frames = frames_of(make("csr"))
        np.frombuffer(frames[0], np.int32)[position] = value
        with pytest.raises(DeserializationError, match="index pointers"):
            deserialize(header, frames)


@pytest.mark.row("F43")
@pytest.mark.parametrize("name", ["csr", "csc", "bsr", "coo", "lil", "dok"])
@pytest.mark.parametrize("value", [-1, 1000])
def test_reader_that_accepts_no_pickles_looks_at_each_index(name: str, value: int) -> None:
    """Compiled code would follow it out of the arrays."""
    header, frames = frames_of(make(name))
    np.frombuffer(frames[1], np.int32)[2] = value
    with pytest.raises(DeserializationError, match="indices"):
        deserialize(header, frames, deserializers=SAFE)


@pytest.mark.parametrize("name", ["csr", "lil"])
def test_reader_that_accepts_no_pickles_refuses_pointers_that_go_back(name: str) -> None:
    """A row would begin behind its end."""
    header, frames = frames_of(make(name))
    np.frombuffer(frames[0], np.int32)[2] = 7
    with pytest.raises(DeserializationError, match="decrease"):
        deserialize(header, frames, deserializers=SAFE)


def test_reader_that_accepts_no_pickles_refuses_a_shape_that_leaves_indices_outside() -> None:
    """The header alone can do that."""
    header, frames = frames_of(make("csr"))
    with pytest.raises(DeserializationError, match="axis of 1"):
        deserialize(forge(header, shape=[6, 1]), frames, deserializers=SAFE)
    header, frames = frames_of(make("dia"))
    np.frombuffer(frames[0], np.int32)[0] = -100
    with pytest.raises(DeserializationError, match="indices"):
        deserialize(header, frames, deserializers=SAFE)


MANY = 1 << 40
ZEROS = np.broadcast_to(np.int32(0), MANY)
ONE = np.zeros(1, np.int32)

# Format, shape, and arrays of which one shows a few bytes as 2**40 numbers.
BOMBS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "rows": ("csr", [MANY - 1, 1], {"indptr": ZEROS, "indices": ONE, "data": ONE}),
    "columns": ("csc", [1, MANY - 1], {"indptr": ZEROS, "indices": ONE, "data": ONE}),
    "indices": ("csr", [1, 1], {"indptr": np.array([0, 1]), "indices": ZEROS, "data": ZEROS}),
    "blocks": (
        "bsr",
        [MANY - 1, 1],
        {"indptr": ZEROS, "indices": ONE, "data": ONE.reshape(1, 1, 1)},
    ),
    "lists": ("lil", [MANY - 1, 1], {"indptr": ZEROS, "indices": ONE, "data": ONE}),
    "long lists": ("lil", [1, 1], {"indptr": np.array([0, 1]), "indices": ZEROS, "data": ZEROS}),
    "coordinates": ("coo", [1, 1], {"0": ZEROS, "1": ZEROS, "data": ZEROS}),
    "keys": ("dok", [1, 1], {"0": ZEROS, "1": ZEROS, "data": ZEROS}),
    "diagonals": ("dia", [1, 1], {"offsets": ZEROS, "data": ZEROS.reshape(-1, 1)}),
    "large elements": (
        "dok",
        [9, 9],
        {"0": np.arange(9), "1": np.arange(9), "data": np.broadcast_to(np.zeros(1, "S99"), 9)},
    ),
}


@pytest.mark.row("F21", "F43")
@pytest.mark.parametrize("accepted", [None, SAFE])
@pytest.mark.parametrize("name", BOMBS)
def test_arrays_that_show_few_bytes_as_many_are_refused(name: str, accepted: Any) -> None:
    """All work is done on all of them, for years, in terabytes."""
    kind, shape, arrays = BOMBS[name]
    header, _ = frames_of(getattr(sp, f"{kind}_array")((1, 1)))
    parts, frames = serialize_parts(arrays)
    del header["frame-nbytes"], header["writeable"]
    with pytest.raises(DeserializationError, match="repeated"):
        deserialize(forge(header, shape=shape, parts=parts), frames, accepted)


def test_matrix_whose_arrays_repeat_themselves_comes_back() -> None:
    """Indices that are written out once; data as they are, one element of many."""
    n = 1000
    ones, zeros = np.broadcast_to(1.0, n), np.broadcast_to(np.int32(0), n)
    x = sp.coo_array((ones, (zeros, np.arange(n, dtype=np.int32))), (1, n))
    y = sp.csr_array((ones, zeros, np.array([0, n], np.int32)), (1, n))
    for sent in (x, y):
        sizes = [frame.nbytes for frame in frames_of(sent)[1]]
        assert sizes.count(8) <= 2
        for accepted in (None, SAFE):
            back = round_trip(sent, deserializers=accepted)
            assert np.array_equal(back.toarray(), sent.toarray())


# --- through a store -----------------------------------------------------------------------------

WORK = """
import numpy as np
from scipy import sparse
x = ref.get(mode=mode)
assert type(x).__name__ == "csr_array" and x.has_canonical_format
dense = x.toarray()
assert np.array_equal(x @ np.ones(x.shape[1]), dense.sum(axis=1))
assert np.array_equal((x + x.T.T).toarray(), dense * 2)
assert np.array_equal(x[3:7].toarray(), dense[3:7])
assert np.array_equal(x[:, [1, 3]].toarray(), dense[:, [1, 3]])
assert x.max() == dense.max() and (x != x).nnz == 0
try:
    x.data[0] = -5
except ValueError:
    print("read-only")
else:
    print("written")
"""


@lock_free_only
@pytest.mark.parametrize("mode", MODES)
def test_matrix_works_in_another_process_in_each_mode(
    store: Store, run_python: RunPython, mode: str
) -> None:
    """On memory that must not be written too; what is written is seen if the mode is shared."""
    x = make("csr", shape=(300, 200))
    x.sum_duplicates()
    ref = store.put(x)
    printed = run_python(WORK, ref=ref, mode=mode)
    assert printed == ("read-only" if mode == "readonly" else "written")
    assert (ref.get().data[0] == -5) == (mode == "shared")


def test_matrix_lies_in_the_store_once_and_pins_it(store: Store) -> None:
    """Any of its arrays keeps the object."""
    x = make("csc", shape=(300, 200))
    ref = store.put(x)
    data = ref.get().data
    assert address(data) == address(ref.get().data)
    ref.delete()
    assert np.array_equal(data, x.data)
    assert used(store) > 0
    del data
    assert used(store) == 0
