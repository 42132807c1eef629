"""Families and handlers that end with their test: what the tests of serialization share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from shmstore.serialization import (
    custom_deserialize,
    custom_serialize,
    deserialize,
    families,
    msgpacking,
    register_serialization_family,
    serialize,
)
from shmstore.serialization.frames import ensure_memoryview
from shmstore.serialization.registry import reducers

AddFamily = Callable[..., None]


@contextlib.contextmanager
def own_families() -> Iterator[AddFamily]:
    """Give `register_serialization_family`; what it adds is taken out at the end."""
    before = dict(families)
    try:
        yield register_serialization_family
    finally:
        families.clear()
        families.update(before)


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Forget at the end of the block which types were registered in it."""
    dispatches = (custom_serialize, custom_deserialize, reducers)
    before = [(dict(d._handlers), dict(d._by_name), dict(d._lazy)) for d in dispatches]
    try:
        yield
    finally:
        for dispatch, (handlers, by_name, lazy) in zip(dispatches, before, strict=True):
            # What a library has registered on the way stays: it is loaded only once.
            dispatch._lazy = {k: v for k, v in dispatch._lazy.items() if k in lazy}
            loaded = set(lazy) - set(dispatch._lazy)
            keep = {
                cls: entry
                for cls, entry in dispatch._handlers.items()
                if any(f"{cls.__module__}.".startswith(f"{name}.") for name in loaded)
            }
            dispatch._handlers = {**handlers, **keep}
            dispatch._by_name = {
                name: cls
                for name, cls in {**by_name, **dispatch._by_name}.items()
                if name in by_name or cls in keep
            }
            dispatch.cache = {}


def decline(_: Any) -> Any:
    """Leave every object to the next family."""
    raise NotImplementedError


def fail(_: Any) -> Any:
    """Fail on every object."""
    raise ZeroDivisionError("the reason")


def travel(x: Any, serializers: Any = None, deserializers: Any = None, **options: Any) -> Any:
    """Serialize, take header and frames through bytes, and deserialize."""
    header, frames = serialize(x, serializers, "raise", **options)
    flags = [memoryview(frame).readonly for frame in frames]
    header = msgpacking.unpackb(msgpacking.packb(header))
    copies = [bytearray(ensure_memoryview(frame)) for frame in frames]
    views = [
        memoryview(copy).toreadonly() if readonly else memoryview(copy)
        for copy, readonly in zip(copies, flags, strict=True)
    ]
    return deserialize(header, views, deserializers)


def plain_header(header: dict[str, Any]) -> dict[str, Any]:
    """Return a header after it went through plain msgpack: tuples are lists then."""
    packed = msgpack.packb(header, default=msgpacking.msgpack_encode_default)
    plain: dict[str, Any] = msgpack.unpackb(packed, strict_map_key=False)
    return plain


def same(one: Any, other: Any) -> bool:
    """Return whether two values agree in all their types, too."""
    return canonical(one) == canonical(other)


def canonical(x: Any) -> tuple[str, Any]:
    """Return type and content of a value; elements of sets in one order, NaN equal to NaN."""
    if type(x) in (list, tuple):
        return type(x).__name__, [canonical(element) for element in x]
    if type(x) is dict:
        return "dict", [(canonical(key), canonical(value)) for key, value in x.items()]
    if type(x) in (set, frozenset):
        return type(x).__name__, sorted(repr(canonical(element)) for element in x)
    return type(x).__name__, repr(x)
