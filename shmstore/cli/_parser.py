"""Which commands are there, what does each take, and how is it explained?

The commands themselves are imported when they are called: a command that lists stores has no need
of what draws pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import shmstore
from shmstore.cli import _arguments as take

Parser = argparse.ArgumentParser

EXIT_CODES = """\
exit codes: 0 all is well; 1 something is wrong, or the command failed; 2 the command line, or a
file on it, cannot be used; 130 interrupted; 141 nobody read the output any more."""

_ABOUT = """\
Looks into stores of objects in shared memory, and moves files in and out of them.

STORE is the name of a store, or the path of its folder. KEY is the key of an object, or an id such
as @3.17, as `shmstore objects` lists them. Commands that only look change nothing, not even in a
store whose processes are all dead."""

_EXAMPLES = """\
start here:
  shmstore demo                    see it work, on real files
  shmstore ls                      which stores there are
  shmstore info training           one store
  shmstore objects training        what is in it, the largest first
  shmstore info training --why     why it is full, and what helps
  shmstore top training            watch it live
  shmstore doctor                  is this machine set up well?
"""


class Command(NamedTuple):
    """A command: which function of which module it is, what is said of it, what it takes."""

    name: str
    place: str
    about: str
    examples: str
    takes: Callable[[Parser], None]


COMMANDS = (
    Command(
        "ls",
        "_looking.ls",
        "list the stores",
        "shmstore ls\nshmstore ls 'train*' --json | jq '.[].used'",
        take.ls,
    ),
    Command(
        "info",
        "_looking.info",
        "tell what is known of a store, and why it is full",
        "shmstore info training\nshmstore info training --why\nshmstore info training --why 2GiB",
        take.info,
    ),
    Command(
        "objects",
        "_looking.objects",
        "list objects, sorted and filtered",
        "shmstore objects training\nshmstore objects training 'epoch-*' --sort age --reverse\n"
        "shmstore objects training --type DataFrame --min-size 10MiB --limit 0\n"
        "shmstore objects training --older-than 2h --json",
        take.objects,
    ),
    Command(
        "show",
        "_showing.show",
        "show one object: header, frames, a preview of its value",
        "shmstore show training labels\nshmstore show training @3.17\n"
        "shmstore show training model --unsafe-pickle",
        take.show,
    ),
    Command(
        "get",
        "_moving.get",
        "write an object to a file, or to the standard output",
        "shmstore get training labels labels.npy\nshmstore get training table out.parquet\n"
        "shmstore get training settings\nshmstore get training blob - --as raw | sha256sum",
        take.get,
    ),
    Command(
        "put",
        "_moving.put",
        "put a file into a store as an object",
        "shmstore create training --capacity 2GiB\nshmstore put training labels labels.npy\n"
        "shmstore put training table data.csv --ttl 1h\n"
        "echo '{\"lr\": 0.1}' | shmstore put training settings - --as json",
        take.put,
    ),
    Command(
        "rm",
        "_moving.rm",
        "delete objects",
        "shmstore rm training labels @3.17\nshmstore rm training --match 'epoch-*' --dry-run",
        take.rm,
    ),
    Command(
        "pins",
        "_looking.pins",
        "list who looks at what",
        "shmstore pins training\nshmstore pins training labels",
        take.pins,
    ),
    Command(
        "clients",
        "_looking.clients",
        "list the attached processes",
        "shmstore clients training",
        take.only_store,
    ),
    Command(
        "map",
        "_mapping.run",
        "draw the segment: used, free, looked at, by size and age",
        "shmstore map training\nshmstore map training -o training.svg",
        take.map_,
    ),
    Command(
        "top",
        "_top.run",
        "watch a store live",
        "shmstore top training\nshmstore top training --interval 0.5 --sort age\n"
        "shmstore top training --count 10 --json",
        take.top,
    ),
    Command(
        "check",
        "_keeping.check",
        "prove every invariant of a store; of all stores when none is given",
        "shmstore check training\nshmstore check --deep",
        take.check,
    ),
    Command(
        "recover",
        "_keeping.recover",
        "undo what dead processes left, rebuild tables, give up damaged objects",
        "shmstore recover training",
        take.only_store,
    ),
    Command(
        "prune",
        "_keeping.prune",
        "remove the stores whose processes have all died",
        "shmstore prune --dry-run\nshmstore prune",
        take.prune,
    ),
    Command(
        "create",
        "_keeping.create",
        "make a store that stays until it is removed",
        "shmstore create training --capacity 8GiB\nshmstore create cache --on-full evict",
        take.create,
    ),
    Command(
        "rm-store",
        "_keeping.rm_store",
        "remove stores, with all that is in them",
        "shmstore rm-store training\nshmstore rm-store broken --force",
        take.rm_store,
    ),
    Command(
        "doctor",
        "_doctor.run",
        "look whether this machine is set up well; each finding has its remedy",
        "shmstore doctor\nshmstore doctor --json",
        take.nothing,
    ),
    Command(
        "bench",
        "_bench.run",
        "measure puts and gets on this machine, in about a minute",
        "shmstore bench\nshmstore bench --quick",
        take.bench,
    ),
    Command(
        "demo",
        "_demonstrating.run",
        "share real data between processes, through a store and through pickles",
        "shmstore demo\nshmstore demo data.csv --workers 8",
        take.demo,
    ),
    Command(
        "completion",
        "_completion.run",
        "print what completes these commands in a shell",
        'eval "$(shmstore completion bash)"\nshmstore completion zsh > ~/.zfunc/_shmstore',
        take.completion,
    ),
)


class _Intermixed(Parser):
    """Takes options before, between and after the places; argparse by itself does not."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options first, then places."""
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


def parser() -> Parser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="shmstore",
        description=_ABOUT,
        epilog=f"{_EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"shmstore {shmstore.__version__}")
    commands = top.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Intermixed
    )
    for command in COMMANDS:
        _add(commands, command)
    return top


def _add(commands: Any, command: Command) -> None:
    examples = "\n".join(f"  {line}" for line in command.examples.splitlines())
    one = commands.add_parser(
        command.name,
        help=command.about,
        description=f"{command.about[0].upper()}{command.about[1:]}.",
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.takes(one)
    one.set_defaults(place=command.place)
