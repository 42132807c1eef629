"""A lock and an index by themselves: what the tests of the store lock share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import rooms

from shmstore._memory import layout as L
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.index import Index
from shmstore._sharing.lock import StoreLock, is_locked

# Two words of the superblock that serve as the thing that is changed: they must always be equal.
LEFT, RIGHT = 200, 201
COUNTER = 202

OTHER_PROCESS = """
import os, signal, sys, time
from shmstore._memory import layout as L
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.index import Index
from shmstore._sharing.lock import StoreLock

LEFT, RIGHT, COUNTER = 200, 201, 202
folder, mark = sys.argv[1], int(sys.argv[2])
index = Index(open_descriptor(folder + "/index", os.O_RDWR), folder)
words = index.words

def mend():
    words[RIGHT] = words[LEFT]

lock = StoreLock(open_descriptor(folder + "/lock", os.O_RDWR), words, 30.0, mend, str)
lock.mark = mark

def say(word):
    print(word, flush=True)
"""

HOLDING = f"""{OTHER_PROCESS}
def hold_it():
    words[LEFT] += 1
    say("inside")
    sys.stdin.readline()
    words[RIGHT] += 1
lock.run(hold_it)
say("outside")
"""

COUNTING = f"""{OTHER_PROCESS}
def count():
    assert words[LEFT] == words[RIGHT]
    words[LEFT] += 1
    value = words[COUNTER]
    time.sleep(0)
    words[COUNTER] = value + 1
    words[RIGHT] += 1
say("ready")
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    lock.run(count)
"""


class Place:
    """A lock file and an index in a folder, and what the lock called."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self.words = index.words
        self.mended = 0
        self.locks: list[StoreLock] = []

    def lock(self, *, mark: int = 1, timeout_s: float = 30.0) -> StoreLock:
        """Make a lock as a process of its own would have it."""
        fd = open_descriptor(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        lock = StoreLock(fd, self.words, timeout_s, self._mend, lambda row: f"client {row}")
        lock.mark = mark
        self.locks.append(lock)
        return lock

    def is_free(self) -> bool:
        """Return whether nobody holds the file."""
        fd = os.open(self.folder / "lock", os.O_RDWR)
        try:
            return not is_locked(fd)
        finally:
            os.close(fd)

    def begin_change(self) -> None:
        """Leave the two words different."""
        self.words[LEFT] = self.words[RIGHT] + 1

    def is_whole(self) -> bool:
        """Return whether no change is half done or marked as such."""
        return bool(self.words[LEFT] == self.words[RIGHT] and not self.words[L.W_DIRTY])

    def _mend(self) -> None:
        self.mended += 1
        self.words[RIGHT] = self.words[LEFT]


@pytest.fixture
def place() -> Iterator[Place]:
    """Give a place to lock."""
    with rooms.memory_folder() as folder, rooms.open_index(folder, rooms.identity()) as index:
        made = Place(folder, index)
        yield made
        for lock in made.locks:
            lock.close()
