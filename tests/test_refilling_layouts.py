"""Whatever way an object is laid out, memory that a process has kept holds it as any other does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from family_helpers import own_handlers
from hypothesis import given, settings
from hypothesis import strategies as st
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
