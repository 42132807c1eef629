"""How is the demo called, which needs rich?"""

from __future__ import annotations

import argparse
from pathlib import Path

from shmstore.cli._errors import CommandError
from shmstore.cli._output import Output


def run(arguments: argparse.Namespace, _: Output) -> int:
    """Run the demo."""
    try:
        from shmstore.cli.demo import running  # noqa: PLC0415 - rich is an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise CommandError("this command needs rich: pip install 'shmstore[cli]'") from error
    running.run(None if arguments.path is None else Path(arguments.path), arguments.workers)
    return 0
