"""Workers of a dask cluster look at one copy of what one of them has made."""

import numpy as np
from distributed import Client

from shmstore.integrations.dask import LocalCluster, shared_by_host


def simulate(count):
    return np.random.default_rng(0).normal(size=count)


def quantile(samples, q):
    return float(np.quantile(samples[:: len(samples) // 1000], q))


def address_of(dask_worker):
    return dask_worker.address


def main():
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", capacity="256MiB"
    )
    with cluster, Client(cluster) as client:
        workers = list(client.run(address_of))
        samples = client.submit(simulate, 2_000_000)  # 16 MB, made by one of the workers
        results = [
            client.submit(quantile, samples, q, workers=[worker])
            for q, worker in zip((0.1, 0.9), workers, strict=True)
        ]
        print("quantiles:", [round(each, 1) for each in client.gather(results)])
        client.run(np.zeros, 1)  # time for a heartbeat
        for host in shared_by_host(client):
            print(f"{len(host.workers)} workers of {host.host} share a store")


if __name__ == "__main__":
    main()
