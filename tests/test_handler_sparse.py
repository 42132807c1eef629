"""Arrays of the package sparse: what is kept, what is shared, what is refused."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
from roundtrips import SAFE, address, forge, frames_of, round_trip
from stores import RunPython, lock_free_only

from shmstore import Store
from shmstore.errors import DeserializationError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.parts import serialize_parts

sparse = pytest.importorskip("sparse")

MODES = ("shared", "readonly", "private", "copy")
CLASSES = {cls.__name__: cls for cls in (sparse.COO, sparse.GCXS, sparse.DOK)}
PARTS = {"COO": ("coords", "data"), "GCXS": ("indptr", "indices", "data")}


def make(name: str, shape: tuple[int, ...] = (4, 5), fill: Any = 0, dtype: str = "f8") -> Any:
    """Return an array with some elements that are not the fill value."""
    dense = np.full(shape, fill, dtype)
    dense.flat[::3] = 1
    coo = sparse.COO.from_numpy(dense, fill_value=dense.dtype.type(fill))
    return coo if name == "COO" else coo.asformat(name.lower())


def same(x: Any, y: Any) -> bool:
    """Return whether two arrays agree in class, shape, dtype, fill value and elements."""
    return (
        type(x) is type(y)
        and (x.shape, x.dtype, x.nnz) == (y.shape, y.dtype, y.nnz)
        and (np.asarray(x.fill_value).dtype == np.asarray(y.fill_value).dtype)
        and np.array_equal(x.fill_value, y.fill_value, equal_nan=x.dtype.kind in "fc")
        and np.array_equal(x.todense(), y.todense(), equal_nan=x.dtype.kind in "fc")
    )


@pytest.mark.row("S104", "F28")
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("dtype", "fill"), [("f8", 7), ("f4", np.nan), ("i2", -3), ("?", True), ("c16", 1j), ("u1", 0)]
)
def test_fill_value_is_kept(name: str, dtype: str, fill: Any) -> None:
    """Without a pickle; what is not stored is what it was."""
    x = make(name, fill=fill, dtype=dtype)
    assert same(x, round_trip(x, deserializers=SAFE))
    assert same(x, round_trip([x])[0])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4), (2, 0, 3), (2, 1, 2, 1, 2)])
def test_array_of_each_shape_keeps_it(name: str, shape: tuple[int, ...]) -> None:
    """From no dimension on."""
    x = make(name, shape)
    assert same(x, round_trip(x, deserializers=SAFE))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_gcxs_keeps_its_compressed_axes(axes: tuple[int, ...]) -> None:
    """They say what its arrays mean."""
    x = sparse.GCXS.from_numpy(np.arange(24).reshape(2, 3, 4) % 5, compressed_axes=axes)
    got = round_trip(x, deserializers=SAFE)
    assert same(x, got)
    assert got.compressed_axes == x.compressed_axes


@pytest.mark.parametrize("name", PARTS)
def test_component_arrays_are_the_frames(name: str) -> None:
    """Neither put nor get copies them."""
    x = make(name, (50, 40))
    header, frames = serialize(x, on_error="raise")
    got = deserialize(header, frames)
    expected = [address(getattr(x, part)) for part in PARTS[name]]
    assert [address(frame) for frame in frames] == expected
    assert [address(getattr(got, part)) for part in PARTS[name]] == expected


def test_cache_of_a_coo_stays_on() -> None:
    """It is a choice of its user; what it holds is not stored."""
    x = make("COO")
    x.enable_caching()
    x.transpose()
    got = round_trip(x)
    assert got._cache is not None
    assert not got._cache
    assert round_trip(make("COO"))._cache is None


def test_dok_can_be_changed_as_before() -> None:
    """It has a dict of its own."""
    x = make("DOK", fill=2)
    got = round_trip(x)
    for one in (x, got):
        one[1, 1] = 9
        one[0, 0] = 2
    assert same(x, got)


class Labelled(sparse.COO):
    """A subclass of a user."""


def test_subclass_keeps_its_class() -> None:
    """By pickle."""
    x = Labelled(make("COO", fill=3))
    header, frames = frames_of(x)
    assert header["serializer"] == "pickle"
    assert same(x, deserialize(header, frames))


# --- forged headers ------------------------------------------------------------------------------

FORGED: dict[str, tuple[str, dict[str, Any]]] = {
    "dimensions": ("COO", {"shape": [4, 5, 1]}),
    "negative": ("COO", {"shape": [-4, -5]}),
    "short fill value": ("COO", {"fill": b"\0\0\0\0"}),
    "two fill values": ("GCXS", {"fill": bytes(16)}),
    "no fill value": ("DOK", {"fill": None}),
    "rows": ("GCXS", {"shape": [5, 5]}),
    "no axes": ("GCXS", {"axes": []}),
    "the same axis twice": ("GCXS", {"axes": [0, 0]}),
    "no such axis": ("GCXS", {"axes": [2]}),
    "a huge axis": ("GCXS", {"shape": [4, 1 << 62, 1 << 62]}),
    "no parts": ("DOK", {"parts": {}}),
}


@pytest.mark.row("F21")
@pytest.mark.parametrize("name", FORGED)
def test_forged_header_of_a_sparse_array_is_an_error(name: str) -> None:
    """What costs nothing to check is always checked."""
    cls, changes = FORGED[name]
    header, frames = frames_of(make(cls))
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **changes), frames)


@pytest.mark.row("F43")
@pytest.mark.parametrize(("name", "value"), list(itertools.product(CLASSES, [-1, 1000])))
def test_reader_that_accepts_no_pickles_looks_at_each_index(name: str, value: int) -> None:
    """Compiled code would follow it out of the arrays."""
    header, frames = frames_of(make(name))
    frame = frames[1] if name == "GCXS" else frames[0]
    np.frombuffer(frame, np.int64)[2] = value
    with pytest.raises(DeserializationError, match="indices"):
        deserialize(header, frames, deserializers=SAFE)


MANY = 1 << 40
ZEROS = np.broadcast_to(np.int64(0), MANY)
BOMBS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    name: (
        cls,
        shape,
        {"coords": np.broadcast_to(np.int64(0), (len(shape), MANY)), "data": ZEROS},
    )
    for name, (cls, shape) in {
        "coordinates": ("COO", [1, 1]),
        "keys": ("DOK", [1, 1]),
        "no coordinates": ("COO", []),
        "keys of nothing": ("DOK", []),
    }.items()
} | {
    "rows": ("GCXS", [MANY - 1, 1], {"indptr": ZEROS, "indices": ZEROS[:1], "data": ZEROS[:1]}),
    "indices": ("GCXS", [1, 1], {"indptr": np.array([0, 1]), "indices": ZEROS, "data": ZEROS}),
}


@pytest.mark.row("F21", "F43")
@pytest.mark.parametrize("accepted", [None, SAFE])
@pytest.mark.parametrize("name", BOMBS)
def test_arrays_that_show_few_bytes_as_many_are_refused(name: str, accepted: Any) -> None:
    """All work is done on all of them, for years, in terabytes."""
    cls, shape, arrays = BOMBS[name]
    header, _ = frames_of(make(cls, dtype="i8"))
    changes: dict[str, Any] = {"axes": [0]} if cls == "GCXS" else {}
    changes["parts"], frames = serialize_parts(arrays)
    del header["frame-nbytes"], header["writeable"]
    with pytest.raises(DeserializationError, match=r"repeated|has length"):
        deserialize(forge(header, shape=shape, **changes), frames, accepted)


@pytest.mark.parametrize("accepted", [None, SAFE])
def test_array_whose_elements_are_one_comes_back(accepted: Any) -> None:
    """The package itself shows one number as many; coordinates may be so too."""
    coords = np.stack([np.zeros(9, int), np.arange(9)])
    for x in (
        sparse.COO(coords, 7, (1, 9)),
        sparse.COO(np.broadcast_to(coords[1], (2, 9)), np.arange(9), (9, 9)),
    ):
        assert same(x, round_trip(x, deserializers=accepted))


# --- through a store -----------------------------------------------------------------------------

WORK = """
import numpy as np, sparse
for x in ref.get(mode=mode)["arrays"] + [single.get(mode=mode)]:
    dense = x.todense()
    assert x.fill_value == 7 and dense[0, 1] == 7 and dense[0, 0] == 1
    assert np.array_equal(np.asarray((x + 1).todense()), dense + 1)
    assert np.array_equal(x[1:3].todense(), dense[1:3])
print(single.get(mode=mode).data.flags.writeable)
"""


@lock_free_only
@pytest.mark.parametrize("mode", MODES)
def test_arrays_work_in_another_process_in_each_mode(
    store: Store, run_python: RunPython, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """By themselves and inside of other objects."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than all of the work
    single = store.put(make("COO", (40, 50), fill=7))
    arrays = [make(name, (40, 50), fill=7) for name in ("COO", "GCXS")]
    before = copy.deepcopy(arrays)
    ref = store.put({"arrays": arrays})
    assert run_python(WORK, ref=ref, single=single, mode=mode) == str(mode != "readonly")
    assert all(same(x, y) for x, y in zip(before, ref.get()["arrays"], strict=True))
