"""What becomes of the sessions of a process when it forks, and when it ends?

* fork: the parent makes the child's seat, with a copy of all pins, and opens the child's lock file
  before the child exists. So views that the child is born with stay valid whatever the parent does,
  and the two never share a seat or a lock.
  A child that can get no seat (too many clients, no memory, or a signal handler has forked while
  its own thread held the lock) finds its handles closed, and what it goes on with it writes for
  itself alone. Its views stay valid all the same: the parent never drops the pins it has then, and
  the child keeps the parent's seat locked.
* exit: every session is left. Views that are still alive keep their pins to the end: the kernel
  lets go of the seat, and whoever needs the memory finds it unlocked.

Concurrency: the hooks run in the thread that forks or exits. Other threads wait meanwhile, so that
the child does not inherit a lock that nobody will ever release.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from shmstore import _ending, _lifecycle, _spares
from shmstore._memory import folder, news
from shmstore._memory import layout as L
from shmstore._memory.descriptors import Descriptor
from shmstore._memory.mapping import detach
from shmstore._memory.segment import Segment
from shmstore._session import LOCK_NAME, Session, forming
from shmstore._sharing import barrier
from shmstore._sharing.lock import StoreLock, hold_noted, let_noted
from shmstore._sharing.seats import Seat
from shmstore._spares import Spares
from shmstore._tuples import NamedTuple
from shmstore.errors import ShmStoreError

_EXIT_TIMEOUT_S = 1.0


class _Birth(NamedTuple):
    """What the parent prepares for the child's side of a session."""

    session: Session
    row: int
    seat: Seat
    lock_fd: Descriptor
    spares: Spares


class _Call:
    """Something that lives as long as a call that has it in a variable."""


class _Fork(threading.local):
    """What this thread has prepared for a fork, and the locks that it holds meanwhile.

    Attributes
    ----------
    births
        What there is for the child.
    held, refused
        Locks of threads that are held, and locks of stores that refuse this thread.
    settled
        Whether this process has gone through its hooks.
    preparing
        Leads to something as long as the fork is prepared: whoever forks then is a signal handler.
    """

    def __init__(self) -> None:
        self.births: list[_Birth] = []
        self.held: list[Any] = []
        self.refused: list[StoreLock] = []
        self.settled = True
        self.preparing: Callable[[], _Call | None] = lambda: None


_fork = _Fork()
# What keeps views valid that this process was born with and has no seat for.
_seats_of_parents: list[Seat] = []


def _before_fork() -> None:
    if _fork.preparing() is not None:
        for session in list(_lifecycle.sessions.values()):
            session.pins.freeze()  # the child of this fork has no seats
        return
    _after_fork_in_parent()  # of the last one, where a signal handler has cut that short
    call = _Call()
    _fork.preparing = weakref.ref(call)
    try:
        _prepare_all()
    except BaseException:  # of a signal handler: the fork goes on
        for session in list(_lifecycle.sessions.values()):
            if all(birth.session is not session for birth in _fork.births):
                session.pins.stay()  # lets go of a seat that nobody has been told of
                session.pins.freeze()
        raise
    finally:
        del call  # an error keeps this frame


def _prepare_all() -> None:
    _lifecycle.housekeeping.stop()
    hold_noted(_lifecycle.registry, _fork.held)
    for session in _lifecycle.sessions.values():
        if session.words[L.W_DESTROYED]:
            continue
        try:
            birth = _prepare(session)
        except Exception as error:  # noqa: BLE001 - a fork cannot be refused, only made safe
            news.tell(news.WARNING, "%s: no seat for a forked child: %s", session.path, str(error))
            session.pins.freeze()
            continue
        _fork.births.append(birth)
        _fork.refused.append(session.lock)
        session.lock.hold_threads(_fork.held)
        # The child runs finalizers, and hooks that are older than these, before it has its own.
        session.spares = _spares.nothing()


def _prepare(session: Session) -> _Birth:
    session.tell_gets()  # the child must not tell them too
    lock_fd = folder.open_file(session.folder_fd, LOCK_NAME, session.path)
    try:
        row, seat = session.lock.run(session.new_child_seat)
        return _Birth(session, row, seat, lock_fd, session.spares)
    except BaseException:
        lock_fd.close()
        raise


