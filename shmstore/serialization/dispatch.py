"""Given a type, which handler serves it?

The walk goes from the type to its bases. Handlers of a library are imported when a type of that
library is first met on the way.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, Final

Handler = Callable[..., Any]

# What was looked up is forgotten together, so that types made while running may go.
MOST_TYPES: Final = 4096


def typename(t: Any, short: bool = False) -> str:  # noqa: FBT001, FBT002 - the name is known so
    """Return ``module.QualName`` of a type or of an object's type; no module for builtins.

    Parameters
    ----------
    t
        A type, or an instance of one.
    short
        Keep only the first part of the module.

    Examples
    --------
    >>> import collections
    >>> typename(collections.OrderedDict), typename(7)
    ('collections.OrderedDict', 'int')
    """
    cls = t if isinstance(t, type) else type(t)
    module = getattr(cls, "__module__", None)
    if not isinstance(module, str) or module == "builtins":
        return cls.__qualname__
    return f"{module.partition('.')[0] if short else module}.{cls.__qualname__}"


def has_keyword(func: Any, name: str) -> bool:
    """Return whether `name` is an explicit parameter of a callable; no if it tells no signature."""
    try:
        return _has_keyword(func, name)
    except TypeError:  # unhashable
        return _look_for_keyword(func, name)


def _look_for_keyword(func: Any, name: str) -> bool:
    try:
        parameter = inspect.signature(func).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in _BY_NAME


_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_has_keyword = functools.lru_cache(maxsize=1000)(_look_for_keyword)


class Loader:
    """Calls a function until it has succeeded once.

    Notes
    -----
    Concurrency: two threads that meet at the first call both call the function: waiting for each
    other might be waiting for ever, for loading imports modules. A call out of the function itself
    does nothing.
    """

    def __init__(self, func: Callable[[], Any]) -> None:
        self._func = func
        self._done = False
        self._running: set[int] = set()

    def __call__(self) -> None:
        """Call the function, unless it has succeeded or is running in this thread."""
        thread = threading.get_ident()
        if self._done or thread in self._running:
            return
        self._running.add(thread)
        try:
            self._func()
            self._done = True
        finally:
            self._running.discard(thread)


class Dispatch:
    """Single dispatch on the type of the first argument.

    Parameters
    ----------
    name
        Named in errors.
    exact
        A handler answers only for the very type that it was registered for, unless it opts in to
        subclasses. By default it answers for subclasses too.

    Attributes
    ----------
    cache
        What was found so far; each registration begins a new one.

    Notes
    -----
    Abstract base classes are not consulted for virtual subclasses. The docstring of a dispatch is
    that of its handler for `object`.

    Concurrency: threads. Each registration begins a new cache, so that a search which began before
    it leaves its result in the old one; see `Loader` for the lazy ones.

    Examples
    --------
    >>> area = Dispatch("area")
    >>> @area.register(int)
    ... def area_of_square(side):
    ...     return side * side
    >>> area(3)
    9
    """

    def __init__(self, name: str | None = None, *, exact: bool = False) -> None:
        self.name = name
        self.exact = exact
        self._handlers: dict[type, tuple[Handler, bool]] = {}
        self._by_name: dict[str, type] = {}
        self._lazy: dict[str, Loader] = {}
        self.cache: dict[type, Handler | None] = {}

    def register(
        self, cls: Any, func: Handler | None = None, *, subclasses: bool | None = None
    ) -> Handler:
        """Serve a type, or each of a tuple of types, by `func`; without it, decorate.

        Parameters
        ----------
        subclasses
            Whether types derived from `cls` are served too; default as the dispatch was made.
        """
        if func is None:
            return lambda decorated: self.register(cls, decorated, subclasses=subclasses)
        for one in cls if isinstance(cls, tuple) else (cls,):
            if not isinstance(one, type):
                message = f"{self.name}: expected a class, got {one!r}; see register_lazy for names"
                raise TypeError(message)
            self._handlers[one] = func, (not self.exact if subclasses is None else subclasses)
            self._by_name[typename(one)] = one
            if one is object:
                self.__doc__ = func.__doc__
        self.cache = {}
        return func

    def register_lazy(self, toplevel: str, func: Callable[[], Any] | None = None) -> Any:
        """Call `func`, which registers handlers, when a type of a package appears.

        Parameters
        ----------
        toplevel
            The name of the package, as a rule a top-level one.

        Notes
        -----
        A loader that raises stays, and is tried again the next time.
        """
        if func is None:
            return lambda decorated: self.register_lazy(toplevel, decorated)
        self._lazy[toplevel] = func if isinstance(func, Loader) else Loader(func)
        self.cache = {}
        return func

    def find(self, cls: type) -> Handler | None:
        """Return the handler for a type, or None."""
        try:
            return self.cache[cls]
        except KeyError:
            if len(self.cache) >= MOST_TYPES:
                self.cache = {}
            cache = self.cache
            handler = cache[cls] = self._search(cls)
            return handler

    def dispatch(self, cls: type) -> Handler:
        """Return the handler for a type; TypeError if there is none."""
        handler = self.find(cls)
        if handler is None:
            message = f"No dispatch for {typename(cls)} in {self.name}"
            raise TypeError(message)
        return handler

    def __call__(self, arg: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the handler for the type of the first argument."""
        return self.dispatch(type(arg))(arg, *args, **kwargs)

    def type_of(self, name: str) -> type | None:
        """Return the registered type of a qualified name; imports nothing but lazy handlers."""
        if name not in self._by_name:
            self._load(name if "." in name else "builtins")
        return self._by_name.get(name)

    def serves_exactly(self, cls: type) -> bool:
        """Return whether a type was registered itself, and not only a base of it."""
        return cls in self._handlers

    def _search(self, cls: type) -> Handler | None:
        for base in cls.__mro__:
            module = getattr(base, "__module__", None)
            if isinstance(module, str):
                self._load(module)
            handler, subclasses = self._handlers.get(base, (None, False))
            if handler is not None and (base is cls or subclasses):
                return handler
        return None

    def _load(self, module: str) -> None:
        for package in [name for name in self._lazy if f"{module}.".startswith(f"{name}.")]:
            loader = self._lazy.get(package)
            if loader is not None:
                loader()
                self._lazy.pop(package, None)
