"""How is a terminal drawn on again and again, and read key by key?"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_ARROWS: Final = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]")
_STYLES: Final = {"": "", "bold": "1", "dim": "2", "head": "7", "alarm": "1;31"}


class Screen:
    """The whole terminal, as it is used between the beginning and the end of `whole_screen`."""

    def __init__(self) -> None:
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._colours = not os.environ.get("NO_COLOR")

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        found = shutil.get_terminal_size()
        return max(20, found.columns), max(8, found.lines)

    def draw(self, lines: Sequence[tuple[str, str]]) -> None:
        """Show lines, each with the name of its style; what does not fit is cut."""
        columns, rows = self.size
        parts = ["\x1b[H"]
        for text, style in lines[:rows]:
            parts.append(self._styled(text[:columns], style))
        sys.stdout.write("\x1b[K\r\n".join(parts).replace("\x1b[K\r\n", "", 1) + "\x1b[J")
        sys.stdout.flush()

    def _styled(self, text: str, style: str) -> str:
        code = _STYLES[style] if self._colours or style == "head" else ""
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def keys(self, timeout_s: float) -> str:
        """Return the keys that are pressed next, or "" when the time is over."""
        if self._keys is None:
            time.sleep(timeout_s)
            return ""
        ready, _, _ = select.select([self._keys], [], [], timeout_s)
        pressed = os.read(self._keys, 64).decode(errors="replace") if ready else ""
        return _ARROWS.sub("", pressed)


@contextlib.contextmanager
def whole_screen() -> Iterator[Screen]:
    """Give the terminal; whatever happens, it is afterwards as it was before."""
    screen = Screen()
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    kept: list[Any] | None = None if keys is None else termios.tcgetattr(keys)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        if keys is not None:
            tty.setcbreak(keys)
        sys.stdout.write(_ENTER)
        yield screen
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if keys is not None and kept is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, kept)
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
