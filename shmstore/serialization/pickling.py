"""How does an object become a pickle stream and buffers beside it?

One pass of cloudpickle's pickler, which runs the C code of pickle and is asked only about
functions, classes and instances, so that what lives in ``__main__`` or in a closure travels by
value. What consists of a few builtin values (`is_plain`) needs not even that.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import cloudpickle

PROTOCOL = 5

_LEAVES = frozenset({int, float, complex, str, bytes, bytearray, bool, type(None)})
_SMALL = 16


def dumps(x: Any, *, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """Pickle an object with protocol 5.

    Parameters
    ----------
    x
        Anything that pickle or cloudpickle takes.
    buffer_callback
        Called with each out-of-band buffer, as by `pickle.dumps`.

    Raises
    ------
    Exception
        Whatever the object's own reducer raises; `pickle.PicklingError` or `TypeError` as a rule.
    """
    with io.BytesIO() as stream:
        cloudpickle.Pickler(stream, PROTOCOL, buffer_callback).dump(x)
        return stream.getvalue()


def dumps_plain(x: Any) -> bytes:
    """Pickle an object for which `is_plain` holds."""
    return pickle.dumps(x, PROTOCOL)


def loads(stream: Any, *, buffers: Sequence[Any] = (), thaw: bool = False) -> Any:
    """Unpickle an object from a stream and its buffers. Reading untrusted bytes runs their code.

    Parameters
    ----------
    stream
        As `dumps` returned it.
    buffers
        The out-of-band buffers, in the order of the callbacks.
    thaw
        Leave the buffers as writeable as they are. A stream says of each buffer that was read-only
        that what is built on it must be so too.
    """
    if thaw and buffers:
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


def is_plain(x: Any) -> bool:
    """Return whether an object is a builtin value or a small container of such, two levels deep."""
    kind = type(x)
    if kind in _LEAVES:
        return True
    if kind is dict:
        return len(x) <= _SMALL and _LEAVES.issuperset(map(type, x)) and _are_plain(x.values())
    return (kind is list or kind is tuple) and len(x) <= _SMALL and _are_plain(x)


def _are_plain(values: Iterable[Any]) -> bool:
    for value in values:
        kind = type(value)
        if kind in _LEAVES:
            continue
        if kind is not list and kind is not tuple:
            return False
        if len(value) > _SMALL or not _LEAVES.issuperset(map(type, value)):
            return False
    return True
