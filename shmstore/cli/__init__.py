"""Which command did the user give, and how does it end?

Exit codes: 0 all is well; 1 something is wrong, or the command failed; 2 the command line, or a
file on it, cannot be used; 130 interrupted from the keyboard; 141 nobody read the output any more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import shmstore
from shmstore.cli._errors import CommandError, UsageError
from shmstore.cli._output import Output
from shmstore.cli._parser import parser


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
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        if not given:
            parser().print_help(sys.stderr)
            return 2
        code = _run(parser().parse_args(given))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return code


def _run(arguments: argparse.Namespace) -> int:
    module, _, function = arguments.place.partition(".")
    try:
        _check_group(vars(arguments).get("group"))
        run = getattr(import_module(f"{__name__}.{module}"), function)
        return int(run(arguments, _output_of(arguments)))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except shmstore.ShmStoreError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)


def _check_group(group: str | int | None) -> None:
    try:
        shmstore.Options(group=group)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _output_of(arguments: argparse.Namespace) -> Output:
    chosen = vars(arguments)
    return Output(
        as_json=chosen.get("json", False),
        plain=chosen.get("plain", False),
        exact=chosen.get("bytes", False),
    )


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"shmstore: {line}", file=sys.stderr)  # noqa: T201 - this is a command line
    return code
