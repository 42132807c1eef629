"""Objects stored compressed: when, how much they take, and what readers get."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shmstore import CodecNotFoundError, Store
from shmstore.serialization.compression import compressions

CODECS = [name for name in ("zlib", "lz4", "zstd", "snappy") if name in list(compressions)]
EVEN = np.repeat(np.arange(1000), 50)
NOISE = np.random.default_rng(1).integers(0, 2**63, 10_000)


@pytest.mark.row("S63", "S64", "F25")
@pytest.mark.parametrize("codec", [*CODECS, "auto"])
def test_object_compressed_takes_less_and_comes_back_the_same(store: Store, codec: str) -> None:
    """In all modes, with its flags, alone and among others."""
    locked = EVEN.copy()
    locked.flags.writeable = False
    for x, unwrap in ((EVEN, lambda y: y), ({"a": 1, "b": locked}, lambda y: y["b"])):
        ref = store.put(x, compression=codec)
        assert store.info(ref).stored_nbytes < EVEN.nbytes * 0.7
        original = unwrap(x)
        for mode in ("shared", "readonly", "private", "copy"):
            found = unwrap(ref.get(mode=mode))
            assert (found == original).all()
            expected = mode == "private" or (mode != "readonly" and original.flags.writeable)
            assert found.flags.writeable is expected


@pytest.mark.row("S64")
@pytest.mark.parametrize("codec", CODECS)
def test_object_that_does_not_shrink_is_stored_as_it_is(store: Store, codec: str) -> None:
    """Its readers get views on the shared memory, as without compression."""
    ref = store.put(NOISE, compression=codec)
    assert store.info(ref).stored_nbytes >= NOISE.nbytes
    one, other = ref.get(), ref.get()
    one[0] = 7
    assert other[0] == 7


@pytest.mark.row("F25")
def test_nothing_is_compressed_unless_it_is_asked_for(store: Store) -> None:
    """A get of a compressed object is a copy, so the default is without."""
    assert store.info(store.put(EVEN)).stored_nbytes >= EVEN.nbytes


def test_each_reader_of_a_compressed_object_has_memory_of_its_own(store: Store) -> None:
    """No write is seen by others, and no view pins anything."""
    ref = store.put(EVEN, compression="zlib")
    one, other = ref.get(), ref.get()
    one[0] = 7
    assert other[0] == 0
    assert store.info(ref).pinned_by == ()


def test_many_objects_are_compressed_by_put_many(store: Store) -> None:
    """Keys and references as without."""
    refs = store.put_many({"a": EVEN, "b": NOISE}, compression="zlib")
    assert (refs["a"].get() == EVEN).all()
    assert (store["b"] == NOISE).all()


@pytest.mark.row("S63")
@pytest.mark.parametrize("codec", ["gzip", "", 3])
def test_codec_that_is_unknown_is_an_error_before_anything_is_stored(
    store: Store, codec: Any
) -> None:
    """It names those that there are."""
    with pytest.raises(CodecNotFoundError, match="zlib"):
        store.put(EVEN, compression=codec)
    assert store.stats().objects == 0
