"""Who closes an open file, whatever happens?

A signal handler of Python may raise after any call, so also between the system's open and the store
of what it returned: a plain number is lost then, and its file stays open. Here the number is an
object before Python's own code goes on, and an object that nobody refers to closes its file.

Every file and folder of a store is opened here, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self


class Closing:
    """Something that is open for the block it is used in: ``with ...:`` closes it."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of what is open; do nothing the second time."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Descriptor(Closing, int):
    """A file descriptor that is closed once: by `close`, or when nobody refers to it any more.

    It serves wherever a number does, but is never given to ``os.close``.
    """

    closed = False

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Close the file; do nothing the second time."""
        # Between the look and the close there is no call, so no signal handler either.
        if not self.closed and self >= 0:
            self.closed = True
            _close(self)

    __del__ = close


# In the place of a descriptor that has been closed: its number may be another file's by now.
CLOSED: Final = Descriptor(-1)


def open_descriptor(
    path: str | Path, flags: int, mode: int = 0o600, *, dir_fd: int | None = None
) -> Descriptor:
    """Open a file or folder, as ``os.open`` does."""
    # From the system's open to the object all is one call of C code.
    opened = map(Descriptor, map(partial(os.open, dir_fd=dir_fd), [path], [flags], [mode]))
    [descriptor] = opened
    return descriptor
