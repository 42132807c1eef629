"""When is a container taken apart, and how is it put together again?

By default containers are pickled whole: identity, cycles and cost are then those of pickle. Taken
apart, each element is serialized by itself: on request, or where no pickle is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from shmstore.errors import CorruptHeaderError, SerializationError
from shmstore.serialization.dispatch import typename
from shmstore.serialization.frames import Frame, conform, hoist_flags
from shmstore.serialization.registry import Header, has_custom_handler
from shmstore.serialization.wording import shown

_KINDS: Final = {"list": list, "set": set, "tuple": tuple, "dict": dict}
_KEY_TYPES: Final = frozenset({str, bytes, int, float, bool, type(None)})

One = tuple[Header, Sequence[Frame]]


def is_taken_apart(x: Any, names: Sequence[str], iterate_collection: bool | None) -> bool:  # noqa: FBT001
    """Return whether the elements of `x` are serialized one by one.

    Only lists, tuples, sets and dicts, of exactly these types; a dict only if each key is a key of
    plain msgpack.
    """
    kind = type(x)
    if kind not in _KINDS.values() or iterate_collection is False:
        return False
    if iterate_collection is None and ("pickle" in names or not _needs_it(x, names)):
        return False
    return kind is not dict or all(map(_is_plain_key, x))


def _needs_it(x: Any, names: Sequence[str]) -> bool:
    return "custom" in names and has_custom_handler(x)


def _is_plain_key(key: Any) -> bool:
    """Return whether msgpack packs a key as it is; no subclass, which would lose its class."""
    kind = type(key)
    if kind is tuple:
        return all(map(_is_plain_key, key))
    if kind not in _KEY_TYPES:
        return False
    return kind is not int or -(2**63) <= key < 2**64


def take_apart(x: Any, serialize_one: Callable[[Any], One]) -> tuple[Header, list[Frame]]:
    """Serialize the elements of a container.

    Parameters
    ----------
    serialize_one
        Returns header and frames of an element.
    """
    headers: list[Header] = []
    frames: list[Frame] = []
    lengths: list[int] = []
    flags: list[bool] = []
    compression: list[Any] = []
    for key, element in x.items() if type(x) is dict else enumerate(x):
        try:
            header, more = serialize_one(element)
        except SerializationError as error:
            step = "{...}" if type(x) is set else f"[{shown(key)}]"
            raise located(error, step) from error
        except RecursionError as error:
            raise nested_too_deeply(x) from error
        header, more_flags = hoist_flags(header, more)
        if type(x) is dict:
            header = {**header, "key": key}
        headers.append(header)
        frames += more
        flags += more_flags
        lengths.append(len(more))
        compression += header.get("compression") or [None] * len(more)
    whole: Header = {
        "is-collection": True,
        "type": type(x).__name__,
        "type-serialized": type(x).__name__,
        "sub-headers": headers,
        "frame-lengths": lengths,
        "writeable": tuple(flags),
    }
    if any(name is not None for name in compression):
        whole["compression"] = compression
    return whole, frames


def nested_too_deeply(x: Any) -> SerializationError:
    """Return the error for what ended in a RecursionError."""
    return SerializationError(
        "containers are nested too deeply to be taken apart, or contain themselves; let 'pickle' "
        "take them whole",
        type=typename(x),
        path="obj",
    )


def located(error: SerializationError, step: str) -> SerializationError:
    """Return the error with the step to an element at the front of its path."""
    path = f"obj{step}{error.facts.get('path', 'obj').removeprefix('obj')}"
    if len(path) > 2 * _HALF_OF_PATH:
        path = f"{path[:_HALF_OF_PATH]} ... {path[-_HALF_OF_PATH:]}"
    message = f"{error.message.partition(_PART)[0]}{_PART}{path}"
    return SerializationError(message, **{**error.facts, "path": path})


_HALF_OF_PATH: Final = 200
_PART: Final = "; the offending part is "


def put_together(
    header: Header, frames: Sequence[Frame], deserialize_one: Callable[[Header, Any], Any]
) -> Any:
    """Rebuild a container; neither header nor frames are changed."""
    kind = _KINDS.get(_item(header, "type-serialized", str))
    if kind is None:
        raise CorruptHeaderError(
            f"a container of the unknown type {shown(header['type-serialized'])}",
            key="type-serialized",
        )
    headers = _item(header, "sub-headers", list)
    lengths = _item(header, "frame-lengths", list)
    if not all(type(n) is int and n >= 0 for n in lengths):
        raise CorruptHeaderError("the lengths of a container are no counts", key="frame-lengths")
    if len(headers) != len(lengths) or sum(lengths) != len(frames):
        raise CorruptHeaderError(
            f"a container of {len(headers)} elements has {len(lengths)} lengths that sum up to "
            f"{sum(lengths)} frames, but {len(frames)} frames came",
            key="frame-lengths",
            found=len(frames),
            expected=sum(lengths),
        )
    frames = conform(frames, header.get("writeable"))
    elements, start = [], 0
    for sub_header, length in zip(headers, lengths, strict=True):
        elements.append(deserialize_one(sub_header, frames[start : start + length]))
        start += length
    if kind is dict:
        x: Any = dict(zip([_item(h, "key", object) for h in headers], elements, strict=True))
    else:
        x = kind(elements)
    if len(x) != len(headers):
        raise CorruptHeaderError(
            f"a {kind.__name__} of {len(headers)} elements has only {len(x)} different ones",
            key="sub-headers",
            found=len(x),
            expected=len(headers),
        )
    return x


def _item(header: Any, key: str, kind: type) -> Any:
    """Return an item of a header, checked."""
    if not isinstance(header, dict) or key not in header:
        raise CorruptHeaderError(f"the header of a container lacks {key!r}", key=key)
    value = header[key]
    if kind is list and isinstance(value, tuple):
        return list(value)
    if not isinstance(value, kind):
        raise CorruptHeaderError(
            f"{key!r} in the header of a container is {type(value).__name__}, not {kind.__name__}",
            key=key,
        )
    return value