def _after_fork_in_parent() -> None:
    if _fork.preparing() is not None:
        return  # this is not the fork that all was prepared for
    for birth in list(_fork.births):
        birth.session.spares = birth.spares
        birth.session.pins.stay()
    _pass_up(_fork.births)
    _fork.births.clear()
    let_noted(_fork.held)
    while _fork.refused:
        _fork.refused[-1].let_threads()
        del _fork.refused[-1:]


def _pass_up(births: list[_Birth]) -> None:
    """Let go of what is another process's."""
    for birth in births:
        birth.lock_fd.close()
        birth.seat.close()


def _after_fork_in_child() -> None:
    if _fork.settled:
        return
    _lifecycle.housekeeping.begin_anew()
    births = _fork.births
    if _fork.preparing() is not None:  # what there is is for another child
        births = []
        _pass_up(_fork.births)
    for birth in births:
        birth.session.spares = birth.spares
        birth.session.adopt(birth.row, birth.seat, birth.lock_fd)
        birth.session.owner_pid = 0  # a descendant may get the pid of an owner that has died
    born = {id(birth.session) for birth in births}
    for session in [*forming, *_lifecycle.sessions.values()]:
        if id(session) not in born:
            _abandon(session)
    let_noted(_fork.held)
    _fork.refused.clear()
    barrier.register()
    _finalize_with_multiprocessing()
    _fork.births, _fork.settled = [], True  # one step, for a session without a birth is closed


def _abandon(session: Session) -> None:
    """Close a session that this process, a child, has no seat for."""
    _detach(session)
    if session in forming:
        session.closed = True  # who goes on to form it is told
        session.lock.close()
        return
    keep = not session.words[L.W_DESTROYED]
    _lifecycle.forget(session, keep_seat=keep)
    if keep:
        _seats_of_parents.append(session.pins.seat)


def _detach(session: Session) -> None:
    """Let what this process, a child without a seat, still writes reach nobody.

    A signal handler may have forked in the midst of anything, and the child goes on with it. Views
    go on to be shared, unless it was under the lock: there the segment is written to.
    """
    if not session.index.protected:
        detach(session.index.memory, session.index.fd)
    if session.row >= 0 and session not in forming:
        detach(session.pins.seat.bytes, session.pins.seat.fd)
    if session.lock.is_mine() and not session.readonly and type(session.segment) is Segment:
        detach(session.segment.writeable, session.segment.fd)


def _finalize_with_multiprocessing() -> None:
    """A process that multiprocessing has forked ends without atexit: use its own finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(_registry_token, _register_finalizer)


class _Token:
    """Something that multiprocessing can hold a weak reference to."""


_registry_token = _Token()


def _register_finalizer(_: _Token) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, _leave_all, exitpriority=-100)


def _leave_all() -> None:
    """Leave every store: this process ends. What cannot be done now is done by the others."""
    _lifecycle.housekeeping.stop()
    for session in list(_lifecycle.sessions.values()):
        session.handles = 0
        for step in _lifecycle.last_steps:
            step(session)
        session.lock.timeout_s = _EXIT_TIMEOUT_S
        with contextlib.suppress(ShmStoreError, OSError):
            _leave_at_exit(session)


def _leave_at_exit(session: Session) -> None:
    if session.owner_pid == os.getpid() and not session.persistent:
        _lifecycle.destroy(session)
    elif not session.pins.in_use():
        _lifecycle.depart(session)
    elif not session.stays and not _lifecycle.has_others(session):
        session.pins.seat.close()
        _ending.remove_folder(session, if_dead=True)


def _let_views_travel() -> None:
    """Let views travel by reference: from the first store on, before which there is none."""
    from shmstore import _traveling  # noqa: PLC0415 - only where there is a store

    _traveling.install()


def install() -> None:
    """Register the hooks of this module, once per process."""
    _lifecycle.first_steps.append(_let_views_travel)
    _lifecycle.last_steps.append(Session.tell_gets)
    atexit.register(_leave_all)
    unsettle = partial(setattr, _fork, "settled", False)  # noqa: FBT003 - no handler runs in it
    os.register_at_fork(before=_before_fork, after_in_child=unsettle)
    for _ in range(2):  # a signal handler may cut one short, even before its first line
        os.register_at_fork(
            after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )
