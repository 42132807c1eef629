"""Clusters of processes, as users start them: what they share, what they count, who is killed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import RunPython, wait_until

pytest.importorskip("distributed")

from shmstore import Store

# What the scripts begin with. Workers are found by their addresses, in an order that stays.
BEGIN = """
import gc, json, os, signal, time, urllib.request
import numpy as np
from distributed import Client, wait
from shmstore.integrations import dask as sharing
COUNT = 4 << 20  # 32 MiB of doubles
def make(value=1.0): return np.full(COUNT, value)
def total(array): return float(array.sum())
def measured(dask_worker):
    import psutil
    return psutil.Process().memory_info().rss, dask_worker.monitor.get_process_memory()
def knows_others():
    [exchange] = sharing._exchange.exchanges.values()
    return len(exchange._peers)
def addresses(client): return sorted(client.scheduler_info(n_workers=-1)["workers"])
def page_of(client):
    port = client.scheduler_info(n_workers=0)["services"]["dashboard"]
    return f"http://127.0.0.1:{port}/shmstore"
def hosts_of(client): return json.load(urllib.request.urlopen(page_of(client) + ".json"))["hosts"]
def cluster_of(count, **options):
    return sharing.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0",
        capacity="256MiB", silence_logs=60, **options)
"""


def test_local_cluster_holds_one_copy_and_counts_it_once(run_python: RunPython) -> None:
    """Results, memory, the page of the scheduler, and nothing left of it at the end."""
    printed = run_python(
        BEGIN
        + """
with cluster_of(2, when="stored") as cluster, Client(cluster) as client:
    while client.run(knows_others) != {a: 2 for a in addresses(client)}: time.sleep(0.1)
    before = {a: own for a, (rss, own) in client.run(measured).items()}
    array = client.submit(make, workers=addresses(client)[:1])
    sums = [client.submit(total, array, workers=[a], pure=False) for a in addresses(client)]
    print(client.gather(sums) == [COUNT] * 2)
    after = client.run(measured)
    print(all(rss - own > 12 << 20 for rss, own in after.values()))  # half of it is the other's
    grown = sum(own - before[a] for a, (_, own) in after.items())
    print(grown < 60 << 20, flush=True)
    print(page_of(client) == cluster.dashboard_link.replace("status", "shmstore"))
    while min(hosts_of(client)[0][name] for name in ("sent", "received")) < 1: time.sleep(0.05)
    [host] = sharing.shared_by_host(client)
    print(len(host.workers), 8 * COUNT <= host.used < 9 * COUNT, host.sent, host.received)
    print(b"held by the workers" in urllib.request.urlopen(page_of(client)).read())
    print(os.listdir(os.environ["SHMSTORE_ROOT"]) != [])
    del array, sums
"""
    )
    assert printed.split("\n") == ["True"] * 4 + ["2 True 1 1", "True", "True"]


@pytest.mark.slow
def test_worker_that_is_killed_takes_nothing_with_it(run_python: RunPython) -> None:
    """Its results are made again, by whoever comes in its place, and its memory goes back."""
    printed = run_python(
        BEGIN
        + """
import logging
logging.disable(logging.CRITICAL)
with cluster_of(2) as cluster, Client(cluster) as client:
    for round in range(2):
        first, second = addresses(client)
        arrays = [client.submit(make, float(n), pure=False) for n in range(4)]
        wait(arrays)
        used = client.submit(total, arrays[3], workers=[second], pure=False).result()
        pids = client.run(os.getpid)
        os.kill(pids[first], signal.SIGKILL)
        print(client.gather(client.map(total, arrays, pure=False)) == [n * COUNT for n in range(4)])
        del arrays
        while len(addresses(client)) < 2 or first in addresses(client): time.sleep(0.05)
    deadline = time.monotonic() + 30
    used = lambda dask_worker: next(iter(sharing._exchange.exchanges.values())).figures()["used"]
    while sum(client.run(used).values()) > 2 * 8 * COUNT and time.monotonic() < deadline:
        time.sleep(0.1)
    print(time.monotonic() < deadline)
"""
    )
    assert printed.split() == ["True"] * 3


@pytest.mark.slow
def test_cluster_that_runs_shares_from_when_a_client_says_so(run_python: RunPython) -> None:
    """Also those workers that come later, and those that are started again."""
    printed = run_python(
        BEGIN
        + """
import distributed
def share(client, count):
    while set(client.run(knows_others).values()) != {count}: time.sleep(0.1)
    array = client.submit(make, workers=addresses(client)[:1], pure=False)
    sums = [client.submit(total, array, workers=[a], pure=False) for a in addresses(client)]
    print(client.gather(sums) == [COUNT] * count)
    received = lambda: [e.received for e in sharing._exchange.exchanges.values()]
    print(sorted(client.run(received).values()))
options = dict(threads_per_worker=1, dashboard_address=":0", silence_logs=60)
with distributed.LocalCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
    sharing.install(client, capacity="256MiB")
    cluster.scale(2)
    client.wait_for_workers(2)
    share(client, 2)
    client.restart()
    share(client, 2)
    print(len(hosts_of(client)))
    client.run(gc.collect)
"""
    )
    assert printed.split("\n") == ["True", "[[0], [1]]"] * 2 + ["1"]


@pytest.mark.slow
def test_results_that_are_too_many_for_the_memory_are_spilled(run_python: RunPython) -> None:
    """From the store to the disk, and back to the tasks that need them."""
    printed = run_python(
        BEGIN
        + """
import dask
memory = {"target": False, "spill": 0.5, "pause": False, "terminate": False}
dask.config.set({f"distributed.worker.memory.{name}": at for name, at in memory.items()})
def spilled(dask_worker): return len(dask_worker.data.disk)
with cluster_of(1, memory_limit="500MB", when="stored") as cluster, Client(cluster) as client:
    arrays = client.map(make, range(7))
    wait(arrays)
    while not sum(client.run(spilled).values()): time.sleep(0.05)
    print(client.gather(client.map(total, arrays)) == [COUNT * n for n in range(7)])
    del arrays
"""
    )
    assert printed == "True"


# --- from the command line ------------------------------------------------------------------------


@contextlib.contextmanager
def started(*command: str, quiet: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Start a process of dask; it is killed at the end."""
    process = subprocess.Popen(
        [*command], stderr=subprocess.DEVNULL if quiet else None, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


DASK = sys.executable, "-m", "dask"

USE = (
    BEGIN
    + """
with Client(scheduler_file=file) as client:
    client.wait_for_workers(2, timeout=60)
    array = client.submit(make, workers=addresses(client)[:1])
    sums = [client.submit(total, array, workers=[a], pure=False) for a in addresses(client)]
    print(client.gather(sums) == [COUNT] * 2)
    sent = lambda dask_worker: [e.figures()["sent"] for e in sharing._exchange.exchanges.values()]
    print(sorted(client.run(sent).values()))
    while not (hosts := hosts_of(client)) or len(hosts[0]["workers"]) < 2: time.sleep(0.05)
    print(len(hosts), b"held by the workers" in urllib.request.urlopen(page_of(client)).read())
    del array, sums
    client.run(gc.collect)
"""
)


@pytest.mark.parametrize("way", ["--preload", "--worker-class"])
def test_workers_of_the_command_line_share(
    way: str, run_python: RunPython, root: Path, tmp_path: Path
) -> None:
    """The page is at a plain scheduler; those that are killed leave a store to be pruned."""
    file = tmp_path / "scheduler.json"
    name = "shmstore.integrations.dask" + (".Worker" if way == "--worker-class" else "")
    worker = (*DASK, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard")
    worker = (*worker, "--no-nanny", "--local-directory", str(tmp_path), way, name)
    scheduler = (*DASK, "scheduler", "--scheduler-file", str(file), "--port", "0")
    scheduler = (*scheduler, "--dashboard-address", ":0", "--host", "127.0.0.1")
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(*scheduler))
        wait_until(file.exists)
        workers = [stack.enter_context(started(*worker)) for _ in range(2)]
        assert run_python(USE, file=str(file)).split("\n") == ["True", "[[0], [1]]", "1 True"]
        if way == "--preload":
            for process in workers:
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)
            assert list(root.iterdir()) == []
    if way != "--preload":
        assert len(list(root.iterdir())) == 1
        Store.create(capacity="1MiB").close()
        import shmstore

        shmstore.prune()
        assert list(root.iterdir()) == []


