"""Whatever way an object is laid out, memory that a process has kept holds it as any other does."""

from __future__ import annotations

import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from family_helpers import own_handlers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from spares import make_quick
from stores import MakeStore, lock_free_only

from shmstore import ObjectRef
from shmstore.serialization import register_serialization
from shmstore.serialization.frames import Planned

pytestmark = lock_free_only  # under the lock nothing is kept

# So many large ones are kept of what is put, and more of what is small.
ROUNDS = 20


class Laid(NamedTuple):
    """What lies in the header, and what in the frames."""

    text: str
    frames: list[Any]


def _plan(content: bytes) -> Planned:
    return Planned(len(content), lambda target: target.__setitem__(slice(None), content))


SIZES = st.sampled_from([0, 1, 7, 63, 64, 65, 250, 1000, 4096, 70_000, 300_001])
CONTENTS = st.builds(lambda size, byte: bytes([byte]) * size, SIZES, st.integers(0, 255))
FRAMES = st.tuples(CONTENTS, st.sampled_from([bytes, bytearray, memoryview, _plan]))
OBJECTS = st.tuples(st.integers(0, 700).map("x".__mul__), st.lists(FRAMES, max_size=4))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "readonly": st.booleans(),
        "compression": st.just("zlib"),
        "ttl": st.just(1000),
        "key": st.just("k"),
    },
)


@pytest.fixture
def laid() -> Iterator[None]:
    """Let objects of that kind be stored as they say."""
    with own_handlers():
        register_serialization(
            Laid,
            lambda x: ({"text": x.text}, [make(content) for content, make in x.frames]),
            lambda header, frames: Laid(header["text"], frames),
        )
        yield


@pytest.mark.usefixtures("laid")
@pytest.mark.parametrize("checksum", [False, True])
def test_kept_memory_holds_every_layout(make_store: MakeStore, *, checksum: bool) -> None:
    """And leaves the slots and the memory beside it as they are."""
    store = make_quick(make_store, checksum=checksum)

    @settings(deadline=None, max_examples=150)
    @given(OBJECTS, OPTIONS, st.booleans())
    def compare(made: Any, options: dict[str, Any], small: bool) -> None:  # noqa: FBT001 - drawn
        obj = Laid(*made)
        for _ in range(ROUNDS):
            store.put(obj, **options).delete()
        before = [store.put([number] * 9 if small else obj) for number in range(3)]
        refs = [store.put(obj, **options) for _ in range(3)]
        named = "key" in options
        for ref in refs[-1:] if named else refs:
            _check(ref, obj, options)
        for number, ref in enumerate(before):
            if small:
                assert ref.get() == [number] * 9
            else:
                _check(ref, obj, {})
        assert not store.check()
        for ref in before + refs[-1:] if named else before + refs:
            ref.delete()

    compare()
    stats = store.stats()
    assert (stats.used, stats.objects) == (0, 0)
    assert stats.free == stats.capacity


def _check(ref: ObjectRef, obj: Laid, options: dict[str, Any]) -> None:
    got = ref.get()
    assert got.text == obj.text
    assert [bytes(frame) for frame in got.frames] == [content for content, _ in obj.frames]
    if options.get("readonly"):
        assert all(memoryview(frame).readonly for frame in got.frames if len(frame))


DTYPES = some.scalar_dtypes() | some.array_dtypes() | some.unicode_string_dtypes(max_len=99)
ARRAYS = some.arrays(DTYPES, some.array_shapes(min_dims=0, max_side=7), fill=st.nothing())
WAYS = {
    "as it is": lambda x: x,
    "repeated": lambda x: np.repeat(x[np.newaxis], 60, axis=0),
    "in the order of Fortran": np.asfortranarray,
    "backwards": lambda x: x[..., ::-1] if x.ndim else x,
    "without elements": lambda x: x[:0] if x.ndim else x,
    "masked": lambda x: np.ma.array(x, mask=False) if x.dtype.kind in "biuf" else x,
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=900),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@pytest.mark.parametrize("checksum", [False, True])
def test_kept_memory_holds_every_array(make_store: MakeStore, *, checksum: bool) -> None:
    """Of each dtype, shape and order, read-only or not."""
    store = make_quick(make_store, checksum=checksum)

    @settings(deadline=None, max_examples=150)
    @given(ARRAYS, st.sampled_from(sorted(WAYS)), st.booleans(), st.sampled_from([None, True]))
    def compare(x: Any, way: str, writeable: bool, readonly: bool | None) -> None:  # noqa: FBT001 - drawn
        x = WAYS[way](x)
        x.flags.writeable = writeable and x.flags.owndata
        refs = [store.put(x, readonly=readonly) for _ in range(ROUNDS)]
        for ref in refs:
            ref.delete()
        refs = [store.put(x, readonly=readonly), store.put(np.zeros_like(x)), store.put(x)]
        for ref, expected in zip(refs, (x, np.zeros_like(x), x), strict=True):
            got = ref.get()
            assert (got.dtype, got.shape, type(got)) == (x.dtype, x.shape, type(x))
            assert got.tobytes() == expected.tobytes()
        kept = x.flags.writeable and not readonly and x.nbytes > 0
        assert not kept or refs[0].get().flags.writeable
        assert not (readonly and x.nbytes) or not refs[0].get().flags.writeable
        assert not store.check()
        for ref in refs:
            ref.delete()

    compare()
    assert store.stats().used == 0


def test_kept_slots_and_memory_hold_every_value(make_store: MakeStore) -> None:
    """Of builtin types, whether it fits into a slot or not."""
    store = make_quick(make_store)

    @settings(deadline=None, max_examples=150)
    @given(VALUES, st.sampled_from([0, 10, 240, 3000]))
    def compare(x: Any, more: int) -> None:
        obj = [x, "y" * more] if more else x
        for _ in range(ROUNDS):
            store.put(obj).delete()
        refs = [store.put(obj), store.put(array.array("i", [1, 2])), store.put(obj)]
        assert refs[0].get() == refs[2].get() == obj
        assert type(refs[0].get()) is type(obj)
        assert refs[1].get().tolist() == [1, 2]
        assert not store.check()
        for ref in refs:
            ref.delete()

    compare()
    assert store.stats().used == 0
