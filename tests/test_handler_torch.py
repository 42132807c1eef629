"""Tensors as frames: what is kept, what is shared, what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from roundtrips import SAFE, address, forge, frames_of, round_trip

from shmstore.errors import DeserializationError, SerializationError
from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import Planned, allocate, nbytes

torch = pytest.importorskip("torch")

from shmstore.serialization.handlers.torch import reduce_storage, serialize_tensor  # noqa: E402

# Torch says once that these are experimental.
pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]

QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)} - QUANTIZED, key=str
)


def flat(tensor: Any) -> Any:
    """Return the whole storage of a tensor as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def of_dtype(dtype: Any, count: int = 24) -> Any:
    """Return a tensor whose bytes are 0 and 1, which all dtypes have a meaning for."""
    pattern = torch.arange(count * dtype.itemsize, dtype=torch.uint8) % 2
    return torch.empty(0, dtype=dtype).set_(pattern.untyped_storage(), 0, (count,), (1,))


def same(x: Any, y: Any) -> bool:
    """Return whether two tensors agree in all that a tensor is."""
    return (
        type(x) is type(y)
        and (x.dtype, x.shape, x.requires_grad) == (y.dtype, y.shape, y.requires_grad)
        and (x.is_conj(), x.is_neg()) == (y.is_conj(), y.is_neg())
        and torch.equal(x, y)
    )


# --- by itself -----------------------------------------------------------------------------------


@pytest.mark.row("S108")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_of_each_dtype_lies_on_its_frame(dtype: Any) -> None:
    """No dtype needs NumPy to know it, none is copied, and no pickle is needed."""
    x = of_dtype(dtype)
    header, frames = serialize(x, on_error="raise")
    assert [address(frame) for frame in frames] == [x.data_ptr()]
    got = deserialize(header, frames, deserializers=SAFE)
    assert (got.dtype, got.shape, got.stride()) == (x.dtype, x.shape, x.stride())
    assert got.data_ptr() == x.data_ptr()
    assert torch.equal(flat(round_trip(x)), flat(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
def test_tensor_of_each_shape_keeps_it(dtype: Any, shape: tuple[int, ...]) -> None:
    """Scalars and tensors without elements too."""
    x = torch.ones(shape, dtype=dtype)
    assert same(x, round_trip(x, deserializers=SAFE))


VIEWS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "transposed": (lambda x: x.T, 24),
    "permuted": (lambda x: x.view(2, 3, 4).permute(2, 0, 1), 24),
    "channels last": (lambda x: x.view(1, 4, 3, 2).to(memory_format=torch.channels_last), 24),
    "rows": (lambda x: x[1:3], 12),
    "one element": (lambda x: x[2, 3], 1),
    "every other": (lambda x: x[:, ::2], 12),
    "columns": (lambda x: x[:, 2:4], 8),
    "columns, transposed": (lambda x: x[:, 2:4].T, 8),
    "diagonal": (torch.diagonal, 4),
    "expanded": (lambda x: x[:, :1].expand(4, 100), 4),
    "expanded, all axes": (lambda x: x[0, 0].expand(7, 8, 9), 1),
    "expanded in between": (lambda x: x[:, None, :].expand(4, 50, 6), 24),
    "expanded with gaps": (lambda x: x[::2, ::3, None].expand(2, 2, 9), 4),
    "windows": (lambda x: x.view(24).unfold(0, 6, 1), 24),
    "windows with gaps": (lambda x: x.view(24)[::3].unfold(0, 2, 2), 8),
}


@pytest.mark.row("S92", "S93")
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.complex128], ids=str)
def test_view_of_a_tensor_takes_no_more_than_its_distinct_elements(name: str, dtype: Any) -> None:
    """Neither the rest of the storage nor what a broadcast repeats is stored."""
    make, distinct = VIEWS[name]
    x = make(torch.arange(24).to(dtype).view(4, 6))
    _, frames = serialize(x, on_error="raise")
    assert sum(map(nbytes, frames)) == distinct * x.itemsize
    got = round_trip(x, deserializers=SAFE)
    assert same(x, got)
    assert [s == 0 for s in got.stride()] == [s == 0 for s in x.stride()]


