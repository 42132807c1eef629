"""What an import of the package costs: it loads nothing that most processes never need."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stores import MakeStore, RunPython

import shmstore
from shmstore import serialization

# What takes long to import (with what it imports itself), or serves few.
LATER = (
    "cloudpickle",
    "dataclasses",
    "dis",
    "filelock",
    "grp",
    "html",
    "logging",
    "numpy.typing",
    "pickletools",
    "psutil",
    "random",
    "resource",
    "select",
    "shmstore._building",
    "shmstore._check",
    "shmstore._expecting",
    "shmstore._filing",
    "shmstore._fullness",
    "shmstore._info",
    "shmstore._memory.spill_files",
    "shmstore._restoring",
    "shmstore._waiting",
    "shmstore._watching",
    "shmstore.serialization.compression",
    "shmstore.serialization.explaining",
    "shmstore.serialization.handlers.text",
    "shmstore.serialization.splitting",
    "socket",
    "subprocess",
    "tempfile",
    "uuid",
)

LOADED = """
import json, sys
import numpy, pathlib  # what these load is not ours
before = set(sys.modules)
{}
print(json.dumps(sorted(sys.modules.keys() - before)))
"""


def test_import_loads_nothing_that_most_processes_never_need(run_python: RunPython) -> None:
    """Neither what names people nor what explains, checks or shows is there at first."""
    loaded = json.loads(run_python(LOADED.format("import shmstore")))
    assert "shmstore._store" in loaded
    assert set(LATER).isdisjoint(loaded)


def test_reader_of_arrays_and_plain_values_never_loads_a_pickler(
    make_store: MakeStore, run_python: RunPython
) -> None:
    """Who attaches and gets needs neither psutil nor cloudpickle."""
    store = make_store()
    store["array"], store["plain"] = np.arange(9), {"a": [1]}
    use = "import shmstore\nstore = shmstore.Store.attach(path)\n"
    use += "assert store['array'].sum() == 36\nstore['new'] = store['plain']\nstore.close()"
    loaded = json.loads(run_python(LOADED.format(use), path=str(store.path)))
    assert set(LATER).isdisjoint(loaded)


@pytest.mark.parametrize("module", [shmstore, serialization], ids=lambda m: m.__name__)
def test_every_public_name_is_there_when_asked_for(module: object) -> None:
    """Also those that are loaded with their first use; other names are refused as ever."""
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing
