"""Why does a part of an object travel as it does, in plain words?

Only what was done is looked at: who reduced the object, and which frames came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from shmstore.serialization.dispatch import typename
from shmstore.serialization.explaining.tracing import (
    EXPORTED,
    HANDLER,
    LARGE_NBYTES,
    REDUCER,
    VALUE,
)
from shmstore.serialization.frames import Frame, Planned, nbytes
from shmstore.serialization.handlers.text import MIN_SIZE

REST: Final = "the rest of the stream: structure and small values"
PLAIN: Final = "small builtin values: one short pickle"
DONE: Final = "already serialized: stored as it is"

_OWNS: Final = "get() returns a copy, as {} own their memory"
_IN_PLACE: Final = "its memory is the frame, written once"
_REORDERED: Final = "not contiguous: re-ordered while it is written, once"


def of_leaf(x: Any, family: str, frames: Sequence[Frame], *, plain: bool) -> str:
    """Return why an object that was asked for as a whole became these frames."""
    if plain:
        return PLAIN
    if family == "custom":
        return of_part(x, HANDLER, frames)
    if family == "msgpack":
        return "packed by msgpack: plain values, copied"
    return f"serialized by the family {family!r}"


def declined_by_handler(reason: str | None) -> str:
    """Return what is to be said of a handler that did not take an object; "": there was none."""
    return "" if reason is None else f"its handler declined ({reason or 'without a reason'})"


def of_part(x: Any, how: str, frames: Sequence[Frame], *, outer: bool = False) -> str:
    """Return why an object, reduced in a certain way, gave these frames.

    Parameters
    ----------
    x
        The object.
    how
        One of the words of `tracing`.
    frames
        Those that it gave; None where a buffer is all there is.
    outer
        Whether objects inside of it gave frames of their own, or are told of by themselves.
    """
    if how == VALUE:
        return _by_value(x)
    if how == EXPORTED:
        kind = "a memoryview" if _exports_buffer(x) else "a NumPy array"
        return f"no handler, refuses pickle: the buffer that it exports comes back as {kind}"
    if isinstance(x, np.ndarray):
        return _of_array(x, how, frames)
    tell = _BY_TYPE.get(typename(type(x))) or _BY_LIBRARY.get(_library(x))
    told = tell(x, frames) if tell is not None else ""
    return told or _in_general(how, frames, outer=outer)


def in_stream(kind: type, size: int) -> str:
    """Return why a value lies in the stream, by its type and its bytes."""
    if kind is str:
        return "text inside of other objects: encoded into the stream"
    once = ", without a second copy" if size >= LARGE_NBYTES else ""
    plural = "bytearrays" if kind is bytearray else "bytes"
    return f"inside of other objects: part of the stream{once}; {_OWNS.format(plural)}"


def join(*reasons: str) -> str:
    """Return reasons as one, each of them once."""
    return "; ".join(dict.fromkeys(filter(None, reasons)))


def _in_general(how: str, frames: Sequence[Frame], *, outer: bool) -> str:
    if any(type(frame) is Planned for frame in frames):
        return "its handler makes the bytes where they will lie, once"
    if how in (HANDLER, REDUCER):
        return "by its handler" if frames else "by its handler, without frames"
    if frames:
        return "its own pickle gives its memory as buffers beside the stream"
    if outer:
        return "its own pickle: structure and small values"
    return "its own pickle: all of it lies in the stream"


# --- arrays --------------------------------------------------------------------------------------


def _of_array(x: Any, how: str, frames: Sequence[Frame]) -> str:
    if isinstance(x, np.memmap):
        return "memory map: its content is stored, and comes back as an array"
    if isinstance(x, np.ma.MaskedArray) and how == HANDLER:
        return "masked array: data, mask and fill value are parts"
    if not frames:
        return _in_band_array(x)
    if type(x) is not np.ndarray:
        return "a subclass of numpy.ndarray: its memory as an array, its class and attributes"
    if x.dtype.hasobject:
        return "object dtype, but all text: encoded as UTF-8 while it is written, once"
    return join(_order(x, frames[0]), "read-only" if _is_readonly(x) else "")


def _order(x: Any, frame: Frame) -> str:
    size = x.nbytes if frame is None else nbytes(frame)
    if size < x.nbytes:
        gaps = ", re-ordered while they are written" if type(frame) is Planned else ""
        return f"broadcast: only the distinct elements are stored, {size:,} of {x.nbytes:,} B{gaps}"
    if type(frame) is Planned:
        return _REORDERED
    order = "contiguous" if x.flags.c_contiguous else "contiguous in Fortran order"
    return f"{order}: {_IN_PLACE}"


def _in_band_array(x: Any) -> str:
    if x.dtype.hasobject:
        few = x.dtype == object and x.size < MIN_SIZE
        text = f" (arrays of str are encoded from {MIN_SIZE:,} elements on)" if few else ""
        return f"object dtype: its elements are Python objects, pickled in-band{text}"
    if type(x) is not np.ndarray:
        return (
            "a subclass of numpy.ndarray: its own pickle copies the data into the stream; "
            "numpy.asarray(x) would lie beside it"
        )
    if not x.nbytes:
        return "empty"
    return f"dtype {x.dtype} cannot be told by a header: NumPy copies the data into the stream"


def _is_readonly(x: Any) -> bool:
    # Asked so because flags.writeable warns for results of numpy.broadcast_arrays.
    return not x.flags.num & 0x400


# --- others --------------------------------------------------------------------------------------


def _by_value(x: Any) -> str:
    module = getattr(x, "__module__", None)
    if module in ("__main__", "__mp_main__"):
        why = f"it lives in {module}"
    elif "<" in getattr(x, "__qualname__", ""):
        why = "it is a lambda, or was made inside of a function"
    else:
        why = "it cannot be imported by its name, or was registered so"
    return f"pickled by value, with all its code: {why}"


def _exports_buffer(x: Any) -> bool:
    try:
        memoryview(x).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


def _library(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def _of_bytes(x: Any, _: Sequence[Frame]) -> str:
    kind = {"bytes": "bytes", "bytearray": "bytearrays", "array": "arrays of the standard library"}
    return f"{_IN_PLACE}; {_OWNS.format(kind[type(x).__name__])}, get_view() does not"


def _of_memoryview(x: memoryview, _: Sequence[Frame]) -> str:
    order = f"contiguous: {_IN_PLACE}" if x.c_contiguous else _REORDERED
    return join(order, "read-only" if x.readonly else "")


def _of_arrow(x: Any, frames: Sequence[Frame]) -> str:
    if any(type(frame) is Planned for frame in frames):
        return "Arrow stream, written in place once and read without a copy"
    if type(x).__name__ in ("Buffer", "ResizableBuffer") and frames:
        return f"contiguous: {_IN_PLACE}; read-only"
    return "Arrow buffers: their memory lies beside the stream" if frames else ""


def _of_polars(_: Any, frames: Sequence[Frame]) -> str:
    if any(type(frame) is Planned for frame in frames):
        return "Arrow stream, written in place once and read without a copy"
    return "polars writes the stream itself, and puts one copy more" if frames else ""


def _of_torch(_: Any, frames: Sequence[Frame]) -> str:
    if any(type(frame) is Planned for frame in frames):
        return _REORDERED
    return f"its whole storage: {_IN_PLACE}" if frames else ""


def _of_pandas(_: Any, frames: Sequence[Frame]) -> str:
    return "pandas pickles its arrays, their memory lies beside the stream" if frames else ""


_BY_TYPE: Final[dict[str, Any]] = {
    "bytes": _of_bytes,
    "bytearray": _of_bytes,
    "array.array": _of_bytes,
    "memoryview": _of_memoryview,
}
_BY_LIBRARY: Final[dict[str, Any]] = {
    "pandas": _of_pandas,
    "polars": _of_polars,
    "pyarrow": _of_arrow,
    "torch": _of_torch,
}
