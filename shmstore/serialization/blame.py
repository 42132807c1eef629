"""Which part of an object is it that cannot be serialized?

Asked only after it has failed: the parts are tried one by one, and the first one that fails is
looked into in turn.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Iterator
from typing import Any, Final

from shmstore.errors import SerializationError
from shmstore.serialization.dispatch import typename
from shmstore.serialization.pickler import Pickler
from shmstore.serialization.registry import custom_serialize, reducers
from shmstore.serialization.wording import str_of

_PATIENCE_S: Final = 2.0


def blame(x: Any, family: str, error: Exception) -> SerializationError:
    """Return the error that names the type of `x`, and the path to the part that is to blame."""
    path, part = "obj", x
    # Of what is nested too deeply no part is to blame more than another.
    too_deep = isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
    if family == "pickle" and not too_deep:
        path, part, error = locate(x, error)
    where = f"; the offending part is {path}, a {typename(part)}" if part is not x else ""
    return SerializationError(
        f"could not serialize an object of type {typename(x)}: {family!r} failed with "
        f"{type(error).__name__}: {str_of(error)}{where}",
        type=typename(x),
        family=family,
        path=path,
        part_type=typename(part),
    )


def locate(x: Any, error: Exception) -> tuple[str, Any, Exception]:
    """Return path, object and error of the innermost part that cannot be pickled."""
    path = "obj"
    seen = {id(x)}
    deadline = time.monotonic() + _PATIENCE_S
    # What a handler says of its own object is better than what is found inside of it.
    while custom_serialize.find(type(x)) is None or reducers.find(type(x)) is not None:
        for step, part in parts_of(x):
            if id(part) in seen:
                continue
            if time.monotonic() > deadline:
                return path, x, error
            failure = _failure(part)
            if failure is not None:
                path, x, error = path + step, part, failure
                seen.add(id(part))
                break
        else:
            break
    return path, x, error


def _failure(x: Any) -> Exception | None:
    try:
        Pickler(_Nowhere, buffer_callback=_drop).dump(x)
    except (MemoryError, OSError):
        return None
    except Exception as error:  # noqa: BLE001 - whatever a reducer raises is what is looked for
        return error
    return None


class _Nowhere:
    """A file that forgets what is written to it."""

    @staticmethod
    def write(_: Any) -> None:
        """Forget."""


def _drop(_: Any) -> None:
    """Take a buffer, so that it is not written."""


def parts_of(x: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of an object with the step that leads to each."""
    if isinstance(x, dict):
        for key, value in list(x.items()):
            yield f"[{_repr(key)}]", value
            yield f".key({_repr(key)})", key
    elif isinstance(x, (list, tuple)):
        yield from ((f"[{number}]", value) for number, value in enumerate(list(x)))
    elif isinstance(x, (set, frozenset)):
        yield from ((f"{{{_repr(value)}}}", value) for value in list(x))
    elif isinstance(x, types.FunctionType):
        yield from _parts_of_function(x)
    elif isinstance(x, types.MethodType):
        yield ".__self__", x.__self__
    elif isinstance(x, functools.partial):
        yield ".func", x.func
        yield from ((f".args[{number}]", value) for number, value in enumerate(x.args))
        yield from ((f".keywords[{name!r}]", value) for name, value in x.keywords.items())
    if not isinstance(x, (type, types.ModuleType)):
        yield from _attributes(x)


def _parts_of_function(x: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=False):
        try:
            yield f".__closure__[{name!r}]", cell.cell_contents
        except ValueError:
            continue
    for name in x.__code__.co_names:
        if name in x.__globals__:
            yield f".__globals__[{name!r}]", x.__globals__[name]
    yield ".__defaults__", x.__defaults__


def _attributes(x: Any) -> Iterator[tuple[str, Any]]:
    names = list(getattr(x, "__dict__", ()))
    for cls in type(x).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    for name in names:
        try:
            yield f".{name}", getattr(x, name)
        except Exception:  # noqa: BLE001, S112 - an attribute that cannot be read is not the part
            continue


def _repr(x: Any) -> str:
    try:
        text = repr(x)
    except Exception as error:  # noqa: BLE001 - a broken __repr__ must not hide the first error
        text = f"<{type(x).__name__}: {type(error).__name__} in repr>"
    return text if len(text) <= 80 else f"{text[:77]}..."
