"""How do values of builtin types become streams, many of them one after the other?

The C pickler tells by itself what is not of a builtin type: it asks `reducer_override` about each
such object, and is refused. So nobody has to look through the values beforehand, and no code of
theirs runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

from shmstore.serialization.reductions import PROTOCOL

# The types whose objects the pickler takes without asking, or (complex) is told to take.
BUILTIN: Final = (
    *(bool, int, float, complex, str, bytes, bytearray, type(None)),
    *(dict, list, tuple, set, frozenset),
)

# After so many it is looked whether they are small, at most: before that after 1, 3, 7 ...
_PORTION: Final = 256


class _RefusedError(Exception):
    """An object is not of a builtin type."""


class BuiltinPickler(pickle.Pickler):
    """The C pickler, for builtin types only."""

    met = stood_in = False  # see `pickler.Pickler`

    def reducer_override(self, obj: Any) -> Any:
        """Refuse what the pickler asks about; it asks about complex numbers, too."""
        if type(obj) is complex or obj is complex:
            return NotImplemented
        raise _RefusedError


def _refuse(_: pickle.PickleBuffer) -> None:
    raise _RefusedError


def dumps_each(objects: Sequence[Any]) -> tuple[list[bytes], bytes] | None:
    """Pickle each of some objects by itself; None: they are not all small and of builtin types.

    Returns
    -------
    list of bytes
        The streams.
    bytes
        Their sizes: none is larger than 255.
    """
    streams: list[bytes] = []
    sizes = bytearray()
    pickler = BuiltinPickler(
        SimpleNamespace(write=streams.append), PROTOCOL, buffer_callback=_refuse
    )
    dump, clear = pickler.dump, pickler.clear_memo
    first, portion = 0, 1
    try:
        while first < len(objects):
            end = first + portion
            for x in objects[first:end]:
                dump(x)
                clear()
            sizes += bytes(map(len, streams[first:]))  # ValueError: one is larger
            if len(streams) > end:  # what is large comes in several parts
                return None
            first, portion = end, min(2 * portion, _PORTION)
    except Exception:  # noqa: BLE001 - the way for all others tells what is wrong
        return None
    return streams, bytes(sizes)