def test_tensor_without_gaps_keeps_its_strides_and_is_not_copied() -> None:
    """What lies dense in another order stays in that order."""
    x = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)
    header, frames = serialize(x, on_error="raise")
    assert address(frames[0]) == x.data_ptr()
    assert deserialize(header, frames).stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_with_gaps_is_written_once_at_its_destination(dtype: Any) -> None:
    """Its frame is a promise that fills the memory it is given, whatever the bits mean."""
    x = of_dtype(dtype).view(4, 6)[:, ::2]
    _, (frame,) = serialize_tensor(x)
    assert type(frame) is Planned
    target = allocate(frame.nbytes)
    frame.write_into(target)
    lines = flat(x).view(4, 6, dtype.itemsize)[:, ::2]
    assert bytes(target) == bytes(lines.contiguous().numpy())


@pytest.mark.parametrize("name", ["conj", "neg", "both"])
def test_lazy_conjugate_and_negative_stay_lazy(name: str) -> None:
    """The bits travel, the memory is the same as without them."""
    base = torch.tensor([1 + 2j, 3 - 4j, 5j])
    neg = torch._neg_view
    x = {"conj": base.conj(), "neg": neg(base), "both": neg(base.conj())}[name]
    header, frames = serialize(x, on_error="raise")
    assert address(frames[0]) == base.data_ptr()
    assert same(x, deserialize(header, frames, deserializers=SAFE))
    assert same(x[::2], round_trip(x[::2]))


@pytest.mark.row("S108")
@pytest.mark.parametrize("wrap", [lambda x: x, torch.nn.Parameter], ids=["tensor", "parameter"])
@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a list"])
def test_leaf_keeps_its_gradient(wrap: Any, inside: Any) -> None:
    """Which torch's own pickles leave behind."""
    x = wrap(torch.arange(4.0)).requires_grad_()
    (x * x).sum().backward()
    x.grad = x.grad[:2].repeat(2) if inside else x.grad
    got = round_trip([x])[0] if inside else round_trip(x, deserializers=SAFE)
    assert same(x, got)
    assert same(x.grad, got.grad)
    assert got.is_leaf
    (got * got).sum().backward()
    assert torch.equal(got.grad, x.grad + 2 * x.detach())


def test_gradient_that_is_sparse_goes_by_pickle() -> None:
    """It is no strided tensor."""
    layer = torch.nn.Embedding(10, 3, sparse=True)
    layer(torch.tensor([1, 4])).sum().backward()
    header, frames = frames_of(layer.weight)
    assert header["serializer"] == "pickle"
    got = deserialize(header, frames)
    assert got.grad.is_sparse
    assert torch.equal(got.grad.to_dense(), layer.weight.grad.to_dense())


def test_gradient_on_the_storage_of_its_tensor_stays_on_it() -> None:
    """Then both go through one pickle, which knows what is the same."""
    x = torch.ones(3)
    x.grad = x.detach()
    got = round_trip(x)
    got[0] = 7
    assert got.grad.tolist() == [7, 1, 1]


def test_gradient_that_is_more_than_a_tensor_keeps_what_it_is() -> None:
    """Its class, its own gradient."""
    x = torch.ones(3)
    x.grad = torch.nn.Parameter(torch.arange(3.0))
    x.grad.grad = torch.full((3,), 7.0)
    got = round_trip(x)
    assert same(x.grad, got.grad)
    assert same(x.grad.grad, got.grad.grad)


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a list"])
def test_result_of_autograd_arrives_as_a_leaf(inside: Any) -> None:
    """As from torch.load: its history stays where it is."""
    x = torch.ones(3, requires_grad=True) * 2
    got = round_trip([x])[0] if inside else round_trip(x)
    assert (got.is_leaf, got.requires_grad, got.grad) == (True, True, None)
    assert torch.equal(x, got)


def test_parameter_and_buffer_stay_what_they_are() -> None:
    """The class of one, the mark on the other, both without a pickle."""
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
    assert same(parameter, round_trip(parameter, deserializers=SAFE))
    buffer = round_trip(torch.nn.Buffer(torch.ones(2), persistent=False), deserializers=SAFE)
    assert isinstance(buffer, torch.nn.Buffer)
    assert buffer.persistent is False


