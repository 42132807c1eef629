"""Handlers that other packages bring along, found by their entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shmstore import Store

PACKAGE = """
import numpy as np

class Sheet:
    def __init__(self, cells):
        self.cells = cells

    def __reduce__(self):
        raise TypeError("sheets are not pickled")
"""

HANDLERS = """
print("handlers are loaded")

def register():
    from shmstore.serialization import register_serialization
    from sheets import Sheet

    register_serialization(
        Sheet, lambda x: ({}, [x.cells.data]), lambda header, frames: Sheet(frames[0])
    )
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Give a folder with an installed package that has an entry point for its types."""
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "sheets" / "shared.py").write_text(HANDLERS)
    info = tmp_path / "sheets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sheets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shmstore.handlers]\nsheets = sheets.shared:register\n")
    return tmp_path


def run(site: Path, code: str) -> str:
    """Run code in a process that has the package installed."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


@pytest.mark.row("S21")
def test_handlers_of_an_installed_package_are_found(site: Path) -> None:
    """When its first object is put, and where it is got, by a process that never imported it."""
    with Store.create("entry", capacity="1MiB"):
        put = """
            import numpy as np, shmstore, sheets
            store = shmstore.Store.attach("entry")
            store["sheet"] = sheets.Sheet(np.arange(1000, dtype="u1"))
            store["nested"] = [sheets.Sheet(np.arange(10, dtype="u1"))]
            store.close()
        """
        get = """
            import sys, shmstore
            store = shmstore.Store.attach("entry")
            sheet = store.get("sheet", deserializers=("custom",))
            print(type(sheet).__name__, len(sheet.cells), store["nested"][0].cells[9])
            store.close()
        """
        assert run(site, put) == "handlers are loaded\n"
        assert run(site, get) == "handlers are loaded\nSheet 1000 9\n"


@pytest.mark.row("S21")
def test_entry_points_are_not_read_for_what_is_known(site: Path) -> None:
    """Arrays and values of the standard library cost no look at the installed packages."""
    code = """
        import sys, numpy as np, datetime, shmstore
        from importlib import metadata
        metadata.entry_points = None
        with shmstore.Store.create(capacity="1MiB") as store:
            for x in (np.arange(3), {"a": datetime.date(2020, 1, 1)}, [1], b"x" * 9999):
                store.put(x).get()
    """
    assert run(site, code) == ""
