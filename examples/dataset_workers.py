"""One data set in shared memory: each spawned worker is sent a slice, of about 150 bytes."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import shmstore


def count_tokens(part):
    """Return how many tokens the records of a slice have, by label."""
    counts = {}
    for record in part:  # each record is decoded here, from the one copy of all of them
        label = record["label"]
        counts[label] = counts.get(label, 0) + len(record["tokens"])
    return counts


def samples(count):
    """Yield records one by one: the whole data set is never there as a list."""
    for number in range(count):
        yield {"tokens": np.arange(number % 40, dtype="i4"), "label": number % 2, "text": "..."}


def main():
    with (
        shmstore.Store.create(capacity="64MiB") as store,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        data = store.get(store.put_list(samples(10_000)))
        parts = [data[start::4] for start in range(4)]
        print(data, "- a slice is sent as", len(pickle.dumps(parts[1])), "bytes")
        print("tokens by label:", list(pool.map(count_tokens, parts)))


if __name__ == "__main__":
    main()
