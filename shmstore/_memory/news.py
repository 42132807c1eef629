"""Who hears what happens to a store? Whoever listens to the logger "shmstore"; else nobody.

What is noticed under the store lock is told when the lock is free again: a listener may be slow, or
use the store itself.

Concurrency: any thread adds, and tells what is there; each piece is told once.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any, Final

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30

# What goes on for long is told so often.
_PAUSE_S: Final = 60.0


def _logger() -> Any:
    """Return the logger, or None: nobody can listen, for nobody has imported that module.

    To import it here would take time, and descriptors, which may be missing.
    """
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "NullHandler"):
        return None
    logger = logging.getLogger("shmstore")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # else warnings would be printed
    return logger


def tell(level: int, message: str, *facts: object) -> None:
    """Tell whoever listens."""
    logger = _logger()
    if logger is not None:
        logger.log(level, message, *facts)


class News:
    """What is to be told about one store.

    Parameters
    ----------
    store
        How it is called: its path.

    Attributes
    ----------
    untold
        What is to be told when the store lock is free.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._last: dict[str, float] = {}
        self.untold: list[tuple[Any, ...]] = []

    def add(self, level: int, message: str, *facts: object) -> None:
        """Keep something to be told; the message begins with the name of the store."""
        logger = _logger()
        if logger is not None and logger.isEnabledFor(level):
            self.untold.append((level, "%s: " + message, self._store, *facts))

    def add_at_times(self, level: int, message: str, *facts: object) -> None:
        """As `add`, but once a minute for each message."""
        now = monotonic()
        if now - self._last.get(message, -_PAUSE_S) >= _PAUSE_S:
            self._last[message] = now
            self.add(level, message, *facts)

    def tell(self) -> None:
        """Tell all. Requires: not the store lock."""
        while self.untold:
            try:
                piece = self.untold.pop(0)
            except IndexError:  # another thread tells it
                return
            tell(*piece)
