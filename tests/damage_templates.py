"""What does a store look like that is about to be damaged? It has a bit of everything.

A template is made once, by two processes that are killed in the middle of things: objects of every
kind, deleted ones that are still pinned, a put half done, seats of the dead. Its files are kept as
bytes, so that writing a copy of the store takes less than a millisecond.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shmstore import Store
from shmstore._memory import layout as L

PAGE = L.PAGE
NAME = "damaged"
CAPACITY = 320 << 10
MAX_OBJECTS = 72
MAX_CLIENTS = 6
FILLERS = 12
STORES, SPILL, IN_FILES = "stores", "spill", "files/"

LONG_TYPE = np.dtype([(f"field{number}", "<f4") for number in range(20)])


class Image:
    """One file: its length, and its bytes up to the last page that is not empty."""

    __slots__ = ("data", "size")

    def __init__(self, size: int, data: bytearray) -> None:
        self.size = size
        self.data = data

    @classmethod
    def read(cls, path: Path) -> Image:
        """Read a file; behind the last page that has data there are only holes."""
        size = path.stat().st_size
        data = bytearray()
        with path.open("rb") as file:
            end = 0
            while end < size:
                try:
                    start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            data += os.pread(file.fileno(), min(end, size), 0)
        return cls(size, data)

    def copy(self) -> Image:
        """Return one that may be changed."""
        return Image(self.size, bytearray(self.data))

    def write(self, path: Path) -> None:
        """Make the file."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, self.size)
            os.pwrite(fd, memoryview(self.data)[: self.size], 0)
        finally:
            os.close(fd)


Files = dict[str, Image]


class Kept(NamedTuple):
    """One object of a template, as it must come back."""

    value: Any
    key: str | None
    readonly: bool
    slot: int
    generation: int
    nbytes: int


class Template(NamedTuple):
    """The files of one store, at two moments, and what is in it."""

    uuid: bytes
    files: Files
    older: Files
    objects: dict[str, Kept]
    watched: dict[str, Kept]
    checksum: bool
    geometry: L.Geometry
    index: bytes