def test_tensor_with_attributes_keeps_them() -> None:
    """By pickle, and still without a copy."""
    x = torch.arange(1000.0)
    x.note = {"a": [1]}
    header, frames = serialize(x, on_error="raise")
    assert header["serializer"] == "pickle"
    got = deserialize(header, frames)
    assert (got.note, got.data_ptr()) == ({"a": [1]}, x.data_ptr())


class Named(torch.Tensor):
    """A subclass of a user."""


def test_subclass_keeps_its_class_and_shares_its_memory() -> None:
    """By pickle: the handler is for exactly tensors and parameters."""
    x = torch.arange(1000.0).as_subclass(Named)
    header, frames = serialize(x, on_error="raise")
    assert header["serializer"] == "pickle"
    got = deserialize(header, frames)
    assert type(got) is Named
    assert got.data_ptr() == x.data_ptr()


OTHERS: dict[str, Callable[[], Any]] = {
    "coo": lambda: torch.eye(5).to_sparse(),
    "csr": lambda: torch.eye(5).to_sparse_csr(),
    "bsc": lambda: torch.eye(6).to_sparse_bsc((2, 3)),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(5.0), 0.5, 1, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "meta": lambda: torch.ones(3, 4, device="meta"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tensor_that_is_not_dense_goes_its_own_way(name: str) -> None:
    """By torch's own pickling; what memory it has lies beside the pickle."""
    x = OTHERS[name]()
    header, frames = frames_of(x)
    assert header["serializer"] == "pickle"
    got = deserialize(header, frames)
    assert (got.layout, got.dtype, got.device) == (x.layout, x.dtype, x.device)
    assert str(got) == str(x)
    assert (len(frames) > 1) == (name != "meta")


def test_tensor_elsewhere_than_in_memory_says_what_to_do() -> None:
    """Torch's own words would not."""

    class Elsewhere:
        """A storage on another device, which this machine may not have."""

        device = torch.device("cuda:0")

    with pytest.raises(SerializationError, match=r"cuda:0 .* put x\.cpu\(\)"):
        reduce_storage(Elsewhere())


def test_tensor_with_hooks_is_left_to_torch_which_warns() -> None:
    """They stay behind, and not silently."""
    x = torch.ones(3, requires_grad=True)
    x.register_hook(print)
    with pytest.warns(UserWarning, match="hook"):
        header, _ = serialize(x, on_error="raise")
    assert header["serializer"] == "pickle"


def test_tensor_whose_storage_was_freed_is_refused_and_left_alone() -> None:
    """Torch would enlarge the storage, and store what happens to lie there."""
    for x in (torch.ones(100), torch.ones(10, 10)[:, ::2]):
        x.untyped_storage().resize_(0)
        with pytest.raises(SerializationError, match="does not hold its elements"):
            serialize(x, on_error="raise")
        assert x.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_default_device_of_the_caller_is_not_asked(device: str) -> None:
    """A tensor of the CPU is one wherever new tensors are made."""
    x = torch.arange(12.0).view(3, 4)[:, ::2]
    with torch.device(device):
        assert same(x, round_trip(x))
        assert round_trip([x])[0].device.type == "cpu"


def test_inference_tensor_is_stored_like_any_other() -> None:
    """Inside and outside of inference mode."""
    with torch.inference_mode():
        x = torch.arange(3.0)
        assert torch.equal(round_trip(x), x)
    assert torch.equal(round_trip(x), x)


# --- memory --------------------------------------------------------------------------------------


def test_write_to_a_writeable_frame_is_a_write_to_the_tensor() -> None:
    """They are the same memory."""
    header, frames = frames_of(torch.zeros(4))
    got = deserialize(header, frames)
    got[1] = 1
    assert np.frombuffer(frames[0], np.float32).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a list"])
def test_tensor_on_a_frame_that_must_not_be_written_is_a_copy(inside: Any) -> None:
    """Torch has no read-only tensors: one that looked like any other would kill the process."""
    header, frames = frames_of([torch.zeros(4)] if inside else torch.zeros(4))
    header = {**header, "writeable": [None] * len(header["writeable"])}
    frames = [frame.toreadonly() for frame in frames]
    got = deserialize(header, frames)
    got = got[0] if inside else got
    got += 1
    assert not np.frombuffer(frames[-1], np.float32).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.int16], ids=str)
