"""How does a masked array of NumPy travel: data, mask, and a fill value that was chosen?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import Frame
from shmstore.serialization.parts import deserialize_parts, serialize_parts
from shmstore.serialization.registry import own_way, register_reducer, register_serialization


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(np.ma.MaskedArray, serialize_masked, deserialize_masked)
    register_serialization(type(np.ma.masked), serialize_nothing, deserialize_masked_constant)
    register_reducer(type(np.ma.masked), own_way)


def serialize_masked(x: Any, context: dict[str, Any] | None = None) -> tuple[Any, list[Frame]]:
    """Return data, mask and fill value as parts."""
    if type(x.data) is not np.ndarray or x.__dict__.get("_basedict"):
        raise NotImplementedError("more than data and mask")
    parts = {"data": x.data}
    if x.mask is not np.ma.nomask:
        parts["mask"] = x.mask
    if x._fill_value is not None:  # noqa: SLF001 - x.fill_value does not tell whether it was chosen
        parts["fill_value"] = np.array(x.fill_value, x.dtype)
        if parts["fill_value"].ndim:
            raise NotImplementedError("a fill value that is an array")
    headers, frames = serialize_parts(parts, context)
    return {"parts": headers, "hard": bool(x.hardmask)}, frames


def deserialize_masked(header: dict[str, Any], frames: Sequence[Frame]) -> Any:
    """Return a masked array over data and mask."""
    parts = deserialize_parts(header["parts"], frames)
    data = parts.get("data")
    if type(data) is not np.ndarray:
        raise _wrong("data", data)
    mask = parts.get("mask", np.ma.nomask)
    if mask is not np.ma.nomask:
        _check(mask, "mask", data.shape, np.ma.make_mask_descr(data.dtype))
    x: Any = np.ma.MaskedArray(data, mask, copy=False, hard_mask=bool(header["hard"]))
    if "fill_value" in parts:
        _check(parts["fill_value"], "fill_value", (), data.dtype)
        x.fill_value = parts["fill_value"][()]
    return x


def _check(part: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless a part is an array that NumPy takes as it is: others it would stretch."""
    if type(part) is not np.ndarray or part.shape != shape or part.dtype != dtype:
        raise _wrong(name, part)


def _wrong(name: str, part: Any) -> CorruptHeaderError:
    found = f"{type(part).__name__} of {getattr(part, 'dtype', None)}"
    return CorruptHeaderError(
        f"{name!r} of a masked array is a {found:.200}, and does not fit", key=name, found=found
    )


def serialize_nothing(_: Any) -> tuple[dict[str, Any], list[Frame]]:
    """Return an empty header: there is one such object in each process."""
    return {}, []


def deserialize_masked_constant(_: Any, __: Any) -> Any:
    """Return `numpy.ma.masked`."""
    return np.ma.masked
