"""Is every row of the page on serialization proved, and does the page say by which tests?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import row_table
from stores import RunPython


def test_markers_name_rows_that_are_known() -> None:
    """A slip in a marker would prove nothing."""
    for test in row_table.read_tests():
        for mark in test.marks:
            assert row_table.rows_of(mark), f"{test.file}::{test.name}"


@pytest.mark.parametrize(
    "mark", ["S00", "S112", "F44", "F0", "s01", "S1-F3", "S9-S3", "", "S01,S02"]
)
def test_marker_that_names_no_row_is_refused(mark: str) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(ValueError, match="names no row"):
        row_table.rows_of(mark)


def test_sentences_are_there_for_each_row_and_no_other() -> None:
    """In the order of the rows, and fit for a table."""
    sentences = row_table.read_sentences()
    assert list(sentences) == row_table.KNOWN
    for row, sentence in sentences.items():
        assert sentence.endswith("."), row
        assert "|" not in sentence, row
        assert "\n" not in sentence, row


def test_rows_all_have_a_test() -> None:
    """None is only said."""
    assert [row for row, tests in row_table.tests_by_row().items() if not tests] == []


def test_page_is_the_one_that_the_markers_give() -> None:
    """`make docs-rows` writes it anew."""
    page = row_table.PAGE.read_text(encoding="utf-8")
    assert page.count(row_table.BEGIN) == page.count(row_table.END) == 1
    assert page == row_table.written(page), "the page is stale: make docs-rows"


def test_code_of_the_page_works_when_pasted(run_python: RunPython, tmp_path: Path) -> None:
    """From the first line to the last."""
    page = row_table.PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    script = tmp_path / "pasted.py"
    script.write_text("\n".join(blocks))
    assert run_python("import runpy; runpy.run_path(path)", path=str(script)) == "pickle"
