"""Limits of the process that are really small: descriptors, file sizes, addresses, processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from stores import MIB, MakeStore, RunPython, StartPython, lock_free_only

import shmstore
from shmstore import Store

# Numbers that children find: what the store of these tests holds.
NUMBERS = np.arange(1000)


@pytest.fixture
def there(make_store: MakeStore) -> Store:
    """Give a store with something in it."""
    store = make_store("there", capacity="8MiB", max_objects=2000)
    store["numbers"] = NUMBERS
    return store


FEW_DESCRIPTORS = """
import resource, shmstore
def descriptors(): return len(os.listdir("/proc/self/fd"))
before, refused = descriptors(), 0
for limit in range(before, before + 14):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
    try:
        store = enter(shmstore)
    except shmstore.ProcessLimitError as error:
        refused += 1
        assert error.errno == 24 and f"{limit:,} (`ulimit -n`)" in str(error), error
        assert error.limit == limit and os.path.isabs(error.path), error.facts
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        assert descriptors() == before
        continue
    store["mine"] = 1
    assert store["mine"] == 1 and store.get("numbers", numbers).sum() == numbers.sum()
    try:
        store.close()
    except shmstore.ProcessLimitError:  # the folder takes some more; it is removed by others
        assert store.closed
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    shmstore.prune()
    assert descriptors() == before
print(refused)
"""


@lock_free_only
@pytest.mark.parametrize(
    "call",
    [
        's.Store.create("new", capacity="1MiB")',
        's.Store.attach("there")',
        's.Store.open("there")',
        's.Store.open("new")',
    ],
)
def test_process_with_few_descriptors_is_told_its_limit(
    there: Store, run_python: RunPython, root: Path, call: str
) -> None:
    """One descriptor more each time: refused with the limit until there are enough."""
    code = f"enter = lambda s: {call}\n{FEW_DESCRIPTORS}"
    assert 5 <= int(run_python(code, numbers=NUMBERS)) <= 10
    assert there.check() == []
    assert [path.name for path in root.iterdir()] == ["there"]


@lock_free_only
def test_process_without_descriptors_goes_on_with_what_it_has(
    there: Store, run_python: RunPython, start_python: StartPython
) -> None:
    """Put, get and delete need none; what looks at other clients is told the limit."""
    other = start_python(
        """
        import shmstore
        store = shmstore.Store.attach("there")
        view = store["numbers"]
        print("looking", flush=True)
        input()
        """
    )
    assert other.hear() == "looking"
    code = """
    import numpy as np, resource, shmstore
    store = shmstore.Store.attach("there")
    fds = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    while len(fds) < 64:
        try:
            fds.append(os.dup(0))
        except OSError:
            break
    store["mine"] = np.arange(50_000)
    assert store["mine"].sum() == 1249975000
    store["mine"] = 5
    told = 0
    for call in (store.clients, store.check, lambda: store.put(np.zeros(100_000))):
        try:
            call()
        except shmstore.ProcessLimitError as error:
            told += "ulimit -n" in str(error)
    for fd in fds:
        os.close(fd)
    assert store.check() == []
    assert store.put(np.zeros(100_000)).get().sum() == 0
    store.close()
    print(told)
    """
    assert int(run_python(code)) >= 1
    other.say()
    other.end()
    assert there.check() == []
    assert sorted(there) == ["mine", "numbers"]


def test_files_that_may_not_be_that_long_are_told(run_python: RunPython, root: Path) -> None:
    """RLIMIT_FSIZE: a signal that Python ignores, then EFBIG, and that is a full store to us."""
    code = """
    import resource, shmstore
    for limit in (0, 4096, 65536, 1 << 20):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            shmstore.Store.create("new", capacity="64MiB")
        except shmstore.StoreFullError as error:
            assert "File too large" in str(error), error
            assert os.listdir(root) == []
        else:
            print("made", limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    shmstore.Store.create("new", capacity="64MiB").close()
    """
    assert run_python(code, root=str(root)) == ""


FEW_ADDRESSES = """
import resource, shmstore
def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (used() + more, resource.RLIM_INFINITY))
told = set()
for mib in (1, 8, 32, 100, 200, 400, 900):
    limit(mib << 20)
    try:
        store = enter(shmstore)
    except shmstore.ProcessLimitError as error:
        assert error.errno == 12 and f"{error.asked:,} bytes" in str(error), error
        assert "ulimit -v" in str(error), error
        name = os.path.basename(error.path).partition("-")[0]
        assert dict(index="max_objects", segment="capacity").get(name, "") in str(error), error
        told.add(name)
        continue
    store["mine"] = 1
    assert store["mine"] == 1
    store.close()
    print(*sorted(told))
    break
"""


@lock_free_only
@pytest.mark.parametrize(
    "call",
    [
        's.Store.create("new", capacity="64MiB", max_objects=300_000)',
        's.Store.attach("large")',
        's.Store.attach("large", readonly=False)',
    ],
)
def test_process_with_few_addresses_is_told_for_what_they_are_needed(
    make_store: MakeStore, run_python: RunPython, call: str
) -> None:
    """`ulimit -v`: the error names the file, its size, and which choice makes it smaller."""
    store = make_store("large", capacity="64MiB", max_objects=300_000)
    store["numbers"] = NUMBERS
    told = run_python(f"enter = lambda s: {call}\n{FEW_ADDRESSES}").split()
    assert set(told) >= {"index", "segment"}
    assert store.check() == []
    assert store["numbers"].sum() == NUMBERS.sum()


@lock_free_only
def test_private_views_without_addresses_are_refused_and_the_others_stay(
    there: Store, run_python: RunPython
) -> None:
    """Each is a mapping of its own: the error says so, and dropping them gives room."""
    there["large"] = np.ones(4 * MIB, np.uint8)
    code = """
    import gc, resource, shmstore
    store = shmstore.Store.attach("there")
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    views = []
    try:
        while len(views) < 100:
            views.append(store.get("large", mode="private"))
    except shmstore.ProcessLimitError as error:
        assert "private views" in str(error), error
    assert 5 < len(views) < 20, len(views)
    assert all(view.all() for view in views)
    views.clear()
    gc.collect()
    assert store.get("large", mode="private").all()
    assert [client.pins for client in store.clients() if client.own] == [0]
    """
    run_python(code)
    assert there.check() == []


@lock_free_only
def test_fork_that_fails_leaves_the_parent_as_it_was(there: Store, run_python: RunPython) -> None:
    """RLIMIT_NPROC: the seat that was made for the child is given up."""
    if os.geteuid():
        pytest.skip("only root can become a user that may have no more processes")
    code = """
    import resource, shmstore
    with shmstore.Store.create("own", capacity="1MiB") as store:
        store["a"] = 1
        before = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
        os.setresuid(54321, 54321, 0)
        for _ in range(5):
            try:
                if not os.fork():
                    os._exit(3)
            except BlockingIOError:
                pass
            else:
                os.wait()
                print("forked")
        os.setresuid(0, 0, 0)
        assert len(os.listdir("/proc/self/fd")) == before
        store["b"] = 2
        store.recover()
        assert len(store.clients()) == 1, store.clients()
        assert store.check() == []
    """
    assert run_python(code) == ""
    assert shmstore.Store.attach("there") == there
    there.close()
