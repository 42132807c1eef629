"""Which family turns an object into header and frames, and which turns them back?"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextvars import ContextVar
from typing import Any, Final

import msgpack

from shmstore._tuples import NamedTuple
from shmstore.errors import (
    CorruptHeaderError,
    DeserializationError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import iterating, msgpacking, pickling, registry, trust
from shmstore.serialization.dispatch import has_keyword, typename
from shmstore.serialization.frames import (
    Frame,
    Pieces,
    Planned,
    ensure_memoryview,
    nbytes,
)
from shmstore.serialization.markers import Serialize, Serialized
from shmstore.serialization.registry import Header
from shmstore.serialization.wording import shown, str_of

DEFAULT_SERIALIZERS: Final = ("custom", "pickle")

# What stops a search for a family and reaches the caller as it is.
_RESOURCE_ERRORS: Final = (MemoryError, OSError)

_MOST_TRACEBACK: Final = 100_000


class Family(NamedTuple):
    """A named way to serialize: see `register_serialization_family`."""

    dumps: Callable[..., tuple[Header, list[Frame]]] | None
    loads: Callable[[Header, Sequence[Frame]], Any]
    wants_context: bool | None


families: dict[str, Family] = {}

# Put around the dumps of each family that is asked, by its name, while `explain` looks on.
watcher: Final[ContextVar[Callable[[str, Any], Any] | None]] = ContextVar("watcher", default=None)


def register_serialization_family(
    name: str,
    dumps: Callable[..., tuple[Header, list[Frame]]] | None,
    loads: Callable[[Header, Sequence[Frame]], Any],
) -> None:
    """Add a family of serializers, or replace the one of that name.

    Parameters
    ----------
    name
        What users name it by in ``serializers=`` and ``deserializers=``.
    dumps
        ``dumps(x[, context]) -> (header, frames)``; raises NotImplementedError to decline. None:
        the family can only load. ``"serializer"``, ``"type"``, ``"key"`` and ``"frame-nbytes"`` in
        the header are taken.
    loads
        ``loads(header, frames) -> object``.

    Raises
    ------
    TypeError
        The name is no str, or `dumps` or `loads` cannot be called.
    """
    _check_family(name, dumps, loads)
    if name in families and name in DEFAULT_SERIALIZERS:
        pickling.keep_none()
    families[name] = Family(dumps, loads, None if dumps is None else has_keyword(dumps, "context"))


def _check_family(name: object, dumps: object, loads: object) -> None:
    if not isinstance(name, str):
        message = f"name={name!r:.100}: the name of a family is a str, not {type(name).__name__}"
        raise TypeError(message)
    if not (dumps is None or callable(dumps)):
        message = f"dumps={dumps!r:.100}: give a function, or None for a family that only loads"
        raise TypeError(message)
    if not callable(loads):
        message = f"loads={loads!r:.100}: give a function"
        raise TypeError(message)


# --- to header and frames ------------------------------------------------------------------------


def serialize(
    x: Any,
    serializers: Sequence[str] | None = None,
    on_error: str = "message",
    context: dict[str, Any] | None = None,
    iterate_collection: bool | None = None,  # noqa: FBT001 - the order is known so
) -> tuple[Header, list[Frame]]:
    """Turn an object into a header and frames.

    Parameters
    ----------
    x
        Any object. A `Serialized` is returned as its header and frames; of a `Serialize` the data
        is serialized, with ``iterate_collection=True``.
    serializers
        Names of the families to ask, in this order; default ``("custom", "pickle")``. The first
        that does not decline wins.
    on_error
        "message": what cannot be serialized becomes an error that is raised by the reader;
        "raise": it is raised here.
    context
        Handed to families and handlers that have a parameter of this name. ``"pickle-protocol"`` is
        known to the family "pickle".
    iterate_collection
        True: lists, tuples, sets and dicts are taken apart, each element is serialized by itself.
        False: never. None: where no pickle is among `serializers` and an element has a handler.

    Returns
    -------
    header : dict
        What msgpack can pack; ``"serializer"`` names the family.
    frames : list of buffers
        They may be the memory of `x` itself.

    Raises
    ------
    SerializationError
        With ``on_error="raise"``: a family failed, or all declined. It names the type and the path
        to the offending part.
    MemoryError, OSError
        As a family raised them, always.
    TypeError, ValueError
        `serializers` are no names, or one of them, or `on_error`, is unknown.

    Examples
    --------
    >>> header, frames = serialize([1, 2])
    >>> header["serializer"], deserialize(header, frames)
    ('pickle', [1, 2])
    """
    if on_error not in ("message", "raise"):
        message = f"on_error={on_error!r}: expected 'message' or 'raise'"
        raise ValueError(message)
    names = DEFAULT_SERIALIZERS if serializers is None else known(serializers)
    try:
        header, frames = _serialize(x, names, on_error, context, iterate_collection)
    except SerializationError as error:  # of a container that was taken apart
        if on_error == "raise":
            raise
        header, frames = _error_payload(error)
    if any(type(frame) in (Planned, Pieces) for frame in frames):
        frames = [
            ensure_memoryview(frame) if type(frame) in (Planned, Pieces) else frame
            for frame in frames
        ]
    # Frames that came compressed will have other sizes when they are read.
    if not isinstance(x, Serialized) and not {"frame-nbytes", "compression"} & header.keys():
        header = {**header, "frame-nbytes": [nbytes(frame) for frame in frames]}
    return header, frames


def _serialize(
    x: Any,
    names: Sequence[str],
    on_error: str,
    context: dict[str, Any] | None,
    iterate_collection: bool | None,  # noqa: FBT001 - as in serialize
) -> tuple[Header, list[Frame]]:
    if isinstance(x, Serialized):
        return x.header, x.frames  # type: ignore[return-value]
    if isinstance(x, Serialize):
        return _serialize(x.data, names, on_error, context, iterate_collection=True)
    if iterating.is_taken_apart(x, names, iterate_collection):
        return iterating.take_apart(x, lambda e: _serialize(e, names, on_error, context, None))
    try:
        return ask_families(x, names, context)
    except SerializationError as error:
        if on_error == "raise":
            raise
        return _error_payload(error)


def encode(
    x: Any, names: Sequence[str], context: dict[str, Any] | None = None
) -> tuple[Header, list[Frame]]:
    """As `serialize` with known names and ``on_error="raise"``; frames may be promises of bytes."""
    return _serialize(x, names, "raise", context, iterate_collection=None)


def ask_families(
    x: Any, names: Sequence[str], context: dict[str, Any] | None
) -> tuple[Header, list[Frame]]:
    """Serialize an object as a whole by the first family that takes it."""
    watch = watcher.get()
    reasons = []
    for name in names:
        dumps, _, wants_context = families[name]
        if dumps is None:
            raise _load_only(name, x)
        if watch is not None:
            dumps = watch(name, dumps)
        try:
            header, frames = dumps(x, context=context) if wants_context else dumps(x)
        except NotImplementedError as error:
            reasons.append(f"{name}: {str_of(error)}")
            continue
        except (*_RESOURCE_ERRORS, SerializationError):
            raise
        except RecursionError as error:
            raise iterating.nested_too_deeply(x) from error
        except Exception as error:
            from shmstore.serialization.blame import blame  # noqa: PLC0415 - takes time that most processes can save

            raise blame(x, name, error) from error
        if header.get("serializer") != name or "type" not in header:
            header = {"type": typename(x), **header, "serializer": name}
        return header, frames
    raise _nobody_takes(x, names, reasons)


def known(names: Sequence[str]) -> Sequence[str]:
    """Return names of families, checked; TypeError or ValueError names those that exist."""
    try:
        unknown = [name for name in names if name not in families]
    except TypeError:
        raise TypeError(_wanted(names)) from None
    if isinstance(names, str) or unknown:
        raise ValueError(_wanted(names))
    return names


def _wanted(names: object) -> str:
    return f"serializers={names!r}: expected a sequence of names out of {', '.join(families)}"


def _nobody_takes(x: Any, names: Sequence[str], reasons: Sequence[str]) -> SerializationError:
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return SerializationError(
        f"could not serialize an object of type {typename(x)}: no family of "
        f"{', '.join(names) or 'none'} takes it{because}. Add 'pickle' to serializers, or register "
        "a handler for the type.",
        type=typename(x),
        families=tuple(names),
        path="obj",
    )


def _load_only(name: str, x: Any) -> SerializationError:
    return SerializationError(
        f"the family {name!r} can only load, not serialize an object of type {typename(x)}",
        type=typename(x),
        family=name,
        path="obj",
    )


# --- and back ------------------------------------------------------------------------------------


def deserialize(
    header: Header, frames: Sequence[Frame], deserializers: Container[str] | None = None
) -> Any:
    """Turn a header and frames back into the object.

    Parameters
    ----------
    header, frames
        As `serialize` returned them; neither is changed.
    deserializers
        Names of the accepted families; default all. Only without "pickle" is it safe to read what
        comes from somebody who is not trusted.

    Raises
    ------
    FamilyRefusedError
        The family is not accepted.
    CorruptHeaderError
        Header and frames do not belong together, or one of them is damaged.
    DeserializationError
        The family is unknown, or it failed.
    SerializationError
        What was serialized is an error; this is it.
    TypeError
        `deserializers` are no collection.
    """
    if deserializers is None:
        return decode(header, frames)
    if isinstance(deserializers, str) or not hasattr(deserializers, "__contains__"):
        message = (
            f"deserializers={deserializers!r:.100}: expected a collection of names, not one "
            f"{type(deserializers).__name__}"
        )
        raise TypeError(message)
    with trust.reading(trust.policy.get()._replace(accepted=deserializers)):
        return decode(header, frames)


def decode(header: Header, frames: Sequence[Frame]) -> Any:
    """As `deserialize`, with the families that are accepted in this context."""
    if not isinstance(header, dict):
        raise CorruptHeaderError(f"a header is a dict, this is {type(header).__name__}", key=None)
    try:
        check_sizes(header, frames)
        if header.get("is-collection"):
            return iterating.put_together(header, frames, decode)
        return _ask_family(header, frames)
    except (*_RESOURCE_ERRORS, ShmStoreError):
        raise
    except Exception as error:
        name, kind = header.get("serializer"), header.get("type", "unknown")
        raise DeserializationError(
            f"an object of type {shown(kind, 200)} could not be rebuilt by {shown(name)}: "
            f"{type(error).__name__}: {str(error)[:1000]}",
            family=name,
        ) from error


def _ask_family(header: Header, frames: Sequence[Frame]) -> Any:
    name = header.get("serializer")
    if not isinstance(name, str):
        raise CorruptHeaderError(
            f"the header names the serializer {shown(name)}", key="serializer", found=name
        )
    family = families.get(name)
    if family is None:
        raise DeserializationError(
            f"the header names the serializer {shown(name)}; known here: {', '.join(families)}. "
            "Register the family in this process too.",
            family=name,
        )
    if trust.policy.get().accepted is not None:
        trust.accept(name, f"an object of type {shown(header.get('type'), 200)}")
    return family.loads(header, frames)


def check_serialized(header: Header, frames: Sequence[Frame]) -> None:
    """Raise CorruptHeaderError for what cannot have come out of `serialize`."""
    if not isinstance(header, dict):
        raise CorruptHeaderError(f"a header is a dict, this is {type(header).__name__}", key=None)
    if not isinstance(frames, (list, tuple)):
        raise CorruptHeaderError(f"frames are a list, this is {type(frames).__name__}", key=None)
    names = ["type"] if header.get("is-collection") else ["type", "serializer"]
    for name in names:
        if not isinstance(header.get(name), str):
            raise CorruptHeaderError(
                f"{name!r} of a header is {shown(header.get(name))}, no text", key=name
            )
    try:
        for frame in frames:
            nbytes(frame)
    except (TypeError, ValueError) as error:
        raise CorruptHeaderError(f"a frame is no buffer: {error}", key="frames") from error


def check_sizes(header: Header, frames: Sequence[Frame]) -> None:
    """Raise if frames were cut or extended; a frame may come in several pieces."""
    sizes = header.get("frame-nbytes")
    if sizes is None:
        return
    found = [nbytes(frame) for frame in frames]
    if isinstance(sizes, (list, tuple)) and all(type(size) is int for size in sizes):
        split = len(found) > len(sizes) and sum(found) == sum(sizes)
        if split or found == list(sizes):
            return
    raise CorruptHeaderError(
        f"the header tells of frames of {shown(sizes, 200)} bytes, these have {shown(found, 200)}",
        key="frame-nbytes",
        found=found,
        expected=sizes,
    )


# --- errors as payload ---------------------------------------------------------------------------


def _error_payload(error: SerializationError) -> tuple[Header, list[Frame]]:
    """Return the error as header and frames: the message, and the end of the traceback."""
    import traceback  # noqa: PLC0415 - takes time that most processes can save

    frames = [error.message.encode(errors="backslashreplace")]
    if error.__cause__ is not None:
        text = "".join(traceback.format_exception(error.__cause__))
        frames.append(text[-_MOST_TRACEBACK:].encode(errors="backslashreplace"))
    return {"serializer": "error", "type": error.facts.get("type", "unknown")}, frames


def _raise_payload(_: Header, frames: Sequence[Frame]) -> Any:
    text = [bytes(ensure_memoryview(frame)).decode(errors="replace") for frame in frames]
    raise SerializationError("\n".join(text))


# --- the families that are always there ----------------------------------------------------------


def msgpack_dumps(x: Any) -> tuple[Header, list[Frame]]:
    """Pack strictly, or decline."""
    try:
        return {"type": typename(x)}, [msgpacking.packb(x)]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotImplementedError(str(error)) from error


def msgpack_loads(_: Header, frames: Sequence[Frame]) -> Any:
    """Unpack one frame, or the pieces of one."""
    views = [ensure_memoryview(frame) for frame in frames]
    return msgpacking.unpackb(views[0] if len(views) == 1 else b"".join(views))


register_serialization_family("custom", registry.custom_dumps, registry.custom_loads)
register_serialization_family("pickle", pickling.pickle_dumps, pickling.pickle_loads)
register_serialization_family("msgpack", msgpack_dumps, msgpack_loads)
register_serialization_family("error", None, _raise_payload)


def _pack_marked(default: Any, x: Any) -> Any:
    placed = default(x)
    if type(placed) is msgpack.ExtType:
        return placed  # a message has a place for it
    header, frames = (x.header, x.frames) if type(x) is Serialized else serialize(x)
    return msgpacking.packb([header, [bytes(ensure_memoryview(frame)) for frame in frames]])


def _unpack_marked(default: Any, data: bytes) -> Serialized:
    """Return what was serialized, not decoded: its reader may not be allowed to unpickle."""
    header, frames = msgpacking.unpackb(data, default)
    bytes_only = isinstance(frames, list) and all(type(frame) is bytes for frame in frames)
    if not isinstance(header, dict) or not bytes_only:
        raise CorruptHeaderError("a packed object has no header or no frames", key="frames")
    return Serialized(header, frames)


for _cls in (Serialize, Serialized):
    msgpacking.add_extension(_cls, msgpacking.EXT_SERIALIZED, _pack_marked, _unpack_marked)
