"""How often was an object got?

A get that finds its plan ready costs less than a microsecond: it has no time to write what others
see. So a plan has *ticks*, an iterator that gives None so many times. A get takes one of them, by a
test like ``None in ticks``, which is no call. When none is left, `count` adds what was taken to the
counts of the seat, and gives the plan new ones: one, then twice as many each time, up to 256, as
long as they are used up within a second. What others do not see yet is therefore

* of the first get of an object: nothing,
* never more than 256 gets of an object, and no more than were told of it before,
* where it is got at a steady pace: what was got in the last two seconds,

until somebody in this process asks for the metrics, or the process leaves or forks (`tell`).

Concurrency: threads share plans. Who counts takes the ticks away in one step, so that none is told
twice; a thread that takes one in this very moment may go uncounted. See also `_sharing.counts`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from operator import length_hint
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from shmstore._memory import layout as L
from shmstore._sharing import counts

if TYPE_CHECKING:
    from shmstore._catalog.slots import Record
    from shmstore._session import Session

GONE: Final = object()
"""What `gone` returns."""

_GETS: Final = L.SEAT_GETS
_NBYTES: Final = L.SEAT_GOT_NBYTES

_MOST: Final = 256
_LATEST_S: Final = 1.0

NO_TICKS: Final[tuple[()]] = ()
_NOTHING: Final = (0, 0.0)


class Counted:
    """The part of a plan that counts how often its object is got.

    Attributes
    ----------
    ticks
        One is left for each get that may go the short way before the next `count`.
    dealt
        How many there were, and when they were dealt; empty: the object was not got yet.
    """

    __slots__ = ("dealt", "ticks")

    session: Session
    record: Record
    flat: bool
    ticks: Iterable[None]
    dealt: tuple[()] | tuple[int, float]

    def count(self) -> bool:
        """Count a get that found no tick, and those that did; return whether it may be flat.

        Written out for the first get of an object: the workload "get" of the benchmarks pays for
        it.
        """
        if self.dealt:
            self._count_again()
            return self.flat
        self.dealt = _NOTHING
        counted = self.session.counts
        try:  # as `counts.add`
            counted[_GETS] += 1
            counted[_NBYTES] += self.record.data_nbytes
        except ValueError:
            return self.flat
        return self.flat

    def _count_again(self) -> None:
        if not self.flat:
            self._tell(1)
            return
        count, since = self.dealt or _NOTHING
        now = monotonic()
        count = min(2 * count, _MOST) if count and now - since < _LATEST_S else 1
        self._tell(1, repeat(None, count), (count, now))

    def tell(self) -> None:
        """Add the gets that found a tick to what others see."""
        if self.dealt:
            self._tell(0)

    def gone(self) -> Any:
        """Take the last get back: its object was no more there. Return what says so."""
        self._tell(-1)
        return GONE

    def _tell(
        self,
        gets: int,
        fresh: Iterable[None] = NO_TICKS,
        dealt: tuple[int, float] = _NOTHING,
    ) -> None:
        """Count gets, and those that found a tick; go on with other ticks."""
        ticks, before, self.ticks, self.dealt = self.ticks, self.dealt, fresh, dealt
        given, _ = before or _NOTHING
        gets += given - length_hint(ticks)
        counts.add(self.session.counts, _GETS, gets)
        counts.add(self.session.counts, _NBYTES, gets * self.record.data_nbytes)
