"""How does an object go from one worker to another without its data?

By the family "shmstore" of dask's serialization. It takes what is large, for a receiver of whom it
is known, before anything is sent, that he has the same store open; all else it declines, and the
next family takes it.

The proof: who opens a connection says in the handshake which store he has open (on a pull that is
who asks); who listens is found by his address in the store (on a push). The scheduler, other hosts
and other clusters do neither.

Who answers sends what a worker here holds, and nothing else: that is held until the receiver has
said that it arrived. Who asks holds his arguments until the answer comes.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

from distributed.protocol import register_serialization_family

from shmstore.errors import ShmStoreError
from shmstore.integrations.dask import _exchange
from shmstore.integrations.dask._exchange import Exchange
from shmstore.integrations.dask._references import Reference, reader_is_near
from shmstore.tickets import Ticket, redeem

NAME: Final = "shmstore"
FAMILIES: Final = (NAME, "dask", "pickle", "error")
"""What to give as ``serializers`` and ``deserializers``; "error" is only ever read."""

HANDSHAKE: Final = "shmstore-domain"


class NotDeliveredError(OSError):
    """An object was sent as a ticket that could not be redeemed.

    To dask this is a broken connection: it asks again, and then the data comes.
    """


def _decline() -> NotImplementedError:
    return NotImplementedError("not for the store")


def dumps(x: Any, context: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[Any]]:
    """Send a ticket for an object; NotImplementedError: the next family takes it."""
    if not _exchange.exchanges or not context:
        raise _decline()
    if type(x) is Reference:
        return _dumps_reference(x, context)
    exchange = _shared_with(context.get("recipient") or {})
    if exchange is None:
        raise _decline()
    try:
        ticket = _ticket(exchange, x, context.get("sender") or {})
    except (ShmStoreError, OSError, MemoryError) as error:
        raise _decline() from error
    if ticket is None:
        raise _decline()
    exchange.sent += 1
    return {"ticket": tuple(ticket)}, []


def _shared_with(recipient: dict[str, Any]) -> Exchange | None:
    """Return the exchange of a store that a receiver has proved to have open."""
    domain = recipient.get(HANDSHAKE)
    if domain is not None:
        return _exchange.exchanges.get(domain)
    address = recipient.get("address")
    found = list(_exchange.exchanges.values())
    return next((each for each in found if each.is_peer(address)), None)


def _ticket(exchange: Exchange, x: Any, sender: dict[str, Any]) -> Ticket | None:
    hold = None
    resident = exchange.resident(x)
    if resident is not None:
        hold = resident.hold()
    elif not exchange.is_listener(sender.get("address")) and exchange.is_shareable(x):
        loan = exchange.lend(x)
        hold = None if loan is None else loan.lying.hold
    return None if hold is None else hold.ticket()


def _dumps_reference(x: Reference, context: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Let the data of a reference stay at home, where the receiver can see it."""
    if _shared_with(context.get("recipient") or {}) is None:
        raise _decline()
    token = reader_is_near.set(True)
    try:
        return {}, [pickle.dumps(x)]
    finally:
        reader_is_near.reset(token)


def loads(header: dict[str, Any], frames: list[Any]) -> Any:
    """Return the object of a ticket."""
    if "ticket" not in header:
        return pickle.loads(frames[0])
    ticket = Ticket(*header["ticket"])
    exchange = _exchange.at(ticket.path)
    try:
        return redeem(ticket)[0] if exchange is None else exchange.receive(ticket)
    except Exception as error:
        message = f"an object could not be taken out of the store {ticket.path}: {error}"
        raise NotDeliveredError(message) from error


register_serialization_family(NAME, dumps, loads)
