"""How do two processes tell each other that something is there? Two named pipes, one each way."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

MOST = 1 << 16
MOMENT = struct.Struct("<q")  # a time by `perf_counter_ns`


class Line:
    """One end; whoever sends waits for an answer before it sends again."""

    def __init__(self, folder: Path, *, owner: bool) -> None:
        there, back = (_opened(folder / name) for name in ("there", "back"))
        self.out, self.into = (there, back) if owner else (back, there)

    def send(self, message: bytes) -> None:
        """Send some bytes, fewer than a pipe holds."""
        os.write(self.out, message)

    def receive(self) -> bytes:
        """Wait for what the other end sent."""
        return os.read(self.into, MOST)

    def close(self) -> None:
        """Close both pipes."""
        os.close(self.out)
        os.close(self.into)


def _opened(path: Path) -> int:
    with suppress(FileExistsError):
        os.mkfifo(path)
    return os.open(path, os.O_RDWR)  # both: opening waits for nobody
