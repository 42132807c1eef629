"""Which keys does a program wait for, and which of them have come?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from shmstore import _announcing, _reading, _waiting
from shmstore._arguments import check_key
from shmstore._catalog.keys import Digest, digest_of
from shmstore.errors import WaitTimeoutError

if TYPE_CHECKING:
    from shmstore._plans import Plan
    from shmstore._session import Session

ALL: Final = "ALL"
FIRST: Final = "FIRST"

# So many keys are named in a message.
_FEW: Final = 3

_Find = Callable[["Session", Digest], object]
_Finder = Callable[[], tuple[int, int] | None]


class Expected:
    """Keys that are waited for.

    Parameters
    ----------
    live
        Of their store, see `_waiting`.
    keys
        Their names.
    sleeper
        Who waits, if it is not to be made here.

    Attributes
    ----------
    done
        Those that were found, in this order.
    enough
        The wait is over when so many are done.
    sleeper
        Who waits; it must be ended.
    """

    def __init__(
        self, live: _waiting.Live, keys: Iterable[str], sleeper: _waiting.Sleeper | None = None
    ) -> None:
        self._live = live
        self._session = live()
        self._missing: dict[int, dict[Digest, str]] = {}
        for key in keys:
            digest = digest_of(check_key(key))
            topic = _announcing.topic_of_digest(digest)
            self._missing.setdefault(topic, {})[digest] = key
        self.done: list[str] = []
        self.enough = 1
        self.sleeper = sleeper or _waiting.Sleeper(live)

    @property
    def topics(self) -> Collection[int]:
        """What is rung for those that are missing, now and later."""
        return self._missing.keys()

    def missing(self) -> set[str]:
        """Return the keys that were not found."""
        return {key for keys in self._missing.values() for key in keys.values()}

    def enough_for(self, return_when: str) -> int:
        """Return how many keys "ALL" or "FIRST" are."""
        if return_when not in (ALL, FIRST):
            message = f"return_when={return_when!r}: give {ALL!r} or {FIRST!r}"
            raise ValueError(message)
        count = len(self.missing())
        return count if return_when == ALL else min(1, count)

    def glance(self) -> bool | None:
        """Look without the lock for those that may be there."""
        return self._look(_reading.glance)

    def settle(self) -> bool | None:
        """Look under the lock for those that may be there."""
        return self._look(_reading.find_locked)

    def _look(self, find: _Find) -> bool | None:
        """Return whether enough of them are there; None: not yet."""
        for topic in list(self._missing):
            if self.sleeper.is_entered(topic):
                continue
            digests = self._missing[topic]
            for digest in list(digests):
                if find(self._session, digest) is not None:
                    self.done.append(digests.pop(digest))
            if not digests:
                del self._missing[topic]
        return True if len(self.done) >= self.enough else None

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until enough of them are there; False: the time is over."""
        live, topics, sleeper = self._live, self.topics, self.sleeper
        found = _waiting.sleep_until(live, self.glance, topics, timeout_s, self.settle, sleeper)
        return bool(found)

    def overdue(self) -> WaitTimeoutError:
        """Return the error for those that did not come."""
        keys = self.missing()
        some = ", ".join(repr(key) for key in sorted(keys)[:_FEW])
        return WaitTimeoutError(
            f"of {len(keys):,} keys no object was put in time into store "
            f"{self._session.path.name!r}: {some}{', ...' if len(keys) > _FEW else ''}. Does the "
            "process that should put them still run?",
            keys=keys,
        )


def each(expected: Expected, deadline: float | None) -> Iterator[str]:
    """Yield keys as they are done."""
    with expected.sleeper:
        for number in itertools.count():
            while number == len(expected.done):
                if not expected.missing():
                    return
                expected.enough = number + 1
                if not expected.wait(_waiting.left_until(deadline)):
                    raise expected.overdue()
            yield expected.done[number]


# --- one key -----------------------------------------------------------------------------------


def secure_key(
    live: _waiting.Live, key: str, timeout: float | None, *, required: bool
) -> tuple[Plan, Any] | None:
    """Wait for an object under a key; return its plan and what it secured.

    Returns
    -------
    tuple or None
        None: none came in time, and it is not `required`.
    """
    timeout_s = _waiting.check_timeout(timeout)
    session, deadline = live(), _waiting.deadline_of(timeout_s)
    look, settle, topics = finders(session, key)
    while True:
        left_s = _waiting.left_until(deadline)
        found = _waiting.sleep_until(live, look, topics, left_s, settle)
        if found is None:
            if required:
                raise overdue(session, key, timeout_s)
            return None
        secured = _reading.secure_found(session, key, *found)
        if secured is not None:
            return secured


def finders(session: Session, key: str) -> tuple[_Finder, _Finder, list[int]]:
    """Return how to look for a key, without the lock and under it, and what is rung for it."""
    digest = digest_of(key)
    look, settle = (
        partial(find, session, digest) for find in (_reading.glance, _reading.find_locked)
    )
    return look, settle, [_announcing.topic_of_digest(digest)]


def overdue(session: Session, key: str, timeout_s: float | None) -> WaitTimeoutError:
    """Return the error for a key that no object came under."""
    return WaitTimeoutError(
        f"no object was put under the key {key!r} within {timeout_s:g} s into store "
        f"{session.path.name!r}. Does the process that should put it still run?",
        key=key,
        timeout_s=timeout_s,
    )
