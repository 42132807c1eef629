"""What commands tell that look at stores: ls, info, objects, clients, pins, map, check."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from commands import Shell, run_command
from stores import HOLD_A_STORE, StartPython, make_old

import shmstore
from shmstore import Store
from shmstore.cli import _picture

VISITOR = """
import shmstore
store = shmstore.Store.attach("it", readonly=True)
views = [store["large"] for _ in range(3)]
print(flush=True)
input()
"""


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Give the command line."""
    return Shell(capsys)


@pytest.fixture
def it() -> Iterator[Store]:
    """Give a store with objects of several sizes and types."""
    with Store.create("it", capacity="4MiB") as store:
        store["large"] = np.arange(100_000)
        store["small"] = np.zeros(100)
        store["dict"] = {"a": 1}
        store.put("no key", ttl=3600)
        yield store


# --- ls and info ---------------------------------------------------------------------------------


def test_ls_tells_states_sizes_and_options(shell: Shell, start_python: StartPython) -> None:
    """Alive, kept, dead and damaged stores; a damaged one makes the exit code 1."""
    child = start_python(HOLD_A_STORE, name="dead", persist=False)
    child.hear()
    child.kill()
    Store.create("kept", capacity="1MiB", persist=True, on_full="evict").close()
    with Store.create("alive", capacity="2MiB") as store:
        store["x"] = np.zeros(1000)
        rows = {row["name"]: row for row in shell("ls", "--json").json}
        assert shell("ls", "k*").rows[0][:3] == ["kept", "kept", "1MiB"]
        os.truncate(store.path.parent / "kept" / "index", 10_000)
        done = shell("ls")
    assert done.code == 1
    assert "kept" in done.err
    assert [row[1] for row in done.rows if row[0] == "kept"] == ["damaged"]
    assert {name: row["state"] for name, row in rows.items()} == {
        "alive": "alive",
        "dead": "dead",
        "kept": "kept",
    }
    assert (rows["alive"]["used"], rows["alive"]["objects"], rows["alive"]["clients"]) == (
        8000,
        1,
        1,
    )
    assert (rows["kept"]["notes"], rows["dead"]["notes"]) == ("persist,evict", "dead-clients=1")
    shmstore.remove("kept")
    assert shell("prune", "--dry-run").rows == [["dead", "would", "go"]]
    assert shell("prune").rows == [["dead", "removed"]]


def test_info_of_a_dead_store_leaves_it_there(shell: Shell, start_python: StartPython) -> None:
    """And its dead client, who can be looked into."""
    child = start_python(HOLD_A_STORE, name="dead", persist=False)
    child.hear()
    child.kill()
    for _ in range(2):
        row = shell("info", "dead", "--json").json
        assert (row["state"], row["dead"], row["objects"]) == ("dead", 1, 1)
        [client] = shell("clients", "dead", "--json").json
        assert (client["state"], client["pid"]) == ("dead", child.pid)
    shell("prune")


def test_info_tells_what_stats_tell(shell: Shell, it: Store) -> None:
    """With exact values for programs; this command is no client of its own."""
    row = shell("info", "it", "--json").json
    stats = it.stats()
    names = ("capacity", "used", "free", "objects", "named", "largest_free", "clients")
    assert {name: row[name] for name in names} == {name: getattr(stats, name) for name in names}
    assert row["creator_pid"] == os.getpid()
    text = shell("info", "it").out
    assert "capacity        4MiB" in text
    assert str(stats.capacity) in shell("info", "it", "--bytes").out


@pytest.mark.parametrize("ending", ["/", "//", "/."])
def test_info_takes_a_path_with_something_at_its_end(shell: Shell, it: Store, ending: str) -> None:
    """It tells what it tells by name."""
    done = shell("info", f"{it.path}{ending}", "--json")
    assert done.code == 0
    assert done.json["state"] == "alive"
    assert done.json.keys() == shell("info", "it", "--json").json.keys()


def test_info_why_tells_the_page_of_why_full(shell: Shell, it: Store) -> None:
    """Also for a number of bytes."""
    assert "It is not full" in shell("info", "it", "--why").out
    assert shell("info", "it", "--why", "1GiB", "--json").json["remedies"]
    assert "too small" in shell("info", "it", "--why", "1GiB").out


# --- objects -------------------------------------------------------------------------------------


def _keys(shell: Shell, *arguments: str) -> list[str | None]:
    return [row["key"] for row in shell("objects", "it", "--json", *arguments).json]


