"""Readers that verify every byte, against writers that do their worst."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Event, Semaphore
from typing import Any

import numpy as np
import pytest
from stores import Flag, MakeStore

from shmstore import Store, StoreFullError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("process_helpers")]

SECONDS = float(os.environ.get("SHMSTORE_STRESS_SECONDS", "12"))
STARTED_WITHIN_S = 60

CHECKSUM_NBYTES = 4
KEYS = 40


# --- checksums ------------------------------------------------------------------------------------


def signed(generator: np.random.Generator, nbytes: int) -> np.ndarray:
    """Return random bytes behind their checksum."""
    array = generator.integers(0, 256, nbytes + CHECKSUM_NBYTES, np.uint8)
    sign(array)
    return array


def sign(array: np.ndarray) -> None:
    """Write the checksum of an array into its first bytes."""
    checksum = zlib.crc32(array[CHECKSUM_NBYTES:].data)
    array[:CHECKSUM_NBYTES] = np.frombuffer(checksum.to_bytes(CHECKSUM_NBYTES, "little"), np.uint8)


def is_genuine(array: np.ndarray) -> bool:
    """Return whether an array is what somebody has signed."""
    claimed = int.from_bytes(bytes(array[:CHECKSUM_NBYTES]), "little")
    return claimed == zlib.crc32(array[CHECKSUM_NBYTES:].data)


def write_and_delete(path: str, seed: int, stop: Event) -> int:
    """Overwrite, build, delete and refill until told to stop; return how often."""
    generator, random_ = np.random.default_rng(seed), random.Random(seed)
    pool = [signed(generator, int(2 ** random_.uniform(0, 18))) for _ in range(60)]
    turns = 0
    with Store.attach(path) as store:
        while not stop.is_set():
            turns += 1
            key = str(random_.randrange(KEYS))
            with suppress(StoreFullError):
                action = random_.random()
                if action < 0.45:
                    store[key] = random_.choice(pool)
                elif action < 0.6:
                    store[key] = {"parts": random_.sample(pool, 3), "turn": turns}
                elif action < 0.7:
                    store.put_many({str(random_.randrange(KEYS)): random_.choice(pool), key: turns})
                elif action < 0.8:
                    with store.allocate(random_.randrange(8, 100_000), "u1", key=key) as array:
                        array[:] = turns % 251
                        sign(array)
                    del array
                elif action < 0.98:
                    store.discard(key)
                else:
                    store.clear()
            if turns % 50 == 0:
                refill(store, random_)
    return turns


def refill(store: Store, random_: random.Random) -> None:
    """Take all the room there is with bytes that are no genuine object, and give it back."""
    refs = []
    with suppress(StoreFullError):
        while len(refs) < 100:
            refs.append(store.put(np.full(random_.randrange(30_000), 0xAA, np.uint8)))
    store.delete_many(refs)


def read_and_verify(path: str, seed: int, stop: Event) -> int:
    """Verify what is got, and again later what is still held; return how often."""
    random_ = random.Random(seed)
    held: list[np.ndarray] = []
    verified = 0
    with Store.attach(path, readonly=bool(seed % 2)) as store:
        while not stop.is_set():
            mode = random_.choice(["shared", "shared", "readonly", "private", "copy"])
            got = store.get(str(random_.randrange(KEYS)), None, mode=mode)
            if isinstance(got, dict):
                arrays = got["parts"]
            else:
                arrays = [got] if isinstance(got, np.ndarray) else []
            for array in arrays:
                assert is_genuine(array), f"torn: {array.nbytes} bytes in mode {mode}"
                held.append(array[:])
            while len(held) > 12:
                array = held.pop(random_.randrange(len(held)))
                assert is_genuine(array), f"changed: {array.nbytes} bytes while they were held"
                verified += 1
    return verified


def test_readers_see_only_whole_objects_while_writers_overwrite_delete_and_refill(
    make_store: MakeStore, locked_reads: Flag
) -> None:
    """Every array is verified when it is got, and again when it is let go."""
    store = make_store(capacity="3MiB")
    counts = in_processes(
        SECONDS / 4 if locked_reads else SECONDS,
        [(write_and_delete, store, 100), (write_and_delete, store, 101)]
        + [(read_and_verify, store, seed) for seed in range(3)],
        meanwhile=lambda: assert_sound(store),
    )
    assert all(count > 20 for count in counts), counts
    assert store.check() == []
    store.clear()
    store.recover()
    assert store.stats().used == 0
    assert store.stats().largest_free == store.stats().capacity


def assert_sound(store: Store) -> None:
    """Prove every invariant of a store that is in use."""
    assert store.check() == []


# --- the pin race ---------------------------------------------------------------------------------


def overwrite_one_key(path: str, nbytes: int, stop: Event) -> int:
    """Put arrays of a single value under one key, as fast as can be; return how many."""
    arrays = [np.full(nbytes, value, np.uint8) for value in range(251)]
    turns = 0
    with Store.attach(path) as store:
        while not stop.is_set():
            for array in arrays:
                with suppress(StoreFullError):
                    store.put(array, key="k")
            turns += len(arrays)
    return turns


def read_one_key(path: str, nbytes: int, stop: Event) -> int:
    """Get that key as fast as can be; fail when an array has two values. Return how many."""
    turns = 0
    with Store.attach(path) as store:
        while not stop.is_set():
            for _ in range(200):
                array = store.get("k")
                first = array[0]
                assert array[-1] == first, "the last byte is of another object"
                assert (array == first).all(), "two objects in one view"
                assert array.nbytes == nbytes
            turns += 200
    return turns


def read_one_key_by_threads(path: str, nbytes: int, stop: Event) -> int:
    """As `read_one_key`, in two threads that share the pins of this process."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        return min(pool.map(lambda _: read_one_key(path, nbytes, stop), range(2)))


