"""How does a process wait for something that others do, without asking again and again?

1. spin     look at the store for a moment, without the lock
2. settle   under the lock: look once more; enter rows for the topics (see `_announcing`)
3. sleep    in poll() on a bell, until somebody rings it or the time is over
4. spin     until the change is made: the bell is rung a moment before

What comes between 1 and 2 is seen by 2; what comes after 2 finds the rows. Nothing is done while
nothing happens.

Concurrency: any number of threads and processes wait; each has rows and a bell of its own. A waiter
that dies is forgotten with its seat. Where a signal handler raises, the wait ends.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import threading
from collections.abc import Callable, Collection
from time import monotonic, sleep
from typing import Final, TypeVar

from shmstore import _announcing
from shmstore._memory import folder
from shmstore._memory import layout as L
from shmstore._memory.descriptors import Closing
from shmstore._memory.sharing_out import count_cores
from shmstore._session import Session
from shmstore._sharing import counts
from shmstore._sharing.waking import Bell
from shmstore.errors import StoreFullError

Result = TypeVar("Result")

# Returns the session as long as who waits is to wait; then raises StoreClosedError.
Live = Callable[[], Session]

# What comes within this time is waited for without sleep; sleeping costs both sides about as much.
SPIN_S: Final = 300e-6

# So often a woken waiter looks before he lets others go first.
_TURNS: Final = 10

_give_way: Final = getattr(os, "sched_yield", lambda: sleep(0))

_LONGEST_POLL_MS: Final = (1 << 31) - 1


def check_timeout(timeout: float | None) -> float | None:
    """Return a timeout in seconds, None: for ever; TypeError, ValueError: it is none."""
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except (OverflowError, TypeError, ValueError) as error:
        message = f"timeout={timeout!r}: give seconds, or None to wait for ever"
        raise type(error)(message) from None
    if math.isnan(seconds):
        message = "timeout=nan: give seconds, or None to wait for ever"
        raise ValueError(message)
    return None if seconds == math.inf else max(0.0, seconds)


def deadline_of(timeout_s: float | None) -> float | None:
    """Return when a timeout is over, by the monotonic clock; None: never."""
    return None if timeout_s is None else monotonic() + timeout_s


def left_until(deadline: float | None) -> float | None:
    """Return the seconds that are left until a deadline; None: there is none."""
    return None if deadline is None else max(0.0, deadline - monotonic())


def sleep_until(
    live: Live,
    look: Callable[[], Result | None],
    topics: Collection[int],
    timeout_s: float | None,
    settle: Callable[[], Result | None] | None = None,
    sleeper: Sleeper | None = None,
) -> Result | None:
    """Wait until a look finds something; return it, or None when the time is over.

    Parameters
    ----------
    live
        Who changes what it does calls `Bells.ring_own` afterwards.
    look
        Called again and again without the lock; None: not yet, which may be wrong.
    topics
        Whoever makes `look` succeed calls `_announcing.ring` for one of them, under the lock and
        before the change. A live view of a dict may serve: it is looked at each time.
    timeout_s
        Seconds, None: for ever.
    settle
        As `look`, but called under the lock: its None is right. By default it is `look`.
    sleeper
        One that has rows already, and keeps them afterwards.

    Raises
    ------
    StoreClosedError
        The store, or the handle on it, was closed meanwhile, or the store destroyed.
    """
    session = live()
    deadline = deadline_of(timeout_s)
    settle = settle or look
    found = spin(look, deadline)
    if found is not None:
        return found
    with contextlib.ExitStack() as ending:
        kept = sleeper is not None
        if sleeper is None:
            sleeper = ending.enter_context(Sleeper(live))
        while deadline is None or monotonic() < deadline:
            settled: Result | None = session.lock.run(sleeper.settle, settle, topics)
            if settled is not None:
                return settled
            live()
            if not sleeper.sleep(deadline):
                break
            found = _await_change(session, look)
            if found is None or kept:  # else it is silenced when it is borrowed again
                sleeper.bell.drain()
            if found is not None:
                return found
    last: Result | None = session.lock.run(settle)
    return last


def spin(look: Callable[[], Result | None], deadline: float | None) -> Result | None:
    """Look again and again for a moment."""
    end = monotonic() + SPIN_S
    if deadline is not None:
        end = min(end, deadline)
    threads = threading.active_count() > 1
    while True:
        found = look()
        if found is not None or monotonic() >= end or _is_alone:
            return found
        if threads:
            sleep(0)  # the change may be that of another thread of this process
        elif _has_one_core:
            _give_way()


def _await_change(session: Session, look: Callable[[], Result | None]) -> Result | None:
    """Look until the change is made that the bell was rung for; None: it was another one, perhaps.

    Who has rung it holds the lock for some microseconds more. He may wait for this processor.
    """
    words, end = session.words, monotonic() + SPIN_S
    for turn in itertools.count():
        changing = words[L.W_DIRTY]
        found = look()
        if found is not None or not changing or monotonic() >= end:
            return found
        if turn >= _TURNS:
            _give_way()
    return None


# Who spins on the only processor keeps the others from what he waits for. Where there are more, and
# he may use one, that may be his alone.
_is_alone = os.cpu_count() == 1
_has_one_core = count_cores() == 1


class Sleeper(Closing):
    """Somebody who waits: a bell, and the rows that lead to it.

    Parameters
    ----------
    live
        Of the store where it happens.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._session = live()
        self._rows: dict[int, tuple[int, int]] = {}  # per topic: row and ticket
        self._hears_all = False
        self._bell: Bell | None = None

    @property
    def bell(self) -> Bell:
        """What others ring. Another one after a fork: the child has no bells of its parent."""
        if self._bell is not None and not self._bell.closed:
            return self._bell
        self._rows.clear()
        self._bell = self._take_bell()
        return self._bell

    def _take_bell(self) -> Bell:
        session = self._session
        try:
            return session.bells.borrow(session.pins.seat.serial)
        except OSError as error:
            raise folder.full_file_system(session.folder_fd, session.path, 0, error) from error

    def _drop_bell(self, bell: Bell) -> None:
        self._session.bells.give_back(bell)

    def settle(
        self, look: Callable[[], Result | None], topics: Collection[int], prefix: int = -1
    ) -> Result | None:
        """Look a last time; without success enter rows for the topics that have none.

        Requires: the store lock.
        """
        found = look()
        if found is None:
            self._session.check_alive()
            self._enter(topics, prefix)
        return found

    def _enter(self, topics: Collection[int], prefix: int) -> None:
        bell = self.bell
        self._rows = {topic: row for topic, row in self._rows.items() if self._is_left(topic)}
        missing = [topic for topic in topics if not self.is_entered(topic)]
        if len(missing) > self._session.waiters.most_topics():
            missing, prefix, self._hears_all = [_announcing.EVERY_KEY], 0, True
        if self._hears_all and self._is_left(_announcing.EVERY_KEY):
            return
        ticket = next(self._session.bells.tickets)
        with self._session.writeable_clients() as clients:
            try:
                rows = clients.waiters.enter(missing, (bell.serial, bell.number), ticket, prefix)
            except OSError as error:
                place = self._session.folder_fd, self._session.path
                raise folder.full_file_system(*place, L.PAGE, error) from error
        if rows is None:
            most = self._session.index.geometry.max_waiters
            raise StoreFullError(
                f"{most:,} things are waited for in {self._session.path.name!r}, as many as it "
                "takes. Create it with a larger max_clients, or wait for fewer.",
                waiters=most,
            )
        for topic, row in zip(missing, rows, strict=True):
            self._rows[topic] = row, ticket

    def is_entered(self, topic: int) -> bool:
        """Return whether nobody has rung the bell for a topic yet, as far as that can be told."""
        return not self._hears_all and self._is_left(topic)

    def _is_left(self, topic: int) -> bool:
        entry, bell = self._rows.get(topic), self._bell
        if entry is None or bell is None or bell.closed:
            return False
        row, ticket = entry
        return self._session.waiters.is_waiting(row, bell.serial, ticket)

    def lost(self, topic: int) -> int:
        """Return how many changes a watcher's bell had no room for."""
        return self._session.waiters.lost(self._rows[topic][0])

    def sleep(self, deadline: float | None) -> bool:
        """Sleep until the bell is rung; False: the time is over."""
        counts.add(self._session.counts, L.SEAT_WAITS)
        bell = self.bell
        poll = select.poll()
        poll.register(bell.fd, select.POLLIN)
        while True:
            wait_ms = _LONGEST_POLL_MS
            if deadline is not None:
                left_ms = math.ceil((deadline - monotonic()) * 1000)
                wait_ms = min(max(0, left_ms), _LONGEST_POLL_MS)
            if poll.poll(wait_ms):
                return True
            if deadline is not None and monotonic() >= deadline:
                return False

    def close(self) -> None:
        """Take the rows away that are left, and give the bell back."""
        session, bell = self._session, self._bell
        if bell is None:
            return
        if not session.closed and any(map(self._is_left, self._rows)):
            session.lock.run(self._leave, bell)
        self._bell = None
        self._drop_bell(bell)

    def ring(self) -> None:
        """Wake who sleeps here; without a bell nobody does."""
        bell = self._bell
        if bell is not None and not bell.closed:
            bell.ring()

    def is_rung(self) -> bool:
        """Return whether somebody may have rung the bell for one of its topics."""
        return self._hears_all or not all(map(self._is_left, self._rows))

    def _leave(self, bell: Bell) -> None:
        """Requires: the store lock."""
        with self._session.writeable_clients() as clients:
            clients.waiters.leave(self._rows.values(), bell.serial)
