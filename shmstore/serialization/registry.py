"""Which handler turns objects of a type into a sub-header and frames, and back?

This is the family "custom". A handler answers for exactly the type that it was registered for, so
that subclasses keep their class by another way, unless it opts in. Handlers of a library are
imported when one of its types first appears; packages add theirs by the entry-point group
``shmstore.handlers``: the name of the entry is the top-level package whose types it handles, its
value a function without parameters that registers the handlers.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from shmstore.errors import CorruptHeaderError, DeserializationError
from shmstore.serialization import trust
from shmstore.serialization.dispatch import (
    MOST_TYPES,
    Dispatch,
    Handler,
    Loader,
    has_keyword,
    typename,
)
from shmstore.serialization.frames import Frame, conform, is_readonly
from shmstore.serialization.wording import shown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Header = dict[str, Any]

ENTRY_POINTS: Final = "shmstore.handlers"

# The module under `handlers` for the types of a package.
_HANDLERS: Final = {
    "array": "builtins",
    "builtins": "builtins",
    "h5py": "h5py",
    "netCDF4": "netcdf4",
    "numpy": "numpy",
    "numpy.ma": "masked",
    "polars": "polars",
    "pyarrow": "pyarrow",
    "scipy": "scipy",
    "shmstore.serialization.handlers.records": "records",
    "sparse": "sparse",
    "torch": "torch",
}


class Registry(Dispatch):
    """A dispatch that also finds the handlers that are entry points of other packages.

    They are looked for once, when the first type appears that neither the standard library nor a
    handler of our own covers: reading the metadata of all packages takes milliseconds.
    """

    def register(
        self, cls: Any, func: Handler | None = None, *, subclasses: bool | None = None
    ) -> Handler:
        """See `Dispatch.register`."""
        registered = super().register(cls, func, subclasses=subclasses)
        _Unhandled.types = set()
        return registered

    def _load(self, module: str) -> None:
        if module.partition(".")[0] not in _KNOWN:
            _find_entry_points()
        super()._load(module)


class _Unhandled:
    types: ClassVar[set[type]] = set()


def unhandled_types() -> set[type]:
    """Return the set in which a pickler notes types that have neither reducer nor handler.

    Each registration begins a new one, so that what is noted during it is not believed after it.
    """
    if len(_Unhandled.types) >= MOST_TYPES:
        _Unhandled.types = set()
    return _Unhandled.types


def _register_entry_points() -> None:
    from importlib import metadata  # noqa: PLC0415 - takes time that most processes can save

    for entry in metadata.entry_points(group=ENTRY_POINTS):
        _register_lazy(entry.name, functools.partial(_register_entry_point, entry))


def _register_entry_point(entry: EntryPoint) -> None:
    entry.load()()


_find_entry_points: Final = Loader(_register_entry_points)
_KNOWN: Final = {*sys.stdlib_module_names, *_HANDLERS, "__main__", "__mp_main__", "shmstore"}

custom_serialize: Final = Registry("custom_serialize", exact=True)
custom_deserialize: Final = Registry("custom_deserialize", exact=True)
reducers: Final = Registry("reducers", exact=True)


def register_serialization(
    cls: Any, serialize: Handler, deserialize: Handler, *, subclasses: bool = False
) -> None:
    """Handle the objects of one type in the family "custom", and inside of pickles.

    Parameters
    ----------
    cls
        The type itself; with `subclasses` also the types derived from it.
    serialize
        ``serialize(x[, context]) -> (sub_header, frames)``; raises NotImplementedError to decline.
        The sub-header consists of what msgpack can pack. A frame that must not be written by
        readers is read-only.
    deserialize
        ``deserialize(sub_header, frames[, cls]) -> object``; `cls` is the class of the object.

    Raises
    ------
    TypeError
        `cls` is not a class.

    Examples
    --------
    >>> class Celsius:
    ...     def __init__(self, degrees):
    ...         self.degrees = degrees
    >>> register_serialization(
    ...     Celsius,
    ...     lambda x: ({"degrees": x.degrees}, []),
    ...     lambda header, frames: Celsius(header["degrees"]),
    ... )
    """
    if not isinstance(cls, type):
        message = (
            f"expected a class, got {cls!r}; to register handlers when a library is first met, "
            "give the name of its package to custom_serialize.register_lazy"
        )
        raise TypeError(message)
    custom_serialize.find(cls)  # the handlers of its library first: what is registered last wins
    custom_serialize.register(cls, serialize, subclasses=subclasses)
    custom_deserialize.register(cls, deserialize, subclasses=subclasses)


def register_reducer(cls: type, reduce: Handler, *, subclasses: bool = False) -> None:
    """Let `reduce` pickle the objects of a type, in place of its handler and of its own way.

    Parameters
    ----------
    cls
        The type itself; with `subclasses` also the types derived from it.
    reduce
        ``reduce(x)`` returns what ``x.__reduce_ex__(5)`` might, NotImplemented to let the object's
        own way work, or None to leave it to the handler, if there is one. Buffers among the
        arguments, wrapped by `pickling.out_of_band`, lie beside the pickle.
    """
    reducers.register(cls, reduce, subclasses=subclasses)


def own_way(_: Any) -> Any:
    """Leave the pickling of an object to itself; a reducer for types that need none of ours."""
    return NotImplemented


def has_custom_handler(x: Any) -> bool:
    """Return whether the family "custom" has a handler for an object, or for any part of it.

    Lists, tuples, sets and dicts (the exact types) are looked into, at any depth.
    """
    seen: set[int] = set()
    waiting = [x]
    while waiting:
        x = waiting.pop()
        kind = type(x)
        if kind in _CONTAINERS:
            if id(x) not in seen:
                seen.add(id(x))
                waiting.extend(x.values() if kind is dict else x)
        elif custom_serialize.find(kind) is not None:
            return True
    return False


_CONTAINERS: Final = frozenset({list, tuple, set, dict})


# --- the family ----------------------------------------------------------------------------------


def call_handler(handler: Handler, x: Any, context: dict[str, Any] | None) -> tuple[Any, Any]:
    """Return what a serialize handler makes of an object."""
    result: tuple[Any, Any] = (
        handler(x, context=context) if has_keyword(handler, "context") else handler(x)
    )
    return result


def custom_dumps(x: Any, context: dict[str, Any] | None = None) -> tuple[Header, list[Frame]]:
    """Ask the handler of the object's type; decline if there is none."""
    cls = type(x)
    handler = custom_serialize.find(cls)
    if handler is None:
        raise NotImplementedError(f"no handler for objects of type {typename(cls)}")
    sub_header, frames = call_handler(handler, x, context)
    header: Header = {"serializer": "custom", "type": typename(cls), "sub-header": sub_header}
    header["writeable"] = tuple([not is_readonly(frame) for frame in frames])
    if not custom_serialize.serves_exactly(cls):
        header["class"] = _pickled_class(cls)
    return header, frames


