"""Record what the commands of docs/reference/cli.md print: python tests/record_cli.py.

Each block that begins with ``$ shmstore`` is run on a store that three processes work with, and
what follows these lines is replaced by what was printed. Pictures show what a terminal shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "reference" / "cli.md"
IMAGES = DOCS / "images"
COLUMNS, LINES = 100, 30
WAIT_S = 60

PICTURES = {
    "cli-top.svg": ("top training --interval 1", 3.5),
    "cli-map.svg": ("map training", None),
    "cli-objects.svg": ("objects training --limit 8", None),
    "cli-doctor.svg": ("doctor", None),
}

OWNER = """
import numpy as np, pandas as pd, shmstore, sys, time
noise = np.random.default_rng(1)
with shmstore.Store.create("training", capacity="256MiB") as store:
    store["labels"] = noise.integers(0, 10, 500_000)
    store["features"] = noise.random((40_000, 64), "f4")
    store["settings"] = {"rate": 0.1, "layers": [128, 64, 10], "seed": 7}
    store["scores"] = pd.DataFrame({"step": range(1000), "loss": noise.random(1000)})
    print("ready", flush=True)
    for step in range(10_000):
        store[f"batch-{step % 24}"] = noise.random((noise.integers(500, 5000), 64), "f4")
        if step % 50 == 0:
            store[f"checkpoint-{step}"] = noise.random((300_000, 8), "f4")
            store.discard(f"checkpoint-{step - 150}")
        time.sleep(0.02)
"""
LOADER = """
import shmstore, time
store = shmstore.Store.attach("training")
kept = [store["features"]]
for step in range(10_000):
    batch = store.get(f"batch-{step % 24}", None)
    for _ in range(30):
        labels = store["labels"]
    kept = kept[:1] + [batch]
    time.sleep(0.01)
"""
VIEWER = """
import shmstore, time
store = shmstore.Store.attach("training", readonly=True)
views = [store["scores"], store["features"]]
old = [store.get(f"batch-{number}", None) for number in range(5)]
time.sleep(1000)
"""


@contextlib.contextmanager
def scene() -> Iterator[None]:
    """Let three processes work with a store, and one have died in another."""
    folder = tempfile.mkdtemp(dir="/dev/shm", prefix="training-")
    os.environ["SHMSTORE_ROOT"] = f"{folder}/shmstore"
    processes = []
    try:
        for name, code in (("train", OWNER), ("load", LOADER), ("view", VIEWER)):
            script = Path(folder) / f"{name}.py"
            script.write_text(code)
            command = [sys.executable, script.name]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder)
            processes.append(process)
            if code == OWNER:
                assert process.stdout is not None
                process.stdout.readline()
        lost = "import os, shmstore; s = shmstore.Store.create('lost', capacity='8MiB'); s['a'] = 1"
        subprocess.run([sys.executable, "-c", f"{lost}; os._exit(0)"], check=True)
        time.sleep(6)
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=WAIT_S)
        shutil.rmtree(folder)


def run(line: str, folder: Path) -> str:
    """Run a line of a shell in which `shmstore` is this package; return what it printed."""
    tool = folder / "shmstore"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m shmstore "$@"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )
    text = done.stdout + done.stderr
    return text.replace(str(Path(os.environ["SHMSTORE_ROOT"])), "/dev/shm/shmstore-1000")


def record_page() -> None:
    """Replace what stands below the commands of the page."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def block(match: re.Match[str]) -> str:
            out = []
            for line in match[1].splitlines():
                if line.startswith("$ "):
                    found = run(line.removeprefix("$ "), place).rstrip()
                    out += [line, *([found] if found else [])]
            return "```console\n" + "\n".join(out) + "\n```"

        PAGE.write_text(re.sub(r"```console\n(.*?)\n```", block, PAGE.read_text(), flags=re.DOTALL))


def seen_on_a_terminal(arguments: str, seconds: float | None) -> str:
    """Return what a command has drawn on a terminal, after some seconds or at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "shmstore", *shlex.split(arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment |= {"COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen, begun = b"", time.monotonic()
    with contextlib.suppress(OSError):
        while True:
            if seconds is not None and time.monotonic() - begun > seconds:
                os.write(ours, b"q")
                seconds = None
            ready, _, _ = select.select([ours], [], [], 0.1)
            if ready:
                seen += os.read(ours, 1 << 16)
    process.wait(timeout=WAIT_S)
    os.close(ours)
    text = re.sub("\r+\n", "\n", seen.decode(errors="replace"))
    last = text.rpartition("\x1b[H")[2].partition("\x1b[J")[0]
    return re.sub(r"\x1b\[\??[0-9;]*[A-LN-Za-ln-z]", "", last)


def record_pictures() -> None:
    """Draw what terminals show."""
    for name, (arguments, seconds) in PICTURES.items():
        text = seen_on_a_terminal(arguments, seconds)
        text = text.replace(os.environ["SHMSTORE_ROOT"], "/dev/shm/shmstore-1000")
        console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        console.print(Text.from_ansi(text))
        picture = console.export_svg(
            title=f"shmstore {arguments}", unique_id=name.partition(".")[0]
        )
        (IMAGES / name).write_text(_without_fonts(picture), encoding="utf-8")
    command = [sys.executable, "-m", "shmstore", "map", "training", "-o"]
    segment = IMAGES / "cli-segment.svg"
    subprocess.run([*command, str(segment)], check=True, capture_output=True)
    picture = segment.read_text(encoding="utf-8")
    segment.write_text(picture.replace(os.environ["SHMSTORE_ROOT"], "/dev/shm/shmstore-1000"))


def _without_fonts(picture: str) -> str:
    """Take the fonts that would be loaded from elsewhere out of a picture."""
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code", "DejaVu Sans Mono")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


if __name__ == "__main__":
    with scene():
        record_pictures()
        record_page()
