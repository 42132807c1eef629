"""Where in the program was each view got?

A store that was created with ``trace_pins=True`` has this noted at every get: the first line
outside of this package on the way to the get is its *site*. A seat has a table of the sites that
its process got views at; a pin names one of them by number.

Concurrency: as `Pins`. Two threads that find the same new site at once give it two numbers, and
whoever adds them up adds them by text.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from shmstore._memory import layout as L
from shmstore._memory.folder import NO_ROOM
from shmstore._sharing.seats import Pins, Seat

_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep
_CUT: Final = b"..."

# Before Python 3.12 these are functions of their own, which says nothing to a user.
_COMPREHENSIONS: Final = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>"})


class TracedPins(Pins):
    """Pins that say where they were made.

    Parameters
    ----------
    seat
        The own seat.
    """

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._numbers = itertools.count(1)
        self._known: dict[tuple[str, int, str], int] = {}

    def pin(self, anchor: object, slot: int) -> int:
        """Pin a slot for as long as `anchor` lives, and note who asked for it."""
        return super().pin(anchor, slot | self._site() << L.PIN_SITE_SHIFT)

    def copy_to(self, seat: Seat) -> None:
        """Hold all pins for a child too; without room for the sites it goes without them."""
        super().copy_to(seat)
        try:
            self.seat.copy_sites_to(seat)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    def _site(self) -> int:
        """Return the number of the calling site, 0 if it cannot have one."""
        frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the way that logging goes too
        while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        if frame is None:
            return 0
        line = frame.f_lineno
        while frame.f_code.co_name in _COMPREHENSIONS and frame.f_back is not None:
            frame = frame.f_back
        place = frame.f_code.co_filename, line, frame.f_code.co_name
        return self._known.get(place) or self._note(place)

    def _note(self, place: tuple[str, int, str]) -> int:
        number = next(self._numbers)
        if number >= L.MAX_SITES:
            return 0
        text = "{}:{} in {}".format(*place).encode(errors="replace")
        if len(text) >= L.SITE_NBYTES:
            text = _CUT + text[len(text) - L.SITE_NBYTES + 1 + len(_CUT) :]
        try:
            for seat in self.seats:
                seat.write_site(number, text)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return 0
        self._known[place] = number
        return number
