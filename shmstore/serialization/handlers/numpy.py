"""How does a NumPy array become one frame, and an array over that frame?

Only exact ndarrays: subclasses keep their class by a reducer or by their own pickle. The frame is
the memory of the array in its own order; axes of stride 0 (broadcast) are cut to length 1 before
and stretched again after. What is in neither order is written in C order straight to its
destination.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import Frame, Planned
from shmstore.serialization.reductions import out_of_band
from shmstore.serialization.registry import register_reducer, register_serialization
from shmstore.serialization.wording import shown

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

# NPY_ARRAY_WRITEABLE in the C API of NumPy.
_WRITEABLE: Final = 0x400

# Where a field of a structured dtype has its title, if it has one.
_TITLE: Final = 2

# Texts of plain dtypes are no longer than this, but for those of long strings.
_SHORT: Final = 16

Layout = tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...] | None]


def register() -> None:
    """Register the handlers of this module."""
    register_serialization(np.ndarray, serialize_array, deserialize_array)
    register_reducer(np.ndarray, reduce_array, subclasses=True)
    register_reducer(np.memmap, reduce_memmap)


def serialize_array(x: Array) -> tuple[dict[str, Any], list[Frame]]:
    """Return the header (dtype, shape, strides; no strides: C order) and the memory of an array.

    A large array of text is encoded (see `text`).
    """
    if _may_be_text(x):
        from shmstore.serialization.handlers import text  # noqa: PLC0415 - takes time that most processes can save

        header, frames = text.encode(x)
        return {"text": header}, frames
    dtype = pack_dtype(x.dtype)
    header = {"dtype": dtype, "shape": list(x.shape)}
    if x.flags.c_contiguous:
        return header, [memory_of(x)]
    distinct, strides = _compact(x)
    header["strides"] = list(strides)
    if distinct.flags.c_contiguous or distinct.flags.f_contiguous:
        return header, [memory_of(distinct)]
    return header, [_planned(distinct, writeable=_is_writeable(x))]


def deserialize_array(header: dict[str, Any], frames: Sequence[Frame]) -> Array:
    """Return an array over the one frame, as writeable as it is; one of text from its frames."""
    if "text" in header:
        from shmstore.serialization.handlers import text  # noqa: PLC0415 - takes time that most processes can save

        return text.decode(header["text"], frames)
    if len(frames) != 1:
        raise CorruptHeaderError(
            f"an array has one frame, these are {len(frames)}",
            key="frames",
            found=len(frames),
            expected=1,
        )
    shape, dtype, strides = array_layout(header)
    x: Array = np.ndarray(shape, dtype, frames[0], 0, strides)
    check_extent(x, memoryview(frames[0]).nbytes)
    return x


def _may_be_text(x: Array) -> bool:
    if x.dtype != object:
        return False
    from shmstore.serialization.handlers import text  # noqa: PLC0415 - takes time that most processes can save

    return x.size >= text.MIN_SIZE


def check_extent(x: Array, nbytes: int) -> None:
    """Raise unless the distinct elements of an array need just so many bytes."""
    if x.nbytes == nbytes and x.flags.c_contiguous:
        return
    sizes = [n for n, stride in zip(x.shape, x.strides, strict=True) if stride != 0 or n == 0]
    needed = math.prod(sizes) * x.itemsize
    if needed != nbytes:
        raise CorruptHeaderError(
            f"an array of shape {x.shape} and dtype {x.dtype} needs {needed} bytes, its frame has "
            f"{nbytes}",
            key="shape",
            found=nbytes,
            expected=needed,
        )


def array_layout(header: dict[str, Any]) -> Layout:
    """Return shape, dtype and strides (None: C order) from the header of an array.

    Raises
    ------
    CorruptHeaderError
        A size or stride is none, or so large that numbers of 64 bits would wrap around.
    """
    shape, strides = tuple(header["shape"]), header.get("strides")
    dtype = unpack_dtype(header["dtype"])
    sizes = shape if strides is None else (*shape, *strides)
    if not all(type(n) is int and n >= 0 for n in sizes) or (
        strides and len(strides) != len(shape)
    ):
        raise CorruptHeaderError(
            f"an array has the shape {shown(shape)} and the strides {shown(strides)}", key="shape"
        )
    reach = math.prod(n or 1 for n in shape) * (dtype.itemsize or 1)
    if strides:
        reach = max(reach, sum(n * stride for n, stride in zip(shape, strides, strict=True)))
    if reach >= 1 << 62:
        raise CorruptHeaderError(
            f"an array of shape {shown(shape)} and strides {shown(strides)} is out of all bounds",
            key="strides",
        )
    return shape, dtype, None if strides is None else tuple(strides)


def array_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the header of a C-ordered array; NotImplementedError for elements that are objects."""
    return {"dtype": pack_dtype(dtype), "shape": list(shape)}


