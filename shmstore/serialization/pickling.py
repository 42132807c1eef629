"""How does an object become a pickle stream and buffers beside it?

One pass of cloudpickle's pickler, which runs the C code of pickle and is asked only about
functions, classes and instances, so that what lives in ``__main__`` or in a closure travels by
value. It asks the type registry about each of them: objects inside of objects get their handlers
too. What consists of a few builtin values (`is_plain`) needs not even that.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

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
    return _NUMBERS_AND_TEXT.issuperset(map(type, values)) or all(map(_is_leaf, values))


def _is_leaf(x: Any) -> bool:
    kind = type(x)
    return kind in _NUMBERS_AND_TEXT or (kind in _BYTES and len(x) <= _SMALL_NBYTES)


# --- the pickler, see `pickler` ------------------------------------------------------------------


@functools.cache
def _pickler() -> type[Pickler]:
    """Return the class; what it is made from takes time to import, and plain values save it."""
    from shmstore.serialization.pickler import Pickler  # noqa: PLC0415 - see above

    return Pickler


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
    header: Header = {"serializer": "pickle", "type": typename(type(x)), "writeable": ()}
    if is_plain(x):
        return header, [pickle.dumps(x, protocol)]
    buffers: list[pickle.PickleBuffer] = []
    sink = _Sink()
    callback = buffers.append if protocol >= PROTOCOL else None
    made = (pickler or _pickler())(sink, protocol, callback, context)
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
