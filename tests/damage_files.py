"""Does a store with damaged files do more than raise our errors? The fuzzer's door for files.

For each case a copy of a template is written and damaged; a forked process attaches it, gets
everything, looks around, puts, overwrites, deletes, recovers and goes on. It may get the right
value or an error of ours. What the damage does not concern must be right from `recover()` on at the
latest. Its time and memory are limited, and nothing may be left of a store that it has destroyed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import damage_work
from damage_templates import (
    IN_FILES,
    NAME,
    PAGE,
    SPILL,
    STORES,
    Files,
    Image,
    Template,
    all_templates,
    row_of,
    write_files,
)
from damage_ways import Noise, Scene, damage, damage_live
from fuzzing import FILE_KINDS

from shmstore._memory import layout as L

LIMIT_S = 8
CPU_S = 6
MOST_BLOCKS_NBYTES = 64 << 20
FSIZE_NBYTES = MOST_BLOCKS_NBYTES
CHANGED = 9 * L.WORD
PINNED = ("pinned", "frozen", "pair", "doomed 0", "doomed 1")
WORD = L.WORD


class Case(NamedTuple):
    """What a forked process is told about the store that it works on."""

    path: Path
    template: Template
    done: str
    lost: frozenset[str]
    fragile: frozenset[str]
    dirty: bool
    living: bool
    stale: bool
    sound: bool
    readable: bool
    older: bool
    roomy: bool
    seed: int
    edits: tuple[tuple[int, bytes], ...] = ()
    racing: bool = False


class DamageError(AssertionError):
    """What a case did that it must not do, and where."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)
        self.where = where


