"""Are the figures of docs/explanation/reliability.md the ones that the tests have noted?"""

from __future__ import annotations

import json
from pathlib import Path

import proofs
import pytest
from stores import exit_code, forked

NOTED = {
    "faults: mmap": {"cycles": 1200, "found": 3},
    "faults: open": {"cycles": 7},
    "kills: put": {"a.f:1": 3, "b.g:1": 1},
    "kills: get": {"b.g:1": 2},
}


def test_nothing_is_noted_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the tests leaves no file."""
    monkeypatch.delenv(proofs.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    proofs.note("faults", cycles=1)
    assert list(tmp_path.iterdir()) == []


def test_counts_of_many_processes_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run side by side; a text stays as it was said last."""
    path = tmp_path / "noted.json"
    monkeypatch.setenv(proofs.VARIABLE, str(path))

    def many() -> None:
        for _ in range(50):
            proofs.note("faults: open", cycles=2, longest="n = 9")

    children = [forked(many) for _ in range(4)]
    assert [exit_code(child) for child in children] == [0] * 4
    assert json.loads(path.read_text()) == {"faults: open": {"cycles": 400, "longest": "n = 9"}}


def test_a_run_replaces_what_was_known_of_its_subjects() -> None:
    """Other subjects stay, and rows that are not tested any more go."""
    known = proofs.take_over({}, NOTED)
    known = proofs.take_over(known, {"faults: open": {"cycles": 8}})
    assert proofs.rows_of(known, "faults") == {"open": {"cycles": 8}}
    assert set(proofs.rows_of(known, "kills")) == {"put", "get"}


def test_tables_stand_between_their_markers() -> None:
    """What people wrote stays, what was counted is written anew, also the second time."""
    page = "above\n<!-- {}: {} -->\nold\n<!-- end of proofs -->\nbelow"
    known = proofs.take_over({}, NOTED)
    table = proofs.render(page.format("proofs", "faults, nothing"), known)
    assert "| mmap | 1,200 | 3 |" in table
    assert "| open | 7 |  |" in table
    assert "no full run of *nothing*" in table
    assert "old" not in table
    assert (table[:6], table[-6:]) == ("above\n", "\nbelow")
    assert proofs.render(table, known) == table


def test_matrix_has_a_line_per_point_and_a_column_per_operation() -> None:
    """Where an operation does not come to a point there is a dot."""
    page = "<!-- matrix: kills -->\n<!-- end of proofs -->"
    text = proofs.render(page, proofs.take_over({}, NOTED))
    assert "6 kills at 2 points in 2 operations." in text
    assert [line.split() for line in text.splitlines() if line.startswith(("a.", "b."))] == [
        ["a.f:1", ".", "3"],
        ["b.g:1", "2", "1"],
    ]


def test_page_shows_what_the_file_knows() -> None:
    """Neither is changed without the other."""
    known = json.loads(proofs.KNOWN.read_text(encoding="utf-8"))
    page = proofs.PAGE.read_text(encoding="utf-8")
    assert proofs.render(page, known) == page
