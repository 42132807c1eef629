"""How does a CPU tensor become one frame, and a tensor over that frame?

A tensor that is put by itself needs no pickle: its frame is the memory that it shows, in its own
order, and nothing of the rest of its storage. Broadcast axes (stride 0) are stored once. A tensor
with gaps is written in C order, straight to its destination. ``requires_grad``, ``.grad`` and the
conjugate and negative bits travel with it; a tensor that autograd computed arrives as a leaf, as
from `torch.load`. Subclasses, sparse and quantized tensors go to pickle.

Inside other objects tensors are pickled in torch's own way, but each *storage* is pickled once, as
one frame beside the pickle: tensors that share a storage share one again. There a view costs as
much as the storage behind it, as with `torch.save`.

What is built on a frame that may be written is a tensor on that very memory, and its storage keeps
the frame. A frame that must not be written (mode "readonly") is copied: torch knows no read-only
tensors, and a write would kill the process. To share without such copies, get with mode "shared" or
"private".

As with `torch.Tensor.numpy`, the storage of a tensor that was serialized cannot be resized anymore.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import torch

from shmstore.errors import CorruptHeaderError, SerializationError
from shmstore.serialization.frames import Frame, Planned, allocate, ensure_memoryview
from shmstore.serialization.reductions import PROTOCOL, out_of_band
from shmstore.serialization.registry import register_reducer, register_serialization
from shmstore.serialization.wording import shown

Header = dict[str, Any]

# Where torch keeps what it pickles tensors with.
_utils: Final[Any] = torch._utils  # noqa: SLF001
_tensor: Final[Any] = torch._tensor  # noqa: SLF001
_TypedStorage: Final[Any] = torch.TypedStorage

# Dtypes that have no storage of their own type.
_UNTYPED: Final[set[torch.dtype]] = getattr(torch.storage, "_new_dtypes", set)()

_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and not name.startswith("q")  # quantized
}

# What elements of so many bytes are copied as: bits, whatever they mean.
_BITS: Final = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}

_INT64: Final = 1 << 63

# No mode of the caller decides where tensors are made.
_CPU: Final = torch.device("cpu")


def register() -> None:
    """Register the handlers and reducers of this module."""
    for cls in (torch.Tensor, torch.nn.Parameter):
        register_serialization(cls, serialize_tensor, deserialize_tensor)
    register_reducer(torch.Tensor, reduce_tensor, subclasses=True)
    register_reducer(torch.UntypedStorage, reduce_storage)
    register_reducer(torch.TypedStorage, reduce_typed_storage)


# --- a tensor by itself ------------------------------------------------------------------------


def serialize_tensor(x: torch.Tensor) -> tuple[Header, list[Frame]]:
    """Return the header of a tensor and its memory, followed by those of its gradient."""
    header, frame = _pack(x)
    grad = _grad_of(x)
    if grad is None:
        return header, [frame]
    plain = type(grad) is torch.Tensor and grad.grad_fn is None and not vars(grad)
    if not plain or grad.grad is not None or _share(x, grad):
        raise NotImplementedError("its gradient is more than a tensor, or shares its storage")
    header["grad"], grad_frame = _pack(grad)
    return header, [frame, grad_frame]


def deserialize_tensor(header: Header, frames: Sequence[Frame], cls: type) -> torch.Tensor:
    """Return a tensor of class `cls` over the first frame, its gradient over the second."""
    grad = header.get("grad")
    expected = 1 if grad is None else 2
    if len(frames) != expected:
        raise CorruptHeaderError(
            f"a tensor has {expected} frames, these are {len(frames)}",
            key="frames",
            found=len(frames),
            expected=expected,
        )
    x = _unpack(header, frames[0])
    requires_grad = _bool(header, "requires_grad")
    if cls is torch.nn.Parameter:
        x = torch.nn.Parameter(x, requires_grad)
    elif requires_grad:
        x.requires_grad_()
    state = header.get("state")
    if state is not None:
        _set_state(x, state)
    if grad is not None:
        x.grad = _unpack(grad, frames[1]).requires_grad_(_bool(grad, "requires_grad"))
    return x


def _pack(x: torch.Tensor) -> tuple[Header, Frame]:
    """Return the header of a tensor, its gradient aside, and its memory."""
    _decline_unless_dense(x)
    header: Header = {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}
    if x.requires_grad:
        header["requires_grad"] = True
    bits = _utils.get_tensor_metadata(x)
    if bits:
        header["bits"] = sorted(bits)
    state = vars(x)
    if state:
        if not _is_simple(state):
            raise NotImplementedError("it has attributes of its own")
        header["state"] = dict(state)
    if x.is_contiguous():
        return header, _memory(x, x.numel())
    header["strides"], frame = _compact(x)
    return header, frame


def _decline_unless_dense(x: torch.Tensor) -> None:
    dense = x.layout is torch.strided and x.device.type == "cpu"
    if not dense or x.is_quantized or x.is_nested or type(x) not in _TYPES:
        raise NotImplementedError(f"{type(x).__name__} on {x.device} with layout {x.layout}")
    if x._backward_hooks:  # noqa: SLF001 - torch warns that they are left behind
        raise NotImplementedError("it has hooks")
    end = x.storage_offset() + _span(x.shape, x.stride())
    if x.untyped_storage().nbytes() < end * x.itemsize:
        raise SerializationError(
            "the storage of a tensor was resized and does not hold its elements anymore",
            type="torch.Tensor",
        )


_TYPES: Final = (torch.Tensor, torch.nn.Parameter)


def _grad_of(x: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient; that of a tensor that is no leaf is not even asked for (torch warns)."""
    return x.grad if x.is_leaf else None


