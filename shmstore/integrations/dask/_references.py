"""How does a task get an object that lies in a store of its host?

By a reference that is its argument: any scheduler pickles it. A plain `ObjectRef` does it too, but
a reader on another host is told only that there is no such store. A `Reference` knows where it was
made, and may carry the data along for readers elsewhere.
"""

from __future__ import annotations

import socket
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from shmstore import ObjectRef
from shmstore.errors import StoreNotFoundError
from shmstore.tickets import boot_id, place_of

# Set while a reference is pickled for a process that has proved that it opens the same store.
reader_is_near: Final[ContextVar[bool]] = ContextVar("reader_is_near", default=False)

_MISSING: Final = object()


class WrongDomainError(StoreNotFoundError):
    """The object lies in the memory of another host, or of another container."""


class Reference:
    """An object of a store, as an argument or a result of tasks.

    Made by `refer`. Any scheduler and any process may pass it on; hashable, and of the same name
    (token) for dask wherever it is.
    """

    __slots__ = ("_boot", "_carried", "_host", "_inline", "_ref")

    def __init__(
        self, ref: ObjectRef, boot: str, host: str, *, inline: bool = False, carried: Any = _MISSING
    ) -> None:
        self._ref = ref
        self._boot = boot
        self._host = host
        self._inline = inline
        self._carried = carried

    @property
    def ref(self) -> ObjectRef:
        """The reference to the object in its store."""
        return self._ref

    def get(self, *, mode: str = "shared") -> Any:
        """Return the object; see `Store.get`.

        Raises
        ------
        WrongDomainError
            This process runs where the store is not to be seen, and the data did not come along.
        ObjectNotFoundError
            It has been deleted.
        """
        if self._carried is not _MISSING:
            return self._carried
        if self._boot != boot_id():
            raise self._elsewhere()
        try:
            return self._ref.get(mode=mode)
        except StoreNotFoundError as error:
            raise self._elsewhere() from error

    def _elsewhere(self) -> WrongDomainError:
        path = place_of(self._ref).path
        return WrongDomainError(
            f"the object of {self._ref!r} lies in shared memory of host {self._host!r} "
            f"({path}), which this process on host {socket.gethostname()!r} does not "
            "see: it is another host or container, or the store is gone. Let the task run on that "
            "host (workers=), or make the reference with refer(..., inline_fallback=True).",
            path=path,
            host=self._host,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        place = self._ref, self._boot, self._host, self._inline
        if not self._inline or reader_is_near.get():
            return _arrive, place
        return _arrive, (*place, self.get(mode="readonly"))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what names the object for dask."""
        return "shmstore", *place_of(self._ref)[1:]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and other._ref == self._ref

    def __hash__(self) -> int:
        return hash(self._ref)

    def __repr__(self) -> str:
        return f"<Reference on {self._host} {self._ref!r}>"


def refer(ref: ObjectRef, *, inline_fallback: bool = False) -> Reference:
    """Return a reference to be given to tasks, for an object of a store of this host.

    Parameters
    ----------
    ref
        As `Store.put` returned it.
    inline_fallback
        Whether the data goes along when it is pickled for a reader that may be on another host.
        Every pickle is, except between workers that share a store.

    Raises
    ------
    TypeError
        It is something else: the object itself, or its key.

    Examples
    --------
    >>> import numpy as np, pickle, shmstore
    >>> with shmstore.Store.create(capacity="16MiB") as store:
    ...     argument = refer(store.put(np.arange(100_000)))
    ...     arrived = pickle.loads(pickle.dumps(argument))
    ...     int(arrived.get().sum())
    4999950000
    """
    _check_ref(ref)
    return Reference(ref, boot_id(), socket.gethostname(), inline=inline_fallback)


def _check_ref(ref: object) -> None:
    if not isinstance(ref, ObjectRef):
        message = (
            f"expected an ObjectRef, as Store.put returns it, not {type(ref).__name__}: "
            f"{ref!r:.100}"
        )
        raise TypeError(message)


def _arrive(
    ref: ObjectRef,
    boot: str,
    host: str,
    inline: bool,  # noqa: FBT001 - as pickle calls it
    carried: Any = _MISSING,
) -> Reference:
    """Make the reference again. Of data that came along it takes hold where it cannot do without.

    Its name lies in pickles.
    """
    if carried is not _MISSING and boot == boot_id() and Path(place_of(ref).path).exists():
        carried = _MISSING
    return Reference(ref, boot, host, inline=inline, carried=carried)
