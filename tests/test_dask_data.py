"""Results that lie in the store: what a worker holds, for how long, and what it counts."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MIB, StartPython

distributed = pytest.importorskip("distributed")
pd = pytest.importorskip("pandas")

import dask
from clusters import LARGE, host, make, plugin, quiet_logs, run, small, total  # noqa: F401
from distributed.spill import SpillBuffer

import shmstore
from shmstore.integrations.dask import Plugin, SharedData
from shmstore.integrations.dask import _exchange as exchanging
from shmstore.integrations.dask._exchange import Exchange, Settings
from shmstore.integrations.dask._sizes import is_large

pytestmark = pytest.mark.usefixtures("quiet_logs")
THRESHOLD = 256 << 10


@pytest.fixture
def exchange(root: Path) -> Iterator[Exchange]:
    """Give the share of this process in a store, without any cluster."""
    settings = Settings(64 * MIB, THRESHOLD // 4, "stored", str(root))
    found = exchanging.join("dask-test", settings, "tcp://127.0.0.1:1")
    yield found
    found.leave("tcp://127.0.0.1:1")


@pytest.fixture
def data(exchange: Exchange) -> Iterator[SharedData]:
    """Give the results of a worker that shares."""
    found = SharedData()
    found.exchange = exchange
    yield found
    found.clear()


def lies_in_store(exchange: Exchange, obj: Any) -> bool:
    """Return whether an object is one that can be sent as a ticket."""
    resident = exchange.resident(obj)
    hold = None if resident is None else resident.hold()
    return hold is not None and hold.ticket() is not None


# --- what lies where ------------------------------------------------------------------------------


def frame() -> Any:
    """Return a frame of numbers."""
    return pd.DataFrame({"a": np.arange(LARGE), "b": np.ones(LARGE)})


VALUES = {
    "array": lambda: np.arange(LARGE),
    "strided": lambda: np.arange(2 * LARGE).reshape(2, -1).T,
    "times": lambda: np.arange(LARGE).astype("M8[s]"),
    "records": lambda: np.zeros(LARGE, [("a", "f4"), ("b", "i8")]),
    "frame": frame,
    "series": lambda: frame()["b"],
    "index": lambda: pd.Index(np.arange(LARGE) * 3),
    "masked": lambda: np.ma.masked_less(np.arange(LARGE), 5),
}


@pytest.mark.parametrize("name", VALUES)
def test_large_data_lies_in_the_store(data: SharedData, exchange: Exchange, name: str) -> None:
    """What a task gets is equal, of the same type, and may be written to."""
    value = VALUES[name]()
    data["x"] = value
    twin = data["x"]
    assert lies_in_store(exchange, twin)
    assert type(twin) is type(value)
    if isinstance(value, (pd.DataFrame, pd.Series, pd.Index)):
        assert twin.equals(value)
    else:
        assert (twin == value).all()
        assert twin.flags.writeable
        assert twin.flags.f_contiguous == value.flags.f_contiguous


def test_other_data_lies_where_dask_has_it(data: SharedData) -> None:
    """Small things, objects of Python, containers, and arrays that are larger than their memory."""

    class Model:
        weights = np.ones(LARGE)
        nbytes = 1 << 30

    values = [1, "x" * MIB, np.ones(3), [np.ones(LARGE)], Model(), np.full(LARGE, None)]
    values += [np.broadcast_to(1.0, LARGE), pd.DataFrame({"a": np.full(LARGE, None)})]
    for number, value in enumerate(values):
        data[number] = value
    assert [data[number] is value for number, value in enumerate(values)] == [True] * len(values)
    assert not any(is_large(value, THRESHOLD) for value in values)


def test_data_is_a_mapping_whatever_lies_where(data: SharedData) -> None:
    """Keys, length, membership, overwriting, deleting."""
    data["large"], data["small"] = np.ones(LARGE), 1
    assert (len(data), sorted(data), "large" in data, "other" in data) == (
        2,
        ["large", "small"],
        True,
        False,
    )
    data["large"], data["small"] = 2, np.zeros(LARGE)
    assert data["large"] == 2
    assert data["small"].sum() == 0
    assert len(data) == 2
    del data["large"], data["small"]
    assert not data
    with pytest.raises(KeyError):
        data["large"]
    with pytest.raises(KeyError):
        del data["large"]


def test_memory_goes_back_with_the_key(data: SharedData, exchange: Exchange) -> None:
    """The store holds what some worker holds."""
    for _ in range(100):  # 200 MiB through a store of 64
        data["x"] = np.ones(LARGE)
        assert lies_in_store(exchange, data["x"])
    del data["x"]
    gc.collect()
    assert exchange.store.stats().used == exchange.store.stats().reclaimable


def test_data_that_cannot_spill_does_not_say_that_it_can(exchange: Exchange) -> None:
    """The worker looks at attributes to find out."""
    assert not hasattr(SharedData(), "evict")
    assert not hasattr(SharedData(), "fast")
    assert not hasattr(SharedData(), "spilled_total")


def test_results_in_the_store_are_spilled_last_used_first_out(
    exchange: Exchange, tmp_path: Path
) -> None:
    """They leave the store, come back as they were, and count as spilled."""
    data = SharedData(SpillBuffer(str(tmp_path), target=100 * MIB))
    data.exchange = exchange
    for number in range(3):
        data[number] = np.full(LARGE, number)
    data[0]  # used last
    assert data.evict() >= 8 * LARGE
    assert data.spilled_total.memory >= 8 * LARGE
    assert list(data.disk) == [1]
    assert exchange.store.stats().objects == 3  # with the address
    assert [int(data[number][5]) for number in range(3)] == [0, 1, 2]
    while data.fast:
        assert data.evict() > 0
    assert exchange.store.stats().objects == 1
    assert [int(data[number][5]) for number in range(3)] == [0, 1, 2]
    data.clear()
    assert len(data) == 0


def test_value_that_cannot_be_spilled_stays(exchange: Exchange, tmp_path: Path) -> None:
    """A full disk loses nothing."""
    data = SharedData(SpillBuffer(str(tmp_path), target=100 * MIB, max_spill=MIB))
    data.exchange = exchange
    noise = np.random.default_rng(0).random(LARGE)  # no codec makes it small
    data["x"] = noise
    assert data.evict() == -1
    assert np.array_equal(data["x"], noise)
    data.clear()


# --- whoever dies ---------------------------------------------------------------------------------

OWNER = """
import numpy as np
import shmstore
from shmstore.integrations.dask import SharedData
from shmstore.integrations.dask._exchange import Settings, join
data = SharedData()
data.exchange = join(name, Settings(root=root), "tcp://127.0.0.1:2")
data["x"] = np.ones(count)
ticket = data.exchange.resident(data["x"]).hold().ticket()
print(repr(tuple(ticket)).encode().hex(), flush=True)
input()
"""


def test_owner_that_is_killed_leaves_nothing(
    exchange: Exchange, root: Path, start_python: StartPython
) -> None:
    """Who got it keeps it; then it goes, with the address of the dead."""
    child = start_python(OWNER, name="dask-test", root=str(root), count=LARGE)
    ticket = exchanging.Ticket(*eval(bytes.fromhex(child.hear())))
    received = exchange.receive(ticket)
    assert exchange.is_peer("tcp://127.0.0.1:2")
    child.kill()
    exchange.tidy()
    assert exchange.store.stats().objects == 1
    assert not exchange.is_peer("tcp://127.0.0.1:2")
    assert received.sum() == LARGE
    del received
    assert exchange.store.stats().pinned == 0


# --- from when on a result lies in the store ------------------------------------------------------


@pytest.fixture
def waiting(data: SharedData, exchange: Exchange) -> SharedData:
    """Give results that go into the store when they are sent."""
    exchange.settings = exchange.settings._replace(when="sent")
    return data


def test_result_that_nobody_asks_for_costs_nothing(waiting: SharedData, exchange: Exchange) -> None:
    """It stays the object that the task returned."""
    value = np.ones(LARGE)
    waiting["x"] = value
    assert waiting["x"] is value
    assert exchange.store.stats().objects == 1


def test_result_that_is_asked_for_lies_in_the_store_from_then_on(
    waiting: SharedData, exchange: Exchange
) -> None:
    """The worker keeps what was put instead, and the store keeps one copy."""
    waiting["x"] = np.ones(LARGE)
    assert lies_in_store(exchange, waiting["x"])
    again = waiting["x"]
    assert lies_in_store(exchange, again)
    assert waiting.inner == {}
    gc.collect()
    exchange.tidy()
    assert exchange.store.stats().objects == 2
    del waiting["x"]
    assert exchange.store.stats().objects == 1


def test_result_that_is_let_go_while_it_is_sent_arrives(
    waiting: SharedData, exchange: Exchange
) -> None:
    """Whoever sends it holds it, and with it the copy in the store."""
    laters: list[Any] = []
    waiting.later = lambda *call: laters.append(functools.partial(*call))
    for order in ("before", "after"):
        value = waiting["x"] = np.ones(LARGE)
        resident = exchange.resident(value)
        assert resident is not None
        hold = resident.hold()
        assert resident.hold() is hold
        if order == "after":
            del waiting["x"]
        while laters:
            laters.pop()()
        if order == "before":
            del waiting["x"]
        ticket = None if hold is None else hold.ticket()
        assert ticket is not None
        assert exchange.receive(ticket).sum() == LARGE
        del value, resident
        exchange.tidy()
        assert exchange.store.stats().objects == 1
        with pytest.raises(shmstore.ObjectNotFoundError):
            exchange.receive(ticket)
        exchange._deaf_until = 0.0


def test_results_are_put_at_once_while_others_ask_for_them(
    data: SharedData, exchange: Exchange
) -> None:
    """It is learned for each task by itself."""
    exchange.settings = exchange.settings._replace(when="auto")
    for number in range(20):
        for name in ("asked", "alone"):
            data[(name, number)] = np.ones(1 << 16)
        assert lies_in_store(exchange, data["asked", number])
        assert ("asked", number) not in data.inner  # the first ones since they were asked for
    inner = [key[0] for key in data.inner]
    assert set(inner) == {"alone"}
    assert len(inner) == 20


def test_result_that_was_spilled_can_be_sent(waiting: SharedData, exchange: Exchange) -> None:
    """What comes back from disk is another object."""
    waiting["x"] = np.ones(LARGE)
    waiting.inner["x"] = np.ones(LARGE)  # as after spilling
    assert lies_in_store(exchange, waiting["x"])


# --- in a cluster ---------------------------------------------------------------------------------


def test_fan_out_has_one_copy(root: Path) -> None:
    """Whoever gets the object looks at the memory of who made it, and passes it on."""

    async def work() -> None:
        shared = plugin(root)
        async with small(shared, shared, shared) as cluster:
            future = await cluster.on(0, make)
            for number in (1, 2):
                assert await (await cluster.on(number, total, future)) == LARGE
            exchange = cluster.exchange()
            assert (exchange.sent, exchange.received) == (2, 2)
            stats = exchange.store.stats()
            assert stats.used - stats.reclaimable < 1.1 * 8 * LARGE
            assert [future.key in worker.data for worker in cluster.workers] == [True] * 3

    run(work)


def test_receiver_passes_on_what_its_maker_has_let_go(root: Path) -> None:
    """A third worker pulls from the second while nobody else has it."""

    async def work() -> None:
        shared = plugin(root)
        async with small(shared, shared, shared) as cluster:
            future = await cluster.on(0, make)
            assert await (await cluster.on(1, total, future)) == LARGE
            await cluster.workers[0].close()
            assert await (await cluster.on(2, total, future)) == LARGE
            assert cluster.exchange().received == 2

    run(work)


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": "much"},
        {"capacity": 0},
        {"threshold": -1},
        {"threshold": "large"},
        {"threshold": None},
        {"group": "no-such-group"},
        {"when": "never"},
    ],
)
def test_plugin_that_cannot_work_is_refused_when_it_is_made(options: dict[str, Any]) -> None:
    """Not on the workers, which only say so in their logs."""
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}"):
        Plugin(**options)


def test_arrays_too_small_to_share_do_not_end_the_sharing_of_others(root: Path) -> None:
    """Whatever the threshold says: to map them would take longer than to copy them."""

    async def work() -> None:
        shared = plugin(root, threshold=0, when="stored")
        async with small(shared, shared) as cluster:
            for number in range(5):
                future = await cluster.on(0, np.full, 10_000, number)
                assert await (await cluster.on(1, np.sum, future)) == 10_000 * number
            assert cluster.exchange().sent == 0
            assert await (await cluster.on(1, total, await cluster.on(0, make))) == LARGE
            assert cluster.exchange().sent == 1

    run(work)


def test_plugin_that_is_registered_later_shares_from_then_on(root: Path) -> None:
    """A running cluster goes on with what it has, and so it does when the plugin is taken away."""

    async def work() -> None:
        shared = plugin(root)
        async with small(None, None) as cluster:
            early = await cluster.on(0, make)
            await cluster.client.register_plugin(shared)
            later = await cluster.on(0, make, 2.0)
            assert await (await cluster.on(1, total, early)) == LARGE
            assert await (await cluster.on(1, total, later)) == 2 * LARGE
            assert cluster.exchange().sent == 1
            await cluster.client.unregister_worker_plugin(shared.name)
            assert not exchanging.exchanges
            assert [type(worker.data) for worker in cluster.workers] == [SharedData] * 2
            last = await cluster.on(0, make, 3.0)
            sums = [await (await cluster.on(1, total, f)) for f in (early, later, last)]
            assert sums == [LARGE, 2 * LARGE, 3 * LARGE]
            await cluster.client.register_plugin(shared)
            again = await cluster.on(0, make, 4.0)
            assert await (await cluster.on(1, total, again)) == 4 * LARGE
            assert cluster.exchange().sent == 1

    run(work)


def test_worker_that_cannot_share_works(host: Any) -> None:
    """A root that is not to be trusted is a line in the log."""
    a = host("a")

    async def work() -> None:
        unsafe = plugin(a)
        a.chmod(0o777)
        async with small(unsafe, unsafe) as cluster:
            future = await cluster.on(0, make)
            assert await (await cluster.on(1, total, future)) == LARGE
            assert not exchanging.exchanges

    run(work)


def test_scheduler_without_shmstore_shows_no_page(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers share all the same."""
    unknown = b"cshmstore_that_is_not_there\nPagePlugin\n."
    monkeypatch.setattr("shmstore.integrations.dask._page.dumps", lambda _: unknown)

    async def work() -> None:
        async with small(plugin(root), plugin(root)) as cluster:
            assert "shmstore-page" not in cluster.scheduler.plugins
            future = await cluster.on(0, make)
            assert await (await cluster.on(1, total, future)) == LARGE
            assert cluster.exchange().sent == 1

    run(work)


def test_workloads_give_the_same_with_and_without(root: Path) -> None:
    """A rechunk, a rolling overlap and a shuffle."""
    import dask.array as da
    import dask.dataframe as dd

    async def work() -> None:
        shared = plugin(root, threshold=16 << 10)
        x = da.random.RandomState(1).random_sample((600, 600), chunks=(100, 600))
        rolled = x.map_overlap(lambda block: np.roll(block, 1, 0), depth=2, boundary="reflect")
        table = dd.from_pandas(pd.DataFrame({"k": np.arange(60000) % 17, "v": 1.0}), npartitions=6)
        shuffled = table.shuffle("k").groupby("k").v.sum()
        work = [x.rechunk((600, 100)).sum(axis=0), rolled, shuffled]
        results = []
        for plugins in ((None, None), (shared, shared)):
            async with small(*plugins) as cluster:
                futures = [cluster.client.compute(each) for each in work]
                results.append(await cluster.client.gather(futures))
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    with dask.config.set({"array.rechunk.method": "tasks"}):
        run(work)
    assert list(root.iterdir()) == []
