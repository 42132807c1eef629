"""What may reading an object do: which families decode, which modules may be imported?

Reading a pickle runs whatever code it names. Who reads what others wrote and does not trust them
accepts only the families "custom" and "msgpack" (`deserializers=`): they import nothing but the
modules allowed here.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Collection, Container, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

from shmstore._tuples import NamedTuple
from shmstore.errors import FamilyRefusedError, ModuleRefusedError
from shmstore.serialization.wording import shown

allowed_modules: set[str] = set()
"""Top-level packages that a header may name, empty at first; looked at anew on each use."""


class Policy(NamedTuple):
    """How the objects that are being read in this context are to be read.

    `accepted` are names of families (None: all), `modules` take the place of `allowed_modules`,
    `thaw` makes writeable what stands on writeable frames, whatever a pickle says.
    """

    accepted: Container[str] | None = None
    modules: Collection[str] | None = None
    thaw: bool = False


_DEFAULT: Final = Policy()

policy: ContextVar[Policy] = ContextVar("policy", default=_DEFAULT)


@contextlib.contextmanager
def reading(rules: Policy) -> Iterator[None]:
    """Read by these rules inside the block, at any depth."""
    token = policy.set(rules)
    try:
        yield
    finally:
        policy.reset(token)


def accept(family: str, what: str) -> None:
    """Raise FamilyRefusedError if the reader does not accept a family.

    Parameters
    ----------
    family
        Its name.
    what
        What was serialized by it; begins the message.
    """
    accepted = policy.get().accepted
    # An error payload runs no code and says why there is no object.
    if accepted is None or family in accepted or family == "error":
        return
    raise FamilyRefusedError(
        f"{what} was serialized by {family!r}, which is not among the accepted deserializers "
        f"{accepted!r}. Accept it only if you trust whoever wrote the object.",
        family=family,
    )


def import_allowed_module(name: Any) -> ModuleType:
    """Import a module that a header names, if its top-level package is allowed.

    Raises
    ------
    ModuleRefusedError
        It is not allowed, or the name is not that of a module.

    Examples
    --------
    >>> with reading(Policy(modules={"shmstore"})):
    ...     import_allowed_module("shmstore.errors").__name__
    'shmstore.errors'
    """
    modules = policy.get().modules
    allowed = allowed_modules if modules is None else modules
    root = name.partition(".")[0] if type(name) is str and name.isascii() else ""
    if not root or root not in allowed:
        raise ModuleRefusedError(
            f"the module {shown(name, 200)} may not be imported while reading an object; allowed: "
            f"{', '.join(sorted(allowed)) or 'none'}. Add its top-level package to "
            "shmstore.serialization.allowed_modules, or to the store's option allowed_modules.",
            module=name,
        )
    module = sys.modules.get(name)
    if module is not None:
        return module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleRefusedError(
            f"the module {shown(name, 200)}, named by the header of an object, cannot be imported "
            f"here: {error}",
            module=name,
        ) from error
