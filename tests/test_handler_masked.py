"""Masked arrays: data, mask, fill value and hardness come back, without a copy of either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from family_helpers import own_handlers, travel
from numpy.ma import mrecords
from roundtrips import SAFE, forge, round_trip

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization import deserialize, register_serialization, serialize
from shmstore.serialization.parts import serialize_parts

MODES = ("shared", "readonly", "private", "copy")


class MyMasked(np.ma.MaskedArray):  # type: ignore[type-arg]
    """A subclass."""


MASKED: dict[str, Any] = {
    "plain": np.ma.MaskedArray([1.0, 2.0, 3.0], [False, True, False]),
    "no mask": np.ma.MaskedArray([1, 2]),
    "mask of one value": np.ma.MaskedArray([1, 2], mask=False),
    "all masked": np.ma.MaskedArray([1, 2], mask=True),
    "fill value": np.ma.MaskedArray([1, 2], [True, False], fill_value=7),
    "fill value of time": np.ma.MaskedArray(
        np.array(["2024-01-01", "NaT"], "M8[D]"), [True, False], fill_value=np.datetime64("1999")
    ),
    "fill value of text": np.ma.MaskedArray(["a", "b"], [True, False], fill_value="zz"),
    "hard": np.ma.MaskedArray([1, 2], [True, False], hard_mask=True),
    "two axes, Fortran": np.ma.MaskedArray(
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.eye(2, 3, dtype=bool)
    ),
    "strided": np.ma.MaskedArray(np.arange(12), np.arange(12) % 3 == 0)[::-2],
    "no dimension": np.ma.MaskedArray(np.float64(1), True),  # noqa: FBT003 - a mask
    "empty": np.ma.MaskedArray(np.zeros((0, 3))),
    "records": np.ma.MaskedArray(
        np.zeros(2, [("a", "i4"), ("b", "f8")]), [(True, False), (False, True)]
    ),
    "objects": np.ma.MaskedArray(
        np.array([{"a": 1}, None, [2]], object), [False, True, False], fill_value="?"
    ),
}


def assert_same(back: Any, x: Any) -> None:
    """Compare everything that a masked array is."""
    assert type(back) is type(x)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert back.data.tolist() == x.data.tolist()
    assert (back.mask is np.ma.nomask) == (x.mask is np.ma.nomask)
    assert np.asarray(back.mask).tolist() == np.asarray(x.mask).tolist()
    assert back.hardmask == x.hardmask
    assert (back._fill_value is None) == (x._fill_value is None)
    assert str(back.fill_value) == str(x.fill_value)
    assert str(back) == str(x)


@pytest.mark.row("S98")
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("nested", [False, True])
def test_masked_array_comes_back_with_mask_fill_value_and_hardness(
    name: str, *, nested: bool
) -> None:
    """Alone and inside of a pickle; a fill value that nobody chose stays so."""
    x = MASKED[name]
    for way in (travel, round_trip):
        back = way([x])[0] if nested else way(x)
        assert_same(back, x)


@pytest.mark.row("S98")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MASKED)
def test_masked_array_of_a_store_is_the_same_in_each_mode(
    store: Store, name: str, mode: str
) -> None:
    """Over shared memory."""
    back = store.put(MASKED[name]).get(mode=mode)
    assert_same(back, MASKED[name])
    del back


@pytest.mark.row("S98", "F27")
@pytest.mark.parametrize("flags", [(True, True), (False, True), (True, False)])
def test_masked_array_shares_data_and_mask_with_their_flags(flags: tuple[bool, bool]) -> None:
    """Neither is copied on either side."""
    data, mask = np.arange(3.0), np.array([True, False, True])
    x = np.ma.MaskedArray(data, mask, copy=False)
    data.flags.writeable, mask.flags.writeable = flags
    x = np.ma.MaskedArray(data, mask, copy=False)
    header, frames = serialize(x)
    found = [np.frombuffer(frame, np.uint8) for frame in frames]
    assert np.shares_memory(found[0], data)
    assert np.shares_memory(found[1], mask)
    assert header["writeable"] == flags
    back = deserialize(header, frames)
    assert np.shares_memory(back.data, data)
    assert np.shares_memory(back.mask, mask)
    assert back.data.flags.writeable is flags[0]


@pytest.mark.row("S98", "S15")
def test_masked_array_hands_the_context_to_its_parts() -> None:
    """As to any other part."""
    seen = []

    def dumps(_: Any, context: Any) -> Any:
        seen.append(context)
        return {}, []

    with own_handlers():
        register_serialization(np.ndarray, dumps, lambda *_: None)
        serialize(MASKED["plain"], context={"a": 1}, on_error="raise")
    assert seen[:2] == [{"a": 1}, {"a": 1}]


@pytest.mark.row("S98", "F05")
def test_masked_array_of_a_subclass_or_with_notes_keeps_them() -> None:
    """By its own pickle."""
    x = MyMasked([1, 2], [True, False])
    assert type(travel(x)) is MyMasked
    records = mrecords.fromarrays([np.array([1, 2]), np.array([3.0, 4.0])], names="a,b")
    assert type(travel(records)) is type(records)
    noted = np.ma.MaskedArray([1, 2], [True, False])
    noted._basedict = {"note": 1}
    assert travel(noted).mask.tolist() == [True, False]


@pytest.mark.row("S99")
def test_masked_constant_is_itself_wherever_it_arrives() -> None:
    """Alone, nested, and for those who accept no pickle; it has no frames."""
    header, frames = serialize(np.ma.masked)
    assert frames == []
    assert deserialize(header, frames, SAFE) is np.ma.masked
    assert travel([np.ma.masked, 1])[0] is np.ma.masked
    assert travel({"k": (np.ma.masked,)})["k"][0] is np.ma.masked
    with Store.create(capacity="1MiB") as store:
        assert store.put(np.ma.masked).get() is np.ma.masked


@pytest.mark.row("S98", "F21")
@pytest.mark.parametrize(
    "changes",
    [{"parts": {}}, {"parts": None}, {"parts": {"data": {}}}, {"hard": []}, {"parts": [1]}],
    ids=str,
)
def test_masked_array_whose_header_is_forged_is_refused(changes: Any) -> None:
    """Or, where nothing is lost by it, read."""
    header, frames = serialize(MASKED["plain"])
    if changes == {"hard": []}:
        assert not deserialize(forge(header, **changes), frames).hardmask
        return
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **changes), frames)


@pytest.mark.row("S98", "F21")
def test_masked_array_whose_parts_do_not_fit_each_other_is_refused() -> None:
    """Frames left over, missing, or taken twice."""
    header, frames = serialize(MASKED["plain"])
    parts = header["sub-header"]["parts"]
    for forged in (
        {**parts, "mask": {**parts["mask"], "stop": 9}},
        {"data": parts["data"]},
        {**parts, "mask": parts["data"]},
    ):
        with pytest.raises(DeserializationError):
            deserialize(forge(header, parts=forged), frames)


MANY = np.broadcast_to(np.int64(1), 1 << 40)
TWO = np.arange(2)
BOMBS: dict[str, dict[str, Any]] = {
    "one mask for many": {"data": MANY, "mask": np.array([True])},
    "a mask of numbers": {"data": MANY, "mask": MANY},
    "fill values": {"data": TWO, "fill_value": MANY},
    "a fill value of another type": {"data": TWO, "fill_value": np.array(1.5)},
    "a mask of another shape": {"data": TWO, "mask": np.array([[True, False]])},
    "a mask of fields": {"data": TWO, "mask": np.zeros(2, [("a", bool)])},
    "a mask that is a list": {"data": TWO, "mask": [True, False]},
    "data that are bytes": {"data": b"ab"},
}


@pytest.mark.row("S98", "F21", "F43")
@pytest.mark.parametrize("accepted", [None, SAFE])
@pytest.mark.parametrize("name", BOMBS)
def test_masked_array_whose_parts_numpy_would_stretch_is_refused(name: str, accepted: Any) -> None:
    """To terabytes, or to what nobody put."""
    header, _ = serialize(MASKED["plain"])
    parts, frames = serialize_parts(BOMBS[name], serializers=("custom", "msgpack"))
    del header["frame-nbytes"], header["writeable"]
    with pytest.raises(CorruptHeaderError, match="of a masked array"):
        deserialize(forge(header, parts=parts), frames, accepted)


@pytest.mark.row("S98")
def test_masked_array_that_repeats_itself_comes_back() -> None:
    """Its mask and its data are small, and stay so."""
    data, mask = np.broadcast_to(1.5, 1 << 30), np.broadcast_to(np.bool_(1), 1 << 30)
    x = np.ma.MaskedArray(data, mask, copy=False, shrink=False)
    header, frames = serialize(x, on_error="raise")
    assert sum(len(frame) for frame in frames) < 100
    back = deserialize(header, frames, SAFE)
    assert back.shape == x.shape
    assert back[7] is np.ma.masked