def test_tensor_on_an_unaligned_frame_is_an_aligned_copy(dtype: Any) -> None:
    """Compiled code relies on it."""
    header, frames = frames_of(of_dtype(dtype))
    odd = allocate(len(frames[0]) + 1)[1:]
    odd[:] = frames[0]
    got = deserialize(header, [odd])
    assert got.data_ptr() % dtype.itemsize == 0
    assert torch.equal(flat(got), flat(of_dtype(dtype)))


class Memory(np.ndarray):
    """Memory that can be watched."""


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x,
        lambda x: x[5:],
        lambda x: x.untyped_storage(),
        lambda x: x.numpy(),
        lambda x: memoryview(x.numpy())[3:],
        lambda x: x.detach().requires_grad_(),
        lambda x: (x.detach().requires_grad_() * x).grad_fn,
        torch.nn.Parameter,
        torch.utils.data.TensorDataset,
    ],
)
def test_whatever_is_derived_from_a_tensor_keeps_its_frame(keep: Callable[[Any], Any]) -> None:
    """And nothing else does."""
    header, frames = frames_of(torch.arange(100.0))
    memory = np.frombuffer(frames.pop(), np.uint8).copy().view(Memory)
    died = weakref.ref(memory)
    kept = keep(deserialize(header, [memory.data]))
    del memory
    gc.collect()
    assert died() is not None
    del kept
    gc.collect()
    assert died() is None


def test_tensor_over_a_frame_cannot_be_resized_beyond_it() -> None:
    """The memory is not torch's own."""
    got = round_trip(torch.ones(4))
    with pytest.raises(RuntimeError, match="not resizable"):
        got.resize_(1000)


# --- forged headers ------------------------------------------------------------------------------

FORGED: dict[str, dict[str, Any]] = {
    "more elements": {"shape": [5]},
    "fewer elements": {"shape": [3]},
    "negative": {"shape": [-4]},
    "two negatives": {"shape": [-2, -2]},
    "no numbers": {"shape": ["4"]},
    "a boolean": {"shape": [True, 4]},
    "huge": {"shape": [1 << 62, 1 << 62], "strides": [0, 0]},
    "overflowing": {"shape": [1 << 33, 1 << 33]},
    "out of range": {"shape": [4], "strides": [1 << 61]},
    "negative strides": {"shape": [4], "strides": [-1]},
    "too few strides": {"shape": [2, 2], "strides": [1]},
    "another size of elements": {"dtype": "float64"},
    "quantized": {"dtype": "quint8"},
    "no dtype": {"dtype": "save"},
    "dtype of objects": {"dtype": ["float32"]},
    "a gradient without a frame": {"grad": {"dtype": "float32", "shape": [4]}},
    "a hidden method": {"state": {"numpy": True}},
    "an attribute that is no flag": {"state": {"note": "text"}},
    "conjugate of reals": {"bits": ["conj"]},
    "no bits": {"bits": 1},
}


@pytest.mark.row("F21")
@pytest.mark.parametrize("name", FORGED)
def test_forged_header_of_a_tensor_is_an_error(name: str) -> None:
    """It neither crashes nor reaches beyond the frame."""
    header, frames = frames_of(torch.ones(4))
    with pytest.raises(DeserializationError):
        deserialize(forge(header, **FORGED[name]), frames)


def test_header_of_a_gradient_of_another_shape_is_an_error() -> None:
    """Torch itself refuses it."""
    x = torch.ones(4, requires_grad=True)
    x.sum().backward()
    header, frames = frames_of(x)
    grad = {**header["sub-header"]["grad"], "shape": [2, 2]}
    with pytest.raises(DeserializationError, match="gradient of size"):
        deserialize(forge(header, grad=grad), frames)