def _share(x: torch.Tensor, y: torch.Tensor) -> bool:
    return y.layout is torch.strided and x.untyped_storage() is y.untyped_storage()


def _compact(x: torch.Tensor) -> tuple[list[int], Frame]:
    """Return the strides of a tensor over its frame, and the frame."""
    strides = list(x.stride())
    distinct = [1 if stride == 0 else size for size, stride in zip(x.shape, strides, strict=True)]
    count = math.prod(distinct)
    span = _span(distinct, strides)
    if span <= count:
        return strides, _memory(x, span)
    dense = _dense_strides(distinct)
    bits = _BITS[x.itemsize]

    def write_into(target: memoryview) -> None:
        over = torch.frombuffer(target, dtype=bits).view(distinct)
        over.copy_(_view(x, bits, distinct, strides))

    frame = Planned(count * x.itemsize, write_into)
    return [0 if old == 0 else new for old, new in zip(strides, dense, strict=True)], frame


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements lie between the first and the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _dense_strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _memory(x: torch.Tensor, count: int) -> memoryview:
    """Return the memory of `count` elements from the first one on, whatever they mean."""
    nbytes = count * x.itemsize
    if not nbytes:
        return memoryview(bytearray())
    flat = torch.empty(0, dtype=torch.uint8, device=_CPU)
    flat.set_(x.untyped_storage(), x.storage_offset() * x.itemsize, (nbytes,), (1,))
    return memoryview(flat.numpy())


def _view(
    x: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
) -> torch.Tensor:
    """Return a tensor over the storage of another."""
    empty = torch.empty(0, dtype=dtype, device=_CPU)
    return empty.set_(x.untyped_storage(), int(x.storage_offset()), tuple(shape), tuple(strides))


def _unpack(header: Header, frame: Frame) -> torch.Tensor:
    """Return a tensor over a frame, its gradient aside."""
    dtype, shape, strides = _layout(header, frame.nbytes)
    if not frame.nbytes:
        x = torch.empty_strided(shape, strides, dtype=dtype, device=_CPU)
    else:
        x = torch.empty(0, dtype=dtype, device=_CPU)
        x.set_(storage_over(frame, dtype.itemsize), 0, shape, strides)
    bits = header.get("bits")
    if bits is not None:
        known = {"conj", "neg"}.intersection(bits)
        _utils.set_tensor_metadata(x, dict.fromkeys(known, True))
    return x


def _layout(header: Header, nbytes: int) -> tuple[torch.dtype, list[int], list[int]]:
    """Return dtype, shape and strides, which stay inside of a frame of `nbytes`."""
    dtype = _DTYPES.get(header["dtype"])
    if dtype is None:
        raise CorruptHeaderError(
            f"this torch ({torch.__version__}) has no dtype {shown(header['dtype'])}",
            key="dtype",
            found=header["dtype"],
        )
    shape = _sizes(header, "shape")
    strides = _sizes(header, "strides") if "strides" in header else _dense_strides(shape)
    fits = len(shape) == len(strides) and math.prod(shape) * dtype.itemsize < _INT64
    if not fits or _span(shape, strides) * dtype.itemsize != nbytes:
        raise CorruptHeaderError(
            f"a tensor of shape {shown(shape, 200)}, strides {shown(strides, 200)} and dtype "
            f"{dtype} has no {nbytes} bytes",
            key="shape",
            found=nbytes,
        )
    return dtype, shape, strides


