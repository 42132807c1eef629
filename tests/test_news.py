"""What an operator wants to know is told to the logger "shmstore", and to nobody else."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, RunPython, exit_code, fill_up, forked

from shmstore import Store, StoreFullError
from shmstore._memory import layout as L
from shmstore._memory import news
from shmstore._sharing import lock

ARRAY = np.zeros(2000)


@pytest.fixture
def locked_reads() -> bool:
    """How objects are read makes no difference here."""
    return False


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Listen to everything."""
    caplog.set_level(logging.DEBUG, "shmstore")
    return caplog


def told(heard: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return what was told at a level, and forget all."""
    texts = [record.getMessage() for record in heard.records if record.levelno == level]
    heard.clear()
    return texts


def _die_in_a_change(store: Store) -> int:
    session: Any = store._session
    child = forked(lambda: session.lock.run(lambda: os.kill(os.getpid(), 9)))
    exit_code(child)
    return child


def test_nothing_is_printed_by_default(run_python: RunPython) -> None:
    """Not even a warning, although the module logging is there."""
    run_python(
        """
        import logging, numpy as np, shmstore
        with shmstore.Store.create(capacity="64KiB") as store:
            try:
                store.put_many([np.zeros(1000)] * 20)
            except shmstore.StoreFullError:
                pass
            store.recover()
        """
    )


def test_logging_is_not_imported_for_it(run_python: RunPython) -> None:
    """Where nobody listens nothing is done."""
    code = """
        import sys
        from shmstore._memory import news
        logging = sys.modules.pop("logging", None)
        news.tell(news.WARNING, "%s", 1)
        told = news.News("store")
        told.add(news.WARNING, "%s", 1)
        assert told.untold == []
        assert "logging" not in sys.modules
        """
    run_python(code)


def test_beginning_and_end_of_a_store_are_told(heard, make_store) -> None:
    """With its path, and its size."""
    store = make_store("told", capacity="1MiB")
    path = store.path
    assert told(heard, logging.INFO) == [f"{path}: made, for 1048576 bytes"]
    store.destroy()
    assert told(heard, logging.INFO) == [f"{path}: destroyed"]


def test_death_of_a_client_is_told(heard, store) -> None:
    """Which process it was, and what it has left."""
    child = forked(lambda: (store.put(ARRAY).get(), os.kill(os.getpid(), 9)))
    exit_code(child)
    session: Any = store._session
    session.lock.run(session.bury)
    [text] = [text for text in told(heard, logging.INFO) if "without leaving" in text]
    assert text.startswith(f"{store.path}: ended without leaving: pid {child}; half-made")


def test_recovery_is_told(heard, store) -> None:
    """Somebody died in the middle of a change: whoever comes next makes it whole, and says so."""
    child = _die_in_a_change(store)
    store.put(1)
    [text] = told(heard, logging.WARNING)
    assert text.startswith(f"{store.path}: all tables were made anew; found dead: pid {child}, ")


def test_objects_that_are_given_up_are_told(heard, store) -> None:
    """Damage that `recover` finds."""
    session: Any = store._session
    slot = store.put({"a": 1}).info().slot
    session.words[session.slots.state_index(slot) + L.S_OWNER] ^= 1
    store.recover()
    assert f"{store.path}: 1 damaged objects are given up" in told(heard, logging.WARNING)


def test_full_store_is_told_once_a_minute(heard, make_store, monkeypatch) -> None:
    """However often somebody tries."""
    store = make_store(capacity="256KiB")
    now = [time.monotonic()]
    monkeypatch.setattr(news, "monotonic", lambda: now[0])
    fill_up(store, ARRAY)
    for _ in range(5):
        with pytest.raises(StoreFullError):
            store.put(ARRAY)
    [text] = told(heard, logging.WARNING)
    assert text.startswith(f"{store.path}: it is full: asked for 16,000 bytes")
    now[0] += 61
    with pytest.raises(StoreFullError):
        store.put(ARRAY)
    assert len(told(heard, logging.WARNING)) == 1


def test_eviction_is_told_when_it_begins(heard, make_store) -> None:
    """Once, not for each object."""
    store = make_store(capacity="256KiB", on_full="evict")
    for _ in range(100):
        store.put(ARRAY)
    texts = [text for text in told(heard, logging.INFO) if "evicted" in text]
    assert texts == [f"{store.path}: it is full, what was not used for longest is evicted"]


def test_spilling_is_told_when_it_begins(heard, make_store, tmp_path) -> None:
    """With the folder where it goes."""
    store = make_store(capacity="256KiB", on_full="spill", spill_dir=tmp_path)
    for _ in range(40):
        store.put(ARRAY)
    [text] = [text for text in told(heard, logging.INFO) if "goes to" in text]
    assert str(tmp_path) in text


def test_long_wait_for_the_lock_is_told(heard, store, start_python, monkeypatch) -> None:
    """More than a second, in seconds."""
    monkeypatch.setattr(lock, "_LONG_NS", 50_000_000)
    other = start_python(
        """
        import shmstore, time
        store = shmstore.Store.attach(name)
        def hold():
            print("held", flush=True)
            time.sleep(0.3)
        input()
        store._session.lock.run(hold)
        """,
        name=store.name,
    )
    assert other.ask() == "held"
    store.put(1)
    [text] = told(heard, logging.WARNING)
    assert text.startswith(f"{store.path}: waited for the store lock for 0.")
    other.end()


def test_memory_that_goes_back_is_told(heard, store) -> None:
    """At the level of details."""
    store.delete(store.put(ARRAY))
    nbytes = store.trim()
    assert f"{store.path}: {nbytes} bytes went back to the system" in told(heard, logging.DEBUG)


class _Asking(logging.Handler):
    """Asks the store about everything that it hears."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.answers: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - asks whatever it was
        self.answers.append(self.store.stats().objects)


@pytest.fixture
def asking(store: Store) -> Iterator[_Asking]:
    """Give a listener that uses the store itself."""
    handler, logger = _Asking(store), logging.getLogger("shmstore")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def test_listener_may_use_the_store(asking: _Asking, store: Store) -> None:
    """What was noticed under the lock is told after it, also when the call fails."""
    _die_in_a_change(store)
    store.put(1)
    assert asking.answers[-1] == 1
    count = len(asking.answers)
    fill_up(store, ARRAY)
    assert len(asking.answers) == count + 1


def test_listener_that_is_not_interested_costs_nothing(make_store: MakeStore) -> None:
    """What is below the level of the logger is not even kept."""
    logger = logging.getLogger("shmstore")
    store = make_store()
    session: Any = store._session
    logger.setLevel(logging.ERROR)
    try:
        session.news.add(news.WARNING, "nothing")
    finally:
        logger.setLevel(logging.NOTSET)
    assert session.news.untold == []
