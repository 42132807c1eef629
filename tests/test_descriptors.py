"""An open file is closed once, whatever happens."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import rooms

import shmstore
from shmstore._memory.descriptors import CLOSED, Descriptor, open_descriptor

SOURCES = Path(shmstore.__file__).parent


@pytest.fixture
def opener(tmp_path: Path) -> Callable[[], Descriptor]:
    """Give a function that opens a file."""
    path = tmp_path / "file"
    path.touch()
    return lambda: open_descriptor(path, os.O_RDONLY | os.O_CLOEXEC)


def test_descriptor_serves_as_a_number(opener: Callable[[], Descriptor], tmp_path: Path) -> None:
    """As what calls of the system take, and as what folders are opened by."""
    with opener() as fd, open_descriptor(tmp_path, os.O_RDONLY) as folder_fd:
        assert os.fstat(fd).st_ino == (tmp_path / "file").stat().st_ino
        open_descriptor("file", os.O_RDONLY, dir_fd=folder_fd).close()


def test_descriptor_is_closed_once(opener: Callable[[], Descriptor]) -> None:
    """The second time its number may be that of another file."""
    fd = opener()
    fd.close()
    other = opener()
    assert other == fd
    fd.close()
    del fd
    os.fstat(other)
    other.close()
    CLOSED.close()


def test_descriptor_that_nobody_refers_to_is_closed(opener: Callable[[], Descriptor]) -> None:
    """It cannot be forgotten."""
    before = rooms.descriptors()
    fd = opener()
    assert rooms.descriptors() != before
    del fd
    assert rooms.descriptors() == before


def test_file_that_cannot_be_opened_raises_as_usual(tmp_path: Path) -> None:
    """The error is that of the system."""
    with pytest.raises(FileNotFoundError):
        open_descriptor(tmp_path / "missing", os.O_RDONLY)


def test_signal_handler_that_raises_at_any_point_leaves_nothing_open(
    opener: Callable[[], Descriptor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever CPython may run it: no point lies between the open and the object."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what a finalizer raises
    before = rooms.descriptors()
    points = 0
    for number in range(1, 100):
        left = number

        def strike(frame: FrameType, event: str, _: Any) -> None:
            nonlocal left
            if event in {"call", "c_return"} and "descriptors.py" in frame.f_code.co_filename:
                left -= 1
                if not left:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        sys.setprofile(strike)
        try:
            with opener():
                pass
        except KeyboardInterrupt:
            points += 1
        finally:
            sys.setprofile(None)
        assert rooms.descriptors() == before
        if left > 0:
            break
    assert points > 3


def test_files_are_opened_and_closed_in_one_place() -> None:
    """A number that os.open has returned can be lost, and os.close may come twice."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        if "cli" not in path.parts and path.name != "descriptors.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"os\.(open|close|dup|dup2|pipe)\b", line)
    ]
    assert found == []
