"""Which command did the user give, and how does it end?

Exit codes: 0 all went well, 1 the command failed, 2 the command line or a path on it is wrong,
130 interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import shmstore
from shmstore.cli._errors import CommandError

_MAX_WORKERS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except shmstore.ShmStoreError as error:
        return _fail(str(error), 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmstore", description="A store of Python objects in shared memory."
    )
    parser.add_argument("--version", action="version", version=f"shmstore {shmstore.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "share real data between processes, through a store and through pickles"
    demo = commands.add_parser("demo", help=what, description=what.capitalize() + ".")
    demo.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help="a file or folder of text, .npy or .csv (default: Python's standard library)",
    )
    demo.add_argument(
        "--workers", type=_worker_count, default=4, metavar="N", help="processes (default: 4)"
    )
    demo.set_defaults(run=_demo)


def _worker_count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MAX_WORKERS}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> None:
    try:
        from shmstore.cli import demo  # noqa: PLC0415 - rich is an extra, and slow to import
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise CommandError("this command needs rich: pip install 'shmstore[cli]'") from error
    demo.run(arguments.path, arguments.workers)


def _fail(message: str, code: int) -> int:
    print(f"shmstore: {message}", file=sys.stderr)  # noqa: T201 - this is a command line
    return code
