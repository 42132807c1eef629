"""How does an object travel that is nothing but its attributes?

Plain attributes lie in the header, the others are serialized one by one, so that arrays among them
are frames and need no pickle. No constructor and no ``__setstate__`` runs when it comes back.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.dispatch import Dispatch, typename
from shmstore.serialization.frames import Frame
from shmstore.serialization.markers import Serialize
from shmstore.serialization.parts import deserialize_parts, serialize_parts
from shmstore.serialization.registry import (
    Header,
    custom_deserialize,
    custom_serialize,
    register_reducer,
)
from shmstore.serialization.wording import shown

_PLAIN: Final = frozenset({type(None), str, bool, int, float, bytes})

# The objects whose attributes are being serialized in this context.
_busy: ContextVar[tuple[int, ...]] = ContextVar("busy", default=())


class _RefersToItself(BaseException):
    """Leaves the attributes of an object one of which leads back to it. No failure."""


def register_generic(
    cls: type,
    serializer_name: str = "custom",
    serialize_func: Dispatch = custom_serialize,
    deserialize_func: Dispatch = custom_deserialize,
) -> None:
    """Handle a class, and those derived from it, by the attributes of its objects.

    Parameters
    ----------
    cls
        Its objects hold nothing but attributes. Those that refer to themselves are pickled.
    serializer_name
        Family that is asked for each attribute, before "pickle".
    serialize_func, deserialize_func
        Where the handlers are registered.

    Raises
    ------
    TypeError
        Objects of the class hold more than attributes: it derives from list, dict, ndarray, ...

    Examples
    --------
    >>> class Track:
    ...     def __init__(self, points):
    ...         self.points = points
    >>> register_generic(Track)
    """
    try:
        _bare(cls)
    except TypeError as error:
        message = (
            f"objects of {typename(cls)} hold more than attributes ({error}); use "
            "register_serialization with functions of your own"
        )
        raise TypeError(message) from error
    names = (serializer_name, "pickle")

    def serialize(x: Any, context: dict[str, Any] | None = None) -> tuple[Header, list[Frame]]:
        return serialize_attributes(x, names, context)

    serialize_func.register(cls, serialize, subclasses=True)
    deserialize_func.register(cls, deserialize_attributes, subclasses=True)
    if serialize_func is custom_serialize:
        register_reducer(cls, reduce_by_attributes, subclasses=True)


def serialize_attributes(
    x: Any, names: Sequence[str], context: dict[str, Any] | None
) -> tuple[Header, list[Frame]]:
    """Return plain attributes in the header, and the others as parts."""
    if not _is_bare(type(x)):
        raise NotImplementedError("the object holds more than attributes")
    if id(x) in _busy.get():
        raise _RefersToItself(id(x))
    attributes = attributes_of(x)
    simple = {name: value for name, value in attributes.items() if is_simple(value)}
    others = {
        # A dict is taken apart: what has handlers in it needs no pickle either.
        name: Serialize(value) if type(value) is dict else value
        for name, value in attributes.items()
        if name not in simple
    }
    token = _busy.set((*_busy.get(), id(x)))
    try:
        parts, frames = serialize_parts(others, context, names)
    except _RefersToItself as error:
        if error.args != (id(x),):
            raise
        raise NotImplementedError("an attribute refers to the object") from None
    finally:
        _busy.reset(token)
    return {"simple": simple, "complex": parts, "names": list(attributes)}, frames


def deserialize_attributes(header: Header, frames: Sequence[Frame], cls: type) -> Any:
    """Return a bare object of the class with the attributes, in the order that they had."""
    simple, names = header["simple"], header["names"]
    values = {**simple, **deserialize_parts(header["complex"], frames)}
    if set(values) != set(names) or len(names) != len(values):
        raise CorruptHeaderError(
            f"the attributes of {typename(cls)} are {shown(sorted(values), 200)}, the header names "
            f"{shown(names, 200)}",
            key="names",
        )
    x = _bare(cls)
    set_attributes(x, {name: values[name] for name in names})
    return x


def is_simple(value: Any) -> bool:
    """Return whether a value lies in the header as it is: exact types, and text for keys."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    try:
        if kind is list or kind is tuple:
            return all(map(is_simple, value))
        if kind is dict:
            return all(type(key) is str for key in value) and all(map(is_simple, value.values()))
    except RecursionError:  # it contains itself
        return False
    return False


def attributes_of(x: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in slots too."""
    slots = copyreg._slotnames(type(x))  # type: ignore[attr-defined] # noqa: SLF001 - as pickle
    in_slots = {name: getattr(x, name) for name in slots if hasattr(x, name)}
    return {**in_slots, **getattr(x, "__dict__", {})}


def set_attributes(x: Any, attributes: dict[str, Any]) -> None:
    """Set attributes past whatever the class does when they are set. Its name lies in pickles."""
    for name, value in attributes.items():
        object.__setattr__(x, name, value)


def _bare(cls: type) -> Any:
    """Return an object of a class that nothing has initialized. Its name lies in pickles."""
    return object.__new__(cls)


def _is_bare(cls: type) -> bool:
    """Return whether objects of a class are nothing but attributes; a subclass may hold more."""
    try:
        _bare(cls)
    except TypeError:
        return False
    return True


def reduce_by_attributes(x: Any) -> Any:
    """Pickle an object by its attributes: pickle keeps what is shared, and cycles."""
    if not _is_bare(type(x)):
        return NotImplemented
    if id(x) in _busy.get():
        raise _RefersToItself(id(x))
    return _bare, (type(x),), attributes_of(x), None, None, set_attributes
