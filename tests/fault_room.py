"""Objects that make room, in files and by going, for `faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from fault_operations import LARGE, PUBLISHED, Operation, make_store, operation, same
from fault_stores import CloseOwner

# A store of 2 MiB is nearly full with these.
MANY = {f"old-{i}": np.full(40_000, i) for i in range(5)}
# More than a store of 2 MiB takes, and more than that at once.
BATCH = {f"new-{i}": np.full(50_000, i) for i in range(7)}
HUGE = {"huge": np.arange(300_000)}


class Full(Operation):
    """Next to nothing is free."""

    on_full: ClassVar[str] = "evict"

    def prepare(self) -> None:
        """Fill it."""
        # The files of spilled objects lie beside the root, where `faults` looks for leaks too.
        files = {"spill_dir": self.spill_dir()} if self.on_full == "spill" else {}
        self.store = make_store(on_full=self.on_full, **files)
        self.store.update(MANY)

    def spill_dir(self) -> Path:
        """Return a folder of this round."""
        path = self.root.parent / "files"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def wrong_after_failure(self) -> Iterator[str]:
        """What others put may have gone for room, or to files; the rest is sound."""
        assert self.store is not None
        yield from map(str, self.store.check())
        yield from self.lost()

    def lost(self) -> Iterator[str]:
        """Tell what is lost."""
        assert self.store is not None
        for key, value in {**PUBLISHED, **MANY}.items():
            found = self.store.get(key, None)
            if not same(found, value) and (self.on_full == "spill" or found is not None):
                yield f"{key!r} is {found!r:.60}"


@operation("evict")
class Evict(Full):
    """A put takes the place of others."""

    undone = False

    def act(self) -> None:
        """Put."""
        assert self.store is not None
        self.store["new"] = LARGE

    def wrong(self) -> Iterator[str]:
        """The new one is there."""
        assert self.store is not None
        yield from map(str, self.store.check())
        if not same(self.store.get("new", None), LARGE):
            yield "not what was put"
        yield from self.lost()


@operation("spill")
class Spill(Evict):
    """A put sends others to files."""

    on_full = "spill"


@operation("restore")
class Restore(Full):
    """A get brings an object back from its file, while another one goes there."""

    on_full = "spill"
    undone = False

    def prepare(self) -> None:
        """Send some to files."""
        super().prepare()
        assert self.store is not None
        self.store["new"] = LARGE
        self.spilled = [info.key for info in self.store.objects() if info.spilled]
        assert self.spilled

    def act(self) -> None:
        """Get all."""
        assert self.store is not None
        for key in (*PUBLISHED, *MANY, "new"):
            self.got = self.store[key]
            self.got = None

    def wrong(self) -> Iterator[str]:
        """All are there."""
        assert self.store is not None
        yield from map(str, self.store.check())
        yield from self.lost()


@operation("put many into files")
class PutManyIntoFiles(Full):
    """A batch is larger than the store."""

    on_full = "spill"
    undone = False

    def act(self) -> None:
        """Put all."""
        assert self.store is not None
        self.store.update(BATCH)

    def wrong(self) -> Iterator[str]:
        """All are there."""
        assert self.store is not None
        yield from map(str, self.store.check())
        for key, value in BATCH.items():
            if not same(self.store.get(key, None), value):
                yield f"{key!r} is not what was put"
        yield from self.lost()


@operation("build in a file")
class BuildInFile(PutManyIntoFiles):
    """An array is larger than the store."""

    def act(self) -> None:
        """Build it."""
        assert self.store is not None
        [(key, value)] = HUGE.items()
        with self.store.allocate(value.shape, value.dtype, key=key) as array:
            array[:] = value

    def wrong(self) -> Iterator[str]:
        """It is there."""
        assert self.store is not None
        yield from map(str, self.store.check())
        [(key, value)] = HUGE.items()
        if not same(self.store.get(key, None), value):
            yield "not what was built"
        yield from self.lost()


@operation("trim")
class Trim(Operation):
    """Pages of deleted objects go back to the system."""

    def prepare(self) -> None:
        """Have such pages, in two places, and some that are reserved beyond the top."""
        self.store = make_store(prefault=True)
        for value in range(3):
            self.store[f"old-{value}"] = np.full(40_000, value)
        del self.store["old-0"], self.store["old-2"]

    def act(self) -> None:
        """Trim."""
        assert self.store is not None
        self.store.trim()

    def wrong(self) -> Iterator[str]:
        """Nothing that could go back is left, what others need is there."""
        assert self.store is not None
        yield from super().wrong()
        if not same(self.store.get("old-1", None), np.full(40_000, 1)):
            yield "what was between is not there"
        left = self.store.trim()
        self.store["new"] = LARGE
        if left or not same(self.store.get("new", None), LARGE):
            yield f"{left} bytes were left"


@operation("delete what was spilled")
class DeleteSpilled(Restore):
    """Its file goes."""

    def act(self) -> None:
        """Delete all."""
        assert self.store is not None
        self.store.clear()

    def wrong_after_failure(self) -> Iterator[str]:
        """It is sound."""
        assert self.store is not None
        yield from map(str, self.store.check())

    def wrong(self) -> Iterator[str]:
        """None is there."""
        assert self.store is not None
        yield from map(str, self.store.check())
        left = [path.name for path in self.spill_dir().rglob("*") if path.is_file()]
        if len(self.store) or left:
            yield f"left: {list(self.store)}, {left}"


@operation("destroy with files")
class DestroyWithFiles(CloseOwner, Restore):
    """They go too."""
