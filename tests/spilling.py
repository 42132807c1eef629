"""Stores that spill: what their tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import MakeStore

from shmstore import Store

MakeSpilling = Callable[..., Store]


def block(number: int) -> np.ndarray:
    """Return 64 KiB that say a number: a store of 1 MiB takes sixteen of them."""
    return np.full(1 << 16, number, np.uint8)


@pytest.fixture
def spill_dir() -> Iterator[Path]:
    """Give a folder for the files of spilled objects; prove that it ends empty."""
    with tempfile.TemporaryDirectory(prefix="shmstore-test-") as name:
        path = Path(name) / "spilled"
        yield path
        left = sorted(str(found) for found in path.rglob("*")) if path.exists() else []
        assert left == [], f"files of spilled objects are left: {left}"


@pytest.fixture
def spilling(spill_dir: Path, make_store: MakeStore) -> MakeSpilling:
    """Give a function that makes stores of 1 MiB which spill."""

    def make(**options: Any) -> Store:
        options = {"capacity": "1MiB", "max_objects": 5000, **options}
        store: Store = make_store(on_full="spill", spill_dir=spill_dir, **options)
        return store

    return make


def files(spill_dir: Path) -> list[Path]:
    """Return the files of spilled objects."""
    return sorted(path for path in spill_dir.rglob("*") if path.is_file())


def push_out(store: Store, *, count: int = 16) -> list[Any]:
    """Put so many blocks that what is older leaves memory; return their references."""
    return [store.put(block(number)) for number in range(count)]
