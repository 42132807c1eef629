"""What each test gets, and what it must leave behind: nothing.

Every test has a root of its own in shared memory, which it leaves empty, and ends with the
descriptors that it began with. Stores made by `store` or `make_store` end with `check()` and
without pins.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest
from stores import DESCRIPTORS, WAIT_S, Child, command_for

from shmstore import Store

SHARED_MEMORY = Path("/dev/shm")


# What these prove does not depend on the version of Python, so one version proves it for all:
# by repetition, in races, ...
_PROOFS = {
    "test_benchmarks",
    "test_crash",
    "test_damage_files",
    "test_evict_race",
    "test_faults",
    "test_history",
    "test_interleave",
    "test_interleave_memory",
    "test_interrupts",
    "test_kill_matrix",
    "test_leaks",
    "test_model",
    "test_pin_race",
    "test_queue_crowd",
    "test_ref_history",
    "test_refilling_layouts",
    "test_refilling_processes",
    "test_soak",
    "test_spill_races",
    "test_strangers",
}
# ... of how much work there is with many objects, ...
_FIGURES = {"test_contention", "test_scale", "test_survey", "test_trim", "test_why_full"}
# ... and of what is written.
_TEXTS = {"test_architecture", "test_cli_demo", "test_documentation", "test_proofs", "test_rows"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what one version of Python proves for all."""
    same = _PROOFS | _FIGURES | _TEXTS
    for item in items:
        # Reads under the lock differ from those without it in no call of Python's.
        under_lock = isinstance(item, pytest.Function) and (
            hasattr(item, "callspec") and item.callspec.params.get("locked_reads") is True
        )
        if under_lock or item.path.stem in same:
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what imports have made out of the many collections that fixtures and tests ask for."""
    if len(sys.modules) > len(SEEN):
        SEEN.update(sys.modules)
        gc.collect()
        gc.freeze()


SEEN: set[str] = set()


# A test that has failed keeps what it was about alive in its traceback: whether it left something
# behind is no question then.
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Tell the fixtures that their test has failed."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


# --- the root -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give this test and its processes a root of their own; prove that it ends empty."""
    folder = tempfile.mkdtemp(
        prefix="shmstore-test-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    )
    monkeypatch.setenv("SHMSTORE_ROOT", folder)
    before = open_descriptors()
    try:
        yield Path(folder)
        if request.node.stash.get(FAILED, False):
            return
        if any(Path(folder).iterdir()) or open_descriptors() - before:
            gc.collect()
        left = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
        assert left == [], f"files of stores are left in the root: {left}"
        assert not open_descriptors() - before, "descriptors are left open"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_descriptors() -> Counter[str]:
    """Return what the descriptors of this process lead to, with how many of each."""
    found: Counter[str] = Counter()
    if DESCRIPTORS.is_dir():
        for descriptor in DESCRIPTORS.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[str(descriptor.readlink())] += 1
    return found


# --- stores ---------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["lock-free", "locked"])
def locked_reads(request: pytest.FixtureRequest) -> bool:
    """Say how objects are read: with the barrier, or under the store lock."""
    return bool(request.param)


@pytest.fixture
def make_store(
    request: pytest.FixtureRequest,
    root: Path,
    locked_reads: bool,  # noqa: FBT001 - a fixture
) -> Iterator[Callable[..., Store]]:
    """Give a function that creates stores, with the choices of `Store.create`."""
    made: list[Store] = []

    def make(name: str | None = None, *, capacity: int | str = "4MiB", **options: Any) -> Store:
        options.setdefault("locked_reads", locked_reads or None)
        store = Store.create(name, capacity=capacity, **options)
        made.append(store)
        return store

    yield make
    gc.collect()
    with contextlib.ExitStack() as closing:
        for store in made:
            closing.callback(store.close)
        for store in made:
            if not (store.closed or request.node.stash.get(FAILED, False)):
                assert_clean(store)


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    """Give a store of 4 MiB that this test owns."""
    return make_store()


def assert_clean(store: Store) -> None:
    """Fail unless a store is sound and this process looks at none of its objects."""
    assert store.check() == []
    assert [client.pins for client in store.clients() if client.own] == [0]


# --- other processes ------------------------------------------------------------------------------


@pytest.fixture
def run_python(root: Path) -> Callable[..., str]:
    """Give a function that runs code in an unrelated process and returns what it prints."""

    def run(code: str, *, returncode: int = 0, **values: Any) -> str:
        done = subprocess.run(
            command_for(code, values),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (returncode, "")
        return done.stdout.strip()

    return run


@pytest.fixture
def start_python(root: Path) -> Iterator[Callable[..., Child]]:
    """Give a function that starts code in an unrelated process; all of them end with the test."""
    with contextlib.ExitStack() as children:
        yield starter(children)


@pytest.fixture
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail if any process of a test has printed an error or a warning."""
    yield
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="session")
def libuv() -> None:
    """Let libuv make what it keeps for the life of the process before descriptors are counted."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, libuv: None) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Give a function that runs a coroutine in an event loop of each kind."""
    new_loop = None
    if request.param == "uvloop":
        new_loop = pytest.importorskip("uvloop").new_event_loop

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(main)

    return run


@pytest.fixture(scope="module")
def module_child() -> Iterator[Callable[..., Child]]:
    """Give a function like that of `start_python`, for processes that serve a whole module."""
    with contextlib.ExitStack() as children:
        yield starter(children)


@pytest.fixture(scope="session")
def process_helpers() -> None:
    """Start what multiprocessing starts once and keeps: it is then no difference between tests."""
    resource_tracker.ensure_running()
    multiprocessing.set_forkserver_preload(["shmstore", "numpy"])
    forkserver.ensure_running()


def starter(children: contextlib.ExitStack) -> Callable[..., Child]:
    """Return a function that starts processes; they end with a stack of contexts."""

    def start(code: str, **values: Any) -> Child:
        child = Child(code, values)
        children.enter_context(child.process)
        children.callback(child.process.kill)
        return child

    return start
