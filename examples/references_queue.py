"""Views cross a multiprocessing queue as references: the consumer works on the stored object."""

from multiprocessing import get_context

import numpy as np

import shmstore


def normalize(blocks):
    """Scale each block that comes, in place, until None comes."""
    while (block := blocks.get()) is not None:
        block /= block.max()


def main():
    context = get_context("spawn")
    with shmstore.Store.create(capacity="64MiB") as store:
        data = store.put(np.arange(1.0, 4_000_001.0).reshape(4, -1)).get()
        blocks = context.SimpleQueue()
        worker = context.Process(target=normalize, args=(blocks,))
        worker.start()
        for block in data:
            blocks.put(block)  # about 150 bytes each
        blocks.put(None)
        worker.join()
        print("largest of each block:", data.max(axis=1).tolist())


if __name__ == "__main__":
    main()
