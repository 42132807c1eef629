"""Which family turns an object into header and frames, and which turns them back?"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

from shmstore.errors import DeserializationError, SerializationError
from shmstore.serialization import pickling
from shmstore.serialization.dispatch import Dispatch, typename
from shmstore.serialization.frames import Frame, conform, ensure_memoryview

Header = dict[str, Any]

DEFAULT_SERIALIZERS = ("custom", "pickle")

# What stops a search for a family and reaches the caller as it is.
_RESOURCE_ERRORS = (MemoryError, OSError)


class Family(NamedTuple):
    """A named way to serialize: see `register_serialization_family`."""

    dumps: Callable[..., tuple[Header, list[Frame]]] | None
    loads: Callable[[Header, Sequence[Frame]], Any]
    wants_context: bool
    accepts: Callable[[type], bool] | None


families: dict[str, Family] = {}
custom_serialize = Dispatch("custom_serialize")
custom_deserialize = Dispatch("custom_deserialize")


def register_serialization_family(
    name: str,
    dumps: Callable[..., tuple[Header, list[Frame]]] | None,
    loads: Callable[[Header, Sequence[Frame]], Any],
    *,
    accepts: Callable[[type], bool] | None = None,
) -> None:
    """Add a family of serializers, or replace the one of that name.

    Parameters
    ----------
    name
        What users name it by in ``serializers=`` and ``deserializers=``.
    dumps
        ``dumps(x[, context]) -> (header, frames)``; raises NotImplementedError to decline. None:
        the family can only load.
    loads
        ``loads(header, frames) -> object``.
    accepts
        Cheap test by type that saves asking `dumps` where it would decline.
    """
    wants_context = dumps is not None and "context" in inspect.signature(dumps).parameters
    families[name] = Family(dumps, loads, wants_context, accepts)


def register_serialization(
    cls: Any,
    serialize: Callable[[Any], tuple[Header, list[Frame]]],
    deserialize: Callable[[Header, Sequence[Frame]], Any],
    *,
    subclasses: bool = False,
) -> None:
    """Handle the objects of one type in the family "custom".

    Parameters
    ----------
    cls
        The type itself; with `subclasses` also the types derived from it.
    serialize
        ``serialize(x) -> (sub_header, frames)``; raises NotImplementedError to decline. A frame
        that must not be written by readers is read-only.
    deserialize
        ``deserialize(sub_header, frames) -> object``.
    """
    if not isinstance(cls, type):
        message = f"expected a class, got {cls!r}; for lazy registration use Dispatch.register_lazy"
        raise TypeError(message)
    custom_serialize.register(cls, serialize, subclasses=subclasses)
    custom_deserialize.register(cls, deserialize, subclasses=subclasses)


def serialize(
    x: Any, serializers: Sequence[str] | None = None, context: dict[str, Any] | None = None
) -> tuple[Header, list[Frame]]:
    """Turn an object into a header and frames.

    Parameters
    ----------
    x
        Any object.
    serializers
        Names of the families to ask, in this order; default ``("custom", "pickle")``.
    context
        Handed to families that want it.

    Returns
    -------
    header : dict
        What msgpack can pack; ``"serializer"`` names the family.
    frames : list of buffers
        They may be the memory of `x` itself.

    Raises
    ------
    SerializationError
        A family failed, or all declined.
    ValueError
        A name in `serializers` is unknown.
    """
    names = DEFAULT_SERIALIZERS if serializers is None else _known(serializers)
    for name in names:
        dumps, _, wants_context, accepts = families[name]
        if dumps is None or (accepts is not None and not accepts(type(x))):
            continue
        try:
            header, frames = dumps(x, context) if wants_context else dumps(x)
        except NotImplementedError:
            continue
        except _RESOURCE_ERRORS:
            raise
        except Exception as error:
            raise SerializationError(
                f"an object of type {typename(type(x))} cannot be serialized by {name!r}: "
                f"{type(error).__name__}: {str(error)[:1000]}",
                type=typename(type(x)),
                family=name,
            ) from error
        header["serializer"] = name
        return header, frames
    raise SerializationError(
        f"no family of {', '.join(names)} takes an object of type {typename(type(x))}. Add "
        "'pickle' to serializers, or register a handler for the type.",
        type=typename(type(x)),
        families=tuple(names),
    )


def deserialize(
    header: Header, frames: Sequence[Frame], deserializers: Container[str] | None = None
) -> Any:
    """Turn a header and frames back into the object.

    Parameters
    ----------
    header, frames
        As `serialize` returned them; neither is changed.
    deserializers
        Names of the accepted families; default all.

    Raises
    ------
    DeserializationError
        The family is unknown or not accepted, or it failed.
    """
    if isinstance(deserializers, str):
        message = f"deserializers={deserializers!r}: expected a collection of names, not one str"
        raise TypeError(message)
    name = header.get("serializer")
    if not isinstance(name, str) or name not in families:
        raise DeserializationError(
            f"the header names the serializer {name!r}; known here: {', '.join(families)}. "
            "Register the family in this process too.",
            family=name,
        )
    if deserializers is not None and name not in deserializers:
        raise DeserializationError(
            f"the object was serialized by {name!r}, which is not among the accepted deserializers "
            f"{deserializers!r}.",
            family=name,
        )
    try:
        return families[name].loads(header, frames)
    except (*_RESOURCE_ERRORS, DeserializationError):
        raise
    except Exception as error:
        raise DeserializationError(
            f"an object of type {header.get('type', 'unknown')} could not be rebuilt by {name!r}: "
            f"{type(error).__name__}: {str(error)[:1000]}",
            family=name,
        ) from error


def _known(names: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in names if name not in families]
    if isinstance(names, str) or unknown:
        message = (
            f"serializers={names!r}: expected a sequence of names out of {', '.join(families)}"
        )
        raise ValueError(message)
    return names


# --- the family "pickle" -----------------------------------------------------------------------


def pickle_dumps(x: Any) -> tuple[Header, list[Frame]]:
    """Frame 0 is the stream, the others are the buffers beside it, in the order of the stream."""
    if pickling.is_plain(x):
        return {"type": typename(type(x))}, [pickling.dumps_plain(x)]
    buffers: list[pickle.PickleBuffer] = []
    frames: list[Frame] = [pickling.dumps(x, buffer_callback=buffers.append)]
    header: Header = {"type": typename(type(x))}
    if buffers:
        views = [_raw(buffer) for buffer in buffers]
        header["writeable"] = tuple(not view.readonly for view in views)
        frames += views
    return header, frames


def pickle_loads(header: Header, frames: Sequence[Frame]) -> Any:
    """Unpickle over the frames, after making them as writeable as they were.

    With ``header["thaw"]`` what stands on a writeable frame is writeable, whatever the stream says.
    """
    buffers = conform(frames[1:], header.get("writeable"))
    return pickling.loads(frames[0], buffers=buffers, thaw=header.get("thaw", False))


def _raw(buffer: pickle.PickleBuffer) -> memoryview:
    try:
        return buffer.raw()
    except BufferError:
        return ensure_memoryview(buffer)


# --- the family "custom" -----------------------------------------------------------------------


def custom_dumps(x: Any) -> tuple[Header, list[Frame]]:
    """Ask the handler of the object's type."""
    handler = custom_serialize.dispatch(type(x))
    if handler is None:
        raise NotImplementedError(typename(type(x)))
    sub_header, frames = handler(x)
    flags = tuple(not memoryview(frame).readonly for frame in frames)
    return {"type": typename(type(x)), "sub-header": sub_header, "writeable": flags}, frames


def custom_loads(header: Header, frames: Sequence[Frame]) -> Any:
    """Ask the handler of the type that the header names."""
    handler = custom_deserialize.dispatch_name(header["type"])
    if handler is None:
        raise DeserializationError(
            f"no handler for objects of type {header['type']!r} is registered in this process. "
            "Register it, or put the object with serializers=('pickle',).",
            type=header["type"],
        )
    return handler(header["sub-header"], conform(frames, header.get("writeable")))


def _has_handler(cls: type) -> bool:
    return custom_serialize.dispatch(cls) is not None


def _load_numpy() -> None:
    from shmstore.serialization.handlers import numpy as handler  # noqa: PLC0415 - when needed

    handler.register(register_serialization)


register_serialization_family("custom", custom_dumps, custom_loads, accepts=_has_handler)
register_serialization_family("pickle", pickle_dumps, pickle_loads)
custom_serialize.register_lazy("numpy", _load_numpy)
custom_deserialize.register_lazy("numpy", _load_numpy)
