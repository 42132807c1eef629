"""The stores whose processes had no time to remove them, and how they go."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from stores import Child, StartPython

import shmstore
from shmstore import Store

OWNER = """
import numpy as np, shmstore
stores = [shmstore.Store.create(name, capacity="1MiB", persist=persist) for name in names]
stores[0].put(np.arange(1000), key="k")
print("ready", flush=True)
input()
"""


def entries(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def start_owner(start_python: StartPython, *names: str | None, persist: bool = False) -> Child:
    """Start a process that owns stores of these names."""
    owner = start_python(OWNER, names=names, persist=persist)
    assert owner.hear() == "ready"
    return owner


def test_stores_of_killed_processes_are_removed(start_python: StartPython, root: Path) -> None:
    """Also those of random names, which nobody would use again."""
    owner = start_owner(start_python, "a", None, "b")
    names = entries(root)
    assert len(names) == 3
    owner.kill()
    assert shmstore.prune() == names
    assert entries(root) == []
    assert shmstore.prune() == []


def test_stores_with_a_living_client_stay(start_python: StartPython, root: Path) -> None:
    """Whoever the client is: the owner, another process, or this one."""
    owner = start_owner(start_python, "left", "joined")
    other = start_owner(start_python, "living")
    with Store.create("own", capacity="1MiB"), Store.attach("joined"):
        owner.kill()
        assert shmstore.prune() == ["left"]
        assert entries(root) == ["joined", "living", "own"]
    other.kill()
    assert shmstore.prune() == ["living"]


def test_store_whose_client_is_stopped_stays(start_python: StartPython) -> None:
    """It is not dead, and goes on when it is told to."""
    owner = start_owner(start_python, "stopped")
    os.kill(owner.pid, signal.SIGSTOP)
    assert shmstore.prune() == []
    os.kill(owner.pid, signal.SIGCONT)
    owner.kill()
    assert shmstore.prune() == ["stopped"]


def test_store_that_persists_stays(start_python: StartPython) -> None:
    """That is what it was made for."""
    start_owner(start_python, "kept", persist=True).kill()
    assert shmstore.prune() == []
    with Store.attach("kept") as store:
        assert store["k"].sum() == np.arange(1000).sum()
        store.destroy()


def test_what_is_no_store_stays(root: Path) -> None:
    """Files and folders of others, and what cannot be read."""
    (root / "file").write_text("text")
    (root / "folder").mkdir(mode=0o700)
    (root / "folder" / "index").write_text("no index")
    (root / "link").symlink_to("/")
    assert shmstore.prune() == []
    assert entries(root) == ["file", "folder", "link"]
    (root / "folder" / "index").unlink()
    (root / "folder").rmdir()
    (root / "file").unlink()
    (root / "link").unlink()


def test_what_making_or_removing_a_store_left_goes(root: Path) -> None:
    """A process may be killed in the middle of either."""
    with Store.create("s", capacity="1MiB"):
        pass
    for name in (".new-0123456789abcdef", ".old-fedcba9876543210"):
        (root / name).mkdir(mode=0o700)
    shmstore.prune()
    assert [name for name in entries(root) if name.startswith((".new", ".old"))] == []


def test_root_that_is_not_there_has_nothing_to_prune(tmp_path: Path) -> None:
    """And is not made."""
    assert shmstore.prune(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_root_that_was_removed_is_not_made_again_by_who_leaves(root: Path) -> None:
    """Closing a store whose folder is gone leaves nothing behind."""
    folder = root / "own"
    store = Store.create("s", capacity="1MiB", root=folder)
    shutil.rmtree(folder)
    store.close()
    assert not folder.exists()


@pytest.mark.parametrize("root", [3, b"bytes"])
def test_root_that_is_no_path_is_a_type_error(root: object) -> None:
    """As everywhere."""
    with pytest.raises(TypeError):
        shmstore.prune(root)  # type: ignore[arg-type]
