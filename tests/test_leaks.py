"""Nothing piles up, however long a store is used."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from stores import WARNINGS, lock_free_only

from shmstore import Store


@pytest.mark.parametrize("count", [20_000])
def test_puts_and_deletes_with_few_descriptors_leave_what_was_there(count: int) -> None:
    """Bytes, descriptors, files, mappings and memory return to where they were."""
    done = subprocess.run(
        [sys.executable, *WARNINGS, Path(__file__).parent / "leaks.py", "--count", str(count)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[1].rstrip(",").replace(",", "")) >= count


class Weakly:
    """Something that the frame of a caller holds."""


@lock_free_only
def test_calls_keep_nothing_of_their_callers(root: Path, locked_reads: object) -> None:
    """No error that was caught inside keeps frames, and with them what callers hold, alive."""

    def use() -> weakref.ref[Weakly]:
        held = Weakly()
        with Store.create("frames", capacity="1MiB") as store:
            store["a"] = np.arange(1000)
            assert store.get("b", None) is None
            assert Store.open("frames") == store
            Store.open("frames").close()
        return weakref.ref(held)

    gc.collect()
    gc.disable()
    try:
        assert use()() is None
    finally:
        gc.enable()
