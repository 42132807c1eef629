"""Stores that wipe what they give back: nothing of an object is in the files after its end."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Flag, MakeStore, RunPython, lock_free_only

from shmstore import Store, StoreFullError

SECRET = b"correct horse battery staple"


def secrets(nbytes: int) -> np.ndarray:
    """Return an array that is full of the secret."""
    return np.frombuffer((SECRET * (nbytes // len(SECRET) + 1))[:nbytes], np.uint8).copy()


VALUES: dict[str, Any] = {
    "in the index": {"password": SECRET},
    "text in the index": SECRET.decode(),
    "small extent": secrets(100),
    "odd size": secrets(70_001),
    "large extent": secrets((2 << 20) + 12_345),
    "stream": [SECRET] * 3 + [os.urandom(10).hex() for _ in range(300)],
    "pickle with buffers": [secrets(5000), {SECRET: secrets(3000)}],
}
each_value = pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))


def written(path: Path) -> bytes:
    """Return what was ever written to a sparse file."""
    parts = []
    with path.open("rb", buffering=0) as file:
        start, size = 0, path.stat().st_size
        while start < size:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            parts.append(os.pread(file.fileno(), end - start, start))
            start = end
    return b"".join(parts)


def places(store: Store) -> list[str]:
    """Return the files of a store in which the secret, or a part of it, can be read."""
    files = [path for path in Path(store.path).rglob("*") if path.is_file()]
    return sorted(path.name for path in files if SECRET[:16] in written(path))


@pytest.fixture
def wiping(make_store: MakeStore) -> Store:
    """Give a store that wipes what it gives back."""
    return make_store(capacity="8MiB", max_objects=1000, zero_on_free=True)


@pytest.fixture(params=[False, True], ids=["lock-free", "locked"])
def locked_reads(request: pytest.FixtureRequest) -> bool:
    """Say how objects are read."""
    return bool(request.param)


# --- the ways to end ------------------------------------------------------------------------------


@each_value
def test_secret_can_be_found_while_it_is_there(make_store: MakeStore, value: Any) -> None:
    """The search of these tests works: without the option a deleted object is still there."""
    store = make_store(capacity="8MiB", max_objects=1000)
    store["k"] = value
    assert places(store) != []
    del store["k"]
    store.check()
    assert places(store) != []


@each_value
def test_deleted_object_leaves_nothing(wiping: Store, value: Any) -> None:
    """Neither its data nor what the index said of it remains."""
    ref = wiping.put(value)
    wiping["k"] = value
    wiping[SECRET.decode()] = 1
    assert places(wiping) != []
    del wiping["k"], wiping[SECRET.decode()]
    ref.delete()
    assert wiping.check() == []
    assert places(wiping) == []


@each_value
def test_overwritten_object_leaves_nothing(wiping: Store, value: Any) -> None:
    """The place of the former object under a key is wiped, and the new object is whole."""
    wiping["k"] = value
    wiping["k"] = [1, 2, 3]
    wiping.check()
    assert places(wiping) == []
    assert wiping["k"] == [1, 2, 3]


def test_object_under_a_view_is_wiped_after_it(wiping: Store) -> None:
    """Views stay what they are; the bytes go when the last one has died."""
    view = wiping.put(VALUES["odd size"], key="k") and wiping["k"]
    del wiping["k"]
    wiping.check()
    assert view.tobytes() == VALUES["odd size"].tobytes()
    del view
    gc.collect()
    wiping.check()
    assert places(wiping) == []


@each_value
def test_expired_object_leaves_nothing(wiping: Store, value: Any) -> None:
    """What is over is wiped as soon as it is taken back."""
    wiping.put(value, key="k", ttl=1e-6)
    wiping.check()
    assert places(wiping) == []


def test_evicted_objects_leave_nothing(make_store: MakeStore) -> None:
    """What makes room for others is wiped before they get it."""
    store = make_store(capacity="1MiB", max_objects=20, on_full="evict", zero_on_free=True)
    store.put_many([secrets(60_000) for _ in range(10)] + [{"password": SECRET}] * 10)
    assert places(store) == ["index", "segment-00000"]
    store.put_many([np.zeros(60_000, np.uint8)] * 10)
    store.put_many([{}] * 10)
    assert places(store) == []


@each_value
def test_half_made_put_leaves_nothing(
    wiping: Store, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that fails before it is published wipes what it had written."""
    session: Any = wiping._session

    def fail(*_: Any) -> None:
        raise OSError("no")

    for name in ("publish", "insert", "insert_many"):
        monkeypatch.setattr(session.slots, name, fail)
    with pytest.raises(OSError, match="no"):
        wiping.put(value)
    with pytest.raises(OSError, match="no"):
        wiping.put_many([value, value])
    monkeypatch.undo()
    wiping.check()
    assert places(wiping) == []


