"""What travels between processes instead of an object?"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from importlib import import_module
from itertools import count, repeat
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstore import (
    _announcing,
    _claiming,
    _deleting,
    _inspection,
    _lifecycle,
    _plans,
    _reading,
    _spares,
)
from shmstore._arguments import check_mode
from shmstore._catalog import states
from shmstore._catalog.keys import Digest
from shmstore._memory import layout as L
from shmstore._sharing import counts
from shmstore.errors import ObjectNotFoundError, StoreNotFoundError

if TYPE_CHECKING:
    from shmstore._info import ObjectInfo
    from shmstore._session import Session

_GONE = _plans.GONE
_new = object.__new__

# How often an object may move between memory and file while it is looked at.
_TRIES = 20


class ObjectRef:
    """A reference to one object of one store: immutable, hashable, about 100 bytes when pickled.

    It names this object for ever: when the object is deleted or overwritten, the reference leads
    to `ObjectNotFoundError`, never to another object. In a process that has not attached the
    store, the first use attaches it. As a context manager it deletes the object at the end.

    Notes
    -----
    Concurrency: threads and processes may share a reference.
    """

    __slots__ = ("_generation", "_gid", "_key", "_nbytes", "_path", "_plan", "_slot", "_uuid")

    def __init__(
        self,
        store: bytes,
        path: str,
        slot: int,
        generation: int,
        nbytes: int,
        key: str | None = None,
        gid: int | None = None,
    ) -> None:
        self._uuid = store
        self._path = path
        self._slot = slot
        self._generation = generation
        self._nbytes = nbytes
        self._key = key
        self._gid = gid
        self._plan: _plans.Plan | None = None

    @property
    def key(self) -> str | None:
        """The name under which the object was put."""
        return self._key

    @property
    def nbytes(self) -> int:
        """Bytes of the object's frames."""
        return self._nbytes

    def get(self, *, mode: str = "shared", deserializers: Container[str] | None = None) -> Any:
        """Return the object; see `Store.get`.

        Raises
        ------
        ObjectNotFoundError
            It has been deleted.
        StoreNotFoundError
            Its store is gone.
        """
        plan = self._plan
        if mode == "shared" and deserializers is None:
            if plan is None or plan.session.closed:
                plan = first_plan(_session_of(self), self)
            obj = _GONE if plan is None else plan.fetch()
            if obj is not _GONE:
                return obj
        check_mode(mode)
        plan, held = secure(_session_of(self), self)
        plan.count()
        return plan.build(held, mode, deserializers)

    def delete(self) -> None:
        """Delete the object: new readers miss it at once, views that exist stay valid.

        Raises
        ------
        ObjectNotFoundError
            It has been deleted before.
        """
        session = _session_of(self)
        if not (take_back(session, self) or _deleting.delete(session, find, [self])):
            raise missing(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the object is gone: deleted, overwritten, evicted, or its time is over.

        For whoever hands an object over and goes on when the others are done with it. It is there
        from the beginning, so nothing else about it can be waited for.

        Parameters
        ----------
        timeout
            Seconds; None: for ever.

        Returns
        -------
        bool
            False when the time is over and the object is still there.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...     ref = store.put("for somebody who deletes it")
        ...     ref.wait(timeout=0.01)
        False
        """
        from shmstore import _waiting  # noqa: PLC0415 - takes time that most processes can save

        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        try:
            session = _session_of(self)
        except StoreNotFoundError:
            return True
        return _wait_for_end(session, self, deadline)

    def info(self) -> ObjectInfo:
        """Return size, type, age and owner of the object, and who looks at it."""
        session = _session_of(self)
        plan = plan_of(session, self)
        return _inspection.describe(plan, self, _inspection.pins_by_slot(session))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.delete()
        except (ObjectNotFoundError, StoreNotFoundError):
            return

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectRef):
            return NotImplemented
        return (self._generation, self._slot, self._uuid) == (
            other._generation,
            other._slot,
            other._uuid,
        )

    def __hash__(self) -> int:
        return hash((self._generation, self._slot, self._uuid))

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectRef, (
            self._uuid,
            self._path,
            self._slot,
            self._generation,
            self._nbytes,
            *(() if self._key is None and self._gid is None else (self._key,)),
            *(() if self._gid is None else (self._gid,)),
        )

    def _repr_html_(self) -> str:
        from shmstore import _display  # noqa: PLC0415 - only in a notebook

        sessions = _lifecycle.sessions
        session = sessions.get((self._uuid, False)) or sessions.get((self._uuid, True))
        look = import_module("shmstore._surveying").take
        return _display.of_ref(session, self, (self._slot, self._generation), look)

    def __repr__(self) -> str:
        name = self._path.rpartition("/")[2]
        key = "" if self.key is None else f" key={self.key!r}"
        return f"<ObjectRef {name}/{self._slot}.{self._generation}{key} {self.nbytes:,} bytes>"


def first_plan(session: Session, ref: ObjectRef) -> _plans.Plan | None:
    """Return a plan for a reference that has none, and let it remember that; None: deleted."""
    plan = ref._plan = _reading.plan_of_slot(session, ref._slot, ref._generation)
    return plan


def secure(session: Session, ref: ObjectRef) -> tuple[_plans.Plan, Any]:
    """Return the plan of a reference, and what it secured; ObjectNotFoundError: deleted."""
    for _ in range(_TRIES):
        plan = plan_of(session, ref)
        held = plan.secure()
        if held is not _GONE:
            return plan, held
    found = session.lock.run(_reading.secure_slot_locked, session, ref._slot, ref._generation)
    if found is None:
        raise missing(ref)
    return found


def plan_of(session: Session, ref: ObjectRef) -> _plans.Plan:
    """Return the plan of a reference, and let it remember that; ObjectNotFoundError: deleted."""
    plan = ref._plan
    if plan is None or plan.session is not session or not plan.is_there():
        plan = ref._plan = _reading.plan_of_slot(session, ref._slot, ref._generation)
    if plan is None:
        session.check_alive()
        raise missing(ref)
    return plan


def refer(plan: _plans.Plan) -> ObjectRef:
    """Return a reference to the object of a plan."""
    session = plan.session
    place = plan.slot, states.generation_of(plan.word), plan.record.data_nbytes
    key = plan.header.get("key")
    return ObjectRef(session.uuid, session.path_text, *place, key, session.gid)


def refer_to_many(
    store: bytes,
    path: str,
    slots: Iterable[int],
    generation: int,
    sizes: Sequence[int],
    gid: int | None,
) -> list[ObjectRef]:
    """Return references to objects without keys; their generations follow each other.

    Flat: the workload "many" of the benchmarks pays for it.
    """
    refs = list(map(_new, repeat(ObjectRef, len(sizes))))
    for ref, slot, number, nbytes in zip(refs, slots, count(generation), sizes):
        # As `ObjectRef.__init__`.
        ref._uuid = store
        ref._path = path
        ref._slot = slot
        ref._generation = number
        ref._nbytes = nbytes
        ref._key = None
        ref._gid = gid
        ref._plan = None
    return refs


def check_kind(ref: object) -> None:
    """Raise TypeError unless it is a reference."""
    if not isinstance(ref, ObjectRef):
        message = f"expected an ObjectRef, not {type(ref).__name__}: {ref!r:.100}"
        raise TypeError(message)


def check_owner(session: Session, ref: ObjectRef) -> None:
    """Raise ValueError for a reference into another store."""
    if ref._uuid != session.uuid:
        message = f"{ref!r} belongs to another store than {session.path}; use ref.get() instead"
        raise ValueError(message)


def take_back(session: Session, target: ObjectRef | str) -> bool:
    """Delete an object without the lock, if that can be; False: `_deleting.delete` has to."""
    if not isinstance(target, ObjectRef) or target._key is not None:
        return False
    place = target._slot, target._generation
    if target._uuid != session.uuid or not _spares.take_back(session, *place):
        return False
    counts.add(session.counts, L.SEAT_DELETES)
    return True


def find(session: Session, target: ObjectRef | Digest) -> int:
    """Return the slot of a reference or of the digest of a key; -1: its object is gone."""
    if isinstance(target, ObjectRef):
        return target._slot if is_there(session, target) else -1
    return session.keys.find(target)


def is_there(session: Session, ref: ObjectRef) -> bool:
    """Return whether the object of a reference could be got."""
    slot, words = ref._slot, session.words
    if not 0 <= slot < words[L.W_SLOT_TOP]:
        return False
    word = session.slots.word(slot)
    there = states.is_present(word) and states.generation_of(word) == ref._generation
    return there and not session.slots.is_over(slot)


def _wait_for_end(session: Session, ref: ObjectRef, deadline: float | None) -> bool:
    """Wait until the object of a reference is gone; False: the time is over before."""
    from shmstore import _waiting  # noqa: PLC0415 - takes time that most processes can save

    look, topics = end_of(session, ref)
    while look() is None:
        timeout_s = patience(session, ref, deadline)
        found = _waiting.sleep_until(lambda: session, look, topics, timeout_s)
        if found is None and _waiting.left_until(deadline) == 0:
            return False
    return True


def end_of(session: Session, ref: ObjectRef) -> tuple[Callable[[], bool | None], list[int]]:
    """Return how to look whether an object is gone, and what is rung for it.

    From now on it ends under the lock, where bells are rung.
    """
    words = session.words
    if 0 <= ref._slot < words[L.W_SLOT_TOP] and _claiming.is_own(session, ref._slot):
        with session.writeable_clients() as clients:
            session.lock.run(_claiming.claim, session, ref._slot, clients.words)

    def look() -> bool | None:
        return True if words[L.W_DESTROYED] or not is_there(session, ref) else None

    return look, [_announcing.topic_of_object(ref._generation)]


def patience(session: Session, ref: ObjectRef, deadline: float | None) -> float | None:
    """Return for how long the end of an object is to be waited for: by then its time is over."""
    from shmstore import _waiting  # noqa: PLC0415 - takes time that most processes can save

    waits = _waiting.left_until(deadline), _reading.seconds_left(session, ref._slot)
    return min((wait_s for wait_s in waits if wait_s is not None), default=None)


def missing(ref: ObjectRef) -> ObjectNotFoundError:
    """Return the error for a reference whose object is gone."""
    return ObjectNotFoundError(
        f"the object of {ref!r} has been deleted or overwritten. Put it again, or keep it until "
        "its last reader has it.",
        key=ref.key,
        slot=ref._slot,
        generation=ref._generation,
    )


def _session_of(ref: ObjectRef) -> Session:
    return _lifecycle.session_of(ref._uuid, ref._path, ref._gid)
