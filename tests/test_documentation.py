"""Does what the documentation shows work as it is shown?"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmstore

TOP = Path(__file__).parent.parent


def _run(*arguments: str) -> str:
    """Run Python; nothing may be printed as an error."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TOP,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_code_of_the_readme_works_when_pasted(tmp_path: Path) -> None:
    """The first thing that a newcomer does."""
    blocks = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "pasted.py"
    script.write_text("\n".join(blocks))
    assert _run(str(script)).split() == ["499999500000", "{'cat':", "0,", "'dog':", "1}", "8"]


@pytest.mark.parametrize("page", sorted((TOP / "docs").rglob("*.md")), ids=lambda p: p.stem)
def test_code_of_a_page_works_when_pasted(page: Path, tmp_path: Path) -> None:
    """The blocks of a page are one program, from top to bottom."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "pasted.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    _run(str(script))


@pytest.mark.parametrize("example", sorted((TOP / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_runs(example: Path) -> None:
    """Each example is a program of its own."""
    assert _run(str(example))


def _modules() -> list[str]:
    found = pkgutil.walk_packages(shmstore.__path__, "shmstore.")
    return ["shmstore", *(module.name for module in found if not module.name.endswith("__main__"))]


@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    """Docstrings are run as doctests; those of a handler need its library."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if ".handlers." not in name and ".integrations." not in name:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module).failed == 0
