"""Stores of a group, as its members make and join them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strangers
from strangers import DATA, SMALL, User

from shmstore import Store, UnsafePathError


def make(root: Path, name: str = "s", *, group: int | None = DATA, **options: Any) -> Store:
    """Make a store in a root."""
    return Store.create(name, root=root, group=group, **SMALL, **options)


def join(root: Path, *, readonly: bool = False) -> Store:
    """Attach the store of `make`."""
    return Store.attach(root / "s", group=DATA, readonly=readonly)


def furnish(root: Path) -> bytes:
    """Make a store that persists, with an array and a text; return a reference and a handle."""
    with make(root, persist=True) as store:
        store["text"] = "kept"
        return pickle.dumps((store.put(np.arange(1000), key="array"), store))


def unsafe(call: Callable[[], Any]) -> str:
    """Return why a call is refused."""
    with pytest.raises(UnsafePathError) as caught:
        call()
    return str(caught.value.reason)


@contextlib.contextmanager
def staying(user: User, act: Callable[[], Any]) -> Iterator[int]:
    """Let a user do something and then stay for the block, unless he is killed; give his pid."""
    told, tell = os.pipe()

    def stay() -> None:
        held = act()
        os.write(tell, b".")
        signal.pause()
        del held

    pid, reader = strangers.start(user, stay)
    try:
        os.close(tell)
        assert os.read(told, 1) == b"."
        yield pid
    finally:
        os.close(told)
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def with_store(root: Path, act: Callable[[Store], Any]) -> Any:
    """Do something with the store of `make`."""
    with join(root) as store:
        return act(store)


def peek(store: Store) -> tuple[int, int]:
    """Return how many clients there are, and how many of them recovery finds dead."""
    found = store.recover()
    return len(store.clients()), found.clients
