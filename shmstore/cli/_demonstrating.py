"""How is the demo called, which needs rich?"""

from __future__ import annotations

import argparse
from pathlib import Path

from shmstore.cli._errors import CommandError
from shmstore.cli._output import Output


def run(arguments: argparse.Namespace, _: Output) -> int:
    """Run the demo."""
    try:
        from shmstore.cli import demo  # noqa: PLC0415 - rich is an extra, and slow to import
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise CommandError("this command needs rich: pip install 'shmstore[cli]'") from error
    demo.run(None if arguments.path is None else Path(arguments.path), arguments.workers)
    return 0
