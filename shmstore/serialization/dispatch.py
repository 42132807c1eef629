"""Given a type, which handler serves it?

A handler answers for exactly the type that it was registered for, so that subclasses keep their
class by another way; it may opt in to subclasses. The handlers of a library are imported when an
object of that library first appears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]


def typename(cls: type) -> str:
    """Return ``module.QualName`` of a type, without the module for builtins."""
    module = getattr(cls, "__module__", None)
    if not isinstance(module, str) or module == "builtins":
        return cls.__qualname__
    return f"{module}.{cls.__qualname__}"


class Dispatch:
    """Handlers by type.

    Parameters
    ----------
    name
        Named in errors.

    Notes
    -----
    Concurrency: threads. Registering and looking up are single dict operations; a lazy loader may
    run twice when two threads meet a library at once, which registers the same handlers again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._handlers: dict[type, Handler] = {}
        self._by_name: dict[str, Handler] = {}
        self._for_subclasses: set[type] = set()
        self._lazy: dict[str, Callable[[], None]] = {}
        self._cache: dict[type, Handler | None] = {}

    def register(self, cls: type, handler: Handler, *, subclasses: bool = False) -> None:
        """Serve `cls`, and with `subclasses` also the types derived from it, by `handler`."""
        self._handlers[cls] = handler
        self._by_name[typename(cls)] = handler
        if subclasses:
            self._for_subclasses.add(cls)
        self._cache.clear()

    def register_lazy(self, toplevel: str, loader: Callable[[], None]) -> None:
        """Call `loader`, which registers handlers, when a type of package `toplevel` appears."""
        self._lazy[toplevel] = loader
        self._cache.clear()

    def dispatch(self, cls: type) -> Handler | None:
        """Return the handler for a type, or None."""
        try:
            return self._cache[cls]
        except KeyError:
            handler = self._cache[cls] = self._search(cls)
            return handler

    def dispatch_name(self, name: str) -> Handler | None:
        """Return the handler for a qualified name, or None; imports nothing but handlers."""
        if name not in self._by_name:
            self._load(name.partition(".")[0])
        return self._by_name.get(name)

    def _search(self, cls: type) -> Handler | None:
        for base in cls.__mro__:
            module = getattr(base, "__module__", None)
            if isinstance(module, str):
                self._load(module.partition(".")[0])
            if base in self._handlers and (base is cls or base in self._for_subclasses):
                return self._handlers[base]
        return None

    def _load(self, toplevel: str) -> None:
        loader = self._lazy.get(toplevel)
        if loader is not None:
            loader()
            self._lazy.pop(toplevel, None)