def _compact(x: Array) -> tuple[Array, tuple[int, ...]]:
    """Return the distinct elements of `x`, and the strides of `x` over them once compact."""
    axes = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.strides)
    distinct = x[axes]
    compact = distinct.strides
    if not (distinct.flags.c_contiguous or distinct.flags.f_contiguous):
        sizes = [math.prod(distinct.shape[axis + 1 :]) for axis in range(distinct.ndim)]
        compact = tuple(size * x.itemsize for size in sizes)
    # An axis of one element may have any stride, also one that would lead out of the frame.
    strides = tuple(
        0 if old == 0 else (new if n > 1 else x.itemsize)
        for old, new, n in zip(x.strides, compact, distinct.shape, strict=True)
    )
    return distinct, strides


def _planned(x: Array, *, writeable: bool) -> Planned:
    """Return a frame that gets the elements of an array in C order."""

    def write_into(target: memoryview) -> None:
        np.copyto(np.ndarray(x.shape, x.dtype, target), x)

    return Planned(x.nbytes, write_into, writeable=writeable)


def _is_writeable(x: Array) -> bool:
    """Return the flag without the warning that results of `numpy.broadcast_arrays` give with it."""
    return bool(x.flags.num & _WRITEABLE)


def memory_of(x: Array) -> memoryview:
    """Return the memory of a contiguous array as flat bytes, read-only if the array is."""
    if not x.nbytes:
        empty = memoryview(bytearray())
        return empty if _is_writeable(x) else empty.toreadonly()
    try:
        return PickleBuffer(x).raw()  # type: ignore[arg-type,unused-ignore] # numpy's own types
    except ValueError:  # the elements have no format as a buffer
        return (x if x.flags.c_contiguous else x.T).reshape(-1).view(np.uint8).data


