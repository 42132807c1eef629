"""Objects that go between workers without their data: who gets a ticket, and what if it is bad."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MIB, StartPython, wait_until

distributed = pytest.importorskip("distributed")

import clusters
from clusters import LARGE, host, make, plugin, quiet_logs, run, small, spoil, spoiled, total  # noqa: F401
from distributed.protocol import deserialize, serialize

from shmstore.integrations.dask import FAMILIES, joining, refer
from shmstore.integrations.dask import _exchange as exchanging
from shmstore.integrations.dask._exchange import Exchange, Settings, exchanges
from shmstore.integrations.dask._family import HANDSHAKE

pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.fixture
def exchange(root: Path) -> Iterator[Exchange]:
    """Give the share of this process in a store, without any cluster."""
    found = exchanging.join("dask-test", Settings(32 * MIB, root=str(root)), "tcp://127.0.0.1:1")
    yield found
    found.leave("tcp://127.0.0.1:1")


def to(exchange: Exchange, **changes: Any) -> dict[str, Any]:
    """Return the context in which a message is sent to somebody with the same store."""
    recipient = {"address": "tcp://127.0.0.1:2", HANDSHAKE: exchange.domain}
    return {"sender": {"address": "tcp://127.0.0.1:3"}, "recipient": {**recipient, **changes}}


def family_of(x: Any, context: dict[str, Any] | None) -> str:
    """Return which family takes an object."""
    header, _ = serialize(x, FAMILIES, context=context)
    return str(header["serializer"])


# --- who gets a ticket ----------------------------------------------------------------------------


def test_ticket_is_for_whoever_has_shown_the_store(exchange: Exchange) -> None:
    """In the handshake, or by the address where he listens; nobody else gets one."""
    array = np.ones(LARGE)
    assert family_of(array, to(exchange)) == "shmstore"
    assert family_of(array, {"recipient": {"address": "tcp://127.0.0.1:1"}}) == "shmstore"
    assert family_of(array, to(exchange, **{HANDSHAKE: "another"})) == "dask"
    assert family_of(array, {"recipient": {"address": "tcp://127.0.0.1:9"}}) == "dask"
    assert family_of(array, {}) == family_of(array, None) == "dask"


@pytest.mark.parametrize(
    "x",
    [1, "text", b"0" * MIB, [1, 2], np.ones(10), np.full(LARGE, None), np.broadcast_to(1, LARGE)],
    ids=["int", "str", "bytes", "list", "small", "objects", "broadcast"],
)
def test_ticket_is_for_large_data_only(exchange: Exchange, x: Any) -> None:
    """What is small, or no plain data, goes as it would."""
    assert family_of(x, to(exchange)) != "shmstore"


def test_answer_has_tickets_for_results_only(exchange: Exchange) -> None:
    """Nobody holds what else is answered until it has arrived."""
    context = {**to(exchange), "sender": {"address": "tcp://127.0.0.1:1"}}
    assert family_of(np.ones(LARGE), context) == "dask"


def test_object_arrives_as_a_copy_on_write(exchange: Exchange) -> None:
    """The sender sees nothing of what the receiver writes, nor does the next one."""
    array = np.arange(LARGE)
    header, frames = serialize(array, FAMILIES, context=to(exchange))
    arrived = deserialize(header, frames, FAMILIES)
    arrived[:] = 0
    again = deserialize(header, frames, FAMILIES)
    assert again[-1] == array[-1] == LARGE - 1
    del arrived, again
    array.flags.writeable = False
    assert not deserialize(*serialize(array, FAMILIES, context=to(exchange))).flags.writeable


def test_object_that_was_sent_goes_with_the_sender_of_it(exchange: Exchange) -> None:
    """A push is held until its object dies: then it has been answered."""
    array = np.ones(LARGE)
    serialize(array, FAMILIES, context=to(exchange))
    serialize(array, FAMILIES, context=to(exchange))
    assert exchange.store.stats().objects == 3  # and the address
    del array
    exchange.tidy()
    assert exchange.store.stats().objects == 1


# --- trap 1: a family that the other side does not know -------------------------------------------


def test_worker_without_the_family_is_never_asked_for_it(root: Path) -> None:
    """In a mixed cluster data goes both ways, by TCP."""

    async def work() -> None:
        async with small(plugin(root), None) as cluster:
            asked = []
            get_data = cluster.workers[1].handlers["get_data"]

            async def listening(comm: Any, serializers: Any = None, **message: Any) -> Any:
                asked.append(serializers)
                return await get_data(comm, serializers=serializers, **message)

            cluster.workers[1].handlers["get_data"] = listening
            one, other = await cluster.on(0, make), await cluster.on(1, make)
            assert await (await cluster.on(1, total, one)) == LARGE
            assert await (await cluster.on(0, total, other)) == LARGE
            assert set(asked) == {None}

    run(work)


# --- trap 2: a ticket that cannot be redeemed -----------------------------------------------------


def test_ticket_that_leads_nowhere_is_followed_by_the_data(host: Any) -> None:
    """To dask the connection broke; it asks again, and not for a ticket."""
    a = host("a")

    async def work() -> None:
        async with small(plugin(a), plugin(a)) as cluster:
            future = await cluster.on(0, make)
            exchange = cluster.exchange()
            redeem, calls = exchanging.redeem, []

            def lost(ticket: Any) -> Any:
                calls.append(ticket)
                return redeem(ticket._replace(generation=ticket.generation + 1000))

            exchanging.redeem = lost
            try:
                assert await (await cluster.on(1, total, future)) == LARGE
            finally:
                exchanging.redeem = redeem
            assert len(calls) == 1
            assert not exchange.is_listening()

    run(work)


# --- trap 3: a store that fails while something is sent -------------------------------------------


def test_store_that_is_removed_is_done_without(host: Any) -> None:
    """What is in the store already arrives; what comes later goes by TCP."""
    a = host("a")

    async def work() -> None:
        async with small(plugin(a), plugin(a)) as cluster:
            before = await cluster.on(0, make)
            shutil.rmtree(a)
            assert await (await cluster.on(1, total, before)) == LARGE
            after = await cluster.on(0, make, 2.0)
            assert await (await cluster.on(1, total, after)) == 2 * LARGE

    run(work)


def test_store_that_is_full_is_done_without(host: Any) -> None:
    """Results stay where dask would have them."""
    a = host("a")

    async def work() -> None:
        tight = clusters.sharing.Plugin(root=str(a), capacity=3 * MIB)
        async with small(tight, tight) as cluster:
            futures = [await cluster.on(0, make, value) for value in (1.0, 2.0, 3.0)]
            sums = [await (await cluster.on(1, total, future)) for future in futures]
            assert sums == [LARGE, 2 * LARGE, 3 * LARGE]
            assert cluster.exchange().sent == 1

    run(work)


# --- trap 4: a family cannot answer with another --------------------------------------------------


def test_object_is_declined_when_the_store_cannot_take_it(exchange: Exchange) -> None:
    """It is the next family that takes it, under its own name."""
    exchange.store.destroy()
    array = np.ones(LARGE)
    header, frames = serialize(array, FAMILIES, context=to(exchange))
    assert header["serializer"] == "dask"
    assert (deserialize(header, frames, FAMILIES) == array).all()


# --- trap 5: the scheduler relays what it does not read -------------------------------------------


def test_scheduler_never_gets_a_ticket(root: Path) -> None:
    """A client that names the family gathers and scatters through the scheduler as ever."""

    async def work() -> None:
        shared = plugin(root)
        named = {"serializers": FAMILIES, "deserializers": FAMILIES}
        async with small(shared, shared, **named) as cluster:
            scattered = await cluster.client.scatter(
                make(), direct=False, workers=[cluster.address(0)]
            )
            assert await (await cluster.on(0, total, scattered)) == LARGE
            result = await cluster.on(0, make, 3.0)
            gathered = await cluster.client.gather(result, direct=False)
            assert gathered.sum() == 3 * LARGE
            assert cluster.exchange().sent == 0

    run(work)


# --- trap 6: somebody else removes what lies in shared memory -------------------------------------
# (also test_store_that_is_removed_is_done_without)


def test_views_outlive_everything(exchange: Exchange, root: Path) -> None:
    """The files are gone, the memory is there."""
    lying = exchange.deposit(np.arange(LARGE))
    assert lying is not None
    array = lying.obj
    shutil.rmtree(exchange.store.path)
    assert array.sum() == LARGE * (LARGE - 1) // 2


# --- a lock that is held for ever -----------------------------------------------------------------

STOPPED = """
import os, signal, shmstore
store = shmstore.Store.attach(path)
store._session.lock.run(lambda: (print("held", flush=True), input()))
"""


def test_lock_of_a_stopped_process_stops_nobody(
    exchange: Exchange, start_python: StartPython
) -> None:
    """After a short wait it is not tried again for a while."""
    held = exchange.deposit(np.ones(LARGE))
    assert held is not None
    child = start_python(STOPPED, path=str(exchange.store.path))
    assert child.hear() == "held"
    os.kill(child.pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        for _ in range(50):
            assert family_of(np.ones(LARGE), to(exchange)) == "dask"
        exchange.delete(held.hold)
        exchange.tidy()
        assert time.monotonic() - begun < 10  # each of them alone would wait for 1 s
    finally:
        os.kill(child.pid, signal.SIGCONT)
    child.say()
    child.end()
    exchange._paused_until = 0.0
    exchange.tidy()
    assert exchange.store.stats().objects == 1


# --- what tasks do to their arguments -------------------------------------------------------------


def test_task_that_writes_to_its_argument_writes_for_itself(root: Path) -> None:
    """The other worker gets what the first one made."""

    async def work() -> None:
        async with small(plugin(root), plugin(root)) as cluster:
            future = await cluster.on(0, make)
            assert await (await cluster.on(1, spoil, future)) == 2 * LARGE
            assert await (await cluster.on(0, total, future)) == LARGE

    run(work)


def test_result_that_is_a_spoiled_argument_is_what_it_became(root: Path) -> None:
    """It is a result of its own, although its memory was that of the argument."""

    async def work() -> None:
        async with small(plugin(root), plugin(root)) as cluster:
            future = await cluster.on(0, make)
            changed = await cluster.on(1, spoiled, future)
            assert await (await cluster.on(0, total, changed)) == 2 * LARGE
            assert await (await cluster.on(0, total, future)) == LARGE

    run(work)


# --- two hosts ------------------------------------------------------------------------------------


def test_workers_with_different_stores_talk_by_tcp(host: Any) -> None:
    """Nothing is proved, nothing is asked for."""
    a = host("a")
    b = host("b")

    async def work() -> None:
        async with small(plugin(a), plugin(b)) as cluster:
            future = await cluster.on(0, make)
            assert await (await cluster.on(1, total, future)) == LARGE
            assert [each.sent for each in exchanges.values()] == [0, 0]

    run(work)


# --- references, clients --------------------------------------------------------------------------


def test_reference_leaves_its_data_at_home_among_neighbours(exchange: Exchange) -> None:
    """Only a reader that may be elsewhere gets the data along."""
    reference = refer(exchange.store.put(np.ones(LARGE)), inline_fallback=True)
    near = serialize(reference, FAMILIES, context=to(exchange))
    far = serialize(reference, FAMILIES, context={})
    assert [header["serializer"] for header, _ in (near, far)] == ["shmstore", "pickle"]
    assert sum(len(frame) for frame in near[1]) < 500
    assert deserialize(*near, FAMILIES) == deserialize(*far, FAMILIES) == reference
    reference.ref.delete()


def test_client_that_joins_gathers_without_a_copy(root: Path) -> None:
    """What it gets directly is a view of the memory of the workers."""

    async def work() -> None:
        shared = plugin(root)
        named = {"serializers": FAMILIES, "deserializers": FAMILIES}
        async with small(shared, **named) as cluster:
            future = await cluster.on(0, make)
            with joining(cluster.client, root=str(root)):
                gathered = await cluster.client.gather(future, direct=True)
                assert gathered.sum() == LARGE
                assert cluster.exchange().sent == 1
                pushed = await cluster.client.scatter(make(2.0), direct=True)
                assert cluster.exchange().sent == 2
                assert await (await cluster.on(0, total, pushed)) == 2 * LARGE
            del gathered

    run(work)


# --- the time between sending and arriving --------------------------------------------------------

RECEIVE = """
import pickle
from shmstore import tickets
from shmstore.tickets import Ticket
while line := input():
    try:
        obj, hold = tickets.redeem(Ticket(*pickle.loads(bytes.fromhex(line))))
        print(int(obj.sum()), flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def test_object_that_is_let_go_on_the_way_arrives(
    exchange: Exchange, start_python: StartPython
) -> None:
    """The ticket names a pin of the sender, and by that a deleted object is found."""
    import pickle

    child = start_python(RECEIVE)
    lying = exchange.deposit(np.ones(LARGE))
    assert lying is not None
    ticket = lying.hold.ticket()
    assert ticket is not None
    line = pickle.dumps(tuple(ticket)).hex()
    exchange.delete(lying.hold)
    assert child.ask(line) == str(LARGE)
    del lying
    wait_until(lambda: child.ask(line) == "ObjectNotFoundError" or None)
    child.say()
    child.end()
