"""A store in an event loop: coroutines wait for another process, without a thread."""

import asyncio
from multiprocessing import get_context

import numpy as np

import shmstore
from shmstore import aio


def answer(name):
    """Wait for questions in another process, and answer them."""
    with shmstore.Store.attach(name) as store:
        for number in range(3):
            store[f"answer/{number}"] = store.get(f"question/{number}", timeout=60) * 2


async def ask(store, number):
    """Put a question, and wait for its answer."""
    await store.put(np.full(5, number), key=f"question/{number}")
    return (await store.get(f"answer/{number}", timeout=60)).tolist()


async def main():
    async with aio.create(capacity="16MiB") as store:
        process = get_context("spawn").Process(target=answer, args=(store.sync.name,))
        process.start()
        print(await asyncio.gather(*(ask(store, number) for number in range(3))))
        await asyncio.to_thread(process.join)


if __name__ == "__main__":
    asyncio.run(main())
