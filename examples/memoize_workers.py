"""A slow function is computed once for all workers: the others wait, and share the result."""

import multiprocessing
import time

import numpy as np

import shmstore


def work(name: str, started) -> None:
    """Ask for the same table as everybody else."""
    with shmstore.Store.attach(name) as store:

        @store.memoize(ttl=3600)
        def table(size: int) -> np.ndarray:
            print("computed by one of them", flush=True)
            time.sleep(0.2)
            return np.add.outer(np.arange(size), np.arange(size))

        started.wait()
        assert table(500)[3, 4] == 7


def main() -> None:
    """Let four processes ask at the same time."""
    context = multiprocessing.get_context("spawn")
    with shmstore.Store.create(capacity="64MiB") as store:
        started = context.Barrier(4)
        workers = [context.Process(target=work, args=(store.name, started)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print("results in the store:", len(store))


if __name__ == "__main__":
    main()