def pack_dtype(dtype: np.dtype[Any]) -> Any:
    """Return what msgpack can pack and `unpack_dtype` makes the same dtype of.

    A plain dtype is its string; a structured one a dict as `numpy.dtype` takes it, with the packed
    dtypes of its fields; a field that is an array itself ``[packed dtype, shape]``.
    """
    of_a_subclass = dtype.names is not None and dtype.type is not np.void
    if dtype.metadata or dtype.hasobject or of_a_subclass:
        raise NotImplementedError(str(dtype))
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [pack_dtype(base), list(shape)]
    if dtype.names is None:
        return _plain_dtype(dtype)
    fields = [dtype.fields[name] for name in dtype.names] if dtype.fields else []
    return {
        "names": list(dtype.names),
        "formats": [pack_dtype(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > _TITLE else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


@functools.lru_cache(maxsize=256)
def _plain_dtype(dtype: np.dtype[Any]) -> str:
    """Return the string of a dtype that is told by it; others (text, extensions) decline."""
    name = dtype.str
    if dtype.kind == "T" or np.dtype(name) != dtype:
        raise NotImplementedError(str(dtype))
    return name


def unpack_dtype(packed: Any) -> np.dtype[Any]:
    """Return the dtype that `pack_dtype` packed."""
    dtype: np.dtype[Any] = _build_dtype(packed)
    if dtype.hasobject:
        raise CorruptHeaderError("the header of an array names a dtype of objects", key="dtype")
    return dtype


def _build_dtype(packed: Any) -> Any:
    if isinstance(packed, str):
        return _plain_dtype_of(packed) if len(packed) <= _SHORT else _from_text(packed)
    if isinstance(packed, list):
        base, shape = _build_dtype(packed[0]), tuple(packed[1])
        dtype = np.dtype((base, shape))
        return _within_bounds(dtype, [(0, math.prod(shape) * base.itemsize)], dtype.itemsize)
    spec: Any = dict(packed)
    aligned = bool(spec.pop("aligned"))
    spec["formats"] = [_build_dtype(field) for field in spec["formats"]]
    dtype = np.dtype(spec, align=aligned)
    fields = [
        (at, field.itemsize) for at, field in zip(spec["offsets"], spec["formats"], strict=True)
    ]
    return _within_bounds(dtype, fields, dtype.itemsize)


def _from_text(packed: str) -> Any:
    # Commas and shapes make a structure of a text; `pack_dtype` writes no such.
    dtype = None if {",", "(", "{"} & set(packed) else np.dtype(packed)
    return _within_bounds(dtype, [], 0)


# Only what is short is remembered: anybody may have written it. No such dtype can be changed.
_plain_dtype_of = functools.lru_cache(maxsize=256)(_from_text)


def _within_bounds(dtype: Any, fields: list[tuple[int, int]], nbytes: int) -> Any:
    """Return a dtype whose fields lie inside of it; NumPy reckons in C ints, which wrap around."""
    inside = all(at >= 0 and size >= 0 and at + size <= nbytes for at, size in fields)
    if dtype is None or dtype.itemsize < 0 or not inside:
        raise CorruptHeaderError(
            "the header of an array names a dtype that makes no sense", key="dtype"
        )
    return dtype


def itemsize(dtype: np.dtype[Any]) -> int:
    """Return the number of bytes of the base element of a dtype; 8 if there are more than 255."""
    nbytes = dtype.base.itemsize
    return 8 if nbytes > 255 else nbytes


# --- inside of pickles ---------------------------------------------------------------------------


def reduce_array(x: Array) -> Any:
    """Pickle what NumPy would copy into the stream beside it: text, arrays in neither order."""
    if type(x) is not np.ndarray:
        return _reduce_subclass(x)
    # NumPy has no buffers of times, and copies those in neither order.
    own = x.dtype.kind not in "mM" and (x.flags.c_contiguous or x.flags.f_contiguous)
    if own and not _may_be_text(x):
        return NotImplemented
    try:
        header, frames = serialize_array(x)
    except NotImplementedError:
        return _reduce_as_bytes(x)
    return deserialize_beside, (header, *[out_of_band(frame) for frame in frames])


def _reduce_as_bytes(x: Array) -> Any:
    """Pickle elements that no header tells the dtype of as bytes; the dtype goes its own way."""
    if x.dtype.hasobject or not x.itemsize:
        return NotImplemented
    return _view_as, (x.view(f"V{x.itemsize}"), x.dtype, None)


def _reduce_subclass(x: Array) -> Any:
    """Pickle a subclass as array, class and attributes, if it pickles itself as an ndarray does.

    NumPy would copy its data into the stream, and lose the attributes.
    """
    cls = type(x)
    if any(getattr(cls, name) is not getattr(np.ndarray, name) for name in _OWN_WAY):
        return None
    return _view_as, (np.ndarray.view(x, np.ndarray), cls, getattr(x, "__dict__", None))


_OWN_WAY: Final = ("__reduce__", "__reduce_ex__", "__setstate__")


def _view_as(
    x: Array, cls: type[Array] | np.dtype[Any], attributes: dict[str, Any] | None
) -> Array:
    """Return an array as one of a subclass or dtype. Its name lies in stored pickles."""
    view: Array = x.view(cls)
    if attributes:
        view.__dict__.update(attributes)
    return view


def deserialize_beside(header: dict[str, Any], *frames: Frame) -> Array:
    """Return an array over buffers beside a pickle. Its name lies in stored pickles."""
    return deserialize_array(header, frames)


def reduce_memmap(x: Any) -> Any:
    """Pickle a memory map by its content: its file may be gone on the other side."""
    return np.asarray, (np.asarray(x),)
