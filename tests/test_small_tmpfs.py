"""File systems that are really small, or that others fill up under us: our error, never SIGBUS."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import rooms
from stores import MIB, Child, RunPython

from shmstore import Store, StoreFullError

PAGE = rooms.PAGE

# What every child does with a store in a file system that has little room: it uses the store until
# something is refused, and then shows that what was published is whole and that room comes back.
LIVE = """
import gc, numpy as np, shmstore
faulthandler.dump_traceback_later(60, exit=True)
refused = []
def tried(call):
    try:
        return call()
    except (shmstore.StoreFullError, shmstore.ObjectTooLargeError) as error:
        assert "free" in str(error) or "room" in str(error), error
        refused.append(error)

store = tried(lambda: shmstore.Store.create("s", root=root, capacity=capacity, max_objects=5000))
if store is None:
    print("not made", flush=True)
    sys.exit()
kept = {}
def look():
    found = None
    assert store.check() == [], store.check()
    assert set(store) == set(kept), (set(store), set(kept))
    for key, value in kept.items():
        found = store[key]
        assert type(found) is type(value) and np.all(found == value), key
    del found

with store:
    for round in range(3):
        for n in range(400):
            value = n if n % 3 else np.full(n * size, n % 251, np.uint8)
            if tried(lambda: store.put(value, key=f"{round}-{n}")) is not None:
                kept[f"{round}-{n}"] = value
            view = store.get(f"{round}-{n}", None)
            if n == 50:
                print("filled" if round else "first", flush=True)
                input()
        del view
        views = tried(lambda: [store[key] for key in list(kept) * 3])
        look()
        del views
        for key in list(kept):
            if round < 2 and not key.endswith("7"):
                del store[key], kept[key]
        look()
    store.clear()
    kept.clear()
    gc.collect()
    assert store.stats().used == 0, store.stats()
print("refused", len(refused), flush=True)
"""


def live(root: Path, *, capacity: int, size: int, ballast: bool = False) -> list[str]:
    """Let a child live in a file system, which others fill up meanwhile; return what it says."""
    child = Child(LIVE, {"root": str(root), "capacity": capacity, "size": size})
    said = []
    with child.process:
        try:
            while (line := child.hear()).split()[0] in {"first", "filled"}:
                said.append(line)
                if ballast and line == "first":
                    rooms.fill_up(root)
                elif ballast:
                    (root / "ballast").unlink(missing_ok=True)
                child.say()
            child.end()
        finally:
            child.process.kill()
    return [*said, line]


@pytest.mark.parametrize("pages", [1, 2, 3, 5, 8, 12])
def test_store_in_a_few_pages_is_refused_and_leaves_nothing(pages: int) -> None:
    """There is no room for an index: our error, with numbers, and the file system is as before."""
    with rooms.small_file_system(pages * PAGE) as root:
        with pytest.raises(StoreFullError, match="enlarge it") as caught:
            Store.create("s", root=root, capacity=PAGE)
        assert caught.value.free <= pages * PAGE
        assert list(root.iterdir()) == []
        (root / "all").write_bytes(bytes((pages - 1) * PAGE))


@pytest.mark.parametrize("pages", [40, 60, 100, 200])
def test_store_in_some_pages_lives_with_what_there_is(pages: int) -> None:
    """Its tables, seats and data compete for pages: each that is missing is told, none kills."""
    with rooms.small_file_system(pages * PAGE) as root:
        said = live(root, capacity=max(PAGE, (pages - 38) * PAGE), size=16)
        assert list(root.iterdir()) == []
    assert said[-1] == "not made" or int(said[-1].split()[1]) > 0


def test_file_system_that_others_fill_up_gives_our_error() -> None:
    """64 MiB, filled to the last page while we work, and emptied again."""
    with rooms.small_file_system(64 * MIB) as root:
        said = live(root, capacity=60 * MIB, size=512, ballast=True)
        assert list(root.iterdir()) == []
    assert said[:2] == ["first", "filled"]
    assert int(said[-1].split()[1]) > 0


@pytest.mark.parametrize("inodes", range(1, 7))
def test_file_system_with_few_inodes_refuses_and_leaves_nothing(inodes: int) -> None:
    """It is not bytes that are missing, and the error says so."""
    with rooms.small_file_system(4 * MIB, inodes) as root:
        with pytest.raises(StoreFullError, match=f"holds {inodes} files and folders"):
            Store.create("s", root=root, capacity=MIB)
        assert list(root.iterdir()) == []


def test_file_system_with_inodes_for_one_store_takes_one() -> None:
    """Two folders, three files and a seat; the root is one more."""
    with rooms.small_file_system(4 * MIB, 7) as root:
        for _ in range(3):
            with Store.create("s", root=root, capacity=MIB) as store:
                store["a"] = np.arange(1000)
                assert store["a"].sum() == 499500
                with pytest.raises(StoreFullError, match="files and folders"):
                    Store.create("t", root=root, capacity=MIB)
            assert list(root.iterdir()) == []
            gc.collect()  # a file that is mapped keeps its inode


def test_clients_that_find_no_inode_are_refused(run_python: RunPython) -> None:
    """As many sit down as there are inodes for seats; the others are told so."""
    code = """
    import shmstore
    try:
        shmstore.Store.attach("s", root=root).close()
        print("joined")
    except shmstore.StoreFullError as error:
        assert "files" in str(error), error
        print("refused")
    """
    with (
        rooms.small_file_system(4 * MIB, 7) as root,
        Store.create("s", root=root, capacity=MIB) as store,
    ):
        assert run_python(code, root=str(root)) == "refused"
        store["a"] = 1
        assert store.check() == []
