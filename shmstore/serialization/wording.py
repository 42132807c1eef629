"""How is a value from a header shown in an error, whatever it is?"""

from __future__ import annotations

import reprlib
from typing import Any, Final

_MOST_TEXT: Final = 1000

_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 1000
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = _SHORT.maxfrozenset = 30


def shown(x: Any, most: int = 100) -> str:
    """Return a bounded representation of any value; never raises.

    Parameters
    ----------
    most
        The longest text, in characters.

    Examples
    --------
    >>> shown([1, "two"]), shown(1 << 100_000)
    ("[1, 'two']", '<int>')
    """
    try:
        return _SHORT.repr(x)[:most]
    except Exception:  # noqa: BLE001 - an int of too many digits, a repr of the user's that fails
        return f"<{type(x).__name__}>"


def str_of(x: Any) -> str:
    """Return the text of an error or object, bounded, whatever its ``__str__`` does."""
    try:
        return str(x)[:_MOST_TEXT]
    except Exception as error:  # noqa: BLE001 - a broken __str__ must not hide the first error
        return f"<no text: {type(error).__name__}>"
