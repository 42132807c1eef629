"""The command line as a whole: help, exit codes, errors, what it needs and what it imports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Shell, command_line, run_command
from stores import RunPython

import shmstore
from shmstore import Store
from shmstore.cli import _output, _words
from shmstore.cli._parser import COMMANDS

NAMES = [command.name for command in COMMANDS]

# Commands that show something of a store that is there, and change nothing.
LOOKS = (
    ("ls",),
    ("info", "it"),
    ("info", "it", "--why"),
    ("objects", "it"),
    ("show", "it", "array"),
    ("pins", "it"),
    ("clients", "it"),
    ("map", "it"),
    ("top", "it", "--count", "1", "--interval", "0.05"),
    ("check", "it"),
    ("prune", "--dry-run"),
)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Give the command line."""
    return Shell(capsys)


@pytest.fixture
def it() -> Store:  # type: ignore[misc]
    """Give a store with an array and a dict."""
    with Store.create("it", capacity="4MiB") as store:
        store["array"], store["dict"] = np.arange(5000), {"a": 1}
        yield store


# --- help ----------------------------------------------------------------------------------------


def test_help_lists_every_command_and_the_exit_codes(shell: Shell) -> None:
    """Whoever calls it without knowing anything learns where to begin."""
    done = shell("--help")
    assert done.code == 0
    assert all(f"\n    {name}" in done.out for name in NAMES)
    assert "start here:" in done.out
    assert "exit codes: 0" in done.out


def test_nothing_at_all_gives_the_help(shell: Shell) -> None:
    """On the standard error: no command was given."""
    assert shell() == (2, "", shell("--help").out)


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_gives_examples_that_the_parser_takes(shell: Shell, name: str) -> None:
    """What is shown as an example is no error of usage."""
    from shmstore.cli import _parser

    done = shell(name, "--help")
    assert done.code == 0
    [command] = [command for command in COMMANDS if command.name == name]
    for line in command.examples.splitlines():
        assert f"  {line}\n" in done.out
        words = line.partition("|")[0] if line.startswith("shmstore") else ""
        if words:
            plain = words.partition(">")[0].replace("'", "").split()[1:]
            assert _parser.parser().parse_args(plain).place


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["info"],
        ["objects", "it", "--sort", "colour"],
        ["objects", "it", "--min-size", "much"],
        ["objects", "it", "--older-than", "long"],
        ["objects", "it", "--limit", "-1"],
        ["top", "--interval", "0"],
        ["demo", "--workers", "0"],
        ["info", "no such name!"],
        ["rm", "it"],
        ["top"],
    ],
)
def test_wrong_usage_ends_with_2(shell: Shell, arguments: list[str]) -> None:
    """Whatever is wrong with the command line itself."""
    Store.create("it", capacity="1MiB", persist=True).close()
    Store.create("other", capacity="1MiB", persist=True).close()
    done = shell(*arguments)
    for name in ("it", "other"):
        shmstore.remove(name)
    assert done.code == 2
    assert done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["ls", "info", "prune", "doctor", "bench"])
@pytest.mark.parametrize("group", ["no-such-group", str(2**40)])
def test_group_that_is_not_there_is_one_line(shell: Shell, name: str, group: str) -> None:
    """Whether or not the command has a store."""
    done = shell(name, *["it"] * (name == "info"), "--group", group)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("shmstore: group=")


# --- how it ends ---------------------------------------------------------------------------------


def test_missing_store_ends_with_1_and_names_those_that_are_there(shell: Shell, it: Store) -> None:
    """One line, with what to do."""
    done = shell("info", "nope")
    assert (done.code, done.out) == (1, "")
    assert done.err == "shmstore: there is no store 'nope' here (see --root). There are: it.\n"


@pytest.mark.parametrize("arguments", LOOKS)
def test_looking_changes_nothing_and_ends_with_0(
    shell: Shell, it: Store, arguments: tuple[str, ...]
) -> None:
    """Objects, views and clients are afterwards as they were."""
    before = it.stats(), len(it.clients())
    done = shell(*arguments)
    assert done.code == 0, done.err
    assert (it.stats(), len(it.clients())) == before
    assert it.check() == []


@pytest.mark.parametrize("arguments", [a for a in LOOKS if a[0] != "top"])
def test_json_is_one_document(shell: Shell, it: Store, arguments: tuple[str, ...]) -> None:
    """Of everything that shows something."""
    assert shell(*arguments, "--json").json is not None


@pytest.mark.parametrize("arguments", LOOKS)
def test_plain_output_has_no_escapes(shell: Shell, it: Store, arguments: tuple[str, ...]) -> None:
    """What is not a terminal gets neither colours nor frames, whatever keys contain."""
    it["evil\x1b[2J\nkey"] = {"\x1b[31m": 1}
    done = shell(*arguments)
    assert done.out or done.err
    assert "\x1b" not in done.out + done.err


def test_key_with_control_characters_is_shown_escaped(shell: Shell, it: Store) -> None:
    """And can be got by its id."""
    it["evil\x1b[2J"] = "text"
    [row] = [row for row in shell("objects", "it", "--json").json if row["type"] == "str"]
    assert row["key"] == "evil\x1b[2J"
    assert "evil\\x1b[2J" in shell("objects", "it").out
    assert shell("get", "it", row["id"]).out == "text"


def test_broken_pipe_is_silent(it: Store) -> None:
    """`| head` ends the command, which says nothing about it."""
    it.put_many({f"key-{at}": at for at in range(3000)})
    command = " ".join(command_line("objects", "it", "--limit", "0"))
    script = f"set -o pipefail; {command} | head -1"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout.startswith("ID ")