def test_objects_come_in_the_order_asked_for(shell: Shell, it: Store) -> None:
    """The largest first; the other way round with --reverse."""
    view = it["small"]
    assert _keys(shell)[:2] == ["large", "small"]
    assert _keys(shell, "--sort", "age") == ["large", "small", "dict", None]
    assert _keys(shell, "--sort", "age", "--reverse")[0] is None
    assert _keys(shell, "--sort", "key") == ["dict", "large", "small", None]
    assert _keys(shell, "--sort", "views")[0] == "small"
    assert _keys(shell, "--sort", "type")[0] == "dict"
    del view


def test_objects_are_filtered(shell: Shell, it: Store) -> None:
    """By key, type, size, age, process and views."""
    make_old(it, "small", 7200)
    view = it["small"]
    assert _keys(shell, "s*") == ["small"]
    assert _keys(shell, "--type", "ndarray", "--sort", "key") == ["large", "small"]
    assert _keys(shell, "--min-size", "100KB") == ["large"]
    assert _keys(shell, "--older-than", "1h") == ["small"]
    assert _keys(shell, "--pinned") == ["small"]
    assert _keys(shell, "--pid", "1") == []
    assert len(_keys(shell, "--pid", str(os.getpid()))) == 4
    del view


def test_objects_are_limited_and_say_so(shell: Shell, it: Store) -> None:
    """The rest is counted on stderr, where it is in nobody's way."""
    done = shell("objects", "it", "--limit", "1")
    assert len(done.rows) == 1
    assert done.err == "1 of 4 shown; --limit 0 shows all\n"
    assert len(shell("objects", "it", "--limit", "0").rows) == 4


def test_deleted_and_expired_objects_are_shown_when_asked_for(shell: Shell, it: Store) -> None:
    """What somebody still looks at is memory as well."""
    view = it.pop("large")
    it.put("gone", ttl=0.01)
    time.sleep(0.02)
    states = {row["state"] for row in shell("objects", "it", "--json", "--all").json}
    assert states == {"object", "deleted", "expired"}
    assert {row["state"] for row in shell("objects", "it", "--json").json} == {"object"}
    del view


# --- clients and pins ----------------------------------------------------------------------------


def test_clients_and_pins_name_who_looks_at_what(
    shell: Shell, it: Store, start_python: StartPython
) -> None:
    """A view of a deleted object, too, and one of a process that has died."""
    child = start_python(VISITOR)
    child.hear()
    del it["large"]
    rows = shell("clients", "it", "--json").json
    [client] = [row for row in rows if row["pid"] == child.pid]
    assert (client["state"], client["mode"], client["pins"]) == ("alive", "read-only", 3)
    [pin] = shell("pins", "it", "--json").json
    assert (pin["key"], pin["object"], pin["views"]) == ("large", "deleted", 3)
    assert (pin["pid"], pin["nbytes"]) == (child.pid, 800_000)
    child.kill()
    assert [row["state"] for row in shell("pins", "it", "--json").json] == ["dead"]


def test_pins_of_one_object_are_told_by_its_key_or_id(shell: Shell, it: Store) -> None:
    """In a store that traces pins with the lines of the program."""
    with Store.create("traced", capacity="1MiB", trace_pins=True) as store:
        store["a"], store["b"] = np.zeros(100), np.zeros(100)
        views = [store["a"], store["b"]]
        script = run_command("pins", "traced", "a", "--json").json
        assert [row["key"] for row in script] == ["a"]
        assert "test_cli_looking.py" in script[0]["sites"]
        del views
    assert shell("pins", "it").err == "nobody looks at anything\n"
    assert shell("pins", "it", "none").code == 1


# --- map -----------------------------------------------------------------------------------------


def test_map_draws_what_is_used_looked_at_and_free(shell: Shell, it: Store) -> None:
    """Each sign is a part of the segment; the classes add up."""
    view, kept = it["large"], it.put(np.zeros(100_000))
    document = shell("map", "it", "--json").json
    kinds = [extent["kind"] for extent in document["extents"]]
    assert (kinds.count("looked at"), kinds.count("used")) == (1, 2)
    by_kind = {row["name"]: row["nbytes"] for row in document["classes"] if row["by"] == "kind"}
    assert sum(by_kind.values()) == document["capacity"]
    lines = shell("map", "it", "--lines", "4").out.splitlines()
    signs = "".join(line.split()[1] for line in lines[1:5])
    assert abs(signs.count("@") / len(signs) - 800_000 / (4 << 20)) < 0.05
    assert abs(signs.count(".") / len(signs) - by_kind["free"] / (4 << 20)) < 0.05
    del view, kept


