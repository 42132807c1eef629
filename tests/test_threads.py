"""Many threads share one handle."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shmstore import Store


def test_handle_used_by_many_threads_loses_nothing(store: Store) -> None:
    """Each thread finds what it has put, while all others put, overwrite and delete."""

    def work(number: int) -> int:
        random_ = random.Random(number)
        mine: dict[str, int] = {}
        for step in range(300):
            key = f"{number} {random_.randrange(10)}"
            if key in mine and random_.random() < 0.3:
                array = store.pop(key)
                assert set(array) == {mine.pop(key)}
            else:
                mine[key] = step % 256
                store[key] = np.full(random_.choice([10, 1000, 5000]), step % 256, np.uint8)
            for name, value in mine.items():
                assert store[name][0] == value
        return len(mine)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == len(store)


def test_pop_and_setdefault_by_many_threads_have_one_winner(store: Store) -> None:
    """They are atomic."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(50):
            won = set(pool.map(lambda n: store.setdefault("k", n), range(8)))
            assert len(won) == 1
            popped = list(pool.map(lambda _, t=turn: store.pop("k", t * 0 - 1), range(8)))
            assert sorted(popped)[:7] == [-1] * 7
            assert {max(popped)} == won
