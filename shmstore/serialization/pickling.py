"""How does an object become a pickle stream and buffers beside it?

One pass of cloudpickle's pickler, which runs the C code of pickle and is asked only about
functions, classes and instances, so that what lives in ``__main__`` or in a closure travels by
value. It asks the type registry about each of them: objects inside of objects get their handlers
too. What consists of a few builtin values (`is_plain`) needs not even that.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final

import cloudpickle

from shmstore.errors import CorruptHeaderError
from shmstore.serialization import interfaces, trust
from shmstore.serialization.dispatch import typename
from shmstore.serialization.frames import (
    Frame,
    Pieces,
    Planned,
    conform,
    ensure_memoryview,
    is_readonly,
)
from shmstore.serialization.registry import (
    Header,
    call_handler,
    custom_deserialize,
    custom_serialize,
    rebuild,
    reducers,
    unhandled_types,
)

PROTOCOL: Final = 5

_NUMBERS_AND_TEXT: Final = frozenset({int, float, complex, str, bool, type(None)})
_BYTES: Final = (bytes, bytearray)
_SMALL: Final = 16
_SMALL_NBYTES: Final = 4096

# A stream of several parts is joined up to this size; beyond it the parts are copied only once.
_JOIN_NBYTES: Final = 1 << 16


# --- streams -------------------------------------------------------------------------------------


def dumps(
    x: Any,
    *,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    protocol: int | None = None,
) -> bytes:
    """Pickle an object.

    Parameters
    ----------
    x
        Anything that pickle or cloudpickle takes, or a handler of the type registry.
    buffer_callback
        Called with each out-of-band buffer, as by `pickle.dumps`; never below protocol 5.
    protocol
        Of pickle; None: the highest.

    Raises
    ------
    Exception
        Whatever the object's own reducer raises; `pickle.PicklingError` or `TypeError` as a rule.
    """
    protocol = pickle.HIGHEST_PROTOCOL if protocol is None else protocol
    sink = _Sink()
    if buffer_callback is None or protocol < PROTOCOL:
        Pickler(sink, protocol).dump(x)
        return b"".join(sink.parts)
    buffers: list[pickle.PickleBuffer] = []
    Pickler(sink, protocol, buffers.append).dump(x)
    for buffer in buffers:
        frame = _frame_of(buffer)
        held = buffer if frame is None else pickle.PickleBuffer(ensure_memoryview(frame))
        buffer_callback(held)
    return b"".join(sink.parts)


def dumps_plain(x: Any) -> bytes:
    """Pickle an object for which `is_plain` holds."""
    return pickle.dumps(x, PROTOCOL)


def loads(stream: Any, *, buffers: Sequence[Any] = ()) -> Any:
    """Unpickle an object from a stream and its buffers. Reading untrusted bytes runs their code.

    Parameters
    ----------
    stream
        As `dumps` returned it.
    buffers
        The out-of-band buffers, in the order of the callbacks.
    """
    if buffers and trust.policy.get().thaw:
        return _ThawingUnpickler(io.BytesIO(stream), buffers=buffers).load()
    return pickle.loads(stream, buffers=buffers)


class _ThawingUnpickler(pickle._Unpickler):  # noqa: SLF001 - public in all but name
    """An unpickler that makes no buffer read-only.

    The C unpickler cannot be taught; this is its reference implementation in Python, which has the
    opcodes in a table. Slower, and used for private views only.
    """

    dispatch: ClassVar[Any] = {
        **pickle._Unpickler.dispatch,  # noqa: SLF001
        pickle.READONLY_BUFFER[0]: lambda _: None,
    }


class _Sink:
    """Takes the stream in parts; a large bytes object inside of it is a part, not a copy."""

    __slots__ = ("parts", "write")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.write = self.parts.append

    def frame(self) -> Frame:
        """Return the stream as one frame."""
        if len(self.parts) == 1:
            return self.parts[0]
        pieces = Pieces(self.parts)
        return b"".join(pieces.views) if pieces.nbytes <= _JOIN_NBYTES else pieces


def is_plain(x: Any) -> bool:
    """Return whether an object is a builtin value or a small container of such, two levels deep."""
    kind = type(x)
    if kind is dict:
        return len(x) <= _SMALL and _are_leaves(x) and _are_plain(x.values())
    if kind is list or kind is tuple:
        return len(x) <= _SMALL and _are_plain(x)
    return _is_leaf(x)


def _are_plain(values: Iterable[Any]) -> bool:
    for value in values:
        kind = type(value)
        if kind in _NUMBERS_AND_TEXT:
            continue
        if kind is list or kind is tuple:
            if len(value) > _SMALL or not _are_leaves(value):
                return False
        elif not _is_leaf(value):
            return False
    return True


def _are_leaves(values: Iterable[Any]) -> bool:
    for value in values:
        if type(value) not in _NUMBERS_AND_TEXT and not _is_leaf(value):
            return False
    return True


def _is_leaf(x: Any) -> bool:
    kind = type(x)
    return kind in _NUMBERS_AND_TEXT or (kind in _BYTES and len(x) <= _SMALL_NBYTES)


# --- the pickler ---------------------------------------------------------------------------------


class OutOfBand:
    """A frame among the arguments of a reduction, to lie beside the stream."""

    __slots__ = ("frame",)

    def __init__(self, frame: Frame) -> None:
        self.frame = frame


def out_of_band(frame: Frame) -> OutOfBand:
    """Mark a frame among the arguments that a reducer returns: it becomes a buffer there."""
    return OutOfBand(frame)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle's pickler, which asks the type registry about each object but plain values."""

    def __init__(
        self,
        file: Any,
        protocol: int = PROTOCOL,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.dispatch_table = _reductions()  # read by the next call
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self.stood_in = False
        self._by_value = bool(cloudpickle.list_registry_pickle_by_value())
        self._protocol = protocol
        self._beside = buffer_callback is not None
        self._context = context
        self._unhandled = unhandled_types()

    def reducer_override(self, obj: Any) -> Any:  # noqa: PLR0911 - one for each way
        """Return how to pickle an object, or NotImplemented for its own way.

        Flat: called for every object but those of the most common builtin types.
        """
        kind = type(obj)
        if kind in self._unhandled:
            return NotImplemented
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
            stand_in = _ReadonlyStandIn() if is_readonly(frame) else _StandIn()
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


class _StandIn(bytearray):
    """An empty buffer that stands for a frame without bytes of its own."""

    frame: Frame


class _ReadonlyStandIn(bytes):
    """As `_StandIn`, for a frame that readers may not write."""

    frame: Frame


def _frame_of(buffer: pickle.PickleBuffer) -> Frame | None:
    """Return the frame that a buffer stands for, or None if it is a real one."""
    exporter = memoryview(buffer).obj
    return exporter.frame if isinstance(exporter, (_StandIn, _ReadonlyStandIn)) else None


def _rebuild(cls: type, sub_header: Any, *frames: Any) -> Any:
    """Rebuild an object inside of a pickle by its handler. Its name lies in stored pickles."""
    handler = custom_deserialize.find(cls)
    if handler is None:
        raise CorruptHeaderError(
            f"no handler for objects of type {typename(cls)} is registered in this process. Import "
            "what registers it.",
            key="type",
            found=typename(cls),
        )
    return rebuild(handler, cls, sub_header, [ensure_memoryview(frame) for frame in frames])


# --- the family "pickle" -------------------------------------------------------------------------


def pickle_dumps(
    x: Any, context: dict[str, Any] | None = None, pickler: Callable[..., Pickler] = Pickler
) -> tuple[Header, list[Frame]]:
    """Frame 0 is the stream, the others are the buffers beside it, in the order of the stream.

    Parameters
    ----------
    context
        Its ``"pickle-protocol"`` is used; below 5 there are no buffers.
    pickler
        Makes the pickler; `explain` has one that takes notes.
    """
    protocol = context.get("pickle-protocol") if context else None
    protocol = pickle.HIGHEST_PROTOCOL if protocol is None else protocol
    header: Header = {"serializer": "pickle", "type": typename(type(x)), "writeable": ()}
    if is_plain(x):
        return header, [pickle.dumps(x, protocol)]
    buffers: list[pickle.PickleBuffer] = []
    sink = _Sink()
    callback = buffers.append if protocol >= PROTOCOL else None
    made = pickler(sink, protocol, callback, context)
    made.dump(x)
    frames = [sink.frame()]
    if made.stood_in:
        frames += [_frame_of(buffer) or _raw(buffer) for buffer in buffers]
        header["writeable"] = tuple([not is_readonly(frame) for frame in frames[1:]])
    else:
        views = [_raw(buffer) for buffer in buffers]
        frames += views
        header["writeable"] = tuple([not view.readonly for view in views])
    return header, frames


def pickle_loads(header: Header, frames: Sequence[Frame]) -> Any:
    """Unpickle over the frames, after making them as writeable as they were."""
    if not frames:
        raise CorruptHeaderError("a pickle has at least one frame, here is none", key="frames")
    return loads(frames[0], buffers=conform(frames[1:], header.get("writeable")))


def _raw(buffer: pickle.PickleBuffer) -> memoryview:
    try:
        return buffer.raw()
    except BufferError:
        return ensure_memoryview(buffer)
