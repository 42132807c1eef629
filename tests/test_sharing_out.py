"""Large copies that several threads share."""

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest
from stores import MIB, Flag, MakeStore

from shmstore._memory import segment, sharing_out
from shmstore._memory.sharing_out import Crew

SLICE = sharing_out._SLICE_NBYTES


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 1),
        ({1: 1.0, 2: 1.1, 4: 1.2, 8: 1.1}, 1),
        ({1: 1.0, 2: 2.0, 4: 2.1, 8: 2.0}, 2),
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 8),
        ({1: 1.0, 2: 0.5, 4: 3.0, 8: 3.0}, 4),
    ],
    ids=["one is enough", "little gain", "two", "all", "not two but four"],
)
def test_number_of_threads_is_learned_from_the_copies(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], chosen: int
) -> None:
    """The fewest that come near the best; more threads than help are left to others."""
    now = [0.0]

    def split(_: object, begin: int, end: int, threads: int) -> None:
        now[0] += (end - begin) / rates[threads]

    monkeypatch.setattr(sharing_out, "_split", split)
    monkeypatch.setattr(sharing_out, "perf_counter", lambda: now[0])
    crew = Crew(8)
    crew.share_out(SLICE * sharing_out._LOOKS * len(rates), print)
    assert crew._to_learn() == 0
    assert crew.threads() == chosen


def test_one_core_learns_nothing() -> None:
    """Where there is no choice nothing is split."""
    parts: list[tuple[int, int]] = []
    Crew(1).share_out(5 * SLICE, lambda *part: parts.append(part))
    assert parts == [(0, 5 * SLICE)]


@pytest.mark.parametrize("threads", [2, 4, 8])
@pytest.mark.parametrize("nbytes", [1, 7, 1000, SLICE + 1])
def test_parts_cover_all_bytes_once(threads: int, nbytes: int) -> None:
    """Whatever the number of threads and of bytes."""
    parts: list[tuple[int, int]] = []
    sharing_out._split(lambda *part: parts.append(part), 10, 10 + nbytes, threads)
    parts.sort()
    assert parts[0][0] == 10
    assert parts[-1][1] == 10 + nbytes
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(parts))


@pytest.mark.parametrize("where", ["helper", "caller"])
def test_error_of_any_thread_is_raised_when_all_have_ended(where: str) -> None:
    """Nobody writes any more when the error arrives."""
    ended: list[int] = []

    def work(begin: int, _: int) -> None:
        if (begin == 0) == (where == "caller"):
            raise OSError(28, "no space")
        time.sleep(0.05)
        ended.append(begin)

    with pytest.raises(OSError, match="no space"):
        sharing_out._split(work, 0, 4000, 4)
    assert len(ended) == (3 if where == "caller" else 1)


def test_system_without_threads_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on threads makes a copy slower, not wrong."""

    def refuse(_: object) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    parts: list[tuple[int, int]] = []
    sharing_out._split(lambda *part: parts.append(part), 0, 100, 4)
    assert sorted(parts) == [(0, 25), (25, 50), (50, 75), (75, 100)]


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
def test_large_object_is_whole_however_many_threads_copied_it(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, cold: Flag
) -> None:
    """Every byte lies where it belongs, in pages that exist and in others."""
    monkeypatch.setattr(segment, "WORTH_NBYTES", MIB)
    monkeypatch.setattr(sharing_out, "_SLICE_NBYTES", MIB // 2)
    for crew in ("_copiers", "_writers"):
        monkeypatch.setattr(segment, crew, Crew(8))
    store = make_store(capacity=64 * MIB, prefault=not cold)
    array = np.random.default_rng(0).integers(0, 256, 15 * MIB + 13, np.uint8)
    for _ in range(2):
        ref = store.put(array)
        np.testing.assert_array_equal(store.get(ref), array)
        ref.delete()


def test_memory_is_not_used_again_while_a_thread_still_writes(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that was interrupted leaves a helper behind; its extent waits for it."""
    monkeypatch.setattr(segment, "WORTH_NBYTES", MIB)
    monkeypatch.setattr(segment, "_copiers", Crew(2))
    store = make_store(capacity=64 * MIB, prefault=True)
    going_on, left = threading.Event(), []

    def leave(work: Any, begin: int, end: int, _: int) -> None:
        def late() -> None:
            going_on.wait(30)
            work(begin, end)

        left.append(threading.Thread(target=late))
        left[0].start()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sharing_out, "_split", leave)
        with pytest.raises(KeyboardInterrupt):
            store.put(np.full(8 * MIB, 1, np.uint8))
    del leave
    refs = [store.put(np.full(8 * MIB, 2, np.uint8)) for _ in range(7)]
    going_on.set()
    left.pop().join()
    assert all((ref.get() == 2).all() for ref in refs)
    store.put(np.full(8 * MIB, 3, np.uint8))
    assert store.check() == []