# --- under kills, for longer ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_workloads_are_right_while_workers_are_killed(run_python: RunPython, count: int) -> None:
    """Every few seconds one worker less, while all workloads of the benchmarks run."""
    printed = run_python(
        BEGIN
        + f"count = {count}"
        + """
import logging, random, threading
import dask, dask.array as da, dask.dataframe as dd, pandas as pd
from distributed.core import Status
logging.disable(logging.CRITICAL)
dask.config.set({"array.rechunk.method": "tasks", "dataframe.shuffle.method": "tasks",
                 "distributed.scheduler.allowed-failures": 1000})
def workloads(n):
    x = da.ones((2000, 2000), chunks=(250, 2000)) * (n + 1)
    yield (x.rechunk((2000, 250)) + 1).sum(axis=0)
    yield x.map_overlap(lambda block: np.roll(block, 1, 0), depth=2, boundary="reflect").sum()
    table = dd.from_pandas(pd.DataFrame({"k": np.arange(400_000) % 17, "v": 1.0}), npartitions=4)
    yield table.shuffle("k").groupby("k").v.sum()
    array = dask.delayed(make)(n)  # a broadcast
    yield dask.delayed(sum)([dask.delayed(total)(array) + i for i in range(2 * count)])
    part, scores = dask.delayed(pd.DataFrame)({"v": np.arange(400_000.0)}), [0]
    for step in range(3):  # reads of one part, again and again, as boosting does
        last = dask.delayed(sum)(scores)
        scores = [dask.delayed(score)(part, step, last) for _ in range(count)]
    yield dask.delayed(sum)(scores)
def score(part, step, last): return float(part["v"].to_numpy()[step::7].sum()) + last / 4
expected = [[w.compute(scheduler="sync") for w in workloads(n)] for n in range(3)]
ending = threading.Event()
with cluster_of(count) as cluster, Client(cluster) as client:
    def kill():
        while not ending.wait(3):
            # A nanny whose worker dies while it starts gives up: that is so without sharing, too.
            running = [n for n in cluster.workers.values() if n.status == Status.running]
            process = running and random.choice(running).process.process
            if process and process.pid:
                try: os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError: pass
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    same, enough = [], time.monotonic() + 15
    for n in range(3):
        if n and time.monotonic() > enough: break  # the machine is busy
        for work, right in zip(workloads(n), expected[n]):
            found = client.compute(work).result(timeout=50)
            same.append(np.array_equal(np.asarray(found), np.asarray(right)))
    ending.set(); killer.join()
    print(all(same), len(same))
"""
    )
    assert printed in ("True 5", "True 10", "True 15")


# --- two hosts ------------------------------------------------------------------------------------

HOSTS = {"scheduler": "10.77.31.1", "one": "10.77.31.2", "two": "10.77.31.3"}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[dict[str, tuple[str, ...]]]:
    """Give the beginnings of commands that run on three hosts, joined by a bridge."""
    tag = f"shm{time.monotonic_ns() % 10**7}"
    with contextlib.ExitStack() as undo:
        try:
            _ip("link", "add", tag, "type", "bridge")
            undo.callback(_ip, "link", "del", tag)
            _ip("link", "set", tag, "up")
            for number, (host, address) in enumerate(HOSTS.items()):
                space, here, there = f"{tag}{host}", f"{tag}{number}", f"{tag}p{number}"
                _ip("netns", "add", space)
                undo.callback(_ip, "netns", "del", space)
                _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
                _ip("link", "set", here, "master", tag, "up")
                _ip("-n", space, "address", "add", f"{address}/24", "dev", there)
                _ip("-n", space, "link", "set", there, "up")
                _ip("-n", space, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this test makes networks of its own, which is not allowed here")
        yield {host: ("ip", "netns", "exec", f"{tag}{host}") for host in HOSTS}


@pytest.mark.slow
def test_two_hosts_share_each_by_itself(run_python: RunPython, root: Path, tmp_path: Path) -> None:
    """Two workers on each: data goes once to the other host, and from there without a copy."""
    code = (
        BEGIN
        + """
with Client("tcp://" + address, timeout=30) as client:
    client.wait_for_workers(4, timeout=60)
    everybody = addresses(client)
    array = client.submit(make, workers=everybody[:1])
    for a in everybody:
        result = client.submit(total, array, workers=[a], pure=False).result()
        assert result == COUNT, result
    for _ in range(60):  # workers tell it twice a second
        hosts = sharing.shared_by_host(client)
        if all(h.used for h in hosts): break
        time.sleep(0.5)
    print(json.dumps([[h.host, len(h.workers), h.used // (8 * COUNT)] for h in hosts]))
    del array
    client.run(gc.collect)
"""
    )
    script = tmp_path / "use.py"
    script.write_text(f"address = {HOSTS['scheduler'] + ':8786'!r}\n{code}")
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(network())
        scheduler = (*DASK, "scheduler", "--host", HOSTS["scheduler"], "--port", "8786")
        stack.enter_context(started(*spaces["scheduler"], *scheduler, "--dashboard-address", ":0"))
        for host in ("one", "two"):
            place = root / host
            place.mkdir(mode=0o700)
            stack.callback(_empty, place)
            worker = (*DASK, "worker", f"tcp://{HOSTS['scheduler']}:8786", "--nthreads", "1")
            worker = (*worker, "--preload", "shmstore.integrations.dask", "--no-dashboard")
            worker = (*worker, "--no-nanny", "--local-directory", str(tmp_path / host))
            for _ in range(2):
                command = ("env", f"SHMSTORE_ROOT={place}", *spaces[host], *worker)
                stack.enter_context(started(*command))
        done = subprocess.run(
            [*spaces["scheduler"], sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: list[Any] = json.loads(done.stdout)
        assert sorted(found) == [[HOSTS["one"], 2, 1], [HOSTS["two"], 2, 1]]


def _empty(place: Path) -> None:
    """Remove what killed workers left, as the next ones would."""
    import shmstore

    shmstore.prune(place)
    place.rmdir()
