"""Markers inside of messages: what they are equal to, and what stands for them in the end."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import numpy as np
import pytest
from family_helpers import travel
from specimens import library

from shmstore import Store
from shmstore.serialization import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    content_hash,
    deserialize,
    nested_deserialize,
    serialize,
    to_serialize,
)

WRAPPERS = [Serialize, ToPickle]
DONE = [Serialized, Pickled]


# --- what data is marked ------------------------------------------------------------------------


@pytest.mark.row("S09")
def test_to_serialize_is_another_name_for_the_marker() -> None:
    """The same class."""
    assert to_serialize is Serialize


@pytest.mark.row("S10", "S12")
@pytest.mark.parametrize("marker", WRAPPERS)
def test_marker_of_equal_data_is_equal_and_has_its_hash(marker: Any) -> None:
    """Other classes are never equal to it; data without a hash gives none."""
    one, same, other = marker((1, 2)), marker((1, 2)), marker((1, 3))
    assert one == same
    assert not one != same  # noqa: SIM202 - both operators are meant
    assert one != other
    assert hash(one) == hash((1, 2))
    assert {one, same, other} == {one, other}
    assert one != (1, 2)
    assert marker(1) != next(other for other in WRAPPERS if other is not marker)(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(marker([1]))


@pytest.mark.row("S10", "F33")
@pytest.mark.parametrize("marker", WRAPPERS)
@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (np.arange(3), np.arange(3), True),
        (np.arange(3), np.arange(1, 4), False),
        (np.zeros(0), np.zeros(0), True),
        (np.arange(3), 3, False),
        (np.zeros((2, 2)), np.zeros(2), False),
        (np.zeros((2, 2)), 0, False),
    ],
)
def test_marker_of_arrays_is_equal_or_not(
    marker: Any, one: Any, other: Any, *, equal: bool
) -> None:
    """Never an array, never an error."""
    assert (marker(one) == marker(other)) is equal
    assert (marker(other) == marker(one)) is equal
    assert (marker(one) != marker(other)) is not equal


@pytest.mark.row("S10", "F33")
@pytest.mark.parametrize("marker", WRAPPERS)
def test_marker_of_the_same_object_is_equal_without_asking_it(marker: Any) -> None:
    """Also where the object is not equal to itself, or fails."""

    class Touchy:
        def __eq__(self, _: object) -> bool:
            raise RuntimeError("do not ask")

        __hash__ = None  # type: ignore[assignment]

    for x in (float("nan"), np.array([np.nan]), Touchy(), [np.zeros(2)]):
        assert marker(x) == marker(x)


@pytest.mark.row("S10", "F33")
@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (np.arange(3), np.arange(4), False),
        (np.zeros((0, 2)), np.zeros(0), False),
        (np.zeros((1, 1)), np.zeros(1), False),
        ([np.zeros(2)], [np.zeros(2)], True),
        ({"a": np.zeros(2)}, {"a": np.ones(2)}, False),
    ],
    ids=[
        "other length",
        "empty of other shape",
        "one element of other shape",
        "in a list",
        "in a dict",
    ],
)
def test_marker_of_arrays_that_are_hard_to_compare_is_equal_or_not(
    one: Any, other: Any, *, equal: bool
) -> None:
    """Arrays of other shapes, and arrays inside of containers."""
    assert (Serialize(one) == Serialize(other)) is equal
    assert (ToPickle(one) != ToPickle(other)) is not equal


@pytest.mark.row("S10", "F33")
def test_marker_of_tables_is_equal_or_not() -> None:
    """Tables with other columns refuse to be compared."""
    pandas = library("pandas")
    one, same, other = (pandas.DataFrame({name: [1, 2]}) for name in "aab")
    assert Serialize(one) == Serialize(same)
    assert Serialize(one) != Serialize(other)


@pytest.mark.row("S10", "S12")
@pytest.mark.parametrize("marker", WRAPPERS)
def test_marker_shows_its_data_but_not_all_of_it(marker: Any) -> None:
    """An error message with a marker in it stays readable."""
    assert repr(marker([1])) == f"<{marker.__name__}: [1]>"
    assert len(repr(marker("x" * 1_000_000))) < 300


@pytest.mark.row("S12")
def test_marker_to_pickle_and_one_of_a_subclass_are_unequal() -> None:
    """Whichever stands on the left."""

    class Special(ToPickle):
        pass

    assert ToPickle(1) != Special(1)
    assert Special(1) != ToPickle(1)
    assert Special(1) == Special(1)


@pytest.mark.row("S12", "S13")
def test_markers_of_pickles_are_nothing_special_to_serialize() -> None:
    """They are pickled themselves; only messages know them."""
    back = travel(ToPickle([1]))
    assert type(back) is ToPickle
    assert back == ToPickle([1])
    done = Pickled({"a": 1}, [b"x"])
    assert travel(done) == done


# --- what is done already -----------------------------------------------------------------------


@pytest.mark.row("S11", "S13")
@pytest.mark.parametrize("done", DONE)
def test_done_object_is_equal_by_header_and_frames(done: Any) -> None:
    """Frames of equal bytes are equal; it cannot be hashed, for its header can change."""
    x = done({"a": 1}, [b"x", b"y"])
    assert x == done({"a": 1}, [b"x", b"y"])
    assert x == done({"a": 1}, [memoryview(b"x"), bytearray(b"y")])
    assert x != done({"a": 2}, [b"x", b"y"])
    assert x != done({"a": 1}, [b"x"])
    assert x != done({"a": 1}, (b"x", b"y"))
    assert x != ({"a": 1}, [b"x", b"y"])
    assert x != next(other for other in DONE if other is not done)({"a": 1}, [b"x", b"y"])
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


@pytest.mark.row("S13")
def test_done_pickle_and_one_of_a_subclass_compare_as_to_pickle_does() -> None:
    """By the class of the left one."""

    class Special(Pickled):
        pass

    assert Special({}, []) != Pickled({}, [])
    assert Pickled({}, []) != Special({}, [])


@pytest.mark.row("S11")
def test_done_object_shows_its_type_and_no_data() -> None:
    """A frame may be gigabytes."""
    header, frames = serialize(np.zeros(1000))
    assert repr(Serialized(header, frames)) == "<Serialized: numpy.ndarray in 1 frames>"
    assert repr(Pickled({}, [])) == "<Pickled: object in 0 frames>"


@pytest.mark.row("S11", "S04")
@pytest.mark.parametrize("x", [np.arange(3), {"a": np.zeros(2)}, b"abc", "text", [1, {2}]], ids=str)
def test_object_got_without_decoding_can_be_put_and_read(store: Store, x: Any) -> None:
    """It comes out of one store and goes into another as it is."""
    done = store.get(store.put(x, key="k"), decode=False)
    assert type(done) is Serialized
    assert "key" not in done.header
    again = store.put(done)
    assert repr(deserialize(done.header, done.frames)) == repr(x)
    assert repr(again.get()) == repr(x)
    assert store.info(again).type == store.info("k").type
    del done


@pytest.mark.row("S14")
def test_content_hash_tells_contents_apart() -> None:
    """Header, frames and where a frame ends all count; what holds the frames does not."""
    header, frames = serialize([np.arange(3), b"x"], iterate_collection=True)
    known = content_hash(header, frames)
    assert known == content_hash(dict(header), tuple(bytes(frame) for frame in frames))
    assert known == Serialized(header, frames).content_hash()
    assert len(known) == 32
    others = {
        known,
        content_hash({**header, "a": 1}, frames),
        content_hash(header, frames[:1]),
        content_hash(header, [*frames, b""]),
        content_hash(header, frames[::-1]),
        content_hash({}, [b"ab", b"c"]),
        content_hash({}, [b"a", b"bc"]),
        content_hash({}, [b"abc"]),
    }
    assert len(others) == 8


@pytest.mark.row("S14")
def test_content_hash_is_that_of_the_bytes_in_memory_order() -> None:
    """Any buffer is hashed, in the process that made it or in another one."""
    for x in (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))):
        header, frames = serialize(x)
        again = content_hash(header, [bytes(frame) for frame in frames])
        assert content_hash(header, frames) == again
    assert content_hash({}, []) == content_hash({}, ())


# --- messages with markers in them --------------------------------------------------------------


@pytest.mark.row("S77", "S78", "F41")
def test_markers_in_a_message_are_replaced_by_what_they_stand_for() -> None:
    """In dicts, lists and tuples, at any depth and at the top."""
    done = Serialized(*serialize(np.arange(3)))
    pickled = Pickled(*serialize({1}, ["pickle"]))
    message = {"a": [Serialize(1), (ToPickle("x"), {"b": done})], "c": pickled, "d": 2}
    found = nested_deserialize(message)
    assert found["a"][0] == 1
    assert found["a"][1][0] == "x"
    assert found["a"][1][1]["b"].tolist() == [0, 1, 2]
    assert (found["c"], found["d"]) == ({1}, 2)
    for marker, data in ((Serialize(1), 1), (ToPickle(2), 2), (pickled, {1})):
        assert nested_deserialize(marker) == data


@pytest.mark.row("S77")
def test_message_whose_markers_were_replaced_is_a_copy() -> None:
    """What is passed in is not changed; each dict and list that was entered is another one."""
    inner = [Serialize(1)]
    message = {"a": inner, "b": {"c": 1}}
    before = pickle.dumps(message)
    found = nested_deserialize(message)
    assert pickle.dumps(message) == before
    assert inner == [Serialize(1)]
    assert found["b"] == message["b"]
    assert found["b"] is not message["b"]
    assert found["a"] is not inner


@pytest.mark.row("S77")
def test_markers_elsewhere_than_in_plain_containers_stay() -> None:
    """In sets, subclasses, keys, other objects, and in the data of a marker."""

    class Special(Serialize):
        pass

    marker = Serialize(1)
    ordered = collections.OrderedDict(a=marker)
    for x in ({marker}, ordered, {marker: 1}, frozenset({marker}), Special(2)):
        assert nested_deserialize(x) == x
    assert nested_deserialize([ordered])[0] is ordered
    assert nested_deserialize(Serialize([marker])) == [marker]


@pytest.mark.row("S77")
@pytest.mark.parametrize("done", DONE)
def test_damage_inside_of_a_message_is_an_error(done: Any) -> None:
    """It is not left in place."""
    header, _ = serialize(np.arange(3))
    with pytest.raises(ValueError, match="frames of"):
        nested_deserialize({"a": done(header, [b"x"])})
