"""Files on tmpfs, one for each object."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.peers import Peer


class Files(Peer):
    """A folder; what is in it is named by whoever puts it."""

    copies = 2.0

    def __init__(self, folder: Path) -> None:
        self.address = folder
        self._numbers = itertools.count()

    @classmethod
    def create(cls, folder: Path, nbytes: int) -> Self:
        """Take the folder."""
        del nbytes
        return cls(folder)

    @classmethod
    def attach(cls, address: Path) -> Self:
        """Take the folder."""
        return cls(address)

    def delete(self, handle: Path) -> None:
        """Remove the file."""
        handle.unlink()

    def _new(self, suffix: str) -> Path:
        return self.address / f"{id(self)}-{next(self._numbers)}{suffix}"


class NumpySave(Files):
    """`np.save` and `np.load` with a memory map; what is no array as a pickle."""

    label = "np.save, mmap"

    def put(self, value: object, key: str) -> Path:
        """Write a file."""
        del key
        if isinstance(value, np.ndarray):
            path = self._new(".npy")
            np.save(path, value)
        else:
            path = self._new(".pickle")
            path.write_bytes(pickle.dumps(value, 5))
        return path

    def get(self, handle: Path) -> Any:
        """Map the file, or unpickle it."""
        if handle.suffix == ".npy":
            return np.load(handle, mmap_mode="r")
        return pickle.loads(handle.read_bytes())


class JoblibMemmap(Files):
    """`joblib.dump` and `joblib.load` with a memory map."""

    label = "joblib, mmap"
    package = "joblib"
    crowds = False
    requires = ("joblib",)

    def put(self, value: object, key: str) -> Path:
        """Write a file."""
        import joblib

        del key
        path = self._new(".joblib")
        joblib.dump(value, path)
        return path

    def get(self, handle: Path) -> Any:
        """Map the arrays of the file."""
        import joblib

        return joblib.load(handle, mmap_mode="r")


PEERS = [NumpySave, JoblibMemmap]
