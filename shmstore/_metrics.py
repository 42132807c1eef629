"""What have the processes done with a store so far?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from shmstore._memory import layout as L

if TYPE_CHECKING:
    from shmstore._session import Session
    from shmstore._sharing.clients import Client


@dataclasses.dataclass(frozen=True)
class Counts:
    """How often something was done, by one process or by all.

    Parameters
    ----------
    puts, put_nbytes
        Objects that were put, also into queues or by `allocate`, and the bytes of their frames.
    gets, got_nbytes
        Objects that were got, also from queues, and the bytes of their frames (which no get copies
        unless it is asked to).
    deletes
        Objects that were deleted by name or reference; overwriting one is a put.
    waits
        How often a process went to sleep to wait for what others do.
    lock_waits, lock_wait_s
        How often the store lock was held by another process when it was wanted, and for how many
        seconds that was waited for.
    evictions, expirations, spills, restores
        Objects that were evicted, have expired, went to a file, and came back.
    """

    puts: int
    put_nbytes: int
    gets: int
    got_nbytes: int
    deletes: int
    waits: int
    lock_waits: int
    lock_wait_s: float
    evictions: int
    expirations: int
    spills: int
    restores: int


@dataclasses.dataclass(frozen=True)
class ClientMetrics(Counts):
    """What one attached process has done since it attached; see `Counts`.

    Parameters
    ----------
    pid, attached, alive, readonly, own
        As in `ClientInfo`.
    """

    pid: int
    attached: float
    alive: bool
    readonly: bool
    own: bool


@dataclasses.dataclass(frozen=True)
class Metrics(Counts):
    """What all processes have done with a store since it was made; see `Counts`.

    Parameters
    ----------
    at
        When this was asked, in seconds since 1970: two of them give a rate.
    clients
        What each attached process has done; the rest was done by those that have left.
    """

    at: float
    clients: tuple[ClientMetrics, ...]

    def _repr_html_(self) -> str:
        from shmstore import _display  # noqa: PLC0415 - only in a notebook

        return _display.of_metrics(self)


_TOTALS: Final = (L.W_EVICTIONS, L.W_EXPIRATIONS, L.W_SPILLS, L.W_RESTORES)


def take(session: Session) -> Metrics:
    """Return what was counted until now; of other processes, what they have told."""
    session.tell_gets()
    return session.lock.run(_take, session)


def _take(session: Session) -> Metrics:
    """Requires: the store lock, so that nobody leaves between the rows and the sums."""
    session.check_alive()
    words, clients = session.words, session.clients
    rows = [(client, clients.counted(client.row, client.serial)) for client in clients.rows()]
    left = [int(count) for count in words[L.W_LEFT : L.W_LEFT + L.LEFT_END - L.SEAT_PUTS]]
    sums = [sum(column) for column in zip(left, *(row for _, row in rows), strict=False)]
    return Metrics(
        **_named([*sums, *(int(words[word]) for word in _TOTALS)]),
        at=time.time(),
        clients=tuple([_of_client(session, *both) for both in rows]),
    )


def _of_client(session: Session, client: Client, counted: Sequence[int]) -> ClientMetrics:
    return ClientMetrics(
        **_named(counted),
        pid=client.pid,
        attached=client.attached_ns / 1e9,
        alive=session.clients.is_alive(client),
        readonly=client.readonly,
        own=client.row == session.row,
    )


def _named(counted: Sequence[int]) -> dict[str, Any]:
    """Return the fields of `Counts` for numbers in the order of a seat."""
    names = [field.name for field in dataclasses.fields(Counts)]
    values: list[float] = list(counted)
    values[names.index("lock_wait_s")] /= 1e9
    return dict(zip(names, values, strict=True))


assert len(dataclasses.fields(Counts)) == L.COUNTS_END - L.SEAT_PUTS
