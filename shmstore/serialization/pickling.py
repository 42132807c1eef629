"""How does an object become a pickle stream and buffers beside it?

One pass of cloudpickle's pickler, which runs the C code of pickle and is asked only about
functions, classes and instances, so that what lives in ``__main__`` or in a closure travels by
value. It asks the type registry about each of them: objects inside of objects get their handlers
too. What consists of a few builtin values (`is_plain`) needs not even that. A put uses a pickler
again that has met nothing else (`dump`).
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptHeaderError
from shmstore.serialization import trust
from shmstore.serialization.dispatch import typename
from shmstore.serialization.frames import (
    Frame,
    Pieces,
    conform,
    ensure_memoryview,
    is_readonly,
)
from shmstore.serialization.plain import BuiltinPickler
from shmstore.serialization.reductions import (
    PROTOCOL,
    ReadonlyStandIn,
    StandIn,
    _rebuild,  # noqa: F401 - stored pickles look for it here
    out_of_band,  # noqa: F401 - handlers of others do
)
from shmstore.serialization.registry import Header

if TYPE_CHECKING:
    from shmstore.serialization.pickler import Pickler

_NUMBERS_AND_TEXT: Final = frozenset({int, float, complex, str, bool, type(None)})
# Beyond SMALL_NBYTES these are no plain values: they have frames of their own.
BYTES: Final = frozenset({bytes, bytearray})
_CONTAINERS: Final = frozenset({dict, list, tuple})
_SMALL: Final = 16
SMALL_NBYTES: Final = 4096

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
    make = _pickler()
    sink = _Sink()
    if buffer_callback is None or protocol < PROTOCOL:
        make(sink, protocol).dump(x)
        return b"".join(sink.parts)
    buffers: list[pickle.PickleBuffer] = []
    make(sink, protocol, buffers.append).dump(x)
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
    if buffers and trust.policy.get().thaw and pickle.READONLY_BUFFER in bytes(stream):
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


def is_plain(x: Any, levels: int = 2) -> bool:
    """Return whether an object is a builtin value or a small container of such, so many deep."""
    kind = type(x)
    if kind in _NUMBERS_AND_TEXT:
        return True
    if kind in BYTES:
        return len(x) <= SMALL_NBYTES
    if kind not in _CONTAINERS or not levels or len(x) > _SMALL:
        return False
    parts = [*x, *x.values()] if kind is dict else x
    return all(is_plain(part, levels - 1) for part in parts)


# --- the pickler, see `pickler` ------------------------------------------------------------------


@functools.cache
def _pickler() -> type[Pickler]:
    """Return the class; what it is made from takes time to import, and plain values save it."""
    from shmstore.serialization.pickler import Pickler  # noqa: PLC0415 - see above

    if _Kept.make is not None:
        _Kept.make = Pickler
        _Kept.idle.clear()
    return Pickler


class Pickled(NamedTuple):
    """What a pickler made of an object: it, its stream in parts, and the buffers beside it."""

    pickler: Any
    parts: list[bytes]
    buffers: list[pickle.PickleBuffer]


class _Kept:
    """Picklers that have met nothing but plain values, to be used again.

    Attributes
    ----------
    idle
        Those that nobody uses now, with their methods at hand.
    make
        Makes one: for builtin types only, as long as nobody has put anything else. None: there are
        to be none.
    """

    idle: Final[list[tuple[Any, Any, Any, list[Any], list[Any]]]] = []
    make: ClassVar[Callable[..., Any] | None] = BuiltinPickler


_take: Final = _Kept.idle.pop
_give: Final = _Kept.idle.append


def keep_none() -> None:
    """Let `dump` decline from now on: somebody has put another family in the place of ours."""
    _Kept.make = None
    _Kept.idle.clear()


def dump(x: Any) -> bytes | Pickled | None:
    """Pickle an object by a pickler that may have been used before.

    Flat: the workload "put" of the benchmarks pays for it.

    Returns
    -------
    bytes, Pickled or None
        A small stream that is all of it; what was made of it; None: it cannot be pickled in this
        way, and the general one will tell why.
    """
    try:
        kept = pickler, write, clear, parts, buffers = _take()
    except IndexError:
        make, sink, buffers = _Kept.make, _Sink(), []
        if make is None:
            return None
        pickler, parts = make(sink, PROTOCOL, buffers.append), sink.parts
        write, clear = pickler.dump, pickler.clear_memo
        kept = pickler, write, clear, parts, buffers
    try:
        write(x)
    except Exception:  # noqa: BLE001 - see above
        return None
    stream: bytes = parts.pop()
    if parts or buffers or len(stream) > SMALL_NBYTES:
        return Pickled(pickler, [*parts, stream], buffers)
    if not pickler.met:
        clear()
        _give(kept)
    return stream


def _frame_of(buffer: pickle.PickleBuffer) -> Frame | None:
    """Return the frame that a buffer stands for, or None if it is a real one."""
    exporter = memoryview(buffer).obj
    return exporter.frame if isinstance(exporter, (StandIn, ReadonlyStandIn)) else None


# --- the family "pickle" -------------------------------------------------------------------------


def pickle_dumps(
    x: Any,
    context: dict[str, Any] | None = None,
    pickler: Callable[..., Pickler] | None = None,
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
    if is_plain(x):
        header: Header = {"serializer": "pickle", "type": typename(type(x)), "writeable": ()}
        return header, [pickle.dumps(x, protocol)]
    buffers: list[pickle.PickleBuffer] = []
    sink = _Sink()
    callback = buffers.append if protocol >= PROTOCOL else None
    made = (pickler or _pickler())(sink, protocol, callback, context)
    made.dump(x)
    return header_and_frames(x, Pickled(made, sink.parts, buffers))


def header_and_frames(x: Any, pickled: Pickled) -> tuple[Header, list[Frame]]:
    """Return what `pickle_dumps` does of an object that has been pickled."""
    made, parts, buffers = pickled
    frames: list[Frame] = [_joined(parts)]
    if made.stood_in:
        frames += [_frame_of(buffer) or _raw(buffer) for buffer in buffers]
        writeable = tuple([not is_readonly(frame) for frame in frames[1:]])
    else:
        views = [_raw(buffer) for buffer in buffers]
        frames += views
        writeable = tuple([not view.readonly for view in views])
    return {"serializer": "pickle", "type": typename(type(x)), "writeable": writeable}, frames


def _joined(parts: list[Any]) -> Frame:
    """Return a stream as one frame."""
    if len(parts) == 1:
        return parts[0]
    pieces = Pieces(parts)
    return b"".join(pieces.views) if pieces.nbytes <= _JOIN_NBYTES else pieces


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