def test_array_that_was_discarded_leaves_nothing(wiping: Store) -> None:
    """An exception in the block of `allocate` takes along what the block wrote."""

    def build() -> None:
        with wiping.allocate(300_000, np.uint8) as array:
            array[:] = secrets(300_000)
            raise KeyError("k")

    with pytest.raises(KeyError):
        build()
    gc.collect()
    wiping.check()
    assert places(wiping) == []


KILLED = """
import os, signal
import numpy as np, shmstore
from shmstore import _writing
store = shmstore.Store.attach(path)
secret = np.frombuffer((part * nbytes)[:nbytes], np.uint8)
real = _writing.copy
def copy(*args):
    real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
if not built:
    _writing.copy = copy
else:
    with store.allocate(nbytes, np.uint8) as array:
        array[:] = secret
        os.kill(os.getpid(), signal.SIGKILL)
store.put(secret)
"""


@lock_free_only
@pytest.mark.parametrize("built", [False, True], ids=["put", "built in place"])
@pytest.mark.parametrize("nbytes", [1000, 300_000, 2 << 20])
def test_put_of_a_killed_process_leaves_nothing(
    make_store: MakeStore, run_python: RunPython, nbytes: int, built: Flag, locked_reads: Flag
) -> None:
    """What a writer had written before it was killed is wiped by `recover`."""
    store = make_store(capacity="8MiB", max_objects=1000, zero_on_free=True)
    facts = {"path": str(store.path), "part": SECRET, "nbytes": nbytes, "built": built}
    run_python(KILLED, returncode=-signal.SIGKILL, **facts)
    assert places(store) != []
    store.recover()
    assert places(store) == []


# --- what remains ---------------------------------------------------------------------------------


@each_value
def test_neighbours_of_what_is_wiped_stay_whole(wiping: Store, value: Any) -> None:
    """Only the bytes of the object itself become zero."""
    others = [np.full(nbytes, 7, np.uint8) for nbytes in (1, 4095, 70_000)]
    refs = []
    for other in others:
        refs.append(wiping.put(other))
        wiping.put(value, key=str(len(refs)))
    wiping.clear()
    wiping.check()
    assert places(wiping) == []
    for ref, other in zip(refs, others, strict=True):
        assert np.array_equal(ref.get(), other)


def test_wiped_place_is_used_again(wiping: Store) -> None:
    """Memory of large objects that went back to the system can be had again, many times."""
    for _ in range(8):
        ref = wiping.put(secrets(7 << 20))
        assert ref.get().tobytes() == secrets(7 << 20).tobytes()
        ref.delete()
        gc.collect()
    wiping.check()
    assert places(wiping) == []


def test_full_store_that_wipes_says_so_as_others_do(wiping: Store) -> None:
    """A put that finds no room leaves nothing behind either."""
    kept = wiping.put(np.zeros(6 << 20, np.uint8))
    with pytest.raises(StoreFullError):
        wiping.put_many([secrets(1 << 20), secrets(4 << 20)])
    wiping.check()
    assert places(wiping) == []
    assert kept.get().sum() == 0
