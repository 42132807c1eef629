"""How is a named tuple defined without what takes long of `typing.NamedTuple`?

That one compiles the text of each annotation, for nobody who runs the program. There are so many
classes of this kind that it was a fifth of what `import shmstore` costs beside NumPy.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Definition(type):
        """Makes of a class body with annotations what `typing.NamedTuple` makes of it."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            types = body.get("__annotations__", {})
            defaults = [body.pop(field) for field in types if field in body]
            made = namedtuple(name, types, defaults=defaults, module=body["__module__"])  # noqa: PYI024 - see above
            for attribute, value in body.items():
                setattr(made, attribute, value)
            return made

    class NamedTuple(metaclass=_Definition):
        """Base of classes whose annotations name the fields of a tuple."""


__all__ = ["NamedTuple"]
