"""How do the arguments and the result of a call go through a store, and nothing else of them?

A call is pickled as `multiprocessing` would, with two differences. Large arrays (and tables,
tensors: whatever has a handler and says its size) are put into the store, and their references are
pickled. What is left of the buffers stays beside the stream; if all that is large, it goes into the
store as well. What finds no room there travels as it would without a store.

What does not lie in a module, lambdas for example, is pickled by value.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, Protocol, Self

import numpy as np

from shmstore import _traveling
from shmstore._ref import ObjectRef
from shmstore.errors import SerializationError, ShmStoreError
from shmstore.serialization import Serialized, custom_serialize
from shmstore.serialization.frames import ensure_memoryview, is_readonly, nbytes
from shmstore.serialization.pickler import Pickler
from shmstore.serialization.pickling import loads, pickle_dumps

_PROTOCOL: Final = 5


class Depot(Protocol):
    """Where parcels put what is large.

    Attributes
    ----------
    threshold
        Bytes from which on something is large.
    taking
        How it is taken out; see `take`.
    leaves
        Whether what was sent dies here before it has arrived.
    """

    threshold: int
    taking: str
    leaves: bool

    def place(self, obj: Any) -> ObjectRef | None:
        """Put an object, or find it; None: it must travel otherwise."""

    def place_once(self, obj: Any) -> ObjectRef:
        """Put what nobody else will ask for."""


class Parcel:
    """What is sent: a stream, and the buffers beside it or a reference to all that.

    Parameters
    ----------
    stream
        A pickle, or a reference to the pickle and its buffers.
    buffers
        Those beside the stream.
    taking
        How the object of the reference is taken out; see `take`.
    """

    __slots__ = ("_buffers", "_stream", "_taking")

    def __init__(self, stream: bytes | ObjectRef, buffers: list[Any], taking: str) -> None:
        self._stream = stream
        self._buffers = buffers
        self._taking = taking

    @classmethod
    def pack(cls, obj: Any, depot: Depot) -> Self:
        """Pickle anything; its large parts go into a depot."""
        header, frames = pickle_dumps(obj, pickler=functools.partial(_Packer, depot))
        if sum(map(nbytes, frames)) >= depot.threshold:
            with contextlib.suppress(ShmStoreError):
                return cls(depot.place_once(Serialized(header, frames)), [], depot.taking)
        stream, *buffers = frames
        owned = [_owned(buffer) for buffer in buffers]
        return cls(bytes(ensure_memoryview(stream)), owned, depot.taking)

    def open(self) -> Any:
        """Return the object."""
        if isinstance(self._stream, ObjectRef):
            return _take_whole(self._stream, self._taking)
        return loads(self._stream, buffers=self._buffers)

    def __reduce__(self) -> Any:
        return Parcel, (self._stream, self._buffers, self._taking)


def _owned(buffer: Any) -> bytes | bytearray:
    view = ensure_memoryview(buffer)
    return bytes(view) if is_readonly(buffer) else bytearray(view)


# --- taking out ----------------------------------------------------------------------------------


def take(ref: ObjectRef, taking: str, writeable: bool = True) -> Any:  # noqa: FBT001, FBT002 - in pickles
    """Return an object that was placed. Its name lies in pickles.

    Parameters
    ----------
    taking
        A mode of `Store.get`; or "move": the only reader takes it away, and has it as it was.
    """
    obj = _get(ref, taking)
    if not writeable and isinstance(obj, np.ndarray):
        obj.flags.writeable = False
    return obj


def _take_whole(ref: ObjectRef, taking: str) -> Any:
    # Private views thaw what was read-only; of small buffers a copy does as well.
    return _get(ref, "copy" if taking == "private" else taking)


def _get(ref: ObjectRef, taking: str) -> Any:
    if taking != "move":
        return ref.get(mode=taking)
    obj = ref.get()
    with contextlib.suppress(ShmStoreError):
        ref.delete()
    return obj


# --- packing -------------------------------------------------------------------------------------


class _Packer(Pickler):
    """Pickles for another process of this machine, with a depot for what is large."""

    def __init__(
        self,
        depot: Depot,
        file: Any,
        protocol: int = _PROTOCOL,
        buffer_callback: Callable[[Any], Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(file, protocol, buffer_callback, context)
        # What multiprocessing knows to hand over: connections, and what others registered.
        self.dispatch_table = {**self.dispatch_table, **ForkingPickler(file).dispatch_table}
        self._depot = depot

    def reducer_override(self, obj: Any) -> Any:
        """Return how to pickle an object, or NotImplemented for its own way."""
        kind = type(obj)
        if kind is types.FunctionType or issubclass(kind, type):
            return NotImplemented if _is_importable(obj) else super().reducer_override(obj)
        if kind is np.ndarray:
            return self._reduce_array(obj)
        if _says_large(obj, self._depot.threshold) and custom_serialize.find(kind) is not None:
            ref = self._depot.place(obj)
            if ref is not None:
                return take, (ref, self._depot.taking)
        return super().reducer_override(obj)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        if array.nbytes < self._depot.threshold or array.dtype.hasobject:
            return array.__reduce_ex__(_PROTOCOL)
        found = _traveling.find(array)
        if found is not None:
            # Of what is deleted whoever has a view is the owner, and lends it to be read.
            deleted = _traveling.is_deleted(found)
            return _traveling.refer(array, private=deleted, keep=self._depot.leaves)
        ref = self._depot.place(array)
        if ref is None:
            return array.__reduce_ex__(_PROTOCOL)
        return take, (ref, self._depot.taking, bool(array.flags.writeable))


def _says_large(obj: Any, threshold: int) -> bool:
    size = getattr(obj, "nbytes", None)
    return isinstance(size, int) and size >= threshold


def _is_importable(obj: Any) -> bool:
    """Return whether a class or function is found by its name; `__main__` counts, as for pickle."""
    found = sys.modules.get(getattr(obj, "__module__", None) or "")
    for name in getattr(obj, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is obj


def placeable(error: ShmStoreError) -> bool:
    """Return whether an object that could not be placed may travel without the store."""
    return not isinstance(error, SerializationError)