def custom_loads(header: Header, frames: Sequence[Frame]) -> Any:
    """Ask the handler of the type that the header names."""
    cls = _class_of(header)
    handler = custom_deserialize.find(cls)
    if handler is None:
        raise DeserializationError(
            f"no handler for objects of type {header['type']!r} is registered in this process. "
            "Register it, or put the object with serializers=('pickle',).",
            type=header["type"],
        )
    return rebuild(handler, cls, header["sub-header"], conform(frames, header.get("writeable")))


def rebuild(handler: Handler, cls: type, sub_header: Any, frames: Sequence[Frame]) -> Any:
    """Return the object that a deserialize handler makes."""
    if has_keyword(handler, "cls"):
        return handler(sub_header, frames, cls=cls)
    return handler(sub_header, frames)


def _class_of(header: Header) -> type:
    """Return the class that a header names; nothing is imported on the word of a header alone."""
    name = header.get("type")
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise CorruptHeaderError(f"the header names the type {shown(name)}", key="type", found=name)
    cls = custom_deserialize.type_of(name) or _imported_class(name)
    if cls is not None:
        return cls
    pickled = header.get("class")
    if not isinstance(pickled, bytes):
        raise DeserializationError(
            f"no handler for objects of type {name!r} is registered in this process. Import what "
            "registers it, or put the object with serializers=('pickle',).",
            type=name,
        )
    trust.accept("pickle", f"the class {name!r} of an object")
    found = pickle.loads(pickled)
    if not isinstance(found, type) or typename(found) != name:
        raise CorruptHeaderError(
            f"the header names the type {name!r} and holds the class {shown(found)}", key="class"
        )
    return found


_LONGEST_NAME: Final = 10_000
_MOST_PARTS: Final = 32


def _imported_class(name: str) -> type | None:
    """Return the class of a qualified name if its module has been imported; runs no code of it."""
    parts = name.split(".")
    for cut in range(min(len(parts), _MOST_PARTS) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:cut]))
        for part in parts[cut:]:
            if found is None:
                break
            found = getattr(found, "__dict__", {}).get(part)
        if isinstance(found, type) and typename(found) == name:
            return found if custom_deserialize.find(found) is not None else None
    return None


_pickled: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()


def _pickled_class(cls: type) -> bytes:
    """Return a class as a pickle: where it is read it may have to be imported."""
    try:
        return _pickled[cls]
    except KeyError:
        import cloudpickle  # noqa: PLC0415 - takes time that most processes can save

        pickled: bytes = cloudpickle.dumps(cls)
        _pickled[cls] = pickled
        return pickled


# --- handlers that are loaded when needed --------------------------------------------------------


def _register_lazy(toplevel: str, func: Callable[[], Any]) -> None:
    loader = Loader(func)
    for dispatch in (custom_serialize, custom_deserialize, reducers):
        dispatch.register_lazy(toplevel, loader)


def _load_handler(module: str) -> None:
    importlib.import_module(f"shmstore.serialization.handlers.{module}").register()


for _toplevel, _module in _HANDLERS.items():
    _register_lazy(_toplevel, functools.partial(_load_handler, _module))