def test_interrupt_ends_with_130_and_one_line(it: Store) -> None:
    """Ctrl-C in a command that runs for ever."""
    command = command_line("top", "it", "--interval", "0.05")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as top:
        assert top.stdout is not None
        assert "PUT/S" in top.stdout.readline()
        top.send_signal(signal.SIGINT)
        _, errors = top.communicate(timeout=60)
    assert (top.returncode, errors) == (130, "shmstore: interrupted\n")
    assert len(it.clients()) == 1


def test_error_of_the_system_is_one_line(shell: Shell, it: Store, tmp_path: Path) -> None:
    """A file that cannot be written is no traceback."""
    done = shell("map", "it", "-o", tmp_path / "none" / "it.svg")
    assert done.code == 1
    assert done.err.startswith("shmstore: ")
    assert done.err.count("\n") == 1


# --- roots, terminals, what is installed ---------------------------------------------------------


def test_root_is_that_of_the_option_or_of_the_environment(
    shell: Shell, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option wins."""
    there = root / "there"
    with Store.create("far", capacity="1MiB", root=there):
        assert "far" not in shell("ls").out
        assert shell("ls", "--root", there).rows[0][0] == "far"
        assert shell("info", there / "far").code == 0
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("SHMSTORE_ROOT", str(there))
            assert shell("ls").rows[0][0] == "far"
    there.rmdir()


def test_everything_works_without_rich(it: Store, tmp_path: Path) -> None:
    """Plain columns instead of tables, on a terminal too; only the demo needs it."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('not installed', name='rich')\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(shmstore.__file__).parents[1])])}
    script = f"{' '.join(command_line('ls'))}; {' '.join(command_line('map', 'it'))}"
    seen = subprocess.run(
        ["script", "-qec", script, "/dev/null"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **path, "TERM": "xterm"},
    )
    assert seen.returncode == 0
    assert "alive" in seen.stdout
    assert "looked at" in seen.stdout
    assert "\x1b" not in seen.stdout
    done = run_command("demo", **path)
    assert done.code == 1
    assert "pip install 'shmstore[cli]'" in done.err


@pytest.mark.skipif(not shutil.which("script"), reason="needs script(1)")
def test_terminal_gets_colours_unless_plain_is_asked_for(it: Store) -> None:
    """With rich there are styles."""
    for option, styled in (("", True), ("--plain", False)):
        script = " ".join(command_line("ls", *option.split()))
        seen = subprocess.run(
            ["script", "-qec", script, "/dev/null"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "TERM": "xterm"},
        )
        assert ("\x1b[" in seen.stdout) is styled
        assert "alive" in seen.stdout


def test_ls_imports_little(it: Store, run_python: RunPython) -> None:
    """Its startup is little more than that of NumPy."""
    code = "import sys\nfrom shmstore.cli import main\nmain(['ls'])\nprint(sorted(sys.modules))"
    loaded = run_python(code).splitlines()[-1]
    for name in ("rich", "pandas", "pyarrow", "multiprocessing.context", "shmstore._fullness"):
        assert f"'{name}'" not in loaded


def test_completion_is_a_script_that_bash_accepts(shell: Shell, it: Store, tmp_path: Path) -> None:
    """It completes commands, options and names of stores."""
    script = tmp_path / "completion"
    script.write_text(shell("completion", "bash").out)
    (tmp_path / "shmstore").write_text(f'#!/bin/sh\nexec {sys.executable} -m shmstore "$@"\n')
    (tmp_path / "shmstore").chmod(0o755)
    asked = (("shmstore inf", 1), ("shmstore info ", 2), ("shmstore objects it --so", 3))
    answers = []
    for line, word in asked:
        words = " ".join(f"'{part}'" for part in line.split(" "))
        asks = f"COMP_WORDS=({words}); COMP_CWORD={word}; _shmstore"
        code = f". {script}; {asks}; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(
            ["bash", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        answers.append(done.stdout.split())
    assert answers[0] == ["info"]
    assert "it" in answers[1]
    assert answers[2] == ["--sort"]
    assert "complete -c shmstore" in shell("completion", "fish").out


# --- how values are written ----------------------------------------------------------------------


def test_cells_of_plain_columns_are_words_but_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    """So awk and grep can be used."""
    columns = (_output.Column("a", "A"), _output.Column("b", "B", "size"), _output.Column("c", "C"))
    _output.Output().table(columns, [{"a": "two words", "b": 2048, "c": "three more words"}, {}])
    assert capsys.readouterr().out.splitlines() == [
        "A             B  C",
        "two_words  2KiB  three more words",
        "-             -  -",
    ]


def test_exact_output_has_full_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """For sums."""
    columns = (_output.Column("b", "B", "size"), _output.Column("n", "N", "count"))
    _output.Output(exact=True).table(columns, [{"b": 2048, "n": 12345}])
    assert capsys.readouterr().out.split() == ["B", "N", "2048", "12345"]


def test_json_writes_arrays_paths_and_sets(capsys: pytest.CaptureFixture[str]) -> None:
    """What the rows of commands contain."""
    _output.Output(as_json=True).json({"a": np.arange(2), "b": np.int64(3), "c": Path("/x")})
    assert json.loads(capsys.readouterr().out) == {"a": [0, 1], "b": 3, "c": "/x"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0us"), (2e-7, "0.2us"), (0.9999, "1e+03ms"), (12, "12s")]
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    """From microseconds on."""
    assert _words.duration(seconds) == text
