"""The command line in a test: in this process for what is written, in another for how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from shmstore import cli

WAIT_S = 60


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document that it wrote."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line but the first."""
        return [line.split() for line in self.out.splitlines()[1:]]


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Done:
        """Run one command."""
        self._capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = self._capsys.readouterr()
        return Done(code, out, err)


def command_line(*arguments: object) -> list[str]:
    """Return the command for a process of its own."""
    return [sys.executable, "-W", "error", "-m", "shmstore", *map(str, arguments)]


def run_command(*arguments: object, stdin: bytes = b"", **variables: str) -> Done:
    """Run one command in a process of its own."""
    done = subprocess.run(
        command_line(*arguments),
        input=stdin,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
        env={**os.environ, **variables},
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
