"""Queues with many at both ends: nothing is lost, nothing comes twice, whoever is killed."""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, exit_code, forked

from shmstore import Store

PRODUCERS, CONSUMERS, EACH = 3, 3, 400


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: what is taken is taken under it anyway."""
    return False


def _item(producer: int, number: int) -> Any:
    """Return a small object, or sometimes an array."""
    if number % 50 == 7:
        return np.full(20_000, number * PRODUCERS + producer)
    return producer, number


def _told(item: Any) -> tuple[int, int]:
    if isinstance(item, np.ndarray):
        assert item[0] == item[-1]
        return int(item[0]) % PRODUCERS, int(item[0]) // PRODUCERS
    return item  # type: ignore[no-any-return]


@pytest.mark.parametrize("maxsize", [0, 5])
def test_queue_many_producers_and_consumers_each_object_once_in_order(
    make_store: MakeStore, maxsize: int
) -> None:
    """What one producer has put comes to each consumer in its order; all of it comes once."""
    store = make_store(capacity="64MiB")
    jobs, results = store.queue("jobs", maxsize=maxsize), store.queue("results")

    def produce(producer: int) -> None:
        for number in range(EACH):
            jobs.put(_item(producer, number), timeout=60)

    def consume() -> None:
        came = []
        while (item := jobs.get(timeout=60)) is not None:
            came.append(_told(item))
            jobs.task_done()
        results.put(came)

    consumers = [forked(consume) for _ in range(CONSUMERS)]
    producers = [forked(lambda producer=n: produce(producer)) for n in range(PRODUCERS)]
    assert [exit_code(pid) for pid in producers] == [0] * PRODUCERS
    assert jobs.join(timeout=60)
    jobs.put_many([None] * CONSUMERS)
    came = [results.get(timeout=60) for _ in consumers]
    assert [exit_code(pid) for pid in consumers] == [0] * CONSUMERS
    for one in came:
        for producer in range(PRODUCERS):
            numbers = [number for who, number in one if who == producer]
            assert numbers == sorted(numbers)
    counted = Counter(told for one in came for told in one)
    assert counted == {(who, n): 1 for who in range(PRODUCERS) for n in range(EACH)}
    assert store.check() == []


def _kill_some(pids: list[int]) -> None:
    for pid in pids:
        time.sleep(random.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_queue_killed_at_both_ends_loses_only_what_was_taken(store: Store) -> None:
    """Of what the dead have put a beginning is there; of what they took each lacks at most one."""
    jobs, kept = store.queue("jobs"), store.queue("kept")

    def produce(producer: int) -> None:
        for number in range(1_000_000):
            jobs.put((producer, number))
            time.sleep(0)

    def consume() -> None:
        while True:
            kept.put(jobs.get())

    producers = [forked(lambda producer=n: produce(producer)) for n in range(2)]
    consumers = [forked(consume) for _ in range(2)]
    time.sleep(0.2)
    _kill_some([producers[0], consumers[0], producers[1], consumers[1]])
    assert store.check() == []
    came: list[tuple[int, int]] = []
    for line in (kept, jobs):
        while True:
            try:
                came += line.get_many(100, block=False)
            except queue.Empty:
                break
    assert max(Counter(came).values()) == 1
    for producer in range(2):
        numbers = {number for who, number in came if who == producer}
        assert numbers
        assert max(numbers) + 1 - len(numbers) <= len(consumers)


@pytest.mark.parametrize("round_", range(3))
def test_queue_consumers_killed_while_they_wait_leave_the_others_their_share(
    store: Store, round_: int
) -> None:
    """Who dies between the ring and the take does not keep what was put from those who live."""
    jobs, results = store.queue("jobs"), store.queue("results")
    doomed = [forked(lambda: jobs.get() and time.sleep(60)) for _ in range(3)]
    survivor = forked(lambda: results.put([jobs.get(timeout=60) for _ in range(20)]))
    time.sleep(0.05 * (round_ + 1))
    _kill_some(doomed)
    jobs.put_many(range(20))
    assert results.get(timeout=60) == list(range(20))
    assert exit_code(survivor) == 0
