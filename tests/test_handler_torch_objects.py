"""Tensors inside of other objects and through a store: what is shared, and for how long."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
from roundtrips import frames_of, round_trip
from stores import RunPython, lock_free_only, used

from shmstore import Store
from shmstore.serialization import deserialize, serialize

torch = pytest.importorskip("torch")

MODES = ("shared", "readonly", "private", "copy")


def same(x: Any, y: Any) -> bool:
    """Return whether two tensors agree in type, dtype, shape and elements."""
    kinds = [(type(t), t.dtype, t.shape, t.requires_grad) for t in (x, y)]
    return kinds[0] == kinds[1] and torch.equal(x, y)


# --- inside of other objects ---------------------------------------------------------------------


def test_tensors_on_one_storage_come_back_on_one() -> None:
    """A write to one is seen through the others, as before."""
    base = torch.arange(10.0)
    alias = base.detach().view(torch.int32)
    x = {"base": base, "part": [base[2:5]], "same": base, "bits": alias, "raw": base.numpy()}
    header, frames = frames_of(x)
    assert len(frames) == 3  # the pickle, the storage, the array of NumPy
    got = deserialize(header, frames)
    assert got["same"] is got["base"]
    got["base"][2] = -1
    assert got["part"][0].tolist() == [-1, 3, 4]
    assert got["bits"].view(torch.float32)[2] == -1


UNTYPED = [
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "complex32", "bits8")
]


class Scaled(torch.Tensor):
    """A subclass of a user."""


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
@pytest.mark.parametrize("dtype", UNTYPED, ids=str)
def test_tensors_of_dtypes_without_a_typed_storage_share_theirs(dtype: Any) -> None:
    """Which torch's own pickles write and do not read."""
    base = torch.arange(64, dtype=torch.uint8)
    x = torch.empty(0, dtype=dtype).set_(base.untyped_storage(), 1, (2, 2), (2, 1))
    net = torch.nn.Module()
    net.register_buffer("plain", x)
    net.register_buffer("marked", torch.nn.Buffer(x.T, persistent=False))
    net.weight = torch.nn.Parameter(x, requires_grad=False)
    net.own = x.as_subclass(Scaled)
    net.own.note = "kept"
    header, frames = serialize({"base": base, "net": net}, on_error="raise")
    assert len(frames) == 2
    got = deserialize(header, frames)["net"]
    for name in ("plain", "marked", "weight", "own"):
        old, new = getattr(net, name), getattr(got, name)
        assert (type(new), new.dtype, new.shape) == (type(old), dtype, (2, 2))
        assert (new.data_ptr(), new.stride()) == (old.data_ptr(), old.stride())
    assert (got.own.note, got.marked.persistent) == ("kept", False)


def test_storages_themselves_are_frames() -> None:
    """Typed and untyped ones, and shared with the tensors on them."""
    x = torch.arange(1000.0)
    header, frames = frames_of([x.untyped_storage(), x._typed_storage(), x])
    assert len(frames) == 2
    untyped, typed, tensor = deserialize(header, frames)
    assert untyped.data_ptr() == typed._untyped_storage.data_ptr() == tensor.data_ptr()
    assert typed.dtype == torch.float32
    empty = round_trip([torch.UntypedStorage(0), torch.ones(0, 3)])
    assert (empty[0].nbytes(), empty[1].shape) == (0, (0, 3))


