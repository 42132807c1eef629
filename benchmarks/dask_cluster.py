"""What does sharing do for the workloads of dask: time, bytes over TCP, memory?

    python benchmarks/dask_cluster.py [--workers 4] [--rounds 5] [--mib 512] [workload ...]

A cluster of `distributed` and one of `shmstore.integrations.dask` run side by side, and take turns
at every round of every workload: what disturbs the machine disturbs both. Both results are held
against each other. All figures are medians; the ratio, of rounds, has its quartiles. The time of
the processors is that of all workers, the bytes are those of the loopback device, and PSS is that
of all workers of a cluster at the end of the workload, above what it was at the beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dask
import dask.array as da
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import psutil
from distributed import Client

from shmstore.integrations import dask as sharing

MIB = 1 << 20


class Figures(NamedTuple):
    """What one round took."""

    seconds: float
    cpu_seconds: float
    sent_nbytes: int
    pss_nbytes: int


class Cluster:
    """One of the two clusters."""

    def __init__(self, kind: type[distributed.LocalCluster], workers: int) -> None:
        self.cluster = kind(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=":0",
            memory_limit=0,
            silence_logs=50,
        )
        self.client = Client(self.cluster)
        self.client.wait_for_workers(workers)
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        self.addresses = sorted(info)
        self.pids = list(self.client.run(_pid).values())

    def pss(self) -> int:
        """Return the memory of all workers, what they share counted once."""
        return sum(psutil.Process(pid).memory_full_info().pss for pid in self.pids)

    def cpu(self) -> float:
        """Return the processor time that all workers have taken."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids)

    def close(self) -> None:
        """End the cluster."""
        self.client.close()
        self.cluster.close()


def _pid() -> int:
    import os

    return os.getpid()


def _sent() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


# --- the workloads ----------------------------------------------------------------------------