def objects(seed: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return what is put into a template, with the choices of `put`: the first half before `older`.

    What has no name here in its choices is reached by its reference alone.
    """
    noise = np.random.default_rng(seed)
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "number": (seed * 1000 + 5, {"key": "number"}),
        "text": (f"text {seed} " * 9, {"key": "text"}),
        "unnamed": ((1, seed, "x"), {}),
        "stream": (list(range(seed, seed + 400)), {"key": "stream", "readonly": True}),
        "array": (np.arange(1000.0) + seed, {"key": "array"}),
        "frozen": (np.arange(700) * (seed + 1), {"key": "frozen", "readonly": True}),
        "pinned": (np.arange(500) + seed, {"key": "pinned", "readonly": True}),
        "doomed": (noise.random(300), {"key": "doomed"}),
        "dropped": (noise.random(200), {}),
    }
    made |= {
        f"filler {number}": (number + seed, {"key": f"f{number}"}) for number in range(FILLERS)
    }
    made |= {
        "loose": (noise.random((7, 9)), {}),
        "loose and frozen": (noise.integers(0, 99, 5000, "u1"), {"readonly": True}),
        "pair": (_pair(noise), {"key": "pair"}),
        "frozen pair": (_pair(noise), {"key": "frozen pair", "readonly": True}),
        "record": (noise.random(900).view("V80").view(LONG_TYPE), {"key": "record" * 30}),
        "frozen record": (np.zeros(5, LONG_TYPE), {"key": "r" * 250, "readonly": True}),
        "packed": (np.full(9000, seed), {"compression": "zlib", "key": "p", "readonly": True}),
        "big": (noise.random(12_000), {"readonly": True}),
        "empty": (np.zeros((0, 3)), {"key": "empty"}),
        "bytes": (noise.bytes(5000), {"key": "bytes", "readonly": True}),
    }
    return made


def more(number: int) -> tuple[Any, dict[str, Any]]:
    """Return what is put into a store that spills until it does."""
    noise = np.random.default_rng(number)
    return noise.random(10_000), {"readonly": number % 2 == 0, "key": f"more {number}"}


def _pair(noise: np.random.Generator) -> dict[str, Any]:
    return {"a": noise.random(50), "b": noise.integers(0, 9, 300), "c": "text"}


def make(base: Path, seed: int, **options: Any) -> Template:
    """Let two processes fill a store, kill them, and take its files."""
    path = base / STORES / NAME
    with contextlib.ExitStack() as players:
        owner = _Player(lambda player: _own(player, base, seed, options))
        players.callback(owner.kill)
        owner.hear()
        older = read_files(base)
        guest = _Player(lambda player: _visit(player, path))
        players.callback(guest.kill)
        guest.hear()
        found = json.loads(owner.ask())
    files = read_files(base)
    shutil.rmtree(path)
    shutil.rmtree(base / SPILL)
    (base / SPILL).mkdir(mode=0o700)
    contents = objects(seed) | {f"more {number}": more(number) for number in range(4)}
    kept = {
        name: Kept(value, given.get("key"), bool(given.get("readonly")), *found["refs"][name])
        for name, (value, given) in contents.items()
        if name in found["refs"]
    }
    watched = {
        f"doomed {number}": Kept(None, None, False, *place)  # noqa: FBT003 - all in a row
        for number, place in enumerate(found["doomed"])
    }
    checksum = bool(options.get("checksum"))
    geometry = L.Geometry(MAX_OBJECTS, MAX_CLIENTS)
    index = bytes(files["index"].data)
    identity = bytes.fromhex(found["uuid"])
    return Template(identity, files, older, kept, watched, checksum, geometry, index)


def read_files(base: Path) -> Files:
    """Read all files of a store, also those of objects that memory had no room for."""
    files = {}
    for folder in (base / STORES / NAME, *(base / SPILL).iterdir()):
        within = "" if folder.name == NAME else IN_FILES
        for found in sorted(p for p in folder.rglob("*") if p.is_file()):
            files[within + str(found.relative_to(folder))] = Image.read(found)
    return files


def write_files(base: Path, files: Files, identity: bytes) -> None:
    """Make the files of a store where they were."""
    path = base / STORES / NAME
    path.mkdir(mode=0o700)
    (path / "seats").mkdir(mode=0o700)
    folder = base / SPILL / f"{NAME}-{identity.hex()}"
    if any(name.startswith((IN_FILES, "spill")) for name in files):
        folder.mkdir(mode=0o700)
    for name, image in files.items():
        in_file = name.startswith(IN_FILES)
        image.write(folder / name.removeprefix(IN_FILES) if in_file else path / name)


# --- the two who are killed -----------------------------------------------------------------------


def _own(player: _Player, base: Path, seed: int, options: dict[str, Any]) -> None:
    if options.get("on_full") == "spill":
        options["spill_dir"] = base / SPILL
    store = Store.create(
        NAME,
        root=base / STORES,
        capacity=CAPACITY,
        max_objects=MAX_OBJECTS,
        max_clients=MAX_CLIENTS,
        persist=True,
        **options,
    )
    contents = objects(seed)
    refs = {}
    for number, (name, (value, given)) in enumerate(contents.items()):
        refs[name] = store.put(value, **given)
        if number == len(contents) // 2:
            player.say()
            player.wait()
    view = refs["doomed"].get()
    doomed = refs["doomed"]._slot, refs["doomed"]._generation, 0
    for name in ("doomed", "dropped", "filler 3", "filler 7"):
        store.delete(refs.pop(name))
    refs["filler 5"] = store.put(5 + seed, key="f5")
    replaced = refs["pinned"]._slot, refs["pinned"]._generation, 0
    refs["pinned"] = store.put(np.arange(500) + seed, key="pinned", readonly=True)
    if "spill_dir" in options:  # older objects have to go
        refs |= {f"more {n}": store.put(more(n)[0], **more(n)[1]) for n in range(4)}
    half_made = store.allocate(400, "u1", key="half made")
    half_made.__enter__()
    places = {name: (ref._slot, ref._generation, ref.nbytes) for name, ref in refs.items()}
    identity = store._session.uuid.hex()
    player.say(json.dumps({"uuid": identity, "refs": places, "doomed": [doomed, replaced]}))
    player.wait()
    del view


def _visit(player: _Player, path: Path) -> None:
    store = Store.attach(path)
    views = [store["pinned"], store["frozen"], store["doomed"]]
    player.say()
    player.wait()
    del views


class _Player:
    """A forked process that plays a part, in dialogue over two pipes, until it is killed."""

    def __init__(self, play: Callable[[_Player], None]) -> None:
        there, self._out = os.pipe()
        self._in, here = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._in, self._out = there, here
            try:
                play(self)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(there)
        os.close(here)

    def say(self, line: str = "") -> None:
        """Send a line."""
        os.write(self._out, line.encode() + b"\n")

    def hear(self) -> str:
        """Return the next line; "" when the other one has died."""
        text = b""
        while not text.endswith(b"\n"):
            part = os.read(self._in, 1 << 16)
            if not part:
                raise AssertionError("who fills the store has failed")
            text += part
        return text.decode()

    wait = hear

    def ask(self) -> str:
        """Let it go on; return what it says then."""
        self.say()
        return self.hear()

    def kill(self) -> None:
        """End it where it is."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._in)
        os.close(self._out)


def row_of(template: Template, slot: int) -> tuple[int, int]:
    """Return where the row of a slot begins and ends in the index."""
    start = template.geometry.slots * L.WORD + slot * L.SLOT_NBYTES
    return start, start + L.SLOT_NBYTES


def all_templates(base: Path) -> list[Template]:
    """Make the templates: read without a lock, with one, with checksums, and with files."""
    gc.collect()
    (base / STORES).mkdir(mode=0o700)
    (base / SPILL).mkdir(mode=0o700)
    return [
        make(base, 1),
        make(base, 2, locked_reads=True),
        make(base, 3, checksum=True),
        make(base, 4, checksum=True),
        make(base, 5, on_full="spill", checksum=True),
        make(base, 6, on_full="spill"),
    ]
