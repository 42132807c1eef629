"""How the folder of a store goes, and what it must not take with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rooms import base, base_fd

from shmstore._memory import removal

__all__ = ["base", "base_fd"]  # fixtures

NEW = ".new-0123456789abcdef"
OLD = ".old-fedcba9876543210"


def _make_file(base: Path, name: str) -> Path:
    path = base / name
    path.write_bytes(b"content")
    return path


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def _make_store(base: Path, name: str) -> Path:
    path = base / name
    (path / "seats").mkdir(parents=True, mode=0o700)
    for file in ("index", "lock", "seats/1", "seats/2"):
        (path / file).write_bytes(b"x")
    return path


def test_store_removed_leaves_its_neighbours(base: Path, base_fd: int) -> None:
    """Its files, its seats and its folder go, and nothing else."""
    _make_store(base, "mine")
    _make_store(base, "other")
    removal.remove_store(base_fd, "mine")
    assert _names(base) == ["other"]
    assert len(list((base / "other").rglob("*"))) == 5
    removal.remove_store(base_fd, "mine")


def test_leftovers_are_removed_and_stores_stay(base: Path, base_fd: int) -> None:
    """Whatever a killed process was making or removing."""
    for name in (NEW, OLD, "mine", ".new-software", ".old-photographs"):
        _make_store(base, name)
    (base / NEW.replace("0", "a")).mkdir()
    removal.remove_leftovers(base_fd)
    assert _names(base) == [".new-software", ".old-photographs", "mine"]


def test_removing_does_not_follow_links(base: Path, base_fd: int) -> None:
    """A link in a store goes, and what it leads to stays."""
    precious = _make_file(base, "precious")
    (base / "treasure").mkdir()
    _make_file(base / "treasure", "gold")
    store = _make_store(base, "mine")
    (store / "link").symlink_to(precious)
    (store / "folder").symlink_to(base / "treasure")
    removal.remove_store(base_fd, "mine")
    assert _names(base) == ["precious", "treasure"]
    assert (base / "treasure" / "gold").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_leftovers_that_are_no_folders_do_not_stand_in_the_way(
    base: Path, base_fd: int, kind: str
) -> None:
    """Something else with such a name is removed or left, but no store is kept from being made."""
    (base / "treasure").mkdir()
    if kind == "file":
        _make_file(base, NEW)
    else:
        (base / NEW).symlink_to(base / "treasure")
    removal.remove_leftovers(base_fd)
    assert _names(base) == ["treasure"]


def test_seats_that_clients_take_away_meanwhile_keep_nothing(
    base: Path, base_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leaves removes its seat just before it would have been removed."""
    store = _make_store(base, "mine")
    for number in range(3, 9):
        _make_file(store / "seats", str(number))
    remove, gone = removal._remove, []

    def race(folder_fd: int, entry: os.DirEntry[str]) -> None:
        if entry.name.isdecimal() and len(gone) < 4:
            gone.append(entry.name)
            os.unlink(entry.name, dir_fd=folder_fd)
        remove(folder_fd, entry)

    monkeypatch.setattr(removal, "_remove", race)
    removal.remove_store(base_fd, "mine")
    assert len(gone) == 4
    assert _names(base) == []


def test_seats_that_clients_make_meanwhile_go_too(
    base: Path, base_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes makes its seat when the others have been removed."""
    _make_store(base, "mine")
    rmdir, late = os.rmdir, ["10", "11"]

    def race(name: str, dir_fd: int) -> None:
        if name == "seats" and late:
            seats_fd = os.open(name, os.O_RDONLY, dir_fd=dir_fd)
            os.close(os.open(late.pop(), os.O_CREAT | os.O_WRONLY, dir_fd=seats_fd))
            os.close(seats_fd)
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", race)
    removal.remove_store(base_fd, "mine")
    assert not late
    assert _names(base) == []
