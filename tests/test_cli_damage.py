"""Commands that look at damaged stores: they report, they never crash."""

from __future__ import annotations

import fcntl
import io
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import damage_templates
import numpy as np
import pytest
import rooms
from commands import Shell
from damage_templates import NAME, STORES, Template, all_templates
from damage_ways import Noise, Scene, damage
from stores import exit_code, forked

import shmstore
from shmstore import Store, cli
from shmstore._memory import layout as L

FEW = 12
MANY = 40
LIMIT_S = 20

LOOKS = (
    ["ls"],
    ["info", NAME],
    ["info", NAME, "--why"],
    ["objects", NAME, "--all", "--limit", "0"],
    ["show", NAME, "array"],
    ["show", NAME, "packed"],
    ["get", NAME, "text"],
    ["pins", NAME],
    ["clients", NAME, "--json"],
    ["map", NAME],
    ["top", NAME, "--count", "1", "--interval", "0.01"],
    ["check", NAME, "--deep"],
)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """Give a folder for damaged stores."""
    with rooms.memory_folder() as folder:
        yield Path(tempfile.mkdtemp(dir=folder, prefix="stores-"))


@pytest.fixture(scope="module")
def templates(base: Path) -> list[Template]:
    """Give the files of stores that two processes have filled and died in."""
    return all_templates(base)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Give the command line."""
    return Shell(capsys)


def _look_all(root: Path) -> None:
    """Look in every way; nothing but an exit code and lines may come of it."""
    signal.alarm(LIMIT_S)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 26, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )
    for command in LOOKS:
        errors = io.StringIO()
        with redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out, redirect_stderr(errors):
            code = cli.main([*command, "--root", str(root)])
        said = errors.getvalue()
        assert code in (0, 1), (command, code, said)
        assert "Traceback" not in said, (command, said)
        assert code == 0 or said or out.buffer.tell(), command


def _try(base: Path, templates: list[Template], seed: int) -> None:
    noise = Noise(seed)
    one = noise.choice(range(len(templates)))
    scene = Scene(templates[one], templates[one ^ 1])
    files = {name: image.copy() for name, image in scene.template.files.items()}
    places = ["index", "index", "index", "seats/1", "seats/2", "lock"]
    places += [name for name in files if name.startswith("segment")]
    done = damage(files, noise.choice(places), noise, scene)
    damage_templates.write_files(base, files, scene.template.uuid)
    try:
        assert exit_code(forked(lambda: _look_all(base / STORES))) == 0, f"seed {seed}: {done}"
    finally:
        for folder in (STORES, damage_templates.SPILL):
            shutil.rmtree(base / folder, ignore_errors=True)
            (base / folder).mkdir(mode=0o700)


def test_every_look_at_a_damaged_store_ends_with_0_or_1(
    base: Path, templates: list[Template]
) -> None:
    """Whatever is damaged: no traceback, no crash, no hang, no silent failure."""
    for seed in range(FEW):
        _try(base, templates, seed)


@pytest.mark.slow
def test_every_look_at_many_damaged_stores_ends_with_0_or_1(
    base: Path, templates: list[Template]
) -> None:
    """The same, for long."""
    for seed in range(FEW, FEW + MANY):
        _try(base, templates, seed)


# --- what is told of certain damage --------------------------------------------------------------


def _damaged_object(name: str, field: int, value: int) -> Store:
    """Make a store in which a field of the slot of one object is wrong."""
    store = Store.create(name, capacity="1MiB", persist=True)
    store["sound"], store["broken"] = np.arange(100), np.arange(200)
    session = store._session
    assert session is not None
    session.words[rooms.word_of(store.info("broken").slot, field, session.index)] = value
    return store


def test_damaged_object_is_listed_and_the_others_are_told(shell: Shell) -> None:
    """Listed as damaged, refused by show and get, named by check; recover gives it up."""
    with _damaged_object("it", L.S_HEADER_NBYTES, 1 << 20):
        done = shell("objects", "it")
        assert done.code == 1
        assert "damaged" in done.out
        assert "sound" in done.out
        for command in (
            ["show", "it", "broken"],
            ["get", "it", "broken", "/dev/null", "--as", "npy"],
        ):
            done = shell(*command)
            assert done.code == 1
            assert done.err.count("\n") == 1
        assert shell("show", "it", "sound").code == 0
        assert shell("info", "it").code == 0
        done = shell("check", "it")
        assert done.code == 1
        assert "5" in {row[1] for row in done.rows}
        assert shell("recover", "it", "--json").json["objects"] == 1
        assert shell("check").out == "ok  it\n"
    shmstore.remove("it")


def test_store_without_its_index_is_told_and_can_be_removed(shell: Shell) -> None:
    """Each command says in one line what is wrong and what to do."""
    with Store.create("it", capacity="1MiB", persist=True) as store:
        path = store.path
    (path / "index").unlink()
    for command in (["info", "it"], ["objects", "it"], ["check"], ["ls"], ["recover", "it"]):
        done = shell(*command)
        assert done.code == 1
        assert "index" in done.err + done.out
        assert done.err.count("\n") <= 2
    assert shell("rm-store", "it").code == 1
    assert shell("rm-store", "it", "--force").code == 0


def test_store_of_another_version_is_told(shell: Shell) -> None:
    """With the versions, and what to do."""
    with Store.create("it", capacity="1MiB", persist=True) as store:
        path = store.path
    data = bytearray((path / "index").read_bytes()[: L.PAGE])
    data[L.W_VERSION * L.WORD] = 99
    with (path / "index").open("r+b") as index:
        index.write(data)
    done = shell("ls")
    assert done.code == 1
    assert "version 99" in done.err
    assert shell("info", "it").code == 1
    assert shell("rm-store", "it", "--force").code == 0


def test_lock_that_somebody_holds_is_told(shell: Shell) -> None:
    """`info` tells what it can without the lock, and what is wrong."""
    with Store.create("it", capacity="1MiB", persist=True) as store:
        store["a"] = np.arange(10)
        lock = (store.path / "lock").open()
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shell("info", "it", "--timeout", "0.05")
        assert done.code == 1
        assert "lock" in done.out + done.err
        assert "capacity" in done.out
    shmstore.remove("it")
