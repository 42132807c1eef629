"""Stores that keep checksums of the data: each byte that changes underneath is noticed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Flag, MakeStore, RunPython, lock_free_only

from shmstore import CorruptStoreError, ObjectRef, Store
from shmstore._check import DEEP
from shmstore._memory import layout as L
from shmstore._memory.segment import SEGMENT_NAME

GET_ALL = """
import shmstore
store = shmstore.Store.attach(path, readonly=readonly)
noticed = []
for target in targets:
    try:
        store.get(target)
    except shmstore.CorruptStoreError as error:
        noticed.append(error.slot)
print(noticed)
"""


def frozen(nbytes: int) -> np.ndarray:
    """Return a read-only array."""
    array = np.arange(nbytes, dtype=np.uint8)
    array.flags.writeable = False
    return array


SEALED: dict[str, tuple[Any, dict[str, Any]]] = {
    "read-only array": (frozen(5000), {}),
    "frozen array": (np.arange(500), {"readonly": True}),
    "stream of a pickle": (list(range(5000)), {}),
    "small stream": ({"a": "x" * 300}, {}),
    "bytes": (b"abc" * 5000, {}),
    "compressed": (np.zeros(50_000), {"readonly": True, "compression": "zlib"}),
    "buffers of a pickle": ([frozen(5000), frozen(10)], {}),
}
sealed = pytest.mark.parametrize("case", SEALED)


def put(store: Store, case: str) -> ObjectRef:
    """Put one of the objects above, between two others."""
    value, options = SEALED[case]
    store["before"] = frozen(100)
    ref = store.put(value, key="k", **options)
    store["after"] = frozen(100)
    return ref


def extent_of(store: Store, ref: ObjectRef) -> tuple[int, int]:
    """Return where the sealed frames of an object lie, as the slot says."""
    session: Any = store._session
    record = session.slots.read(ref._slot)
    assert record.kind & L.KIND_DATA_CRC
    return record.extent, record.data_nbytes


def flip(store: Store, offset: int, bit: int = 0) -> None:
    """Change one bit of the segment, behind the back of the store."""
    with Path(store.path, SEGMENT_NAME).open("r+b", buffering=0) as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), offset)


# --- what is noticed ------------------------------------------------------------------------------


@sealed
def test_every_place_is_covered(make_store: MakeStore, case: str) -> None:
    """`check(deep=True)` notices a flipped bit at the edges of an object and anywhere between."""
    store = make_store(checksum=True)
    ref = put(store, case)
    start, nbytes = extent_of(store, ref)
    chance = random.Random(case)
    for offset in {0, 1, nbytes - 1, *(chance.randrange(nbytes) for _ in range(20))}:
        bit = chance.randrange(8)
        flip(store, start + offset, bit)
        findings = store.check(deep=True)
        assert [finding.invariant for finding in findings] == [DEEP], offset
        assert f"slot {ref._slot} " in findings[0].message
        assert store.check() == []
        flip(store, start + offset, bit)
    assert store.check(deep=True) == []


@lock_free_only
@pytest.mark.parametrize("readonly", [False, True], ids=["reader", "read-only reader"])
def test_first_get_of_a_fresh_process_notices(
    make_store: MakeStore, run_python: RunPython, readonly: Flag, locked_reads: Flag
) -> None:
    """A process that comes to an object never sees wrong bytes, it gets CorruptStoreError."""
    store = make_store(checksum=True)
    refs = {}
    for case, (value, options) in SEALED.items():
        refs[case] = store.put(value, key=case, **options)
    facts = {"path": str(store.path), "targets": [*refs.values(), *refs], "readonly": readonly}
    assert run_python(GET_ALL, **facts) == "[]"
    places = [sum(extent_of(store, ref)) - 1 for ref in refs.values()]
    for place in places:
        flip(store, place)
    assert run_python(GET_ALL, **facts) == str([ref._slot for ref in refs.values()] * 2)
    for place in places:
        flip(store, place)


def test_damaged_object_does_not_keep_others_from_being_got(make_store: MakeStore) -> None:
    """Only the object whose bytes changed is refused, and it can be deleted."""
    store = make_store(checksum=True)
    ref = put(store, "bytes")
    flip(store, extent_of(store, ref)[0])
    session: Any = store._session
    session.plans.clear()
    with pytest.raises(CorruptStoreError, match=r"checksum of its data does not agree"):
        store["k"]
    assert store["before"].sum() == store["after"].sum() == frozen(100).sum()
    del store["k"]
    assert store.check(deep=True) == []


# --- what is not ----------------------------------------------------------------------------------


def test_what_readers_may_write_has_no_checksum(make_store: MakeStore) -> None:
    """Writing to a shared view, and nothing else, makes no finding."""
    store = make_store(checksum=True)
    mixed = {"writeable": np.zeros(3000), "frozen": frozen(3000)}
    store["mixed"] = mixed
    store["array"] = np.zeros(3000)
    store["array"][7] = 1
    store["mixed"]["writeable"][:] = 1
    assert store.check(deep=True) == []
    session: Any = store._session
    session.plans.clear()
    assert (store["array"].sum(), store["mixed"]["writeable"].sum()) == (1, 3000)
    record = session.slots.read(store.info("mixed").slot)
    segment = Path(store.path, SEGMENT_NAME).read_bytes()
    at = segment.index(mixed["frozen"].tobytes(), record.extent)
    flip(store, at + 2999)
    assert [finding.invariant for finding in store.check(deep=True)] == [DEEP]
    flip(store, at + 2999)


def test_store_without_checksums_keeps_none(store: Store) -> None:
    """The option is off by default: nothing is computed, nothing noticed in the data."""
    value, options = SEALED["frozen array"]
    ref = store.put(value, **options)
    session: Any = store._session
    record = session.slots.read(ref._slot)
    assert not record.kind & L.KIND_DATA_CRC
    flip(store, record.extent)
    assert store.check(deep=True) == []


@pytest.mark.parametrize("readonly", [False, True], ids=["writeable", "read-only"])
def test_array_built_in_place_is_sealed_at_its_end(make_store: MakeStore, readonly: Flag) -> None:
    """What was written in the block belongs to the checksum of a read-only array."""
    store = make_store(checksum=True)
    with store.allocate(5000, np.uint8, key="k", readonly=readonly) as array:
        array[:] = 3
    assert store.check(deep=True) == []
    assert (store["k"] == 3).all()
    session: Any = store._session
    flip(store, session.slots.read(store.info("k").slot).extent)
    assert len(store.check(deep=True)) == readonly
    del array, store["k"]


@pytest.mark.parametrize(
    "way",
    [
        lambda store, value: store.put_many({"k": value, "l": value}),
        lambda store, value: store.update(k=value),
        lambda store, value: store.put(value, key="k", ttl=1000),
        lambda store, value: store.setdefault("k", value),
    ],
    ids=["put_many", "update", "with ttl", "setdefault"],
)
def test_every_way_to_put_keeps_a_checksum(make_store: MakeStore, way: Any) -> None:
    """However an object comes into the store, a changed byte is noticed."""
    store = make_store(checksum=True)
    way(store, frozen(5000))
    session: Any = store._session
    flip(store, session.slots.read(store.info("k").slot).extent + 4999, 7)
    assert [finding.invariant for finding in store.check(deep=True)] == [DEEP]
    del store["k"]