def _make(nbytes: int, value: float) -> np.ndarray:
    return np.full(nbytes // 8, value)


def _touch(array: np.ndarray, number: int) -> float:
    return float(array[:: 4096 // 8].sum()) + number * 0


def broadcast(cluster: Cluster, nbytes: int, number: int, *, made: bool = False) -> Iterator[Any]:
    """One array, used by every worker."""
    client, addresses = cluster.client, cluster.addresses
    value = float(number + 1)
    first = addresses[number % len(addresses)]
    if made:
        array = client.submit(_make, nbytes, value, workers=[first])
        distributed.wait(array)
    yield None
    if not made:
        array = client.submit(_make, nbytes, value, workers=[first])
    uses = [
        client.submit(_touch, array, n, workers=[address], pure=False)
        for n, address in enumerate(addresses)
    ]
    distributed.wait(uses)
    yield client.gather(uses)


def handed_on(cluster: Cluster, nbytes: int, number: int) -> Iterator[Any]:
    """The same, when the array is there already."""
    return broadcast(cluster, nbytes, number, made=True)


def one_receiver(cluster: Cluster, nbytes: int, number: int) -> Iterator[Any]:
    """Arrays that go to one other worker each."""
    client, addresses = cluster.client, cluster.addresses
    value = float(number * 100)
    yield None
    arrays = [
        client.submit(_make, nbytes // 16, value + n, workers=[addresses[0]]) for n in range(16)
    ]
    uses = [client.submit(_touch, a, n, workers=[addresses[1]]) for n, a in enumerate(arrays)]
    distributed.wait(uses)
    yield client.gather(uses)


def rechunk(cluster: Cluster, nbytes: int, number: int, method: str = "tasks") -> Iterator[Any]:
    """From rows to columns."""
    side = int((nbytes / 8) ** 0.5) // 8 * 8
    yield None
    with dask.config.set({"array.rechunk.method": method}):
        x = da.ones((side, side), chunks=(side // 8, side)) * (number + 2)
        y = (x.rechunk((side, side // 8)) / x.rechunk((side, side // 8))).sum(axis=0)
        yield cluster.client.compute(y).result().tolist()


def rechunk_p2p(cluster: Cluster, nbytes: int, number: int) -> Iterator[Any]:
    """The same, by the peer-to-peer engine of dask."""
    return rechunk(cluster, nbytes, number, "p2p")


def shuffle(cluster: Cluster, nbytes: int, number: int, method: str = "p2p") -> Iterator[Any]:
    """A frame, by a column."""
    rows = nbytes // 4 // 32
    yield None
    with dask.config.set({"dataframe.shuffle.method": method}):
        parts = dd.from_map(_part, range(number, number + 16), rows=rows // 16, meta=_part(0, 1))
        found = parts.shuffle("k").groupby("k").v.sum()
        yield cluster.client.compute(found).result().sort_index().tolist()


def shuffle_tasks(cluster: Cluster, nbytes: int, number: int) -> Iterator[Any]:
    """The same, with tasks."""
    return shuffle(cluster, nbytes, number, "tasks")


def _part(number: int, rows: int) -> pd.DataFrame:
    generator = np.random.default_rng(number)
    keys = generator.integers(0, 100, rows)
    return pd.DataFrame({"k": keys, "v": 1.0, "w": generator.random(rows), "n": np.arange(rows)})


def rolling(cluster: Cluster, nbytes: int, number: int) -> Iterator[Any]:
    """Every block with the borders of its neighbours."""
    side = int((nbytes / 8) ** 0.5) // 8 * 8
    yield None
    x = da.ones((side, side), chunks=(side // 8, side // 4)) * (number + 2)
    y = x.map_overlap(_smooth, depth=4, boundary="reflect").sum(axis=0)
    yield cluster.client.compute(y).result().round(6).tolist()


def _smooth(block: np.ndarray) -> np.ndarray:
    return (np.roll(block, 1, 0) + np.roll(block, -1, 0)) / 2


def reads(cluster: Cluster, nbytes: int, number: int) -> Iterator[Any]:
    """One partition, read by many tasks everywhere, as boosting does."""
    client = cluster.client
    part = client.submit(_part, number, rows=nbytes // 8 // 32, workers=cluster.addresses[:1])
    distributed.wait(part)
    yield None
    scores = []
    for step in range(4):
        futures = [
            client.submit(_score, part, step, n, workers=[address], pure=False)
            for n, address in enumerate(cluster.addresses)
        ]
        scores += client.gather(futures)
    yield scores


def _score(part: pd.DataFrame, step: int, number: int) -> float:
    return float(part["v"].to_numpy()[step::7].sum()) + 0 * number


WORKLOADS: dict[str, Callable[[Cluster, int, int], Iterator[Any]]] = {
    each.__name__: each
    for each in (
        broadcast,
        handed_on,
        one_receiver,
        rechunk,
        rechunk_p2p,
        shuffle,
        shuffle_tasks,
        rolling,
        reads,
    )
}


# --- measuring --------------------------------------------------------------------------------


def measure(cluster: Cluster, workload: Any, nbytes: int, number: int) -> tuple[Figures, Any]:
    """Run one round."""
    pss = cluster.pss()
    steps = workload(cluster, nbytes, number)
    next(steps)
    sent, cpu, begun = _sent(), cluster.cpu(), time.perf_counter()
    result = next(steps)
    seconds = time.perf_counter() - begun
    figures = Figures(seconds, cluster.cpu() - cpu, _sent() - sent, max(0, cluster.pss() - pss))
    del steps
    time.sleep(0.3)
    return figures, result


def compare(clusters: list[Cluster], name: str, nbytes: int, rounds: int) -> None:
    """Let the clusters take turns; print a line."""
    found: list[list[Figures]] = [[] for _ in clusters]
    for number in range(rounds + 1):
        results = [None, None]
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            figures, results[which] = measure(clusters[which], WORKLOADS[name], nbytes, number)
            if number:  # the first round warms up
                found[which].append(figures)
        if results[0] != results[1]:
            message = f"{name}: the results differ"
            raise SystemExit(message)
    stock, shared = (Figures(*map(statistics.median, zip(*each, strict=True))) for each in found)
    ratios = [b.seconds / a.seconds for a, b in zip(*found, strict=True)]
    low, middle, high = statistics.quantiles(ratios)
    print(
        f"{name:14} {stock.seconds:8.3f} {shared.seconds:8.3f}"
        f" {middle:6.2f} {low:5.2f}-{high:4.2f}"
        f" {stock.cpu_seconds:10.2f} {shared.cpu_seconds:8.2f}"
        f" {stock.sent_nbytes / MIB:10.1f} {shared.sent_nbytes / MIB:8.1f}"
        f" {stock.pss_nbytes / MIB:10.1f} {shared.pss_nbytes / MIB:8.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("workloads", nargs="*", default=[])
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        clusters = []
        for kind in (distributed.LocalCluster, sharing.LocalCluster):
            clusters.append(Cluster(kind, arguments.workers))
            stack.callback(clusters[-1].close)
        print(f"{arguments.workers} workers, {arguments.mib} MiB; stock and shared, side by side")
        titles = ("s of processor", "MiB over TCP", "MiB of PSS")
        print(f"{'':14} {'seconds':>17} {'ratio':>17}", *(f"{each:>19}" for each in titles))
        for name in arguments.workloads or WORKLOADS:
            compare(clusters, name, arguments.mib * MIB, arguments.rounds)


if __name__ == "__main__":
    main()