def _sizes(header: Header, key: str) -> list[int]:
    sizes = list(header[key])
    if not all(type(size) is int and 0 <= size < _INT64 for size in sizes):
        raise CorruptHeaderError(
            f"a tensor has the {key} {shown(sizes, 200)}", key=key, found=sizes
        )
    return sizes


def _bool(header: Header, key: str) -> bool:
    return header.get(key) is True


def _set_state(x: torch.Tensor, state: Any) -> None:
    if not isinstance(state, dict) or not _is_simple(state):
        raise CorruptHeaderError(f"a tensor has the attributes {shown(state, 200)}", key="state")
    vars(x).update(state)


def _is_simple(state: dict[Any, Any]) -> bool:
    """Return whether attributes are flags, as those of `torch.nn.Buffer`, and hide no method."""
    return all(
        type(name) is str and type(value) is bool and not hasattr(torch.Tensor, name)
        for name, value in state.items()
    )


# --- storages ----------------------------------------------------------------------------------


def storage_over(frame: Frame, alignment: int = 1) -> torch.UntypedStorage:
    """Return a storage whose memory is a frame, or a copy where it must not be the frame.

    Parameters
    ----------
    frame
        Not empty. A storage over it keeps it alive.
    alignment
        What the address must be a multiple of: vector instructions rely on it.
    """
    view = ensure_memoryview(frame)
    if not view.readonly:
        storage = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
        if storage.data_ptr() % alignment == 0:
            return storage
    copy = allocate(view.nbytes)
    np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(view, np.uint8))
    return torch.frombuffer(copy, dtype=torch.uint8).untyped_storage()


def reduce_tensor(x: torch.Tensor) -> Any:
    """Pickle a tensor in torch's own way, and its gradient, which that leaves behind.

    Subclasses go their own way altogether, but for dtypes that torch's own way cannot read back.
    """
    grad = _grad_of(x) if type(x) in _TYPES else None
    if grad is None and x.dtype not in _UNTYPED:
        return NotImplemented
    reduction = _readable(cast("Any", x).__reduce_ex__(PROTOCOL))
    return reduction if grad is None else (_with_grad, (*reduction, grad))


def _readable(reduction: Any) -> Any:
    """Return a reduction with a typed storage where torch writes an untyped one, and reads none."""
    if type(reduction) is not tuple:
        return reduction
    build, args, *rest = reduction
    if build is _utils._rebuild_tensor_v3:  # noqa: SLF001
        args = (_typed_storage(args[0], torch.uint8), *args[1:])
    elif build is _tensor._rebuild_from_type_v2:  # noqa: SLF001
        inner, cls, inner_args, state = args
        inner, inner_args = _readable((inner, inner_args))
        args = (inner, cls, inner_args, state)
    return build, args, *rest


def reduce_storage(x: torch.UntypedStorage) -> Any:
    """Pickle the memory of a storage as one frame."""
    if x.device.type != "cpu":
        raise SerializationError(
            f"a tensor on {x.device} is not in the memory of the CPU; put x.cpu(), or a module "
            "after module.cpu().",
            type="torch.UntypedStorage",
        )
    if not x.nbytes():
        return torch.UntypedStorage, (0,)
    flat = torch.empty(0, dtype=torch.uint8, device=_CPU).set_(x)
    return _storage, (out_of_band(flat.numpy()),)


def reduce_typed_storage(x: torch.TypedStorage) -> Any:
    """Pickle a storage that knows its dtype by the one that does not: they are memoized apart."""
    return _typed_storage, (x._untyped_storage, x.dtype)  # noqa: SLF001


# The names of these three lie in stored pickles.


def _storage(frame: Frame) -> torch.UntypedStorage:
    return storage_over(frame, max(_BITS))


def _typed_storage(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.TypedStorage:
    typed: torch.TypedStorage = _TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
    return typed


def _with_grad(build: Any, args: Any, grad: torch.Tensor) -> torch.Tensor:
    x: torch.Tensor = build(*args)
    x.grad = grad
    return x
