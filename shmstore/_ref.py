"""What travels between processes instead of an object?"""

from __future__ import annotations

import uuid
from collections.abc import Container
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstore import _lifecycle, _reading
from shmstore.errors import ObjectNotFoundError, StoreNotFoundError

if TYPE_CHECKING:
    from shmstore._info import ObjectInfo
    from shmstore._session import Session

_GONE = _reading.GONE


class ObjectRef:
    """A reference to one object of one store: immutable, hashable, about 100 bytes when pickled.

    It names this object for ever: when the object is deleted or overwritten, the reference leads to
    `ObjectNotFoundError`, never to another object. In a process that has not attached the store, the
    first use attaches it. As a context manager it deletes the object at the end.

    Attributes
    ----------
    key : str or None
        The name under which the object was put.
    nbytes : int
        Bytes of its frames.

    Notes
    -----
    Concurrency: threads and processes may share a reference.
    """

    __slots__ = ("_generation", "_path", "_plan", "_slot", "_uuid", "key", "nbytes")

    _uuid: bytes
    _path: str
    _slot: int
    _generation: int
    _plan: _reading.Plan | None
    key: str | None
    nbytes: int

    def __init__(
        self, store: bytes, path: str, slot: int, generation: int, nbytes: int, key: str | None = None
    ) -> None:
        put = object.__setattr__
        put(self, "_uuid", store)
        put(self, "_path", path)
        put(self, "_slot", slot)
        put(self, "_generation", generation)
        put(self, "_plan", None)
        put(self, "nbytes", nbytes)
        put(self, "key", key)

    def __setattr__(self, name: str, value: object) -> None:
        message = f"an ObjectRef cannot be changed (tried to set {name!r})"
        raise AttributeError(message)

    def get(
        self, *, mode: str = "shared", deserializers: Container[str] | None = None
    ) -> Any:
        """Return the object; see `Store.get`.

        Raises
        ------
        ObjectNotFoundError
            It has been deleted.
        StoreNotFoundError
            Its store is gone.
        """
        plan = self._plan
        if plan is not None and mode == "shared" and deserializers is None and not plan.session.closed:
            obj = plan.fetch()
            if obj is not _GONE:
                return obj
        return get(_session_of(self), self, mode, deserializers)

    def delete(self) -> None:
        """Delete the object: new readers miss it at once, views that exist stay valid.

        Raises
        ------
        ObjectNotFoundError
            It has been deleted before.
        """
        from shmstore._store import Store

        Store._of(_session_of(self)).delete(self)

    def info(self) -> ObjectInfo:
        """Return size, type, age, owner of the object, and who looks at it."""
        from shmstore._store import Store

        return Store._of(_session_of(self)).info(self)

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
            self.nbytes,
            *(() if self.key is None else (self.key,)),
        )

    def __repr__(self) -> str:
        name = self._path.rpartition("/")[2]
        key = "" if self.key is None else f" key={self.key!r}"
        return f"<ObjectRef {name}/{self._slot}.{self._generation}{key} {self.nbytes:,} bytes>"


def get(
    session: Session, ref: ObjectRef, mode: str, deserializers: Container[str] | None
) -> Any:
    """Return the object of a reference, remembering its plan."""
    plan = ref._plan
    if plan is None or plan.session is not session:
        plan = _reading.plan_of_slot(session, ref._slot, ref._generation)
        object.__setattr__(ref, "_plan", plan)
    held = _GONE if plan is None else plan.secure()
    if plan is None or held is _GONE:
        raise missing(ref)
    return plan.build(held, mode, deserializers)


def missing(ref: ObjectRef) -> ObjectNotFoundError:
    """Return the error for a reference whose object is gone."""
    return ObjectNotFoundError(
        f"the object of {ref!r} has been deleted or overwritten. Put it again, or keep it until its last "
        "reader has it.",
        key=ref.key,
        slot=ref._slot,
        generation=ref._generation,
    )


def _session_of(ref: ObjectRef) -> Session:
    return _lifecycle.session_of(uuid.UUID(bytes=ref._uuid), ref._path)