class Net(torch.nn.Module):
    """A module with all that modules have."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = torch.nn.Linear(300, 200)
        self.decode = torch.nn.Linear(200, 300, bias=False)
        self.decode.weight = torch.nn.Parameter(self.encode.weight.detach().T)
        self.norm = torch.nn.BatchNorm1d(200, dtype=torch.float64)
        self.register_buffer("window", torch.ones(50, dtype=torch.bfloat16), persistent=False)
        self.tied = self.encode
        self.calls: list[Any] = []
        self.register_forward_hook(lambda module, _, __: module.calls.append("forward"))

    def forward(self, x: Any) -> Any:
        """Apply."""
        return self.decode(self.norm(self.encode(x).double()).float())


@pytest.mark.row("S108")
def test_module_is_a_small_pickle_and_a_frame_per_storage() -> None:
    """No element of a tensor lies in the pickle; what is tied stays tied, hooks are kept."""
    net = Net()
    x = torch.randn(8, 300)
    net(x).sum().backward()
    header, frames = frames_of(net)
    assert len(frames[0]) < 8000
    storages = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    grads = [p.grad for p in net.parameters()]
    assert len(frames) == 1 + len(storages) + len(grads)
    got = deserialize(header, frames)
    assert all(same(a, b) for a, b in zip(net.parameters(), got.parameters(), strict=True))
    assert all(same(a, b.grad) for a, b in zip(grads, got.parameters(), strict=True))
    assert got.tied is got.encode
    assert got.decode.weight.data_ptr() == got.encode.weight.data_ptr()
    assert torch.equal(net.eval()(x), got.eval()(x))
    assert got.calls == ["forward", "forward"]


def test_state_of_a_module_and_of_its_optimizer_share_their_memory() -> None:
    """Both are dicts of tensors; each tensor is a frame."""
    net = torch.nn.Linear(300, 200)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    got = round_trip({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    assert list(got["net"]) == list(net.state_dict())
    again = torch.nn.Linear(300, 200)
    again.load_state_dict(got["net"])
    assert torch.equal(again.weight, net.weight)
    torch.optim.Adam(again.parameters()).load_state_dict(got["optimizer"])
    moments = optimizer.state[net.weight]["exp_avg"]
    assert torch.equal(got["optimizer"]["state"][0]["exp_avg"], moments)


def test_small_things_of_torch_go_by_their_own_pickle() -> None:
    """Shapes, dtypes, devices, layouts and generators."""
    generator = torch.Generator().manual_seed(7)
    x = [torch.Size([2, 3]), torch.bfloat16, torch.device("cpu"), torch.strided, generator]
    got = round_trip(x)
    assert got[:4] == x[:4]
    assert type(got[0]) is torch.Size
    assert torch.equal(torch.rand(3, generator=got[4]), torch.rand(3, generator=generator))


def test_pickle_module_alone_reads_and_writes_tensors_as_ever() -> None:
    """The reducers belong to our pickler, not to the process."""
    x = torch.arange(5.0)
    assert torch.equal(pickle.loads(pickle.dumps(x)), x)


# --- through a store -----------------------------------------------------------------------------


def an_object(nbytes: int) -> dict[str, Any]:
    """Return tensors that share a storage, a module and a gradient."""
    x = torch.arange(nbytes // 4, dtype=torch.float32)
    net = torch.nn.Linear(4, 3)
    net(torch.ones(2, 4)).sum().backward()
    return {"x": x, "view": x[1::2], "net": net}


CHECK = """
import gc, threading
import torch
for mode, ref, key_ref in given:
    got = ref.get(mode=mode)
    x, view, net = got["x"], got["view"], got["net"]
    assert torch.equal(x, torch.arange(len(x), dtype=torch.float32)), mode
    assert view.tolist() == x[1::2].tolist(), mode
    assert net.weight.grad.tolist() == [[2.0] * 4] * 3, mode
    tensor = key_ref.get(mode=mode)
    assert torch.equal(tensor, torch.arange(len(tensor), dtype=torch.bfloat16)), mode
    x[1] = -1
    tensor[0] = -2
    assert view[0] == -1, mode
    torch.matmul(torch.ones(300, 300), torch.ones(300, 300))
    def learn(): net(torch.ones(2, 4)).sum().backward()
    threads = [threading.Thread(target=learn) for _ in "abc"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(threading.active_count())
"""


@lock_free_only
@pytest.mark.parametrize("nbytes", [1000, 400_000])
def test_tensors_go_to_another_process_in_each_mode(
    store: Store, run_python: RunPython, nbytes: int
) -> None:
    """They can be written in all; the writes are seen here if the mode is shared."""
    x = an_object(nbytes)
    keys = torch.arange(nbytes // 2, dtype=torch.bfloat16)
    given = [(mode, store.put(x), store.put(keys)) for mode in MODES]
    run_python(CHECK, given=given)
    for mode, ref, key_ref in given:
        assert (ref.get()["x"][1] == -1) == (mode == "shared"), mode
        assert (key_ref.get()[0] == -2) == (mode == "shared"), mode
    assert x["x"][1] == 1


@pytest.mark.parametrize("readonly", [False, True], ids=["writeable", "read-only"])
@pytest.mark.parametrize("mode", MODES)
def test_write_to_a_tensor_never_kills_the_process(
    store: Store,
    mode: str,
    readonly: bool,  # noqa: FBT001
) -> None:
    """Where the store must not be written, the tensor is a copy."""
    ref = store.put(torch.zeros(100_000), readonly=readonly)
    listed = store.put([torch.zeros(100_000)], readonly=readonly)
    for got, again in [(ref.get(mode=mode), ref), (listed.get(mode=mode)[0], listed)]:
        got.fill_(1)
        other = again.get()
        other = other[0] if isinstance(other, list) else other
        assert bool(other.any()) == (mode == "shared" and not readonly)


def test_shared_tensors_of_two_gets_lie_on_the_same_memory(store: Store) -> None:
    """Nothing is copied, neither by itself nor inside of a module."""
    ref = store.put(torch.zeros(100_000))
    assert ref.get().data_ptr() == ref.get().data_ptr()
    net = store.put(torch.nn.Linear(300, 200))
    assert net.get().weight.data_ptr() == net.get().weight.data_ptr()
    assert net.get().weight.data_ptr() % 64 == 0


@pytest.mark.parametrize("mode", MODES)
def test_tensor_pins_its_object_as_long_as_anything_of_it_lives(store: Store, mode: str) -> None:
    """Also when its last holder dies in a thread of autograd."""
    ref = store.put({"x": torch.arange(100_000.0), "net": torch.nn.Linear(10, 10)})
    got = ref.get(mode=mode)
    row = got["x"][7:].numpy()
    loss = (got["x"].requires_grad_() * 2).sum() + got["net"](torch.ones(10)).sum()
    ref.delete()
    del got
    store.put(np.full(100_000, 255, np.uint8), key="other")
    assert row[0] == 7
    del row
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    del loss, thread
    store.delete("other")
    assert used(store) == 0


@lock_free_only
def test_process_that_ends_with_tensors_of_a_store_ends_well(
    store: Store, run_python: RunPython
) -> None:
    """Nothing is torn down under them; torch frees nothing then, so recovery takes the pins."""
    ref = store.put({"net": torch.nn.Linear(300, 200), "x": torch.arange(1000)})
    run_python("import torch; kept = [ref.get(), ref.get(mode='private')]", ref=ref)
    ref.delete()
    store.recover()
    assert used(store) == 0
