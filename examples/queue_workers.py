"""Work is handed out through one queue and comes back through another, arrays without a copy."""

import multiprocessing

import numpy as np

import shmstore


def work(jobs: shmstore.Queue, results: shmstore.Queue) -> None:
    """Do what comes until None comes."""
    while (job := jobs.get()) is not None:
        number, array = job
        results.put((number, float(array.sum())))
        jobs.task_done()


def main() -> None:
    """Give eight arrays to two processes."""
    with shmstore.Store.create(capacity="64MiB") as store:
        jobs, results = store.queue("jobs", maxsize=4), store.queue("results")
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(jobs, results)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for number in range(8):
            jobs.put((number, np.full(100_000, number)))
        jobs.join()
        jobs.put_many([None, None])
        print(sorted(results.get_many(8)))
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
