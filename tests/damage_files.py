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
from pathlib import Path
from typing import Any, NamedTuple

import damage_work
from damage_templates import NAME, Files, Template, all_templates, row_of
from damage_ways import Noise, Scene, damage, damage_live
from fuzzing import FILE_KINDS

from shmstore._memory import layout as L

LIMIT_S = 8
CPU_S = 6
MOST_BLOCKS_NBYTES = 64 << 20
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
        self.root = Path(tempfile.mkdtemp(dir=folder, prefix="root-"))
        self.templates = all_templates(self.root)
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
        return self._try(noise, noise.choice(self._segments()))

    def try_lock(self, noise: Noise) -> bool:
        """A file that holds nothing."""
        return self._try(noise, "lock")

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
            edits=tuple(edits),
            racing=many,
        )

    # --- one case --------------------------------------------------------------------------------

    def _segments(self) -> list[str]:
        return [name for name in self.templates[0].files if name.startswith("segment")]

    def _scene(self, noise: Noise) -> Scene:
        one = noise.randrange(len(self.templates))
        return Scene(self.templates[one], self.templates[one ^ 1])

    def _try(self, noise: Noise, path: str) -> bool:
        scene = self._scene(noise)
        template = scene.template
        files = {name: image.copy() for name, image in template.files.items()}
        done = damage(files, path, noise, scene)
        lost, fragile = _concerned(template, files)
        return self._run(noise, template, files, done=done, lost=lost, fragile=fragile)

    def _run(self, noise: Noise, template: Template, files: Files, **told: Any) -> bool:
        path = self.root / NAME
        case = Case(
            path=path,
            template=template,
            dirty=noise.random() < 0.3,
            living=noise.random() < 0.4,
            stale="older" in told["done"] or "another" in told["done"],
            seed=noise.getrandbits(32),
            **{"fragile": frozenset(), **told},
        )
        _write(path, files, dirty=case.dirty)
        if self.verbose:
            print(case._replace(template=None))
        try:
            problems, refused = _fork(case, verbose=self.verbose)
            nbytes = sum(p.stat().st_blocks * 512 for p in self.root.rglob("*") if p.is_file())
            if nbytes > MOST_BLOCKS_NBYTES:
                problems.append([f"the files have grown to {nbytes} bytes", "growth"])
        finally:
            for left in self.root.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if problems:
            what, where = problems[0]
            raise DamageError(f"{what}\n  after {case.done}", where)
        return bool(refused)


def _write(path: Path, files: Files, *, dirty: bool) -> None:
    path.mkdir(mode=0o700)
    (path / "seats").mkdir(mode=0o700)
    for name, image in files.items():
        image.write(path / name)
    if dirty and "index" in files and files["index"].size > L.SUPERBLOCK_NBYTES:
        with (path / "index").open("r+b") as index:
            os.pwrite(index.fileno(), (1).to_bytes(WORD, "little"), L.W_DIRTY * WORD)


# --- what a damage concerns -----------------------------------------------------------------------


def _concerned(template: Template, files: Files) -> tuple[frozenset[str], frozenset[str]]:
    """Return the objects that may be lost, and those whose data may be wrong without being told."""
    lost, fragile = set(), set()
    before, after = template.index, files["index"].data if "index" in files else b""
    words = memoryview(before).cast("Q")
    for name, kept in template.objects.items():
        start, end = row_of(template, kept.slot)
        if before[start:end] != after[start:end]:
            lost.add(name)
        offset, nbytes = words[start // WORD + L.S_EXTENT], words[start // WORD + L.S_EXTENT_NBYTES]
        if nbytes and _data_differs(template, files, offset, nbytes):
            lost.add(name)
            if not (template.checksum and kept.readonly):
                fragile.add(name)
    return frozenset(lost), frozenset(fragile)


def _data_differs(template: Template, files: Files, offset: int, nbytes: int) -> bool:
    for name, image in template.files.items():
        if name.startswith("segment"):
            found = files.get(name)
            end = offset + nbytes
            if (
                found is None
                or found.size < end
                or image.data[offset:end] != found.data[offset:end]
            ):
                return True
    return False


def _changed_rows(template: Template, places: set[int]) -> frozenset[str]:
    lost = set()
    for name, kept in template.objects.items():
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
        limits = {resource.RLIMIT_CPU: CPU_S, resource.RLIMIT_FSIZE: MOST_BLOCKS_NBYTES}
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        work = damage_work.Work(case, verbose=verbose)
        work.run()
        told = {"problems": work.problems, "refused": work.refused}
        os.write(fd, json.dumps(told).encode())
        os._exit(0)
    finally:
        os._exit(9)
