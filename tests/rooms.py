"""One room of a store at a time: what the tests of single rooms share."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from shmstore._memory import layout as L
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.index import Identity, Index, create_index

PAGE = 4096
SHARED_MEMORY = "/dev/shm" if sys.platform == "linux" else None


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """Give an empty folder of mode 0700 in shared memory, and remove it with what is in it."""
    path = Path(tempfile.mkdtemp(dir=SHARED_MEMORY, prefix="shmstore-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def base() -> Iterator[Path]:
    """Give an empty folder of our own; at the end no descriptor may be left open."""
    with memory_folder() as path:
        before = descriptors()
        yield path
        assert descriptors() == before


@pytest.fixture
def base_fd(base: Path) -> Iterator[int]:
    """Give a descriptor of the folder `base`."""
    fd = os.open(base, os.O_RDONLY)
    yield fd
    os.close(fd)


def _succeeds(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def small_file_system(nbytes: int, inodes: int = 0) -> Iterator[Path]:
    """Give an empty tmpfs of that size, with so many inodes at most (0: as many as there are).

    Skips the test where none may be mounted.
    """
    path = Path(tempfile.mkdtemp(prefix="shmstore-test-"))
    options = f"size={nbytes},mode=0700" + f",nr_inodes={inodes}" * bool(inodes)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        if not _succeeds(command):
            pytest.skip("this test fills a tmpfs of its own, and this user may not mount one")
        try:
            yield path
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
    finally:
        path.rmdir()


def fill_up(folder: Path) -> Path:
    """Write a file until its file system is full; removing the file gives the room back."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(PAGE)):
            pass
    return ballast


def seal(session: Any, slot: int) -> None:
    """Make the checksum of a slot agree with what was forged in it, as an attacker would."""
    words, slots = session.index.words, session.slots
    record = slots.read(slot)
    base = word_of(slot, 0, session.index)
    start = base * L.WORD
    described = bytes(session.index.memory[start + L.S_OWNER * L.WORD : start + L.INLINE_OFFSET])
    if record.kind & L.KIND_HEADER_IN_EXTENT:
        first = record.extent + record.header_offset
        beside = session.segment.readonly[first : first + record.header_nbytes]
        nbytes = record.data_nbytes if record.kind & L.KIND_INLINE else 0
    else:
        beside, nbytes = b"", record.header_nbytes
        nbytes += record.data_nbytes if record.kind & L.KIND_INLINE else 0
    inline_at = start + L.INLINE_OFFSET
    inline = bytes(session.index.memory[inline_at : inline_at + nbytes])
    first = L.first_crc(session.index.identity.uuid, slot, record.word, record.kind)
    crc = zlib.crc32(described + beside + inline, first)
    words[base + L.S_KIND] = record.kind | crc << L.CRC_SHIFT


def identity(
    *, capacity: int = 1 << 20, max_objects: int = 64, max_clients: int = 8, flags: int = 0
) -> Identity:
    """Return an identity with numbers that are known beforehand."""
    known = 0x00112233_4455_6677_8899_AABBCCDDEEFF
    return Identity(known, capacity, max_objects, max_clients, flags, 1_700_000_000, 4242)


@contextlib.contextmanager
def open_index(
    folder: Path, made_from: Identity | None = None, *, backed: int = 0
) -> Iterator[Index]:
    """Give the index of a folder; with `made_from` it is made anew."""
    flags = os.O_RDWR | os.O_CLOEXEC
    if made_from is not None:
        flags |= os.O_CREAT | os.O_TRUNC
    fd = open_descriptor(folder / "index", flags)
    try:
        if made_from is not None:
            create_index(fd, made_from, backed=backed)
        index = Index(fd, str(folder / "index"))
    except BaseException:
        fd.close()
        raise
    try:
        yield index
    finally:
        index.close()


@contextlib.contextmanager
def an_index(made_from: Identity | None = None, *, backed: int = 0) -> Iterator[Index]:
    """Give a new index in a folder of its own."""
    with (
        memory_folder() as folder,
        open_index(folder, made_from or identity(), backed=backed) as index,
    ):
        yield index


def word_of(slot: int, field: int, index: Index) -> int:
    """Return where a field of a slot lies among the words of the index."""
    return index.geometry.slots + slot * L.SLOT_WORDS + field


def descriptors() -> dict[int, str]:
    """Return the open descriptors of this process and what each of them is."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(path.name)] = str(path.readlink())
    return found


def run_python(source: str, *arguments: object, **variables: str) -> str:
    """Run a script in a process of its own, where warnings are errors; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **variables},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class Peer:
    """Another process that runs a script; both sides talk in lines.

    The script prints a line when it has come to where the test wants it, and reads a line when it
    should go on. At the end of the ``with`` block it is killed if it still runs.
    """

    def __init__(self, source: str, *arguments: object) -> None:
        command = [sys.executable, "-W", "error", "-c", source, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def hear(self) -> str:
        """Return the next line that the script prints, "" when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line: str = "go") -> None:
        """Send a line to the script."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        """Return the exit status of the script, once it has ended."""
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(timeout=60)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
