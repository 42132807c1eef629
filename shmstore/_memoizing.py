"""How is a function computed once for all processes that ask for the same?

The result lies under a key that is made of the function and its arguments. Whoever finds nothing
there puts a *claim*, under the lock, and computes; who finds a claim waits. The result takes the
place of the claim in one step, an exception takes the claim away. A claim whose client is dead
counts as none: those who wait look for that ten times a second, while there is a claim, and one of
them takes over.

Concurrency: threads and processes.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shmstore import _announcing, _deleting, _packing, _reading, _waiting, _writing
from shmstore._catalog.keys import Digest, digest_of
from shmstore._tuples import NamedTuple
from shmstore.errors import ObjectTooLargeError, StoreFullError
from shmstore.serialization.fingerprints import fingerprint, fingerprint_of_code

if TYPE_CHECKING:
    from shmstore._session import Session
    from shmstore._store import Store

PREFIX: Final = "memo/"

# So often those who wait for a result look whether its client lives.
LOOK_S: Final = 0.1

_CLAIM_TYPE: Final = "shmstore.memoize.claim"
_NOTHING: Final = object()
_OVERWRITE: Final = True


class CacheInfo(NamedTuple):
    """As `functools.lru_cache` tells it: hits and misses of this process, results of all."""

    hits: int
    misses: int
    maxsize: None
    currsize: int


class Memoized:
    """A function whose results all processes share.

    Parameters
    ----------
    store
        Where they lie.
    function
        What is computed.
    ttl
        Seconds until a result expires; None: as the store was created.
    key
        Makes a text of the arguments; None: they are pickled.
    """

    def __init__(
        self,
        store: Store,
        function: Callable[..., Any],
        ttl: float | None,
        key: Callable[..., str] | None,
    ) -> None:
        code = getattr(function, "__code__", None)
        if code is None:
            message = f"{function!r} has no code that tells it from others: memoize a function"
            raise TypeError(message)
        if function.__closure__ is not None and key is None:
            message = (
                f"{function.__qualname__} uses variables of the function that it was made in: "
                "its results may depend on them. Give `key=`, or pass them as arguments"
            )
            raise TypeError(message)
        self._store = store
        self._function = function
        self._ttl = ttl
        self._key = key
        self._signature = inspect.signature(function)
        self._hits = self._misses = 0
        name = f"{function.__module__}.{function.__qualname__}"[:200]
        self._prefix = f"{PREFIX}{name}/{fingerprint_of_code(code)}/"
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result, computed here if nobody has done or does so."""
        key = self.cache_key(*args, **kwargs)
        found = self._find_or_claim(key)
        if found is not _NOTHING:
            self._hits += 1
            return found
        self._misses += 1
        try:
            result = self._function(*args, **kwargs)
        except BaseException:
            self._release(key)
            raise
        return self._keep(key, result)

    def cache_key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key under which the result for these arguments lies in the store."""
        if self._key is not None:
            return self._prefix + fingerprint(str(self._key(*args, **kwargs)))
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self._prefix + fingerprint((bound.args, bound.kwargs))

    def cache_clear(self) -> None:
        """Delete all results of this function, for all processes."""
        keys = [key for key in self._store if key.startswith(self._prefix)]
        self._store.delete_many(keys)
        self._hits = self._misses = 0

    def cache_info(self) -> CacheInfo:
        """Return hits and misses of this process, and how many results there are."""
        count = sum(key.startswith(self._prefix) for key in self._store)
        return CacheInfo(self._hits, self._misses, None, count)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Be a method where a function would be one."""
        return self if instance is None else functools.partial(self, instance)

    def __reduce__(self) -> str:
        return str(self._function.__qualname__)

    # --- one result ----------------------------------------------------------------------------

    def _find_or_claim(self, key: str) -> Any:
        """Return the result, or _NOTHING: it is ours to compute."""
        store = self._store
        session, digest = store._live(), digest_of(key)
        topics = [_announcing.topic_of_digest(digest)]
        claim = _packing.pack_plain(_CLAIM_TYPE, session.pins.seat.serial, key)

        def look() -> bool | None:
            found = _reading.glance(session, digest)
            return True if found and _owner_of_claim(session, *found) is None else None

        def settle() -> bool | None:
            return _settle(session, digest)

        while True:
            if look():
                secured = _reading.secure_key(session, key)
                if secured is not None and secured[0].header["type"] != _CLAIM_TYPE:
                    plan, held = secured
                    plan.count()
                    return plan.build(held)
            if session.lock.run(_claim, session, claim, digest):
                return _NOTHING
            _waiting.sleep_until(store._live, look, topics, LOOK_S, settle)

    def _keep(self, key: str, result: Any) -> Any:
        """Let a result take the place of the claim; return it as others get it."""
        try:
            ref = self._store.put(result, key=key, readonly=True, ttl=self._ttl)
        except (StoreFullError, ObjectTooLargeError) as error:
            self._release(key)
            warnings.warn(f"the result was not kept: {error}", RuntimeWarning, stacklevel=3)
            return result
        except BaseException:
            self._release(key)
            raise
        return self._store.get(ref, result)

    def _release(self, key: str) -> None:
        """Take our claim away, if it is there."""
        session = self._store._live()
        _deleting.delete(session, _find_own_claim, [digest_of(key)])


def _owner_of_claim(session: Session, slot: int, word: int) -> int | None:
    """Return the serial of the client that claims a result; None: it is no claim."""
    plan = _reading.make_plan(session, slot, word)
    if plan is None or plan.header["type"] != _CLAIM_TYPE:
        return None
    return plan.record.owner


def _find_own_claim(session: Session, digest: Digest) -> int:
    """Return the slot of a claim of this client, or -1. Requires: the store lock."""
    slot = session.keys.find(digest)
    if slot < 0 or _owner_of_claim(session, slot, session.slots.word(slot)) is None:
        return -1
    return slot if session.slots.read(slot).owner == session.pins.seat.serial else -1


def _settle(session: Session, digest: Digest) -> bool | None:
    """Return True when a result is there, or to be claimed. Requires: the store lock."""
    found = _reading.find_locked(session, digest)
    if found is None:
        return True
    owner = _owner_of_claim(session, *found)
    return True if owner is None or not session.clients.lives(owner) else None


def _claim(session: Session, claim: _packing.Package, digest: Digest) -> bool:
    """Claim a result that is not there and that nobody alive claims. Requires: the store lock."""
    found = _reading.find_locked(session, digest)
    if found is not None:
        owner = _owner_of_claim(session, *found)
        if owner is None or session.clients.lives(owner):
            return False
    guard = _writing.put_small(session, claim, [], _OVERWRITE)
    assert guard is None, "a claim lies in a slot"
    return True