def test_map_as_svg_has_the_extents_with_their_names(
    shell: Shell, it: Store, tmp_path: Path
) -> None:
    """Keys are escaped: they come from whoever put them."""
    it["<evil>&"] = np.zeros(5000)
    path = tmp_path / "it.svg"
    assert shell("map", "it", "-o", path).code == 0
    picture = ET.parse(path)
    titles = [e.text for e in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any(text and text.startswith("<evil>&: numpy.ndarray, 39.1KiB") for text in titles)
    assert any(text and text.startswith("large: ") for text in titles)


def test_map_as_png_needs_matplotlib_and_says_so(
    shell: Shell, it: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another suffix is an error of usage."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    done = shell("map", "it", "-o", tmp_path / "it.png")
    assert (done.code, "matplotlib" in done.err) == (1, True)
    assert shell("map", "it", "-o", tmp_path / "it.bmp").code == 2


def test_map_as_png_is_a_picture(it: Store, tmp_path: Path) -> None:
    """Where matplotlib is there."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "it.png"
    assert run_command("map", "it", "-o", path).code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def _survey(offsets: list[int], sizes: list[int], capacity: int) -> Any:
    count = len(offsets)
    return shmstore.Survey(
        capacity=capacity,
        slot=np.arange(count),
        generation=np.arange(count),
        state=np.array(["object"] * count),
        named=np.zeros(count, bool),
        expired=np.zeros(count, bool),
        offset=np.array(offsets, np.int64),
        nbytes=np.array(sizes, np.int64),
        data_nbytes=np.array(sizes, np.int64),
        created=np.zeros(count),
        pid=np.zeros(count, np.int64),
        views=np.zeros(count, np.intp),
        clients=(),
        problems=(),
        _describe=lambda _: [],
        _who_pins=lambda _: [],
    )


def test_cells_share_what_they_cut() -> None:
    """A stretch of half a cell makes the cell half used; all shares add up to one."""
    found = _picture.stretches(_survey([0, 150, 300], [50, 100, 100], 400))
    shares = _picture.cells(found, 4)
    assert shares[:, _picture.USED].tolist() == [0.5, 0.5, 0.5, 1.0]
    assert np.allclose(shares.sum(axis=1), 1)


def test_stretches_that_overlap_or_leave_the_segment_are_cut() -> None:
    """As a damaged store has them."""
    found = _picture.stretches(_survey([0, 50, 380], [100, 100, 500], 400))
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == [
        (0, 100),
        (100, 150),
        (380, 400),
    ]
    assert _picture.free_gaps(found).tolist() == [230]


# --- check and recover ---------------------------------------------------------------------------


def test_check_of_all_stores_finds_nothing_in_sound_ones(shell: Shell, it: Store) -> None:
    """With and without the data."""
    assert shell("check").out == "ok  it\n"
    assert shell("check", "--deep", "--json").json == []


def test_check_and_recover_of_what_the_dead_left(
    shell: Shell, it: Store, start_python: StartPython
) -> None:
    """A half-made put and the seat of its process are given back."""
    child = start_python("""
        import shmstore
        store = shmstore.Store.attach("it")
        half_made = store.allocate(1000, "u1", key="half")
        half_made.__enter__()
        print(flush=True)
        input()
    """)
    child.hear()
    child.kill()
    done = shell("recover", "it", "--json").json
    assert (done["clients"], done["puts"], done["objects"]) == (1, 1, 0)
    assert shell("check", "it").code == 0


# --- many objects --------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_copes_with_100_000_objects(shell: Shell) -> None:
    """It shows a few of them, and holds no lock while it does."""
    with Store.create("many", capacity="64MiB") as store:
        for start in range(0, 100_000, 1000):
            keys = range(start, start + 1000)
            store.put_many({f"key-{at}": np.zeros(at % 20 + 1) for at in keys})
        for command in (
            ["ls"],
            ["info", "many"],
            ["info", "many", "--why"],
            ["objects", "many"],
            ["objects", "many", "key-999*", "--sort", "key"],
            ["show", "many", "key-5"],
            ["pins", "many"],
            ["clients", "many"],
            ["map", "many"],
            ["top", "many", "--count", "1", "--interval", "0.05"],
            ["check", "many"],
        ):
            done = shell(*command)
            assert done.code == 0, done.err
            assert len(done.out.splitlines()) < 60
