"""What does a shell need to complete commands, options and names of stores: `completion`."""

from __future__ import annotations

import argparse
from typing import Final

from shmstore.cli._output import Output
from shmstore.cli._parser import COMMANDS, parser

_BASH: Final = """\
_shmstore() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    case "$command" in
{cases}
    esac
    if [ "${{word#-}}" = "$word" ] && [ "$COMP_CWORD" -eq 2 ]; then
        case " {takers} " in
            *" $command "*) COMPREPLY+=($(compgen -W "$({names})" -- "$word")) ;;
        esac
    fi
}}
complete -o default -F _shmstore shmstore
"""
_NAMES: Final = "shmstore ls --plain 2>/dev/null | awk 'NR > 1 {print $1}'"
_ZSH: Final = "autoload -Uz bashcompinit && bashcompinit\n"


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Print a script for a shell."""
    if arguments.shell == "fish":
        output.lines(_fish())
    else:
        lead = _ZSH if arguments.shell == "zsh" else ""
        output.lines([lead + _bash()])
    return 0


def _bash() -> str:
    cases = "\n".join(
        f'        {name}) COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$word")) ;;'
        for name, options in _options().items()
    )
    commands, takers = " ".join(c.name for c in COMMANDS), " ".join(_takers())
    return _BASH.format(commands=commands, cases=cases, takers=takers, names=_NAMES)


def _fish() -> list[str]:
    lines = ["complete -c shmstore -f"]
    for command in COMMANDS:
        about = command.about.replace("'", "")
        only = "-n __fish_use_subcommand"
        lines.append(f"complete -c shmstore {only} -a {command.name} -d '{about}'")
    seen = "-n '__fish_seen_subcommand_from {}'"
    for name, options in _options().items():
        long = [option.removeprefix("--") for option in options if option.startswith("--")]
        lines += [f"complete -c shmstore {seen.format(name)} -l {option}" for option in long]
    takers = seen.format(" ".join(_takers()))
    names = _NAMES.replace("'", '"').replace("$1", "\\$1")
    return [*lines, f"complete -c shmstore {takers} -a '({names})'"]


def _takers() -> list[str]:
    """Return the commands whose first argument is a store."""
    return [name for name, one in _parsers().items() if _first(one).startswith("store")]


def _first(one: argparse.ArgumentParser) -> str:
    places = [action.dest for action in _actions(one) if not action.option_strings]
    return places[0] if places else ""


def _options() -> dict[str, list[str]]:
    """Return the options of each command."""
    return {
        name: [option for action in _actions(one) for option in action.option_strings]
        for name, one in _parsers().items()
    }


def _actions(one: argparse.ArgumentParser) -> list[argparse.Action]:
    return list(one._actions)  # noqa: SLF001 - argparse has no other way to ask


def _parsers() -> dict[str, argparse.ArgumentParser]:
    [commands] = [a for a in _actions(parser()) if isinstance(a.choices, dict)]
    found: dict[str, argparse.ArgumentParser] = commands.choices  # type: ignore[assignment]
    return found
