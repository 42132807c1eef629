"""Which pickler takes the objects that are more than plain values?

Cloudpickle's, taught to ask the type registry. It lies apart from `pickling` because cloudpickle
takes time to import: a process that only reads, or puts arrays and plain values, never needs it.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle

from shmstore.serialization import interfaces
from shmstore.serialization.frames import (
    Frame,
    Pieces,
    Planned,
    ensure_memoryview,
    is_readonly,
)
from shmstore.serialization.reductions import (
    PROTOCOL,
    OutOfBand,
    ReadonlyStandIn,
    StandIn,
    _rebuild,
)
from shmstore.serialization.registry import (
    call_handler,
    custom_serialize,
    reducers,
    unhandled_types,
)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle's pickler, which asks the type registry about each object but plain values.

    Attributes
    ----------
    met
        Whether there was an object that is more than a plain value.
    stood_in
        Whether some of the buffers stand for frames, see `reductions.StandIn`.
    """

    def __init__(
        self,
        file: Any,
        protocol: int = PROTOCOL,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.dispatch_table = self._reductions = _reductions()  # read by the next call
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self.met = self.stood_in = False
        self._by_value = False
        self._protocol = protocol
        self._beside = buffer_callback is not None
        self._context = context
        self._unhandled: set[type] = set()

    def _meet(self) -> None:
        """Find out what holds from the first object on that is more than a plain value."""
        if self._reductions is not _reductions():
            message = "reductions were registered since this pickler was made"
            raise RuntimeError(message)
        self._by_value = bool(cloudpickle.list_registry_pickle_by_value())
        self._unhandled = unhandled_types()
        self.met = True

    def reducer_override(self, obj: Any) -> Any:  # noqa: PLR0911 - one for each way
        """Return how to pickle an object, or NotImplemented for its own way.

        Flat: called for every object but those of the most common builtin types.
        """
        kind = type(obj)
        if kind in self._unhandled:
            return NotImplemented
        if not self.met:
            self._meet()
        if kind is types.FunctionType or issubclass(kind, type):
            if not self._by_value and _is_where_it_says(obj):
                return NotImplemented
            return super().reducer_override(obj)
        reduce = reducers.find(kind)
        reduction = None if reduce is None else reduce(obj)
        if reduction is not None:
            return reduction if reduction is NotImplemented else self._place_buffers(reduction)
        handler = custom_serialize.find(kind)
        if handler is not None:
            return self._reduce_by_handler(handler, obj)
        if kind in self.dispatch_table or not interfaces.may_export(obj):
            if reduce is None:
                self._unhandled.add(kind)
            return NotImplemented
        return interfaces.reduce(obj, self._protocol)

    def _reduce_by_handler(self, handler: Any, obj: Any) -> Any:
        try:
            sub_header, frames = call_handler(handler, obj, self._context)
        except NotImplementedError as error:
            return self._decline(error)
        return self._place_buffers(
            (_rebuild, (type(obj), sub_header, *[OutOfBand(frame) for frame in frames]))
        )

    def _decline(self, _: NotImplementedError) -> Any:
        """Let an object's own way work, because its handler declined."""
        return NotImplemented

    def _place_buffers(self, reduction: Any) -> Any:
        function, arguments, *rest = reduction
        placed = [
            self._buffer(argument.frame) if type(argument) is OutOfBand else argument
            for argument in arguments
        ]
        return function, tuple(placed), *rest

    def _buffer(self, frame: Frame) -> Any:
        """Return what the C pickler writes as a buffer."""
        if self._protocol < PROTOCOL:
            view = ensure_memoryview(frame)
            return bytes(view) if view.readonly else bytearray(view)
        if self._beside and type(frame) in (Planned, Pieces):
            self.stood_in = True
            stand_in = ReadonlyStandIn() if is_readonly(frame) else StandIn()
            stand_in.frame = frame
            return pickle.PickleBuffer(stand_in)
        return pickle.PickleBuffer(ensure_memoryview(frame))


def _is_where_it_says(obj: Any) -> bool:
    """Return whether a class or function of a module is found by its name there.

    It is what cloudpickle asks, without what it asks of objects that are not.
    """
    module = getattr(obj, "__module__", None)
    if type(module) is not str or module in ("__main__", "__mp_main__"):
        return False
    home = getattr(sys.modules.get(module), "__dict__", {})
    return home.get(getattr(obj, "__qualname__", None)) is obj


class _Reductions:
    """The reductions that cloudpickle and `copyreg` know, in one dict.

    Cloudpickle has them in a ChainMap, which the C pickler asks about every object.
    """

    seen: ClassVar[dict[Any, Any]] = {}
    table: ClassVar[dict[Any, Any]] = dict(cloudpickle.Pickler.dispatch_table)


def _reductions() -> dict[Any, Any]:
    if copyreg.dispatch_table != _Reductions.seen:
        _Reductions.seen = copyreg.dispatch_table.copy()
        _Reductions.table = dict(cloudpickle.Pickler.dispatch_table)
    return _Reductions.table
