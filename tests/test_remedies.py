"""Does the advice of `why_full` do what it says?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms
from stores import (
    MIB,
    Flag,
    MakeStore,
    StartPython,
    exit_code,
    fill_up,
    forked,
    lock_free_only,
    make_old,
    remedy_of,
    used,
)

from shmstore import Store, StoreFullError


def _follow(store: Store, remedy: str) -> Any:
    """Do what a remedy says between its backquotes."""
    [code] = re.findall(r"`(.+)`", remedy)
    return eval(code, {"store": store})


def test_views_of_deleted_objects_are_the_first_advice(make_store: MakeStore) -> None:
    """With their bytes, and in a traced store with the line that got them."""
    store = make_store(trace_pins=True)
    refs = fill_up(store, np.zeros(MIB // 16))
    views = [ref.get() for ref in refs[:5]]
    store.delete_many(refs)
    report = store.why_full(4 * MIB)
    assert report.reason == "Most of it, 2.5 MiB, is deleted objects that are still looked at."
    assert re.fullmatch(
        rf"drop views in pid {os.getpid()} \(.*, this process\): 2.5 MiB of 5 deleted objects, "
        rf"got at {__file__}:\d+ in test_views_of_deleted_objects_are_the_first_advice",
        report.remedies[0],
    )
    views.clear()
    assert used(store) == 0
    refs.clear()


@lock_free_only
def test_deleted_object_that_several_look_at_needs_all_of_them(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """No single process could free it."""
    store = make_store("shared")
    ref = store.put(np.zeros(1000), key="both")
    view = store["both"]
    child = start_python(
        """
        import shmstore
        view = shmstore.Store.attach(name)["both"]
        print("looks", flush=True)
        input()
        """,
        name="shared",
    )
    child.hear()
    ref.delete()
    remedy, _ = store.why_full().remedies
    assert remedy.startswith("drop views in all of pids ")
    assert str(child.pid) in remedy
    assert str(os.getpid()) in remedy
    child.kill()
    store.recover()
    del view


def test_advice_to_delete_old_objects_frees_what_it_says(make_store: MakeStore) -> None:
    """The code in the sentence is run, and used bytes fall by that number."""
    store = make_store(capacity=MIB)
    for number in range(8):
        store[f"k{number}"] = np.zeros(16_000)
        make_old(store, f"k{number}", 4000 if number < 5 else 5)
    view = store["k0"]
    report = store.why_full(MIB)
    remedy = remedy_of(report, "delete objects older than an hour: 500 KiB of 4 objects")
    before = used(store)
    assert _follow(store, remedy) == 5
    del view
    assert before - used(store) == 5 * 128_000
    assert sorted(store) == ["k5", "k6", "k7"]


@lock_free_only
def test_advice_to_delete_what_a_dead_producer_left_frees_what_it_says(store: Store) -> None:
    """Objects without a key, of which nobody may have a reference any more."""
    child = forked(lambda: store.put_many([np.zeros(100_000)] * 4))
    assert exit_code(child) == 0
    report = store.why_full(4 * MIB)
    remedy = remedy_of(report, f"delete unnamed objects of processes that have left (pid {child})")
    assert "3.1 MiB of 4 objects" in remedy
    assert _follow(store, remedy) == 4
    assert used(store) == 0


def test_advice_for_free_memory_in_pieces_makes_room(make_store: MakeStore) -> None:
    """What is named is deleted, and the object that did not fit fits."""
    store = make_store(capacity=MIB)
    for number in range(16):
        store[f"k{number}"] = np.zeros(MIB // 16 // 8)
    for number in range(0, 16, 2):
        del store[f"k{number}"]
    view = store["k1"]
    asked = np.zeros(3 * MIB // 16 // 8)
    with pytest.raises(StoreFullError):
        store["asked"] = asked
    report = store.why_full(asked.nbytes)
    assert (report.free_extents, report.largest_free) == (8, MIB // 16)
    assert report.fragmentation == pytest.approx(7 / 8)
    assert report.reason == (
        "Its free memory is in 8 pieces: 512 KiB are free, but no object above 64 KiB fits."
    )
    assert "64 KiB between free pieces; then 192 KiB fit" in report.remedies[0]
    keys = re.findall(r"'(k\d+)'", report.remedies[0])
    assert len(keys) == 1
    assert keys != ["k1"]
    store.delete_many(keys)
    store["asked"] = asked
    del view


def test_store_without_a_slot_says_so(make_store: MakeStore) -> None:
    """It has memory enough, and the advice is not about memory."""
    store = make_store(max_objects=50)
    for number in range(50):
        store[f"k{number}"] = number
    with pytest.raises(StoreFullError):
        store["more"] = 1
    report = store.why_full()
    assert report.reason == "It has no slot: 50 objects, as many as max_objects allows."
    assert report.remedies[0] == ("create the store with a larger max_objects: 50 are all in use")
    assert "50 have at most 1 KiB" in report.remedies[1]
    assert "capacity" not in " ".join(report.remedies)


@lock_free_only
def test_file_system_that_others_fill_is_told(locked_reads: Flag) -> None:
    """With who has it; the advice is about the file system, and following it helps."""
    with rooms.small_file_system(2 * MIB) as folder:
        root = folder / "root"
        root.mkdir(mode=0o700)
        store = Store.create(root=root, capacity=MIB, max_objects=64, locked_reads=locked_reads)
        store["first"] = np.zeros(1000)
        ballast = rooms.fill_up(folder)
        with pytest.raises(StoreFullError):
            store["second"] = np.zeros(MIB // 16)
        report = store.why_full(MIB // 2)
        disk = report.file_system
        assert disk.path == str(folder)
        assert (disk.size, disk.free) == (2 * MIB, 0)
        assert disk.others == pytest.approx(ballast.stat().st_blocks * 512, abs=8192)
        assert disk.own + disk.others == disk.size
        assert disk.largest[0] == (str(ballast), ballast.stat().st_blocks * 512)
        assert report.reason.startswith(f"Its file system is short: {folder} has 0 B free, and")
        assert str(ballast) in report.remedies[0]
        assert "only 0 B free: enlarge it" in report.remedies[1]
        ballast.unlink()
        store["second"] = np.zeros(MIB // 16)
        assert store.why_full(1024).remedies == ()
        store.close()


@pytest.mark.parametrize(("on_full", "leaves"), [("evict", "evicted"), ("spill", "spilled")])
def test_store_that_makes_room_is_full_of_what_is_looked_at(
    make_store: MakeStore, tmp_path: Path, on_full: str, leaves: str
) -> None:
    """Its advice is about views, and a put succeeds when it is followed."""
    spill_dir = tmp_path if on_full == "spill" else None
    store = make_store(capacity=MIB, on_full=on_full, spill_dir=spill_dir)
    refs = [store.put(np.zeros(MIB // 64)) for _ in range(12)]
    report = store.why_full(MIB // 2)
    assert report.reason == f"It makes room by itself: 1 MiB of 8 objects can be {leaves}."
    assert report.remedies == ()
    views = [ref.get() for ref in refs[-8:]]
    report = store.why_full(MIB // 2)
    assert report.reason == (
        f"Most of it, 1 MiB of 8 objects, is looked at and cannot be {leaves}."
    )
    [remedy] = [text for text in report.remedies if text.startswith("drop views")]
    assert remedy.endswith(f"1 MiB of 8 objects that can then be {leaves}")
    assert report.spilled == (4 if spill_dir else 0)
    views.clear()
    store.put(np.zeros(MIB // 16)).delete()


def test_size_that_the_store_never_has_is_told(store: Store) -> None:
    """Nothing that is in it is to blame."""
    store["a"] = np.zeros(9)
    report = store.why_full("8 MiB")
    assert report.reason == "It is too small: 8 MiB asked for, 4 MiB in all."
    assert report.remedies[0].startswith("create the store with a larger capacity than 8 MiB")


def test_examples_of_the_page_about_it_run() -> None:
    """Their assertions are the proof."""
    howto = Path(__file__).parent.parent / "docs" / "howto"
    page = (howto / "explaining.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert code.count("assert") > 5
    exec(code, {})
    reasons = re.findall(r"^\| (It|Its|Most) .*\|$", page, re.MULTILINE)
    assert len(reasons) == 10