RACES = [(64, False), (4096, False), (100_000, False), (4096, True)]


@pytest.mark.parametrize(("nbytes", "locked_reads"), RACES)
def test_extent_reused_at_once_is_never_seen_by_the_reader_of_the_old_object(
    make_store: MakeStore, nbytes: int
) -> None:
    """Four extents, one key, no pause: a pin that comes too late would show two values."""
    store = make_store(capacity=max(4096, 4 * nbytes))
    store["k"] = np.zeros(nbytes, np.uint8)
    work = [(overwrite_one_key, store, nbytes), (read_one_key, store, nbytes)]
    work.append((read_one_key_by_threads, store, nbytes))
    counts = in_processes(SECONDS / 12, work)
    assert all(counts), counts
    assert store.check() == []
    del store["k"]
    store.recover()
    assert store.stats().used == 0


# --- processes ------------------------------------------------------------------------------------


def in_processes(
    seconds: float,
    work: list[tuple[Callable[[str, Any, Event], int], Store, Any]],
    meanwhile: Callable[[], None] = lambda: None,
) -> list[int]:
    """Run functions in processes of their own for so long; return what they return."""
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.SimpleQueue()
    ready = context.Semaphore(0)
    processes = [
        context.Process(
            target=_report,
            args=(results, number, function, str(store.path), argument, stop, ready),
        )
        for number, (function, store, argument) in enumerate(work)
    ]
    for process in processes:
        process.start()
    try:
        assert all(ready.acquire(timeout=STARTED_WITHIN_S) for _ in processes)
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(process.is_alive() for process in processes):
            time.sleep(0.05)
            meanwhile()
    finally:
        stop.set()
        for process in processes:
            process.join()
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.close()
    assert codes == [0] * len(codes), f"exit codes {codes}: the reasons stand on stderr"
    counts = dict(results.get() for _ in processes)
    results.close()
    return [counts[number] for number in range(len(counts))]


def _report(
    results: Any,
    number: int,
    function: Callable[[str, Any, Event], int],
    path: str,
    argument: Any,
    stop: Event,
    ready: Semaphore,
) -> None:
    ready.release()
    results.put((number, function(path, argument, stop)))
