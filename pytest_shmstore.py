"""The fixtures that pytest finds when shmstore is installed.

pytest imports this file at each start, in projects that never use a store too. So it stands beside
the package, and imports nothing of it before a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from shmstore import Store


@pytest.fixture
def shmstore_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give an empty folder for stores, which this test and its processes use ($SHMSTORE_ROOT)."""
    from shmstore.testing import temporary_root  # noqa: PLC0415 - see above

    with temporary_root() as root:
        monkeypatch.setenv("SHMSTORE_ROOT", str(root))
        yield root


@pytest.fixture
def store_factory(shmstore_root: Path) -> Iterator[Callable[..., Store]]:
    """Give a function that creates stores, as `Store.create`; they are destroyed with the test."""
    from shmstore import Store  # noqa: PLC0415 - see above
    from shmstore.testing import DEFAULT_CAPACITY  # noqa: PLC0415 - see above

    made: list[Store] = []

    def create(name: str | None = None, **options: Any) -> Store:
        options = {"root": shmstore_root, "capacity": DEFAULT_CAPACITY, **options}
        made.append(Store.create(name, **options))
        return made[-1]

    yield create
    for store in made:
        if not store.closed:
            store.destroy()


@pytest.fixture
def store(store_factory: Callable[..., Store]) -> Store:
    """Give a store of 16 MiB that only this test knows."""
    return store_factory()


@pytest.fixture
def shmstore_no_leaks(shmstore_root: Path) -> Iterator[None]:
    """Fail if the test leaves views, stores, dead clients, descriptors or threads behind."""
    from shmstore.testing import assert_no_leaks  # noqa: PLC0415 - see above

    with assert_no_leaks(root=shmstore_root):
        yield
