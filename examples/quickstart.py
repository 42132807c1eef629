"""One array in shared memory, read and written by spawned workers without a copy."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import shmstore


def scale_row(ref, row):
    """Multiply one row of the shared array, in place, and return its new sum."""
    array = ref.get()  # attaches to the store by itself; the array lies in shared memory
    array[row] *= 10
    return float(array[row].sum())


def main():
    with (
        shmstore.Store.create(capacity="64MiB") as store,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        ref = store.put(np.ones((4, 1_000_000)))
        print("sums:", list(pool.map(scale_row, [ref] * 4, range(4))))
        print("seen here:", ref.get()[:, 0])


if __name__ == "__main__":
    main()
