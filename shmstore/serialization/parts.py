"""How does a handler serialize the objects inside of its object?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shmstore.errors import CorruptHeaderError, SerializationError
from shmstore.serialization import iterating
from shmstore.serialization.family import DEFAULT_SERIALIZERS, decode, encode
from shmstore.serialization.frames import Frame, hoist_flags
from shmstore.serialization.wording import shown


def serialize_parts(
    parts: Mapping[str, Any],
    context: dict[str, Any] | None = None,
    serializers: Sequence[str] = DEFAULT_SERIALIZERS,
) -> tuple[dict[str, Any], list[Frame]]:
    """Serialize the parts of an object for its handler, each by itself.

    Returns
    -------
    header : dict
        By name the part's header and its slice of the frames.
    frames : list
        Of all parts, in order.
    """
    headers: dict[str, Any] = {}
    frames: list[Frame] = []
    for name, part in parts.items():
        try:
            header, more = encode(part, serializers, context)
        except SerializationError as error:
            raise iterating.located(error, f".{name}") from error
        header, _ = hoist_flags(header, more)  # the flags of all frames stand beside the parts
        stop = len(frames) + len(more)
        headers[name] = {"header": header, "start": len(frames), "stop": stop}
        frames += more
    return headers, frames


def deserialize_parts(headers: Mapping[str, Any], frames: Sequence[Frame]) -> dict[str, Any]:
    """Rebuild the parts that `serialize_parts` serialized."""
    parts = {}
    end = 0
    for name, part in headers.items():
        start, stop = part["start"], part["stop"]
        # Each frame belongs to one part: shared ones would make much of little.
        if start != end or type(stop) is not int or not start <= stop <= len(frames):
            raise _wrong_parts(name, (start, stop), len(frames))
        parts[name] = decode(part["header"], frames[start:stop])
        end = stop
    if end != len(frames):
        raise _wrong_parts("the last", (end, len(frames)), len(frames))
    return parts


def _wrong_parts(name: Any, places: tuple[Any, Any], count: int) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"part {shown(name)} has the frames {shown(places)} of {count}; parts follow each other "
        "and take all frames",
        key="stop",
        found=count,
        expected=places[1],
    )
