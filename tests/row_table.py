"""Which tests prove which row of the page on serialization? Run this to write its table anew.

The sentences stand in rows.toml, the tests name their rows by ``@pytest.mark.row``: a row, or the
first and the last of several ("S84-S100").
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "explanation" / "serialization.md"
SENTENCES = TESTS / "rows.toml"

KNOWN = [f"S{n:02}" for n in range(1, 112)] + [f"F{n:02}" for n in range(1, 44)]

BEGIN = "<!-- rows: written by `make docs-rows` -->"
END = "<!-- end of rows -->"


class Proof(NamedTuple):
    """A test, and what its markers name."""

    file: str
    name: str
    marks: tuple[str, ...]


def read_sentences() -> dict[str, str]:
    """Return what holds, by row."""
    found: dict[str, str] = tomllib.loads(SENTENCES.read_text(encoding="utf-8"))["rows"]
    return found


def read_tests() -> list[Proof]:
    """Return the tests that name rows, without importing any."""
    return [
        test
        for path in sorted(TESTS.glob("test_*.py"))
        for test in _tests_of(path.stem, ast.parse(path.read_text(encoding="utf-8")))
    ]


def _tests_of(file: str, tree: ast.Module) -> Iterator[Proof]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [mark for decorator in node.decorator_list for mark in _marks_of(decorator)]
            if marks:
                yield Proof(file, node.name, tuple(marks))


def _marks_of(node: ast.expr) -> Iterator[str]:
    """Yield the arguments of row markers, also of those inside of parametrize."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.row":
            yield from (ast.literal_eval(argument) for argument in call.args)


def rows_of(mark: str) -> list[str]:
    """Return the rows that a mark names; ValueError if it names none that is known."""
    match = re.fullmatch(r"([SF])(\d+)(?:-\1(\d+))?", mark)
    rows = []
    if match is not None:
        first, last = int(match[2]), int(match[3] or match[2])
        rows = [f"{match[1]}{n:02}" for n in range(first, last + 1)]
    if not rows or not set(rows) <= set(KNOWN):
        raise ValueError(f"{mark!r} names no row: S01 to S111 and F01 to F43 are known")
    return rows


def tests_by_row() -> dict[str, list[Proof]]:
    """Return the tests of each row, in the order of the files."""
    found: dict[str, list[Proof]] = {row: [] for row in KNOWN}
    for test in read_tests():
        for row in sorted({row for mark in test.marks for row in rows_of(mark)}):
            found[row].append(test)
    return found


def make_table() -> str:
    """Return the table in Markdown."""
    sentences, proofs = read_sentences(), tests_by_row()
    lines = ["| row | what holds | tests |", "|---|---|---|"]
    lines += [f"| {row} | {sentences[row]} | {_names(proofs[row])} |" for row in KNOWN]
    return "\n".join(lines)


def _names(tests: list[Proof]) -> str:
    """Return the names of tests, the file before the first of each."""
    by_file: dict[str, list[str]] = {}
    for test in tests:
        by_file.setdefault(test.file, []).append(f"`{test.name.removeprefix('test_')}`")
    return "; ".join(f"**{file}**: {', '.join(names)}" for file, names in by_file.items())


def written(page: str) -> str:
    """Return the page with the table of now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{make_table()}\n\n{END}{after}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
