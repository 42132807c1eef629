"""Memoized functions: computed once for all processes, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from stores import MakeStore, exit_code, forked, wait_until

from shmstore import SerializationError, Store

CALLS: list[object] = []


@pytest.fixture
def locked_reads() -> bool:
    """Read without the lock: what is waited for has nothing to do with it."""
    return False


@pytest.fixture(autouse=True)
def no_calls() -> None:
    """Begin without calls."""
    CALLS.clear()


def double(x: object, factor: int = 2) -> object:
    """Be computed."""
    CALLS.append(x)
    return x * factor  # type: ignore[operator]


def crash(x: object) -> object:
    """Fail."""
    CALLS.append(x)
    raise ZeroDivisionError


def test_memoize_same_arguments_are_computed_once(store: Store) -> None:
    """However they are passed; others are others."""
    memoized = store.memoize(double)
    assert [memoized(2), memoized(2, 2), memoized(factor=2, x=2), memoized(3)] == [4, 4, 4, 6]
    assert CALLS == [2, 3]
    assert memoized.cache_info() == (2, 2, None, 2)
    memoized.cache_clear()
    assert memoized.cache_info() == (0, 0, None, 0)
    assert memoized(2) == 4
    assert CALLS == [2, 3, 2]


def test_memoize_arrays_are_arguments_and_read_only_results(store: Store) -> None:
    """What all share nobody may change, not even who has computed it."""
    memoized = store.memoize(double)
    first, second = memoized(np.arange(5)), memoized(np.arange(5))
    assert len(CALLS) == 1
    assert (first == second).all()
    assert not first.flags.writeable
    assert not second.flags.writeable


def test_memoize_exception_is_not_kept(store: Store) -> None:
    """The next one tries again."""
    memoized = store.memoize(crash)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            memoized(1)
    assert len(CALLS) == 2
    assert list(store) == []


def test_memoize_result_expires(store: Store) -> None:
    """After its time it is computed anew."""
    memoized = store.memoize(ttl=0.05)(double)
    memoized(1)
    wait_until(lambda: memoized.cache_info().currsize == 0)
    memoized(1)
    assert len(CALLS) == 2


def test_memoize_key_stands_for_the_arguments(store: Store) -> None:
    """Who gives one decides what is the same; what cannot be pickled needs one."""
    memoized = store.memoize(key=lambda x, **_: str(len(x)))(double)
    assert (memoized([1]), memoized([2])) == ([1, 1], [1, 1])
    with pytest.raises(SerializationError, match="key="):
        store.memoize(double)(lambda: 1)


def test_memoize_function_with_hidden_arguments_is_refused(store: Store) -> None:
    """Two of them would share their results."""
    hidden = 5
    with pytest.raises(TypeError, match="key="):
        store.memoize(lambda x: x + hidden)
    first, second = store.memoize(lambda x: x + 1), store.memoize(lambda x: x + 2)
    assert (first(1), second(1)) == (2, 3)


def test_memoize_without_room_gives_the_result(make_store: MakeStore) -> None:
    """And says that it was not kept."""
    memoized = make_store(capacity="64KiB").memoize(double)
    with pytest.warns(RuntimeWarning, match="was not kept"):
        assert memoized(np.zeros(10_000)).shape == (10_000,)


def test_memoize_many_ask_at_once_one_computes(store: Store, tmp_path: Path) -> None:
    """The others wait for its result."""

    def slow(x: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.3)
        return x + 1

    memoized = store.memoize(key=str)(slow)

    def ask() -> None:
        assert memoized(1) == 2

    children = [forked(ask) for _ in range(4)]
    assert [exit_code(pid) for pid in children] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_memoize_computing_process_killed_another_takes_over(store: Store, tmp_path: Path) -> None:
    """One of those who wait."""

    def deadly(x: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        if len(list(tmp_path.iterdir())) == 1:
            time.sleep(60)
        return x + 1

    memoized = store.memoize(key=str)(deadly)

    def ask() -> None:
        assert memoized(1) == 2

    first = forked(ask)
    wait_until(lambda: list(tmp_path.iterdir()))
    others = [forked(ask) for _ in range(2)]
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    assert [exit_code(pid) for pid in others] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2
    assert store.check() == []