class FileTargets:
    """The files of a store, by the kinds of their cases; each case returns whether it was refused.

    Parameters
    ----------
    folder
        For stores, in shared memory.
    """

    streams: frozenset[bytes] | None = None

    def __init__(self, folder: Path) -> None:
        self.verbose = False
        self.base = Path(tempfile.mkdtemp(dir=folder, prefix="stores-"))
        self.templates = all_templates(self.base)
        self.segments = [name for name in self.templates[0].files if name.startswith("segment")]
        self.kinds = {kind: getattr(self, f"try_{kind}") for kind in FILE_KINDS}
        damage_work.warm_up()

    def try_index(self, noise: Noise) -> bool:
        """Everything that is known of the objects."""
        return self._try(noise, "index")

    def try_seat(self, noise: Noise) -> bool:
        """Pins of a client that is dead, or lives."""
        return self._try(noise, noise.choice(("seats/1", "seats/2", "seats/2")))

    def try_segment(self, noise: Noise) -> bool:
        """The data."""
        return self._try(noise, noise.choice(self.segments))

    def try_lock(self, noise: Noise) -> bool:
        """A file that holds nothing."""
        return self._try(noise, "lock")

    def try_spill(self, noise: Noise) -> bool:
        """Objects in files, and the file that says where they are."""
        scene = self._scene(noise, *range(4, 6))
        names = [name for name in scene.template.files if name.startswith(IN_FILES)]
        return self._try(noise, "spill" if noise.random() < 0.1 else noise.choice(names), scene)

    def try_live(self, noise: Noise) -> bool:
        """The index, while somebody works with it."""
        scene = self._scene(noise)
        data = scene.template.index
        many = noise.random() < 0.4
        done, edits = [], []
        for _ in range(noise.randint(3, 20) if many else 1):
            told, changed = damage_live(data, noise, scene)
            done.append(told)
            edits += [edit for edit in changed if not _in_stream(scene.template, edit[0])]
        return self._run(
            noise,
            scene.template,
            scene.template.files,
            done=f"live: {'; '.join(done)}",
            lost=_changed_rows(scene.template, {at for at, _ in edits}),
            living=noise.random() < 0.4,
            sound=not any(_is_constant(at) for at, _ in edits),
            fragile=frozenset(scene.template.objects if many else ()),
            edits=tuple(edits),
            racing=many,
        )

    def try_words(
        self, path: str, words: dict[int, int], *, number: int = 0, living: bool = False
    ) -> bool:
        """Certain words of a file, given by their offsets: for damage that has been found once."""
        template = self.templates[number]
        files = {name: image.copy() for name, image in template.files.items()}
        for at, value in words.items():
            files[path].data[at : at + WORD] = (value % (1 << 64)).to_bytes(WORD, "little")
        return self._judge(Noise(7), template, files, f"{path}: {words}", living=living)

    # --- one case --------------------------------------------------------------------------------

    def _scene(self, noise: Noise, *numbers: int) -> Scene:
        one = noise.choice(numbers or range(len(self.templates)))
        return Scene(self.templates[one], self.templates[one ^ 1])

    def _try(self, noise: Noise, path: str, scene: Scene | None = None) -> bool:
        scene = scene or self._scene(noise)
        template = scene.template
        files = {name: image.copy() for name, image in template.files.items()}
        done = damage(files, path, noise, scene)
        return self._judge(noise, template, files, done, living=noise.random() < 0.4)

    def _judge(
        self, noise: Noise, template: Template, files: Files, done: str, *, living: bool
    ) -> bool:
        lost, fragile = _concerned(template, files)
        sound = _can_be_used(template, files)
        told = {"done": done, "lost": lost, "fragile": fragile, "sound": sound, "living": living}
        return self._run(noise, template, files, **told)

    def _run(self, noise: Noise, template: Template, files: Files, **told: Any) -> bool:
        path = self.base / STORES / NAME
        living = told["living"]
        seen = living or "edits" in told
        if seen and told["lost"].intersection(PINNED):  # where views look cannot be told any more
            told["sound"] = False
        case = Case(
            path=path,
            template=template,
            dirty=noise.random() < 0.3,
            readable=not (living and "seats/2" in told["done"]),
            stale=any(text in told["done"] for text in ("older", "another")),
            older="index: an older copy" in told["done"],
            roomy=all(_is_segment(template.files[name], files.get(name)) for name in self.segments),
            seed=noise.getrandbits(32),
            **{"fragile": frozenset(), **told},
        )
        write_files(self.base, files, template.uuid)
        _set_dirty(path / "index", dirty=case.dirty)
        if self.verbose:
            print(case._replace(template=None))
        try:
            problems, refused = _fork(case, verbose=self.verbose)
            nbytes = sum(p.stat().st_blocks * 512 for p in self.base.rglob("*") if p.is_file())
            if nbytes > MOST_BLOCKS_NBYTES:
                problems.append([f"the files have grown to {nbytes} bytes", "growth"])
        finally:
            for folder in (STORES, SPILL):
                shutil.rmtree(self.base / folder, ignore_errors=True)
                (self.base / folder).mkdir(mode=0o700)
        if problems:
            what, where = problems[0]
            raise DamageError(f"{what}\n  after {case.done}", where)
        return bool(refused)


def _set_dirty(path: Path, *, dirty: bool) -> None:
    if dirty and path.exists() and path.stat().st_size > L.SUPERBLOCK_NBYTES:
        with path.open("r+b") as index:
            os.pwrite(index.fileno(), (1).to_bytes(WORD, "little"), L.W_DIRTY * WORD)


# --- what a damage concerns -----------------------------------------------------------------------


def _concerned(template: Template, files: Files) -> tuple[frozenset[str], frozenset[str]]:
    """Return the objects that may be lost, and those whose data may be wrong without being told."""
    lost, fragile = set(), set()
    before, after = template.index, files["index"].data if "index" in files else b""
    words = memoryview(before).cast("Q")
    for name, kept in {**template.objects, **template.watched}.items():
        start, end = row_of(template, kept.slot)
        if before[start:end] != after[start:end]:
            lost.add(name)
        base = start // WORD
        offset, nbytes = words[base + L.S_EXTENT] & L.EXTENT_MASK, words[base + L.S_EXTENT_NBYTES]
        in_file = f"{IN_FILES}{kept.slot}-{kept.generation}"
        if in_file in template.files and not _is_same(template.files[in_file], files.get(in_file)):
            lost.add(name)
            if in_file in files and any(files[in_file].data[CHANGED:][:WORD]):
                fragile.add(name)
        if words[base + L.S_NODE] and _data_differs(template, files, offset, nbytes):
            lost.add(name)
            if not (template.checksum and kept.readonly):
                fragile.add(name)
    return frozenset(lost), frozenset(fragile)


