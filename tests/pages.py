"""Which code do the pages of the documentation show, and does it work as it is shown?

The Python blocks of a page are one program, from top to bottom. A comment in the line before a
block says otherwise; what it says is separated by commas::

    <!-- run: alone -->             a program of its own
    <!-- run: needs torch joblib -->  left out where one of these is not installed
    <!-- run: file worker.py -->    a file, for the blocks of shell
    <!-- run: shell -->             a block of shell, run by bash in the folder of these files
    <!-- run: terminal 1 -->        typed into the Python prompt of the first terminal, in the order
                                    of the page; the terminals stay open until the page ends
    <!-- run: terminal 1, waits -->  so is this, and the next one is typed without its end

Everything runs in a folder of its own, with a root of its own for stores, which has to be empty in
the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parent.parent
LONGEST_S = 120

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- run: (?P<how>[^\n]+?) -->\n(?P=indent))?"
    r"```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)

# A terminal: it runs what comes, line by line as JSON, and answers when that is done.
_PROMPT = """
import json, sys
names = {"__name__": "__main__"}
for line in sys.stdin:
    exec(compile(json.loads(line), "<typed>", "exec"), names)
    print("\\0", flush=True)
"""


class Block(NamedTuple):
    """A block of code, and how it is to be run."""

    language: str
    code: str
    how: dict[str, str]

    @property
    def runs_here(self) -> bool:
        """Whether all is installed that it needs."""
        return all(installed(name) for name in self.how.get("needs", "").split())


def installed(name: str) -> bool:
    """Return whether a module can be imported here."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name) is not None
    return False


def read_blocks(page: str) -> list[Block]:
    """Return the blocks of a page."""
    return [
        Block(
            found["language"],
            textwrap.dedent(found["code"]),
            dict(_name_and_value(word) for word in (found["how"] or "").split(",") if word),
        )
        for found in _BLOCK.finditer(page)
    ]


def _name_and_value(word: str) -> tuple[str, str]:
    name, _, value = word.strip().partition(" ")
    return name, value


def run_page(page: str, folder: Path) -> str:
    """Run the code of a page; return what its Python programs have printed."""
    blocks = [block for block in read_blocks(page) if block.runs_here]
    pieces = [block.code for block in blocks if block.language == "python" and not _is_apart(block)]
    programs = ["\n".join(pieces)] if pieces else []
    programs += [block.code for block in blocks if "alone" in block.how]
    for block in blocks:
        if "file" in block.how:
            (folder / block.how["file"]).write_text(block.code, encoding="utf-8")
    with own_root() as root:
        said = [run_program(program, folder, root) for program in programs]
        scripts = [block.code for block in blocks if "shell" in block.how]
        said += [_run(["bash", "-eu", "-c", script], folder, root) for script in scripts]
        _run_terminals([block for block in blocks if "terminal" in block.how], folder, root)
    return "".join(said)


def _is_apart(block: Block) -> bool:
    return bool({"alone", "file", "terminal"} & block.how.keys())


@contextlib.contextmanager
def own_root() -> Iterator[Path]:
    """Give a root that nobody else uses; there must be no store in it in the end."""
    above = Path(tempfile.mkdtemp(prefix="shmstore-page-", dir="/dev/shm"))
    try:
        yield above / "stores"
        left = sorted(str(path) for path in above.rglob("index"))
        assert left == [], "stores are left over"
    finally:
        shutil.rmtree(above)


def run_program(code: str, folder: Path, root: Path) -> str:
    """Run a program; nothing may be printed as an error."""
    script = folder / "pasted.py"
    script.write_text(code, encoding="utf-8")
    return _run([sys.executable, str(script)], folder, root)


def _environment(root: Path) -> dict[str, str]:
    tools = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(TOP),
        "SHMSTORE_ROOT": str(root),
    }


def _run(command: list[str], folder: Path, root: Path) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        cwd=folder,
        env=_environment(root),
        check=False,
    )
    errors = "" if command[0] == "bash" and done.returncode == 0 else done.stderr
    assert (done.returncode, errors) == (0, ""), done.stdout
    return done.stdout


# --- several terminals ---------------------------------------------------------------------------


def _run_terminals(blocks: list[Block], folder: Path, root: Path) -> None:
    """Type blocks into as many prompts as they name."""
    numbers = sorted({block.how["terminal"] for block in blocks})
    with contextlib.ExitStack() as opened:
        terminals = {number: opened.enter_context(_terminal(folder, root)) for number in numbers}
        waiting = dict.fromkeys(numbers, False)
        for block in blocks:
            number = block.how["terminal"]
            if waiting[number]:
                _hear(terminals[number])
            print(json.dumps(block.code), file=terminals[number].stdin, flush=True)
            waiting[number] = "waits" in block.how
            if not waiting[number]:
                _hear(terminals[number])
        for number in numbers:
            if waiting[number]:
                _hear(terminals[number])


def _hear(terminal: subprocess.Popen[str]) -> None:
    """Wait until a terminal is done with what was typed."""
    while line := terminal.stdout.readline():  # what it prints comes before
        if line == "\0\n":
            return
    raise AssertionError(terminal.stderr.read())


@contextlib.contextmanager
def _terminal(folder: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _PROMPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=_environment(root),
    ) as terminal:
        try:
            yield terminal
            terminal.stdin.close()
            assert (terminal.wait(LONGEST_S), terminal.stderr.read()) == (0, "")
        finally:
            terminal.kill()
