"""Work handed from process to process: each sleeps until the other has something for it."""

from multiprocessing import get_context

import numpy as np

import shmstore


def work(name):
    """Wait for jobs, do them, and put the results, until there are no more."""
    store = shmstore.Store.attach(name)
    number = 0
    while (job := store.get(f"job/{number}", timeout=60)) is not None:
        store[f"result/{number}"] = float(np.sqrt(job).sum())  # `job` was not copied
        store.delete(f"job/{number}")  # its memory is free when the last view is gone
        number += 1
    store.close()


def main():
    with shmstore.Store.create(capacity="64MiB") as store, store.watch("result/") as changes:
        worker = get_context("spawn").Process(target=work, args=(store.name,))
        worker.start()
        refs = [store.put(np.full(100_000, n**2.0), key=f"job/{n}") for n in range(4)]
        store["job/4"] = None
        for key in store.as_completed([f"result/{n}" for n in range(4)], timeout=60):
            print(key, "is", store[key])
        print("was told of", [next(changes).key for _ in range(4)])
        print("jobs are gone:", all(ref.wait(timeout=60) for ref in refs))
        worker.join()


if __name__ == "__main__":
    main()