def _can_be_used(template: Template, files: Files) -> bool:
    """Return whether the damage must not keep anybody from using what is left of the store."""
    if "index" not in files or "lock" not in files:
        return False
    if ("spill" in template.files) and not _is_same(template.files["spill"], files.get("spill")):
        return False
    index, before = files["index"], template.files["index"]
    places = [at for at in range(0, L.SUPERBLOCK_NBYTES, WORD) if _is_constant(at)]
    same = all(index.data[at : at + WORD] == before.data[at : at + WORD] for at in places)
    return same and index.size == before.size


def _is_constant(at: int) -> bool:
    """Return whether a place of the index decides whether there is a store at all."""
    return at // WORD <= L.W_GEOMETRY_CRC or at // WORD == L.W_DESTROYED


def _data_differs(template: Template, files: Files, offset: int, nbytes: int) -> bool:
    for name, image in template.files.items():
        if name.startswith("segment"):
            found = files.get(name)
            end = offset + nbytes
            if found is None or not _is_segment(image, found):
                return True
            if image.data[offset:end] != found.data[offset:end]:
                return True
    return False


def _is_same(image: Image, found: Image | None) -> bool:
    return found is not None and (image.size, image.data) == (found.size, found.data)


def _is_segment(image: Image, found: Image | None) -> bool:
    """Return whether a segment is still whole, up to its label."""
    if found is None:
        return False
    label = slice(image.size - PAGE, image.size)
    return image.size == found.size and image.data[label] == found.data[label]


def _changed_rows(template: Template, places: set[int]) -> frozenset[str]:
    lost = set()
    for name, kept in {**template.objects, **template.watched}.items():
        start, end = row_of(template, kept.slot)
        if any(start <= at < end for at in places):
            lost.add(name)
    return frozenset(lost)


def _in_stream(template: Template, at: int) -> bool:
    """Return whether a place of the index belongs to what slots hold besides their fields.

    It is verified when a process first looks at the object, and never again.
    """
    within = at - template.geometry.slots * WORD
    return within >= 0 and within % L.SLOT_NBYTES >= L.INLINE_OFFSET


# --- the process that works on the store ----------------------------------------------------------


def _fork(case: Case, *, verbose: bool) -> tuple[list[list[str]], int]:
    """Let a forked process work; return what it did wrong, and how often it was refused."""
    here, there = os.pipe()
    trace = os.memfd_create("trace")
    pid = os.fork()
    if not pid:
        os.close(here)
        _work(case, there, trace, verbose=verbose)
    os.close(there)
    text, hung = _read(here, pid)
    os.close(here)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    stack = os.pread(trace, 20_000, 0).decode(errors="replace")
    os.close(trace)
    if hung or code:
        lines = [line.strip() for line in stack.splitlines() if "File" in line]
        where = "\n".join(reversed(lines[:8]))
        return [
            [f"hung for {LIMIT_S} s" if hung else f"ended with {code}: {stack[-300:]}", where]
        ], 0
    told = json.loads(text)
    return told["problems"], told["refused"]


def _read(fd: int, pid: int) -> tuple[bytes, bool]:
    text, deadline = b"", time.monotonic() + LIMIT_S
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGABRT)
            return b"", True
        part = os.read(fd, 1 << 16)
        if not part:
            return text, False
        text += part


def _work(case: Case, fd: int, trace: int, *, verbose: bool) -> None:
    try:
        faulthandler.enable(trace)
        if not verbose:
            os.dup2(trace, 2)
        limits = {resource.RLIMIT_CPU: CPU_S, resource.RLIMIT_FSIZE: FSIZE_NBYTES}
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        work = damage_work.Work(case, verbose=verbose)
        work.run()
        told = {"problems": work.problems, "refused": work.refused}
        os.write(fd, json.dumps(told).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(9)
